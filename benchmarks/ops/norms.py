"""rms_norm and layer_norm, alone and with a residual: against the copy's bandwidth, and the time of a launch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.ops import _mlx
from benchmarks.ops._cases import Case, Make, compiled, random
from benchmarks.ops.softmax import LARGE, SMALL, SMALL_GOALS, bandwidth_goals, liger, quack
from steelworks.kernels.triton import norms

EPS = 1e-5
Tensors = tuple[torch.Tensor, ...]


def _reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    x = x.double()
    if bias is not None:
        x = x - x.mean(-1, keepdim=True)
    y = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    return y if bias is None else y + bias.double()


def _rms(x: torch.Tensor, r: torch.Tensor | None, w: torch.Tensor, b: torch.Tensor) -> Any:
    if r is None:
        return torch.nn.functional.rms_norm(x, w.shape, w, EPS)
    h = x + r
    return torch.nn.functional.rms_norm(h, w.shape, w, EPS), h


def _layer(x: torch.Tensor, r: torch.Tensor | None, w: torch.Tensor, b: torch.Tensor) -> Any:
    if r is None:
        return torch.nn.functional.layer_norm(x, w.shape, w, b, EPS)
    h = x + r
    return torch.nn.functional.layer_norm(h, w.shape, w, b, EPS), h


def _bound(function: Callable[..., Any], residual: bool) -> Make:
    """The call of a composition for one set of inputs."""
    return lambda i: lambda: function(i[0], i[1] if residual else None, i[2], i[3])


def cases() -> Iterator[Case]:
    """Each norm at each shape, without and with a residual; weight (and bias of layer_norm) always."""
    rms, layer = liger("rms_norm", "LigerRMSNormFunction"), liger("layer_norm", "LigerLayerNormFunction")
    fused = liger("fused_add_rms_norm", "LigerFusedAddRMSNormFunction")
    peers: dict[tuple[str, bool], Make] = {}
    if rms is not None:
        peers["rms_norm", False] = lambda i: lambda: rms.apply(i[0], i[2], EPS)
    if layer is not None:
        peers["layer_norm", False] = lambda i: lambda: layer.apply(i[0], i[2], i[3], EPS)
    if fused is not None:
        peers["rms_norm", True] = lambda i: lambda: fused.apply(i[0], i[1], i[2], EPS)
    others: dict[tuple[str, bool], Make] = {}
    quack_rms, quack_layer = quack("rmsnorm", "rmsnorm"), quack("rmsnorm", "layernorm_fwd")
    if quack_rms is not None:
        others["rms_norm", False] = lambda i: lambda: quack_rms(i[0], i[2], eps=EPS)
        others["rms_norm", True] = lambda i: (
            lambda: quack_rms(i[0], i[2], residual=i[1], eps=EPS, prenorm=True)
        )
    if quack_layer is not None:
        others["layer_norm", False] = lambda i: _quack_layer(quack_layer, i)
    for op, composed in (("rms_norm", _rms), ("layer_norm", _layer)):
        fast = compiled(composed)
        for residual in (False, True):
            implementations: dict[str, Make] = {
                "steel": _steel(op, residual),
                "torch": _bound(composed, residual),
                "compile": _bound(fast, residual),
            }
            if (op, residual) in peers:
                implementations["liger"] = peers[op, residual]
            if (op, residual) in others:
                implementations["quack"] = others[op, residual]
            for shape in (*LARGE, *SMALL):
                yield _case(op, shape, residual, implementations)


def _quack_layer(function: Callable[..., Any], i: Tensors) -> Callable[[], Any]:
    weight, bias = i[2].float(), i[3].float()  # it takes no others
    return lambda: function(i[0], weight, bias, EPS)


def _steel(op: str, residual: bool) -> Make:
    if op == "rms_norm":
        if residual:
            return lambda i: lambda: norms.rms_norm(i[0], i[2].shape, i[2], None, EPS, residual=i[1])
        return lambda i: lambda: norms.rms_norm(i[0], i[2].shape, i[2], None, EPS)
    if residual:
        return lambda i: lambda: norms.layer_norm(i[0], i[2].shape, i[2], i[3], EPS, residual=i[1])
    return lambda i: lambda: norms.layer_norm(i[0], i[2].shape, i[2], i[3], EPS)


def _case(op: str, shape: tuple[int, int], residual: bool, implementations: dict[str, Make]) -> Case:
    large = shape in LARGE

    def inputs() -> Tensors:
        weights = [random(shape[1]) for _ in range(2)]
        return random(*shape), random(*shape) if residual else weights[0], *weights

    def check(i: Tensors) -> torch.Tensor:
        h = i[0].double() + i[1].double() if residual else i[0]
        return _reference(h, i[2], i[3] if op == "layer_norm" else None)

    return Case(
        op=op,
        name=f"{shape[0]}x{shape[1]} bf16{' with residual' if residual else ''}",
        bytes=(4 if residual else 2) * 2 * shape[0] * shape[1],
        inputs=inputs,
        implementations=implementations,
        launches=(12 if shape[0] == 4096 else 4) if large else 200,
        goals=bandwidth_goals() if large else SMALL_GOALS,
        check=check,
        rotate=large,
        host=shape == (32, 1024),
        chains=_mlx.norm(op, *shape, residual, 24 if large else 200),
    )
