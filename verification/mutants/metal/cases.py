"""The cases that mutants of the Metal kernels are tried on: few, with sizes that need every guard and barrier.

Each has several threadgroups and tiles, edges that are not whole, and terms left over. Operands are exactly as large as
they must be, so that what is read behind them is out of bounds, or are views with NaN between their rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from unittest.mock import patch

import torch
from _cases import assert_close, embedded, padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal import gemm as gemm_host
from steelworks.kernels.metal import reduce as reduce_host
from steelworks.kernels.metal import tuning
from steelworks.kernels.metal._launch import Variant, empty, launch
from steelworks.kernels.metal.attention import attention
from steelworks.kernels.metal.conv2d import conv2d
from steelworks.kernels.metal.elementwise import binary, unary
from steelworks.kernels.metal.embedding import embedding
from steelworks.kernels.metal.lora import lora_linear, lora_linear_multi
from steelworks.kernels.metal.norms import _Params as NormParams
from steelworks.kernels.metal.norms import add_layer_norm, layer_norm
from steelworks.kernels.metal.quantized import quantize_int4, quantize_int8, quantized_linear
from steelworks.kernels.metal.rope import rope, rope_table
from steelworks.kernels.metal.scan import cumsum
from steelworks.kernels.metal.softmax import softmax
from steelworks.kernels.metal.sort import sort
from steelworks.kernels.metal.topk import topk
from steelworks.kernels.metal.tuning import GemmTile, GemvColumns, GemvDot, Row

F32, F16 = torch.float32, torch.float16
Result = torch.Tensor | tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One thing to run.

    Attributes:
        family: The folder of its kernels.
        name: What it is.
        run: Launches, and returns the results.
        verify: Raises AssertionError unless the results are right.
    """

    family: str
    name: str
    run: Callable[[], Result]
    verify: Callable[[Any], None]

    @property
    def id(self) -> str:
        """Unique."""
        return f"{self.family}: {self.name}"


def _draw(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    seed = sum((i + 3) * n for i, n in enumerate(shape))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _close(
    family: str,
    name: str,
    run: Callable[[], Result],
    want: Callable[[], torch.Tensor],
    size: Callable[[], torch.Tensor] | float,
    terms: int,
    extra: float = 0.0,
) -> Case:
    """A case whose result must be within the bound of a sum of ``terms`` terms of this size in all."""

    def verify(got: torch.Tensor) -> None:
        magnitude = size if isinstance(size, float) else size()
        assert_close(family, got, want(), name, terms=terms, magnitude=magnitude, extra=extra)

    return Case(family, name, run, verify)


# --- attention ----------------------------------------------------------------------------------------------


def _attention(
    name: str,
    queries: int,
    keys: int,
    d: int,
    dv: int,
    *,
    heads: int = 2,
    masked: bool = False,
    causal: bool = False,
    splits: int = 1,
    dtype: torch.dtype = F32,
    batch: int = 1,
) -> Case:
    q, k, v = (
        _draw(batch, heads, queries, d, dtype=dtype),
        _draw(batch, 1, keys, d, dtype=dtype),
        _draw(batch, 1, keys, dv, dtype=dtype),
    )
    mask = _draw(batch, heads, queries, keys) > -0.7 if masked else None

    def run() -> torch.Tensor:
        # Splits want thousands of keys; here they get few.
        with patch.object(tuning, "ATTENTION_SPLITS", (Row(splits, "a mutant's case"),)):
            return attention(q, k, v, mask, causal=causal)

    def want() -> torch.Tensor:
        return reference.attention(q, k, v, mask, causal=causal)

    # A score is a sum of d products, of size 30 at most here; its error is the relative error of a weight.
    return _close("attention", name, run, want, lambda: want().abs() + 1.0, keys, extra=(d + 30) * 2.0**-20)


def _attention_cases() -> Iterator[Case]:
    yield _attention("vector", 3, 45, 40, 50, masked=True, batch=2)
    yield _attention("vector, causal, more queries than keys", 5, 3, 40, 64, masked=True, causal=True)
    yield _attention("vector, split", 3, 47, 40, 50, splits=4)
    yield _attention("vector, more splits than keys", 3, 5, 40, 50, splits=4)
    yield _attention("tiles", 37, 63, 64, 40, masked=True)
    yield _attention("tiles, causal", 37, 63, 40, 64, masked=True, causal=True, batch=2)
    yield _attention("tiles, causal, more queries than keys", 70, 33, 64, 64, masked=True, causal=True)
    yield _attention("tiles of halves that threads do not divide", 33, 64, 80, 72, dtype=F16)
    yield _attention("shared tile", 19, 23, 130, 256, causal=True)
    yield _attention("shared tile, whole keys", 17, 23, 256, 130)
    yield _attention("tiles, whole blocks of keys", 33, 64, 40, 40, masked=True)
    yield _attention("shared tile, whole blocks of keys", 17, 24, 130, 130)


# --- conv2d -------------------------------------------------------------------------------------------------


def _conv2d(
    name: str,
    shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    last: bool = False,
    infinite: bool = False,
    **options: Any,
) -> Case:
    x, weight = _draw(*shape), _draw(*weight_shape)
    if infinite:
        x[0, 0, 5, 3] = float("inf")  # in the windows of some outputs only
    bias = _draw(weight_shape[0])
    if last:
        x = x.to(memory_format=torch.channels_last)
    pad = options.get("padding", 0)
    plain = {**options, "padding": (pad, pad, pad, pad)}
    for key in ("stride", "dilation"):
        plain[key] = options.get(key, (1, 1))
    terms = weight[0].numel()
    return _close(
        "conv2d",
        name,
        lambda: conv2d(x, weight, bias, **options),
        lambda: reference.conv2d(x, weight, bias, **plain),
        lambda: reference.conv2d(x.abs(), weight.abs(), bias.abs(), **plain),
        terms,
    )


def _conv2d_cases() -> Iterator[Case]:
    yield _conv2d("a channel a group", (2, 3, 7, 6), (6, 1, 3, 2), padding=1, groups=3, stride=(2, 1))
    yield _conv2d("planes, many pixels", (2, 3, 9, 8), (31, 3, 3, 3), padding=1)
    yield _conv2d("planes, many channels", (2, 6, 6, 7), (74, 3, 2, 3), groups=2, dilation=(1, 2))
    yield _conv2d("planes, no padding", (1, 4, 7, 7), (32, 4, 2, 2))
    yield _conv2d("channels last", (2, 7, 9, 8), (32, 7, 3, 3), last=True, padding=1, infinite=True)
    yield _conv2d("channels last, groups", (2, 8, 5, 7), (70, 4, 2, 3), last=True, groups=2, stride=(1, 2))


# --- elementwise --------------------------------------------------------------------------------------------


def _elementwise(name: str, operation: str, *operands: Any) -> Case:
    def run() -> torch.Tensor:
        return unary(operation, *operands) if len(operands) == 1 else binary(operation, *operands)

    return _close("elementwise", name, run, lambda: reference.elementwise(operation, *operands), 4.0, 1)


def _elementwise_cases() -> Iterator[Case]:
    yield _elementwise("unary, dense", "relu", _draw(2051))
    yield _elementwise("unary, dense, one short of whole packets", "relu", _draw(1023))
    yield _elementwise("unary, strided", "relu", padded_rows(_draw(70, 7)))
    yield _elementwise("unary, rows longer than a threadgroup", "relu", padded_rows(_draw(3, 1030)))
    yield _elementwise("binary, dense", "add", _draw(2050), _draw(2050) + 1)
    yield _elementwise("binary, dense, one for all", "add", _draw(1027), _draw(1))
    yield _elementwise("binary, a number", "add", _draw(1027), 0.5)
    yield _elementwise("binary, strided", "add", padded_rows(_draw(70, 7)), _draw(70, 1))
    yield _elementwise("binary, a number, strided", "add", padded_rows(_draw(70, 7)), 0.5)


# --- embedding ----------------------------------------------------------------------------------------------


def _embedding_cases() -> Iterator[Case]:
    ids = torch.randint(0, 50, (37,), generator=torch.Generator().manual_seed(1))
    wrong = ids.clone()
    wrong[[0, 17, 36]] = torch.tensor([-1, 50, 2**40])
    for name, given, table in (
        ("rows apart", wrong, padded_rows(_draw(50, 29))),
        ("dense", ids, _draw(50, 7)),
        ("one id, wide", wrong[:1], _draw(50, 1030)),
    ):
        yield _close(
            "embedding",
            name,
            lambda given=given, table=table: embedding(given, table, check=False),  # type: ignore[misc]
            lambda given=given, table=table: reference.embedding(given, table),  # type: ignore[misc]
            1.0,
            1,
        )


# --- gemm ---------------------------------------------------------------------------------------------------


def _gemm(
    name: str,
    choice: tuning.GemmChoice,
    a: torch.Tensor,
    b: torch.Tensor,
    splits: int = 1,
    *,
    extras: bool = False,
) -> Case:
    m, n = a.shape[-2], b.shape[-1]
    options: dict[str, Any] = {"bias": _draw(n), "residual": padded_rows(_draw(m, n))} if extras else {}

    def run() -> torch.Tensor:
        problem = gemm_host._problem(a, b, gemm_host._Options(**options))
        gemm_host._run(problem, choice, splits)
        return problem.out

    return _close(
        "gemm",
        name,
        run,
        lambda: reference.gemm(a, b, **options),
        lambda: reference.gemm_magnitude(a, b, **options),
        a.shape[-1],
    )


def _gemm_cases() -> Iterator[Case]:
    double, single = GemmTile(32, 32, 16, 2, 2, 2), GemmTile(8, 64, 32, 1, 4, 1)
    yield _gemm("two stages, nn", double, padded_rows(_draw(70, 37)), _draw(37, 45), extras=True)
    yield _gemm("two stages, nn, whole tiles", double, _draw(32, 48), _draw(48, 64))
    yield _gemm("two stages, nn, rows whole and columns not", double, _draw(32, 33), _draw(33, 40))
    yield _gemm("two stages, nn, columns whole and rows not", double, _draw(40, 33), _draw(33, 32))
    yield _gemm("two stages, nn, no terms", double, _draw(40, 0), _draw(0, 33), extras=True)
    yield _gemm("one stage, tt, a band left over", single, _draw(70, 70).mT, padded_rows(_draw(130, 70)).mT)
    yield _gemm("split", double, _draw(9, 95), _draw(95, 37), 3, extras=True)
    yield _gemm("split, batches", double, _draw(2, 9, 90), _draw(2, 90, 37), 4)
    yield _gemm("split, few terms", double, _draw(9, 33), _draw(33, 37), 3)
    dot = GemvDot(rows=2, columns=4, simds_k=4, simds_n=2)
    yield _gemm("dot, one row of two", dot, embedded(_draw(1, 531)), _draw(37, 531).mT, extras=True)
    yield _gemm("dot, two rows, split", dot, _draw(2, 191), _draw(42, 191).mT, 3)
    yield _gemm("dot, few terms", dot, _draw(2, 35), padded_rows(_draw(9, 35)).mT)
    yield _gemm("dot, one simdgroup a sum", GemvDot(1, 4, 1, 4), _draw(1, 131), _draw(35, 131).mT)
    wide = GemvColumns(rows=4, packet=4, simds=4)
    yield _gemm("columns, three rows of four", wide, _draw(3, 149), _draw(149, 131), extras=True)
    yield _gemm("columns, four rows, split", wide, padded_rows(_draw(4, 133)), padded_rows(_draw(133, 38)), 3)


# --- lora ---------------------------------------------------------------------------------------------------


def _lora(
    name: str, m: int, n: int, k: int, r: int, *, adapters: Sequence[int] = (), apart: bool = False
) -> Case:
    x, weight, bias = _draw(m, k), padded_rows(_draw(n, k)), _draw(n)
    x = padded_rows(x) if apart else x
    if adapters:
        count = 3
        a, b, scales = _draw(count, r, k), _draw(count, n, r), _draw(count)
        of_row = torch.tensor([adapters[i % len(adapters)] for i in range(m)], dtype=torch.int32)
        return _close(
            "lora",
            name,
            lambda: lora_linear_multi(x, weight, a, b, scales, of_row, bias),
            lambda: reference.lora_linear_multi(x, weight, a, b, scales, of_row, bias),
            lambda: reference.lora_linear_multi(
                x.abs(), weight.abs(), a.abs(), b.abs(), scales.abs(), of_row, bias.abs()
            ),
            k + r + 10,
        )
    one_a, one_b = _draw(r, k), _draw(n, r)
    return _close(
        "lora",
        name,
        lambda: lora_linear(x, weight, one_a, one_b, 0.5, bias),
        lambda: reference.lora_linear(x, weight, one_a, one_b, 0.5, bias),
        lambda: reference.lora_linear(x.abs(), weight.abs(), one_a.abs(), one_b.abs(), 0.5, bias.abs()),
        k + r + 10,
    )


def _lora_cases() -> Iterator[Case]:
    yield _lora("vector", 3, 70, 45, 5, apart=True)
    yield _lora("vector, adapters", 3, 70, 45, 5, adapters=(2, -1, 3))
    yield _lora("vector, adapters, rank above a simdgroup", 2, 65, 33, 37, adapters=(0, 2))
    yield _lora("tiles", 31, 31, 40, 20, apart=True)
    yield _lora("tiles, whole rank and rows", 32, 45, 47, 32)
    yield _lora("tiles, adapters", 45, 32, 37, 5, adapters=(2, -1, 0, 3, 2))
    yield _lora(
        "tiles, adapters, whole rank, a tile without any", 34, 32, 40, 8, adapters=(*(-1,) * 32, 1, 0)
    )
    yield _lora("tiles, adapters, two rows a lane", 64, 40, 16, 8, adapters=(*(0,) * 32, *(2,) * 32))


# --- norms --------------------------------------------------------------------------------------------------


def _norm_size(x: torch.Tensor) -> torch.Tensor:
    return 4.0 * x.double().abs().amax(-1, keepdim=True) / x.double().std(-1, keepdim=True) + 4.0


def _norms_cases() -> Iterator[Case]:
    for name, x in (("short rows", padded_rows(_draw(37, 31))), ("a threadgroup a row", _draw(3, 1023))):
        width = x.shape[-1]
        weight, bias, residual = _draw(width), _draw(width) * 0.5, _draw(*x.shape) * 0.5
        total = x + residual

        def want(
            total: torch.Tensor = total, weight: torch.Tensor = weight, bias: torch.Tensor = bias
        ) -> torch.Tensor:
            return reference.layer_norm(total, 1, weight, bias, 1e-5)

        def size(total: torch.Tensor = total, weight: torch.Tensor = weight) -> torch.Tensor:
            return _norm_size(total) * (1.0 + weight.double().abs())

        yield _close(
            "norms",
            name,
            lambda x=x, w=weight, b=bias, r=residual: layer_norm(x, x.shape[-1], w, b, residual=r),  # type: ignore[misc]
            want,
            size,
            width,
        )

        def verify(
            got: tuple[torch.Tensor, torch.Tensor],
            total: torch.Tensor = total,
            want: Any = want,
            size: Any = size,
        ) -> None:
            assert_close("norms", got[0], want(), "norm", terms=total.shape[-1], magnitude=size())
            assert_close("norms", got[1], total, "sum", terms=2, magnitude=4.0)

        if x.is_contiguous():
            yield Case(
                "norms",
                f"{name}, with the sum",
                lambda x=x, w=weight, b=bias, r=residual: add_layer_norm(x, r, x.shape[-1], w, b),  # type: ignore[misc]
                verify,
            )
    x, weight, bias = _draw(3, 1001), _draw(1001), _draw(1001)

    def looped() -> torch.Tensor:
        out = empty(x.shape, x.dtype, x.device)
        params = NormParams(3, 1001, 1001, 1001, 1, 1, 0, 0)
        variant = Variant("norms", "norm_row_looped", ("float", "float", False, 4))
        values = [getattr(params, field) for field in NormParams.__dataclass_fields__]
        launch(variant, x, x, weight, bias, out, out, values, 1e-5, threads=(3 * 96,), group=(96,))
        return out

    yield _close(
        "norms",
        "looped",
        looped,
        lambda: reference.layer_norm(x, 1, weight, bias, 1e-5),
        lambda: _norm_size(x) * (1.0 + weight.double().abs()),
        1001,
    )


# --- probe ------------------------------------------------------------------------------------------------------


def _probe_cases() -> Iterator[Case]:
    for group in (32, 96):
        x = _draw(2, group)

        def run(x: torch.Tensor = x, group: int = group) -> torch.Tensor:
            out = empty((2, group, 2), x.dtype, x.device)
            launch(Variant("probe", "probe", ("float",)), x, out, threads=(2 * group,), group=(group,))
            return out

        def want(x: torch.Tensor = x) -> torch.Tensor:
            both = torch.stack([x.double().sum(-1), x.double().amax(-1)], -1)
            return both.unsqueeze(1).expand(2, x.shape[-1], 2)

        yield _close(
            "probe", f"{group} threads", run, want, lambda x=x: x.double().abs().sum(-1)[:, None, None], group
        )  # type: ignore[misc]


# --- quantized ----------------------------------------------------------------------------------------------


def _quantized(name: str, m: int, n: int, k: int, bits: int, *, apart: bool = False) -> Case:
    x, bias = _draw(m, k), _draw(n)
    x = padded_rows(x) if apart else x
    packed = quantize_int4(_draw(n, k), 32) if bits == 4 else quantize_int8(_draw(n, k))
    full = reference.dequantize(packed.packed, packed.scales, packed.zeros, bits, k)
    return _close(
        "quantized",
        name,
        lambda: quantized_linear(x, packed, bias),
        lambda: reference.quantized_linear(x, full, bias),
        lambda: reference.quantized_linear(x.abs(), full.abs(), bias.abs()) * 4,
        k,
    )


def _quantized_cases() -> Iterator[Case]:
    yield _quantized("vector, 8 bits", 3, 37, 301, 8)
    yield _quantized("vector, 4 bits", 2, 33, 75, 4, apart=True)
    yield _quantized("tiles, 4 bits", 45, 37, 75, 4, apart=True)
    yield _quantized("tiles, 8 bits, a row short", 31, 40, 40, 8)
    yield _quantized("tiles, 8 bits, whole rows", 32, 32, 63, 8)


# --- reduce -------------------------------------------------------------------------------------------------


def _reduce(name: str, x: torch.Tensor, dim: int, chunk: int = 0) -> Case:
    """A sum; with a chunk, in two passes (which by the table only long ones take)."""

    def run() -> torch.Tensor:
        if not chunk:
            return reduce_host.reduce("sum", x, dim)
        length = x.shape[dim]
        results, inner = x.numel() // length, x.shape[dim + 1 :].numel() if dim >= 0 else 1
        out = empty([n for d, n in enumerate(x.shape) if d != dim % x.dim()], x.dtype, x.device)
        params = reduce_host._Params(results, length, length, inner, chunk, -(-length // chunk), length)
        passes = reduce_host._rows_launch if inner == 1 else reduce_host._columns_launch
        reduce_host._two_passes(reduce_host._OPERATIONS["sum"], x, out, params, passes)
        return out

    return _close(
        "reduce",
        name,
        run,
        lambda: reference.reduce("sum", x, dim),
        lambda: reference.reduce("sum", x.abs(), dim),
        x.shape[dim],
    )


def _reduce_cases() -> Iterator[Case]:
    yield _reduce("short rows", padded_rows(_draw(37, 31)), -1)
    yield _reduce("short rows, dense", _draw(37, 29), -1)
    yield _reduce("a threadgroup a row", _draw(3, 1023), -1)
    yield _reduce("rows in two passes", _draw(3, 1023), -1, chunk=128)
    yield _reduce("columns", _draw(2, 21, 33), 1)
    yield _reduce("columns in two passes", _draw(2, 79, 33), 1, chunk=16)


# --- rope ---------------------------------------------------------------------------------------------------


def _rope_cases() -> Iterator[Case]:
    offsets = torch.tensor([3, 11], dtype=torch.int32)
    for name, shape, pairs, interleaved in (
        ("halves", (2, 5, 70, 10), 4, False),
        ("neighbours, an odd one left", (2, 6, 5, 11), 3, True),
        ("wide", (1, 3, 3, 140), 70, False),
    ):
        x = _draw(*shape)
        x[..., 2 * pairs :] = float("inf")  # what is copied takes no part in any sum
        radians = torch.linspace(0.1, 1.0, pairs, dtype=torch.float64)
        table = rope_table(radians)
        offset = offsets[: shape[0]]
        yield _close(
            "rope",
            name,
            lambda x=x, t=table, o=offset, i=interleaved: rope(x, t, o, interleaved=i),  # type: ignore[misc]
            lambda x=x, r=radians, o=offset, i=interleaved: reference.rope(x, r, o, interleaved=i),  # type: ignore[misc]
            8.0,
            4,
            extra=1e-6,
        )


# --- scan ---------------------------------------------------------------------------------------------------


def _scan(name: str, x: torch.Tensor, dim: int, least: int = 10**6, *, exclusive: bool = False) -> Case:
    """Running sums; of several threadgroups a line if ``least`` elements each are left (by the table, thousands)."""

    def run() -> torch.Tensor:
        split = tuning.ReduceSplit(groups=64, least=least)
        with patch.multiple(tuning, SCAN_ROWS_SPLIT=split, SCAN_COLUMNS_SPLIT=split):
            return cumsum(x, dim, exclusive=exclusive)

    def want() -> torch.Tensor:
        sums = x.double().cumsum(dim)
        return sums - x.double() if exclusive else sums

    return _close("scan", name, run, want, lambda: x.double().abs().cumsum(dim), x.shape[dim])


def _scan_cases() -> Iterator[Case]:
    yield _scan("short rows", padded_rows(_draw(11, 31)), -1)
    yield _scan("short rows, dense, exclusive", _draw(11, 263), -1, exclusive=True)
    yield _scan("a threadgroup a row", _draw(2, 5003), -1)
    yield _scan("a threadgroup a row, of few simdgroups", _draw(2, 1003), -1)
    yield _scan("rows in three launches", _draw(3, 515), -1, least=100)
    yield _scan("columns", _draw(2, 21, 33), 1)
    yield _scan("columns in three launches, exclusive", _draw(2, 79, 33), 1, least=16, exclusive=True)


# --- sort, topk ---------------------------------------------------------------------------------------------


def _same(family: str, name: str, run: Callable[[], Result], want: Callable[[], Any]) -> Case:
    """A case whose results must be these, bit by bit."""

    def verify(got: tuple[torch.Tensor, ...]) -> None:
        for part, right in zip(got, want(), strict=True):
            assert torch.equal(part, right), f"{name}: {int((part != right).sum())} elements differ"

    return Case(family, name, run, verify)


def _ties(*shape: int) -> torch.Tensor:
    return (_draw(*shape) * 9).round()


def _sort_cases() -> Iterator[Case]:
    for name, x, dim in (
        ("a tile of its own", padded_rows(_ties(3, 309)), -1),
        ("a full threadgroup and less", _ties(2, 2041), -1),
        ("columns", _ties(2, 37, 5), 1),
        ("two passes of merging", _ties(2, 4103), -1),
        ("two passes of merging columns", _ties(1, 4101, 2), 1),
    ):
        yield _same(
            "sort",
            name,
            lambda x=x, dim=dim: sort(x, dim),  # type: ignore[misc]
            lambda x=x, dim=dim: torch.sort(x, dim=dim, stable=True),  # type: ignore[misc]
        )


def _topk_cases() -> Iterator[Case]:
    for name, x, k, dim in (
        ("one chunk", padded_rows(_ties(3, 211)), 37, -1),
        ("columns", _ties(2, 101, 3), 9, 1),
        ("several chunks", _ties(2, 1003), 20, -1),
        ("several chunks, a rest of fewer than k", _ties(3, 523), 20, -1),
        ("a line as one chunk, read several times", _ties(2, 701), 100, -1),
    ):

        def run(x: torch.Tensor = x, k: int = k, dim: int = dim) -> Result:
            with patch.object(tuning, "TOPK_CHUNK", 200):  # by the table thousands
                return topk(x, k, dim, largest=False)

        def want(x: torch.Tensor = x, k: int = k, dim: int = dim) -> list[torch.Tensor]:
            return [part.narrow(dim, 0, k) for part in torch.sort(x, dim=dim, stable=True)]

        yield _same("topk", name, run, want)


# --- softmax ------------------------------------------------------------------------------------------------


def _softmax_launched(
    kernel: str, last: int, x: torch.Tensor, params: list[int], groups: int, group: int
) -> torch.Tensor:
    out = empty(x.shape, x.dtype, x.device)
    variant = Variant("softmax", kernel, ("float", "float", False, last))
    launch(variant, x, out, params, threads=(groups * group,), group=(group,))
    return out


def _softmax_cases() -> Iterator[Case]:
    short, longer, columns = _draw(37, 31), _draw(3, 1023), _draw(2, 21, 33)
    runs: dict[str, tuple[Callable[[], Result], torch.Tensor, int]] = {
        "short rows": (lambda: softmax(padded_rows(short)), short, -1),
        "short rows, dense": (lambda: softmax(short), short, -1),
        "a threadgroup a row": (lambda: softmax(longer), longer, -1),
        "looped": (
            lambda: _softmax_launched("softmax_row_looped", 4, longer, [3, 1023, 1023, 1], 3, 96),
            longer,
            -1,
        ),
        "columns": (lambda: softmax(columns, 1), columns, 1),
        "long columns": (
            lambda: _softmax_launched("softmax_column", 0, columns, [66, 21, 1, 33], 3, 128),
            columns,
            1,
        ),
    }
    for name, (run, x, dim) in runs.items():
        yield _close(
            "softmax",
            name,
            run,
            lambda x=x, dim=dim: reference.softmax(x, dim),  # type: ignore[misc]
            lambda x=x, dim=dim: reference.softmax(x, dim) * 12,  # type: ignore[misc]
            x.shape[dim],
        )


_FAMILIES: Final = {
    "attention": _attention_cases,
    "conv2d": _conv2d_cases,
    "elementwise": _elementwise_cases,
    "embedding": _embedding_cases,
    "gemm": _gemm_cases,
    "lora": _lora_cases,
    "norms": _norms_cases,
    "probe": _probe_cases,
    "quantized": _quantized_cases,
    "reduce": _reduce_cases,
    "rope": _rope_cases,
    "scan": _scan_cases,
    "softmax": _softmax_cases,
    "sort": _sort_cases,
    "topk": _topk_cases,
}


def cases() -> list[Case]:
    """All cases."""
    return [case for family in _FAMILIES.values() for case in family()]
