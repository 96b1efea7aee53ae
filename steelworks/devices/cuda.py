"""One NVIDIA GPU: streams, pinned copies, and the current device of a worker.

Nothing here touches ``torch.cuda`` before it is needed, so that making a device object, or
importing this module, starts no CUDA context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch

from steelworks.devices._checks import check_worker
from steelworks.devices._live_streams import LiveStreams
from steelworks.devices._own_thread import OwnThread
from steelworks.devices.base import Capabilities, Device, Hazard, Stream
from steelworks.errors import DeviceRuleError, InvalidInputError

_STREAMS = 32  # distinct streams of one priority that torch keeps for a device
_NO_LIMIT = 1024  # threads

_HAZARDS = (
    Hazard(
        "C1",
        "Many threads that launch small kernels slow each other down, in the driver and in the GIL.",
        "One worker launches whole batches, two in flight, so that host and device overlap.",
    ),
    Hazard(
        "C2",
        "torch has 32 streams a device and hands them out round robin; the 33rd is the first again.",
        "A stream in use is not handed out again while another is free; past 32, with a warning.",
    ),
    Hazard(
        "C3",
        "While one thread captures a graph in the default mode, CUDA calls of other threads break it.",
        "Graphs are captured on one thread, at start, in thread-local mode.",
    ),
    Hazard(
        "C4",
        "A tensor freed by one stream's thread can be reused while another stream still reads it.",
        "A tensor handed to another stream is recorded on it.",
    ),
    Hazard(
        "C5",
        "A CUDA context does not survive fork().",
        "A stream pool used in a forked child raises ForkedProcessError; start processes with spawn.",
    ),
)


class CUDAStream(Stream):
    """A CUDA stream.

    Attributes:
        raw: the ``torch.cuda.Stream``.
    """

    def __init__(self, number: int, raw: Any, cuda: Any) -> None:
        self._id = number
        self.raw = raw
        self._cuda = cuda

    @property
    def id(self) -> int:
        return self._id

    def use(self) -> AbstractContextManager[None]:
        return OwnThread(self._cuda.stream(self.raw))

    def synchronize(self) -> None:
        self.raw.synchronize()

    def follow_current(self) -> None:
        current = self._cuda.current_stream(self.raw.device)
        if current != self.raw:
            self.raw.wait_stream(current)

    def __repr__(self) -> str:
        return f"CUDAStream(id={self._id}, raw={self.raw!r})"


class CUDADevice(Device):
    """One NVIDIA GPU.

    Args:
        index: the device's number.
        cuda: what to use as ``torch.cuda``; tests give a stand-in.
    """

    def __init__(self, index: int = 0, *, cuda: Any = None) -> None:
        self.torch_device = torch.device("cuda", index)
        self._cuda = torch.cuda if cuda is None else cuda
        self._streams: LiveStreams[Any, CUDAStream] = LiveStreams(
            _STREAMS,
            make=lambda: self._cuda.Stream(device=self.torch_device),
            key=lambda raw: int(raw.cuda_stream),
            wrap=lambda number, raw: CUDAStream(number, raw, self._cuda),
        )

    @cached_property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            device_type="cuda",
            name=str(self._cuda.get_device_name(self.torch_device)),
            streams=True,
            max_streams=_STREAMS,
            graphs=True,
            owner_thread=False,
            default_workers=1,
            max_workers=_NO_LIMIT,
            default_depth=2,
        )

    def hazards(self) -> tuple[Hazard, ...]:
        return _HAZARDS

    def new_stream(self) -> Stream:
        return self._streams.new()

    @contextmanager
    def worker_scope(self, index: int, count: int) -> Iterator[None]:
        """Make this GPU the calling thread's current device for the ``with`` block."""
        check_worker(index, count)
        with self._cuda.device(self.torch_device):
            yield

    def set_thread_share(self, cores: int) -> None:
        """Do nothing: the work is on the GPU."""

    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Queue a copy of ``tensor`` to the GPU on the current stream; the host does not wait.

        The data goes through pinned memory, which torch's host allocator keeps until the copy
        is done, so ``tensor`` may be changed or freed at once. A tensor that is pinned already
        is read in place: leave it alone until the stream has been synchronized.

        Raises:
            InvalidInputError: ``tensor`` is on another device than the CPU or this GPU.
        """
        if tensor.device == self.torch_device:
            return tensor
        if tensor.device.type != "cpu":
            raise InvalidInputError(
                f"a tensor on {tensor.device} was given to {self.torch_device}; "
                f"give a CPU tensor, or move it with .to({str(self.torch_device)!r}) first"
            )
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self.torch_device, non_blocking=True)

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a CPU copy of ``tensor``, complete; waits for the current stream only.

        Raises:
            DeviceRuleError: ``tensor`` is on another device.
        """
        if tensor.device.type == "cpu":
            return tensor
        if tensor.device != self.torch_device:
            raise DeviceRuleError(
                f"a tensor on {tensor.device} was given to {self.torch_device}; "
                f"use the device that made it: steelworks.devices.resolve({str(tensor.device)!r})"
            )
        # Ordinary memory: results may be kept for long, and pinned memory is scarce.
        host = torch.empty_like(tensor, device="cpu")
        host.copy_(tensor, non_blocking=True)
        self._cuda.current_stream(self.torch_device).synchronize()
        return host

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        if not isinstance(stream, CUDAStream):
            raise DeviceRuleError(
                f"{stream!r} is no CUDA stream; give one that {self.torch_device}'s new_stream() made"
            )
        tensor.record_stream(stream.raw)

    def warm_up(self, call: Callable[[], object]) -> None:
        """Start CUDA and its libraries on the calling thread and current stream, then run ``call``."""
        with self._cuda.device(self.torch_device):
            self._cuda.init()
            matrix = torch.ones(8, 8, device=self.torch_device)
            _ = (matrix @ matrix).sum()
            call()
            self._cuda.current_stream(self.torch_device).synchronize()
