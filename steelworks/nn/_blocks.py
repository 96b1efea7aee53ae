"""Other libraries' modules that ours can compute in place of: recognised by their parts, and by a trial.

Each gets a subclass of its own class that overrides ``forward`` only. What a module's code does can't be read from its
class's name, so a copy with random weights is called both ways, and must agree, before the module is touched.
"""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from steelworks import ops
from steelworks.ops.linear import LINEAR

from ._checks import hooked, linear_reason, odd_weight, own_forward
from ._shared import SharedProjections, shares
from .linear import Linear
from .norms import LayerNorm

_ROWS: Final = 3
#: In float32, with results of about 1; another formula differs by far more.
_CLOSE: Final = 1e-5


class ForeignRMSNorm:
    """An RMSNorm of another library: a weight, and an epsilon."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``(..., k)`` to the same shape."""
        if kwargs or len(args) != 1 or args[0].dtype != self.weight.dtype:
            result: torch.Tensor = super().forward(*args, **kwargs)  # type: ignore[misc]
            return result
        return ops.rms_norm(args[0], self.weight.shape, self.weight, rms_epsilon(self))


class ResidualOutput:
    """``LayerNorm(dropout(dense(x)) + residual)``: the end of both halves of a BERT layer."""

    def forward(self: Any, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """``(..., k)`` and ``(..., n)`` to ``(..., n)``."""
        norm, dropout = self.LayerNorm, self.dropout
        plain = type(norm) in (nn.LayerNorm, LayerNorm) and type(dropout) is nn.Dropout
        drops = plain and dropout.training and dropout.p > 0
        if not plain or drops or hooked(norm) or hooked(dropout):
            result: torch.Tensor = super().forward(hidden_states, input_tensor)  # type: ignore[misc]
            return result
        dense = self.dense
        if epilogue(dense, hidden_states, None, input_tensor):
            y = ops.linear(hidden_states, dense.weight, dense.bias, residual=input_tensor)
            return ops.layer_norm(y, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        x = dense(hidden_states)
        if x.shape != input_tensor.shape or x.dtype != input_tensor.dtype:
            x = x + input_tensor
            return ops.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        both = ops.layer_norm(
            x, norm.normalized_shape, norm.weight, norm.bias, norm.eps, residual=input_tensor
        )
        return both[0]


class ActivatedLinear:
    """``activation(dense(x))``: the first half of a BERT layer's feed-forward."""

    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """``(..., k)`` to ``(..., n)``."""
        dense, activation = self.dense, activation_name(self.intermediate_act_fn)
        if activation is None or not epilogue(dense, hidden_states, activation, None):
            result: torch.Tensor = super().forward(hidden_states)  # type: ignore[misc]
            return result
        return ops.linear(hidden_states, dense.weight, dense.bias, activation=activation)


class _Composed(nn.Module):
    """What :class:`ActivatedLinear` takes a module for."""

    def forward(self: Any, hidden_states: torch.Tensor) -> Any:
        return self.intermediate_act_fn(self.dense(hidden_states))


def epilogue(dense: Any, x: torch.Tensor, activation: str | None, residual: torch.Tensor | None) -> bool:
    """Whether the layer is plain, and a kernel of ours takes it together with what comes after."""
    if type(dense) is not Linear or hooked(dense) or torch.compiler.is_compiling():
        return False
    if residual is not None and (residual.shape[:-1] != x.shape[:-1] or residual.dtype != x.dtype):
        return False
    weight, bias = dense.weight, dense.bias
    return LINEAR.takes_ours((x, weight, bias, residual), (x, weight, bias, activation, residual))


@functools.lru_cache(maxsize=64)
def _of_kind(kind: Any) -> str | None:
    """The name in ``ops.linear`` of an activation without settings of its own, found by trying it."""
    try:
        module = kind()
        x = torch.linspace(-6, 6, 401, dtype=torch.float64)
        with torch.no_grad():
            y = module(x)
            for name in ("gelu", "relu", "silu"):
                if torch.equal(y, getattr(torch.nn.functional, name)(x)):
                    return name
    except Exception:  # whatever a foreign class does with these arguments, it is then not one of ours
        return None
    return None


def activation_name(module: Any) -> str | None:
    """What ``ops.linear`` calls an activation module; None if it has no such, or the module has hooks or settings."""
    if not isinstance(module, nn.Module) or hooked(module) or own_forward(module) is not None:
        return None
    kind: Any = type(module)
    name = _of_kind(kind)
    if name == "gelu" and getattr(module, "approximate", "none") != "none":
        return None
    if name == "gelu" and getattr(module, "act", functional.gelu) is not functional.gelu:
        return None
    return name


class PeftLinear:
    """The LoRA layer of Hugging Face's PEFT: one vanilla adapter goes through ``ops.lora_linear``."""

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        adapter = None if args or kwargs else self._one_vanilla_adapter(x)
        if adapter is None:
            result: torch.Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
            return result
        a, b, base = self.lora_A[adapter].weight, self.lora_B[adapter].weight, self.base_layer
        return ops.lora_linear(x, base.weight, a, b, float(self.scaling[adapter]), base.bias)

    def _one_vanilla_adapter(self: Any, x: torch.Tensor) -> str | None:
        """The adapter's name, if the sum of linear layers is all that PEFT would compute."""
        if (
            self.disable_adapters
            or self.merged
            or len(self.active_adapters) != 1
            or torch.is_autocast_enabled(x.device.type)
        ):
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_bias.get(name):
            return None
        dropout = self.lora_dropout[name]
        if type(dropout) is not nn.Identity and (self.training and getattr(dropout, "p", 1) > 0):
            return None
        parts = (self.base_layer, self.lora_A[name], self.lora_B[name])
        if any(linear_reason(part) is not None or part.weight.dtype != x.dtype for part in parts):
            return None
        return name


def rms_epsilon(module: nn.Module) -> float | None:
    """Its epsilon, under the names that libraries use."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if isinstance(value, float):
            return value
    return None


def foreign(module: nn.Module) -> tuple[type[nn.Module], str] | str | None:
    """Which class of ours can stand in for a module of another library, and what it runs.

    Or the reason why none can; or None, if it is of no kind known here.
    """
    kind = type(module)
    if own_forward(module) is not None:
        return None
    if isinstance(module, Foreign):
        return "it uses the selector already"
    if kind.__name__.endswith(("RMSNorm", "LayerNorm")) and not isinstance(module, nn.RMSNorm | nn.LayerNorm):
        return _foreign_rms_norm(module)
    if set(module._modules) == {"dense", "LayerNorm", "dropout"}:
        return _residual_output(module)
    if set(module._modules) == {"dense", "intermediate_act_fn"}:
        return _activated_linear(module)
    if shares(module):
        return _subclass(kind, SharedProjections), "ops.qkv_linear for its projections"
    if kind.__module__ == "peft.tuners.lora.layer" and kind.__name__ == "Linear":
        return _subclass(kind, PeftLinear), "ops.lora_linear"
    return None


Foreign: Final = (ForeignRMSNorm, ResidualOutput, ActivatedLinear, SharedProjections, PeftLinear)


def _foreign_rms_norm(module: nn.Module) -> tuple[type[nn.Module], str] | str:
    weight = module._parameters.get("weight")
    if (
        set(module._parameters) != {"weight"}
        or weight is None
        or weight.dim() != 1
        or rms_epsilon(module) is None
    ):
        return "it has other parts than a weight and an epsilon"
    found = odd_weight(module)
    if found is not None:
        return found
    made = _subclass(type(module), ForeignRMSNorm)
    return _tried(module, made, [weight.shape]) or (made, "ops.rms_norm")


def _residual_output(module: nn.Module) -> tuple[type[nn.Module], str] | str | None:
    parts: Any = module
    shaped = type(parts.dense) in (nn.Linear, Linear) and type(parts.LayerNorm) in (nn.LayerNorm, LayerNorm)
    takes = list(inspect.signature(type(module).forward).parameters)
    if (
        not shaped
        or type(parts.dropout) is not nn.Dropout
        or takes != ["self", "hidden_states", "input_tensor"]
    ):
        return None
    made = _subclass(type(module), ResidualOutput)
    dense = parts.dense
    shapes = [(dense.in_features,), (dense.out_features,)]
    return _tried(module, made, shapes) or (made, "ops.layer_norm with the residual")


def _activated_linear(module: nn.Module) -> tuple[type[nn.Module], str] | str | None:
    parts: Any = module
    takes = list(inspect.signature(type(module).forward).parameters)
    if type(parts.dense) not in (nn.Linear, Linear) or takes != ["self", "hidden_states"]:
        return None
    name = activation_name(parts.intermediate_act_fn)
    if name is None:
        return "its activation is not the exact gelu, relu or silu"
    made = _subclass(type(module), ActivatedLinear)
    return _tried(module, _Composed, [(parts.dense.in_features,)]) or (made, f"ops.linear with {name}")


def _tried(module: nn.Module, made: type[nn.Module], shapes: list[Any]) -> str | None:
    """Why ``made`` does not compute what the module does, or None: a copy with random weights is called both ways."""
    if any(p.is_meta for p in module.parameters()):
        return "its weights are on the meta device, so it can't be tried; load them first"
    trial = _bare_copy(module).eval().float()
    generator = torch.Generator().manual_seed(0)

    def some(shape: Any, like: torch.Tensor) -> torch.Tensor:
        return torch.rand(shape, generator=generator).add_(0.5).to(like.device, like.dtype)

    with torch.no_grad():
        for weight in trial.parameters():
            weight.copy_(some(weight.shape, weight))
        like = next(trial.parameters())
        # Small numbers, so that the epsilon matters.
        for size in (1.0, 1e-3):
            given = [some((_ROWS, *shape), like).sub_(1).mul_(size) for shape in shapes]
            want = trial(*given)
            trial.__class__ = made
            got = trial(*given)
            trial.__class__ = type(module)
            if want.shape != got.shape or not torch.allclose(got, want, rtol=_CLOSE, atol=_CLOSE):
                return "a trial showed that its forward computes something else"
    return None


def _bare_copy(module: nn.Module) -> nn.Module:
    """A copy without hooks, whose parameters are its own."""
    made = copy.deepcopy(module)
    for part in made.modules():
        bare: Any = part
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(bare, name).clear()
    return made.requires_grad_(False)


def _subclass(kind: type[nn.Module], ours: type) -> type[nn.Module]:
    """A subclass of a library's class with our forward; an instance is still one of that class."""
    made = _made.get((kind, ours))
    if made is None:
        made = type(kind.__name__, (ours, kind), {"__doc__": ours.__doc__, "__module__": kind.__module__})
    return _made.setdefault((kind, ours), made)


#: One for each class of theirs and ours.
_made: Final[dict[tuple[type, type], type[nn.Module]]] = {}
