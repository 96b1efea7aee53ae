"""One part of the evidence in a process of its own: ``python -m verification.child MODULE [--quick] [NAME ...]``.

Each claim is a line of JSON on the standard output as it ends; after those a line that says how it ended. What the
part itself prints goes to the standard error.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from .claims import Claim, ToolMissing


def main() -> int:
    """Runs the part; the exit status is 0 even if a claim does not hold: that stands in the lines."""
    parser = argparse.ArgumentParser(prog="python -m verification.child", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("names", nargs="*", help="the claims that are asked for; without names all")
    arguments = parser.parse_args()
    # Nothing that the part prints gets among the lines.
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        lines.write(json.dumps(what) + "\n")
        lines.flush()

    try:
        for claim in _claims(arguments.module, arguments.quick, frozenset(arguments.names)):
            say(claim=asdict(claim))
    except ToolMissing as problem:
        say(end="missing", why=str(problem))
    except Exception as problem:  # whatever goes wrong in it, the other parts go on
        traceback.print_exc()
        say(end="broken", why=f"{type(problem).__name__}: {problem}")
    else:
        say(end="done")
    return 0


def _claims(module: str, quick: bool, names: frozenset[str]) -> Iterator[Claim]:
    function = importlib.import_module(module).claims
    more = {}
    if names and "wanted" in inspect.signature(function).parameters:
        more["wanted"] = lambda name: name in names
    yield from function(quick, **more)


if __name__ == "__main__":
    sys.exit(main())
