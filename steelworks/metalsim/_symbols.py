"""From the runtime's findings to readable ones. Runs a symbolizer only if there is a place to name."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import _runtime, _toolchain
from .reports import KINDS, Access, Finding


def convert(findings: Sequence[_runtime.Finding], kernel: str) -> tuple[Finding, ...]:
    """The findings of a launch, with file and line."""
    if not findings:
        return ()
    wanted = {int(a.pc) for f in findings for a in (f.first, f.second) if a.pc and not a.site}
    places = symbolize(sorted(wanted))
    return tuple(_finding(f, kernel, places) for f in findings)


def _finding(raw: _runtime.Finding, kernel: str, places: dict[int, tuple[str, int, str]]) -> Finding:
    kind = KINDS.get(raw.kind, f"kind_{raw.kind}")
    offset = int(raw.offset)
    if kind == "out_of_bounds" and offset >= 1 << 63:
        offset -= 1 << 64
    return Finding(
        kind,
        kernel,
        raw.variable.decode(errors="replace"),
        offset,
        int(raw.bytes),
        int(raw.count),
        _access(raw.first, places),
        _access(raw.second, places),
        raw.detail.decode(errors="replace"),
    )


def _access(raw: _runtime.Access, places: dict[int, tuple[str, int, str]]) -> Access | None:
    if raw.site:
        site = raw.site.contents
        place = (
            (site.file or b"").decode(errors="replace"),
            int(site.line),
            (site.function or b"").decode(errors="replace"),
        )
    elif raw.pc:
        place = places.get(int(raw.pc), ("", 0, ""))
    else:
        return None
    group = (int(raw.group.x), int(raw.group.y), int(raw.group.z))
    thread = (int(raw.thread.x), int(raw.thread.y), int(raw.thread.z))
    return Access(*place, group, thread, int(raw.bytes), bool(raw.is_write), bool(raw.is_atomic))


def symbolize(addresses: Sequence[int]) -> dict[int, tuple[str, int, str]]:
    """File, line and function of return addresses; what can't be found is absent.

    Of inlined calls the innermost place in the user's source counts, not one in the stand-in headers.
    """
    by_library: dict[str, list[tuple[int, int]]] = {}
    for address in addresses:
        # A return address may already belong to the next line.
        found = _runtime.locate(address - 1)
        if found is not None:
            by_library.setdefault(found[0], []).append((address, address - 1 - found[1]))
    tool = _toolchain.symbolizer()
    places: dict[int, tuple[str, int, str]] = {}
    if tool is None:
        return places
    ask = _ask_addr2line if Path(tool).name.startswith("addr2line") else _ask_llvm
    for library, pairs in by_library.items():
        for (address, _), frames in zip(
            pairs, ask(tool, library, [offset for _, offset in pairs]), strict=False
        ):
            chosen = _choose(frames)
            if chosen is not None:
                places[address] = chosen
    return places


def _choose(frames: list[tuple[str, int, str]]) -> tuple[str, int, str] | None:
    shim = str(_toolchain.cache_directory())
    own = [f for f in frames if f[0] and not f[0].startswith("??") and not f[0].startswith(shim)]
    return own[0] if own else (frames[0] if frames else None)


def _clean(file: str) -> str:
    return file[2:] if file.startswith("./") else file


def _ask_llvm(tool: str, library: str, offsets: list[int]) -> list[list[tuple[str, int, str]]]:
    arguments = [tool, f"--obj={library}", "--output-style=JSON", "--inlines", *(hex(o) for o in offsets)]
    done = subprocess.run(arguments, capture_output=True, encoding="utf-8", errors="replace", check=False)
    answers: list[list[tuple[str, int, str]]] = []
    for line in done.stdout.splitlines():
        try:
            answer: Any = json.loads(line)
        except json.JSONDecodeError:
            continue
        for one in answer if isinstance(answer, list) else [answer]:
            answers.append(
                [
                    (_clean(s.get("FileName", "")), int(s.get("Line", 0)), s.get("FunctionName", ""))
                    for s in one.get("Symbol", [])
                ]
            )
    return answers


def _ask_addr2line(tool: str, library: str, offsets: list[int]) -> list[list[tuple[str, int, str]]]:
    answers: list[list[tuple[str, int, str]]] = []
    for offset in offsets:
        arguments = [tool, "-e", library, "-f", "-C", "-i", hex(offset)]
        done = subprocess.run(arguments, capture_output=True, encoding="utf-8", errors="replace", check=False)
        lines = done.stdout.splitlines()
        frames = []
        for function, place in zip(lines[::2], lines[1::2], strict=False):
            file, _, number = place.partition(" ")[0].rpartition(":")
            frames.append((_clean(file), int(number) if number.isdigit() else 0, function))
        answers.append(frames)
    return answers


def constants(library: ctypes.CDLL, number: int, names: Sequence[str]) -> list[int]:
    """Unsigned constants inside a kernel function: the compiler made one for each template instance.

    Their symbols are the mangled name of the function with the constant's name behind it; 0 for what is not
    there.
    """
    if not names:
        return []
    function = getattr(library, f"ms_function_{number}")
    function.restype = ctypes.c_void_p
    found = _runtime.locate(function())
    values: list[int] = []
    for name in names:
        symbol = f"_ZZ{found[2][2:]}E{len(name)}{name}" if found is not None else ""
        try:
            values.append(ctypes.c_uint32.in_dll(library, symbol).value)
        except ValueError:
            values.append(0)
    return values
