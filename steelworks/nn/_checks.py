"""Which modules ours may stand in for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from steelworks.errors import InvalidInputError

from .linear import Linear

_any_global_hook: Any = torch.nn.modules.module._has_any_global_hook


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module runs more than its forward."""
    m: Any = module
    return bool(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    ) or bool(_any_global_hook())


def odd_weight(module: nn.Module) -> str | None:
    """Why the module's parameters are not plain tensors in floating point, or None."""
    for name, weight in module._parameters.items():
        if weight is None:
            continue
        if type(weight) is not nn.Parameter:
            return f"its {name} is a {type(weight).__name__}, not a plain parameter"
        if not weight.is_floating_point():
            return f"its {name} is {weight.dtype}, not floating point"
    return None


def own_forward(module: nn.Module) -> str | None:
    """Why calling the module is not calling its class's forward, or None."""
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "it is compiled"
    return None


def linear_reason(module: nn.Module) -> str | None:
    """Why a module is not a plain linear layer that another may compute in place of, or None."""
    if type(module) not in (nn.Linear, Linear):
        return f"it is a {type(module).__name__}; torch.nn.Linear itself is needed, as a subclass may compute otherwise"
    if "weight" not in module._parameters:
        return "its weight is not a parameter (a weight norm or the like computes it)"
    if hooked(module):
        return "it has hooks, which would no longer run: remove them first"
    return own_forward(module) or odd_weight(module)


def plain_linear(who: str, module: object) -> None:
    """Raises InvalidInputError unless the module is a plain linear layer."""
    if not isinstance(module, nn.Module):
        raise InvalidInputError(f"{who}: got a {type(module).__name__}; a torch.nn.Linear is needed")
    reason = linear_reason(module)
    if reason is not None:
        raise InvalidInputError(f"{who}: this layer can't be used: {reason}")


def check_model(who: str, model: object) -> nn.Module:
    """The model, if it is one whose modules can be exchanged.

    Raises:
        InvalidInputError: no module, compiled, or scripted.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"{who}: got a {type(model).__name__}; a torch.nn.Module is needed")
    for name, module in model.named_modules():
        where = f"its module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidInputError(
                f"{who}: {where} is scripted, its code is fixed; give the original module"
            )
        compiled = type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod")
        if compiled or getattr(module, "_compiled_call_impl", None) is not None:
            raise InvalidInputError(
                f"{who}: {where} is compiled, and may keep running the old code; call this first, then torch.compile"
            )
    return model


def places(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All modules with all names they are reachable by; a shared module has several."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(name)
    return found


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def number(who: str, name: str, value: object, least: float, *, below: float = float("inf")) -> float:
    """A finite number from ``least`` up to, without, ``below``.

    Raises:
        InvalidInputError: something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        upper = "finite" if below == float("inf") else f"below {below:g}"
        raise InvalidInputError(f"{who}: {name} is {value!r}; a number from {least:g} on, {upper}, is needed")
    return float(value)
