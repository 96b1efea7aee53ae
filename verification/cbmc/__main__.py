"""``python -m verification.cbmc``: all bounds of the Metal kernels, and the planted bugs that they must refute."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steelworks.metalsim.errors import MetalsimError

from . import addresses, lemma, memory, planted, run
from .toolchain import CbmcMissing


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _checks(arguments: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    names = [f for f in run.families() if not arguments.only or f == arguments.only]
    found: list[dict[str, Any]] = []
    with run.prepared(names) as made:
        wanted = [(where, check) for where in made.values() for check in where.checks]
        results = run.run_all(run.first_rows(wanted) if arguments.quick else wanted)
    kinds: dict[tuple[str, str, str], list[run.Result]] = {}
    for result in results:
        kinds.setdefault((result.check.family, result.check.base, result.check.says), []).append(result)
    for (family, base, says), some in kinds.items():
        bad = [r for r in some if not r.holds]
        seconds = sum(r.cpu_seconds for r in some)
        mark = "FAILED" if bad else "proven"
        _say(f"  {mark} {family:12} {base:30} {len(some):3} rows {seconds:7.1f} s  {says}")
        for r in bad:
            for failed in r.failed:
                _say(f"    check_{r.check.name}: {failed}")
            if r.vacuous:
                _say(f"    check_{r.check.name}: what is given is contradictory: nothing is proven")
        found.append(
            {
                "family": family,
                "check": base,
                "says": says,
                "rows": len(some),
                "cpu_seconds": seconds,
                "assertions": sum(r.proven for r in some),
                "holds": not bad,
            }
        )
    return all(r.holds for r in results), found


def _lemmas(arguments: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    wanted = [x for x in lemma.all_lemmas().values() if arguments.only in (None, x.family)]
    results = [lemma.prove(x) for x in wanted]
    for result in results:
        mark = "FAILED" if result.failed else "proven"
        _say(f"  {mark} {result.name:30} {result.goals:3} goals {result.seconds:6.1f} s  {result.says}")
        for failed in result.failed:
            _say(f"    {failed}")
    return not any(r.failed for r in results), [asdict(r) for r in results]


def _memory() -> tuple[bool, list[dict[str, Any]]]:
    uses = memory.uses()
    most = max(uses, key=lambda use: use.bytes)
    _say(f"  {len(uses)} kernels; the most is {most.bytes} of {memory.LIMIT} bytes, in {most.kernel}")
    return most.bytes <= memory.LIMIT, [asdict(use) for use in uses]


def _addresses() -> tuple[bool, dict[str, Any]]:
    compared = addresses.compare()
    for fault in compared.faults:
        _say(f"  FAILED {fault}")
    _say(
        f"  {compared.count} addresses in device memory; {compared.listed} are listed with a reason, "
        "the others are index functions'"
    )
    return not compared.faults, {"addresses": compared.count, "listed": compared.listed}


def _planted(arguments: argparse.Namespace) -> tuple[bool, list[dict[str, Any]]]:
    only = arguments.only
    wanted = [
        b
        for b in planted.bugs()
        if only is None or only in b.caught_by.replace(".", "/").replace(" ", "/").split("/")
    ]
    results = planted.refute_all(wanted)
    for r in results:
        _say(
            f"  {'refuted' if r.refuted else 'MISSED '} {r.bug.file:24} {r.bug.what}  [{r.bug.caught_by}] "
            f"{r.shown[:100]}"
        )
    return all(r.refuted for r in results), [
        {**asdict(r.bug), "refuted": r.refuted, "shown": r.shown} for r in results
    ]


def main(given: list[str] | None = None) -> int:
    """Runs what is asked for; 0 if all holds."""
    parser = argparse.ArgumentParser(prog="python -m verification.cbmc", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one row of each kind of check, and no planted bugs"
    )
    parser.add_argument("--only", metavar="FAMILY", help="one family: steel, gemm, attention, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    arguments = parser.parse_args(given)
    families = {*run.families(), *(x.family for x in lemma.all_lemmas().values())}
    if arguments.only is not None and arguments.only not in families:
        parser.error(f"--only {arguments.only}: no such family; there are {', '.join(sorted(families))}")
    begin = time.monotonic()
    report: dict[str, Any] = {}
    held = True
    parts: list[tuple[str, Any]] = [
        ("checks by CBMC, all sizes to 4096 (CPU seconds)", lambda: _checks(arguments)),
        ("lemmas by z3, sizes to 2**30", lambda: _lemmas(arguments)),
    ]
    if arguments.only is None:
        parts += [("addresses outside of the index headers", _addresses), ("threadgroup memory", _memory)]
    if not arguments.quick:
        parts.append(("planted bugs", lambda: _planted(arguments)))
    try:
        for title, part in parts:
            _say(title)
            holds, report[title] = part()
            held = held and holds
    except (CbmcMissing, run.CbmcFailed, MetalsimError) as problem:
        _say(f"FAILED: {problem}")
        return 1
    _say(f"{'all holds' if held else 'FAILED'}, in {time.monotonic() - begin:.0f} s")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"holds": held, **report}, indent=1) + "\n", encoding="utf-8")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
