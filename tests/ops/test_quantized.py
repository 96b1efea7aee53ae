"""Weights in 8 and 4 bits: the formats, and the linear layer that reads them, against float64."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.quantized import (
    QuantizedWeight,
    dequantize,
    quantize_int4,
    quantize_int8,
    quantized_linear,
)

from ._family_cases import (
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def _quantized(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    if kind.startswith("int4"):
        return quantize_int4(weight, int(kind.removeprefix("int4/")))
    return quantize_int8(weight, symmetric=kind == "int8 symmetric")


KINDS = ("int8", "int8 symmetric", "int4/32", "int4/64", "int4/128")


def _exact(weight: QuantizedWeight) -> torch.Tensor:
    return reference.dequantize(weight.packed, weight.scales, weight.zeros, weight.bits, weight.columns)


def _check(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, got: torch.Tensor, case: object
) -> None:
    want = reference.quantized_linear(x, _exact(weight), bias)
    size = reference.quantized_linear(x.abs(), _exact(weight).abs(), None if bias is None else bias.abs())
    assert got.dtype == x.dtype and got.is_contiguous(), case
    assert_within(got, want, terms=weight.columns, magnitude=size, roundings=3, case=case)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(SIZES, min_size=0, max_size=2),
    n=SIZES,
    k=st.sampled_from((1, 7, 32, 33, 64, 130)),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(KINDS),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_the_linear_layer_matches_float64(
    rows: list[int], n: int, k: int, dtype: torch.dtype, kind: str, bias: bool, layout: str
) -> None:
    x = laid_out(draw(*rows, k, dtype=dtype), layout)
    weight = _quantized(laid_out(draw(n, k, dtype=dtype, seed=1), layout), kind)
    shift = draw(n, dtype=dtype, seed=2) if bias else None
    _check(x, weight, shift, quantized_linear(x, weight, shift), (rows, n, k, dtype, kind, bias, layout))


@settings(deadline=None, max_examples=60)
@given(
    n=SIZES,
    k=st.sampled_from((1, 7, 32, 33, 64, 130)),
    dtype=st.sampled_from(FLOATS),
    kind=st.sampled_from(KINDS),
    factor=st.sampled_from((1.0, 1e-10, 1e4, 0.0)),
)
def test_what_is_dequantized_is_within_half_a_step_of_the_weight(
    n: int, k: int, dtype: torch.dtype, kind: str, factor: float
) -> None:
    matrix = (draw(n, k) * factor).to(dtype)
    weight = _quantized(matrix, kind)
    back = dequantize(weight)
    assert back.dtype == F32 and back.shape == (n, k) == weight.shape
    assert_within(back, _exact(weight), case=(n, k, dtype, kind, factor))
    width = weight.packed.shape[1] * 8 // weight.bits // weight.scales.shape[1]
    step = weight.scales.double().repeat_interleave(width, dim=1)[:, :k]
    # Half a step for rounding, and one more because the integer for 0 is rounded and scales have the dtype's precision.
    error = (back.double() - matrix.double()).abs()
    assert bool((error <= 1.5 * step + 1e-3 * matrix.double().abs()).all())


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_constants_come_back_exactly_or_nearly(kind: str) -> None:
    assert_same(dequantize(_quantized(torch.zeros(3, 40), kind)), torch.zeros(3, 40))
    torch.testing.assert_close(
        dequantize(_quantized(torch.full((3, 64), 2.5), kind)), torch.full((3, 64), 2.5)
    )


@pytest.mark.parametrize("kind", ["int8", "int4/32"])
def test_the_metal_kernels_give_the_same(kind: str) -> None:
    weight, bias = _quantized(draw(24, 70, seed=1), kind), draw(24, seed=2)
    for rows in (2, 33):
        x = draw(rows, 70)
        with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
            got = quantized_linear(x, weight, bias)
        assert recorded.of("quantized_linear", "steel") == 1
        _check(x, weight, bias, got, f"metal, {kind}, {rows} rows")


def test_edge_values_come_out_as_in_float64() -> None:
    x = draw(30, 16, edges=(0.0, 1.0, 1e-10, 1e10, math.nan, math.inf, -math.inf))
    weight = quantize_int8(draw(5, 16, seed=1))
    _check(x, weight, None, quantized_linear(x, weight), "edges")


def test_no_rows_and_no_columns_have_a_result() -> None:
    weight = quantize_int8(draw(5, 16))
    assert quantized_linear(torch.ones(0, 16), weight).shape == (0, 5)
    assert quantized_linear(torch.ones(2, 0, 16), weight).shape == (2, 0, 5)
    none = quantize_int8(torch.ones(0, 16))
    assert quantized_linear(torch.ones(3, 16), none).shape == (3, 0)
    assert dequantize(none).shape == (0, 16)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("kind", ["int8", "int4/32"])
def test_the_gradients_of_x_and_bias_are_those_of_the_dequantized_layer(
    kind: str, dtype: torch.dtype
) -> None:
    weight = _quantized(draw(6, 40, dtype=dtype, seed=1), kind)
    x, bias = draw(3, 40, dtype=dtype).requires_grad_(), draw(6, dtype=dtype).requires_grad_()
    upstream = draw(3, 6, dtype=dtype, seed=7)
    quantized_linear(x, weight, bias).backward(upstream)
    want = upstream.double() @ _exact(weight)
    size = upstream.double().abs() @ _exact(weight).abs()
    assert x.grad is not None and bias.grad is not None
    assert_within(x.grad, want, terms=6, magnitude=size, roundings=3)
    total = upstream.double()
    assert_within(bias.grad, total.sum(0), terms=3, magnitude=total.abs().sum(0), roundings=3)


def test_a_gradient_of_the_quantized_weight_is_refused() -> None:
    weight = quantize_int8(draw(4, 8))
    trained = dataclasses.replace(weight, scales=weight.scales.clone().requires_grad_())
    with pytest.raises(InvalidInputError, match="scales.*require.*grad.*detach"):
        quantized_linear(draw(2, 8), trained)


def test_torchs_own_checks_of_the_operator_pass() -> None:
    for kind in ("int8", "int4/32"):
        weight = _quantized(draw(4, 40), kind)
        x = draw(3, 40).requires_grad_()
        parts = (weight.packed, weight.scales, weight.zeros, weight.bits, weight.group_size, weight.columns)
        torch.library.opcheck(torch.ops.steelworks.quantized_linear.default, (x, *parts, None))
        torch.library.opcheck(torch.ops.steelworks.dequantize.default, (*parts, BF16))


class _Layer(torch.nn.Module):
    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        self.packed = torch.nn.Buffer(weight.packed)
        self.scales = torch.nn.Buffer(weight.scales)
        self.zeros = torch.nn.Buffer(weight.zeros)
        self.plain = (weight.bits, weight.group_size, weight.columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return quantized_linear(x, QuantizedWeight(self.packed, self.scales, self.zeros, *self.plain))


@pytest.mark.parametrize("kind", ["int8", "int4/32"])
def test_compile_and_export_give_the_same(kind: str) -> None:
    assert_compiles_and_exports(_Layer(_quantized(draw(4, 40), kind)), draw(3, 40))


def test_many_threads_at_once_get_what_one_gets() -> None:
    weights = [_quantized(draw(6, 40), kind) for kind in KINDS[:4]]
    assert_threads_agree(quantized_linear, [(draw(rows, 40), w) for rows in (1, 5) for w in weights])


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (lambda: quantize_int8(torch.ones(3)), r"\(3,\).*matrix"),
        (lambda: quantize_int8(torch.ones(3, 3, dtype=torch.int32)), "torch.int32.*float32"),
        (lambda: quantize_int8(torch.full((2, 2), math.nan)), "NaN or infinite.*replace"),
        (lambda: quantize_int4(torch.ones(3, 3), 48), "group_size is 48.*32, 64, 128"),
        (lambda: quantized_linear(torch.ones(3, 9), quantize_int8(torch.ones(4, 8))), r"\(3, 9\).*\(\.\.\., 8\)"),
        (lambda: quantized_linear(torch.ones(3, 8, dtype=BF16), quantize_int8(torch.ones(4, 8))), "bfloat16.*quantize"),
        (
            lambda: quantized_linear(torch.ones(3, 8), quantize_int8(torch.ones(4, 8)), torch.ones(3)),
            r"bias .*\(3,\).*\(4,\)",
        ),
        (lambda: dequantize(quantize_int8(torch.ones(4, 8)), torch.int32), "dtype is torch.int32.*float32"),
        (lambda: quantized_linear(torch.ones(3, 8), torch.ones(4, 8)), "Tensor.*quantize_int8"),
        (
            lambda: quantized_linear(
                torch.ones(3, 8), dataclasses.replace(quantize_int8(torch.ones(4, 8)), bits=3)
            ),
            "3 bits.*allowed are 8 bits",
        ),
        (
            lambda: quantized_linear(torch.ones(3, 8, device="meta"), quantize_int8(torch.ones(4, 8))),
            "x is on 'meta' and packed on 'cpu'",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_reason(run: object, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        run()  # type: ignore[operator]


def test_under_autocast_x_is_converted_to_what_the_weight_was_quantized_for() -> None:
    x, weight = draw(3, 8), quantize_int8(draw(4, 8, dtype=BF16))
    with torch.autocast("cpu", dtype=BF16):
        got = quantized_linear(x, weight)
    assert_same(got, quantized_linear(x.to(BF16), weight))
