"""Plants known bugs into a copy of the package, one at a time, and demands that the tests notice each.

The bugs are data: ``tests/planted/*.toml``. Each names a file of the package, the text to replace (which must
be there exactly once, inside one function where ``inside`` names it) and the test file that has to fail. The
tests must pass on the unbroken copy first; otherwise nothing would follow from their failing.

    python scripts/planted_bugs.py                       # all of them
    python scripts/planted_bugs.py --only NAME           # those whose name contains NAME; may be repeated
    python scripts/planted_bugs.py --list

Ends with a table of counts; the exit status is 1 unless every bug was caught.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("steelworks", "tests", "examples", "pyproject.toml", "README.md")  # what the tests need
TEST_SECONDS = 60  # for one test; a bug may well make it hang
RUN_SECONDS = 300  # for one test file, after which it counts as hung
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
        start, end = _span(source, self.inside) if self.inside else (0, len(source))
        found = source.count(self.find, start, end)
        if found != 1:
            raise LookupError(f"{self.find!r} stands {found} times in {self.inside or self.file}, not once")
        at = source.index(self.find, start, end)
        return source[:at] + self.replace + source[at + len(self.find) :]


def _span(source: str, name: str) -> tuple[int, int]:
    """Where the function ``name`` starts and ends in ``source``."""
    body: list[ast.stmt] = ast.parse(source).body
    node: ast.stmt | None = None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        node = next((n for n in body if isinstance(n, kinds) and n.name == part), None)
        if node is None:
            raise LookupError(f"there is no {name}")
        body = getattr(node, "body", [])
    assert node is not None
    lines = source.splitlines(keepends=True)
    return len("".join(lines[: node.lineno - 1])), len("".join(lines[: node.end_lineno]))


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


def copy_project(target: Path) -> None:
    """Copy what the tests need; without compiled files, which could hide a change."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        elif source.exists():
            shutil.copy2(source, target / part)


def run_tests(copy: Path, tests: str) -> tuple[int | None, str]:
    """Run one test file on the copy: pytest's exit status (None: hung) and the test that failed first."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", tests, "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--timeout", str(TEST_SECONDS), "-o", "addopts=", "--hypothesis-profile", "find-only"]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        # A session of its own, and no pipe: what a bug leaves behind may hang, and must not hold this up.
        running = subprocess.Popen(
            command, cwd=copy, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status: int | None = running.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        try:
            os.killpg(running.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        running.wait()
        output.seek(0)
        lines = output.read().splitlines()
    if status is None:
        return None, "the run hung"
    failed = [line for line in lines if line.startswith(("FAILED tests/", "ERROR tests/"))]
    first = failed[0].partition(" - ")[0].partition("::")[2] if failed else ""
    if status in NOTHING_RAN or any("during collection" in line for line in lines):
        raise RuntimeError(f"pytest could not run {tests} (exit status {status})")
    return status, first or ("a test hung" if any("Timeout" in line for line in lines) else "")


def try_bug(bug: Bug, copy: Path) -> tuple[str, str]:
    """Plant ``bug``, run its tests, take it out again; the verdict and what it rests on."""
    path = copy / bug.file
    source = path.read_text(encoding="utf-8")
    try:
        planted = bug.planted(source)
        compile(planted, bug.file, "exec")
    except (LookupError, SyntaxError) as error:
        return STALE, str(error)
    path.write_text(planted, encoding="utf-8")
    try:
        status, first = run_tests(copy, f"{bug.tests}::{bug.first}") if bug.first else (0, "")
        if status == 0:
            status, first = run_tests(copy, bug.tests)
    except RuntimeError as error:
        return UNUSABLE, str(error)
    finally:
        path.write_text(source, encoding="utf-8")
    if status == 0:
        return SURVIVED, f"{bug.tests} passes"
    return CAUGHT, first or f"pytest ended with {status}"


def main() -> int:
    """Run as a command; the exit status."""
    parser = argparse.ArgumentParser(description="Plants known bugs and demands that the tests notice each.")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="part of a bug's name")
    parser.add_argument("--list", action="store_true", help="list the bugs and end")
    parser.add_argument("--no-baseline", action="store_true", help="don't run the tests unbroken first")
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
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        copy = Path(folder)
        copy_project(copy)
        if not arguments.no_baseline:
            for tests in sorted({bug.tests for bug in bugs}):
                try:
                    status, first = run_tests(copy, tests)
                except RuntimeError as error:
                    status, first = None, str(error)
                if status != 0:
                    print(f"{tests} does not pass without a bug ({first}); mend that first")
                    return 1
        for number, bug in enumerate(bugs, 1):
            started = time.monotonic()
            verdict, reason = try_bug(bug, copy)
            verdicts.setdefault(bug.file, Counter())[verdict] += 1
            seconds = time.monotonic() - started
            print(f"[{number}/{len(bugs)}] {verdict:8} {bug.name} ({seconds:.0f} s): {reason}", flush=True)
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
