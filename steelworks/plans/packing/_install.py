"""Finding the encoders of a module, putting packing in front of them, and taking it away again."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from steelworks.plans.packing._attention import NAME, register
from steelworks.plans.packing._context import CannotPackError, may_pack, switched
from steelworks.plans.packing._forward import PackedForward
from steelworks.plans.packing._lean import LeanLayers
from steelworks.plans.packing._probe import check_structure, trial

logger = logging.getLogger("steelworks.plans.packing")

_lock = threading.Lock()
# The installed forwards. Weak: a module that is dropped without remove() takes its forward along.
_installed: weakref.WeakSet[PackedForward] = weakref.WeakSet()


class PackingHandle:
    """What :func:`install` did to a module, and how to undo it.

    Attributes:
        encoders: the names of the packed encoders, as in ``module.named_modules()``; the module
            itself is ``""``.
    """

    def __init__(self, forwards: dict[str, PackedForward]) -> None:
        self.encoders: tuple[str, ...] = tuple(forwards)
        self._forwards = tuple(forwards.values())
        self._removed = False

    @property
    def active(self) -> bool:
        """Whether a call made now, in this context, may be packed."""
        return not self._removed and any(f.broken is None and may_pack(f) for f in self._forwards)

    @contextmanager
    def enabled(self, value: bool = True) -> Iterator[None]:
        """Pack, or with False don't, inside the ``with`` block, for the calling thread or task only."""
        with switched(self._forwards, value):
            yield

    def reread(self) -> None:
        """Read the layers again, after some were replaced by others that answer the same."""
        for forward in self._forwards:
            if forward.traits.lean is not None:
                forward.traits = dataclasses.replace(
                    forward.traits, lean=LeanLayers.of(forward.encoder, packed=True)
                )

    def remove(self) -> None:
        """Put the module back as it was, unless another handle still packs it. May be called again."""
        with _lock:
            if self._removed:
                return
            self._removed = True
            for forward in self._forwards:
                _release(forward)

    def __repr__(self) -> str:
        state = "removed" if self._removed else "installed"
        return f"PackingHandle(encoders={self.encoders}, {state})"


def install(module: nn.Module) -> PackingHandle | None:
    """Make the Hugging Face encoders inside ``module`` run without padding in their linear layers.

    Each encoder is tried with a small ragged batch, padded and packed, and left alone if the two
    differ. Takes a few forward passes over 4 short rows.

    Args:
        module: any module, on the CPU or an Apple GPU, in evaluation mode.

    Returns:
        A handle, or None if there is nothing to pack; the reason is logged once.
    """
    with _lock:
        forwards: dict[str, PackedForward] = {}
        reasons: list[str] = []
        for name, encoder in _candidates(module, reasons):
            try:
                forwards[name] = _acquire(encoder)
            except CannotPackError as error:
                reasons.append(f"{name or 'the module itself'} ({type(encoder).__name__}): {error}")
    if reasons or not forwards:
        outcome = f"packs {', '.join(map(repr, forwards))} but not" if forwards else "nothing to pack:"
        reason = "; ".join(reasons) or "it has no transformers encoder"
        logger.info("%s: %s %s", type(module).__name__, outcome, reason)
    return PackingHandle(forwards) if forwards else None


def _candidates(module: nn.Module, reasons: list[str]) -> list[tuple[str, nn.Module]]:
    """The base models inside ``module``, by name."""
    # Whoever holds such a model has imported transformers; importing it here would take seconds.
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        reasons.append("transformers is not in use")
        return []
    return [
        (name, sub)
        for name, sub in module.named_modules()
        if isinstance(sub, modeling.PreTrainedModel) and sub.base_model is sub
    ]


def _acquire(encoder: nn.Module) -> PackedForward:
    """Install packing on one encoder, or share what is installed.

    Raises:
        CannotPackError: packing is not possible, or gives another answer.
    """
    present = encoder.__dict__.get("forward")
    if isinstance(present, PackedForward) and present in _installed:
        present.users += 1
        return present
    check_structure(encoder)
    register()
    try:
        forward = trial(encoder)
    except BaseException:
        _restore_config(encoder.config)
        raise
    forward.attach()
    forward.users = 1
    _installed.add(forward)
    return forward


def _release(forward: PackedForward) -> None:
    """Undo one :func:`_acquire`."""
    forward.users -= 1
    if forward.users == 0:
        _installed.discard(forward)
        forward.detach()
        _restore_config(forward.encoder.config)


def _restore_config(config: Any) -> None:
    """Give ``config`` its sdpa back, unless another packed encoder shares it or the user chose another."""
    shared = any(forward.encoder.config is config for forward in _installed)
    if not shared and config._attn_implementation == NAME:
        config._attn_implementation = "sdpa"
