"""What the LoRA operators share: when our kernels can run, and the gradients of ``lora_linear``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from steelworks.kernels.lora_operands import MAX_RANK
from steelworks.paths import Signature

from ._library import Operator, device_type, float_reason

NO_GRAPH: Final = {
    ("mps", "graph"): "PyTorch has no operator for a linear layer with an adapter, so nothing to ask for"
}


def sizes(signature: Signature) -> Mapping[str, int]:
    """The sizes that the time depends on."""
    x, weight, a = signature.shapes[:3]
    assert x is not None and weight is not None and a is not None
    known = {"rows": torch.Size(x[:-1]).numel(), "columns": weight[0], "depth": weight[1], "rank": a[-2]}
    return known if len(a) == 2 else {**known, "adapters": a[0]}


def possible_metal(signature: Signature) -> str | None:
    """Why the Metal kernels can't take such a call, or None."""
    a = signature.shapes[2]
    assert a is not None
    if not 1 <= a[-2] <= MAX_RANK:
        return f"the rank is {a[-2]}; the Metal kernels have 1 to {MAX_RANK}"
    return float_reason(signature.dtype)


def possible_triton(signature: Signature) -> str | None:
    """Why the Triton kernels can't take such a call, or None."""
    a = signature.shapes[2]
    assert a is not None
    if not 1 <= a[-2] <= MAX_RANK:
        return f"the rank is {a[-2]}; the Triton kernels have 1 to {MAX_RANK}"
    return float_reason(signature.dtype)


# --- gradients of lora_linear ---------------------------------------------------------------------------------


def _vendor_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    """Those of x, weight, a, b and bias that are needed, in this order."""
    for_x, for_weight, for_a, for_b, for_bias = needs
    rows, seen = gradient.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
    made = []
    if for_x or for_a:
        back = rows @ b
    if for_x:
        made.append(torch.addmm(rows @ weight, back, a, alpha=scale).view(x.shape))
    if for_weight:
        made.append(rows.mT @ seen)
    if for_a:
        made.append(scale * (back.mT @ seen))
    if for_b:
        made.append(scale * (rows.mT @ low))
    if for_bias:
        made.append(rows.sum(0))
    return made


def _fake_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    shapes = (x.shape, weight.shape, a.shape, b.shape, weight.shape[:1])
    return [x.new_empty(shape) for shape, need in zip(shapes, needs, strict=True) if need]


def _signature_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    return (
        "lora_linear_backward",
        device_type(x),
        x.dtype,
        (x.shape, weight.shape, a.shape, b.shape),
        tuple(needs),
    )


def _check_gradients(*_: Any) -> None:
    """What the forward has let pass is right."""


def _metal_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    from steelworks.kernels.metal.gemm import gemm
    from steelworks.kernels.metal.reduce import reduce

    for_x, for_weight, for_a, for_b, for_bias = needs
    rows, seen = gradient.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
    made = []
    if for_x or for_a:
        back = gemm(rows, b)
    if for_x:
        made.append(gemm(back, a, alpha=scale, residual=gemm(rows, weight)).view(x.shape))
    if for_weight:
        made.append(gemm(rows, seen, trans_a=True))
    if for_a:
        made.append(gemm(back, seen, trans_a=True, alpha=scale))
    if for_b:
        made.append(gemm(rows, low, trans_a=True, alpha=scale))
    if for_bias:
        made.append(reduce("sum", rows, 0))
    return made


def _triton_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    low: torch.Tensor,
    scale: float,
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    from steelworks.kernels.triton import lora as kernels

    for_x, for_weight, for_a, for_b, for_bias = needs
    wanted = (for_x, for_weight, for_a, for_b, for_bias)
    made = kernels.lora_backward(gradient, x, weight, a, b, low, scale, wanted)
    return [m for m in made if m is not None]


#: The gradients of x, weight, a, b and bias that ``needs`` names, in this order.
GRADIENTS: Final = Operator(
    "lora_linear_backward",
    "(Tensor gradient, Tensor x, Tensor weight, Tensor a, Tensor b, Tensor low, float scale, bool[] needs) -> Tensor[]",
    signature=_signature_gradients,
    check=_check_gradients,
    vendor=_vendor_gradients,
    fake=_fake_gradients,
    sizes=sizes,
    family="lora_linear",
    flags=(True, False, True, True, False),
    no_path=NO_GRAPH,
)
GRADIENTS.metal(possible_metal, _metal_gradients)
GRADIENTS.triton(possible_triton, _triton_gradients)
