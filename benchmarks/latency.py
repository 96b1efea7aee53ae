"""What a batching layer adds to one unloaded call: one caller, direct and batched calls in turn.

    python -m benchmarks.latency --json benchmarks/results/latency.json

Every system runs in a fresh process. In it, each input is given to the model directly and through the
system, one right after the other, in alternating order, so that a disturbance hits both. The added time
is the median of the differences of such pairs. Inputs are ready tensors: tokenising is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._common import (
    DISTURBED,
    PROJECT,
    OtherLoad,
    environment,
    load_average,
    markdown_table,
    percentiles,
    short_error,
    versions,
    write_json,
)

MODELS = ("noop", "minilm")
SYSTEMS = {
    "steelworks": None,
    "steelworks_deterministic": None,
    "steelworks_asyncio": None,
    "lock": None,
    "batched, 5 ms": "batched",
    "batched, 0 ms": "batched",
    "batched asyncio, 5 ms": "batched",
    "async-batcher, 10 ms": "async-batcher",
    "async-batcher, 0 ms": "async-batcher",
}
Call = Callable[[Any], Any]
ChildCall = Callable[[Any], Awaitable[Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"of: {'; '.join(SYSTEMS)}")
    parser.add_argument("--calls", type=int, default=400, help="pairs of calls a measurement (400)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements a system, in one process (3)")
    parser.add_argument("--limit-s", type=float, default=300.0, help="seconds for one system (300)")
    parser.add_argument("--json", help="where the result goes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.child:
        child(json.loads(arguments.child))
        return 0
    record: dict[str, Any] = {
        "benchmark": "latency",
        "environment": environment(),
        "arguments": {k: v for k, v in vars(arguments).items() if k not in ("json", "child")},
        "measurements": [],
    }
    for model in arguments.models:
        for system, package in SYSTEMS.items():
            if (arguments.only and system not in arguments.only) or (package and not versions([package])):
                continue
            for direct_threads in (None, 1) if (model, system) == ("minilm", "steelworks") else (None,):
                entry = run_child(model, system, direct_threads, arguments)
                record["measurements"].append(entry)
                print(line(entry), file=sys.stderr, flush=True)
                if arguments.json:
                    write_json(arguments.json, record)
    print(table(record["measurements"]))
    return 0


def run_child(
    model: str, system: str, direct_threads: int | None, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one system in a fresh process."""
    entry: dict[str, Any] = {"model": model, "system": system, "direct_threads": direct_threads}
    entry["load_average_before_start"] = load_average()
    with tempfile.TemporaryDirectory(prefix="latency_") as folder:
        result = Path(folder) / "result.json"
        job = {**entry, "calls": arguments.calls, "repeats": arguments.repeats, "result": str(result)}
        path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "benchmarks.latency", "--child", json.dumps(job)]
        process = subprocess.Popen(command, cwd=PROJECT, env=variables, stdout=subprocess.DEVNULL)
        try:
            process.wait(arguments.limit_s)
        except subprocess.TimeoutExpired:
            entry["failed"] = f"stopped after {arguments.limit_s:.0f} s"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if result.exists():
            entry.update(json.loads(result.read_text()))
        elif "failed" not in entry:
            entry["failed"] = f"ended with code {process.returncode}"
    return entry


# ---------------------------------------------------------------- in the child


def child(job: dict[str, Any]) -> None:
    """Measure one system here; ends the process without waiting for the system's own threads."""
    import torch

    try:
        model, inputs = make_model(job["model"])
        with torch.inference_mode(), open_system(job["system"], model, inputs[0]) as (call, acall):
            if job["direct_threads"]:
                torch.set_num_threads(job["direct_threads"])  # the caller's: the workers have theirs
            record: dict[str, Any] = {"torch_threads_caller": torch.get_num_threads(), "repeats": []}
            runner = asyncio.Runner() if acall else None
            for repeat in range(-1, job["repeats"]):
                calls = min(job["calls"], 50) if repeat < 0 else job["calls"]
                others = OtherLoad()
                if runner and acall:
                    times = runner.run(async_pairs(model, acall, inputs, calls))
                else:
                    assert call is not None
                    times = pairs(model, call, inputs, calls)
                if repeat >= 0:
                    record["repeats"].append(
                        {**summary(*times), "calls": calls, "cores_used_by_others": others.share()}
                    )
            record.update(combined(record["repeats"]))
    except Exception as error:
        record = {"failed": short_error(error)}
    write_json(job["result"], record)
    sys.stdout.flush()
    os._exit(0)


def make_model(name: str) -> tuple[Any, list[dict[str, Any]]]:
    """The model and the inputs to cycle through, each the keyword arguments of one call."""
    import torch

    if name == "noop":

        class NoOp(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x

        return NoOp().eval(), [{"x": torch.randn(1, 16)}]
    from benchmarks._common import request_texts
    from benchmarks._minilm import Tokens, load_encoder

    tokens = Tokens()
    return load_encoder(), [tokens.features(text) for text in request_texts(64)]


def pairs(model: Any, call: Call, inputs: list[Any], calls: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of each direct call and each call through the system."""
    direct, through = np.empty(calls), np.empty(calls)

    def straight(x: Any) -> Any:
        return model(**x)

    for number in range(calls):
        x = inputs[number % len(inputs)]
        arms = [(straight, direct), (call, through)]
        for function, times in arms if number % 2 else arms[::-1]:
            began = time.perf_counter()
            function(x)
            times[number] = time.perf_counter() - began
    return direct, through


async def async_pairs(
    model: Any, acall: ChildCall, inputs: list[Any], calls: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same from an asyncio task; the direct call blocks the loop, as it would."""
    direct, through = np.empty(calls), np.empty(calls)
    for number in range(calls):
        x = inputs[number % len(inputs)]
        for straight in (True, False) if number % 2 else (False, True):
            began = time.perf_counter()
            if straight:
                model(**x)
            else:
                await acall(x)
            (direct if straight else through)[number] = time.perf_counter() - began
    return direct, through


def summary(direct: np.ndarray, through: np.ndarray) -> dict[str, float]:
    """Microseconds: both arms' median and p99, and the pairwise added time."""
    a, b = percentiles(direct * 1e6), percentiles(through * 1e6)
    added = percentiles((through - direct) * 1e6)
    return {
        "direct_median_us": a["p50_ms"],
        "direct_p99_us": a["p99_ms"],
        "through_median_us": b["p50_ms"],
        "through_p99_us": b["p99_ms"],
        "added_median_us": added["p50_ms"],
        "added_p99_us": round(b["p99_ms"] - a["p99_ms"], 4),
    }


def combined(repeats: list[dict[str, float]]) -> dict[str, Any]:
    """The middle repeat's figure of each kind, and the range of the added median."""
    found: dict[str, Any] = {
        key: float(np.median([r[key] for r in repeats])) for key in repeats[0] if key.endswith("_us")
    }
    added = [r["added_median_us"] for r in repeats]
    found["cores_used_by_others"] = max(r["cores_used_by_others"] for r in repeats)
    found["added_median_us_range"] = [min(added), max(added)]
    return found


@contextlib.contextmanager
def open_system(name: str, model: Any, example: Any) -> Iterator[tuple[Call | None, ChildCall | None]]:
    """A blocking or an awaitable call through the system; the other is None."""
    import torch

    def run_batch(items: list[dict[str, Any]]) -> list[Any]:
        with torch.inference_mode():  # one caller: every batch has one request, nothing to pad
            return [model(**x) for x in items]

    kind, _, wait = name.partition(", ")
    seconds = float(wait.split()[0]) / 1e3 if wait else 0.0
    if kind.startswith("steelworks"):
        import steelworks

        deterministic = kind.endswith("deterministic")
        with steelworks.BatchQueue(
            model, device="cpu", example=example, deterministic=deterministic
        ) as queue:
            yield (None, queue.asubmit) if kind.endswith("asyncio") else (queue, None)
    elif kind == "lock":
        lock = threading.Lock()

        def locked(x: Any) -> Any:
            with lock:
                return model(**x)

        yield locked, None
    elif kind == "batched":
        import batched

        yield batched.dynamically(run_batch, batch_size=32, timeout_ms=seconds * 1e3), None
    elif kind == "batched asyncio":
        from batched import aio

        yield None, aio.dynamically(run_batch, batch_size=32, timeout_ms=seconds * 1e3)
    else:
        from async_batcher.batcher import AsyncBatcher

        class Batcher(AsyncBatcher):  # type: ignore[misc]
            def process_batch(self, batch: list[Any]) -> list[Any]:
                return run_batch(batch)

        batcher: list[Any] = []

        async def process(x: Any) -> Any:
            if not batcher:  # its queue belongs to the loop that makes it
                batcher.append(Batcher(max_batch_size=32, max_queue_time=seconds))
            return await batcher[0].process(item=x)

        yield None, process


# ---------------------------------------------------------------- output


def line(entry: dict[str, Any]) -> str:
    """One measurement in a line."""
    name = f"{entry['model']:7} {entry['system']:26} direct threads {entry['direct_threads'] or 'default':7}"
    if "failed" in entry:
        return f"{name} failed: {entry['failed']}"
    return f"{name} added {entry['added_median_us']:9.1f} us (direct {entry['direct_median_us']:9.1f} us)"


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown, microseconds."""
    rows = []
    for entry in entries:
        if "failed" in entry:
            continue
        low, high = entry["added_median_us_range"]
        threads = f" ({entry['direct_threads']} thread)" if entry["direct_threads"] else ""
        rows.append(
            [
                entry["model"] + threads,
                entry["system"] + ("~" if entry["cores_used_by_others"] > DISTURBED else ""),
                f"{entry['direct_median_us']:.1f}",
                f"{entry['through_median_us']:.1f}",
                f"{entry['added_median_us']:.1f} ({low:.1f}-{high:.1f})",
                f"{entry['added_p99_us']:.0f}",
            ]
        )
    header = ["model", "system", "direct median us", "through it", "added median (range)", "added p99"]
    return markdown_table(header, rows) + "\n\n`~`: other programs used the machine during a run."


if __name__ == "__main__":
    sys.exit(main())
