"""``install`` and ``uninstall``: PyTorch's own operators take the selector, so that models need no edits."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final

import torch
from torch.library import Library

from steelworks.errors import DeviceRuleError, InvalidInputError
from steelworks.paths import choose
from steelworks.paths._choose import known, through_vendor
from steelworks.paths._signature import DEVICES
from steelworks.paths._state import current

from . import _mps_copies
from ._library import _PLAIN, _direct
from ._overridden import OVERRIDES, Override


class _Switch:
    """Whether the overrides of a device are on. They stay registered: PyTorch 2.13 keeps pointers to kernels in places
    of its own, and has been seen to crash when some were taken away again (opcheck, after ``uninstall``)."""

    on = False


_guard: Final = threading.Lock()
_switches: Final[dict[str, _Switch]] = {}
_libraries: Final[list[Any]] = []
_installed: dict[str, Installed] = {}
_C: Any = torch._C


class _Local(threading.local):
    """Whether this thread is inside an override: then operators are PyTorch's own; and whether inside a copy."""

    inside = False
    copying = False


_local: Final = _Local()


@dataclass(frozen=True)
class Installed:
    """What :func:`install` did; as a context manager it undoes it at the end of the block.

    Attributes:
        device: The device type.
        operators: The aten operators that now take the selector.
    """

    device: str
    operators: tuple[str, ...]

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        uninstall(self.device)


def install(device: str | torch.device) -> Installed:
    """Lets PyTorch's own operators on a device take the path that the selector picks, in every model of the process.

    These are linear, addmm, mm, bmm, softmax, log_softmax, layer_norm, rms_norm, scaled_dot_product_attention, and on
    an Apple GPU clone (and so contiguous). What our kernels can't take, and all that has another form (``out=``, a
    dropout, factors other than 1), stays PyTorch's. Gradients are right: where ours has none, PyTorch's runs.

    Each call costs 5 to 10 microseconds of host time more, on the vendor path too. Call it before threads use the
    device, and before any model is compiled: compiled code calls what it was compiled with. Undo it with
    :func:`uninstall`, or use it in a ``with`` statement; after that a call costs a few microseconds more than before.

    Args:
        device: ``"cuda"`` or ``"mps"``; ``"cpu"`` inside ``paths.simulate_metal()``, for tests.

    Raises:
        InvalidInputError: no such device here.
        DeviceRuleError: it is installed already, a model was compiled, a CUDA graph is being captured, this torch
            can't keep the original kernels, or the CPU is named outside ``paths.simulate_metal()``.
    """
    kind = torch.device(device).type
    with _guard:
        _check(kind)
        key = {"cpu": "CPU", "cuda": "CUDA", "mps": "MPS"}[kind]
        wanted = [o for o in OVERRIDES if kind in o.devices]
        switch = _switches.get(kind)
        if switch is None:
            switch = _register(kind, key, wanted)
        copies = (_mps_copies.ATEN,) if kind == "mps" else ()
        done = Installed(kind, (*(o.aten for o in wanted), *copies))
        switch.on = True
        _installed[kind] = done
        return done


def _register(kind: str, key: str, wanted: list[Override]) -> _Switch:
    """Registers the overrides of a device, switched off, for as long as the process lives."""
    switch = _Switch()
    library: Any = Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():  # that a kernel is overridden is what was asked for
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            for override in wanted:
                _replace(library, override, key, switch)
            if kind == "mps":
                _replace_copies(library, key, switch)
    finally:
        _libraries.append(library)  # after a failure too: what was registered by then stays, switched off
    _switches[kind] = switch
    return switch


def uninstall(device: str | torch.device | None = None) -> None:
    """Gives PyTorch its own operators back; does nothing where nothing is installed.

    Args:
        device: Only on this device; by default on all.
    """
    kind = None if device is None else torch.device(device).type
    with _guard:
        for name in [d for d in _installed if kind in (None, d)]:
            _switches[name].on = False
            del _installed[name]


def _check(kind: str) -> None:
    if kind not in DEVICES:
        raise InvalidInputError(f"install: device is {kind!r}; allowed are {', '.join(map(repr, DEVICES))}")
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not here[kind]:
        raise InvalidInputError(f"install: there is no {kind!r} device here; there is {_names(here)}")
    if kind in _installed:
        raise DeviceRuleError(f"install: it is installed on '{kind}' already; call uninstall({kind!r}) first")
    if kind == "cpu" and not current().simulate:
        raise DeviceRuleError(
            "install: on the CPU the only path is PyTorch's own, which it takes anyway; to test the Metal kernels, "
            "call it inside paths.simulate_metal()"
        )
    if not hasattr(torch.library, "get_kernel"):
        raise DeviceRuleError(
            f"install: torch {torch.__version__} has no torch.library.get_kernel, without which PyTorch's own kernels "
            "can't be kept; install a later torch"
        )
    frames = sys.modules.get("torch._dynamo.convert_frame")
    if getattr(frames, "FRAME_COUNTER", 0):
        raise DeviceRuleError(
            "install: models were compiled in this process, and their code would keep calling what it was compiled "
            "with; call install() before the first torch.compile, or torch.compiler.reset() now"
        )
    if kind == "cuda" and torch.cuda.is_current_stream_capturing():
        raise DeviceRuleError("install: a CUDA graph is being captured; call install() before the capture")


def _names(here: dict[str, bool]) -> str:
    return ", ".join(repr(name) for name, there in here.items() if there)


def _replace(library: Any, override: Override, key: str, switch: _Switch) -> None:
    """Registers one override, in front of the kernel that is there."""
    name = f"aten::{override.aten}"
    if _C._dispatch_has_kernel_for_dispatch_key(name, key) or _C._dispatch_has_kernel_for_dispatch_key(
        name, "CompositeExplicitAutograd"
    ):
        # PyTorch's gradient formula stays above it.
        library.impl(
            override.aten, _below_autograd(override, _original(name, key), switch), key, with_keyset=True
        )
        return
    # A composition: gradients come from its parts, so it is replaced above them, and for inference tensors below.
    run = _composite(override, _original(name, key), switch)
    for where in (key, f"Autograd{key}"):
        library.impl(override.aten, run, where, with_keyset=True)


def _replace_copies(library: Any, key: str, switch: _Switch) -> None:
    """Registers the safe copies, which no path stands for: there is nothing to choose."""
    library.impl(_mps_copies.ATEN, _copies(_mps_copies.pytorchs_own(), switch), key, with_keyset=True)


def _copies(own: _mps_copies.Copy, switch: _Switch) -> Callable[..., torch.Tensor]:
    def run(keyset: Any, dst: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if _local.copying or not switch.on:
            return own(dst, src, non_blocking)
        # Within an operation, too: our kernels' dense copies race as well. What a copy copies is PyTorch's own.
        _local.copying = True
        try:
            return _mps_copies.copy_safely(own, dst, src, non_blocking, patient=not _local.inside)
        finally:
            _local.copying = False

    return run


def _original(name: str, key: str) -> Callable[..., Any]:
    kernel: Any = torch.library.get_kernel(name, key)
    call: Callable[..., Any] = kernel.call_boxed
    return call


def _below_autograd(override: Override, original: Callable[..., Any], switch: _Switch) -> Callable[..., Any]:
    operator, convert = override.operator, override.convert

    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if _local.inside or not switch.on:
            return original(keyset, *args, **kwargs)
        call = convert(*args, **kwargs)
        if call is None:
            return original(keyset, *args, **kwargs)
        signature = operator.signature(*call[1])
        choice = known(signature) or choose(signature)
        _local.inside = True
        try:
            if choice.path == "vendor":
                return through_vendor(choice, partial(original, keyset, *args, **kwargs))
            return choice.run(*call[1])
        finally:
            _local.inside = False

    return run


def _composite(override: Override, original: Callable[..., Any], switch: _Switch) -> Callable[..., Any]:
    operator, convert = override.operator, override.convert

    def run(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        if _local.inside or not switch.on:
            return original(keyset, *args, **kwargs)
        call = convert(*args, **kwargs)
        if call is None or any(type(x) not in _PLAIN for x in call[0]):
            return original(keyset, *args, **kwargs)
        tensors, arguments = call
        signature = operator.signature(*arguments)
        choice = known(signature) or choose(signature)
        direct = choice.path != "vendor" and _direct(tensors)
        trained = choice.path != "vendor" and not direct and operator.trained and _only_grad(tensors)
        trained = trained and not operator.trains_through_vendor(choice, tensors)
        _local.inside = True
        try:
            if direct:
                return choice.run(*arguments)
            if trained:
                return operator.registered(*arguments)
            return through_vendor(choice, partial(original, keyset, *args, **kwargs))
        finally:
            _local.inside = False

    return run


def _only_grad(tensors: Any) -> bool:
    """Whether a gradient is all that keeps a call from our kernels."""
    return _direct([None if x is None else x.detach() for x in tensors])
