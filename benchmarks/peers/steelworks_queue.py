"""Steelworks' own ``BatchQueue``: with its default settings, with a wait, and bit-identical."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks._minilm import Tokens, load_encoder
from benchmarks.peers._system import AsyncSystem, Setting, System


class Steelworks(System):
    """``queue(x)`` from threads."""

    name = "steelworks"
    deterministic = False

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """The defaults."""
        return (Setting("defaults", options={"max_batch_size": 32}),)

    def start(self, setting: Setting) -> None:
        """Load the model and open the queue, which warms itself up."""
        import steelworks

        self._tokens = Tokens()
        self._queue = steelworks.BatchQueue(
            load_encoder(),
            device="cpu",
            num_workers=None,
            example=self._tokens.features("One sentence to warm up with."),
            deterministic=self.deterministic,
            **setting.options,
        ).__enter__()

    def call(self, text: str) -> Any:
        """Tokenise in the caller's thread, wait for the vector."""
        return self._queue(self._tokens.features(text))

    def details(self) -> dict[str, Any]:
        """The queue's own statistics."""
        statistics = getattr(self._queue, "statistics", None)
        if statistics is None:
            return {}
        found = statistics()
        return {"statistics": dataclasses.asdict(found) if dataclasses.is_dataclass(found) else repr(found)}

    def stop(self) -> None:
        """Close the queue."""
        self._queue.__exit__(None, None, None)


class SteelworksMaxWait(Steelworks):
    """The same, and a free worker may wait 5 ms for the callers it just answered to come back."""

    name = "steelworks_max_wait"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One setting: the wait."""
        return (Setting("max_wait 5 ms", options={"max_batch_size": 32, "max_wait": 0.005}),)


class SteelworksDeterministic(Steelworks):
    """The same with bit-identical answers whatever the batch mates."""

    name = "steelworks_deterministic"
    deterministic = True


class SteelworksAsyncio(AsyncSystem, Steelworks):
    """``await queue.asubmit(x)`` from asyncio tasks."""

    name = "steelworks_asyncio"

    async def acall(self, text: str) -> Any:
        """Tokenise in the caller's task, await the vector."""
        return await self._queue.asubmit(self._tokens.features(text))

    def stop(self) -> None:
        """Close the loop, then the queue."""
        AsyncSystem.stop(self)
        Steelworks.stop(self)
