"""How a queue behaves: one frozen dataclass, checked when it is made."""

from __future__ import annotations

import numbers
import threading
from dataclasses import dataclass
from typing import Literal

Overflow = Literal["block", "reject", "drop_oldest"]


@dataclass(frozen=True)
class QueueOptions:
    """Options of a :class:`steelworks.BatchQueue`.

    Attributes:
        max_batch_size: the most rows in one batch.
        max_pending: the most requests that wait; ``overflow`` says what happens to more.
        overflow: ``"block"``: the caller waits; ``"reject"``: it gets ``QueueFullError``;
            ``"drop_oldest"``: the request that waited longest ends with ``QueueFullError``.
        max_wait: seconds a free worker may wait for a batch to fill. It waits only while requests are
            expected, going by how many were in flight lately, and stops doing so where that did not pay.
            0 (the default) never waits: whatever is there runs as soon as a worker is free.
        aging: seconds of waiting that count as one step of priority.
        batch_timeout: seconds after which a running batch is given up: its requests end with
            ``WorkerHungError`` and another worker takes over. None never gives up.
        deterministic: results are bit-identical whatever a request was batched with (I3).
        num_workers: worker threads; None for the device's default.
        depth: batches a worker keeps in flight; None for the device's default.
        express: how many callers may run a captured plan on their own threads while nothing waits, which
            saves two thread switches (CUDA graphs only).
        name: name of the queue in metrics, logs and thread names.
    """

    max_batch_size: int = 32
    max_pending: int = 8192
    overflow: Overflow = "block"
    max_wait: float = 0.0
    aging: float = 1.0
    batch_timeout: float | None = None
    deterministic: bool = False
    num_workers: int | None = None
    depth: int | None = None
    express: int = 8
    name: str = "steelworks"

    def __post_init__(self) -> None:
        _at_least("max_batch_size", self.max_batch_size, 1)
        _at_least("max_pending", self.max_pending, 1)
        if self.num_workers is not None:
            _at_least("num_workers", self.num_workers, 1)
        if self.depth is not None:
            _at_least("depth", self.depth, 1)
        _at_least("express", self.express, 0)
        if self.overflow not in ("block", "reject", "drop_oldest"):
            raise ValueError(f"overflow is {self.overflow!r}; it must be 'block', 'reject' or 'drop_oldest'")
        for name in ("max_wait", "aging", "batch_timeout"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) and not (name == "batch_timeout" and value is None):
                raise ValueError(f"{name} is {value!r}; it must be a number, in seconds")
        if not 0.0 <= self.max_wait <= threading.TIMEOUT_MAX:
            raise ValueError(
                f"max_wait is {self.max_wait}; it is in seconds and must be finite and 0 or more"
            )
        if not self.aging > 0.0:
            raise ValueError(f"aging is {self.aging}; it is in seconds and must be more than 0")
        if self.batch_timeout is not None and not self.batch_timeout > 0.0:
            raise ValueError(
                f"batch_timeout is {self.batch_timeout}; it is in seconds and must be more than 0, or None"
            )


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of {least} or more")
