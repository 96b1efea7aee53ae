"""int8 against float32 on the CPU: all-MiniLM-L6-v2, real sentences, in turns within one run.

    python -m benchmarks.cpu_int8 --json benchmarks/results/cpu_int8.json

Forwards of batches of 32 and 4 and of single sentences, with one and two intra-op threads: the model as it is
(padded), ``torch.ao.quantization.quantize_dynamic`` (a scale a batch), and plans in float32 and in int8
(``quantize="int8"``), packed. Then a queue of each, with 8 and 32 callers. Differences are those of the
embeddings, as cosines with the model's own.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import steelworks
from benchmarks._common import (
    OtherLoad,
    Spread,
    environment,
    markdown_table,
    request_texts,
    write_json,
)
from benchmarks._minilm import Tokens, corpus_record, load_encoder, pad
from steelworks.cli._load import run_callers

Batch = dict[str, torch.Tensor]
Call = Callable[[Batch], torch.Tensor]
BATCHES = {32: 1, 4: 2, 1: 16}  # rows of a batch, and of how many such batches one is measured
BASE = "plan, float32"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=192, help="sentences (192)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each variant (5)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="intra-op threads (1 2)")
    parser.add_argument("--callers", type=int, nargs="*", default=[8, 32], help="of the queues (8 32)")
    parser.add_argument("--json", help="where the result goes")
    arguments = parser.parse_args(argv)
    texts = request_texts(arguments.requests)
    record: dict[str, Any] = {
        "benchmark": "cpu_int8",
        "environment": {**environment(), "vnni": _vnni()},
        "arguments": {k: v for k, v in vars(arguments).items() if k != "json"},
        "corpus": corpus_record(texts),
        "forwards": [],
        "queues": [],
    }
    model = load_encoder()
    ids = sorted(map(Tokens(), texts), key=len)
    variants = make_variants(model, pad([ids[len(ids) // 2]]))
    with torch.no_grad():
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            for size in BATCHES:
                starts = range(0, len(ids), size * BATCHES[size])
                batches = [pad(ids[at : at + size]) for at in starts]
                record["forwards"] += forwards(variants, batches, size, threads, arguments.repeats)
                if arguments.json:  # what was measured is kept if the rest is not
                    write_json(arguments.json, record)
        torch.set_num_threads(record["environment"]["torch_threads_default"])
    print(table(record["forwards"]))
    record["queues"] = queues(model, texts, arguments.callers, min(arguments.repeats, 4))
    for row in record["queues"]:
        print(f"{row['callers']} callers: float32 {row['float32_rps']}, int8 {row['int8_rps']} req/s, "
              f"{row['ratio'].median:.2f} x ({row['ratio'].min:.2f}-{row['ratio'].max:.2f}); "
              f"cosine {row['cosine_min']:.4f}")  # fmt: skip
    if arguments.json:
        write_json(arguments.json, record)
    return 0


def make_variants(model: nn.Module, example: Batch) -> dict[str, Call]:
    """What is compared, by name; each takes a padded batch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

        by_batch = quantize_dynamic(copy.deepcopy(model), {nn.Linear: per_channel_dynamic_qconfig})
    plans = {
        BASE: steelworks.plan(model, example, packing=True),
        "plan, int8": steelworks.plan(model, example, packing=True, quantize="int8"),
        "plan, int8, padded": steelworks.plan(model, example, packing=False, quantize="int8"),
    }
    return {
        "model, float32, padded": lambda batch: model(**batch),
        "quantize_dynamic, padded": lambda batch: by_batch(**batch),
        **plans,
    }


def forwards(
    variants: dict[str, Call], batches: list[Batch], size: int, threads: int, repeats: int
) -> list[dict[str, Any]]:
    """All variants over all batches, in turns, every other turn in reverse order."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    worked: dict[str, list[float]] = {name: [] for name in variants}
    answers = {name: torch.cat([call(batch) for batch in batches]) for name, call in variants.items()}
    wanted = answers["model, float32, padded"]
    others = OtherLoad()
    for repeat in range(repeats):
        for name in list(variants)[:: 1 if repeat % 2 else -1]:
            call = variants[name]
            began, spent = time.perf_counter(), time.process_time()
            for batch in batches:
                call(batch)
            seconds[name].append((time.perf_counter() - began) / len(batches))
            worked[name].append((time.process_time() - spent) / len(batches))
    share = others.share()
    rows = []
    for name in variants:
        cosine = (answers[name] * wanted).sum(-1)
        ratios = [base / own for base, own in zip(seconds[BASE], seconds[name], strict=True)]
        cpu_ratios = [base / own for base, own in zip(worked[BASE], worked[name], strict=True)]
        rows.append(
            {
                "variant": name,
                "batch": size,
                "batches": len(batches),
                "threads": threads,
                "ms": Spread.of(1e3 * s for s in seconds[name]),
                "speed_against_plan_float32": Spread.of(ratios),
                "processor_ms": Spread.of(1e3 * s for s in worked[name]),
                "processor_time_against_plan_float32": Spread.of(cpu_ratios),
                "cosine_min": float(cosine.min()),
                "cosine_mean": float(cosine.mean()),
                "cores_used_by_others": share,
            }
        )
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def queues(model: nn.Module, texts: list[str], callers: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """A queue in float32 and one in int8, in turns; ratios are taken within a turn."""
    tokens = Tokens()
    requests = [tokens.features(text) for text in texts]
    rows = []
    for count in callers:
        rates: dict[str, list[float]] = {"float32": [], "int8": []}
        outputs: dict[str, list[torch.Tensor]] = {}
        others = OtherLoad()
        for repeat in range(repeats):
            for name in ("float32", "int8") if repeat % 2 else ("int8", "float32"):
                quantize: Any = "int8" if name == "int8" else None
                with steelworks.BatchQueue(
                    model, example=requests[0], quantize=quantize, max_wait=0.005
                ) as queue:
                    run_callers(queue, requests[:64], count)
                    run = run_callers(queue, requests, count)
                if run.failures:
                    raise next(iter(run.failures.values()))
                rates[name].append(run.throughput_rps)
                outputs[name] = run.outputs
        cosine = (torch.cat(outputs["int8"]) * torch.cat(outputs["float32"])).sum(-1)
        ratios = [new / old for new, old in zip(rates["int8"], rates["float32"], strict=True)]
        rows.append(
            {
                "callers": count,
                "float32_rps": [round(x, 1) for x in rates["float32"]],
                "int8_rps": [round(x, 1) for x in rates["int8"]],
                "ratio": Spread.of(ratios),
                "cosine_min": float(cosine.min()),
                "cosine_mean": float(cosine.mean()),
                "cores_used_by_others": others.share(),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds a batch, and speed against the plan in float32."""
    lines = [
        [
            f"{row['variant']}, batch {row['batch']}, {row['threads']} threads",
            f"{row['ms'].median:.2f}",
            "{0.median:.2f} ({0.min:.2f}-{0.max:.2f})".format(row["speed_against_plan_float32"]),
            "{0.median:.2f} ({0.min:.2f}-{0.max:.2f})".format(row["processor_time_against_plan_float32"]),
            f"{row['cosine_min']:.4f}",
            f"{row['cosine_mean']:.4f}",
        ]
        for row in rows
    ]
    return markdown_table(
        ["", "ms", "speed against plan, float32", "by processor time", "least cosine", "mean cosine"], lines
    )


def _vnni() -> bool:
    return bool(torch.cpu._is_vnni_supported())


if __name__ == "__main__":
    sys.exit(main())
