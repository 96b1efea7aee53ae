"""Linear layers with weights in 8 or 4 bits, in Triton, against float64."""

from __future__ import annotations

import pytest
import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.triton import quantized as family
from steelworks.kernels.triton.quantized import (
    MOST_ROWS,
    QuantizedWeight,
    Thin,
    dequantize,
    quantize_int4,
    quantize_int8,
    quantized_linear,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Half the distance between neighbours at 1; twice that for bfloat16, which the interpreter truncates.
ROUNDOFF = {F32: 2.0**-24, F16: 2.0**-11, BF16: 2.0**-7}
KINDS = ("int8", "int8 symmetric", "int4 32", "int4 64", "int4 128")


def quantized(weight: torch.Tensor, kind: str) -> QuantizedWeight:
    if kind.startswith("int8"):
        return quantize_int8(weight, symmetric=kind.endswith("symmetric"))
    return quantize_int4(weight, int(kind.split()[1]))


def exact(weight: QuantizedWeight) -> torch.Tensor:
    """The numbers that it stands for, float64."""
    found = reference.dequantize(
        weight.packed.cpu(), weight.scales.cpu(), weight.zeros.cpu(), weight.bits, weight.columns
    )
    return found.to(DEVICE)


def drawn(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def check(
    x: torch.Tensor, weight: QuantizedWeight, bias: torch.Tensor | None, got: torch.Tensor, extra: float = 0.0
) -> None:
    numbers = exact(weight)
    want = reference.quantized_linear(x, numbers, bias)
    # The zero point is subtracted after the sum for 8 bits: the terms are as large as its scale times 255.
    large = weight.scales.double().abs().amax(1) * 255 if weight.bits == 8 else 0.0
    size = reference.quantized_linear(x.abs(), numbers.abs(), None if bias is None else bias.abs())
    size = size + x.double().abs().sum(-1, keepdim=True) * large
    bound = ROUNDOFF[x.dtype] * want.abs() + (extra + (weight.columns + 12) * 2.0**-24) * size + 1e-30
    difference = (got.double() - want).abs()
    assert got.shape == want.shape
    assert bool((difference <= bound).all()), f"off by {float((difference / bound).max())} bounds"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 70), (3, 1, 1), (18, 20, 129)])
def test_few_rows_are_those_of_float64(m: int, n: int, k: int, dtype: torch.dtype, kind: str) -> None:
    x, bias = drawn(m, k, dtype=dtype, seed=1), drawn(n, dtype=dtype, seed=2)
    weight = quantized(drawn(n, k, dtype=dtype, seed=3), kind)
    check(x, weight, bias, quantized_linear(x, weight, bias))
    check(x, weight, None, quantized_linear(x, weight))


@pytest.mark.parametrize("kind", ["int8", "int4 64"])
def test_many_rows_are_those_of_float64(kind: str) -> None:
    x, bias = drawn(MOST_ROWS + 1, 100, dtype=F32, seed=1), drawn(30, dtype=F32, seed=2)
    weight = quantized(drawn(30, 100, dtype=F32, seed=3), kind)
    check(x, weight, bias, quantized_linear(x, weight, bias))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 63), (7, 129), (3, 2500)])
def test_dequantized_weights_are_exact_up_to_rounding(n: int, k: int, kind: str) -> None:
    weight = quantized(drawn(n, k, dtype=F32, seed=n), kind)
    torch.testing.assert_close(dequantize(weight).double(), exact(weight), rtol=3e-7, atol=1e-7)
    assert dequantize(weight, F16).dtype == F16


@pytest.mark.parametrize(
    ("kind", "thin"),
    [
        *(
            (kind, thin)
            for kind in ("int8", "int4 32", "int4 64")
            for thin in (Thin(16, 4, 2), Thin(32, 8, 3))
        ),
        ("int8", Thin(64, 2, 3)),
    ],
)
def test_any_cut_gives_the_same(kind: str, thin: Thin) -> None:
    x = drawn(9, 1100, dtype=F16, seed=1)
    weight = quantized(drawn(70, 1100, dtype=F16, seed=3), kind)
    check(x, weight, None, family._run(x, weight, None, thin))


@pytest.mark.parametrize("dtype", [F32, F16, BF16])  # float32 is dequantized, the others take the layout
def test_each_integer_of_four_bits_is_read_at_its_place(dtype: torch.dtype) -> None:
    k = 256
    packed = (torch.arange(k // 2) * 37 % 256).to(torch.uint8).repeat(2, 1).to(DEVICE)
    ones = torch.ones(2, 4, device=DEVICE, dtype=dtype)
    weight = QuantizedWeight(packed, ones, 3 * ones, 4, 64, k)
    x = torch.eye(k, device=DEVICE, dtype=dtype)
    got = torch.cat([quantized_linear(part, weight) for part in x.split(MOST_ROWS)])
    assert torch.equal(got.mT.double(), exact(weight))


def test_a_weight_changed_in_place_is_laid_out_anew() -> None:
    x = drawn(2, 128, dtype=F16, seed=1)  # for float32 the weight is dequantized, and never laid out
    weight = quantize_int4(drawn(8, 128, dtype=F16, seed=2), 64)
    before = family._laid_out(weight)
    check(x, weight, None, quantized_linear(x, weight))
    weight.packed.copy_(255 - weight.packed)
    check(x, weight, None, quantized_linear(x, weight))
    weight.scales.mul_(2)
    check(x, weight, None, quantized_linear(x, weight))
    weight.zeros.copy_(15 - weight.zeros)
    check(x, weight, None, quantized_linear(x, weight))
    assert family._laid_out(weight) is not before


def test_the_layout_is_made_once() -> None:
    weight = quantize_int4(drawn(8, 128, dtype=F32, seed=2), 64)
    assert family._laid_out(weight) is family._laid_out(weight)


def test_views_and_more_dimensions_are_taken() -> None:
    x = drawn(2, 3, 200, dtype=F32, seed=1)[:, :, ::2]
    weight = quantize_int4(drawn(20, 100, dtype=F32, seed=3), 32)
    got = quantized_linear(x, weight)
    assert got.shape == (2, 3, 20)
    check(x.reshape(6, 100), weight, None, got.view(6, 20))


def test_empty_sizes_give_empty_results_or_the_bias() -> None:
    weight = quantize_int4(drawn(20, 100, dtype=F32, seed=3), 32)
    assert quantized_linear(torch.zeros(0, 100, device=DEVICE), weight).shape == (0, 20)
    bias = drawn(20, dtype=F32, seed=4)
    nothing = quantize_int8(torch.zeros(20, 0, device=DEVICE))
    assert torch.equal(quantized_linear(torch.zeros(2, 0, device=DEVICE), nothing, bias), bias.expand(2, 20))


def test_what_does_not_fit_is_refused_with_the_mend() -> None:
    weight = quantize_int4(drawn(20, 100, dtype=F32, seed=3), 32)
    with pytest.raises(InvalidInputError, match=r"\(\.\.\., 100\) is needed"):
        quantized_linear(torch.zeros(2, 99, device=DEVICE), weight)
    with pytest.raises(InvalidInputError, match="quantize it as"):
        quantized_linear(torch.zeros(2, 100, dtype=F16, device=DEVICE), weight)
    with pytest.raises(InvalidInputError, match="bias is"):
        quantized_linear(torch.zeros(2, 100, device=DEVICE), weight, torch.zeros(21, device=DEVICE))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_captured_call_is_right_at_each_replay() -> None:
    x = drawn(16, 4096, dtype=BF16, seed=1)
    weight = quantize_int4(drawn(4096, 4096, dtype=BF16, seed=2), 128)
    quantized_linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = quantized_linear(x, weight)
    for _ in range(3):
        x.normal_()
        graph.replay()
        check(x, weight, None, out, extra=2.0**-9)
