"""The Apple GPU (MPS), by the rules of the torch version at hand.

**None of this has run on a Mac.** The rules were read from the macOS wheels of torch 2.13, 2.14
and 2.15 and from PyTorch's issue tracker, and the module is tested against
:class:`steelworks.testing.FakeMPS`, a stand-in that fails where the real one is said to fail.

What it does about threads:

* By default, on every version, one thread at a time owns the device. A queue worker claims it
  for life with :meth:`MPSDevice.worker_scope`; any other call claims it for its own length. A
  second thread gets :class:`~steelworks.errors.DeviceRuleError`, not a crash.
* From torch 2.15, ``MPSDevice(streams=True)`` or ``STEELWORKS_MPS_STREAMS=1`` opts into streams.
  Encoding then takes turns under one process-wide lock (hazards R3 to R6), and only the GPU's
  work on different streams may overlap. Whether it does is not known. Outside ``stream.use()``
  PyTorch's own operators that :mod:`steelworks.paths` runs take turns too; ours take none.
* Copies keep the dtype (R1) and stay off pinned memory (R2). Only the owner thread below 2.15
  calls ``torch.mps.synchronize()``, for want of anything else there.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any

import torch

from steelworks.devices import driver_guard
from steelworks.devices._checks import check_worker
from steelworks.devices._live_streams import LiveStreams
from steelworks.devices._mps_gate import Gate, Held, gate_of
from steelworks.devices._mps_hazards import STREAMS_SINCE, hazards_of
from steelworks.devices._own_thread import OwnThread
from steelworks.devices.base import Capabilities, Device, Hazard, Stream
from steelworks.errors import DeviceRuleError, InvalidInputError

_log = logging.getLogger(__name__)

_STREAMS = 32
_STREAM_WORKERS = 2  # one encodes while the other waits; more has no measurement behind it
_ENVIRONMENT = "STEELWORKS_MPS_STREAMS"
_UNSUPPORTED = (torch.float64, torch.complex128)

# One operation of each kind that keeps lazy state (R6). `t` is torch or its stand-in, `a` a
# float32 matrix on the device.
_KINDS: dict[str, Callable[[Any, Any], object]] = {
    "arange": lambda t, a: t.arange(8, device=a.device),
    "add": lambda t, a: t.add(a, a),
    "cast": lambda t, a: t.Tensor.to(a, t.float16),
    "clone": lambda t, a: t.clone(a),
    "contiguous": lambda t, a: t.Tensor.contiguous(t.transpose(a, 0, 1)),
    "cat": lambda t, a: t.cat((a, a)),
    "sum": lambda t, a: t.sum(a),
    "softmax": lambda t, a: t.softmax(a, -1),
    "gelu": lambda t, a: t.nn.functional.gelu(a),
    "layer_norm": lambda t, a: t.nn.functional.layer_norm(a, (8,)),
    "linear": lambda t, a: t.nn.functional.linear(a, a),
    "mm": lambda t, a: t.mm(a, a),
    "bmm": lambda t, a: t.bmm(t.unsqueeze(a, 0), t.unsqueeze(a, 0)),
    "conv2d": lambda t, a: t.nn.functional.conv2d(
        t.reshape(a, (1, 1, 8, 8)), t.ones((1, 1, 3, 3), device=a.device)
    ),
    "embedding": lambda t, a: t.nn.functional.embedding(t.zeros((2,), dtype=t.int64, device=a.device), a),
    "attention": lambda t, a: t.nn.functional.scaled_dot_product_attention(
        t.reshape(a, (1, 1, 8, 8)), t.reshape(a, (1, 1, 8, 8)), t.reshape(a, (1, 1, 8, 8))
    ),
    "batch_norm": lambda t, a: t.nn.functional.batch_norm(
        a, t.zeros(8, device=a.device), t.ones(8, device=a.device)
    ),
    "index_select": lambda t, a: t.index_select(a, 0, t.zeros((2,), dtype=t.int64, device=a.device)),
    "topk": lambda t, a: t.topk(a, 2),
    "where": lambda t, a: t.where(t.gt(a, 0), a, a),
}


class MPSStream(Stream):
    """A stream of the Apple GPU, or, in owner mode, the only one there is.

    Attributes:
        raw: the ``torch.mps.Stream``; None for the only one.
    """

    def __init__(self, number: int, raw: Any, device: MPSDevice) -> None:
        self._id = number
        self.raw = raw
        self._device = device

    @property
    def id(self) -> int:
        return self._id

    def use(self) -> AbstractContextManager[None]:
        """Make this the thread's current stream.

        In owner mode the thread owns the device for the block, and a second thread is refused.
        With streams it holds the encoding lock, except while it waits in :meth:`synchronize` or
        ``copy_out``: do not wait in the block for a thread that needs the device itself.
        """
        device = self._device
        current = None if self.raw is None else OwnThread(device._backend.mps.stream(self.raw))
        return _Use(device, current)

    def synchronize(self) -> None:
        self._device._synchronize(self.raw)

    def follow_current(self) -> None:
        # Events can't be recorded or waited for off the default stream, so the host waits.
        if self.raw is None:
            return
        current = self._device._backend.mps.current_stream()
        if current != self.raw:
            self._device._synchronize(current)

    def __repr__(self) -> str:
        return f"MPSStream(id={self._id}, raw={self.raw!r})"


class _Use(AbstractContextManager[None]):
    """A block on a stream: the device's guard, and the stream as the thread's current one."""

    __slots__ = ("_current", "_device", "_guard")

    def __init__(self, device: MPSDevice, current: OwnThread | None) -> None:
        self._device = device
        self._current = current
        self._guard: AbstractContextManager[None] | None = None

    def __enter__(self) -> None:
        guard = self._device._guard("stream.use()")
        guard.__enter__()
        try:
            if self._current is not None:
                self._current.__enter__()
        except BaseException:
            guard.__exit__(None, None, None)
            raise
        self._guard = guard

    def __exit__(self, *error: Any) -> None:
        guard, self._guard = self._guard, None
        assert guard is not None
        try:
            if self._current is not None:
                self._current.__exit__(*error)
        finally:
            guard.__exit__(*error)


class MPSDevice(Device):
    """The Apple GPU.

    Args:
        streams: True to use several streams (torch 2.15 and later); False for one owner thread;
            None to follow the environment variable ``STEELWORKS_MPS_STREAMS`` (unset: False).
        backend: what to use as ``torch``; tests give a stand-in's.
        version: what to use as torch's version; None to ask the backend.

    Raises:
        DeviceRuleError: ``streams=True`` with a torch that has no MPS streams.
        InvalidInputError: the environment variable has a value that is neither yes nor no.
        DriverGuardError: ``STEELWORKS_DRIVER_GUARD=1`` is set, and the guard can't be installed.
    """

    def __init__(
        self, *, streams: bool | None = None, backend: Any = None, version: str | None = None
    ) -> None:
        if backend is None:
            driver_guard.install_if_asked()
        self.torch_device = torch.device("mps", 0)
        self._backend: Any = torch if backend is None else backend
        self._version_text = str(self._backend.__version__) if version is None else version
        self._version = _parse(self._version_text)
        self._several = self._decide_streams(streams)
        self._gate: Gate = gate_of(self._backend)
        self._streams: LiveStreams[Any, MPSStream] = LiveStreams(
            _STREAMS,
            make=lambda: self._backend.mps.Stream(),
            key=lambda raw: getattr(raw, "stream_id", id(raw)),
            wrap=lambda number, raw: MPSStream(number, raw, self),
        )

    def _decide_streams(self, asked: bool | None) -> bool:
        possible = self._version >= STREAMS_SINCE and hasattr(self._backend.mps, "Stream")
        if asked is None:
            asked = _read_environment()
            if asked and not possible:
                _log.warning(
                    "%s=1 is set, but torch %s has no MPS streams (2.15 has); using one owner thread",
                    _ENVIRONMENT,
                    self._version_text,
                )
                return False
        if asked and not possible:
            raise DeviceRuleError(
                f"streams=True was given, but torch {self._version_text} has no MPS streams; "
                "install torch 2.15 or later, or leave streams out for one owner thread"
            )
        return asked

    @cached_property
    def capabilities(self) -> Capabilities:
        several = self._several
        return Capabilities(
            device_type="mps",
            name=_device_name(self._backend),
            streams=several,
            max_streams=_STREAMS if several else 1,
            graphs=False,
            owner_thread=not several,
            default_workers=_STREAM_WORKERS if several else 1,
            max_workers=_STREAMS if several else 1,
            default_depth=1,
        )

    def hazards(self) -> tuple[Hazard, ...]:
        return hazards_of(self._version, self._several)

    def new_stream(self) -> Stream:
        if not self._several:
            return MPSStream(0, None, self)
        with self._guard("new_stream()"):
            return self._streams.new()

    @contextmanager
    def worker_scope(self, index: int, count: int) -> Iterator[None]:
        """Make the calling thread worker ``index`` of ``count`` for the ``with`` block.

        In owner mode it owns the device for the block, and leaves no work behind at the end.

        Raises:
            DeviceRuleError: another thread owns the device, or there are too many workers.
            InvalidInputError: ``index`` is not in ``range(count)``.
        """
        check_worker(index, count)
        if count > self.capabilities.max_workers:
            raise DeviceRuleError(
                f"{count} workers were asked for; MPS with torch {self._version_text} and "
                f"streams={self._several} allows {self.capabilities.max_workers}: use num_workers="
                f"{self.capabilities.max_workers}"
                + ("" if self._several else ", or torch 2.15 with STEELWORKS_MPS_STREAMS=1")
            )
        if self._several:
            yield
            return
        with self._guard("worker_scope()"):
            try:
                yield
            finally:
                self._synchronize(None)

    def set_thread_share(self, cores: int) -> None:
        """Do nothing: the work is on the GPU."""

    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a CPU tensor to the device, from ordinary memory; complete on return.

        Raises:
            DeviceRuleError: another thread owns the device.
            InvalidInputError: the dtype does not exist on this device.
        """
        if tensor.device.type == "mps":
            return tensor
        if tensor.dtype in _UNSUPPORTED:
            raise InvalidInputError(
                f"a {tensor.dtype} tensor was given; the Apple GPU has no such type: "
                "cast it on the CPU first, for example with .float()"
            )
        with self._guard("copy_in()"):
            if self._backend.Tensor.is_pinned(tensor):  # R2
                tensor = tensor.clone()
            return self._backend.Tensor.to(tensor, self.torch_device)  # type: ignore[no-any-return]

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a device tensor to ordinary CPU memory, dtype unchanged (R1); complete on return.

        Raises:
            DeviceRuleError: another thread owns the device; or the driver's guard has dropped a call.
        """
        if tensor.device.type == "cpu":
            return tensor
        with self._guard("copy_out()"):
            if self._several:
                # The copy waits for the stream with the lock held: let the stream finish first.
                self._synchronize(self._backend.mps.current_stream())
            copied: torch.Tensor = self._backend.Tensor.to(tensor, torch.device("cpu"))
        driver_guard.check_driver_guard()
        return copied

    def record(self, tensor: torch.Tensor, stream: Stream) -> None:
        """Tell the allocator that ``stream`` uses ``tensor``; nothing to do with one stream."""
        if not isinstance(stream, MPSStream):
            raise DeviceRuleError(f"{stream!r} is no MPS stream; give one that new_stream() made")
        if stream.raw is None:
            return
        with self._guard("record()"):
            tensor.record_stream(stream.raw)

    def warm_up(self, call: Callable[[], object]) -> None:
        """Run one operation of each kind (R6), then ``call``, all on the calling thread.

        Raises:
            DeviceRuleError: another thread owns the device.
        """
        with self._guard("warm_up()"):
            self._warm_kinds()
            call()
            self._synchronize_current()

    def _warm_kinds(self) -> None:
        backend = self._backend
        pending = [kind for kind in _KINDS if kind not in self._gate.warmed]
        if not pending:
            return
        with torch.inference_mode():  # as models run: linear and softmax are then kernels of their own
            matrix = backend.Tensor.to(torch.ones(8, 8), self.torch_device)
            for kind in pending:
                try:
                    _KINDS[kind](backend, matrix)
                except (RuntimeError, NotImplementedError) as error:
                    _log.debug("MPS warm-up of %s failed: %s", kind, error)
                self._gate.warmed.add(kind)
            self._synchronize_current()
            backend.Tensor.to(matrix, torch.device("cpu"))

    def _guard(self, what: str) -> AbstractContextManager[None]:
        return Held(self._gate, self._several, what)

    def _synchronize_current(self) -> None:
        self._synchronize(self._backend.mps.current_stream() if self._several else None)

    def _synchronize(self, raw: Any) -> None:
        """Wait for ``raw``, or for the only stream there is when it is None."""
        if self._several:
            with self._gate.waiting():
                raw.synchronize()
            return
        with self._guard("synchronize()"):
            if self._version >= STREAMS_SINCE:
                self._backend.mps.default_stream().synchronize()
            else:
                self._backend.mps.synchronize()


def _parse(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None:
        raise InvalidInputError(f"torch's version is {version!r}; expected something like '2.15.0'")
    return int(match[1]), int(match[2])


def _read_environment() -> bool:
    value = os.environ.get(_ENVIRONMENT, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return False
    if value in ("1", "true", "yes", "on"):
        return True
    raise InvalidInputError(
        f"{_ENVIRONMENT}={value!r} was set; use 1 for several streams, or 0 for one owner"
    )


def _device_name(backend: Any) -> str:
    ask = getattr(getattr(getattr(backend, "backends", None), "mps", None), "get_name", None)
    return str(ask()) if ask is not None else "Apple GPU"
