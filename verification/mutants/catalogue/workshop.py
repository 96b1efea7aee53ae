"""Plants one bug after the other in copies of the project, and runs the check that must notice.

Tests run in forks of this process, which has imported what the tests import of others: that saves 6 of 8 seconds for
each. It has imported nothing of the project but this catalogue, and a fork forgets that.
"""

from __future__ import annotations

import compileall
import importlib
import json
import os
import py_compile
import re
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verification.mutants import planting

from .entries import COMMAND, Mutant

CAUGHT: Final = "caught"
SURVIVED: Final = "survived"
WRONG: Final = "wrong reason"  # it failed, but not by noticing
HUNG: Final = "hung"
STALE: Final = "stale"
#: What the checks need of the project.
PARTS: Final = (
    "steelworks",
    "tests",
    "verification",
    "examples",
    "scripts",
    "docs",
    "Makefile",
    "pyproject.toml",
    "README.md",
    "constraints.txt",
)
#: A mutant that ends in one of these is broken; whether anything would have noticed it, it does not say.
_BROKEN: Final = ("ImportError", "SyntaxError", "NameError", "AttributeError", "TypeError", "ToolchainError")
#: The code that finds compiled kernels again: while it is wrong, what it keeps must be nobody else's.
_KEEPERS: Final = ("steelworks/metalsim/_toolchain.py", "steelworks/metalsim/_compile.py")
_PRELOADED: Final = (
    "asyncio",
    "hypothesis.strategies",
    "numpy",
    "pytest",
    "torch",
    "torch._dynamo",
    "torch.library",
    "triton.language",
)
_OWN: Final = ("steelworks", "verification", "tests", "helpers", "conftest")
_PATIENCE: Final = 120.0  # seconds for one check without a mutant, at least
_GRACE: Final = 20.0  # seconds to start and to end, beside what a check may take
_BASELINE: Final = 900.0  # seconds for all checks without a mutant
_OUTPUT: Final = "output"
_TOLD: Final = "told.json"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        outcome: One of the five.
        told: What the check said, or why there is no such thing.
        seconds: Wall-clock time.
    """

    outcome: str
    told: str
    seconds: float


@dataclass(frozen=True)
class _Ran:
    """A check that was run: its exit status (None: it ran out of time), what it printed, what Told noted."""

    status: int | None
    output: str
    told: dict[str, Any]


def preload() -> None:
    """Imports what tests import of others, so that forks need not."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    torch.set_num_threads(1)  # no thread of torch's own may be there when this process forks
    for name in _PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            pass


@contextmanager
def copies(count: int) -> Iterator[list[Path]]:
    """So many copies of the project, with compiled files that are checked by content, not by time."""
    with tempfile.TemporaryDirectory(prefix="catalogue-") as name:
        first = Path(name) / "0"
        first.mkdir()
        planting.copy_project(first, PARTS)
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(first, quiet=2, invalidation_mode=mode)
        made = [first]
        for number in range(1, count):
            made.append(Path(name) / str(number))
            shutil.copytree(first, made[-1])
        yield made


def try_all(
    mutants: Sequence[Mutant], copies: Sequence[Path], done: Callable[[Mutant, Verdict], None]
) -> None:
    """Tries all mutants, one at a time in each copy; ``done`` is called as each ends."""
    _side_by_side([lambda copy, m=mutant: _trial(m, copy, done) for mutant in mutants], copies)  # type: ignore[misc]


def _trial(mutant: Mutant, copy: Path, done: Callable[[Mutant, Verdict], None]) -> _Job | None:
    """Plants a mutant in a copy and starts its check; at its end the mutant is taken out again."""
    began = time.monotonic()
    file = copy / mutant.file
    try:
        planted = mutant.planted(copy)
    except (LookupError, SyntaxError, OSError) as problem:
        done(mutant, Verdict(STALE, str(problem), 0.0))
        return None
    source = file.read_text(encoding="utf-8")
    file.write_text(planted, encoding="utf-8")
    command = mutant.checks[0].startswith(COMMAND)

    def ended(ran: _Ran) -> None:
        file.write_text(source, encoding="utf-8")
        outcome, told = (_of_command if command else _of_tests)(mutant, ran)
        done(mutant, Verdict(outcome, told, time.monotonic() - began))

    own_cache = mutant.file in _KEEPERS
    if command:
        return _command(mutant.checks[0], copy, mutant.seconds, ended, own_cache=own_cache)
    if not mutant.caught_by:  # whole files
        return _tests(mutant.checks, copy, _PATIENCE, ended, whole=_BASELINE, own_cache=own_cache)
    return _tests(mutant.checks, copy, mutant.seconds, ended, own_cache=own_cache)


def baseline(mutants: Sequence[Mutant], copies: Sequence[Path]) -> list[str]:
    """Why the named checks don't pass without a mutant; empty if they do."""
    named = dict.fromkeys(check for m in mutants for check in m.checks)
    tests = sorted(check for check in named if not check.startswith(COMMAND))
    files = sorted({test.partition("::")[0] for test in tests})  # in one run, so that each is read once
    limit = max(_PATIENCE, *(m.seconds for m in mutants))
    faults: list[str] = []

    def start_tests(some: list[str], copy: Path) -> _Job:
        def ended(ran: _Ran) -> None:
            told = ran.told
            found = [f"{f['test']} fails without a mutant: {_last(f['text'])}" for f in told["failed"]]
            found += [f"a test can't be read: {_last(b)}" for b in told["broken"]]
            if ran.status != 0 and not found:
                found = [f"pytest ended with {ran.status} without a mutant: {_last(ran.output)}"]
            passed = {test.partition("[")[0] for test in told["passed"]} | set(told["passed"])
            if not found:
                found = [f"{test} did not run: is it skipped?" for test in some if not _among(test, passed)]
            faults.extend(found)

        return _tests(some, copy, limit, ended, first_only=False, whole=_BASELINE)

    def start_command(command: str, copy: Path) -> _Job:
        def ended(ran: _Ran) -> None:
            if ran.status != 0:
                faults.append(f"{command} fails without a mutant: {_last(ran.output)}")

        return _command(command, copy, limit, ended)

    work: list[_Start] = []
    for number in range(len(copies)):
        share = [t for t in tests if t.partition("::")[0] in files[number :: len(copies)]]
        if share:
            work.append(lambda copy, share=share: start_tests(share, copy))  # type: ignore[misc]
    for command in named:
        if command.startswith(COMMAND):
            work.append(lambda copy, command=command: start_command(command, copy))  # type: ignore[misc]
    _side_by_side(work, copies)
    return faults


def _among(check: str, passed: set[str]) -> bool:
    return check in passed if "::" in check else any(test.startswith(check + "::") for test in passed)


# --- what a check's end means ---------------------------------------------------------------------------------


def _of_tests(mutant: Mutant, ran: _Ran) -> tuple[str, str]:
    told = ran.told
    if told["broken"]:
        return WRONG, f"the test can't be read: {_last(told['broken'][0])}"
    if not told["failed"]:
        if ran.status == 0:
            return SURVIVED, f"{len(told['passed'])} tests pass"
        if ran.status is None or "+ Timeout +" in ran.output:
            return (CAUGHT if mutant.hangs else HUNG), "the test did not end"
        if mutant.crashes and ran.status < 0:
            return CAUGHT, f"the process was ended by {signal.Signals(-ran.status).name}"
        return WRONG, f"pytest ended with {ran.status}: {_last(ran.output)}"
    first = told["failed"][0]
    shown = f"{first['test'].partition('::')[2]}: {_last(first['text'])}"
    broken = [kind for kind in first["kinds"] if kind in _BROKEN]
    if broken and mutant.raises not in first["kinds"]:
        return WRONG, shown
    if mutant.shows and not re.search(mutant.shows, first["text"]):
        return WRONG, f"it does not say {mutant.shows!r}: {shown}"
    return CAUGHT, shown


def _of_command(mutant: Mutant, ran: _Ran) -> tuple[str, str]:
    if ran.status is None:
        return (CAUGHT if mutant.hangs else HUNG), "the command did not end"
    if ran.status == 0:
        return SURVIVED, "the command passes"
    found = re.search(f".*(?:{mutant.shows}).*", ran.output)
    if found is None:
        return WRONG, f"it does not say {mutant.shows!r}: {_last(ran.output)}"
    return CAUGHT, found[0].strip()[:200]


def _last(text: str) -> str:
    """The line of a traceback that says what went wrong, else the last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line[1:].strip() for line in lines if line.startswith("E ")]
    return (said[0] if said else lines[-1].strip() if lines else "nothing was said")[:200]


# --- running --------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    """A child that runs: until when it may, and what to do with its exit status (None: it took too long)."""

    pid: int
    until: float
    ended: Callable[[int | None], None]


_Start = Callable[[Path], _Job | None]


def _side_by_side(work: Sequence[_Start], copies: Sequence[Path]) -> None:
    """Starts all work, one piece at a time in each copy, and waits for its end. No threads: this process forks."""
    waiting = list(reversed(work))
    free = list(copies)
    running: list[tuple[_Job, Path]] = []
    try:
        while waiting or running:
            while waiting and free:
                copy = free.pop()
                job = waiting.pop()(copy)
                if job is None:
                    free.append(copy)
                else:
                    running.append((job, copy))
            for job, copy in list(running):
                gone, code = os.waitpid(job.pid, os.WNOHANG)
                if not gone and time.monotonic() < job.until:
                    continue
                planting.end_group(job.pid)
                if not gone:
                    os.waitpid(job.pid, 0)
                running.remove((job, copy))
                free.append(copy)
                job.ended(os.waitstatus_to_exitcode(code) if gone else None)
            time.sleep(0.01)
    finally:
        for job, _ in running:
            planting.end_group(job.pid)


def _command(
    command: str, copy: Path, seconds: float, ended: Callable[[_Ran], None], *, own_cache: bool = False
) -> _Job:
    module, *arguments = shlex.split(command.removeprefix(COMMAND))

    def be(folder: Path) -> None:
        _move_in(copy, _environment(copy, folder if own_cache else None))
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return _child(be, copy, seconds + _GRACE, ended)


def _tests(
    tests: Sequence[str],
    copy: Path,
    seconds: float,
    ended: Callable[[_Ran], None],
    *,
    first_only: bool = True,
    whole: float = 0.0,
    own_cache: bool = False,
) -> _Job:
    """Runs tests in a fork of this process. ``seconds`` is for each; ``whole`` for all, if there are many."""
    arguments = [*tests, "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--timeout", str(seconds)]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "--hypothesis-profile", "find-only"]
    if first_only:
        arguments.append("-x")

    def be(folder: Path) -> None:
        _be_pytest(arguments, copy, _environment(copy, folder if own_cache else None), folder / _TOLD)

    return _child(be, copy, whole or seconds + _GRACE, ended)


def _environment(copy: Path, cache: Path | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    if cache is not None:
        environment["STEELWORKS_CACHE"] = str(cache)
    return environment


def _child(be: Callable[[Path], None], copy: Path, seconds: float, ended: Callable[[_Ran], None]) -> _Job:
    """A fork that becomes something else, in a session of its own and in the copy; it is given a folder."""
    folder = Path(tempfile.mkdtemp(prefix="catalogue-run-"))
    pid = os.fork()
    if pid == 0:
        status = 3
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            output = os.open(folder / _OUTPUT, os.O_WRONLY | os.O_CREAT)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for number, to in ((nothing, 0), (output, 1), (output, 2)):
                os.dup2(number, to)
            os.chdir(copy)
            be(folder)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def collect(status: int | None) -> None:
        told: dict[str, Any] = {"passed": {}, "failed": [], "broken": []}
        if (folder / _TOLD).exists():
            told = json.loads((folder / _TOLD).read_text(encoding="utf-8"))
        text = (folder / _OUTPUT).read_text(encoding="utf-8", errors="replace")
        shutil.rmtree(folder, ignore_errors=True)
        ended(_Ran(status, text, told))

    return _Job(pid, time.monotonic() + seconds, collect)


def _move_in(copy: Path, environment: Mapping[str, str]) -> None:
    """Makes this process one that was started in the copy, as far as Python is concerned."""
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() != planting.ROOT)]
    for name in [n for n in sys.modules if n.partition(".")[0] in _OWN]:
        del sys.modules[name]
    importlib.invalidate_caches()
    import torch

    torch.set_num_threads(os.cpu_count() or 1)


def _be_pytest(arguments: list[str], copy: Path, environment: Mapping[str, str], told: Path) -> None:
    """Does what ``python -m pytest`` in the copy would do."""
    from .told import Told

    _move_in(copy, environment)
    import pytest

    status = int(pytest.main(arguments, plugins=[Told(told)]))
    used = sys.modules.get("steelworks")
    if used is not None and not str(used.__file__).startswith(str(copy)):
        sys.stderr.write(f"the tests ran on {used.__file__}, which is not the copy\n")
        status = 3
    sys.exit(status)
