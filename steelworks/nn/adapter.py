"""Adapter: the weights of one LoRA adapter, apart from any model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from steelworks.errors import InvalidInputError

from . import _peft
from ._checks import check_model, linear_reason, places
from ._peft import LayerWeights, PathLike
from .lora import LoRALinear, apply_lora


@dataclass(frozen=True)
class Adapter:
    """One adapter's weights, apart from any model.

    Attributes:
        layers: By the name of the linear layer in the model.
        dropout: Of the low-rank part's input in training.
        targets: What PEFT is told to adapt: ends of names, or a pattern; by default the layers' names.
    """

    layers: Mapping[str, LayerWeights]
    dropout: float = 0.0
    targets: str | tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: PathLike) -> Adapter:
        """Reads ``adapter_model.safetensors`` and ``adapter_config.json`` as PEFT writes them; on the CPU.

        Raises:
            InvalidInputError: no such files, or more than plain LoRA on linear layers (DoRA, trained biases,
                embeddings).
        """
        file = _peft.read(Path(folder))
        return cls(file.layers, file.dropout, file.targets)

    @classmethod
    def of(cls, model: nn.Module) -> Adapter:
        """The adapter of a model's :class:`LoRALinear` layers; shares their tensors, detached.

        Raises:
            InvalidInputError: the model has none, or they differ in dropout.
        """
        found = places(check_model("Adapter.of", model))
        ours = {names[0]: m for m, names in found.items() if isinstance(m, LoRALinear)}
        if not ours:
            raise InvalidInputError("Adapter.of: the model has no LoRALinear; apply_lora puts them in")
        dropouts = {m.dropout for m in ours.values()}
        if len(dropouts) > 1:
            raise InvalidInputError(
                f"Adapter.of: the layers have dropouts {sorted(dropouts)}; PEFT's format has one for all"
            )
        layers = {n: LayerWeights(m.lora_a.detach(), m.lora_b.detach(), m.alpha) for n, m in ours.items()}
        inside = tuple(f"{name}." for name in ours)
        others = [n for names in found.values() for n in names if not n.startswith(inside)]
        return cls(layers, dropouts.pop(), _peft.exact_targets(list(layers), others))

    def save(self, folder: PathLike, base_model: str | None = None) -> None:
        """Writes the two files that ``peft.PeftModel.from_pretrained`` reads; makes the folder if need be.

        Args:
            folder: Files of these names in it are replaced, each at once.
            base_model: What PEFT shall take for the model's name.
        """
        targets = self.targets or tuple(self.layers)
        _peft.write(Path(folder), _peft.PeftFile(self.layers, self.dropout, targets), base_model)

    def apply(self, model: nn.Module, *, freeze: bool = True) -> tuple[str, ...]:
        """Puts :class:`LoRALinear` layers with copies of these weights into a model, to train further or to merge.

        Raises:
            InvalidInputError: the model lacks a layer, or it has another size; the model is unchanged then.
        """
        fitting("Adapter.apply", check_model("Adapter.apply", model), self)
        for name, weights in self.layers.items():
            # As LoRALinear's scale is alpha / rank whatever the adapter's rule was.
            alpha = weights.scale * weights.rank
            apply_lora(
                model, _only(name), rank=weights.rank, alpha=alpha, dropout=self.dropout, freeze=freeze
            )
            layer = model.get_submodule(name)
            assert isinstance(layer, LoRALinear)
            with torch.no_grad():
                layer.lora_a.copy_(weights.a)
                layer.lora_b.copy_(weights.b)
        return tuple(self.layers)


def fitting(
    who: str, model: nn.Module, adapter: Adapter, allowed: tuple[type[nn.Module], ...] = ()
) -> dict[str, nn.Linear]:
    """The layers that an adapter names; they may be plain linear layers, or of the allowed classes.

    Raises:
        InvalidInputError: one is not there, is no plain linear layer, or has another size.
    """
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if name}
    missing = [name for name in adapter.layers if name not in modules]
    if missing or not adapter.layers:
        linears = [name for name, m in modules.items() if isinstance(m, nn.Linear)]
        named = ", ".join(map(repr, missing[:5])) or "(the adapter names none)"
        count = f"{len(missing)} of the adapter's {len(adapter.layers)} layers"
        raise InvalidInputError(
            f"{who}: the model has no layer {named}; it lacks {count}. Its linear layers are: {', '.join(linears[:20])}"
        )
    fitting = {}
    for name, w in adapter.layers.items():
        layer = modules[name]
        reason = None if isinstance(layer, allowed) else linear_reason(layer)
        if reason is not None:
            raise InvalidInputError(f"{who}: the layer {name!r} can't be adapted: {reason}")
        assert isinstance(layer, nn.Linear)
        n, k = layer.weight.shape
        if tuple(w.a.shape) != (w.rank, k) or tuple(w.b.shape) != (n, w.rank) or not w.rank:
            raise InvalidInputError(
                f"{who}: the layer {name!r} has {k} inputs and {n} outputs, and the adapter A of {tuple(w.a.shape)} "
                f"and B of {tuple(w.b.shape)}; (r, {k}) and ({n}, r) are needed: it was made for another model"
            )
        fitting[name] = layer
    return fitting


def _only(name: str) -> re.Pattern[str]:
    """The target that names this layer and no other."""
    return re.compile(re.escape(name))
