"""LoRALinear: a linear layer with a trainable low-rank adapter; putting it into models, and taking it out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from steelworks import ops
from steelworks.errors import InvalidInputError

from ._checks import check_model, linear_reason, number, places, plain_linear, put

Targets = str | re.Pattern[str] | Sequence[str | re.Pattern[str]]
_FROZEN: Final = "_steelworks_frozen"
_SHOWN: Final = 20


class LoRALinear(nn.Module):
    """``linear(x) + alpha / rank * (dropout(x) A^T) B^T`` (Hu et al. 2021, LoRA), computed in one operation.

    A starts as ``torch.nn.Linear``'s weights do (Kaiming, uniform) and B as zeros, so that the layer first computes
    what the linear layer does. The linear layer's parameters are the wrapped ones, no copies; whether they are
    trained is left as it is (:func:`apply_lora` freezes them).

    ``merge`` computes ``W + scale B A`` once, in float32 (float64 for float64), and keeps it beside W, which is never
    written. So ``unmerge`` gives back the very bits of W, tied weights are not harmed, and ``state_dict`` is the same
    in both states; while merged, the layer holds one weight more.

    Args:
        linear: A plain ``torch.nn.Linear``.
        rank: r, at least 1.
        alpha: The low-rank part is scaled by ``alpha / rank``; by default the rank, so by 1.
        dropout: The probability that, in training, an element of the low-rank part's input is dropped; below 1.

    Raises:
        InvalidInputError: not a plain linear layer (a subclass, with hooks, parametrised, quantized), or numbers out of
            range.
    """

    merged_weight: torch.Tensor | None

    def __init__(
        self, linear: nn.Linear, rank: int = 8, alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        plain_linear("LoRALinear", linear)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise InvalidInputError(f"LoRALinear: rank is {rank!r}; a whole number from 1 on is needed")
        self.linear = linear
        self.rank = rank
        self.alpha = float(rank) if alpha is None else number("LoRALinear", "alpha", alpha, 0)
        self.dropout = number("LoRALinear", "dropout", dropout, 0, below=1)
        weight = linear.weight
        self.lora_a = nn.Parameter(weight.new_empty(rank, linear.in_features))
        self.lora_b = nn.Parameter(weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.register_buffer("merged_weight", None, persistent=False)
        self.register_load_state_dict_post_hook(_merge_again)  # type: ignore[no-untyped-call]
        self.train(linear.training)

    @property
    def in_features(self) -> int:
        """k, of the linear layer."""
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        """n, of the linear layer."""
        return self.linear.out_features

    @property
    def weight(self) -> torch.Tensor:
        """The weight that acts: the merged one while merged, else the linear layer's."""
        merged = self.merged_weight
        return self.linear.weight if merged is None else merged

    @property
    def bias(self) -> torch.Tensor | None:
        """The linear layer's."""
        return self.linear.bias

    @property
    def scale(self) -> float:
        """``alpha / rank``."""
        return self.alpha / self.rank

    @property
    def merged(self) -> bool:
        """Whether the adapter is merged."""
        return self.merged_weight is not None

    def merge(self) -> None:
        """Computes the merged weight, so that a call costs what a linear layer does; does nothing if it is merged.

        It is made from the parameters as they are now (and again by ``load_state_dict``): after changing them by other
        means, ``unmerge`` and ``merge``.
        """
        if self.merged_weight is None:
            self.merged_weight = merged(self.linear.weight, self.lora_a, self.lora_b, self.scale)

    def unmerge(self) -> None:
        """Drops the merged weight. The linear layer's own was never written, so it has its original bits."""
        self.merged_weight = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            InvalidInputError: it is merged, in training mode, and A or B is to be trained; or shapes, dtypes or devices
                that do not fit.
        """
        merged, linear = self.merged_weight, self.linear
        if merged is not None:
            if self.training and torch.is_grad_enabled() and self._trained():
                raise InvalidInputError(
                    "LoRALinear: it is merged and in training mode, where A and B would get no gradient; call "
                    "unmerge() to train, or eval()"
                )
            return ops.linear(x, merged, linear.bias)
        if self.dropout and self.training:
            low = functional.linear(functional.dropout(x, self.dropout), self.lora_a)
            added = functional.linear(low, self.lora_b) * self.scale
            return ops.linear(x, linear.weight, linear.bias) + added
        return ops.lora_linear(x, linear.weight, self.lora_a, self.lora_b, self.scale, linear.bias)

    def extra_repr(self) -> str:
        """What ``print`` shows of it."""
        return f"rank={self.rank}, alpha={self.alpha:g}, dropout={self.dropout:g}, merged={self.merged}"

    def _trained(self) -> bool:
        return self.lora_a.requires_grad or self.lora_b.requires_grad


def merged(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """``weight + scale b a``, in float32 or wider, rounded once to the weight's dtype; without gradient."""
    with torch.no_grad():
        wide = torch.promote_types(weight.dtype, torch.float32)
        return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale).to(weight.dtype)


def _merge_again(module: Any, _: Any) -> None:
    if module.merged:
        module.unmerge()
        module.merge()


def apply_lora(
    model: nn.Module,
    targets: Targets,
    *,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    freeze: bool = True,
) -> tuple[str, ...]:
    """Puts a :class:`LoRALinear` in the place of the linear layers that the targets name; in the model itself.

    Args:
        model: Not itself a linear layer.
        targets: A name (``"encoder.layer.0.query"``), the end of a name (``"query"``), a compiled regular expression
            that the whole name matches, or several of these. A layer of several names is one layer still.
        rank: r, at least 1.
        alpha: The low-rank part is scaled by ``alpha / rank``; by default by 1.
        dropout: Of the low-rank part's input in training; below 1.
        freeze: All other parameters of the model need no gradient from now on; :func:`remove_lora` undoes it.

    Returns:
        The names of the layers, in the model's order.

    Raises:
        InvalidInputError: a target that names no linear layer, or one that can't be wrapped; the model is unchanged
            then.
    """
    found = places(check_model("apply_lora", model))
    chosen = select(found, targets)
    made = {
        layer: LoRALinear(layer, rank, alpha, dropout) for layer in chosen if isinstance(layer, nn.Linear)
    }
    if freeze:
        frozen = [name for name, p in model.named_parameters() if p.requires_grad]
        lora = {id(p) for m in found if isinstance(m, LoRALinear) for p in (m.lora_a, m.lora_b)}
        kept = [name for name in frozen if id(model.get_parameter(name)) not in lora]
        for name in kept:
            model.get_parameter(name).requires_grad_(False)
        setattr(model, _FROZEN, [*getattr(model, _FROZEN, []), *kept])
    for layer, wrapper in made.items():
        for name in found[layer]:
            put(model, name, wrapper)
    return tuple(names[0] for layer, names in found.items() if layer in made)


def remove_lora(model: nn.Module, *, merge: bool = False) -> tuple[str, ...]:
    """Puts the linear layers back in the place of all :class:`LoRALinear`, the very modules that were wrapped.

    Parameters that :func:`apply_lora` froze are trainable again.

    Args:
        model: What :func:`apply_lora` was given.
        merge: The adapters stay in effect: the layers' weights become the merged ones, as new parameters (a weight that
            another layer shares stays as it is there).

    Returns:
        The names of the layers, in the model's order.
    """
    found = {
        m: names
        for m, names in places(check_model("remove_lora", model)).items()
        if isinstance(m, LoRALinear)
    }
    for wrapper, names in found.items():
        linear = wrapper.linear
        if merge:
            weight = merged(linear.weight, wrapper.lora_a, wrapper.lora_b, wrapper.scale)
            linear.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
        linear.train(wrapper.training)
        for name in names:
            put(model, name, linear)
    parameters = dict(model.named_parameters())
    for name in model.__dict__.pop(_FROZEN, []):
        if name in parameters:
            parameters[name].requires_grad_(True)
    return tuple(names[0] for names in found.values())


def select(found: dict[nn.Module, list[str]], targets: Targets) -> list[nn.Module]:
    """The linear layers that the targets name.

    Args:
        found: All modules of a model with their names.
        targets: As :func:`apply_lora` takes them.

    Raises:
        InvalidInputError: a target that names no linear layer, or one that can't be wrapped.
    """
    asked = [targets] if isinstance(targets, str | re.Pattern) else list(targets)
    if not asked or not all(isinstance(t, str | re.Pattern) and t for t in asked):
        raise InvalidInputError(
            f"apply_lora: targets is {targets!r}; a name, the end of a name, a compiled regular expression, or several "
            "are needed"
        )
    wrapped = {m.linear for m in found if isinstance(m, LoRALinear)}
    found = {module: names for module, names in found.items() if module not in wrapped}
    chosen: dict[nn.Module, None] = {}
    for target in asked:
        hits = [module for module, names in found.items() if any(_fits(name, target) for name in names)]
        linears = [m for m in hits if isinstance(m, nn.Linear)]
        if not linears:
            raise InvalidInputError(_nothing(target, hits, found))
        for module in linears:
            reason = linear_reason(module)
            if reason is not None:
                raise InvalidInputError(f"apply_lora: {found[module][0]!r} can't be wrapped: {reason}")
            chosen[module] = None
    return list(chosen)


def _fits(name: str, target: str | re.Pattern[str]) -> bool:
    if not name:
        return False
    if isinstance(target, re.Pattern):
        return target.fullmatch(name) is not None
    return name == target or name.endswith(f".{target}")


def _nothing(target: str | re.Pattern[str], hits: list[nn.Module], found: dict[nn.Module, list[str]]) -> str:
    shown = f"the pattern {target.pattern!r}" if isinstance(target, re.Pattern) else repr(target)
    candidates = [names[0] for m, names in found.items() if linear_reason(m) is None and names[0]]
    if hits:
        kinds = sorted({type(m).__name__ for m in hits})
        said = f"{shown} names no linear layer, but {', '.join(kinds)}"
    else:
        said = f"{shown} names nothing in the model"
    more = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    listed = ", ".join(candidates[:_SHOWN]) + more if candidates else "none"
    return f"apply_lora: {said}; the linear layers are: {listed}. Their names, or ends of them, are allowed"
