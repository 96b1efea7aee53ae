"""Writes docs/api.md from the docstrings of the public names.

python scripts/api_reference.py           # writes it
python scripts/api_reference.py --check   # exit status 1 if it is out of date
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs/api.md"
#: The names of ``steelworks``, by what they are for; a test holds them to ``steelworks.__all__``.
SECTIONS = {
    "The queue": ("BatchQueue", "QueueOptions", "QueueStatistics", "batch_inference", "metrics"),
    "Plans": ("plan", "Plan", "Padding"),
    "Streams": ("StreamPool", "StreamPoolStatistics"),
    "Models as they are": ("accelerate", "install", "Installed", "uninstall"),
    "Errors": (
        "SteelworksError",
        "DeadlineExceededError",
        "DeviceRuleError",
        "ForkedProcessError",
        "InvalidInputError",
        "ModelOutputError",
        "QueueClosedError",
        "QueueFullError",
        "StreamPoolClosedError",
        "StreamPoolExhaustedError",
        "WorkerDiedError",
        "WorkerHungError",
    ),
}
MODULES = ("nn", "ops", "paths")  # each has a part of its own
_HEAD = """# API reference

Written from the docstrings by `python scripts/api_reference.py`: edit those. Guides: [README](../README.md) for the
queue, [ops.md](ops.md) for operations and paths, [metalsim.md](metalsim.md) for Metal kernels on the CPU.
"""
_LISTED = ("Args", "Attributes", "Raises")
_SECTION = re.compile(r"^(Args|Attributes|Example|Examples|Raises|Returns|Yields):$")
_ENTRY = re.compile(r"^(\*{0,2}[\w.]+(?: and [\w.]+|, \*{0,2}[\w.]+)*): ?(.*)$")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")


def reference() -> str:
    """The whole page."""
    import steelworks

    parts = [_HEAD]
    lines = []
    anchors = _anchors([name for names in SECTIONS.values() for name in names])
    for title, names in SECTIONS.items():
        lines.append(f"* {title}: " + ", ".join(f"[`{name}`](#{anchors[name]})" for name in names))
    for module in MODULES:
        lines.append(f"* [`steelworks.{module}`](#steelworks{module})")
    parts.append("\n".join(lines) + "\n")
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += _things([(name, getattr(steelworks, name)) for name in names], "steelworks")
    for name in MODULES:
        module = importlib.import_module(f"steelworks.{name}")
        parts.append(f"## steelworks.{name}\n")
        parts.append(text_of(module))
        known = {id(getattr(steelworks, own)) for own in steelworks.__all__}
        own_names = [own for own in module.__all__ if id(getattr(module, own)) not in known]
        parts += _things([(own, getattr(module, own)) for own in own_names], f"steelworks.{name}")
    return "\n".join(parts).rstrip("\n") + "\n"


def _things(things: list[tuple[str, Any]], home: str) -> Iterator[str]:
    """A part for each name; functions that take one line share a table at the end."""
    rows = []
    for name, thing in things:
        brief = inspect.getdoc(thing) or ""
        if isinstance(thing, ModuleType):
            yield f"### {name}\n"
            yield text_of(thing)
            for own, function in _functions(thing):
                yield _signed(f"{home}.{name}.{own}", function)
        elif inspect.isclass(thing):
            yield from _class(name, thing, home)
        elif inspect.isroutine(thing) and "\n" in brief:
            yield f"### {name}\n"
            yield _signed(f"{home}.{name}", thing)
        elif inspect.isroutine(thing):
            rows.append(f"| `{name}{_signature(thing, short=True)}` | {_inline(brief)} |")
        else:
            rows.append(f"| `{name}` | {_value(thing)} |")
    if rows:
        yield "| name | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _functions(module: ModuleType) -> list[tuple[str, Any]]:
    """The public functions that a module defines itself."""
    return [
        (name, thing)
        for name, thing in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(thing) and thing.__module__ == module.__name__
    ]


def _class(name: str, kind: type[Any], home: str) -> Iterator[str]:
    yield f"### {name}\n"
    if issubclass(kind, BaseException):
        bases = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
        yield f"A kind of {bases}. {text_of(kind)}"
        return
    plain = dataclasses.is_dataclass(kind) or not inspect.isabstract(kind)
    yield _signed(f"{home}.{name}", kind) if plain else text_of(kind)
    for own, member in vars(kind).items():
        function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if own.startswith("_") and own != "__call__":
            continue
        if isinstance(function, property) and function.__doc__:
            yield f"**`{name}.{own}`**: {_inline(inspect.cleandoc(function.__doc__)).replace(chr(10), ' ')}\n"
        elif inspect.isfunction(function) and function.__doc__:
            yield _signed(f"{name}.{own}", function, method=True)


def _signed(name: str, thing: Any, method: bool = False) -> str:
    return f"```python\n{name}{_signature(thing, method=method)}\n```\n\n{text_of(thing)}"


def _signature(thing: Any, method: bool = False, short: bool = False) -> str:
    """The signature with plain annotations; one parameter a line where it is long."""
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    given = list(signature.parameters.values())
    words, star = [], False
    for parameter in given[1:] if method and given and given[0].name in ("self", "cls") else given:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            star = True
            words.append("*")
        star = star or parameter.kind is parameter.VAR_POSITIONAL
        text = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(
            parameter.kind, ""
        ) + parameter.name
        if parameter.annotation is not parameter.empty and not short:
            text += f": {_annotation(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            equals = " = " if ":" in text else "="
            text += f"{equals}{_default(parameter.default)}"
        words.append(text)
    back = signature.return_annotation
    arrow = "" if short or back is signature.empty or inspect.isclass(thing) else f" -> {_annotation(back)}"
    line = f"({', '.join(words)}){arrow}"
    if len(line) <= 90 or short:
        return line
    return "(\n" + "".join(f"    {word},\n" for word in words) + f"){arrow}"


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation.strip("'")
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(value: Any) -> str:
    text = repr(value)
    return "..." if " at 0x" in text else text


def _value(thing: Any) -> str:
    text = repr(thing)
    return f"`{text}`" if len(text) <= 80 else f"a {type(thing).__name__}; see its module"


def text_of(thing: Any) -> str:
    """A docstring in Google style as Markdown."""
    blocks: list[str] = []
    section, body = "", list[str]()

    def end() -> None:
        if section:
            blocks.append(_section(section, body))
        elif any(body):
            blocks.append(_prose(body))
        body.clear()

    for line in (inspect.getdoc(thing) or "").splitlines():
        heading = _SECTION.match(line)
        if heading or (section and line and not line.startswith(" ")):
            end()
            section = heading[1] if heading else ""
            if heading:
                continue
        body.append(line)
    end()
    return "\n\n".join(blocks) + "\n"


def _prose(lines: list[str]) -> str:
    """Paragraphs; what is indented on its own is code."""
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines).strip("\n")):
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            found.append(f"```\n{inspect.cleandoc(paragraph)}\n```")
        else:
            found.append(_inline(paragraph))
    return "\n\n".join(found)


def _section(title: str, lines: list[str]) -> str:
    text = inspect.cleandoc("\n".join(lines))
    if title.startswith("Example"):
        return f"Example:\n\n```python\n{text}\n```"
    if title not in _LISTED:
        return f"{title}: {_inline(text)}"
    items: list[str] = []
    for line in text.splitlines():
        entry = _ENTRY.match(line)
        if entry:
            items.append(f"* `{entry[1]}`: {_inline(entry[2])}".rstrip())
        elif line.strip():
            items.append(f"  {_inline(line.strip())}")
    return f"{title}:\n\n" + "\n".join(items)


def _inline(text: str) -> str:
    """Roles and double backquotes as Markdown has them."""
    text = _ROLE.sub(lambda match: f"`{match[1].removeprefix('steelworks.')}`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    # Outside of code a bare star or angle bracket is markup.
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else re.sub(r"(?<=\S)([*|<])|([*|<])(?=\S)", r"\\\1\2", piece)
        for piece in pieces
    )


def _anchors(names: list[str]) -> dict[str, str]:
    """The anchors of headings in this order: case does not count, and what comes again is numbered."""
    seen: dict[str, int] = {}
    anchors = {}
    for name in names:
        plain = name.lower()
        times = seen[plain] = seen.get(plain, -1) + 1
        anchors[name] = f"{plain}-{times}" if times else plain
    return anchors


def main() -> int:
    """Write the page, or compare it with the one that is there."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    text = reference()
    if "--check" in sys.argv[1:]:
        current = TARGET.exists() and TARGET.read_text(encoding="utf-8") == text
        print(
            "docs/api.md is up to date"
            if current
            else "docs/api.md is out of date: run scripts/api_reference.py"
        )
        return 0 if current else 1
    TARGET.write_text(text, encoding="utf-8")
    print(f"docs/api.md: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
