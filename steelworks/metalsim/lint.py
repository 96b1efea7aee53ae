"""Lints for Metal source: what a compile on this machine accepts and Metal's compiler, or a reader, does not.

Rules (``RULES`` has them as data)
    address-space       a pointer or reference to one address space is used as one to another
    pointer-space       a pointer or reference parameter names no address space
    cpp14               the source needs a C++ newer than Metal's C++14
    double              double, long double or a literal of that type by suffix
    reserved-name       a name that Metal or the compiler keeps for itself, declared by the source
    vector-bit-cast     a vector is read as one of another element type through a pointer
    vector-cast         a C cast between vectors of one size: bits or values?
    syntax              the source does not compile, or leaves the subset of metalsim

How it works: ``double`` and the names are found in the tokens; C++14 by the compiler's own warnings; address
spaces by a second compile in which they are types (``_lint_compiler``); vector casts by a walk over the
compiler's syntax tree. Class types have no address spaces in that compile, so copies of structs and vectors
are not judged: the rule finds wrong pointers and references, which is where such errors are made.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

RULES: Final = {
    "address-space": "a pointer or reference to one address space is used as one to another",
    "pointer-space": "a pointer or reference parameter names no address space",
    "cpp14": "the source needs a C++ newer than Metal's C++14",
    "double": "Metal has no double",
    "reserved-name": "a name that Metal or the compiler keeps for itself",
    "vector-bit-cast": "a vector is read as one of another element type through a pointer",
    "vector-cast": "a C cast between vectors of one size does not say whether it converts bits or values",
    "syntax": "the source does not compile, or leaves the supported subset",
}


@dataclass(frozen=True)
class LintFinding:
    """One place that a rule objects to.

    Attributes:
        file: The file, as named by the caller.
        line: The line in it, from 1; 0 if no line can be named.
        rule: A key of ``RULES``.
        severity: ``"error"``: Metal's compiler refuses it; ``"warning"``: it may take it.
        message: What is there.
        mend: What to write instead.
    """

    file: str
    line: int
    rule: str
    severity: str
    message: str
    mend: str

    def text(self) -> str:
        """One line, in the form compilers use."""
        return f"{self.file}:{self.line}: {self.severity}: {self.message} [{self.rule}]; {self.mend}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text()


def lint(source: str, file: str = "program_source") -> list[LintFinding]:
    """All that the rules object to in a Metal source, by line.

    Args:
        source: The text.
        file: Its name for messages; nothing is read from it. What ``#include`` brings in is not linted.

    Returns:
        Findings, sorted by line; none for clean source.

    Raises:
        ToolchainError: there is no clang; the message says how to get it.

    Example::

        for finding in lint(Path("softmax.metal").read_text(), file="softmax.metal"):
            print(finding)
    """
    from . import _compile, _lint_compiler, _lint_tokens
    from ._tokens import Code, tokenize
    from .errors import MetalSyntaxError

    found: list[LintFinding] = []
    try:
        code = Code(tokenize(_compile.preprocess(source, file), file))
        found += _lint_tokens.check(code, file)
        text, _ = _compile.translate(_without_double(source), file)
    except MetalSyntaxError as problem:
        return _sorted([*found, *_unless_known(problem, found, file)])
    problems, usable = _lint_compiler.check_language(text, file)
    known = {f.line for f in found if f.rule == "reserved-name"}
    found += [f for f in problems if f.rule != "syntax" or f.line not in known]
    if usable:
        found += _lint_compiler.check_vector_casts(text, file)
        typed, _ = _compile.translate(_without_double(source), file, typed=True)
        found += _lint_compiler.check_spaces(typed, file)
    return _sorted(found)


def lint_file(path: Path) -> list[LintFinding]:
    """``lint`` of a file.

    Raises:
        OSError: it can't be read.
        ToolchainError: there is no clang.
    """
    return lint(path.read_text(encoding="utf-8"), str(path))


def _without_double(source: str) -> str:
    """The source with float for double, so that one rule does not keep the others from being applied."""
    from . import _lint_tokens

    return _lint_tokens.DOUBLE.sub("float", source)


def _unless_known(problem: Any, found: list[LintFinding], file: str) -> list[LintFinding]:
    where, line = problem.filename or file, problem.lineno or 0
    if any(f.line == line and f.rule in ("double", "reserved-name") for f in found):
        return []
    lines = str(problem).splitlines()
    told = next((text.split("error: ", 1)[1] for text in lines if "error: " in text), lines[0])
    return [
        LintFinding(
            where, line, "syntax", "error", told, "the other rules were not all applied: mend this first"
        )
    ]


def _sorted(found: list[LintFinding]) -> list[LintFinding]:
    return sorted(set(found), key=lambda f: (f.file, f.line, f.rule, f.message))
