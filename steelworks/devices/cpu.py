"""The CPU: no streams; a thread gets a share of the cores instead."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property

import torch

from steelworks.devices._checks import check_worker
from steelworks.devices._cores import usable_cores
from steelworks.devices._own_thread import OwnThread
from steelworks.devices._thread_share import ShareState, thread_share
from steelworks.devices.base import Capabilities, Device, Hazard, Stream
from steelworks.errors import InvalidInputError

_NO_LIMIT = 1024  # threads; the operating system shares the cores among more than there are

_HAZARDS = (
    Hazard(
        "P1",
        "Every thread that runs a model starts an OpenMP thread per core: N callers, N times too many.",
        "A queue worker, and a thread inside pool.stream(), gets its share of the cores.",
    ),
    Hazard(
        "P2",
        "torch.set_num_threads() in one thread also becomes the setting of every thread started later.",
        "The share is set in OpenMP and MKL for the calling thread only.",
    ),
)


class _Share(AbstractContextManager[None]):
    """Gives the calling thread a number of cores, and puts its own number back."""

    __slots__ = ("_before", "_cores")

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._before: ShareState | None = None

    def __enter__(self) -> None:
        self._before = thread_share().swap(self._cores)

    def __exit__(self, *_: object) -> None:
        assert self._before is not None
        thread_share().restore(self._before)


class CPUStream(Stream):
    """A share of the cores: work is done when the call returns, so there is no queue.

    Inside :meth:`use` the calling thread may use ``cores`` cores; what it could use before is
    put back at the end, whatever was set inside.
    """

    def __init__(self, number: int, cores: int) -> None:
        self._id = number
        self.cores = cores

    @property
    def id(self) -> int:
        return self._id

    def use(self) -> AbstractContextManager[None]:
        return OwnThread(_Share(self.cores))

    def synchronize(self) -> None:
        """Return at once: CPU work is complete when its call returns."""

    def __repr__(self) -> str:
        return f"CPUStream(id={self._id}, cores={self.cores})"


class CPUDevice(Device):
    """The CPU.

    Args:
        cores: how many cores to share out; None for all that this process may use.

    Raises:
        InvalidInputError: ``cores`` is not positive.
    """

    def __init__(self, cores: int | None = None) -> None:
        if cores is not None and cores < 1:
            raise InvalidInputError(f"cores={cores} was given; give 1 or more, or None for all usable cores")
        self.torch_device = torch.device("cpu")
        self._cores = usable_cores() if cores is None else cores
        self._numbers = itertools.count()

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            device_type="cpu",
            name=_processor_name(),
            streams=False,
            max_streams=self._cores,
            graphs=False,
            owner_thread=False,
            default_workers=self._cores,
            max_workers=max(_NO_LIMIT, self._cores),
            default_depth=1,
            survives_fork=True,
        )

    def hazards(self) -> tuple[Hazard, ...]:
        return _HAZARDS

    def new_stream(self) -> Stream:
        return CPUStream(next(self._numbers), self._cores)

    def worker_scope(self, index: int, count: int) -> AbstractContextManager[None]:
        """Give the calling thread ``cores // count`` cores (at least 1) for the ``with`` block.

        Raises:
            InvalidInputError: ``index`` is not in ``range(count)``.
        """
        check_worker(index, count)
        return CPUStream(index, max(1, self._cores // count)).use()

    def set_thread_share(self, cores: int) -> None:
        """Let the calling thread use ``cores`` cores from now on; under a microsecond.

        Raises:
            InvalidInputError: ``cores`` is not positive.
        """
        if cores < 1:
            raise InvalidInputError(f"a share of {cores} cores was given; a thread needs 1 or more")
        thread_share().set(cores)

    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``tensor`` itself, not a copy, when it is on the CPU already."""
        return tensor.to(self.torch_device)

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return ``tensor`` itself, not a copy, when it is on the CPU already."""
        return tensor.to(self.torch_device)

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Do nothing: CPU memory is not reused while a call still reads it."""

    def warm_up(self, call: Callable[[], object]) -> None:
        thread_share()  # the search for libraries takes milliseconds
        call()


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "CPU"
