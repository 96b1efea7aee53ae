"""The offline oracle: all requests known beforehand, sorted by length, batches of 32, nothing to wait for.

It runs the same model on the same requests and tokenises them too. No queue that pads whole batches can
beat it by scheduling alone.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import numpy as np

from benchmarks._load import LoadResult
from benchmarks._minilm import Tokens, encode_batch, load_encoder
from benchmarks.peers._system import Setting, System

BATCH = 32
_worker_model: Any = None


def _load_in_worker() -> None:
    global _worker_model
    import torch

    torch.set_num_threads(1)
    _worker_model = load_encoder()
    encode_batch(_worker_model, [[101, 102]])


def _encode_in_worker(ids: list[list[int]]) -> np.ndarray:
    return encode_batch(_worker_model, ids)


def _pid() -> int:
    time.sleep(0.5)  # long enough that every worker takes one
    return os.getpid()


class Oracle(System):
    """Sorted batches from one thread with all cores, or from a thread or process a core."""

    name = "oracle"
    offline = True

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One worker with all cores; a thread a core; a process a core."""
        found = [Setting(f"1 worker x {cores} threads", cores, {"kind": "one"})]
        if cores > 1:
            found.insert(0, Setting(f"{cores} threads x 1 thread", 1, {"kind": "threads", "workers": cores}))
            found.append(Setting(f"{cores} processes x 1 thread", 1, {"kind": "processes", "workers": cores}))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Load the model, in each worker process where those are used."""
        self._tokens = Tokens()
        self._pool: Any = None
        kind = setting.options["kind"]
        if kind == "processes":
            workers = setting.options["workers"]
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_load_in_worker)
            for started in [self._pool.submit(_pid) for _ in range(workers)]:
                started.result()
            self._encode = _encode_in_worker
            return
        model = load_encoder()
        self._encode = lambda ids: encode_batch(model, ids)
        if kind == "threads":
            self._pool = ThreadPoolExecutor(setting.options["workers"])

    def measure(self, texts: Sequence[str], callers: int, limit_s: float) -> LoadResult:
        """Run the sorted batches, longest first so that workers end together; ``callers`` is not used."""
        began = time.perf_counter()
        ids = [self._tokens(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        groups = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
        outputs: list[Any] = [None] * len(texts)
        done_ms = np.full(len(texts), np.nan)
        lock = threading.Lock()

        def keep(group: list[int], vectors: np.ndarray) -> None:
            now = (time.perf_counter() - began) * 1e3
            with lock:
                for row, number in enumerate(group):
                    outputs[number] = vectors[row]
                    done_ms[number] = now

        if self._pool is None:
            for group in groups:
                keep(group, self._encode([ids[i] for i in group]))
        else:
            pending: list[Future[Any]] = []
            for group in groups:
                future = self._pool.submit(self._encode, [ids[i] for i in group])
                future.add_done_callback(lambda f, group=group: keep(group, f.result()))
                pending.append(future)
            for future in pending:
                future.result(timeout=limit_s)
        wall = time.perf_counter() - began
        return LoadResult(done_ms, outputs, wall)

    def stop(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.shutdown()
