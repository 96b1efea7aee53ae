"""A linear layer and its low-rank adapter in one operation; one adapter for all rows, or one for each row."""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError

from ._checks import FLOATS, check_devices, check_same_floats
from ._library import Arguments, Operator, Tensors, device_type, dtype_of, shape_of
from ._lora_gradients import GRADIENTS, NO_GRAPH, possible_metal, possible_triton, sizes

#: Elements of A that the vendor composition gathers at once for rows with adapters of their own.
_GATHERED: Final = 2**24


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x W^T + bias + scale (x A^T) B^T``: a linear layer with a low-rank adapter (Hu et al. 2021, LoRA).

    Differentiable in all tensors; gradients are computed for those that need them only. Ours sums in float32,
    ``x A^T`` included, and rounds once; the vendor's composition rounds ``x A^T`` to the dtype.

    Args:
        x: ``(..., k)``, floating point.
        weight: W, ``(n, k)``, of x's dtype.
        a: A, ``(r, k)``, of x's dtype.
        b: B, ``(n, r)``, of x's dtype.
        scale: What the low-rank part is multiplied by, usually ``alpha / r``.
        bias: ``(n,)``, of x's dtype.

    Returns:
        ``(..., n)``.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit together.
    """
    tensors, arguments = (x, weight, a, b, bias), (x, weight, a, b, scale, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        trained: torch.Tensor = _FORWARD(tensors, arguments)[0]
        return trained
    result: torch.Tensor = _LORA(tensors, arguments)
    return result


def multi_lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """``lora_linear`` with an adapter for each row: requests for several adapters in one batch.

    An adapter that holds NaN or infinity harms the rows that name it, and no other. Differentiable, through the
    vendor's composition.

    Args:
        x: ``(..., k)``, floating point.
        weight: W, ``(n, k)``, of x's dtype.
        a: All A, ``(count, r, k)``, of x's dtype. An adapter of lower rank is filled up with zeros.
        b: All B, ``(count, n, r)``, of x's dtype.
        scales: ``(count,)``, float32 (of another floating-point dtype they are converted).
        adapters: The adapter of each row, int32 (or int64, which costs a conversion), of shape ``x.shape[:-1]``; -1 and
            any number that names no adapter mean none. Rows that share an adapter should lie together.
        bias: ``(n,)``, of x's dtype.

    Returns:
        ``(..., n)``.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit together.
    """
    arguments = (x, weight, a, b, scales, adapters, bias)
    result: torch.Tensor = _MULTI(arguments, arguments)
    return result


def _vendor(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return _vendor_forward(x, weight, a, b, scale, bias)[0]


def _vendor_forward(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and ``x A^T`` as a matrix."""
    base = F.linear(x, weight, bias)
    low = F.linear(x.reshape(-1, x.shape[-1]), a)
    rows = base if base.dim() == 2 else base.reshape(low.shape[0], -1)
    added = torch.addmm(rows, low, b.mT, alpha=scale)  # which adds and scales in the product itself
    return added if base.dim() == 2 else added.view(base.shape), low


def _vendor_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    base = F.linear(x, weight, bias)
    count, rank, k = a.shape
    if count == 0 or base.numel() == 0:
        return base
    rows = x.reshape(-1, k, 1)
    named = adapters.reshape(-1)
    known = (named >= 0) & (named < count)
    number = torch.where(known, named, 0)
    factor = scales.to(x.dtype)[number].view(-1, 1, 1)
    step = max(1, _GATHERED // max(rank * (k + weight.shape[0]), 1))
    parts = []
    for first in range(0, rows.shape[0], step):
        part = slice(first, first + step)
        low = torch.bmm(a[number[part]], rows[part]) * factor[part]
        parts.append(torch.bmm(b[number[part]], low).squeeze(-1))
    low_rank = parts[0] if len(parts) == 1 else torch.cat(parts)
    # where, not a product: what the adapter of another row holds may be NaN.
    added = torch.where(known[:, None], low_rank, 0)
    return base + added.view(base.shape)


# --- gradients ------------------------------------------------------------------------------------------------


def _saved(inputs: Arguments, _: Any) -> tuple[Tensors, Any]:
    return inputs[:4], inputs[4]


def _saved_forward(inputs: Arguments, output: Any) -> tuple[Tensors, Any]:
    return (*inputs[:4], output[1]), inputs[4]


def _backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
    """Of both operators. The second result of the forward one is not given out, so that it has no gradient.

    For second derivatives it is computed again: as kept, it would not depend on x and A.
    """
    x, weight, a, b, *kept = ctx.saved_tensors
    again = not kept or torch.is_grad_enabled()
    low = F.linear(x.reshape(-1, x.shape[-1]), a) if again else kept[0]
    needed = ctx.needs_input_grad
    needs = [needed[at] for at in (0, 1, 2, 3, 5)]
    tensors = (gradient, x, weight, a, b, low)
    made = iter(GRADIENTS(tensors, (*tensors, ctx.rest, needs)))
    of_x, of_weight, of_a, of_b, of_bias = (next(made) if need else None for need in needs)
    return of_x, of_weight, of_a, of_b, None, of_bias


# --- selection ------------------------------------------------------------------------------------------------


def _fake(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_forward(
    x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return _fake(x, weight), x.new_empty((x.shape[:-1].numel(), a.shape[0]))


def _signature(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
) -> tuple[Any, ...]:
    shapes = (x.shape, weight.shape, a.shape, b.shape, shape_of(bias))
    return ("lora_linear", device_type(x), x.dtype, shapes, (weight.dtype, a.dtype, b.dtype, dtype_of(bias)))


def _signature_forward(*arguments: Any) -> tuple[Any, ...]:
    return ("lora_linear_forward", *_signature(*arguments)[1:])


def _signature_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[Any, ...]:
    shapes = (x.shape, weight.shape, a.shape, b.shape, scales.shape, adapters.shape, shape_of(bias))
    dtypes = (weight.dtype, a.dtype, b.dtype, scales.dtype, adapters.dtype, dtype_of(bias))
    return ("multi_lora_linear", device_type(x), x.dtype, shapes, dtypes)


def _check(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
) -> None:
    _check_shapes("lora_linear", x, weight, a, b, bias, ())


def _check_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    name = "multi_lora_linear"
    _check_shapes(name, x, weight, a, b, bias, a.shape[:1])
    check_devices(name, x=x, scales=scales, adapters=adapters)
    if scales.shape != a.shape[:1] or scales.dtype not in FLOATS:
        raise InvalidInputError(
            f"{name}: scales is {scales.dtype} of shape {tuple(scales.shape)}; float32 of shape "
            f"{tuple(a.shape[:1])} is needed, one number for each adapter"
        )
    if adapters.shape != x.shape[:-1] or adapters.dtype not in (torch.int32, torch.int64):
        raise InvalidInputError(
            f"{name}: adapters is {adapters.dtype} of shape {tuple(adapters.shape)}; int32 or int64 of shape "
            f"{tuple(x.shape[:-1])}, the rows of x, is needed"
        )


def _check_shapes(
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    stack: tuple[int, ...],
) -> None:
    if weight.dim() != 2:
        raise InvalidInputError(f"{name}: weight has shape {tuple(weight.shape)}; (n, k) is needed")
    n, k = weight.shape
    if x.dim() < 1 or x.shape[-1] != k:
        raise InvalidInputError(
            f"{name}: x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; (..., {k}) is needed"
        )
    letters = "(count, r, k)" if name.startswith("multi") else "(r, k)"
    if a.dim() != letters.count(",") + 1 or a.shape[-1] != k:
        raise InvalidInputError(
            f"{name}: a has shape {tuple(a.shape)} and weight {tuple(weight.shape)}; {letters} with k = {k} is needed"
        )
    rank = a.shape[-2]
    for what, tensor, shape in (("b", b, (*stack, n, rank)), ("bias", bias, (n,))):
        if tensor is not None and tensor.shape != shape:
            raise InvalidInputError(
                f"{name}: {what} has shape {tuple(tensor.shape)}; {tuple(shape)} is needed, for a weight of shape "
                f"{tuple(weight.shape)} and an A of shape {tuple(a.shape)}"
            )
    check_same_floats(name, x=x, weight=weight, a=a, b=b, bias=bias)
    check_devices(name, x=x, weight=weight, a=a, b=b, bias=bias)


def _metal(*arguments: Any) -> torch.Tensor:
    from steelworks.kernels.metal import lora as kernels

    return kernels.lora_linear(*arguments)


def _metal_forward(
    x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.metal.gemm import gemm

    return _metal(x, weight, a, *rest), gemm(x.reshape(-1, x.shape[-1]), a, trans_b=True)


def _metal_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    from steelworks.kernels.metal import lora as kernels

    return kernels.lora_linear_multi(x, weight, a, b, scales.float(), _int32(adapters, a.shape[0]), bias)


def _triton(*arguments: Any) -> torch.Tensor:
    from steelworks.kernels.triton import lora as kernels

    return kernels.lora_linear(*arguments)


def _triton_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from steelworks.kernels.triton import lora as kernels

    return kernels.lora_forward(*arguments)


def _triton_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    from steelworks.kernels.triton import lora as kernels

    return kernels.multi_lora_linear(x, weight, a, b, scales.float(), _int32(adapters, a.shape[0]), bias)


def _int32(adapters: torch.Tensor, count: int) -> torch.Tensor:
    """As the kernels take them; a number too large for int32 still names no adapter."""
    return adapters if adapters.dtype == torch.int32 else adapters.clamp(-1, count).to(torch.int32)


_SCHEMA: Final = "(Tensor x, Tensor weight, Tensor a, Tensor b, float scale, Tensor? bias) -> "

_LORA: Final = Operator(
    "lora_linear",
    _SCHEMA + "Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=sizes,
    no_path=NO_GRAPH,
    backward=_backward,
    saved=_saved,
    autocast="lower",
)
_LORA.metal(possible_metal, _metal)
_LORA.triton(possible_triton, _triton)

#: The same for training: it also gives what the backward would have to compute again.
_FORWARD: Final = Operator(
    "lora_linear_forward",
    _SCHEMA + "(Tensor, Tensor)",
    signature=_signature_forward,
    check=_check,
    vendor=_vendor_forward,
    fake=_fake_forward,
    sizes=sizes,
    family="lora_linear",
    no_path=NO_GRAPH,
    backward=_backward,
    saved=_saved_forward,
    autocast="lower",
)
_FORWARD.metal(possible_metal, _metal_forward)
_FORWARD.triton(possible_triton, _triton_forward)

_MULTI: Final = Operator(
    "multi_lora_linear",
    "(Tensor x, Tensor weight, Tensor a, Tensor b, Tensor scales, Tensor adapters, Tensor? bias) -> Tensor",
    signature=_signature_multi,
    check=_check_multi,
    vendor=_vendor_multi,
    fake=_fake,
    sizes=sizes,
    no_path=NO_GRAPH,
    autocast="lower",
)
_MULTI.metal(possible_metal, _metal_multi)
_MULTI.triton(possible_triton, _triton_multi)
