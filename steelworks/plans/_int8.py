"""Linear layers in int8 on the CPU: weights by output, inputs by row, so that rows stay independent.

``y = m * (round(127 x / m) / 127) Wq + b`` with ``m`` the largest magnitude of a row of ``x``. One scale for the
whole batch, as ``torch.ao.quantization.quantize_dynamic`` takes it, would make a row's answer depend on its
batch mates, and loses more. The integer sums are exact, hence a layer gives a row the same bits in every batch.
"""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import torch
from torch import nn

MIN_WEIGHTS = 1 << 17  # of a layer: smaller ones take longer in int8 (measured with 1 to 256 rows)
_ENGINE = "fbgemm"
_TOP = 127  # inputs are 128 - 127 .. 128 + 127, unsigned
_ZERO = 128
_TINY = 1e-30  # stands for the largest magnitude of a row of zeros

_packing = threading.Lock()  # the engine is a setting of the whole process


class Int8Linear(nn.Linear):
    """A linear layer that multiplies in int8; holds the float weights of the layer it was made of as well.

    Args:
        source: the layer; later changes of its weights are not seen.
    """

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, source.bias is not None, device="meta")
        self.weight, self.bias = source.weight, source.bias
        self.train(source.training)
        self._packed = _pack(source.weight.detach())
        self._offset = source.bias.detach() if source.bias is not None else source.weight.new_zeros(())

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``, float32; other dtypes take the float weights."""
        if input.dtype != torch.float32 or input.numel() == 0:
            return super().forward(input)
        return self.multiply(*by_row(input))

    def multiply(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The layer's answer for ``by_row(input)``, which layers with the same input may share."""
        y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            x, 1 / _TOP, _ZERO, self._packed
        )
        if torch.is_grad_enabled():  # which takes no out=
            return torch.addcmul(self._offset, y, scale)
        return torch.addcmul(self._offset, y, scale, out=y)  # a second large tensor costs more than the sums


def by_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` with every row scaled to -1 .. 1, and the scales, ``[..., 1]``."""
    scale = x.abs().amax(-1, keepdim=True).clamp_(min=_TINY)
    return x / scale, scale


def quantized_copy(model: Any) -> nn.Module:
    """A copy of ``model`` with its large linear layers in int8; everything else is shared.

    Raises:
        ValueError: it is no module, can't be copied, has no such layer, or this torch can't do it.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"quantize='int8' was given with a {type(model).__name__}; it replaces the linear layers of an "
            "nn.Module: pass the module"
        )
    if _ENGINE not in torch.backends.quantized.supported_engines or not hasattr(
        torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"
    ):
        raise ValueError(
            f"quantize='int8' needs FBGEMM, which this torch ({torch.__version__}) lacks on this processor; "
            "leave quantize out"
        )
    layers = {name: layer for name, layer in model.named_modules() if _fits(layer)}
    if not layers:
        raise ValueError(
            f"quantize='int8' was given, but {type(model).__name__} has no float32 nn.Linear with {MIN_WEIGHTS} "
            "weights or more in evaluation mode, below which int8 is slower; leave quantize out"
        )
    try:
        shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        made: nn.Module = copy.deepcopy(model, shared)
    except Exception as error:  # a module may hold anything: locks, generators ...
        raise ValueError(
            f"quantize='int8' needs a copy of the module, which can't be made ({type(error).__name__}: "
            f"{error}); leave quantize out"
        ) from error
    return _with(made, {name: Int8Linear(layer) for name, layer in layers.items()})


def take_layers(module: nn.Module, quantized: nn.Module) -> None:
    """Put the int8 layers of ``quantized``, a copy of the same model, into ``module``."""
    _with(module, {name: layer for name, layer in quantized.named_modules() if type(layer) is Int8Linear})


def _with(module: nn.Module, layers: dict[str, Int8Linear]) -> nn.Module:
    if "" in layers:
        return layers[""]
    for name, layer in layers.items():
        module.set_submodule(name, layer)
    return module


def _fits(layer: nn.Module) -> bool:
    """Whether int8 serves the layer: a plain one, large enough, that nobody hooked or rewrote."""
    return (
        type(layer) is nn.Linear
        and "forward" not in layer.__dict__
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer.training
        and layer.weight.dtype == torch.float32
        and layer.weight.device.type == "cpu"
        and layer.weight.numel() >= MIN_WEIGHTS
    )


def _pack(weight: torch.Tensor) -> Any:
    """``weight`` [out, in] in int8, a scale an output, in the order that the kernel reads."""
    size = weight.abs()
    # Without VNNI the kernel adds two products in 16 bits: 255 * (|a| + |b|) has to fit, 32,767.
    pairs = (size[:, 1:] + size[:, :-1]).amax(1)
    scale = torch.maximum(pairs, size.amax(1)).div(_TOP).clamp(min=_TINY).double()
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    with _packing, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 deprecates the tensor that the kernel's packing takes
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = _ENGINE
        try:
            values = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
            return torch.ops.quantized.linear_prepack(values, None)
        finally:
            torch.backends.quantized.engine = before
