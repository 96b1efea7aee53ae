"""The interface behind which all differences between devices live.

A :class:`Device` answers what a device can do (:class:`Capabilities`), which hazards apply to
the torch at hand (:class:`Hazard`), makes streams, moves tensors by the device's rules, and sets
a worker thread up. ``streams``, ``plans`` and ``batching`` speak to this interface only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Hazard:
    """A known danger of a device and torch version, and what Steelworks does about it.

    Attributes:
        id: short name, such as ``R1``.
        summary: what goes wrong, in one sentence.
        measure: what Steelworks does about it, in one sentence.
    """

    id: str
    summary: str
    measure: str


@dataclass(frozen=True)
class Capabilities:
    """What a device can do with the torch at hand.

    Attributes:
        device_type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        name: the device's own name, for people.
        streams: whether work can be put on more than one stream.
        max_streams: how many distinct streams exist (cpu: the number of cores).
        graphs: whether plans can be captured (CUDA graphs).
        owner_thread: whether all work must come from one thread at a time, the owner.
        default_workers: how many queue workers to start when the user says nothing.
        max_workers: how many threads may run the model at the same time.
        default_depth: how many batches a worker keeps in flight.
        survives_fork: whether a forked child may go on using the device.
    """

    device_type: str
    name: str
    streams: bool
    max_streams: int
    graphs: bool
    owner_thread: bool
    default_workers: int
    max_workers: int
    default_depth: int
    survives_fork: bool = False


class Stream(ABC):
    """An in-order queue of device work. Used by one thread at a time (I1)."""

    @property
    @abstractmethod
    def id(self) -> int:
        """A number that is unique among the device's live streams."""

    @abstractmethod
    def use(self) -> AbstractContextManager[None]:
        """Make this the calling thread's current stream for a ``with`` block.

        Where another thread ends the block (it closes a suspended generator), that thread's
        current stream stays as it is.
        """

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until all work on this stream, and only this one, is done."""

    def follow_current(self) -> None:  # noqa: B027 - a device with one order of work has nothing to do
        """Let later work here see what the thread's current stream has queued so far."""


class Device(ABC):
    """One device: a CPU, one CUDA GPU, or the Apple GPU."""

    torch_device: torch.device

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the device can do."""

    @abstractmethod
    def hazards(self) -> tuple[Hazard, ...]:
        """The hazards that apply here, with the measure taken for each."""

    @abstractmethod
    def new_stream(self) -> Stream:
        """Make a stream; ``StreamPool`` is the one caller that should keep them."""

    @abstractmethod
    def worker_scope(self, index: int, count: int) -> AbstractContextManager[None]:
        """Set the calling thread up as worker ``index`` of ``count``, for its whole life.

        cpu: its share of the cores; cuda: the current device; mps: the owner's claim.
        """

    @abstractmethod
    def set_thread_share(self, cores: int) -> None:
        """Let the calling thread use ``cores`` cores from now on (cpu; no-op elsewhere).

        Takes less than 10 microseconds and touches no other thread.
        """

    @abstractmethod
    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring a CPU tensor to the device, on the current stream, dtype unchanged."""

    @abstractmethod
    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Bring a device tensor to the CPU, complete on return, dtype unchanged."""

    @abstractmethod
    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Tell the allocator that ``stream`` uses ``tensor`` (I5)."""

    @abstractmethod
    def warm_up(self, call: Callable[[], object]) -> None:
        """Run ``call`` once on the calling thread after warming the device's lazy state (I4)."""
