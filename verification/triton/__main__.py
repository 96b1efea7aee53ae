"""``python -m verification.triton CHECK [REGEX]``: a check, on the calls that match; JSON."""

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
    parser.add_argument("check", choices=("barriers", "bounds", "compiled", "early", "races"))
    parser.add_argument("calls", nargs="?", default="", help="a regular expression")
    arguments = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = (
        "1" if arguments.check == "bounds" else "0"
    )  # read when Triton is imported
    from . import checks

    found = checks.CHECKS[arguments.check](lambda name: re.search(arguments.calls, name) is not None)
    some = found if isinstance(found, dict) else {"": found}
    said = {name: asdict(one) for name, one in some.items()}
    sys.stdout.write(json.dumps(said.get("", said), indent=1) + "\n")
    return int(any(one.wrong for one in some.values()))


if __name__ == "__main__":
    sys.exit(main())
