"""The planted-defect corpus: reads the heads of the files and puts them into one source.

A file ``NAME.metal`` holds a kernel ``NAME``; with ``DEFECT`` defined it has the defect, without it is the
corrected twin. Its head says what is planted, how to launch it and what must be found::

    // planted: words
    // launch: options of ``steelworks metal check``
    // expect: KIND [@LABEL ...]     a finding of this kind; its places are the lines that end in "// @LABEL"
    // expect: refused "TEXT"        or: the kernel can't be made, and the message contains TEXT
    // also: KIND, ...               findings that may come with it
    // missed: WHY                   metalsim does not find it yet
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelworks.cli._metal_spec import ArgSpec, build, parse

FOLDER = Path(__file__).parent / "corpus"


@dataclass(frozen=True)
class Expected:
    """A finding that must come: its kind and the lines of its places; or the text of a refusal."""

    kind: str
    lines: frozenset[int]
    text: str = ""


@dataclass(frozen=True)
class Case:
    """One file of the corpus."""

    name: str
    source: str
    planted: str
    threads: tuple[int, ...]
    group: tuple[int, ...]
    specs: tuple[ArgSpec, ...]
    expected: tuple[Expected, ...]
    also: frozenset[str]
    missed: str

    @property
    def file(self) -> str:
        return f"{self.name}.metal"

    @property
    def refused(self) -> bool:
        return any(e.kind == "refused" for e in self.expected)

    def arguments(self) -> list[Any]:
        """Made anew for each launch."""
        return build(self.specs, seed=0)

    def casts(self) -> dict[int, str]:
        return {index: spec.cast for index, spec in enumerate(self.specs) if spec.cast is not None}


def read_corpus() -> list[Case]:
    return [read_case(path) for path in sorted(FOLDER.glob("*.metal"))]


def read_case(path: Path) -> Case:
    source = path.read_text(encoding="utf-8")
    head: dict[str, list[str]] = {"planted": [], "launch": [], "expect": [], "also": [], "missed": []}
    for key, value in re.findall(r"^// (\w+): (.+)$", source.split("#include")[0], flags=re.MULTILINE):
        head[key].append(value)
    labels: dict[str, set[int]] = {}
    for number, line in enumerate(source.split("\n"), 1):
        if label := re.search(r"// @(\w+)$", line):
            labels.setdefault(label[1], set()).add(number)
    (planted,), (launch,) = head["planted"], head["launch"]
    threads, group, arguments = _launch(launch)
    specs = tuple(parse(text, index) for index, text in enumerate(arguments))
    also = frozenset(k.strip() for text in head["also"] for k in text.split(","))
    expected = tuple(_expected(text, labels) for text in head["expect"])
    return Case(path.stem, source, planted, threads, group, specs, expected, also, " ".join(head["missed"]))


def _launch(text: str) -> tuple[tuple[int, ...], tuple[int, ...], list[str]]:
    words = shlex.split(text)
    options = list(zip(words[::2], words[1::2], strict=True))
    sizes = {name: tuple(int(n) for n in value.split(",")) for name, value in options if name != "--arg"}
    return sizes["--threads"], sizes["--group"], [value for name, value in options if name == "--arg"]


def _expected(text: str, labels: dict[str, set[int]]) -> Expected:
    kind, *rest = shlex.split(text)
    if kind == "refused":
        return Expected(kind, frozenset(), rest[0])
    return Expected(kind, frozenset(line for label in rest for line in labels[label.removeprefix("@")]))


def joined(cases: Iterable[Case], *, defect: bool) -> str:
    """All kernels in one source; lines keep their file and number."""
    head = "#define DEFECT\n" if defect else ""
    return head + "\n".join(f'#line 1 "{case.file}"\n{case.source}' for case in cases)
