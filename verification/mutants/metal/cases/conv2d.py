"""The cases of conv2d."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from steelworks.kernels import reference
from steelworks.kernels.metal.conv2d import conv2d

from ._case import Case, close, draw


def _conv2d(
    name: str,
    shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    last: bool = False,
    infinite: bool = False,
    **options: Any,
) -> Case:
    x, weight = draw(*shape), draw(*weight_shape)
    if infinite:
        x[0, 0, 5, 3] = float("inf")  # in the windows of some outputs only
    bias = draw(weight_shape[0])
    if last:
        x = x.to(memory_format=torch.channels_last)
    pad = options.get("padding", 0)
    plain = {**options, "padding": (pad, pad, pad, pad)}
    for key in ("stride", "dilation"):
        plain[key] = options.get(key, (1, 1))
    terms = weight[0].numel()
    return close(
        "conv2d",
        name,
        lambda: conv2d(x, weight, bias, **options),
        lambda: reference.conv2d(x, weight, bias, **plain),
        lambda: reference.conv2d(x.abs(), weight.abs(), bias.abs(), **plain),
        terms,
    )


def cases() -> Iterator[Case]:
    yield _conv2d("a channel a group", (2, 3, 7, 6), (6, 1, 3, 2), padding=1, groups=3, stride=(2, 1))
    yield _conv2d("planes, many pixels", (2, 3, 9, 8), (31, 3, 3, 3), padding=1)
    yield replace(
        _conv2d("planes, no padding, one whole step", (1, 4, 7, 7), (32, 4, 2, 2)),
        counters={"mmas": 2 * 32 * 32 * 16 // 8**3},
    )
    yield _conv2d("channels last", (2, 7, 9, 8), (32, 7, 3, 3), last=True, padding=1, infinite=True)
    yield _conv2d("channels last, groups", (2, 8, 5, 7), (70, 4, 2, 3), last=True, groups=2, stride=(1, 2))
