"""What the kernels should compute, in float64 and in the plainest form. Sections by family, sorted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

# --- attention ----------------------------------------------------------------------------------------------


def attention_weights(
    q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, *, causal: bool, scale: float | None
) -> torch.Tensor:
    """The weights of the keys, ``(batch, heads, queries, keys)``; a row that may see no key has weights 0."""
    group = q.shape[1] // max(k.shape[1], 1)
    keys = k.double().repeat_interleave(group, dim=1)
    scores = q.double() @ keys.transpose(-1, -2) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.double()
    allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
    if causal:
        allowed = allowed.tril(scores.shape[-1] - scores.shape[-2])
    if mask is not None:
        allowed = allowed & (mask if mask.dtype == torch.bool else mask != -math.inf)
    scores = scores.masked_fill(~allowed, -math.inf)
    blind = ~allowed.expand(scores.shape).any(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(blind, 0.0), dim=-1).masked_fill(blind, 0.0)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + mask) v; the arguments are those of ``metal.attention.attention``."""
    weights = attention_weights(q, k, mask, causal=causal, scale=scale)
    return weights @ v.double().repeat_interleave(q.shape[1] // max(k.shape[1], 1), dim=1)


# --- conv2d -------------------------------------------------------------------------------------------------


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> torch.Tensor:
    """Convolution, tap by tap. ``padding`` is (left, right, above, below)."""
    padded = torch.nn.functional.pad(x.double(), padding)
    kernel_h, kernel_w = weight.shape[2:]
    out_h = (padded.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (padded.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    per_group = weight.shape[0] // groups
    taps = weight.double().view(groups, per_group, *weight.shape[1:])
    result = torch.zeros(x.shape[0], groups, per_group, out_h, out_w, dtype=torch.float64)
    for row in range(kernel_h):
        for column in range(kernel_w):
            top, left = row * dilation[0], column * dilation[1]
            seen = padded[
                :, :, top : top + stride[0] * (out_h - 1) + 1 : stride[0],
                left : left + stride[1] * (out_w - 1) + 1 : stride[1],
            ]  # fmt: skip
            seen = seen.reshape(x.shape[0], groups, weight.shape[1], out_h, out_w)
            result += torch.einsum("ngchw,goc->ngohw", seen, taps[..., row, column])
    result = result.reshape(x.shape[0], weight.shape[0], out_h, out_w)
    return result if bias is None else result + bias.double().view(1, -1, 1, 1)


# --- elementwise ----------------------------------------------------------------------------------------------


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """x / 2 * (1 + tanh(u)), as x * sigmoid(2 u): the other form cancels for negative x, in float64 too."""
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


#: By the names of ``metal.elementwise``; what torch has under the same name is not listed.
_ELEMENTWISE: dict[str, Callable[..., torch.Tensor]] = {
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x / math.sqrt(2)),
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * torch.sigmoid(x),
}


def elementwise(operation: str, *operands: torch.Tensor | float) -> torch.Tensor:
    """An operation of ``metal.elementwise``; floating-point tensors become float64, others stay."""
    exact = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in operands]
    function: Callable[..., torch.Tensor] = _ELEMENTWISE.get(operation) or getattr(torch, operation)
    return function(*exact)


# --- embedding ------------------------------------------------------------------------------------------------


def embedding(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """table[ids], and NaN for ids that the table does not have."""
    known = (ids >= 0) & (ids < table.shape[0])
    padded = torch.cat([table.double(), torch.full((1, table.shape[1]), math.nan, dtype=torch.float64)])
    return padded[torch.where(known, ids.long(), table.shape[0])]


# --- gemm -------------------------------------------------------------------------------------------------------


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str | None = None,
) -> torch.Tensor:
    """activation(alpha * op(a) op(b) + bias + beta * residual); the arguments are those of ``metal.gemm.gemm``."""
    left, right = (a.mT if trans_a else a).double(), (b.mT if trans_b else b).double()
    value = alpha * (left @ right)
    if bias is not None:
        value = value + bias.double()
    if residual is not None:
        value = value + beta * residual.double()
    return activate(value, activation)


def activate(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """The activations of the epilogue."""
    if activation == "relu":
        return torch.relu(x)
    if activation == "gelu":
        return torch.nn.functional.gelu(x)
    if activation == "silu":
        return torch.nn.functional.silu(x)
    return x


def gemm_magnitude(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
) -> torch.Tensor:
    """The sum of the absolute values of the terms of each result: what an error bound is relative to."""
    return gemm(
        a.abs(),
        b.abs(),
        trans_a=trans_a,
        trans_b=trans_b,
        bias=None if bias is None else bias.abs(),
        residual=None if residual is None else residual.abs(),
        alpha=abs(alpha),
        beta=abs(beta),
    )


# --- lora ---------------------------------------------------------------------------------------------------


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W^T + bias + scale (x A^T) B^T."""
    rows = x.double()
    low = rows @ a.double().transpose(-1, -2) @ b.double().transpose(-1, -2)
    result = rows @ weight.double().transpose(-1, -2) + scale * low
    return result if bias is None else result + bias.double()


def lora_linear_multi(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    scales: torch.Tensor,
    adapters: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same with the adapter that ``adapters`` names for each row, -1 for none."""
    result = x.double() @ weight.double().transpose(-1, -2)
    for number in range(a.shape[0]):
        chosen = adapters == number
        low = x[chosen].double() @ a[number].double().transpose(-1, -2)
        result[chosen] += float(scales[number]) * (low @ b[number].double().transpose(-1, -2))
    return result if bias is None else result + bias.double()


# --- norms ----------------------------------------------------------------------------------------------------


def layer_norm(
    x: torch.Tensor,
    dimensions: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last ``dimensions`` of x + residual, less their mean, over their standard deviation."""
    return _normalised(x, dimensions, weight, bias, eps, residual, centre=True)


def rms_norm(
    x: torch.Tensor,
    dimensions: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """The last ``dimensions`` of x + residual over the root of their mean square."""
    return _normalised(x, dimensions, weight, bias, eps, residual, centre=False)


def _normalised(
    x: torch.Tensor,
    dimensions: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    residual: torch.Tensor | None,
    centre: bool,
) -> torch.Tensor:
    dims = tuple(range(-dimensions, 0))
    h = x.double() if residual is None else x.double() + residual.double()
    if centre:
        h = h - h.mean(dims, keepdim=True)
    h = h / ((h * h).mean(dims, keepdim=True) + eps).sqrt()
    h = h if weight is None else h * weight.double()
    return h if bias is None else h + bias.double()


# --- quantized ----------------------------------------------------------------------------------------------


def dequantize(
    packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, bits: int, columns: int
) -> torch.Tensor:
    """The numbers that packed integers stand for: scale * (integer - zero), one pair a group of columns."""
    integers = torch.empty(packed.shape[0], packed.shape[1] * 8 // bits, dtype=torch.float64)
    if bits == 8:
        integers[:] = packed.view(torch.int8)
    else:
        integers[:, 0::2], integers[:, 1::2] = packed % 16, packed // 16
    width = integers.shape[1] // scales.shape[1]
    group = torch.arange(columns) // width
    return scales.double()[:, group] * (integers[:, :columns] - zeros.double()[:, group])


def quantized_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + bias for a weight that was dequantized."""
    result = x.double() @ weight.double().transpose(-1, -2)
    return result if bias is None else result + bias.double()


# --- reduce ---------------------------------------------------------------------------------------------------


def reduce(
    operation: str, x: torch.Tensor, dim: int | Sequence[int] | None, *, keepdim: bool = False
) -> torch.Tensor:
    """An operation of ``metal.reduce``; floating-point tensors become float64, others stay."""
    exact = x.double() if x.is_floating_point() else x
    dims = list(range(x.dim())) if dim is None else dim
    if operation in ("argmax", "argmin"):
        found: torch.Tensor = getattr(torch, operation)(exact, dim, keepdim=keepdim)
        return found
    name = {"max": "amax", "min": "amin"}.get(operation, operation)
    exact = exact if x.dim() else exact.reshape(1)
    combined: torch.Tensor = getattr(torch, name)(
        exact, dims if x.dim() else 0, keepdim=keepdim and x.dim() > 0
    )
    return combined.bool() if operation in ("any", "all") else combined


# --- rope -----------------------------------------------------------------------------------------------------


def rope(
    x: torch.Tensor,
    radians: torch.Tensor,
    offset: int | torch.Tensor = 0,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    """Pairs of ``(batch, heads, length, width)`` turned by position times ``radians`` (float64, one a pair)."""
    pairs = radians.numel()
    begin = torch.as_tensor(offset, dtype=torch.float64).reshape(-1, 1)
    positions = begin + torch.arange(x.shape[2], dtype=torch.float64)
    angles = (positions[..., None] * radians.double()).unsqueeze(1) * (-1 if inverse else 1)
    a_at = slice(0, 2 * pairs, 2) if interleaved else slice(0, pairs)
    b_at = slice(1, 2 * pairs, 2) if interleaved else slice(pairs, 2 * pairs)
    turned = x.double().clone()
    a, b = x.double()[..., a_at], x.double()[..., b_at]
    turned[..., a_at] = a * angles.cos() - b * angles.sin()
    turned[..., b_at] = a * angles.sin() + b * angles.cos()
    return turned


# --- scan -----------------------------------------------------------------------------------------------------


def scan(
    operation: str, x: torch.Tensor, dim: int, *, exclusive: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """torch's cumsum, cumprod, cummax or cummin (these with indices), of floating-point tensors in float64.

    The exclusive form is the inclusive one moved by one place, with what nothing combines to in front.
    """
    exact = x.double() if x.is_floating_point() else x
    found = getattr(torch, operation)(exact, dim)
    values, indices = (found, None) if isinstance(found, torch.Tensor) else found
    if not exclusive:
        return values, indices
    if indices is None:
        nothing: float | int = {"cumsum": 0, "cumprod": 1}[operation]
    else:
        nothing = _limit(values.dtype, largest=operation == "cummin")
    return _moved(values, dim, nothing), None if indices is None else _moved(indices, dim, -1)


def _limit(dtype: torch.dtype, *, largest: bool) -> float | int:
    if dtype.is_floating_point:
        return math.inf if largest else -math.inf
    if dtype == torch.bool:
        return int(largest)
    return torch.iinfo(dtype).max if largest else torch.iinfo(dtype).min


def _moved(values: torch.Tensor, dim: int, first: float | int) -> torch.Tensor:
    moved = torch.full_like(values, first)
    if values.dim() and values.shape[dim] > 1:
        moved.narrow(dim, 1, values.shape[dim] - 1).copy_(values.narrow(dim, 0, values.shape[dim] - 1))
    return moved


# --- softmax --------------------------------------------------------------------------------------------------


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """torch's, in float64."""
    return torch.softmax(x.double(), dim)


def log_softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """torch's, in float64."""
    return torch.log_softmax(x.double(), dim)


# --- sort, topk -----------------------------------------------------------------------------------------------


def sort(x: torch.Tensor, dim: int = -1, *, descending: bool = False) -> torch.Tensor:
    """Where the sorted elements are: torch's stable sort, of floating-point tensors in float64."""
    exact = x.double() if x.is_floating_point() else x
    return torch.sort(exact, dim=dim, descending=descending, stable=True)[1]


def topk(x: torch.Tensor, k: int, dim: int = -1, *, largest: bool = True) -> torch.Tensor:
    """Where the k largest or smallest are: the first of a stable sort."""
    if x.dim() == 0:
        return torch.zeros((), dtype=torch.int64)
    return sort(x, dim, descending=largest).narrow(dim, 0, k).contiguous()
