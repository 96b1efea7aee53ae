"""Two-dimensional convolution without the matrix of pixels by taps in memory."""

from __future__ import annotations

from typing import NamedTuple

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MOST_PIXELS = 2**31 - 1
#: Of the input with its zeros: so that CONV2D_NO_ROW (conv2d/index.h) is above it under every tap.
_MOST_EXTENT = 2**30


class _Params(NamedTuple):
    """conv2d/params.h: the same fields in the same order."""

    batch: int
    in_c: int
    in_h: int
    in_w: int
    out_c: int
    out_h: int
    out_w: int
    groups: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    w_n: int
    w_c: int
    w_h: int
    w_w: int
    y_n: int
    y_c: int
    y_h: int
    y_w: int
    has_bias: int
    activation: int


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolution, bias and activation in one launch; sums are in float32, and the result is rounded once.

    Args:
        x: ``(batch, channels, height, width)``; float32, float16 or bfloat16; any strides. If its channels
            are adjacent in memory (``torch.channels_last``), so are those of the result.
        weight: ``(out_channels, channels / groups, kernel_h, kernel_w)`` of the same dtype. It is read in
            place if its memory format is that of x, and copied otherwise.
        bias: ``(out_channels,)``.
        stride: Steps between outputs, one number or (vertical, horizontal).
        padding: Zeros on each side, one number or (vertical, horizontal); ``"valid"``: none; ``"same"``: such
            that the result has the size of x (with stride 1; an odd one more below and on the right).
        dilation: Steps between taps.
        groups: Channels are cut into so many groups that do not see each other.
        activation: None, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``.

    Returns:
        ``(batch, out_channels, out_height, out_width)``.

    Raises:
        InvalidInputError: shapes, dtypes or options that do not fit together.
    """
    _check(x, weight, bias, groups)
    if activation not in tuning.ACTIVATIONS:
        allowed = ", ".join(repr(name) for name in tuning.ACTIVATIONS)
        raise InvalidInputError(f"activation is {activation!r}; allowed are {allowed}")
    steps, holes = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    kernel = (weight.shape[2], weight.shape[3])
    size = (x.shape[2], x.shape[3])
    before, out_size = _padding(padding, size, kernel, steps, holes)
    batch, channels = x.shape[:2]
    out_channels = weight.shape[0]
    if batch * out_size[0] * out_size[1] > _MOST_PIXELS:
        raise InvalidInputError(
            f"the result has {batch} images of {out_size[0]} x {out_size[1]} pixels; at most {_MOST_PIXELS} "
            "pixels are allowed: cut the batch into parts"
        )
    last = x.stride(1) == 1 and channels > 1 and not x.is_contiguous()
    if last:
        out = empty((batch, *out_size, out_channels), x.dtype, x.device).permute(0, 3, 1, 2)
        weight = weight.contiguous(memory_format=torch.channels_last)
    else:
        out = empty((batch, out_channels, *out_size), x.dtype, x.device)
        weight = weight.contiguous()
    if out.numel() == 0:
        return out
    per_group = out_channels // groups
    sizes = (batch, channels // groups, *size, per_group, *out_size, groups)
    options = (*kernel, *steps, *before, *holes)
    strides = (*x.stride(), *weight.stride(), *out.stride())
    params = _Params._make(
        (*sizes, *options, *strides, int(bias is not None), tuning.ACTIVATIONS[activation])
    )
    bias = bias if bias is None else bias.contiguous()
    pixels = out_size[0] * out_size[1]
    if per_group < tuning.CONV2D_DIRECT_CHANNELS:
        launch(
            Variant("conv2d", "conv2d_direct", (metal_type(x.dtype), last)),
            x,
            weight,
            bias,
            out,
            list(params),
            threads=(out_channels, pixels, batch) if last else (pixels, out_channels, batch),
            group=(64, 1, 1),
        )
        return out
    layers = groups if last else groups * batch
    pixels *= batch if last else 1
    tile: tuning.Conv2dTile = tuning.pick(tuning.CONV2D_TILES, pixels=pixels, channels=per_group)
    shape = (tile.pixels, tile.channels, tile.depth, tile.simdgroups_m, tile.simdgroups_n)
    threads = tile.simdgroups_m * tile.simdgroups_n * SIMD_WIDTH
    launch(
        Variant("conv2d", "conv2d", (metal_type(x.dtype), *shape, last)),
        x,
        weight,
        bias,
        out,
        list(params),
        threads=(-(-pixels // tile.pixels) * threads, -(-per_group // tile.channels), layers),
        group=(threads, 1, 1),
    )
    return out


def _pair(value: int | tuple[int, int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise InvalidInputError(
            f"{name} is {value!r}; an int or two of them, each at least {least}, are allowed"
        )
    return pair[0], pair[1]


def _padding(
    padding: int | tuple[int, int] | str,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros above and on the left, and the size of the result."""
    reach = [holes * (taps - 1) for holes, taps in zip(dilation, kernel, strict=True)]
    if padding == "same":
        if stride != (1, 1):
            raise InvalidInputError(f"padding is 'same' and stride {stride}; 'same' needs stride 1")
        _check_extents(size, (reach[0], reach[1]))
        return (reach[0] // 2, reach[1] // 2), size
    if isinstance(padding, str) and padding != "valid":
        raise InvalidInputError(
            f"padding is {padding!r}; a number, two numbers, 'same' or 'valid' are allowed"
        )
    zeros = (0, 0) if isinstance(padding, str) else _pair(padding, "padding", 0)
    _check_extents(size, (2 * zeros[0], 2 * zeros[1]))
    room = [extent + 2 * pad - far - 1 for extent, pad, far in zip(size, zeros, reach, strict=True)]
    if min(room) < 0:
        raise InvalidInputError(
            f"the input is {size[0]} x {size[1]} with padding {zeros}, and the kernel reaches over "
            f"{reach[0] + 1} x {reach[1] + 1}; the kernel must fit into the padded input"
        )
    return zeros, (room[0] // stride[0] + 1, room[1] // stride[1] + 1)


def _check_extents(size: tuple[int, int], zeros: tuple[int, int]) -> None:
    if max(extent + added for extent, added in zip(size, zeros, strict=True)) >= _MOST_EXTENT:
        raise InvalidInputError(
            f"the input is {size[0]} x {size[1]}, and {zeros[0]} rows and {zeros[1]} columns of zeros are added; each "
            f"extent must stay below {_MOST_EXTENT}: take less padding"
        )


def _check(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int) -> None:
    if x.dim() != 4 or weight.dim() != 4:
        raise InvalidInputError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; (batch, channels, height, "
            "width) and (out_channels, channels / groups, kernel_h, kernel_w) are needed"
        )
    if groups < 1 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise InvalidInputError(
            f"x has {x.shape[1]} channels, weight has shape {tuple(weight.shape)} and groups is {groups}; "
            "channels must be groups times the weight's second dimension, and its first a multiple of groups"
        )
    if min(weight.shape[2:]) < 1:
        raise InvalidInputError(
            f"the kernel is {weight.shape[2]} x {weight.shape[3]}; it needs at least one tap"
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype not in _DTYPES or tensor.dtype != x.dtype):
            raise InvalidInputError(
                f"{name} is {tensor.dtype} and x is {x.dtype}; they must be the same, and one of float32, "
                "float16, bfloat16: convert them"
            )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InvalidInputError(f"bias has shape {tuple(bias.shape)}; ({weight.shape[0]},) is needed")
