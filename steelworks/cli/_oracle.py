"""The offline oracle: the same requests, all known in advance, in the best order.

Requests are prepared, sorted by length and run in batches of the queue's largest size. No queue
that meets its requests one by one can know as much; how near it comes is its efficiency.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from steelworks.cli._load import Progress, Run, tensors_of
from steelworks.cli._workload import Workload, call_model, map_tensors


@dataclass(frozen=True)
class OracleSettings:
    """One way to spend the cores.

    Attributes:
        workers: threads that each run one batch at a time.
        threads_per_worker: intra-op threads a worker may use.
        batch_size: largest batch.
    """

    workers: int
    threads_per_worker: int
    batch_size: int = 32


def run_oracle(
    workload: Workload,
    requests: Sequence[Any],
    device: torch.device,
    settings: OracleSettings,
    progress: Progress | None = None,
) -> Run:
    """Run ``requests`` in the oracle's order.

    The clock includes preparing the requests. A request's latency is the time of its batch alone:
    offline, nobody waits. A batch that raises counts as an error for each of its requests.
    """
    run = Run(0.0, [None] * len(requests), [None] * len(requests))

    def run_batch(indices: list[int]) -> None:
        began = time.perf_counter()
        try:
            outputs = _run_together(workload.model, [prepared[i] for i in indices], device)
        except Exception as error:
            run.failures.update(dict.fromkeys(indices, error))
            return
        seconds = time.perf_counter() - began
        for index, output in zip(indices, outputs, strict=True):
            run.latencies[index], run.outputs[index] = seconds, output

    with intra_op_threads(settings.threads_per_worker), ThreadPoolExecutor(settings.workers) as pool:
        warm = [workload.prepare(request) for request in requests[: settings.batch_size]]
        longest = max(warm, key=_length)
        for ready in [
            pool.submit(_quietly, workload.model, longest, device) for _ in range(settings.workers)
        ]:
            ready.result()
        began = time.perf_counter()
        prepared = list(pool.map(workload.prepare, requests))
        done = 0
        batches = batches_by_length(prepared, settings.batch_size)
        # The longest batches first, so that no worker is left with one at the end.
        for batch, _ in zip(reversed(batches), pool.map(run_batch, reversed(batches)), strict=True):
            done += len(batch)
            if progress is not None:
                progress(done)
        run.seconds = time.perf_counter() - began
    return run


def batches_by_length(prepared: Sequence[Any], batch_size: int) -> list[list[int]]:
    """Cut the requests, sorted by length, into batches that can run together; as indices."""
    order = sorted(range(len(prepared)), key=lambda i: (_length(prepared[i]), str(_signature(prepared[i]))))
    batches: list[list[int]] = []
    for index in order:
        if batches and len(batches[-1]) < batch_size and _fit(prepared[batches[-1][0]], prepared[index]):
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


@contextmanager
def intra_op_threads(count: int) -> Iterator[None]:
    """Let threads that start inside the ``with`` block use ``count`` cores each."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_together(model: nn.Module, items: list[Any], device: torch.device) -> list[Any]:
    """Run ``items`` as one batch and cut the result into one output an item."""
    if len(items) == 1:
        return [call_model(model, items[0], device)]
    rows = [_rows(item) for item in items]
    lengths = [_length(item) for item in items]
    padded = max(lengths)
    output = call_model(model, _collate(items, padded), device)
    outputs, start = [], 0
    for count, length in zip(rows, lengths, strict=True):
        cut = _cutter(start, count, length, padded if _is_ragged(items[0]) else None)
        outputs.append(map_tensors(cut, output))
        start += count
    return outputs


def _cutter(
    start: int, count: int, length: int, padded: int | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    def cut(tensor: torch.Tensor) -> torch.Tensor:
        own = tensor[start : start + count]
        if padded is not None and own.dim() >= 3 and own.shape[1] == padded:
            own = own[:, :length]  # a result a token, such as hidden states
        return own

    return cut


def _collate(items: list[Any], padded: int) -> Any:
    first = items[0]
    if _is_ragged(first):
        return {key: torch.cat([_pad(item[key], _length(item), padded) for item in items]) for key in first}
    if isinstance(first, Mapping):
        return {key: torch.cat([item[key] for item in items]) for key in first}
    if isinstance(first, list | tuple):
        return tuple(torch.cat(column) for column in zip(*items, strict=True))
    return torch.cat(items)


def _pad(tensor: torch.Tensor, length: int, padded: int) -> torch.Tensor:
    if tensor.dim() < 2 or tensor.shape[1] != length:
        return tensor
    return functional.pad(tensor, [0, 0] * (tensor.dim() - 2) + [0, padded - length])


def _is_ragged(item: Any) -> bool:
    """Whether items of different lengths may be padded: the model is told by an attention mask."""
    return isinstance(item, Mapping) and "attention_mask" in item


def _fit(one: Any, other: Any) -> bool:
    return _signature(one) == _signature(other)


def _signature(item: Any) -> tuple[Any, ...]:
    """What must agree for items to share a batch: all but the rows, and the length if it is masked."""
    skip = 2 if _is_ragged(item) else 1
    return tuple((tensor.dtype, tensor.dim(), tuple(tensor.shape[skip:])) for tensor in tensors_of(item))


def _rows(item: Any) -> int:
    return int(tensors_of(item)[0].shape[0])


def _length(item: Any) -> int:
    """Tokens of a request: the size of dimension 1, where it is there."""
    tensors = [item["attention_mask"]] if _is_ragged(item) else tensors_of(item)
    return int(tensors[0].shape[1]) if tensors and tensors[0].dim() > 1 else 1


def _quietly(model: nn.Module, x: Any, device: torch.device) -> None:
    """A warm-up call; the same call is counted when it is timed."""
    try:
        call_model(model, x, device)
    except Exception:
        return
