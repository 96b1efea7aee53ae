"""The cases of norms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from _cases import assert_close, padded_rows  # tests/kernels

from steelworks.kernels import reference
from steelworks.kernels.metal._launch import Variant, empty, launch
from steelworks.kernels.metal.norms import _Params as NormParams
from steelworks.kernels.metal.norms import add_layer_norm, layer_norm

from ._case import Case, close, draw


def _norm_size(x: torch.Tensor) -> torch.Tensor:
    return 4.0 * x.double().abs().amax(-1, keepdim=True) / x.double().std(-1, keepdim=True) + 4.0


def cases() -> Iterator[Case]:
    for name, x in (("short rows", padded_rows(draw(37, 31))), ("a threadgroup a row", draw(3, 1023))):
        width = x.shape[-1]
        weight, bias, residual = draw(width), draw(width) * 0.5, draw(*x.shape) * 0.5
        total = x + residual

        def want(
            total: torch.Tensor = total, weight: torch.Tensor = weight, bias: torch.Tensor = bias
        ) -> torch.Tensor:
            return reference.layer_norm(total, 1, weight, bias, 1e-5)

        def size(total: torch.Tensor = total, weight: torch.Tensor = weight) -> torch.Tensor:
            return _norm_size(total) * (1.0 + weight.double().abs())

        yield close(
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
    x, weight, bias = draw(3, 1001), draw(1001), draw(1001)

    def looped() -> torch.Tensor:
        out = empty(x.shape, x.dtype, x.device)
        params = NormParams(3, 1001, 1001, 1001, 1, 1, 0, 0)
        variant = Variant("norms", "norm_row_looped", ("float", "float", False, 4))
        values = [getattr(params, field) for field in NormParams.__dataclass_fields__]
        launch(variant, x, x, weight, bias, out, out, values, 1e-5, threads=(3 * 96,), group=(96,))
        return out

    yield close(
        "norms",
        "looped",
        looped,
        lambda: reference.layer_norm(x, 1, weight, bias, 1e-5),
        lambda: _norm_size(x) * (1.0 + weight.double().abs()),
        1001,
    )
