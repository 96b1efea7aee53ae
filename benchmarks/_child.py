"""One system in a process of its own: ``python -m benchmarks._child JOB.json RESULT.json``.

The job names a system, one of its settings and the runs to do. The result holds one record a run.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from typing import Any

import numpy as np
import torch

from benchmarks._common import OtherLoad, load_average, percentiles, short_error, versions, write_json
from benchmarks._load import LoadResult
from benchmarks._minilm import EMBEDDING_SIZE, Tokens, encode_batch, load_encoder
from benchmarks.peers._system import Setting, System
from benchmarks.peers.registry import load

TOLERANCE = 1e-4  # unit vectors in float32; a neighbour's answer differs by about 1


def reference(texts: list[str], path: str) -> None:
    """Write the single-call result of every text, the truth that all systems are checked against."""
    model, tokens = load_encoder(), Tokens()
    np.save(path, np.concatenate([encode_batch(model, [tokens(text)]) for text in texts]))


def check(result: LoadResult, expected: np.ndarray) -> tuple[float, int]:
    """Largest absolute difference from the truth, and the number of answers that are wrong."""
    largest, wrong = 0.0, 0
    for number, output in enumerate(result.outputs):
        if output is None:
            continue
        vector = np.asarray(output, dtype=np.float64).reshape(-1)
        if vector.size != EMBEDDING_SIZE or not np.isfinite(vector).all():
            wrong += 1
            continue
        difference = float(np.abs(vector - expected[number]).max())
        largest = max(largest, difference)
        wrong += difference > TOLERANCE
    return largest, wrong


def measure(system: System, run: dict[str, Any], texts: list[str], expected: np.ndarray) -> dict[str, Any]:
    """Warm up, then one timed run and its checks."""
    warm = texts[-run["warmup"] :]
    system.measure(warm, run["callers"], run["limit_s"])
    before = load_average()
    others = OtherLoad()
    result = system.measure(texts[: run["requests"]], run["callers"], run["limit_s"])
    share = others.share()
    difference, wrong = check(result, expected)
    if result.errors:
        print("first error:", result.errors[0], file=sys.stderr)
    return {
        "callers": run["callers"],
        "requests": run["requests"],
        "completed": result.completed,
        "errors": len(result.errors) + wrong,
        "first_error": result.errors[0] if result.errors else None,
        "wrong": wrong,
        "hung_callers": result.hung_callers,
        "truncated": result.truncated,
        "max_abs_difference": difference,
        "wall_s": round(result.wall_s, 4),
        "throughput_rps": round(result.completed / result.wall_s, 3),
        **percentiles(result.latencies_ms),
        "load_average_before": before,
        "cores_used_by_others": share,
        "details": system.details(),
    }


def main() -> None:
    """Do the job; the result file is written after every run, so that a later hang loses nothing."""
    job_path, result_path = sys.argv[1:]
    with open(job_path) as file:
        job = json.load(file)
    texts: list[str] = job["texts"]
    if job["system"] == "reference":
        reference(texts, job["reference"])
        write_json(result_path, {})
        return
    kind = load(job["system"])
    setting = Setting(**job["setting"])
    record: dict[str, Any] = {"runs": [], "versions": versions([kind.package] if kind.package else [])}
    if setting.torch_threads:
        torch.set_num_threads(setting.torch_threads)
    system = kind()
    try:
        began = time.perf_counter()
        system.start(setting)
        record["start_s"] = round(time.perf_counter() - began, 2)
        expected = np.load(job["reference"])
        for run in job["runs"]:
            record["runs"].append(measure(system, run, texts, expected))
            write_json(result_path, record)
    except Exception as error:
        traceback.print_exc()
        record["failed"] = short_error(error)
        write_json(result_path, record)
    try:
        system.stop()
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a peer that hangs at interpreter exit must not hang the benchmark


if __name__ == "__main__":
    main()
