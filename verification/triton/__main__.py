"""``python -m verification.triton bounds|early|races|barriers [REGEX]``: a check, on the calls that match; JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import asdict


def main() -> int:
    """The exit status: 0 if nothing was found."""
    parser = argparse.ArgumentParser(prog="python -m verification.triton", description=__doc__)
    parser.add_argument("check", choices=("barriers", "bounds", "early", "races"))
    parser.add_argument("calls", nargs="?", default="", help="a regular expression")
    arguments = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = (
        "1" if arguments.check == "bounds" else "0"
    )  # read when Triton is imported
    from . import checks

    found = checks.CHECKS[arguments.check](lambda name: re.search(arguments.calls, name) is not None)
    sys.stdout.write(json.dumps(asdict(found), indent=1) + "\n")
    return int(bool(found.wrong))


if __name__ == "__main__":
    sys.exit(main())
