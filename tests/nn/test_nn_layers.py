"""QuantizedLinear, and the norms with a residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import steelworks
from steelworks import ops
from steelworks.errors import InvalidInputError
from steelworks.nn import LayerNorm, QuantizedLinear, RMSNorm

torch.set_num_threads(1)
KINDS = [(8, 64), (4, 32), (4, 64), (4, 128)]


@pytest.mark.parametrize(("bits", "group_size"), KINDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_quantized_layer_computes_with_the_numbers_its_weight_stands_for(
    bits: int, group_size: int, bias: bool
) -> None:
    linear = nn.Linear(130, 9, bias=bias)
    layer = QuantizedLinear.from_linear(linear, bits, group_size)
    x = torch.randn(2, 3, 130)
    weight = ops.dequantize(layer.quantized_weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, linear.bias))
    # A row's range is cut into 255 or 15 steps; half of one is the most that rounding moves a weight.
    step = (linear.weight.amax() - linear.weight.amin()) / (255 if bits == 8 else 15)
    assert (weight - linear.weight).abs().max() <= step * 0.51


@pytest.mark.parametrize(("bits", "group_size"), KINDS)
def test_a_saved_layer_loads_into_an_empty_one(bits: int, group_size: int) -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(130, 9), bits, group_size)
    empty = QuantizedLinear(130, 9, bits=bits, group_size=group_size)
    empty.load_state_dict(layer.state_dict())
    x = torch.randn(4, 130)
    assert torch.equal(empty(x), layer(x))


def test_gradients_reach_the_input_and_the_bias() -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(64, 9), 4)
    x = torch.randn(4, 64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, ops.dequantize(layer.quantized_weight).sum(0).expand(4, -1))
    torch.testing.assert_close(layer.bias.grad, torch.full((9,), 4.0))  # type: ignore[union-attr]


def test_bits_on_disk_are_fewer_and_the_dtype_can_be_changed() -> None:
    layer = QuantizedLinear.from_linear(nn.Linear(256, 256), 4)
    assert layer.packed.numel() * 8 == 256 * 256 * 4
    half = layer.bfloat16()
    assert half(torch.randn(2, 256, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert half.packed.dtype == torch.uint8


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 3}, "bits is 3; 8 and 4"),
        ({"bits": 4, "group_size": 48}, "group_size is 48; 32, 64, 128"),
    ],
)
def test_other_formats_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        QuantizedLinear.from_linear(nn.Linear(64, 8), **options)
    with pytest.raises(InvalidInputError, match=said):
        QuantizedLinear(64, 8, **options)


def test_other_layers_and_dtypes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="Conv1d"):
        QuantizedLinear.from_linear(nn.Conv1d(4, 4, 1))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="float64"):
        QuantizedLinear.from_linear(nn.Linear(4, 4).double())


def test_what_it_is_can_be_read() -> None:
    text = repr(QuantizedLinear(64, 8, bits=4, group_size=32))
    assert "in_features=64, out_features=8, bias=True, bits=4, group_size=32" in text


@pytest.mark.parametrize(("ours", "theirs"), [(LayerNorm, nn.LayerNorm), (RMSNorm, nn.RMSNorm)])
@pytest.mark.parametrize("path", ["vendor", "steel"])
def test_a_norm_adds_the_residual_first_and_gives_the_sum(ours: Any, theirs: Any, path: str) -> None:
    mine, other = ours(20), theirs(20)
    nn.init.uniform_(other.weight, 0.5, 1.5)
    mine.load_state_dict(other.state_dict())
    x, residual = torch.randn(3, 20), torch.randn(3, 20)
    with steelworks.paths.simulate_metal(), steelworks.paths.use(path), torch.no_grad():
        torch.testing.assert_close(mine(x), other(x), rtol=1e-5, atol=1e-5)
        normal, total = mine(x, residual)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normal, other(x + residual), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_a_norm_with_a_residual_is_differentiable(ours: Any) -> None:
    norm = ours(6).double()
    x, residual = (torch.randn(2, 6, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda a, b: norm(a, b), (x, residual))


@pytest.mark.parametrize("ours", [LayerNorm, RMSNorm])
def test_a_residual_of_another_shape_is_refused(ours: Any) -> None:
    with pytest.raises(InvalidInputError, match="residual"):
        ours(6)(torch.randn(2, 6), torch.randn(3, 6))
