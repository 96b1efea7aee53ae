"""How launches run: the options in force, and the session that gathers what they found."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from ._runtime import ORDERS, SCHEDULES
from .errors import ArgumentError
from .reports import Counters, Finding, Launch, Report


@dataclass(frozen=True)
class Options:
    """How a launch runs.

    Attributes:
        check: Checking mode: races, bounds, uninitialised reads, output coverage; counters of bytes.
        schedule: ``"ring"`` (every thread in turn) or ``"run_ahead"`` (one simdgroup as far as it gets).
        order: ``"forward"``, ``"reverse"`` or ``"shuffled"``: of threadgroups, simdgroups and lanes.
        seed: Of the shuffle.
        workers: Threads of this machine that run threadgroups; 0: one a core. Checking mode uses one.
        stack_bytes: Stack of a GPU thread; 0: the runtime's default.
        max_findings: Distinct findings kept a launch.
    """

    check: bool = False
    schedule: str = "ring"
    order: str = "forward"
    seed: int = 0
    workers: int = 0
    stack_bytes: int = 0
    max_findings: int = 100

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise ArgumentError(
                f"schedule is {self.schedule!r}; allowed are {', '.join(map(repr, SCHEDULES))}"
            )
        if self.order not in ORDERS:
            raise ArgumentError(f"order is {self.order!r}; allowed are {', '.join(map(repr, ORDERS))}")
        for name in ("seed", "workers", "stack_bytes", "max_findings"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be 0 or more")


@dataclass
class Session:
    """What the launches under one ``options(...)`` found and counted.

    Attributes:
        options: What they ran with.
        launches: One record a launch, in order of their ends.
    """

    options: Options
    launches: list[Launch] = field(default_factory=list)
    _outputs: list[tuple[int, int, bool]] = field(default_factory=list, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings of all launches."""
        return tuple(f for launch in tuple(self.launches) for f in launch.findings)

    @property
    def counters(self) -> Counters:
        """The sum over all launches."""
        total = Counters()
        for launch in tuple(self.launches):
            total = total + launch.counters
        return total

    def report(self) -> Report:
        """Everything found and counted so far."""
        return Report(self.findings, self.counters)

    def expect(self, *outputs: torch.Tensor, once: bool = True) -> None:
        """The next launch that may write one of these tensors must write every byte of it.

        Args:
            outputs: Dense tensors; what they hold before counts as uninitialised.
            once: Exactly once; otherwise at least once.

        Raises:
            ArgumentError: a tensor is not dense, so that not every byte of its memory belongs to it.
        """
        for tensor in outputs:
            if not _is_dense(tensor):
                raise ArgumentError(
                    f"an output of shape {tuple(tensor.shape)} and strides {tensor.stride()} has gaps; "
                    "only a dense tensor can be checked for being written everywhere"
                )
            with self._guard:
                self._outputs.append((tensor.data_ptr(), tensor.numel() * tensor.element_size(), once))

    def take_output(self, address: int, size: int) -> bool | None:
        """Whether an expected output of these bytes is to be written once; None without one. Forgets it."""
        with self._guard:
            for expected in self._outputs:
                if expected[:2] == (address, size):
                    self._outputs.remove(expected)
                    return expected[2]
        return None

    def add(self, launch: Launch) -> None:
        """Files the record of a launch."""
        with self._guard:
            self.launches.append(launch)


def _is_dense(tensor: torch.Tensor) -> bool:
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True


_CURRENT: ContextVar[Session | None] = ContextVar("metalsim_session", default=None)


def current() -> Session | None:
    """The innermost session of this thread or task."""
    return _CURRENT.get()


@contextmanager
def options(
    *,
    check: bool = False,
    schedule: str = "ring",
    order: str = "forward",
    seed: int = 0,
    workers: int = 0,
    stack_bytes: int = 0,
    max_findings: int = 100,
    outputs: Iterable[torch.Tensor] = (),
) -> Iterator[Session]:
    """Launches in this ``with`` block, of this thread or task, run so; findings and counters are gathered.

    Args:
        check: Checking mode: data races, out of bounds, uninitialised reads, misalignment, output coverage.
        schedule: ``"ring"`` or ``"run_ahead"``.
        order: ``"forward"``, ``"reverse"`` or ``"shuffled"``.
        seed: Of the shuffle.
        workers: Threads of this machine that run threadgroups; 0: one a core.
        stack_bytes: Stack of a GPU thread; 0: the default.
        max_findings: Distinct findings kept a launch.
        outputs: Tensors that the next launch must write everywhere, exactly once (see ``Session.expect``).

    Raises:
        ArgumentError: a value that is not allowed.

    Example::

        with metalsim.options(check=True, schedule="run_ahead", order="shuffled", seed=3, outputs=[y]) as
        session:
            lib.kernel(x, y, threads=n, group_size=256)
        assert not session.findings, session.report().text()
    """
    session = Session(Options(check, schedule, order, seed, workers, stack_bytes, max_findings))
    session.expect(*outputs)
    token = _CURRENT.set(session)
    try:
        yield session
    finally:
        _CURRENT.reset(token)
