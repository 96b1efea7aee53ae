"""``async-batcher``: an asyncio batcher that runs batches in an executor."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks._minilm import Tokens, encode_batch, load_encoder
from benchmarks.peers._system import AsyncSystem, Setting


class AsyncBatcherSystem(AsyncSystem):
    """``AsyncBatcher.process`` awaited by tasks."""

    name = "async_batcher"
    package = "async-batcher"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One batch at a time with all cores, or one a core (its ``concurrency``); it waits 10 or 2 ms."""
        one = {"workers": 1, "wait_s": 0.010, "batch_size": 32}
        found = [Setting(f"1 worker x {cores} threads, 10 ms", cores, one)]
        if cores > 1:
            for wait, size in ((0.010, 32), (0.002, 32), (0.002, 16)):
                name = f"{cores} workers x 1 thread, {wait * 1e3:.0f} ms, batch {size}"
                found.append(Setting(name, 1, {"workers": cores, "wait_s": wait, "batch_size": size}))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Load the model; the batcher is made inside the loop, to which its queue is bound."""
        self._model = load_encoder()
        self._tokens = Tokens()
        self._options = setting.options
        self._executor = ThreadPoolExecutor(setting.options["workers"])
        self._batcher: Any = None
        self._sizes: list[int] = []

    async def acall(self, text: str) -> Any:
        """Tokenise in the caller's task, await the vector."""
        if self._batcher is None:
            self._batcher = self._make()
        return await self._batcher.process(item=self._tokens(text))

    def _make(self) -> Any:
        from async_batcher.batcher import AsyncBatcher

        model, sizes = self._model, self._sizes

        class Embed(AsyncBatcher):  # type: ignore[misc]
            def process_batch(self, batch: list[list[int]]) -> list[Any]:
                sizes.append(len(batch))
                return list(encode_batch(model, batch))

        options = self._options
        return Embed(
            max_batch_size=options["batch_size"],
            max_queue_time=options["wait_s"],
            concurrency=options["workers"],
            executor=self._executor,
        )

    def details(self) -> dict[str, Any]:
        """Mean batch size."""
        return {"mean_batch": round(sum(self._sizes) / max(len(self._sizes), 1), 1)}

    def stop(self) -> None:
        """Stop the batcher and close the loop."""
        if self._runner is not None and self._batcher is not None:
            self._runner.run(self._batcher.stop(force=True))
        super().stop()
        self._executor.shutdown()
