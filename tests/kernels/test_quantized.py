"""Linear layers with weights in 8 and 4 bits, against float64 in checking mode; what quantizing costs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from _cases import ROUNDOFF, assert_close, embedded, padded_rows, run_checked, run_poisoned

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import quantized as family
from steelworks.kernels.metal.quantized import (
    QuantizedWeight,
    dequantize,
    quantize_int4,
    quantize_int8,
    quantized_linear,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; ``group`` 0 is 8 bits with one scale a row."""

    m: int
    n: int
    k: int
    group: int = 0
    dtype: torch.dtype = F32
    bias: bool = True


def _random(case: Case, made: torch.Generator) -> QuantizedWeight:
    """Any integers, scales and (fractional) zero points: more than the helpers make."""
    bits, width = (4, case.group) if case.group else (8, max(8, -(-case.k // 8) * 8))
    groups = max(1, -(-case.k // width))
    packed = torch.randint(0, 256, (case.n, groups * width * bits // 8), generator=made, dtype=torch.uint8)
    scales = torch.randn(case.n, groups, generator=made).to(case.dtype)
    zeros = (torch.randn(case.n, groups, generator=made) * 8).to(case.dtype)
    return QuantizedWeight(packed, scales, zeros, bits, case.group, case.k)


def _tensors(case: Case) -> tuple[torch.Tensor, QuantizedWeight, torch.Tensor | None]:
    made = torch.Generator().manual_seed(case.m * 1009 + case.n * 31 + case.k)
    x = torch.randn(case.m, case.k, generator=made).to(case.dtype)
    bias = torch.randn(case.n, generator=made).to(case.dtype) if case.bias else None
    return x, _random(case, made), bias


def _compare(
    got: torch.Tensor, x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, case: Case
) -> None:
    full = reference.dequantize(weight.packed, weight.scales, weight.zeros, weight.bits, weight.columns)
    want = reference.quantized_linear(x, full, bias)
    size = reference.quantized_linear(x.abs(), full.abs(), None if bias is None else bias.abs())
    assert_close("quantized", got, want, case, terms=case.k, magnitude=size)


def _check(case: Case) -> None:
    x, weight, bias = _tensors(case)
    _compare(run_checked("quantized", lambda: quantized_linear(x, weight, bias), case), x, weight, bias, case)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_few_rows_are_those_of_float64(group: int, dtype: torch.dtype) -> None:
    for m in (1, 2, 4, 5, 8):
        for n in (1, 31, 33):
            for k in (1, 31, 32, 33, 130, 257):
                _check(Case(m, n, k, group, dtype))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_small_tiles_are_those_of_float64(group: int, dtype: torch.dtype) -> None:
    for m in (9, 31, 32, 33):
        for n in (1, 32):
            for k in (7, 32, 129):
                _check(Case(m, n, k, group, dtype))


@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize("group", [0, 32])
def test_large_tiles_are_those_of_float64(group: int, dtype: torch.dtype) -> None:
    for m, n, k in ((33, 33, 31), (63, 65, 32), (64, 64, 33), (65, 63, 64)):
        _check(Case(m, n, k, group, dtype))


def test_without_bias_and_with_an_offset_bias() -> None:
    for m in (2, 10):
        _check(Case(m, 12, 40, 32, bias=False))
        x, weight, bias = _tensors(Case(m, 12, 40))
        assert bias is not None
        moved = embedded(bias)
        got = run_checked("quantized", lambda: quantized_linear(x, weight, moved), m)  # noqa: B023
        assert torch.equal(got, quantized_linear(x, weight, bias))


def test_views_with_stale_data_behind_are_read_in_place() -> None:
    for m in (3, 10, 40):
        case = Case(m, 35, 37, 32)
        x, weight, bias = _tensors(case)
        moved = replace(
            weight,
            packed=embedded(weight.packed),
            scales=embedded(weight.scales),
            zeros=embedded(weight.zeros),
        )
        apart = padded_rows(x)
        got = run_checked("quantized", lambda: quantized_linear(apart, moved, bias), case)  # noqa: B023
        _compare(got, x, weight, bias, case)


def test_a_transposed_x_and_more_dimensions_are_taken() -> None:
    x, weight, bias = _tensors(Case(12, 9, 20))
    plain = quantized_linear(x, weight, bias)
    turned = x.t().contiguous().t()
    assert torch.equal(
        run_checked("quantized", lambda: quantized_linear(turned, weight, bias), "turned"), plain
    )
    got = run_checked("quantized", lambda: quantized_linear(x.view(2, 6, 20), weight, bias), "3d")
    assert torch.equal(got.view(12, 9), plain)


def test_nan_and_infinity_in_a_row_stay_in_that_row() -> None:
    for m in (4, 12):
        for value in (math.nan, math.inf):
            x, weight, _ = _tensors(Case(m, 9, 40, 32))
            clean = quantized_linear(x, weight)
            x[1, 3] = value
            got = run_checked("quantized", lambda: quantized_linear(x, weight), m)  # noqa: B023
            assert not got[1].isfinite().any()
            others = [i for i in range(m) if i != 1]
            assert torch.equal(got[others], clean[others])


def test_an_integer_at_the_zero_point_is_exactly_zero() -> None:
    for m in (2, 12):
        x, weight, _ = _tensors(Case(m, 5, 64, 32))
        weight.packed.fill_(0x77)
        weight.zeros.fill_(7)
        got = run_checked("quantized", lambda: quantized_linear(x, weight), m)  # noqa: B023
        assert torch.equal(got, torch.zeros(m, 5))


def test_denormals_and_signed_zeros_pass() -> None:
    for m in (4, 12):
        case = Case(m, 9, 40, 32)
        x, weight, bias = _tensors(case)
        x[0], x[1] = 1e-40, -0.0
        got = run_checked("quantized", lambda: quantized_linear(x, weight, bias), case)  # noqa: B023
        _compare(got, x, weight, bias, case)


def test_empty_dimensions() -> None:
    for m, n, k in ((0, 5, 6), (3, 0, 6), (3, 5, 0), (12, 5, 0)):
        for group in (0, 32):
            _check(Case(m, n, k, group))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_quantizing_costs_half_a_step_at_most(dtype: torch.dtype) -> None:
    made = torch.Generator().manual_seed(3)
    for n, k in ((1, 1), (5, 31), (7, 64), (3, 200)):
        weight = torch.randn(n, k, generator=made).to(dtype)
        for quantized in (
            quantize_int8(weight),
            quantize_int8(weight, symmetric=True),
            *(quantize_int4(weight, group) for group in (32, 64, 128)),
        ):
            back = dequantize(quantized)
            width = quantized.group_size or k
            scales = quantized.scales.double().repeat_interleave(width, dim=1)[:, :k]
            # Half a step, and at the ends what the rounding of the scale and of the zero point adds.
            most = (
                scales * 0.5
                + 255 * scales * ROUNDOFF[dtype]
                + scales * 0.5 * (quantized.zeros.abs().max() > 0)
            )
            assert bool(((back.double() - weight.double()).abs() <= most * 1.0001).all()), (
                dtype,
                n,
                k,
                quantized.bits,
            )
            exact = reference.dequantize(
                quantized.packed, quantized.scales, quantized.zeros, quantized.bits, quantized.columns
            )
            assert torch.allclose(back.double(), exact, rtol=1e-6, atol=0)


def test_a_quantized_layer_is_the_layer_with_the_dequantized_weight() -> None:
    made = torch.Generator().manual_seed(4)
    weight, x = torch.randn(20, 100, generator=made), torch.randn(11, 100, generator=made)
    for quantized in (quantize_int8(weight), quantize_int8(weight, symmetric=True), quantize_int4(weight)):
        for m in (1, 11):
            got = run_checked("quantized", lambda: quantized_linear(x[:m], quantized), m)  # noqa: B023
            full = dequantize(quantized)
            want, size = (
                reference.quantized_linear(x[:m], full),
                reference.quantized_linear(x[:m].abs(), full.abs()),
            )
            assert_close("quantized", got, want, (quantized.bits, m), terms=100, magnitude=size)


def test_zero_constant_and_tiny_weights_are_represented() -> None:
    for dtype in (F32, F16, BF16):
        for value in (0.0, 1.0, -3.0):
            weight = torch.full((2, 40), value, dtype=dtype)
            for quantized in (
                quantize_int8(weight),
                quantize_int8(weight, symmetric=True),
                quantize_int4(weight, 32),
            ):
                assert torch.allclose(dequantize(quantized), weight.float(), rtol=2 * ROUNDOFF[dtype]), (
                    dtype,
                    value,
                )
    tiny = torch.full((1, 8), 2.0**-24, dtype=F16)
    assert torch.equal(dequantize(quantize_int8(tiny)), torch.zeros(1, 8))


def test_one_row_reads_packed_weights_once() -> None:
    x, weight, _ = _tensors(Case(1, 64, 256, 64))
    with metalsim.options(check=True) as session:
        quantized_linear(x, weight)
    # Each lane reads the scale and zero point of its chunk of 8 columns; 16 simdgroups read x.
    pairs = 64 * 256 // 8 * 2
    assert session.counters.device_read == weight.packed.numel() + 4 * pairs + 16 * 4 * x.numel()
    assert session.counters.device_written == 4 * 64


def test_a_tile_multiplies_no_more_terms_than_whole_steps_hold() -> None:
    for k, steps in ((63, 2), (64, 2), (65, 3)):
        x, weight, _ = _tensors(Case(32, 32, k))
        with metalsim.options(check=True) as session:
            quantized_linear(x, weight)
        assert session.counters.mmas == 32 * 32 * 32 * steps / 8**3, k
        assert session.counters.barriers == 2 * steps, k


def test_the_host_lays_parameters_out_as_the_kernels_do() -> None:
    header = Path(family.__file__).with_suffix("") / "params.h"
    assert re.findall(r"^  int (\w+);", header.read_text(), re.M) == list(family._Params._fields)


def test_unfit_arguments_are_refused_with_a_reason() -> None:
    x, weight, _ = _tensors(Case(3, 5, 40, 32))
    for call, reason in (
        (lambda: quantized_linear(x[:, :9], weight), "(..., 40) is needed"),
        (lambda: quantized_linear(x.half(), weight), "quantize it as torch.float16"),
        (lambda: quantized_linear(x, weight, torch.zeros(4)), "of shape (5,) is needed"),
        (lambda: quantized_linear(x, replace(weight, bits=3)), "3 bits in groups of 32"),
        (lambda: quantized_linear(x, replace(weight, group_size=64)), "dense torch.float32 of shape (5, 1)"),
        (lambda: quantized_linear(x, replace(weight, zeros=weight.zeros[:, :1])), "zeros is torch.float32"),
        (lambda: quantize_int4(torch.zeros(2, 2), 16), "allowed are 32, 64, 128"),
        (lambda: quantize_int8(torch.zeros(3)), "a matrix of float32"),
        (lambda: quantize_int8(torch.full((2, 2), math.nan)), "no scale can represent"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(reason)):
            call()


def test_an_unchecked_run_gives_the_same_bits_as_a_checked_one() -> None:
    for m in (3, 33):
        x, weight, bias = _tensors(Case(m, 20, 40, 32))
        checked = run_checked("quantized", lambda: quantized_linear(x, weight, bias), m)  # noqa: B023
        assert torch.equal(run_poisoned(lambda: quantized_linear(x, weight, bias)), checked)  # noqa: B023
