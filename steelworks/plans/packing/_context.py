"""What a packed call carries while it runs, and the switch that turns packing off for a caller.

Both live in context variables: they belong to the calling thread (or asyncio task) and not to the
module, so threads that call the same module at the same time do not see each other's batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch


class CannotPackError(Exception):
    """Something can't be packed, and runs padded. Never reaches the user.

    Attributes:
        of_call: whether the reason lies in one call's mask rather than in the model.
    """

    def __init__(self, reason: str, of_call: bool = False) -> None:
        super().__init__(reason)
        self.of_call = of_call


class PackedCall:
    """One packed run of one encoder.

    Attributes:
        lengths: the number of tokens of each sequence, in packed order.
        total: their sum.
        longest: the largest of them.
        prefix: whether every sequence is the start of its row, without holes.
        attention_calls: how often attention ran so far.
        window: the masks handed out for windowed attention, bool [1, 1, longest, longest].
    """

    __slots__ = ("attention_calls", "lengths", "longest", "prefix", "total", "window")

    def __init__(self, lengths: list[int], prefix: bool) -> None:
        self.lengths = lengths
        self.total = sum(lengths)
        self.longest = max(lengths)
        self.prefix = prefix
        self.attention_calls = 0
        self.window: list[torch.Tensor] = []


# The packed call that the current context is inside of, if any.
current: ContextVar[PackedCall | None] = ContextVar("steelworks_packed_call", default=None)

# Which encoders may pack in the current context: one entry an encoder, None for all others.
_switch: ContextVar[Mapping[Any, bool]] = ContextVar("steelworks_packing_switch", default={None: True})  # noqa: B039

# Where packed calls of the current context are noted, for verify and tests.
_log: ContextVar[list[list[int]] | None] = ContextVar("steelworks_packing_log", default=None)


@contextmanager
def disabled() -> Iterator[None]:
    """Run padded inside the ``with`` block, for the calling thread or task only."""
    token = _switch.set({None: False})
    try:
        yield
    finally:
        _switch.reset(token)


@contextmanager
def switched(subjects: tuple[Any, ...], value: bool) -> Iterator[None]:
    """Turn packing on or off for ``subjects`` inside the block, for the calling context only."""
    token = _switch.set({**_switch.get(), **dict.fromkeys(subjects, value)})
    try:
        yield
    finally:
        _switch.reset(token)


def may_pack(subject: Any) -> bool:
    """Whether ``subject`` may pack in the current context."""
    states = _switch.get()
    return states[None] if len(states) == 1 else states.get(subject, states[None])


@contextmanager
def recorded() -> Iterator[list[list[int]]]:
    """Collect the sequence lengths of each packed call inside the block, in the calling context."""
    calls: list[list[int]] = []
    token = _log.set(calls)
    try:
        yield calls
    finally:
        _log.reset(token)


def record(lengths: list[int]) -> None:
    """Note that a packed call completed, if someone in this context wants to know."""
    calls = _log.get()
    if calls is not None:
        calls.append(lengths)
