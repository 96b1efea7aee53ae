"""What ``steelworks verify`` does once its options are known (steelworks/cli/verify.py)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console

from . import results, runner, show
from .document import text as markdown_text
from .page import text as html_text
from .parts import PARTS, ROOT, BrokenPart, Declared, Part, declared
from .results import NOT_CHECKED, Ended, Results, ResultsError

SETUP: Final = ROOT / "scripts" / "setup.sh"


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        quick: The quick set.
        only: Parts of the names of claims; empty for all.
        install: Install tools that are missing.
        earlier: Files that ``--json`` wrote: what they have is not run again.
        list_only: Name the claims and end.
        json: Where to write the results, if at all.
        html: Where to write the page.
        markdown: Where to write the trust table.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    install: bool = True
    earlier: tuple[Path, ...] = ()
    list_only: bool = False
    json: Path | None = None
    html: Path | None = None
    markdown: Path | None = None


class Refused(Exception):
    """The command can't do what it was asked to; the message says why and what is allowed."""


def main(options: Options, console: Console, parts: Sequence[Part] | None = None) -> int:
    """Runs what is asked for and shows it. The exit status: 0 if all holds, 1 if not, 2 if a tool is missing.

    Raises:
        Refused: Nothing was run.
    """
    try:
        everything = declared(PARTS if parts is None else parts)
    except BrokenPart as problem:
        raise Refused(f"a part of the evidence does not say what it claims: {problem}") from None
    wanted = choose(everything, options.only, options.quick)
    if options.list_only:
        show.listing(console, wanted)
        return 0
    taken = {name for _, names in wanted for name in names}
    if left := [n for _, names in choose(everything, options.only) for n in names if n not in taken]:
        show.note(console, f"left to the full set: {', '.join(left)}")
    if options.markdown is not None and (options.only or options.quick):
        given = "--only" if options.only else "--quick"
        raise Refused(f"--markdown writes the table of all claims: leave {given} out, or merge with --from")
    began = time.monotonic()
    try:
        earlier = results.read(options.earlier, everything)
    except ResultsError as problem:
        raise Refused(str(problem)) from None
    found, seconds = earlier.ended, earlier.parts
    to_run = [(one, tuple(n for n in names if n not in found)) for one, names in wanted]
    to_run = [(one, names) for one, names in to_run if names]
    asked = {name for _, names in to_run for name in names}
    for name in sorted(asked & earlier.stale.keys()):
        show.note(
            console, f"{name} is run again: its code has changed since {earlier.stale[name]} was written"
        )
    if options.install:
        make_ready(console, [one.part for one, _ in to_run])
    order = [name for _, names in wanted for name in names]
    order += _run(to_run, options.quick, found, seconds, console)
    ended = tuple(found[name] for name in order)
    whole = Results(ended, time.monotonic() - began, seconds, environment())
    show.summary(console, whole, everything)
    unchecked = {ended.part for ended in whole.ended if ended.state == NOT_CHECKED}
    if tools := install_command([one.part for one in everything if one.part.module in unchecked]):
        show.note(console, f"to install what can be: {tools}")
    _write(whole, everything, options, console)
    return whole.status


def choose(
    everything: Sequence[Declared], only: Sequence[str], quick: bool = False
) -> list[tuple[Declared, tuple[str, ...]]]:
    """The claims whose names contain one of ``only``, or all; in parts. With ``quick`` those of the quick set.

    Raises:
        Refused: A text that no name contains, or only names of the full set.
    """
    names = [claim.name for one in everything for claim in one.claims]
    for text in only:
        if not any(text in name for name in names):
            raise Refused(f"--only {text}: no claim has that in its name; there are {', '.join(names)}")
    chosen = []
    for one in everything:
        some = [c for c in one.claims if not only or any(text in c.name for text in only)]
        if names := tuple(c.name for c in some if c.in_quick or not quick):
            chosen.append((one, names))
    if not chosen:
        raise Refused(f"--only {', '.join(only)}: these claims are of the full set; leave --quick out")
    return chosen


def make_ready(console: Console, parts: Sequence[Part]) -> None:
    """Installs the tools that parts need and that are not there, as ``make test`` does."""
    tools = list(dict.fromkeys(tool for part in parts for tool in part.tools))
    if not tools or os.name == "nt":
        return
    with console.status(f"looking for tools ({', '.join(tools)}), and installing what is missing"):
        done = subprocess.run(
            ["sh", str(SETUP), "tools", *tools],
            cwd=ROOT,
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
            check=False,
        )
    for line in (done.stdout + done.stderr).splitlines():
        show.note(console, line)


def install_command(parts: Sequence[Part]) -> str:
    """The command that installs what parts need; "" if none names a tool."""
    tools = dict.fromkeys(tool for part in parts for tool in part.tools)
    if not tools:
        return ""
    return f"PYTHON={sys.executable} sh {SETUP.relative_to(ROOT)} tools {' '.join(tools)}"


def environment() -> dict[str, str]:
    """Versions and machine, for the files."""
    from steelworks.cli import _environment

    machine = _environment.describe_machine()
    return {
        "steelworks": _environment.steelworks_version(),
        "python": platform.python_version(),
        "torch": _environment.version_of("torch") or "none",
        "machine": f"{machine['system']}, {machine['architecture']}, {machine['cores']} cores",
    }


def _run(
    to_run: Sequence[tuple[Declared, tuple[str, ...]]],
    quick: bool,
    found: dict[str, Ended],
    seconds: dict[str, float],
    console: Console,
) -> list[str]:
    """Runs parts into ``found`` and ``seconds``; returns the names of claims that nobody declared."""
    asked = {name for _, names in to_run for name in names}
    number, others = 0, list[str]()
    with show.Progress(console, len(asked)) as progress:
        for event in runner.run(to_run, quick):
            if isinstance(event, runner.PartEnded):
                seconds[event.module] = event.seconds
                continue
            number += 1
            if event.claim.name not in (*asked, *others):
                others.append(event.claim.name)
            found[event.claim.name] = event
            progress.line(event, number)
    return others


def _write(whole: Results, everything: Sequence[Declared], options: Options, console: Console) -> None:
    for path, write in ((options.html, html_text), (options.markdown, markdown_text)):
        if path is not None:
            _put(path, write(whole, everything), console)
    if options.json is not None:
        _put(options.json, whole.as_json(), console)


def _put(path: Path, text: str, console: Console) -> None:
    path.write_text(text, encoding="utf-8")
    show.note(console, f"written: {path}")
