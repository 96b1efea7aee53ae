"""Two-dimensional convolution, with its activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import MOST_EXTENT, check_devices, check_same_floats
from ._library import Operator, device_type, dtype_of, float_reason, shape_of

_ACTIVATIONS: Final = {None: None, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def conv2d(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolution, bias and activation; ``torch.nn.functional.conv2d``. Differentiable, through the vendor's.

    Args:
        input: ``(batch, channels, height, width)``, floating point. If its memory format is ``torch.channels_last``, so
            is that of the result.
        weight: ``(out_channels, channels / groups, kernel_h, kernel_w)``, of input's dtype.
        bias: ``(out_channels,)``, of input's dtype.
        stride: Steps between outputs, one number or (vertical, horizontal).
        padding: Zeros on each side, one number or (vertical, horizontal); ``"valid"``: none; ``"same"``: such that the
            result has the size of input (with stride 1; an odd one more below and on the right).
        dilation: Steps between taps.
        groups: Channels are cut into so many groups that do not see each other.
        activation: None, ``"relu"``, ``"gelu"`` (exact) or ``"silu"``.

    Returns:
        ``(batch, out_channels, out_height, out_width)``.

    Raises:
        InvalidInputError: shapes, dtypes, devices or options that do not fit together.
    """
    same = padding == "same"
    zeros = (0, 0) if isinstance(padding, str) else _pair(padding, "padding", 0)
    if isinstance(padding, str) and padding not in ("same", "valid"):
        raise InvalidInputError(
            f"conv2d: padding is {padding!r}; a number, two numbers, 'same' or 'valid' are allowed"
        )
    steps, holes = _pair(stride, "stride", 1), _pair(dilation, "dilation", 1)
    arguments = (input, weight, bias, steps, zeros, same, holes, groups, activation)
    result: torch.Tensor = _CONV2D((input, weight, bias), arguments)
    return result


def _pair(value: int | Sequence[int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise InvalidInputError(
            f"conv2d: {name} is {value!r}; an int or two of them, each at least {least}, are allowed"
        )
    return pair[0], pair[1]


def _vendor(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    same: bool,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> torch.Tensor:
    zeros: Any = "same" if same else padding
    result = F.conv2d(input, weight, bias, stride, zeros, dilation, groups)
    function = _ACTIVATIONS[activation]
    result = result if function is None else function(result)
    if _channels_last(input):
        return result.contiguous(memory_format=torch.channels_last)
    return result.contiguous()


def _channels_last(input: torch.Tensor) -> bool:
    """Whether the result has its channels adjacent: the rule of the Metal kernels."""
    return input.stride(1) == 1 and input.shape[1] > 1 and not input.is_contiguous()


def _fake(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    same: bool,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> torch.Tensor:
    sizes = input.shape[2:]
    if not same:
        sizes = torch.Size(
            (size + 2 * zeros - holes * (taps - 1) - 1) // step + 1
            for size, zeros, holes, taps, step in zip(
                sizes, padding, dilation, weight.shape[2:], stride, strict=True
            )
        )
    return input.new_empty((input.shape[0], weight.shape[0], *sizes))


def _signature(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    same: bool,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> tuple[Any, ...]:
    shapes = (input.shape, weight.shape, shape_of(bias))
    options = (tuple(stride), tuple(padding), same, tuple(dilation), groups, activation)
    return ("conv2d", device_type(input), input.dtype, shapes, (weight.dtype, dtype_of(bias), *options))


def _sizes(signature: Signature) -> Mapping[str, int]:
    input, weight = signature.shapes[:2]
    assert input is not None and weight is not None
    pixels, taps = input[0] * input[2] * input[3], weight[2] * weight[3]
    return {"pixels": pixels, "channels": weight[0], "depth": weight[1] * taps}


def _check(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    same: bool,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> None:
    if input.dim() != 4 or weight.dim() != 4:
        raise InvalidInputError(
            f"conv2d: input has shape {tuple(input.shape)} and weight {tuple(weight.shape)}; (batch, channels, height, "
            "width) and (out_channels, channels / groups, kernel_h, kernel_w) are needed"
        )
    if groups < 1 or input.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        raise InvalidInputError(
            f"conv2d: input has {input.shape[1]} channels, weight has shape {tuple(weight.shape)} and groups is "
            f"{groups}; channels must be groups times the weight's second dimension, and its first a multiple of groups"
        )
    check_same_floats("conv2d", input=input, weight=weight, bias=bias)
    check_devices("conv2d", input=input, weight=weight, bias=bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InvalidInputError(f"conv2d: bias has shape {tuple(bias.shape)}; ({weight.shape[0]},) is needed")
    if activation not in _ACTIVATIONS:
        allowed = ", ".join(repr(name) for name in _ACTIVATIONS)
        raise InvalidInputError(f"conv2d: activation is {activation!r}; allowed are {allowed}")
    if same and tuple(stride) != (1, 1):
        raise InvalidInputError(
            f"conv2d: padding is 'same' and stride {tuple(stride)}; 'same' needs stride 1"
        )
    reach = [holes * (taps - 1) + 1 for holes, taps in zip(dilation, weight.shape[2:], strict=True)]
    room = [size + 2 * zeros for size, zeros in zip(input.shape[2:], padding, strict=True)]
    if min(weight.shape[2:]) < 1 or (not same and (reach[0] > room[0] or reach[1] > room[1])):
        raise InvalidInputError(
            f"conv2d: the input is {input.shape[2]} x {input.shape[3]}, with padding {room[0]} x {room[1]}, and the "
            f"kernel reaches over {reach[0]} x {reach[1]}; it must fit, and have at least one tap"
        )


def _possible(signature: Signature) -> str | None:
    input, weight = signature.shapes[:2]
    assert input is not None and weight is not None
    padding = signature.flags[3]
    assert isinstance(padding, tuple)
    extents = (*(size + 2 * zeros for size, zeros in zip(input[2:], padding, strict=True)),)
    if max(*extents, input[0] * extents[0] * extents[1]) > MOST_EXTENT:
        return f"the images are too large for the Metal kernels: {input[0]} of {extents[0]} x {extents[1]}"
    return float_reason(signature.dtype)


def _metal(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    same: bool,
    dilation: Sequence[int],
    groups: int,
    activation: str | None,
) -> torch.Tensor:
    from steelworks.kernels.metal import conv2d as kernels

    return kernels.conv2d(
        input,
        weight,
        bias,
        stride=(stride[0], stride[1]),
        padding="same" if same else (padding[0], padding[1]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
        activation=activation,
    )


_CONV2D: Final = Operator(
    "conv2d",
    "(Tensor input, Tensor weight, Tensor? bias, SymInt[2] stride, SymInt[2] padding, bool same, SymInt[2] dilation, "
    "int groups, str? activation) -> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(torch.float32, None, (1, 1), (0, 0), False, (1, 1), 1, None),
    no_path={
        ("cuda", "steel"): "cuDNN is at the floor for convolutions; there is no kernel of ours",
        ("mps", "graph"): "the vendor path is MPSGraph",
    },
    autocast="lower",
)
_CONV2D.metal(_possible, _metal)
