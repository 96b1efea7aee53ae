"""A model as TLA+'s own parser reads it, written out with all parentheses: the text that the second checker gets.

The second checker's parser takes ``a => b /\\ c`` for ``(a => b) /\\ c`` and leaves out definitions that it can't read
without a word. So it gets no text whose meaning depends on indentation or precedence: SANY, the parser that TLC uses
too, exports its tree, and :func:`plain` prints what a configuration needs of it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from . import tlc

_STANDARD: Final = ("Integers", "Sequences", "FiniteSets", "TLC")
_OF_TOOLS: Final = frozenset({*_STANDARD, "Naturals"})
#: SANY's names of operators that stand between their operands, and how they are written.
_BETWEEN: Final = {
    **{name: name for name in ("=", "=>", "\\in", "\\notin", "\\", "\\union", "\\subseteq", "~>")},
    **{name: name for name in ("+", "-", "*", "..", "<", ">", "\\div", "%", "\\o", ":>", "@@")},
    "/=": "#",
    "\\leq": "<=",
    "\\geq": ">=",
    "\\equiv": "<=>",
    "\\intersect": "\\cap",
    "\\land": "/\\",
    "\\lor": "\\/",
    "$CartesianProd": "\\X",
}
_BEFORE: Final = {
    "\\lnot": "~",
    **{name: name for name in ("SUBSET", "UNION", "DOMAIN", "UNCHANGED", "ENABLED")},
}
_LISTS: Final = {"$ConjList": "/\\", "$DisjList": "\\/"}
_BOUND: Final = {"$BoundedExists": "\\E", "$BoundedForall": "\\A", "$BoundedChoose": "CHOOSE"}


class UnknownConstructError(RuntimeError):
    """The model has a construct that is not printed here; the message names it."""


class Model:
    """One model and the modules that it extends.

    Args:
        xml: what SANY exported.
    """

    def __init__(self, xml: str) -> None:
        root = ET.fromstring(xml)
        self._entries = {_text(e, "UID"): e[1] for e in root.iterfind("context/entry")}
        inner = {r.text or "" for r in root.iterfind(".//LetInNode/opDefs/UserDefinedOpKindRef/UID")}
        self._inner = inner | {
            uid for uid, node in self._entries.items() if node.findtext("uniquename") == "LAMBDA"
        }
        self._own = {
            uid: node
            for uid, node in self._entries.items()
            if node.tag == "UserDefinedOpKind" and _module(node) not in _OF_TOOLS and uid not in self._inner
        }
        declared = [node for node in self._entries.values() if node.tag == "OpDeclNode"]
        main = _text(root, "RootModule")
        # A module that is instantiated may have definitions of the same names.
        self._names = {_text(node, "uniquename"): uid for uid, node in self._own.items()} | {
            _text(node, "uniquename"): uid for uid, node in self._own.items() if _module(node) == main
        }
        of_main = [node for node in declared if _module(node) == main]
        self.constants = [_text(node, "uniquename") for node in of_main if _text(node, "kind") == "2"]
        self.variables = [_text(node, "uniquename") for node in of_main if _text(node, "kind") == "3"]

    def text(self, wanted: Iterable[str], given: Iterable[str] = ()) -> str:
        """The definitions of ``wanted`` and all that they need, each after those that it needs.

        Args:
            wanted: names of definitions.
            given: names that are defined elsewhere.
        """
        done: dict[str, str] = {}
        elsewhere = set(given)

        def define(uid: str, under: tuple[str, ...]) -> None:
            node = self._own[uid]
            name = _text(node, "uniquename")
            if uid in done or uid in under or name in elsewhere:
                return
            for needed in self._needs(node):
                define(needed, (*under, uid))
            params = self._params(node)
            head = f"{name}({', '.join(params)})" if params else name
            body = self._show(_body(node))
            before = f"RECURSIVE {name}({', '.join('_' for _ in params)})\n"
            done[uid] = f"{before if node.find('recursive') is not None else ''}{head} == {body}"

        for name in wanted:
            define(self._names[name], ())
        return "\n".join(done.values())

    def _needs(self, node: ET.Element) -> Iterator[str]:
        for reference in node.iter("UserDefinedOpKindRef"):
            uid = _text(reference, "UID")
            if uid in self._inner:
                yield from self._needs(self._entries[uid])
            elif uid in self._own:
                yield uid

    def _params(self, node: ET.Element) -> list[str]:
        references = node.iterfind("params/leibnizparam/FormalParamNodeRef/UID")
        return [self._name(r.text or "") for r in references]

    def _name(self, uid: str) -> str:
        """Of a definition or variable. A bound one gets a name of its own: the second checker mixes up names."""
        node = self._entries[uid]
        name = _text(node, "uniquename")
        return f"{name}_{uid}" if node.tag == "FormalParamNode" else name

    def _show(self, node: ET.Element) -> str:
        if node.tag == "OpApplNode":
            return self._applied(node)
        if node.tag == "StringNode":
            return f'"{_text(node, "StringValue")}"'
        if node.tag == "NumeralNode":
            return _text(node, "IntValue")
        if node.tag == "AtNode":
            return "@"
        if node.tag == "LetInNode":
            return self._let(node)
        if node.tag == "OpArgNode":
            target = self._entries[_text(node, "argument/UserDefinedOpKindRef/UID")]
            if _text(target, "uniquename") != "LAMBDA":
                return _text(target, "uniquename")
            return f"LAMBDA {', '.join(self._params(target))} : {self._show(_body(target))}"
        raise UnknownConstructError(f"{node.tag} of SANY's tree can't be printed")

    def _let(self, node: ET.Element) -> str:
        shown = []
        for reference in node.iterfind("opDefs/UserDefinedOpKindRef/UID"):
            target = self._entries[reference.text or ""]
            name = _text(target, "uniquename")
            if name != "LAMBDA":
                params = self._params(target)
                head = f"{name}({', '.join(params)})" if params else name
                shown.append(f"{head} == {self._show(_body(target))}")
        inner = self._show(node.findall("body/*")[-1])
        return f"(LET {' '.join(shown)} IN {inner})" if shown else inner

    def _applied(self, node: ET.Element) -> str:
        reference = node.find("operator/*/UID")
        name = self._name((reference.text or "") if reference is not None else "")
        arguments = list(node.find("operands") or ())
        if name in _BOUND:
            return f"({_BOUND[name]} {self._bounds(node)} : {self._show(arguments[0])})"
        if name in _MADE:
            return _MADE[name](self, node, arguments)
        shown = [self._show(a) for a in arguments]
        if name in _LISTS:
            return f"({f' {_LISTS[name]} '.join(shown)})" if len(shown) > 1 else shown[0]
        if name in _BETWEEN and len(shown) >= 2:
            return f"({f' {_BETWEEN[name]} '.join(shown)})"
        if name in _BEFORE:
            return f"({_BEFORE[name]} {shown[0]})"
        if name == "-." or name.startswith("$"):
            raise UnknownConstructError(f"{name} of SANY's tree can't be printed")
        return f"{name}({', '.join(shown)})" if shown else name

    def _bounds(self, node: ET.Element) -> str:
        return ", ".join(self._bound(b) for b in node.iterfind("boundSymbols/bound"))

    def _bound(self, bound: ET.Element) -> str:
        names = [self._name(r.text or "") for r in bound.iterfind("FormalParamNodeRef/UID")]
        if bound.find("tuple") is not None:
            raise UnknownConstructError("a tuple of bound variables can't be printed")
        return f"{', '.join(names)} \\in {self._show(bound[-1])}"

    def _except(self, node: ET.Element, arguments: list[ET.Element]) -> str:
        changes = []
        for pair in arguments[1:]:
            places, value = list(pair.find("operands") or ())
            path = "".join(
                f".{_text(place, 'StringValue')}" if place.tag == "StringNode" else f"[{self._show(place)}]"
                for place in places.find("operands") or ()
            )
            changes.append(f"!{path} = {self._show(value)}")
        return f"[{self._show(arguments[0])} EXCEPT {', '.join(changes)}]"

    def _record(self, node: ET.Element, arguments: list[ET.Element]) -> str:
        fields = []
        for pair in arguments:
            name, value = list(pair.find("operands") or ())
            fields.append(f"{_text(name, 'StringValue')} |-> {self._show(value)}")
        return f"[{', '.join(fields)}]"

    def _case(self, node: ET.Element, arguments: list[ET.Element]) -> str:
        arms = []
        for pair in arguments:
            when, then = list(pair.find("operands") or ())
            # SANY has no condition for OTHER.
            shown = self._show(when) if len(when) else "OTHER"
            arms.append(f"{shown} -> {self._show(then)}")
        return f"(CASE {' [] '.join(arms)})"


def _only(shape: str) -> Callable[[Model, ET.Element, list[ET.Element]], str]:
    def made(model: Model, node: ET.Element, arguments: list[ET.Element]) -> str:
        shown = [model._show(a) for a in arguments]
        return shape.format(*shown, all=", ".join(shown), bounds=model._bounds(node))

    return made


def _field(model: Model, node: ET.Element, arguments: list[ET.Element]) -> str:
    return f"{model._show(arguments[0])}.{_text(arguments[1], 'StringValue')}"


_MADE: Final[dict[str, Callable[[Model, ET.Element, list[ET.Element]], str]]] = {
    "'": _only("{0}'"),
    "$SetEnumerate": _only("{{{all}}}"),
    "$Tuple": _only("<<{all}>>"),
    "$FcnApply": _only("({0})[{1}]"),
    "$FcnConstructor": _only("[{bounds} |-> {0}]"),
    "$SetOfFcns": _only("[{0} -> {1}]"),
    "$SetOfAll": _only("{{{0} : {bounds}}}"),
    "$SubsetOf": _only("{{{bounds} : {0}}}"),
    "$IfThenElse": _only("(IF {0} THEN {1} ELSE {2})"),
    "$SquareAct": _only("[][{0}]_{1}"),
    "$RcdSelect": _field,
    "$Except": Model._except,
    "$RcdConstructor": Model._record,
    "$Case": Model._case,
}


def _text(node: ET.Element, path: str) -> str:
    found = node.findtext(path)
    if found is None:
        raise UnknownConstructError(f"{node.tag} of SANY's tree has no {path}")
    return found


def _module(node: ET.Element) -> str:
    return node.findtext("location/filename") or ""


def _body(node: ET.Element) -> ET.Element:
    return node.findall("body/*")[-1]


@cache
def read(model: str, text: str = "") -> Model:
    """Parse a model with SANY.

    Args:
        model: the module's name.
        text: what stands in its file; without it the file of that name.

    Raises:
        tlc.MissingToolError: there is no Java, or no TLC.
        UnknownConstructError: SANY did not read the model.
    """
    with tempfile.TemporaryDirectory(prefix="sany-") as name:
        place = Path(name)
        for spec in tlc.SPECS.glob("*.tla"):
            shutil.copy(spec, place)
        if text:
            (place / f"{model}.tla").write_text(text, encoding="utf-8")
        command = [
            tlc.java(),
            "-XX:TieredStopAtLevel=1",
            "-Xss16m",
            f"-Djava.io.tmpdir={name}",
            "-cp",
            str(tlc.jar()),
        ]
        done = subprocess.run(
            [*command, "tla2sany.xml.XMLExporter", "-o", f"{model}.tla"],
            cwd=place,
            capture_output=True,
            text=True,
            timeout=tlc.SECONDS,
            check=False,
        )
    if done.returncode or "<modules" not in done.stdout:
        raise UnknownConstructError(f"SANY can't read {model}: {(done.stdout + done.stderr)[-600:]}")
    return Model(re.sub(r"^.*?(?=<\?xml|<modules)", "", done.stdout, count=1, flags=re.DOTALL))


def plain(model: Model, name: str, wanted: Iterable[str], given: str = "") -> str:
    """A module that has ``wanted`` and what that needs, and extends standard modules only.

    Args:
        model: where the definitions are from.
        name: of the module.
        wanted: names of definitions.
        given: definitions that stand for those of the same name, as text.
    """
    taken = re.findall(r"^(\w+) ==", given, re.MULTILINE)
    lines = [f"---- MODULE {name} ----", f"EXTENDS {', '.join(_STANDARD)}"]
    if model.constants:
        lines.append(f"CONSTANTS {', '.join(model.constants)}")
    lines.append(f"VARIABLES {', '.join(model.variables)}")
    return "\n".join([*lines, given, model.text(wanted, taken), "===="]) + "\n"
