"""What the proofs rest on: no ``sorry``, no axioms but Lean's three, nothing that could bring others in unseen.

A native Lean is asked for the axioms of each theorem (``#print axioms``). The WebAssembly build refuses that, so there
the audit has two parts: the sources must not contain a word with which an axiom, ``sorry``, compiled evaluation or a
program that runs while Lean checks can come in; and the compiled file must not name what such things leave behind.
Theorems of Lean's own library are trusted, and with them its three axioms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .run import Message, Part, Theorem

ALLOWED: Final = frozenset({"propext", "Quot.sound", "Classical.choice"})
#: Words of Lean that a theory must not contain.
BANNED: Final = (
    *(
        "sorry",
        "admit",
        "axiom",
        "axioms",
        "constant",
        "opaque",
        "unsafe",
        "partial",
        "extern",
        "implemented_by",
    ),
    *(
        "native_decide",
        "bv_decide",
        "native",
        "reduceBool",
        "reduceNat",
        "ofReduceBool",
        "ofReduceNat",
        "sorryAx",
    ),
    *("trustCompiler", "csimp", "skipKernelTC", "set_option", "attribute", "private", "import", "module"),
    *("macro", "macro_rules", "syntax", "notation", "infix", "infixl", "infixr", "prefix", "postfix", "elab"),
    *(
        "elab_rules",
        "run_cmd",
        "run_tac",
        "run_elab",
        "run_meta",
        "by_elab",
        "simproc",
        "dsimproc",
        "initialize",
    ),
    *("builtin_initialize", "eval", "unseal", "Lean", "IO", "unsafeCast", "lcProof", "lcAny"),
)
#: What stands in a compiled file that uses sorry or trusts the compiler.
TRACES: Final = (b"sorryAx", b"ofReduceBool", b"ofReduceNat", b"trustCompiler", b"reduceBool")
_COMMENT: Final = re.compile(r"/-|-/|--[^\n]*|\"(?:\\.|[^\"\\])*\"|\n|.", re.DOTALL)
_PRINTED: Final = re.compile(
    r"'(?P<name>[^']+)' (?:depends on axioms: \[(?P<axioms>[^\]]*)\]|does not depend on any)"
)


@dataclass(frozen=True)
class Finding:
    """Something that a theory must not contain.

    Attributes:
        place: the theory and line, or the theorem.
        what: the word, or the axiom.
    """

    place: str
    what: str


def words(theory: str, text: str) -> list[Finding]:
    """Banned words in a theory, outside comments and strings."""
    findings = []
    for number, line in enumerate(without_comments(text).split("\n"), 1):
        for word in re.findall(r"[A-Za-z_][\w']*", line):
            if word in BANNED:
                findings.append(Finding(f"{theory}.lean:{number}", word))
    return findings


def without_comments(text: str) -> str:
    """The text with comments (they nest) and strings blanked; lines stay where they are."""
    kept, depth = [], 0
    for token in _COMMENT.findall(text):
        if token == "/-":
            depth += 1
        elif token == "-/" and depth:
            depth -= 1
        elif token == "\n":
            kept.append(token)
        elif depth or token.startswith("--") or (token[0] == '"' and len(token) > 1):
            kept.append("\n" * token.count("\n") + " ")
        else:
            kept.append(token)
    return "".join(kept)


def traces(compiled: bytes) -> list[Finding]:
    """What a compiled file names that it must not."""
    return [Finding("the compiled theories", trace.decode()) for trace in TRACES if trace in compiled]


def axioms_part(theorems: Iterable[Theorem]) -> Part:
    """Asks a native Lean for the axioms of each theorem."""
    return Part("axioms", "\n".join(f"#print axioms {theorem.full_name}" for theorem in theorems))


def printed_axioms(messages: Sequence[Message], theorems: Sequence[Theorem]) -> list[Finding]:
    """The axioms that theorems rest on and must not, and theorems of which Lean said nothing."""
    said = {}
    for message in messages:
        for found in _PRINTED.finditer(message.text):
            said[found["name"]] = {a.strip() for a in (found["axioms"] or "").split(",") if a.strip()}
    findings = []
    for theorem in theorems:
        axioms = said.get(theorem.full_name)
        if axioms is None:
            findings.append(Finding(theorem.full_name, "Lean did not say which axioms it rests on"))
        else:
            findings += [Finding(theorem.full_name, axiom) for axiom in sorted(axioms - ALLOWED)]
    return findings
