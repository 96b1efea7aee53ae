"""Plants known bugs into a copy of the package, one at a time, and demands that the tests notice each.

The bugs are data: ``tests/planted/*.toml``. Each names a file of the package, the text to replace (which must
be there exactly once, inside one function where ``inside`` names it) and the test file that has to fail. The
test that fails must pass without the bug; otherwise nothing would follow from its failing.

    python scripts/planted_bugs.py                       # all of them
    python scripts/planted_bugs.py --only NAME           # those whose name contains NAME; may be repeated
    python scripts/planted_bugs.py --list

Ends with a table of counts; the exit status is 1 unless every bug was caught.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from verification.mutants import planting  # noqa: E402
from verification.mutants.forks import Forks  # noqa: E402

PARTS = ("steelworks", "tests", "examples", "pyproject.toml", "README.md")  # what the tests need
TEST_SECONDS = 30  # for one test, which takes a few; a bug may well make it hang
RUN_SECONDS = 300  # for one test file, after which it counts as hung
UNBROKEN = 5  # times as long for tests without a bug, which nothing but a busy machine can hold up
NOTHING_RAN = (4, 5)  # pytest's exit statuses for a wrong command line and for no tests

CAUGHT, SURVIVED, STALE, UNUSABLE = "caught", "survived", "stale", "unusable"


@dataclass(frozen=True)
class Bug:
    """One bug to plant.

    Attributes:
        name: what goes wrong, in a few words joined by hyphens.
        file: the file it is planted in, from the root of the project.
        find: the text it replaces.
        replace: what stands there instead.
        tests: the test file that has to fail.
        first: the test that is likely to notice it, run before the whole file to save time; "" for none.
        inside: the function (``name`` or ``Class.name``) to look for ``find`` in; "" for the whole file.
    """

    name: str
    file: str
    find: str
    replace: str
    tests: str
    first: str = ""
    inside: str = ""

    def planted(self, source: str) -> str:
        """``source`` with the bug in it.

        Raises:
            LookupError: the text is not there exactly once, so the entry no longer fits the code.
        """
        return planting.planted(source, self.file, self.find, self.replace, self.inside)


@dataclass(frozen=True)
class Tried:
    """What became of a bug: CAUGHT, SURVIVED, STALE or UNUSABLE, what that rests on, and how long it took."""

    bug: Bug
    verdict: str
    reason: str
    seconds: float


def load() -> list[Bug]:
    """All bugs, in the order of the files.

    Raises:
        ValueError: two bugs have the same name.
    """
    bugs = [
        Bug(**entry)
        for path in sorted((ROOT / "tests" / "planted").glob("*.toml"))
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["bug"]
    ]
    twice = [name for name, count in Counter(bug.name for bug in bugs).items() if count > 1]
    if twice:
        raise ValueError(f"bugs need names of their own; these stand twice: {', '.join(twice)}")
    return bugs


def run_tests(forks: Forks, copy: Path, tests: str, patience: int = 1) -> tuple[int | None, str]:
    """Run one test file on the copy: pytest's exit status (None: hung) and the test that failed first.

    With ``patience`` a test may take so many times as long before it counts as hung.
    """
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    arguments = [
        tests,
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout",
        str(patience * TEST_SECONDS),
        "-o",
        "addopts=",
    ]
    arguments += ["--hypothesis-profile", "find-only"]
    status, output = forks.pytest(arguments, copy, environment, patience * RUN_SECONDS)
    lines = output.splitlines()
    if status is None:
        return None, "the run hung"
    failed = [line for line in lines if line.startswith(("FAILED tests/", "ERROR tests/"))]
    first = failed[0].partition(" - ")[0].partition("::")[2] if failed else ""
    if status in NOTHING_RAN or any("during collection" in line for line in lines):
        raise RuntimeError(f"pytest could not run {tests} (exit status {status})")
    return status, first or ("a test hung" if any("Timeout" in line for line in lines) else "")


def try_bug(forks: Forks, bug: Bug, copy: Path) -> tuple[str, str, str]:
    """Plant ``bug``, run its tests, take it out again; the verdict, what it rests on, and the tests that noticed."""
    path = copy / bug.file
    source = path.read_text(encoding="utf-8")
    try:
        planted = bug.planted(source)
        compile(planted, bug.file, "exec")
    except (LookupError, SyntaxError) as error:
        return STALE, str(error), ""
    tests = f"{bug.tests}::{bug.first}" if bug.first else bug.tests
    path.write_text(planted, encoding="utf-8")
    try:
        status, first = run_tests(forks, copy, tests)
        if status == 0 and bug.first:
            tests = bug.tests
            status, first = run_tests(forks, copy, tests)
    except RuntimeError as error:
        return UNUSABLE, str(error), ""
    finally:
        path.write_text(source, encoding="utf-8")
    if status == 0:
        return SURVIVED, f"{bug.tests} passes", ""
    named = f"{bug.tests}::{first}" if first and " " not in first.partition("[")[0] else tests
    return CAUGHT, first or f"pytest ended with {status}", named


def try_all(bugs: Sequence[Bug], unbroken: bool = True) -> Iterator[Tried]:
    """Plant bugs in a copy of the project, one after another; yields what became of each.

    Args:
        bugs: which.
        unbroken: also run what noticed a bug without it: a test that fails so is UNUSABLE.
    """
    with tempfile.TemporaryDirectory(prefix="planted-") as folder, Forks() as forks:
        copy = Path(folder)
        planting.copy_project(copy, PARTS)
        whole: dict[str, bool] = {}  # whether tests pass without a bug
        for bug in bugs:
            started = time.monotonic()
            verdict, reason, noticed_by = try_bug(forks, bug, copy)
            if verdict == CAUGHT and unbroken:
                if noticed_by not in whole:
                    whole[noticed_by] = _passes(forks, copy, noticed_by)
                if not whole[noticed_by]:
                    verdict, reason = UNUSABLE, f"{noticed_by} fails without the bug, too; mend that first"
            yield Tried(bug, verdict, reason, time.monotonic() - started)


def _passes(forks: Forks, copy: Path, tests: str) -> bool:
    try:
        return run_tests(forks, copy, tests, UNBROKEN)[0] == 0
    except RuntimeError:
        return False


def main() -> int:
    """Run as a command; the exit status."""
    parser = argparse.ArgumentParser(description="Plants known bugs and demands that the tests notice each.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="part of a bug's name")
    parser.add_argument("--list", action="store_true", help="list the bugs and end")
    parser.add_argument("--no-baseline", action="store_true", help="don't run what noticed a bug without it")
    arguments = parser.parse_args()
    bugs = [bug for bug in load() if not arguments.only or any(part in bug.name for part in arguments.only)]
    if not bugs:
        print(f"no bug has a name with {' or '.join(arguments.only)} in it; see --list")
        return 1
    if arguments.list:
        for bug in bugs:
            print(f"{bug.name}  ({bug.file}; {bug.tests})")
        return 0
    began = time.monotonic()
    verdicts: dict[str, Counter[str]] = {}
    for number, tried in enumerate(try_all(bugs, not arguments.no_baseline), 1):
        verdicts.setdefault(tried.bug.file, Counter())[tried.verdict] += 1
        shown = f"{tried.verdict:8} {tried.bug.name} ({tried.seconds:.0f} s): {tried.reason}"
        print(f"[{number}/{len(bugs)}] {shown}", flush=True)
    return _report(verdicts, time.monotonic() - began)


def _report(verdicts: dict[str, Counter[str]], seconds: float) -> int:
    columns = (CAUGHT, SURVIVED, STALE, UNUSABLE)
    total: Counter[str] = sum(verdicts.values(), Counter())
    width = max(len(file) for file in (*verdicts, "file"))
    print(f"\n{'file':{width}}" + "".join(f"{column:>10}" for column in columns))
    for file, counts in (*sorted(verdicts.items()), ("all", total)):
        print(f"{file:{width}}" + "".join(f"{counts[column]:>10}" for column in columns))
    planted = sum(total.values())
    caught_all = total[CAUGHT] == planted
    print(f"verdict: {total[CAUGHT]} of {planted} planted bugs caught in {seconds:.0f} s", end="")
    print("" if caught_all else "; FAILED")
    return 0 if caught_all else 1


if __name__ == "__main__":
    sys.exit(main())
