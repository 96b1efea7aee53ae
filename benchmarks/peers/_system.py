"""What a measured system is: settings to choose from, a start, one way to send requests, a stop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from benchmarks._load import LoadResult, closed_loop_tasks, closed_loop_threads


@dataclass(frozen=True)
class Setting:
    """One way to configure a system.

    Attributes:
        name: Short text for tables.
        torch_threads: Intra-op threads of each worker; None leaves torch's default.
        options: What the system's ``start`` reads.
        environment: Extra environment variables of the measuring process.
    """

    name: str
    torch_threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


class System:
    """Base of all measured systems; lives in a fresh process of its own.

    ``start`` is not timed. ``call`` answers one sentence, from any number of threads.
    """

    name: ClassVar[str]
    package: ClassVar[str | None] = None
    offline: ClassVar[bool] = False

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """Candidates on a machine of ``cores`` cores; the first is the best guess, used without tuning."""
        raise NotImplementedError

    def start(self, setting: Setting) -> None:
        """Load the model and make ready to serve."""
        raise NotImplementedError

    def call(self, text: str) -> Any:
        """Tokenise ``text`` and return its vector, as anything numpy can read with 384 values."""
        raise NotImplementedError

    def measure(self, texts: Sequence[str], callers: int, limit_s: float) -> LoadResult:
        """Answer all ``texts`` for ``callers`` callers in a closed loop."""
        return closed_loop_threads(self.call, texts, callers, limit_s)

    def details(self) -> dict[str, Any]:
        """What the system reports about itself after the load, for the record."""
        return {}

    def stop(self) -> None:
        """End everything ``start`` began."""


class AsyncSystem(System):
    """A system whose callers are asyncio tasks of one loop."""

    _runner: asyncio.Runner | None = None

    async def acall(self, text: str) -> Any:
        """As ``call``, awaited."""
        raise NotImplementedError

    def measure(self, texts: Sequence[str], callers: int, limit_s: float) -> LoadResult:
        """As for threads, with one task a caller."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(closed_loop_tasks(self.acall, texts, callers, limit_s))

    def stop(self) -> None:
        """Close the loop."""
        if self._runner is not None:
            self._runner.close()
