"""Runs CBMC on the harnesses: one check at a time, each over all the values that its symbolic sizes may have."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steelworks.metalsim._toolchain import find_compiler

from . import header, rows, toolchain
from .toolchain import Cbmc

HARNESSES: Final = Path(__file__).resolve().parent / "harness"
_CHECK: Final = re.compile(r"\bvoid check_(\w+)\(void\)")
_WORDS: Final = re.compile(r"^//: (\w+) \| (.+)$", re.MULTILINE)
_REACHED: Final = "REACHED"
_LIMIT: Final = 300.0  # seconds for one check
#: Signed overflow, bounds, division by zero and shifts are checked by default.
_OPTIONS: Final = (
    "--json-ui",
    "--conversion-check",
    "--unwind",
    "70",
    "--verbosity",
    "4",
    "--drop-unused-functions",
)


class CbmcFailed(RuntimeError):
    """CBMC or the preprocessor did not come to an end; the message has what it said."""


@dataclass(frozen=True)
class Check:
    """A check of a harness.

    Attributes:
        family: The harness it is in.
        name: Of the function, without ``check_``.
        says: What is proven, in words.
    """

    family: str
    name: str
    says: str

    @property
    def base(self) -> str:
        """The name without the number of a row."""
        return re.sub(r"_\d+$", "", self.name)


@dataclass(frozen=True)
class Result:
    """What came of a check.

    Attributes:
        check: Which.
        failed: The assertions that can be violated, with their place in the text; empty if all is proven.
        proven: How many assertions hold.
        vacuous: The end of the check can't be reached: what is given is contradictory.
        seconds: Wall clock.
        cpu_seconds: Of CBMC.
    """

    check: Check
    failed: tuple[str, ...]
    proven: int
    vacuous: bool
    seconds: float
    cpu_seconds: float

    @property
    def holds(self) -> bool:
        """All is proven, and of something."""
        return not self.failed and not self.vacuous


def families() -> tuple[str, ...]:
    """The harnesses."""
    return tuple(sorted(path.stem for path in HARNESSES.glob("*.c")))


@dataclass(frozen=True)
class Prepared:
    """A harness, preprocessed with the headers of one tree.

    Attributes:
        family: Which.
        path: The preprocessed text.
        checks: What it has.
    """

    family: str
    path: Path
    checks: tuple[Check, ...]


@contextmanager
def prepared(names: Sequence[str], root: Path = header.ROOT) -> Iterator[dict[str, Prepared]]:
    """Harnesses with the index headers under ``root``, which has the layout of ``steelworks/kernels/metal``."""
    with tempfile.TemporaryDirectory(prefix="steelworks-cbmc-") as folder:
        (Path(folder) / "rows.h").write_text(rows.text(), encoding="utf-8")
        yield {name: _prepare(name, Path(folder), root) for name in names}


def _prepare(family: str, folder: Path, root: Path) -> Prepared:
    source = HARNESSES / f"{family}.c"
    compiler = find_compiler()
    includes = [f"-I{path}" for path in (folder, HARNESSES, root, root / "include")]
    target = folder / f"{family}.i"
    done = compiler.run(
        "-x", "c", "-std=c11", "-E", "-P", "-nostdinc", *includes, "-o", str(target), str(source)
    )
    if done.returncode:
        raise CbmcFailed(f"the harness {source.name} can't be preprocessed: {done.stderr[-2000:]}")
    words = dict(_WORDS.findall(source.read_text(encoding="utf-8")))
    found = _CHECK.findall(target.read_text(encoding="utf-8"))
    return Prepared(family, target, tuple(Check(family, name, _says(name, words, source)) for name in found))


def _says(name: str, words: dict[str, str], source: Path) -> str:
    """The words of the longest described name that the check's begins with."""
    fitting = [key for key in words if name == key or name.startswith(f"{key}_")]
    if not fitting:
        raise CbmcFailed(
            f"{source.name} does not say in words what check_{name} proves (a line '//: {name} | ...')"
        )
    return words[max(fitting, key=len)]


def run(where: Prepared, check: Check, cbmc: Cbmc | None = None) -> Result:
    """Runs a check.

    Raises:
        CbmcMissing: There is no CBMC.
        CbmcFailed: It did not come to an end.
    """
    cbmc = _found() if cbmc is None else cbmc
    started = time.monotonic()
    command = (*cbmc.command, *_OPTIONS, "--function", f"check_{check.name}", str(where.path))
    output, status, cpu_seconds = _run(command, where.path.parent)
    found = _outcomes(output)
    if found is None or status not in (0, 10):
        raise CbmcFailed(
            f"cbmc ended with {status} on check_{check.name} ({_LIMIT:.0f} s are allowed): {output[-1500:]}"
        )
    reached = [o for o in found if o["description"] == _REACHED]
    others = [o for o in found if o["description"] != _REACHED]
    failed = tuple(
        f"{o['description']} (line {o.get('sourceLocation', {}).get('line', '?')}, "
        f"{o.get('sourceLocation', {}).get('function', '?')})"
        for o in others
        if o["status"] != "SUCCESS"
    )
    # Those of functions that this check does not call are not reached.
    vacuous = all(o["status"] == "SUCCESS" for o in reached)
    seconds = time.monotonic() - started
    return Result(check, failed, len(others) - len(failed), vacuous, seconds, cpu_seconds)


def _run(command: Sequence[str], folder: Path) -> tuple[str, int, float]:
    """What a program printed, its exit status, and the CPU time that it took."""
    before_end = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder) as process:
        assert process.stdout is not None

        def stop() -> None:
            if not before_end.is_set():
                process.kill()

        clock = threading.Timer(_LIMIT, stop)
        clock.start()
        output = process.stdout.read().decode("utf-8", "replace")
        before_end.set()
        clock.cancel()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return output, process.returncode, usage.ru_utime + usage.ru_stime


@functools.cache
def _found() -> Cbmc:
    return toolchain.find()


def _outcomes(output: str) -> list[dict[str, Any]] | None:
    try:
        said = json.loads(output)
    except ValueError:
        return None
    for part in said:
        if "result" in part:
            result: list[dict[str, Any]] = part["result"]
            return result
    return None


def first_rows(checks: Iterable[tuple[Prepared, Check]]) -> list[tuple[Prepared, Check]]:
    """The first row of each kind of check."""
    first: dict[tuple[str, str], tuple[Prepared, Check]] = {}
    for where, check in checks:
        first.setdefault((check.family, check.base), (where, check))
    return list(first.values())


def run_all(
    wanted: Sequence[tuple[Prepared, Check]],
    workers: int | None = None,
    done: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Runs checks side by side, in any order; the results are in the order given."""
    cbmc = _found()

    def one(item: tuple[Prepared, Check]) -> Result:
        result = run(*item, cbmc)
        if done is not None:
            done(result)
        return result

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return list(pool.map(one, wanted))
