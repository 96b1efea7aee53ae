"""Typical calls of every operation that has a kernel of ours, for ``paths.tune`` to measure.

A row of ``CALLS`` is one call: sizes, and where an operation has variants, which. The first two rows of an operation
are a small and a large call: what a quick measurement makes do with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from . import _copy as _declares_copy  # the overrides alone load it otherwise
from .elementwise import BINARY_OPERATIONS, UNARY_OPERATIONS

Arguments = tuple[Any, ...]
assert _declares_copy


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        sizes: Its sizes; what each means is the operation's.
        variant: Which variant of the operation, where it has some.
    """

    sizes: tuple[int, ...]
    variant: str = ""


@dataclass(frozen=True)
class Draw:
    """Makes tensors of a device and dtype."""

    device: torch.device
    dtype: torch.dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        """Normally distributed numbers: zeros run faster than real data on some units."""
        return torch.randn(shape, device=self.device, dtype=self.dtype)

    def zeros(self, *shape: int) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(shape, device=self.device, dtype=self.dtype)

    def numbers(self, most: int, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Whole numbers below ``most``."""
        return torch.randint(0, most, shape, device=self.device, dtype=dtype)


def _calls(*sizes: tuple[int, ...], variant: str = "") -> tuple[Call, ...]:
    return tuple(Call(one, variant) for one in sizes)


#: Rows and columns.
_ROWS: Final = _calls(
    (32, 1024), (4096, 4096), (1, 1024), (512, 384), (512, 4096), (4096, 1024), (8, 32768)
)  # fmt: skip
#: Rows, columns and terms.
_PRODUCTS: Final = _calls(
    (64, 512, 512), (512, 4096, 4096), (1, 1024, 1024), (1, 4096, 4096), (16, 4096, 4096), (512, 384, 384),
    (512, 1536, 384), (4096, 4096, 4096),
)  # fmt: skip
#: Rows, columns, terms and rank.
_ADAPTERS: Final = _calls(
    (64, 512, 512, 16), (512, 4096, 4096, 16), (1, 512, 512, 16), (1, 4096, 4096, 16), (64, 4096, 4096, 16),
    (64, 4096, 4096, 64), (512, 4096, 4096, 64),
)  # fmt: skip
_ELEMENTS: Final = _calls((65536,), (2**24,))
#: Batch, heads, queries, keys and head size.
_HEADS: Final = (
    (1, 12, 32, 32, 32),
    (8, 16, 512, 512, 64),
    (128, 12, 32, 32, 32),
    (32, 16, 64, 64, 64),
    (8, 12, 128, 128, 64),
)

#: By a name that operations share.
CALLS: Final[dict[str, tuple[Call, ...]]] = {
    "rows": _ROWS,
    "linear": (
        *_PRODUCTS,
        *_calls((32, 1536, 384), (512, 1536, 384), (32, 3072, 768), (4096, 1536, 384), variant="gelu"),
        *_calls((32, 384, 1536), (512, 384, 1536), (32, 768, 3072), (4096, 384, 1536), variant="residual"),
    ),
    "qkv_linear": _calls(
        (32, 384, 384), (4096, 1024, 1024), (1, 384, 384), (512, 768, 768), (4096, 384, 384)
    ),
    "matmul": _PRODUCTS,
    "bmm": _calls((12, 32, 32, 32), (32, 1024, 1024, 64), (12, 256, 256, 32), (96, 128, 128, 64)),
    "attention": (
        *_calls(*_HEADS),
        *_calls((1, 12, 1, 512, 64)),
        *_calls(*_HEADS, variant="masked"),
        *_calls(*_HEADS[1:3], variant="causal"),
    ),
    "lora": _ADAPTERS,
    "multi_lora_linear": tuple(Call((*one.sizes, 64)) for one in _ADAPTERS if one.sizes[0] == 64),
    "quantized_linear": (
        *_calls((1, 4096, 4096), (16, 4096, 4096), (4, 4096, 4096), (1, 1024, 1024), variant="int4"),
        *_calls((64, 4096, 4096), (512, 4096, 4096), variant="int4"),
        *_calls((1, 4096, 4096), (16, 4096, 4096), (512, 4096, 4096), variant="int8"),
    ),
    "dequantize": (*_calls((1024, 1024), (4096, 4096), variant="int4"), *_calls((4096, 4096), variant="int8")),
    "top_k": _calls((1, 65536, 50), (64, 32000, 50), (32, 1000, 5), (4096, 512, 8)),
    "conv2d": _calls(
        (1, 64, 64, 56, 3), (16, 256, 256, 14, 3), (8, 3, 64, 224, 7), (8, 64, 256, 56, 1)
    ),
    "rope": _calls((1, 12, 32, 64), (8, 32, 1024, 128)),
    "embedding": _calls((32, 384, 30522), (8192, 1024, 30522)),
    "elements": _ELEMENTS,
}  # fmt: skip


# --- arguments ------------------------------------------------------------------------------------------------


def _norm(residual: bool, bias: bool) -> Callable[[Draw, Call], Arguments]:
    def make(draw: Draw, call: Call) -> Arguments:
        rows, columns = call.sizes
        weight, added = draw(columns), (draw(rows, columns),) if residual else ()
        return (draw(rows, columns), *added, (columns,), weight, *((weight,) if bias else ()), 1e-5)

    return make


def _linear(draw: Draw, call: Call) -> Arguments:
    m, n, k = call.sizes
    residual = draw(m, n) if call.variant == "residual" else None
    return draw(m, k), draw(n, k), draw.zeros(n), "gelu" if call.variant == "gelu" else None, residual


def _qkv(draw: Draw, call: Call) -> Arguments:
    m, n, k = call.sizes
    return draw(m, k), *(draw(n, k) for _ in range(3)), *(draw.zeros(n) for _ in range(3))


def _matmul(draw: Draw, call: Call) -> Arguments:
    m, n, k = call.sizes
    return draw(m, k), draw(k, n)


def _bmm(draw: Draw, call: Call) -> Arguments:
    batch, m, n, k = call.sizes
    return draw(batch, m, k), draw(batch, k, n)


def _attention(draw: Draw, call: Call) -> Arguments:
    batch, heads, queries, keys, size = call.sizes
    mask = None
    if call.variant == "masked":  # the last quarter is padding
        seen = torch.arange(keys, device=draw.device) < keys - keys // 4
        mask = seen.expand(batch, 1, 1, keys)
    others = (draw(batch, heads, keys, size) for _ in range(2))
    return draw(batch, heads, queries, size), *others, mask, call.variant == "causal", None


def _lora(draw: Draw, call: Call) -> Arguments:
    m, n, k, rank = call.sizes
    return draw(m, k), draw(n, k), draw(rank, k), draw(n, rank), 2.0, None


def _lora_backward(draw: Draw, call: Call) -> Arguments:
    m, n, _, rank = call.sizes
    x, weight, a, b, scale, _ = _lora(draw, call)
    return draw(m, n), x, weight, a, b, draw(m, rank), scale, [True, False, True, True, False]


def _multi_lora(draw: Draw, call: Call) -> Arguments:
    m, n, k, rank, adapters = call.sizes
    scales = torch.full((adapters,), 2.0, device=draw.device)
    named = (torch.arange(m, device=draw.device) % adapters).to(torch.int32)
    return draw(m, k), draw(n, k), draw(adapters, rank, k), draw(adapters, n, rank), scales, named, None


def _weight(draw: Draw, n: int, k: int, variant: str) -> Arguments:
    from . import quantized

    whole = draw(n, k)
    made = quantized.quantize_int4(whole, 128) if variant == "int4" else quantized.quantize_int8(whole)
    return made.packed, made.scales, made.zeros, made.bits, made.group_size, made.columns


def _quantized(draw: Draw, call: Call) -> Arguments:
    m, n, k = call.sizes
    return draw(m, k), *_weight(draw, n, k, call.variant), None


def _dequantize(draw: Draw, call: Call) -> Arguments:
    n, k = call.sizes
    return *_weight(draw, n, k, call.variant), draw.dtype


def _top_k(draw: Draw, call: Call) -> Arguments:
    rows, columns, k = call.sizes
    return draw(rows, columns), k, -1, True, True


def _conv2d(draw: Draw, call: Call) -> Arguments:
    batch, channels, out, size, taps = call.sizes
    around = (taps // 2, taps // 2)
    image, weight = draw(batch, channels, size, size), draw(out, channels, taps, taps)
    return image, weight, draw.zeros(out), (1, 1), around, False, (1, 1), 1, None


def _rope(draw: Draw, call: Call) -> Arguments:
    from .rope import rope_frequencies

    return draw(*call.sizes), rope_frequencies(call.sizes[3], device=draw.device), 0, None, False, False


def _embedding(draw: Draw, call: Call) -> Arguments:
    rows, columns, table = call.sizes
    return draw.numbers(table, rows), draw(table, columns), None


@dataclass(frozen=True)
class _Kind:
    """Which rows of ``CALLS`` an operation has, and its arguments for one."""

    calls: str
    make: Callable[[Draw, Call], Arguments]


def _matrix(*rest: Any) -> _Kind:
    """An operation of a matrix and further arguments."""
    return _Kind("rows", lambda draw, call: (draw(*call.sizes), *rest))


_KINDS: Final[Mapping[str, _Kind]] = {
    "softmax": _matrix(-1, None),
    "log_softmax": _matrix(-1, None),
    "layer_norm": _Kind("rows", _norm(False, True)),
    "rms_norm": _Kind("rows", _norm(False, False)),
    "add_layer_norm": _Kind("rows", _norm(True, True)),
    "add_rms_norm": _Kind("rows", _norm(True, False)),
    "linear": _Kind("linear", _linear),
    "qkv_linear": _Kind("qkv_linear", _qkv),
    "matmul": _Kind("matmul", _matmul),
    "bmm": _Kind("bmm", _bmm),
    "attention": _Kind("attention", _attention),
    "lora_linear": _Kind("lora", _lora),
    "lora_linear_forward": _Kind("lora", _lora),
    "lora_linear_backward": _Kind("lora", _lora_backward),
    "multi_lora_linear": _Kind("multi_lora_linear", _multi_lora),
    "quantized_linear": _Kind("quantized_linear", _quantized),
    "dequantize": _Kind("dequantize", _dequantize),
    "top_k": _Kind("top_k", _top_k),
    "conv2d": _Kind("conv2d", _conv2d),
    "rope": _Kind("rope", _rope),
    "embedding": _Kind("embedding", _embedding),
    "copy": _Kind("elements", lambda draw, call: (draw(*call.sizes),)),
    "sort": _matrix(-1, False),
    **{name: _matrix(-1, False) for name in ("cumsum", "cumprod", "cummax", "cummin")},
    **{name: _matrix((-1,), False) for name in ("sum", "mean", "amax", "amin", "any", "all")},
    **{name: _matrix(-1, False) for name in ("max", "min", "argmax", "argmin")},
    **{name: _Kind("elements", lambda draw, call: (draw(*call.sizes),)) for name in UNARY_OPERATIONS},
    **{
        name: _Kind("elements", lambda draw, call: (draw(*call.sizes), draw(*call.sizes), None))
        for name in BINARY_OPERATIONS
    },
}


def examples_of(operation: str) -> Callable[[torch.device, torch.dtype], Iterator[Arguments]] | None:
    """The typical calls of an operation, made one after the other; None if there are none."""
    kind = _KINDS.get(operation)
    if kind is None:
        return None

    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[Arguments]:
        draw = Draw(device, dtype)
        for call in CALLS[kind.calls]:
            yield kind.make(draw, call)

    return examples
