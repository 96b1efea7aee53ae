"""The operators on one NVIDIA GPU, side by side in one run: ours, PyTorch's, torch.compile's and Liger's.

    python -m benchmarks.ops_h200 --json benchmarks/results/ops_h200.json
    python -m benchmarks.ops_h200 --only softmax --only top_k

The clock is device time inside a CUDA graph; host time (of a call that returns before the device is done) is given
where a case asks for it. ``copy`` is PyTorch's copy of as many bytes, in the same run and rotated alike; ``floor`` is
the bytes over the bandwidth that the data sheet names. A figure below the floor is a fault of this program (and ends
it), except where the data fits in the L2 cache and no memory is read.

A family is a module in ``benchmarks/ops`` with ``cases()``; add its name to ``FAMILIES``.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import math
import sys
from typing import Any

import torch

from benchmarks._common import Spread, environment, short_error, versions, write_json
from benchmarks.ops._cases import L2_BYTES, Case
from benchmarks.ops._timing import graph_time, host_time

FAMILIES = ("softmax", "norms", "topk", "lora", "quantized", "model", "attention", "linear")
#: Bytes of one copy that a case is compared with.
LARGEST_COPY = 2**28
#: Bytes a second by the data sheet.
NOMINAL = {"NVIDIA H200": 4.8e12}


def copy_time(case: Case, count: int) -> Spread:
    """PyTorch's copy of as many bytes as the case moves, in a graph of as many calls over ``count`` buffers.

    More than 256 MiB are copied as so many pieces: one copy of 512 MiB was seen to take three times as long as one of
    256 MiB, which would flatter what is compared with it.
    """
    half = max(case.bytes // 2, 16)
    piece = min(half, LARGEST_COPY)
    pairs = [
        (
            torch.randint(0, 255, (piece,), dtype=torch.uint8, device="cuda"),
            torch.empty(piece, dtype=torch.uint8, device="cuda"),
        )
        for _ in range(count if piece == half else 2)
    ]
    spread = graph_time([lambda pair=pair: pair[1].copy_(pair[0]) for pair in pairs], case.launches)
    scale = half / piece
    return Spread(spread.min * scale, spread.median * scale, spread.max * scale)


def largest_error(result: Any, want: torch.Tensor) -> float:
    """Of the first tensor of a result."""
    first = result[0] if isinstance(result, (tuple, list)) else result
    return float((first.double() - want).abs().max())


@torch.no_grad()
def run(case: Case, bandwidth: float | None) -> dict[str, Any]:
    """All implementations of a case; a row of the record."""
    torch.compiler.reset()  # else shapes add up until torch.compile gives up and runs eagerly
    inputs = case.rotated()
    want = None if case.check is None else case.check(inputs[0])
    record: dict[str, Any] = {"op": case.op, "name": case.name, "bytes": case.bytes, "device_us": {}}
    if case.host:
        record["host_us"] = {}
    errors: dict[str, float] = {}
    times = {"copy": copy_time(case, len(inputs))}
    for name, make in case.implementations.items():
        calls = [make(each) for each in inputs]
        try:
            if want is not None:
                errors[name] = largest_error(calls[0](), want)
            times[name] = graph_time(calls, case.launches)
            if case.host:
                record["host_us"][name] = host_time(calls[0], calls=60)
        except Exception as error:
            record.setdefault("failed", {})[name] = short_error(error)
    for name, measure in case.chains.items():
        try:
            times[name] = measure()
        except Exception as error:
            record.setdefault("failed", {})[name] = short_error(error)
    record["device_us"] = times
    record["largest_error"] = errors
    medians = {name: spread.median for name, spread in times.items()}
    if bandwidth:
        medians["floor"] = record["floor_us"] = case.bytes / bandwidth * 1e6
    record["goals"] = []
    for goal in case.goals if "steel" in medians else ():
        value = goal.value(medians)
        if math.isnan(value):  # a peer that is not installed
            continue
        entry = {
            "name": goal.name,
            "value": value,
            "must": goal.must,
            "aim": goal.aim,
            "met": goal.met(value),
        }
        record["goals"].append(entry)
    show(record, medians)
    if bandwidth and case.rotate and case.bytes > L2_BYTES:
        below = [name for name in times if medians[name] < medians["floor"]]
        if below:
            raise SystemExit(f"{case.op} {case.name}: {below} below the floor: this program measures wrongly")
    del inputs, want
    gc.collect()
    torch.cuda.empty_cache()
    return record


def show(record: dict[str, Any], medians: dict[str, float]) -> None:
    """The row, as text."""
    row = "  ".join(f"{name} {value:.2f}" for name, value in medians.items())
    print(f"{record['op']:12s} {record['name']:34s} us: {row}", flush=True)
    spread = record["device_us"].get("steel")
    if spread:
        print(f"{'':14s}ours {spread.min:.2f} .. {spread.max:.2f}; errors", end=" ")
        print({name: f"{error:.1e}" for name, error in record["largest_error"].items()})
    if "host_us" in record:
        print(f"{'':14s}host us: " + "  ".join(f"{n} {s.median:.1f}" for n, s in record["host_us"].items()))
    for goal in record["goals"]:
        verdict = "met" if goal["met"] else "MISSED"
        print(
            f"{'':14s}{goal['name']}: {goal['value']:.3f} (must {goal['must']}, aim {goal['aim']}) {verdict}"
        )
    for name, error in record.get("failed", {}).items():
        print(f"{'':14s}{name} failed: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", metavar="OP", help="an operation or family; may be repeated"
    )
    parser.add_argument("--json", metavar="FILE", help="where to write the record")
    parser.add_argument(
        "--family", action="append", metavar="MODULE", help="a further module of benchmarks.ops"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: these figures are taken on an NVIDIA GPU")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name()
    record: dict[str, Any] = {
        "environment": environment()
        | {"peers": versions(["liger-kernel", "quack-kernels", "nvidia-cutlass-dsl", "mlx"])},
        "clock": "device time in a CUDA graph, median of replays; host_us: time of a call on the host",
        "nominal_bytes_per_second": NOMINAL.get(name),
        "cases": [],
    }
    for family in (*FAMILIES, *(options.family or ())):
        for case in importlib.import_module(f"benchmarks.ops.{family}").cases():
            if options.only and case.op not in options.only and family not in options.only:
                continue
            record["cases"].append(run(case, NOMINAL.get(name)))
            if options.json:
                write_json(options.json, record)
    goals = [goal for case in record["cases"] for goal in case["goals"]]
    print(f"{sum(goal['met'] for goal in goals)} of {len(goals)} required figures are met")


if __name__ == "__main__":
    main()
