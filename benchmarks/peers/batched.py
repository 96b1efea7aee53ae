"""Mixedbread's ``batched``: its threaded and its asyncio processor.

It has one worker a processor. "N processors" makes several and deals the callers out evenly, which its
users can do by hand; it is among the candidates so that the package is not held back by one worker.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

from benchmarks._minilm import Tokens, encode_batch, load_encoder
from benchmarks.peers._system import AsyncSystem, Setting, System


class _Request(tuple[int, ...]):
    """Token ids of one request: ``batched`` would take a list for several requests."""

    def __new__(cls, ids: Sequence[int]) -> _Request:
        return super().__new__(cls, ids)


class BatchedThreads(System):
    """``batched.dynamically`` called from threads."""

    name = "batched"
    package = "batched"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One worker with all cores, or a processor a core; with its default wait of 5 ms, or 1 ms."""
        found = [Setting(f"1 worker x {cores} threads, 5 ms", cores, {"processors": 1, "timeout_ms": 5.0})]
        if cores > 1:
            for wait in (5.0, 1.0):
                options = {"processors": cores, "timeout_ms": wait}
                found.append(Setting(f"{cores} processors x 1 thread, {wait:.0f} ms", 1, options))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Load the model and make the processors."""
        import batched

        model = load_encoder()
        self._tokens = Tokens()

        def embed(ids: list[_Request]) -> list[Any]:
            return list(encode_batch(model, ids))

        make = batched.dynamically(batch_size=32, timeout_ms=setting.options["timeout_ms"])
        self._processors = [make(embed) for _ in range(setting.options["processors"])]
        self._deal = itertools.count()
        self._mine = threading.local()

    def call(self, text: str) -> Any:
        """A thread stays with the processor it was dealt."""
        if not hasattr(self._mine, "processor"):
            self._mine.processor = self._processors[next(self._deal) % len(self._processors)]
        return self._mine.processor(_Request(self._tokens(text)))

    def details(self) -> dict[str, Any]:
        """Mean batch size of each processor."""
        return {"mean_batch": [round(p.stats.avg_batch_size, 1) for p in self._processors]}

    def stop(self) -> None:
        """Shut the processors down."""
        for processor in self._processors:
            processor.shutdown()


class BatchedAsyncio(AsyncSystem):
    """``batched.aio.dynamically`` called from asyncio tasks."""

    name = "batched_asyncio"
    package = "batched"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """In order; with its own sorting by length and batches of 16 or 32; a processor a core."""
        one = f"1 worker x {cores} threads, 5 ms"
        found = [
            Setting(one, cores, {"processors": 1, "sort": False, "batch_size": 32}),
            Setting(
                f"{one}, length sort, batch 16", cores, {"processors": 1, "sort": True, "batch_size": 16}
            ),
        ]
        if cores > 1:
            several = f"{cores} processors x 1 thread, 5 ms, length sort"
            options = {"processors": cores, "sort": True, "batch_size": 16}
            found.append(Setting(f"{several}, batch 16", 1, options))
            found.append(Setting(f"{several}, batch 8", 1, {**options, "batch_size": 8}))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Load the model and make the processors; their tasks start with the first call."""
        from batched import aio
        from batched.types import PriorityStrategy

        model = load_encoder()
        self._tokens = Tokens()
        options = setting.options

        def embed(ids: list[_Request]) -> list[Any]:
            return list(encode_batch(model, ids))

        make = aio.dynamically(
            batch_size=options["batch_size"],
            timeout_ms=5.0,
            small_batch_threshold=0,  # else single requests are never sorted
            priority_strategy=PriorityStrategy.LENGTH if options["sort"] else PriorityStrategy.NONE,
        )
        self._processors = [make(embed) for _ in range(options["processors"])]
        self._deal = itertools.cycle(self._processors)

    async def acall(self, text: str) -> Any:
        """Tokenise in the caller's task, await the vector."""
        return await next(self._deal)(_Request(self._tokens(text)))

    def details(self) -> dict[str, Any]:
        """Mean batch size of each processor."""
        return {"mean_batch": [round(p.stats.avg_batch_size, 1) for p in self._processors]}
