"""Linear layers on CUDA: activation(x W^T + bias + residual) in one launch, and three layers of one x in one launch.

For large products cuBLAS is at the floor. Ours are for few rows, where the time is that of starting a kernel and of
reading the weight: they start while the kernel before ends, and have their part of the weight in registers by then.
For more rows they save the launches, and the memory traffic, of activation and residual; operands then come through
tensor descriptors where that is possible and the faster way (``tuning.LINEAR``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels.lora_operands import rows_dense

from . import tuning
from ._described_kernels import LAYER
from ._launch import (
    Launch,
    Options,
    Plans,
    aligned,
    cdiv,
    describable,
    interpreted,
    power_of_two,
    supports_descriptors,
    supports_pdl,
)
from ._linear_kernels import THIN, TILED
from ._settled import settled

ACTIVATIONS: Final = (None, "relu", "gelu", "silu")
DTYPES: Final = (torch.float16, torch.bfloat16)
#: The least depth of a matrix product in Triton.
_DEPTH_LEAST: Final = 16


@dataclass(frozen=True)
class Layer:
    """One layer's parameters: weight ``(n, k)``, and bias ``(n,)`` or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True)
class _Bound:
    """A launch; a ``described`` one is for one layer and takes only its tensors."""

    launch: Launch
    described: bool = False


_plans: Plans[_Bound] = Plans()


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """``activation(x W^T + bias + residual)``; sums are in float32, and the result is rounded once.

    Args:
        x: ``(..., k)``; float16 or bfloat16.
        weight: W, ``(n, k)``.
        bias: ``(n,)``.
        activation: None, ``"relu"``, ``"gelu"`` (the exact form) or ``"silu"``.
        residual: ``(..., n)``.

    Returns:
        ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or no such activation.
    """
    return _run(x, (Layer(weight, bias),), activation, residual, None)[0]


def qkv_linear(
    x: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bias: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    value_bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three linear layers of one x, in one launch.

    Args:
        x: ``(..., k)``; float16 or bfloat16.
        query, key, value: Weights ``(n, k)``; each n may be another.
        query_bias, key_bias, value_bias: ``(n,)``; all or none.

    Returns:
        Three tensors ``(..., n)``, dense.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together.
    """
    layers = (Layer(query, query_bias), Layer(key, key_bias), Layer(value, value_bias))
    first, second, third = _run(x, layers, None, None, None)
    return first, second, third


def _run(
    x: torch.Tensor,
    layers: tuple[Layer, ...],
    activation: str | None,
    residual: torch.Tensor | None,
    tile: tuning.LinearTile | tuning.ThinTile | None,
) -> list[torch.Tensor]:
    """The results of all layers. ``tile``: instead of the table's."""
    early = supports_pdl(x.get_device()) and settled(*(t for s in layers for t in (s.weight, s.bias)))
    key = (
        x.shape, x.stride(), x.dtype, x.device, activation, early, tile,
        None if residual is None else (residual.shape, residual.dtype), aligned(x, *(s.weight for s in layers)),
        *((s.weight.shape, s.weight.stride(), s.weight.dtype, _shape(s.bias)) for s in layers),
    )  # fmt: skip
    bound = _plans.get(key)
    if bound is None:
        _check(x, layers, activation, residual)
    outs = [x.new_empty((*x.shape[:-1], s.weight.shape[0])) for s in layers]
    k = x.shape[-1]
    m = x.shape[:-1].numel()
    if m == 0 or k == 0 or any(s.weight.shape[0] == 0 for s in layers):  # no rows, sums or columns
        return [_composed(x, s, activation, residual) for s in layers]
    rows = rows_dense(x.reshape(m, k))
    weights = [rows_dense(s.weight) for s in layers]
    biases = [out if s.bias is None else s.bias.contiguous() for s, out in zip(layers, outs, strict=True)]
    beside = outs[0] if residual is None else residual.contiguous()
    given = (rows, *_three(weights), *_three(biases), beside, *_three(outs))
    if bound is None:
        has_bias = layers[0].bias is not None
        made = _bind(given, len(layers), has_bias, residual is not None, activation, early, tile)
        bound = _plans.keep(key, made)
    if bound.described:
        bound.launch(rows, weights[0], biases[0], beside, outs[0])
    else:
        bound.launch(*given)
    return outs


def _three(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return tensors if len(tensors) == 3 else tensors * 3


def _shape(bias: torch.Tensor | None) -> object:
    return None if bias is None else (bias.shape, bias.dtype)


def _bind(
    given: tuple[torch.Tensor, ...],
    count: int,
    has_bias: bool,
    has_residual: bool,
    activation: str | None,
    early: bool,
    tile: tuning.LinearTile | tuning.ThinTile | None,
) -> _Bound:
    x, *weights = given[:4]
    m, k = x.shape
    sizes = [w.shape[0] for w in weights]
    widest = max(sizes[:count])
    if tile is None:
        possible = count == 1 and supports_descriptors(x.get_device()) and all(map(describable, given[:2]))
        tile = tuning.pick(
            tuning.LINEAR, rows=m, columns=sum(sizes[:count]), terms=k, described=int(possible)
        )
    pdl = supports_pdl(x.get_device())
    options = Options(num_warps=tile.warps, num_stages=tile.stages, pdl=pdl)
    constants: dict[str, object] = {
        "BM": tile.rows, "BN": tile.columns, "HAS_BIAS": has_bias, "HAS_RESIDUAL": has_residual,
        "ACTIVATION": activation or "", "WIDE": interpreted(), "PDL": pdl,
    }  # fmt: skip
    if isinstance(tile, tuning.LinearTile) and tile.described:
        launch = LAYER.bind(
            (x, weights[0], given[4], given[7], given[8]),
            scalars=(m, sizes[0], k),
            constants=constants | {"BK": tile.depth, "GROUP": 8},
            grid=(cdiv(m, tile.rows) * cdiv(widest, tile.columns),),
            options=options,
            blocks=((tile.rows, tile.depth), (tile.columns, tile.depth)),
        )
        return _Bound(launch, described=True)
    constants |= {"COUNT": count, "EARLY": early}
    scalars = (m, *sizes, k, x.stride(0), *(w.stride(0) for w in weights))
    if isinstance(tile, tuning.ThinTile):
        depth = max(_DEPTH_LEAST, power_of_two(cdiv(k, tile.steps)))
        grid = (cdiv(widest, tile.columns), count, cdiv(m, tile.rows))
        constants |= {"BK": depth, "STEPS": cdiv(k, depth)}
        return _Bound(THIN.bind(given, scalars=scalars, constants=constants, grid=grid, options=options))
    constants |= {"BK": tile.depth, "GROUP": 8, "EVEN": k % tile.depth == 0}
    grid = (cdiv(m, tile.rows) * cdiv(widest, tile.columns), count, 1)
    return _Bound(TILED.bind(given, scalars=scalars, constants=constants, grid=grid, options=options))


def _composed(
    x: torch.Tensor, layer: Layer, activation: str | None, residual: torch.Tensor | None
) -> torch.Tensor:
    y = torch.nn.functional.linear(x, layer.weight, layer.bias)
    if residual is not None:
        y = y + residual
    if activation is None:
        return y
    result: torch.Tensor = getattr(torch.nn.functional, activation)(y)
    return result


def _check(
    x: torch.Tensor, layers: tuple[Layer, ...], activation: str | None, residual: torch.Tensor | None
) -> None:
    if activation not in ACTIVATIONS:
        allowed = ", ".join(map(repr, ACTIVATIONS))
        raise InvalidInputError(f"activation is {activation!r}; allowed are {allowed}")
    if x.dim() < 1 or x.dtype not in DTYPES:
        raise InvalidInputError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; float16 or bfloat16 of shape (..., k) is needed"
        )
    for layer in layers:
        weight, bias = layer.weight, layer.bias
        if weight.dim() != 2 or weight.shape[1] != x.shape[-1] or weight.dtype != x.dtype:
            raise InvalidInputError(
                f"weight is {weight.dtype} of shape {tuple(weight.shape)}; {x.dtype} of shape (n, {x.shape[-1]}) is "
                "needed"
            )
        if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype):
            raise InvalidInputError(
                f"bias is {bias.dtype} of shape {tuple(bias.shape)}; {x.dtype} of shape ({weight.shape[0]},) is needed"
            )
        if (bias is None) != (layers[0].bias is None):
            raise InvalidInputError("some of the layers have a bias and some have none; give all or none")
    shape = (*x.shape[:-1], layers[0].weight.shape[0])
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise InvalidInputError(
            f"residual is {residual.dtype} of shape {tuple(residual.shape)}; {x.dtype} of shape {shape} is needed"
        )
