"""What a family gives to the operator benchmark: cases, each one piece of work done by several implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks._common import Spread

#: L2 of the largest GPU this runs on, in bytes: inputs are rotated until together they exceed it four times.
L2_BYTES = 60 * 2**20
ROTATED_AT_MOST = 16
#: One implementation, for one of the rotated inputs.
Make = Callable[[Any], Callable[[], Any]]


@dataclass(frozen=True)
class Goal:
    """What must hold, and what is aimed at, of one figure of a case.

    Attributes:
        name: What is compared.
        value: From the microseconds of all implementations by name (``floor`` and ``copy`` among them), the figure.
        must: Least (or most) that is required.
        aim: What is aimed at.
        least: True where larger is better.
    """

    name: str
    value: Callable[[dict[str, float]], float]
    must: float
    aim: float
    least: bool = True

    def met(self, value: float) -> bool:
        """Whether ``value`` is what must be."""
        return value >= self.must if self.least else value <= self.must


@dataclass(frozen=True)
class Case:
    """One piece of work.

    Attributes:
        op: The operation; ``--only`` selects by it.
        name: Shape and dtype, unique within the operation.
        bytes: Read and written once each, at least: the floor is bytes over bandwidth.
        inputs: Makes one set of inputs; called several times where inputs must not stay in the L2 cache.
        implementations: By name: from a set of inputs, the call that is timed. ``steel`` is ours.
        launches: Calls in a graph.
        goals: What must hold.
        check: The largest error of each implementation against this reference, if given.
        rotate: Whether inputs are rotated so that they exceed the L2 cache.
        host: Whether the host time of each call is measured too.
        chains: What can't be captured in a graph: by name, measures itself (``_mlx``).
    """

    op: str
    name: str
    bytes: int
    inputs: Callable[[], Any]
    implementations: dict[str, Make]
    launches: int
    goals: Sequence[Goal] = field(default_factory=tuple)
    check: Callable[[Any], torch.Tensor] | None = None
    rotate: bool = True
    host: bool = False
    chains: Mapping[str, Callable[[], Spread]] = field(default_factory=dict)

    def rotated(self) -> list[Any]:
        """Sets of inputs for the calls of a graph: one, or enough to exceed the L2 cache four times."""
        count = 1
        if self.rotate:
            count = max(1, min(ROTATED_AT_MOST, self.launches, -(-4 * L2_BYTES // max(self.bytes, 1))))
        return [self.inputs() for _ in range(count)]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Normally distributed elements on the GPU: zeros would run faster than real data on some units."""
    return torch.randn(shape, device="cuda").to(dtype)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for fixed shapes."""
    return torch.compile(function, dynamic=False)
