"""A plan: a model made ready for one device and for the shapes it will see.

:class:`Plan` is what the queue speaks to. It reads requests in the caller's thread, predicts what a
batch costs, and makes one :class:`Runner` a worker. A runner launches a batch and later finishes it, so a
worker can stage the next batch while the device runs this one. A runner is used by one thread at a
time (I1). All compiling, capturing and probing happens in :meth:`Plan.warm_up`, on one thread (I4).
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from steelworks.devices.base import Device
from steelworks.errors import InvalidInputError
from steelworks.plans.inputs import Group, InputReader, Reading


class Ticket:
    """A launched batch: what a runner needs to finish it. Opaque to everyone else."""

    __slots__ = ()


class Runner(ABC):
    """Runs batches for one worker; used by one thread at a time."""

    @abstractmethod
    def launch(self, readings: Sequence[Reading]) -> Ticket:
        """Start a batch of requests of one group; may return before it is done."""

    @abstractmethod
    def finish(self, ticket: Ticket) -> list[Any]:
        """Wait for a launched batch; one result a request, in order. Call in launch order."""

    def close(self) -> None:  # noqa: B027 - optional
        """Free what the runner holds."""


class _Miss:
    """The type of :data:`MISS`."""

    def __repr__(self) -> str:
        return "MISS"


MISS = _Miss()  # what an express run answers for a request that it is not made for


class Express(ABC):
    """Runs one request at a time on the calling thread, whatever that thread's settings are."""

    @abstractmethod
    def run(self, request: Any) -> Any:
        """The request's result, or ``MISS`` where it is not made for it; then nothing has happened."""

    @abstractmethod
    def close(self) -> None:
        """Free what it holds."""


class Plan(ABC):
    """A model ready to run on ``device``; see :func:`steelworks.plan`.

    Calling a plan runs one request, of any number of rows, on the calling thread: ``plan(x)`` is
    ``model(x)``, with inputs and outputs on the CPU. Calls from several threads take turns.

    Attributes:
        device: the device it runs on.
        max_batch_size: the most rows one batch may have.
        reader: reads requests.
    """

    # Whether any thread may run batches, its own settings (autocast, gradient mode, cores) not mattering.
    any_thread = False

    def __init__(self, device: Device, reader: InputReader, max_batch_size: int) -> None:
        self.device = device
        self.reader = reader
        self.max_batch_size = max_batch_size
        self._own_runner: Runner | None = None
        self._own_lock = threading.Lock()

    @abstractmethod
    def runner(self, depth: int = 1) -> Runner:
        """Make a runner that can have ``depth`` batches launched and not yet finished.

        Captured plans hold their own memory for each of them. Call on one thread at a time (I4).
        """

    def express(self, count: int) -> list[Express]:
        """Runs that callers may use on their own threads; none where that is not possible."""
        del count
        return []

    @abstractmethod
    def predict(self, group: Group, rows: int, length: int) -> float:
        """Predicted seconds for a batch of ``rows`` rows padded to ``length``."""

    def first_run(self, group: Group, rows: int, length: int) -> int:
        """Of ``rows`` waiting rows, how many the first batch should take."""
        del group, length
        return min(rows, self.max_batch_size)

    def may_pad(self, group: Group) -> bool:
        """Whether requests of different lanes may share a batch."""
        return bool(group.sequence)

    def packs(self, group: Group) -> bool:
        """Whether a batch of this group costs what its real positions cost, padding being free."""
        del group
        return False

    def warm_up(self) -> None:  # noqa: B027 - optional
        """Compile, capture and measure what the plan was told to expect."""

    def explain(self, error: BaseException, reading: Reading | None) -> None:
        """Add to what the model raised how the request differs from the example, which may be the cause."""
        words = "" if reading is None else self.reader.unlike_example(reading)
        if words and not hasattr(error, "__notes__"):
            error.add_note(f"the request is not like the example that this was made with: {words}")

    def close(self) -> None:
        """Free what the plan holds; runners made by it are closed by their owners."""
        with self._own_lock:
            if self._own_runner is not None:
                self._own_runner.close()
                self._own_runner = None

    def __call__(self, request: Any) -> Any:
        """Run one request of any number of rows on the calling thread.

        Raises:
            InvalidInputError: the request has no tensors, or does not fit the plan.
        """
        reading = self.reader.read(request)
        with self._own_lock:
            if self._own_runner is None:
                self._own_runner = self.runner()
            runner = self._own_runner
            pieces = []
            at = 0
            while at < reading.rows:
                take = self.first_run(reading.lane.group, reading.rows - at, reading.lane.length or 1)
                piece = reading
                if at or take < reading.rows:
                    rows = min(take, reading.rows - at)
                    piece = Reading(
                        tuple(t[at : at + rows] for t in reading.leaves), rows, reading.lane, reading.length
                    )
                try:
                    pieces.append(runner.finish(runner.launch([piece]))[0])
                except Exception as error:
                    self.explain(error, reading)
                    raise
                at += piece.rows
        return pieces[0] if len(pieces) == 1 else join(pieces)


def join(pieces: Sequence[Any]) -> Any:
    """Join results of the same structure along dim 0, tensor by tensor."""
    from torch.utils import _pytree as pytree

    flats = [pytree.tree_flatten(piece) for piece in pieces]
    spec = flats[0][1]
    joined = []
    for parts in zip(*(flat for flat, _ in flats), strict=True):
        if isinstance(parts[0], torch.Tensor):
            if parts[0].dim() == 0:
                raise InvalidInputError(
                    "the output has a tensor without rows; a request larger than max_batch_size can't be "
                    "joined: send smaller requests"
                )
            joined.append(torch.cat(parts))
        else:
            joined.append(parts[0])
    return pytree.tree_unflatten(joined, spec)
