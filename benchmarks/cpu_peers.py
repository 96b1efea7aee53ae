"""Dynamic batching on the CPU, side by side: Steelworks, its peers, plain threads and the offline oracle.

    python -m benchmarks.cpu_peers --callers 8 32 --repeats 3 --json benchmarks/results/cpu_peers.json

Every system runs in a fresh process, warmed up before it is timed; the order is reversed every other
repeat. A system with several sensible settings is tuned first, for each number of callers. Every answer
is compared with the single-call result. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from benchmarks._common import (
    DISTURBED,
    PROJECT,
    OtherLoad,
    Spread,
    environment,
    load_average,
    markdown_table,
    request_texts,
    usable_cores,
    versions,
    write_json,
)
from benchmarks.peers._system import Setting, System
from benchmarks.peers.registry import NAMES, OWN, PEERS, load

START_ALLOWANCE_S = 120.0
OFFLINE = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    arguments = parse(argv)
    began = time.monotonic()
    names = [name for name in NAMES if not arguments.only or name in arguments.only]
    cores = usable_cores()
    texts = request_texts(arguments.requests + arguments.warmup, arguments.seed)
    kinds, skipped = importable(names)
    with tempfile.TemporaryDirectory(prefix="cpu_peers_") as folder:
        bench = Bench(Path(folder), texts, arguments)
        say(f"{len(kinds)} systems, {arguments.requests} requests, single-call reference first ...")
        bench.reference()
        chosen, tuning = choose_settings(bench, kinds, cores, arguments)
        record: dict[str, Any] = {
            "benchmark": "cpu_peers",
            "environment": environment(),
            "arguments": {k: v for k, v in vars(arguments).items() if k not in ("json", "tuning")},
            "corpus": corpus(texts[: arguments.requests]),
            "skipped": skipped,
            "tuning": tuning,
            "measurements": [],
        }
        for repeat in range(arguments.repeats):
            used = (time.monotonic() - began) / 60
            if repeat and used * (repeat + 1) / repeat > arguments.budget_minutes:
                say(f"repeats end after {repeat}: {used:.0f} minutes are used")
                break
            one_repeat(bench, kinds, chosen, repeat, record["measurements"])
            record["summary"], record["ratios"] = summarise(record["measurements"])
            record["minutes"] = round((time.monotonic() - began) / 60, 1)
            if arguments.json:
                write_json(arguments.json, record)
    print(tables(record, arguments.callers))
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--callers", type=int, nargs="+", default=[8, 32], help="concurrent callers (8 32)")
    parser.add_argument("--requests", type=int, default=1000, help="requests a measurement (1000)")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of everything (3)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"of: {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="a smoke test: 60 requests, 1 repeat, no tuning")
    parser.add_argument("--no-tune", action="store_true", help="use the first setting of each system")
    parser.add_argument("--tuning", help="take the settings chosen in this earlier result instead of tuning")
    parser.add_argument("--tune-requests", type=int, default=192, help="requests of a tuning run (192)")
    parser.add_argument("--warmup", type=int, default=96, help="requests before each timed run (96)")
    parser.add_argument("--limit-s", type=float, default=90.0, help="seconds until a run stops sending (90)")
    parser.add_argument(
        "--budget-minutes", type=float, default=30.0, help="no repeat starts that would exceed it (30)"
    )
    parser.add_argument(
        "--wait-quiet", type=float, default=0.0, help="wait up to so many seconds for other programs to pause"
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the sentences")
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.requests, arguments.repeats, arguments.warmup, arguments.no_tune = 60, 1, 16, True
    return arguments


def say(text: str) -> None:
    """Progress goes to stderr, the table to stdout."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def importable(names: Sequence[str]) -> tuple[dict[str, type[System]], dict[str, str]]:
    """The systems whose package is installed, and why the others are left out."""
    kinds: dict[str, type[System]] = {}
    skipped: dict[str, str] = {}
    for name in names:
        kind = load(name)
        if kind.package and not versions([kind.package]):
            skipped[name] = f"package {kind.package} is not installed"
            say(f"{name}: left out, {skipped[name]}")
        else:
            kinds[name] = kind
    return kinds, skipped


def corpus(texts: list[str]) -> dict[str, Any]:
    """What identifies the requests; imported late, because it loads torch and the tokenizer."""
    from benchmarks._minilm import corpus_record

    return corpus_record(texts)


class Bench:
    """Runs jobs in fresh processes."""

    def __init__(self, folder: Path, texts: list[str], arguments: argparse.Namespace) -> None:
        self._folder = folder
        self._texts = texts
        self._arguments = arguments
        self.requests: int = arguments.requests
        self._reference = str(folder / "reference.npy")

    def reference(self) -> None:
        """Compute the single-call results once for all systems."""
        limit = START_ALLOWANCE_S + 0.5 * len(self._texts)
        result = self._process({"system": "reference"}, {}, limit)
        if result.get("failed"):
            raise SystemExit(f"the reference could not be computed: {result['failed']}")

    def wait_quiet(self) -> None:
        """Wait until other programs use less than a tenth of a core for 3 s, or the time is up."""
        end = time.monotonic() + self._arguments.wait_quiet
        while time.monotonic() < end:
            others = OtherLoad()
            time.sleep(3)
            if others.share() < 0.1:
                return

    def run(self, name: str, setting: Setting, callers: Sequence[int], requests: int) -> dict[str, Any]:
        """Measure one system at one setting for each number of callers; never raises for a failing system."""
        self.wait_quiet()
        limit = self._arguments.limit_s
        runs = [
            {"callers": n, "requests": requests, "warmup": self._arguments.warmup, "limit_s": limit}
            for n in callers
        ]
        environment = dict(setting.environment)
        if setting.torch_threads:
            environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(setting.torch_threads)
        job = {"system": name, "setting": asdict(setting), "runs": runs}
        return self._process(job, environment, START_ALLOWANCE_S + len(runs) * 2 * (limit + 30))

    def _process(self, job: dict[str, Any], extra: dict[str, str], limit_s: float) -> dict[str, Any]:
        job_path, result_path, log_path = (self._folder / f for f in ("job.json", "result.json", "log.txt"))
        write_json(job_path, {**job, "texts": self._texts, "reference": self._reference})
        result_path.unlink(missing_ok=True)
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, **OFFLINE, **extra}
        command = [sys.executable, "-m", "benchmarks._child", str(job_path), str(result_path)]
        with log_path.open("w") as log:
            child = subprocess.Popen(
                command, cwd=PROJECT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            failed = None
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                failed = f"stopped after {limit_s:.0f} s"
            finally:
                end(child)
        result: dict[str, Any] = json.loads(result_path.read_text()) if result_path.exists() else {}
        if failed or not result_path.exists():
            result["failed"] = failed or f"ended with code {child.returncode}"
        if result.get("failed"):
            tail = log_path.read_text().strip().splitlines()[-8:]
            say(f"{job['system']} failed: {result['failed']}\n    " + "\n    ".join(tail))
        return result


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process that this benchmark started, with its descendants; nothing else."""
    if child.poll() is not None:
        return
    try:
        family = [*psutil.Process(child.pid).children(recursive=True), psutil.Process(child.pid)]
    except psutil.Error:
        family = []
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue
    child.wait()


def choose_settings(
    bench: Bench, kinds: dict[str, type[System]], cores: int, arguments: argparse.Namespace
) -> tuple[dict[tuple[str, int], Setting], list[dict[str, Any]]]:
    """The best setting for each system and number of callers, and the figures behind the choice."""
    chosen: dict[tuple[str, int], Setting] = {}
    figures: list[dict[str, Any]] = []
    earlier = earlier_choice(arguments.tuning) if arguments.tuning else {}
    for name, kind in kinds.items():
        settings = {setting.name: setting for setting in kind.settings(cores)}
        first = next(iter(settings.values()))
        callers = [max(arguments.callers)] if kind.offline else list(arguments.callers)
        for n in callers:
            chosen[name, n] = settings.get(earlier.get((name, n), ""), first)
        if len(settings) == 1 or arguments.no_tune or all((name, n) in earlier for n in callers):
            continue
        best: dict[int, float] = {}
        for setting in settings.values():
            result = bench.run(name, setting, callers, min(arguments.tune_requests, arguments.requests))
            for run in result.get("runs", []):
                n, rate = run["callers"], run["throughput_rps"]
                clean = not run["errors"] and not run["hung_callers"]
                say(f"tuning {name:16} {n:3} callers: {rate:7.1f} req/s   {setting.name}")
                figures.append({"system": name, "setting": setting.name, **brief(run)})
                if clean and rate > best.get(n, 0.0):
                    best[n] = rate
                    chosen[name, n] = setting
        for figure in figures:
            if figure["system"] == name:
                figure["chosen"] = chosen[name, figure["callers"]].name == figure["setting"]
    return chosen, figures


def earlier_choice(path: str) -> dict[tuple[str, int], str]:
    """Names of the settings that an earlier result chose."""
    record = json.loads(Path(path).read_text())
    return {(m["system"], m["callers"]): m["setting"] for m in record["measurements"]}


def brief(run: dict[str, Any]) -> dict[str, Any]:
    """The part of a run that a tuning record keeps."""
    keep = ("callers", "requests", "throughput_rps", "p50_ms", "p99_ms", "errors", "cores_used_by_others")
    return {key: run[key] for key in keep}


def one_repeat(
    bench: Bench,
    kinds: dict[str, type[System]],
    chosen: dict[tuple[str, int], Setting],
    repeat: int,
    measurements: list[dict[str, Any]],
) -> None:
    """Measure every system once; odd repeats run in reverse order."""
    order = list(kinds) if repeat % 2 == 0 else list(kinds)[::-1]
    for position, name in enumerate(order):
        groups: dict[str, list[int]] = {}
        for (system, n), setting in chosen.items():
            if system == name:
                groups.setdefault(setting.name, []).append(n)
        for setting_name, callers in groups.items():
            setting = chosen[name, callers[0]]
            before = load_average()
            result = bench.run(name, setting, callers, bench.requests)
            for run in result.get("runs", []):
                entry = {
                    "system": name,
                    "setting": setting_name,
                    "repeat": repeat,
                    "position": position,
                    **run,
                }
                entry["load_average_before_start"] = before
                entry["start_s"] = result.get("start_s")
                measurements.append(entry)
                say(f"repeat {repeat + 1}  {name:24} {line(run)}")
            if result.get("failed"):
                measurements.append(
                    {"system": name, "setting": setting_name, "repeat": repeat, "failed": result["failed"]}
                )


def line(run: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"{run['callers']:3} callers: {run['throughput_rps']:7.1f} req/s  p50 {number(run['p50_ms'])}"
        f"  p99 {number(run['p99_ms'])} ms  errors {run['errors']}  diff {run['max_abs_difference']:.1e}"
        f"  others {run['cores_used_by_others']:.2f} cores"
    )


def summarise(measurements: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The spread of each system, and ratios to the oracle and the best peer, taken within each repeat."""
    good = [m for m in measurements if "failed" not in m]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for m in good:
        groups.setdefault((m["system"], m["callers"]), []).append(m)
    summary = []
    for (system, callers), runs in groups.items():
        entry: dict[str, Any] = {"system": system, "callers": callers, "setting": runs[0]["setting"]}
        for key in ("throughput_rps", "p50_ms", "p99_ms", "p999_ms"):
            entry[key] = asdict(Spread.of([r[key] if r[key] is not None else float("nan") for r in runs]))
        entry["repeats"] = len(runs)
        entry["errors"] = sum(r["errors"] for r in runs)
        entry["hung_callers"] = sum(r["hung_callers"] for r in runs)
        entry["truncated"] = any(r["truncated"] for r in runs)
        entry["disturbed"] = any(r["cores_used_by_others"] > DISTURBED for r in runs)
        entry["max_abs_difference"] = max(r["max_abs_difference"] for r in runs)
        summary.append(entry)
    rate = {(m["system"], m["callers"], m["repeat"]): m["throughput_rps"] for m in good}
    oracle = {m["repeat"]: m["throughput_rps"] for m in good if m["system"] == "oracle"}
    ratios = []
    for system, callers in groups:
        if system == "oracle":
            continue
        repeats = [m["repeat"] for m in groups[system, callers]]
        entry = {"system": system, "callers": callers}
        pairs = [rate[system, callers, r] / oracle[r] for r in repeats if r in oracle]
        if pairs:
            entry["of_oracle"] = asdict(Spread.of(pairs))
        if system in OWN:
            best = {r: max((rate.get((p, callers, r), 0.0), p) for p in PEERS) for r in repeats}
            found = {r: b for r, b in best.items() if b[0] > 0}
            if found:
                entry["of_best_peer"] = asdict(
                    Spread.of(rate[system, callers, r] / b[0] for r, b in found.items())
                )
                entry["best_peers"] = sorted({b[1] for b in found.values()})
        ratios.append(entry)
    return summary, ratios


def tables(record: dict[str, Any], callers: Sequence[int]) -> str:
    """One markdown table for each number of callers."""
    ratios = {(r["system"], r["callers"]): r for r in record["ratios"]}
    parts = []
    for n in callers:
        rows = []
        for entry in record["summary"]:
            system = entry["system"]
            if entry["callers"] != n and system != "oracle":
                continue
            rate = entry["throughput_rps"]
            ratio = ratios.get((system, n), {})
            offline = system == "oracle"
            latency = [
                "-" if offline else number(entry[k]["median"]) for k in ("p50_ms", "p99_ms", "p999_ms")
            ]
            marks = {"*": "truncated", "!": "hung_callers", "~": "disturbed"}
            flags = "".join(mark for mark, key in marks.items() if entry[key])
            rows.append(
                [
                    system + flags,
                    entry["setting"],
                    f"{number(rate['median'])} ({number(rate['min'])}-{number(rate['max'])})",
                    *latency,
                    str(entry["errors"]),
                    f"{entry['max_abs_difference']:.1e}",
                    "1" if offline else spread(ratio.get("of_oracle")),
                    spread(ratio.get("of_best_peer")),
                ]
            )
        header = [
            "system",
            "setting",
            "req/s (min-max)",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "errors",
            "max diff",
        ]
        parts.append(f"### {n} callers\n\n" + markdown_table([*header, "of oracle", "of best peer"], rows))
    notes = (
        "`*`: the time limit ended the run early. `!`: callers never got an answer. "
        "`~`: other programs used the machine during a run."
    )
    return "\n\n".join([*parts, notes])


def number(value: float | None) -> str:
    """Three significant digits or whole numbers."""
    if value is None or value != value:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(value: dict[str, float] | None) -> str:
    """The median and range of a ratio."""
    return f"{value['median']:.2f} ({value['min']:.2f}-{value['max']:.2f})" if value else ""


if __name__ == "__main__":
    sys.exit(main())
