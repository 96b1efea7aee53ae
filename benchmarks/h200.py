"""The queue on one NVIDIA GPU against stock threads, processes and its own floor; all in one run.

    python -m benchmarks.h200 --json benchmarks/results/h200.json

The model has MiniLM-L6's shape (6 layers, 384 wide, 12 heads), float16, random weights: speed does not
depend on the weights. A request is one row. Every figure is a synchronized wall-clock measurement over at
least ``--seconds`` seconds, repeated ``--repeats`` times; the table gives the median and the spread.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import gc
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import steelworks as sw
from benchmarks._common import environment, write_json

HIDDEN, LAYERS, HEADS, VOCABULARY = 384, 6, 12, 30522


class Encoder(nn.Module):
    """A BERT encoder of MiniLM's shape with mean pooling; [B, L] token ids (and mask) to [B, 384]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN,
            attn_implementation="sdpa",
        )
        self.config = config
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            return states.mean(1)
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1).clamp(min=1e-4)


class Convolutional(nn.Module):
    """A small residual network for 3 x 64 x 64 images: [B, 3, 64, 64] to [B, 256]."""

    def __init__(self) -> None:
        super().__init__()

        def block(n: int, m: int, stride: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(n, m, 3, stride, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU(),
                nn.Conv2d(m, m, 3, 1, 1, bias=False), nn.BatchNorm2d(m), nn.ReLU(),
            )  # fmt: skip

        self.body = nn.Sequential(block(3, 32, 2), block(32, 64, 2), block(64, 128, 2), block(128, 256, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


class Decoder(nn.Module):
    """A causal decoder of GPT-2's form; [B, L] token ids to the last position's logits [B, 8192]."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.config = GPT2Config(
            vocab_size=8192, n_positions=256, n_embd=384, n_layer=6, n_head=6, use_cache=False,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.lm = GPT2LMHeadModel(self.config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.lm(input_ids=input_ids, use_cache=False, logits_to_keep=1).logits[:, -1]


def half(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return model.eval().half().cuda()


def ids(length: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(1000, VOCABULARY, (1, length), generator=generator)


def settle() -> None:
    """What a service does after warm-up: keep the collector from going through the model again and again."""
    gc.collect()
    gc.freeze()


def closed_loop(
    call: Callable[[Any], Any], requests: list[Any], callers: int, seconds: float
) -> tuple[float, list[float]]:
    """Requests a second, and each call's seconds, of threads that call as fast as answers come."""
    stop = threading.Event()
    start = threading.Barrier(callers + 1)
    latencies: list[list[float]] = [[] for _ in range(callers)]
    errors: list[BaseException] = []

    def caller(number: int) -> None:
        mine = latencies[number]
        at = number
        try:
            for _ in range(20):
                call(requests[at % len(requests)])
                at += callers
            start.wait()
            while not stop.is_set():
                began = time.perf_counter()
                call(requests[at % len(requests)])
                mine.append(time.perf_counter() - began)
                at += callers
        except BaseException as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if errors:
        raise errors[0]
    every = [value for mine in latencies for value in mine]
    return len(every) / took, every


def tasks_loop(queue: sw.BatchQueue, requests: list[Any], tasks: int, seconds: float) -> float:
    """Requests a second of ``tasks`` asyncio tasks in one event loop."""
    done = 0

    async def main() -> float:
        nonlocal done
        end = time.perf_counter() + seconds

        async def task(number: int) -> int:
            count, at = 0, number
            while time.perf_counter() < end:
                await queue.asubmit(requests[at % len(requests)])
                at += tasks
                count += 1
            return count

        await asyncio.gather(*(queue.asubmit(requests[n % len(requests)]) for n in range(tasks)))
        began = time.perf_counter()
        done = sum(await asyncio.gather(*(task(n) for n in range(tasks))))
        return time.perf_counter() - began

    took = asyncio.run(main())
    return done / took


def mapped(queue: sw.BatchQueue, requests: list[Any], seconds: float, window: int | None = None) -> float:
    """Requests a second of one caller of ``map``."""

    def endless(end: float) -> Any:
        while time.perf_counter() < end:
            yield from requests

    for _ in queue.map(requests, window=window):
        pass
    began = time.perf_counter()
    count = sum(1 for _ in queue.map(endless(began + seconds), window=window))
    return count / (time.perf_counter() - began)


def percentile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Results:
    """Rows of the table, each a few repeats of one figure."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.rows: dict[str, dict[str, Any]] = {}

    def add(
        self, name: str, measure: Callable[[], float], unit: str = "req/s", repeats: int | None = None
    ) -> float:
        settle()
        values = [measure() for _ in range(repeats or self.repeats)]
        row = {"median": statistics.median(values), "min": min(values), "max": max(values), "unit": unit}
        self.rows[name] = row
        print(
            f"{name:58s} {row['median']:12,.1f} [{row['min']:,.1f} .. {row['max']:,.1f}] {unit}", flush=True
        )
        return row["median"]

    def ratio(self, name: str, top: float, bottom: float, must: float, aim: float, unit: str = "x") -> None:
        value = top / bottom
        self.rows[name] = {"value": value, "must": must, "aim": aim, "unit": unit, "met": value >= must}
        verdict = "met" if value >= must else "MISSED"
        print(f"  -> {name:55s} {value:8.2f} {unit}  (must {must}, aim {aim}) {verdict}", flush=True)


def stock(model: nn.Module) -> Callable[[Any], torch.Tensor]:
    """What people write: move, call, move back."""

    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x.cuda()).cpu()

    return call


def _process(kind: str, ready: Any, go: Any, out: Any, seconds: float) -> None:
    torch.set_num_threads(1)
    model = half(Encoder())
    x = ids(32, torch.Generator().manual_seed(0))
    if kind == "graphs":
        plan = sw.plan(model, x, batch_sizes=[1], max_batch_size=1)
        call: Callable[[Any], Any] = plan
    else:
        call = stock(model)
    for _ in range(20):
        call(x)
    ready.release()
    go.wait()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        call(x)
        count += 1
    out.put(count / (time.perf_counter() - began))


def processes(kind: str, count: int, seconds: float) -> float:
    """Requests a second of ``count`` processes, each with the model and a loop of its own."""
    context = multiprocessing.get_context("spawn")
    ready, go, out = context.Semaphore(0), context.Event(), context.Queue()
    workers = [context.Process(target=_process, args=(kind, ready, go, out, seconds)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for _ in workers:
        if not ready.acquire(timeout=240):
            raise RuntimeError("a process did not start")
    go.set()
    total = sum(out.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    return total


def encoder_section(results: Results, seconds: float, tag: str, sizes: list[int], express: int) -> None:
    """All rows for the encoder at length 32: ``as is``, ``compiled`` by torch.compile, or ``accelerated``."""
    compile = tag == "compiled"
    generator = torch.Generator().manual_seed(1)
    requests = [ids(32, generator) for _ in range(1024)]
    model = half(Encoder())
    call = stock(copy.deepcopy(model))
    reference = [call(x) for x in requests[:64]]
    if tag == "accelerated":
        report = sw.accelerate(model)
        print(f"accelerate changed {len(report.changed)} modules")
    results.add(f"{tag}: stock, 1 thread", lambda: closed_loop(call, requests, 1, seconds)[0])
    threads_8 = results.add(f"{tag}: stock, 8 threads", lambda: closed_loop(call, requests, 8, seconds)[0])

    began = time.perf_counter()
    big = sw.BatchQueue(
        model, max_batch_size=512, example=requests[0], batch_sizes=sizes, compile=compile, padding=None
    )
    print(f"capture took {time.perf_counter() - began:.1f} s")
    worst = max(float((a - b).abs().max()) for a, b in zip(big.map(requests[:64]), reference, strict=True))
    print(f"largest difference from stock: {worst:.2e} (float16)")
    results.rows[f"{tag}: max_abs_difference"] = {"value": worst, "unit": "float16"}
    group = next(iter(big.plan.reader._groups.values()))
    seconds_of = group.state[("table", 0)]._seconds
    rates = {size: size / t for size, t in seconds_of.items()}
    for size, t in seconds_of.items():
        print(f"  graph b={size:4d} {t * 1e6:8.1f} us {rates[size]:10,.0f} rows/s")
    best = max(rates.values())
    results.rows[f"{tag}: best single graph"] = {"value": best, "unit": "req/s", "by_size": rates}

    small = [size for size in sizes if size <= 16]
    queue = sw.BatchQueue(
        model, max_batch_size=16, example=requests[0], batch_sizes=small, compile=compile, padding=None,
        express=express,
    )  # fmt: skip
    rate_of = {}
    for callers in (1, 2, 4, 8, 16, 32):
        rate_of[callers] = results.add(
            f"{tag}: queue, {callers} blocking callers",
            lambda n=callers: closed_loop(queue, requests, n, seconds)[0],
        )
    results.ratio(f"{tag}: 8 callers against stock threads", rate_of[8], threads_8, 62, 90)
    results.ratio(f"{tag}: 8-thread efficiency", 100 * rate_of[8] / 8, rate_of[1], 80, 95, "%")
    _latency(results, tag, queue, queue.plan, call, requests)
    queue.close()

    rate = results.add(f"{tag}: queue, map from one caller", lambda: mapped(big, requests, seconds))
    results.ratio(f"{tag}: map against the best single graph", 100 * rate, best, 85, 95, "%")
    for tasks, must, aim in ((512, 100_000, 160_000), (2048, 180_000, 210_000)):
        rate = results.add(
            f"{tag}: queue, {tasks} asyncio tasks", lambda n=tasks: tasks_loop(big, requests, n, seconds)
        )
        results.ratio(f"{tag}: {tasks} asyncio tasks", rate, 1.0, must, aim, "req/s")
    big.close()
    if tag != "as is":
        eager_8 = results.add(f"{tag}: 8 processes, eager", lambda: processes("eager", 8, seconds), repeats=1)
        graphs_8 = results.add(
            f"{tag}: 8 processes, graphs", lambda: processes("graphs", 8, seconds), repeats=1
        )
        results.ratio(
            f"{tag}: 8 callers against the better of these", rate_of[8], max(eager_8, graphs_8), 8, 12
        )


def _latency(results: Results, tag: str, queue: Any, plan: Any, call: Any, requests: list[Any]) -> None:
    """Added latency of an unloaded queue against its own plan called directly, interleaved."""
    direct, queued, eager = [], [], []
    for x in requests[:400]:
        began = time.perf_counter()
        plan(x)
        middle = time.perf_counter()
        queue(x)
        after = time.perf_counter()
        call(x)
        eager.append(time.perf_counter() - after)
        direct.append(middle - began)
        queued.append(after - middle)
    medians = [statistics.median(v[20:]) * 1e6 for v in (direct, queued, eager)]
    print(f"one caller: plan {medians[0]:.1f} us, queue {medians[1]:.1f} us, stock {medians[2]:.1f} us")
    added = medians[1] - medians[0]
    results.rows[f"{tag}: added latency against its plan"] = {
        "value": added, "must": 40, "aim": 20, "unit": "us", "met": added < 40,
        "plan_us": medians[0], "queue_us": medians[1], "stock_us": medians[2],
        "queue_p99_us": percentile(queued[20:], 0.99) * 1e6,
    }  # fmt: skip


def mixed_section(results: Results, seconds: float) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(16, 257, (1024,), generator=generator).tolist()
    requests = []
    for length in lengths:
        x = ids(length, generator)
        requests.append({"input_ids": x, "attention_mask": torch.ones_like(x)})
    model = half(Encoder())

    def call(request: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return model(**{name: t.cuda() for name, t in request.items()}).cpu()

    stock_8 = results.add(
        "lengths 16-256: stock, 8 threads", lambda: closed_loop(call, requests, 8, seconds)[0]
    )
    began = time.perf_counter()
    with sw.BatchQueue(
        model,
        max_batch_size=64,
        example=requests[0],
        lengths=[32, 64, 96, 128, 192, 256],
        express=4,
        batch_sizes=[1, 2, 4, 8, 16, 32, 64],
    ) as queue:
        print(f"capture took {time.perf_counter() - began:.1f} s")
        worst = max(
            float((a - call(r)).abs().max())
            for a, r in zip(queue.map(requests[:64]), requests[:64], strict=True)
        )
        print(f"largest difference from stock: {worst:.2e} (float16)")
        for callers in (8, 64):
            rate = results.add(
                f"lengths 16-256: queue, {callers} callers",
                lambda n=callers: closed_loop(queue, requests, n, seconds)[0],
            )
            results.ratio(f"lengths 16-256: {callers} callers against stock threads", rate, stock_8, 1, 1)
        results.add("lengths 16-256: queue, map", lambda: mapped(queue, requests, seconds))


def other_models(results: Results, seconds: float) -> None:
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(1, 3, 64, 64, generator=generator).half() for _ in range(64)]
    tokens = [torch.randint(0, 8192, (1, 64), generator=generator) for _ in range(256)]
    for name, model, requests in (
        ("convolutional", half(Convolutional()), images),
        ("decoder", half(Decoder()), tokens),
    ):
        _other_model(results, seconds, name, model, requests)


def _other_model(results: Results, seconds: float, name: str, model: nn.Module, requests: list[Any]) -> None:
    call = stock(model)
    stock_8 = results.add(f"{name}: stock, 8 threads", lambda: closed_loop(call, requests, 8, seconds)[0])
    with sw.BatchQueue(model, max_batch_size=64, example=requests[0], padding=None, express=16) as queue:
        answers = list(queue.map(requests[:32]))
        worst = max(float((a - call(x)).abs().max()) for a, x in zip(answers, requests[:32], strict=True))
        print(f"largest difference from stock: {worst:.2e} (float16)")
        rate = results.add(f"{name}: queue, 8 callers", lambda: closed_loop(queue, requests, 8, seconds)[0])
        results.ratio(f"{name}: 8 callers against stock threads", rate, stock_8, 1, 1)
        results.add(f"{name}: queue, map", lambda: mapped(queue, requests, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--sections", nargs="+", default=["encoder", "compiled", "accelerated", "mixed", "models"]
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--express", type=int, default=16, help="callers that may run a graph themselves")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no CUDA device here; this benchmark needs one")
    results = Results(arguments.repeats)
    for name, tag in (("encoder", "as is"), ("compiled", "compiled"), ("accelerated", "accelerated")):
        if name in arguments.sections:
            encoder_section(results, arguments.seconds, tag, arguments.sizes, arguments.express)
    if "mixed" in arguments.sections:
        mixed_section(results, arguments.seconds)
    if "models" in arguments.sections:
        other_models(results, arguments.seconds)
    if arguments.json:
        record = {"environment": environment(), "arguments": vars(arguments), "results": results.rows}
        record["environment"]["gpu"] = torch.cuda.get_device_name()
        write_json(arguments.json, record)


if __name__ == "__main__":
    main()
