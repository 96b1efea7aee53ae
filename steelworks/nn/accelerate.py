"""``accelerate``: a model's modules take the selector; undoable, with a report."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from steelworks.errors import InvalidInputError
from steelworks.paths._signature import DEVICES

from . import _attention, _blocks
from ._ahead import APART
from ._checks import check_model, odd_weight, own_forward, places
from .adapters import AdapterLinear
from .linear import Linear
from .lora import LoRALinear
from .norms import LayerNorm, RMSNorm
from .quantized import QuantizedLinear

#: Ours, by the class it stands in for, and what it runs.
_OURS: Final[dict[type[nn.Module], tuple[type[nn.Module], str]]] = {
    nn.Linear: (Linear, "ops.linear"),
    nn.LayerNorm: (LayerNorm, "ops.layer_norm"),
    nn.RMSNorm: (RMSNorm, "ops.rms_norm"),
}
_SELECTING: Final = (AdapterLinear, Linear, LayerNorm, RMSNorm, LoRALinear, QuantizedLinear)
#: Ends of the names of classes that a reader of the report would look for.
_LIKE: Final = (
    "Linear",
    "Linear4bit",
    "Linear8bitLt",
    "Conv1D",
    "LayerNorm",
    "RMSNorm",
    "MultiheadAttention",
)
_SHOWN: Final = 3
_changing: Final = threading.Lock()


@dataclass(frozen=True)
class Change:
    """One module of a model.

    Attributes:
        name: In the model; empty for the model itself.
        kind: Its class, as it was.
        runs: What it runs now; empty if it was left.
        why: Why it was left; empty if it was changed.
    """

    name: str
    kind: str
    runs: str = ""
    why: str = ""


@dataclass(frozen=True)
class Report:
    """What :func:`accelerate` did to a model; ``str()`` tells it.

    Attributes:
        device: The device type that the model was made ready for.
        changed: The modules that take the selector now.
        left: Those that are of a kind that could, and why they do not.
    """

    device: str
    changed: tuple[Change, ...]
    left: tuple[Change, ...]
    _before: dict[nn.Module, tuple[type[nn.Module], type[nn.Module]]] = field(
        repr=False, default_factory=dict
    )
    _configurations: list[Any] = field(repr=False, default_factory=list)

    def undo(self) -> None:
        """Gives every changed module the class it had; weights stay as they are now. Does nothing a second time.

        Call it when no thread calls the model. A module whose class was changed by others since (``Adapters`` does so)
        is left as it is, until they have given it back and ``undo`` is called again.
        """
        with _changing:
            for module, (before, ours) in list(self._before.items()):
                if type(module) is ours:
                    module.__class__ = before
                    module.__dict__.pop(APART, None)
                    del self._before[module]
            while self._configurations:
                _attention.restore(self._configurations.pop())

    def __str__(self) -> str:
        lines = [f"accelerate: {len(self.changed)} modules take the selector on '{self.device}'"]
        if self.device == "cpu":
            lines.append("  (on the CPU it picks PyTorch's own, so nothing gets faster there)")
        lines += _table("changed", [(c.kind, f"now runs {c.runs}", c.name) for c in self.changed])
        lines += _table("left", [(c.kind, c.why, c.name) for c in self.left])
        return "\n".join(lines)


def accelerate(model: nn.Module, device: torch.device | str | None = None) -> Report:
    """Lets a model's modules run the operations of ``steelworks.ops``, on the path that the selector picks.

    These are ``torch.nn.Linear``, ``LayerNorm`` and ``RMSNorm`` themselves; RMSNorms of other libraries that compute
    the same (a trial with random weights shows it); the end of a BERT layer's halves, where the residual's addition
    goes into the norm; and PEFT's LoRA layers with one plain adapter, where linear layer and adapter become one
    operation. All others are left; the report says why.

    A changed module is the same object with another class, a subclass of its own. So parameters, buffers, hooks,
    ``state_dict`` keys, tied weights, and whoever refers to the module stay as they are. ``report.undo()`` gives back
    the classes. A module whose class comes from another library can't be pickled as an object meanwhile; a
    ``state_dict`` can.

    In attention modules, query, key and value projections of the same x become one operation with three weights; the
    weights are not joined, so training, ``load_state_dict`` and adapters reach them. In BERT's layers activation and
    residual go into the linear layer before them, where a kernel of ours takes it. Attention of transformers models
    that use ``sdpa`` goes through ``ops.attention``: their configuration names ``steelworks_sdpa`` until ``undo``.

    Call it before ``torch.compile``, before CUDA graphs are captured, and before other threads call the model. With
    ``torch.compile`` the operations are opaque to the compiler, which can't fuse into them.

    Args:
        model: Changed in place.
        device: Where the model will run, ``"cpu"``, ``"cuda"`` or ``"mps"``; by default where its parameters are. The
            model is not moved; the report names it.

    Returns:
        What was done.

    Raises:
        InvalidInputError: no module; compiled or scripted, as a whole or a part; or another device.
    """
    found = places(check_model("accelerate", model))
    kind = _device(model, device)
    changed, left, before = [], [], {}
    with _changing:
        for module, names in found.items():
            own = type(module).__name__
            decided = _decide(module)
            if decided is None:
                continue
            if isinstance(decided, str):
                left.append(Change(names[0], own, why=decided))
                continue
            before[module] = (type(module), decided[0])
            changed.append(Change(names[0], own, runs=decided[1]))
        # Only now: a trial that fails must leave the model as it was.
        for module, (_, ours) in before.items():
            module.__class__ = ours
        configurations: list[Any] = []
        if kind != "cpu":
            for module, names in found.items():
                done = _attention.redirect(module, configurations)
                if done is not None:
                    own = type(module).__name__
                    ours_now, why = ("ops.attention", "") if done == "" else ("", done)
                    (changed if not why else left).append(Change(names[0], own, runs=ours_now, why=why))
    return Report(kind, tuple(changed), tuple(left), before, configurations)


def _decide(module: nn.Module) -> tuple[type[nn.Module], str] | str | None:
    """Our class and what it runs; why the module is left; or None, if it is of no kind that is ours to change."""
    if isinstance(module, _SELECTING):
        return "it uses the selector already"
    known = _OURS.get(type(module))
    if known is not None:
        return own_forward(module) or _missing_weight(module) or odd_weight(module) or known
    other = _blocks.foreign(module)
    if other is not None:
        return other
    named = type(module).__name__.endswith(_LIKE)
    if named or isinstance(module, tuple(_OURS)):
        return own_forward(module) or "its class has a forward of its own, which may compute something else"
    return None


def _missing_weight(module: nn.Module) -> str | None:
    if "weight" not in module._parameters:
        return "its weight is not a parameter (a weight norm or the like computes it)"
    return None


def _device(model: nn.Module, device: torch.device | str | None) -> str:
    if device is None:
        first = next(model.parameters(), None)
        kind = "cpu" if first is None else first.device.type
        return "cpu" if kind == "meta" else kind
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        kind = str(device)
    if kind not in DEVICES:
        allowed = ", ".join(map(repr, DEVICES))
        raise InvalidInputError(f"accelerate: device is {str(device)!r}; allowed are {allowed}")
    return kind


def _table(title: str, rows: list[tuple[str, str, str]]) -> list[str]:
    """A line for each kind and reason, with its first names."""
    if not rows:
        return []
    lines = [f"  {title}:"]
    for (kind, said), count in Counter((kind, said) for kind, said, _ in rows).items():
        names = [name or "the model itself" for k, s, name in rows if (k, s) == (kind, said)]
        more = ", ..." if count > _SHOWN else ""
        lines.append(f"    {count:4} {kind}: {said} ({', '.join(names[:_SHOWN])}{more})")
    return lines
