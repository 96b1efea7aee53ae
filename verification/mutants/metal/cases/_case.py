"""What a case is, and how its results are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from _cases import assert_close  # tests/kernels

F32, F16 = torch.float32, torch.float16
Result = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One thing to run.

    Attributes:
        family: The folder of its kernels.
        name: What it is.
        run: Launches, and returns the results.
        verify: Raises AssertionError unless the results are right.
        counters: What the run must cost, by the names of metalsim's counters.
    """

    family: str
    name: str
    run: Callable[[], Result]
    verify: Callable[[Any], None]
    counters: Mapping[str, int] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique."""
        return f"{self.family}: {self.name}"


def draw(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    seed = sum((i + 3) * n for i, n in enumerate(shape))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(
    family: str,
    name: str,
    run: Callable[[], Result],
    want: Callable[[], torch.Tensor],
    size: Callable[[], torch.Tensor] | float,
    terms: int,
    extra: float = 0.0,
) -> Case:
    """A case whose result must be within the bound of a sum of ``terms`` terms of this size in all."""

    def verify(got: torch.Tensor) -> None:
        magnitude = size if isinstance(size, float) else size()
        assert_close(family, got, want(), name, terms=terms, magnitude=magnitude, extra=extra)

    return Case(family, name, run, verify)


def same(family: str, name: str, run: Callable[[], Result], want: Callable[[], Any]) -> Case:
    """A case whose results must be these, bit by bit."""

    def verify(got: tuple[torch.Tensor, ...]) -> None:
        for part, right in zip(got, want(), strict=True):
            assert torch.equal(part, right), f"{name}: {int((part != right).sum())} elements differ"

    return Case(family, name, run, verify)


def ties(*shape: int) -> torch.Tensor:
    return (draw(*shape) * 9).round()
