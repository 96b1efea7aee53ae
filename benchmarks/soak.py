"""The long run: millions of small requests from threads and asyncio tasks, each one checked.

    python -m benchmarks.soak --requests 2000000 --callers 16 --json benchmarks/results/soak.json
    python -m benchmarks.soak --requests 0 --overload-seconds 60 --json benchmarks/results/overload.json

The soak sends requests of mixed shapes to a small model; a few of them poison their batch and a few are
cancelled. Every request must end exactly once, with its own result, its own exception or its
cancellation; the queue's counters must agree; memory and threads must stay bounded.
The overload offers ten times the measured capacity, open loop, under each overflow policy.
Ends with PASSED or with the list of what went wrong, and exit code 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks._common import environment, write_json
from benchmarks._overload import POLICIES, overload
from benchmarks._soak_run import soak


def main(argv: Sequence[str] | None = None) -> int:
    """Run what was asked for, write the JSON, say the verdict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", type=int, default=2_000_000, help="requests of the soak; 0 leaves it out"
    )
    parser.add_argument("--callers", type=int, default=16, help="half threads, half asyncio tasks (16)")
    parser.add_argument("--poison-rate", type=float, default=0.0005, help="share that makes the model raise")
    parser.add_argument(
        "--cancel-rate", type=float, default=0.001, help="share of futures that are cancelled"
    )
    parser.add_argument(
        "--limit-minutes", type=float, default=40.0, help="the soak stops sending after that (40)"
    )
    parser.add_argument("--overload-seconds", type=float, default=0.0, help="of each policy; 0 leaves it out")
    parser.add_argument("--overload-factor", type=float, default=10.0, help="offered load over capacity (10)")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--max-pending", type=int, default=256, help="of the overloaded queue (256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {
        "benchmark": "soak",
        "environment": environment(),
        "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
    }
    problems: list[str] = []
    if arguments.requests:
        record["soak"] = soak(
            arguments.requests,
            arguments.callers,
            poison_rate=arguments.poison_rate,
            cancel_rate=arguments.cancel_rate,
            limit_s=arguments.limit_minutes * 60,
            seed=arguments.seed,
        )
        problems += record["soak"]["problems"]
    if arguments.overload_seconds:
        record["overload"] = []
        for policy in arguments.policies:
            one = overload(
                policy,
                arguments.overload_seconds,
                factor=arguments.overload_factor,
                max_pending=arguments.max_pending,
            )
            record["overload"].append(one)
            problems += [f"{policy}: {problem}" for problem in one["problems"]]
    record["passed"] = not problems
    record["problems"] = problems
    if arguments.json:
        write_json(arguments.json, record)
    print("PASSED" if not problems else "FAILED:\n  " + "\n  ".join(problems))
    return 0 if not problems else 1


if __name__ == "__main__":
    sys.exit(main())
