"""Rotary position embedding (Su et al. 2021, RoFormer), with angles that are right at every position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels.metal.rope import MOST_POSITION, rope_frequencies, rope_table
from steelworks.paths import Signature

from ._checks import FLOATS, check_devices, check_dtype, size_reason
from ._library import Arguments, Operator, Tensors, device_type, dtype_of, float_reason, shape_of

__all__ = ["MOST_POSITION", "rope", "rope_frequencies", "rope_table"]

#: Splits a position and a frequency into parts whose products are exact in float32.
_PART: Final = 4096.0


def rope(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int | torch.Tensor = 0,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    """Turns pairs of elements by an angle proportional to the position.

    (a, b) becomes (a cos t - b sin t, a sin t + b cos t) with t = (offset + row) * frequency. Angles are right to
    float32 precision at every position, which the usual float32 product of position and frequency is not.
    Differentiable in x: the gradient is turned back.

    Args:
        x: ``(batch, heads, length, width)``, floating point. (For ``(batch, length, heads, width)``, pass
            ``x.transpose(1, 2)``.)
        frequencies: From ``rope_frequencies`` or ``rope_table``: ``(2, pairs)``, float32; the first ``2 * pairs``
            elements of ``width`` are turned, the others copied.
        offset: Position of the first row; or int32 or int64 of shape ``(batch,)``, one for each sequence.
        interleaved: Pairs are neighbours (2 i, 2 i + 1); otherwise halves (i, i + pairs), as in most models.
        inverse: Turns back.

    Returns:
        A tensor of ``x``'s shape and dtype.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit, or positions outside 0 to 2**24 (tensors of
            offsets are looked at on the CPU only).
    """
    if isinstance(offset, torch.Tensor):
        arguments = (x, frequencies, 0, offset, interleaved, inverse)
        result: torch.Tensor = _ROPE((x, frequencies, offset), arguments)
        return result
    length = x.shape[2] if x.dim() == 4 else 0  # another shape is refused by _check
    if not 0 <= offset <= MOST_POSITION - length:
        _check_positions(offset, offset, length)
    result = _ROPE((x, frequencies), (x, frequencies, offset, None, interleaved, inverse))
    return result


def _vendor(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int,
    offsets: torch.Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> torch.Tensor:
    length, width = x.shape[2:]
    pairs = frequencies.shape[1]
    rows = torch.arange(length, device=x.device)
    places = rows + offset if offsets is None else rows + offsets[:, None, None]
    angles = _angles(places.to(torch.float32).unsqueeze(-1), frequencies)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    sin = -sin if inverse else sin
    turned, rest = x[..., : 2 * pairs].to(dtype), x[..., 2 * pairs :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        result = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
        result = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    result = result.to(x.dtype)
    return result if width == 2 * pairs else torch.cat((result, rest), dim=-1)


def _angles(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Radians, of less than a turn, of positions up to 2**24 by frequencies in turns: ``(..., pairs)``.

    In float32 alone, as a device may have no float64: a position and a frequency are each cut into parts of at most 12
    bits, so that products are exact, and whole turns can be dropped from each before they are added.
    """
    nearest, missing = frequencies[0], frequencies[1]
    split = nearest * (_PART + 1)
    high = split - (split - nearest)  # Veltkamp's split: the upper 12 bits
    parts = (high, nearest - high)
    upper = (positions / _PART).floor() * _PART
    turns = positions * missing
    for place in (upper, positions - upper):
        for part in parts:
            product = place * part
            turns = turns + (product - product.round())
    return (turns - turns.round()) * (2 * math.pi)


def _saved(inputs: Arguments, _: Any) -> tuple[Tensors, Any]:
    _x, frequencies, offset, offsets, interleaved, inverse = inputs
    return (frequencies, offsets), (offset, interleaved, inverse)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    frequencies, offsets = ctx.saved_tensors
    offset, interleaved, inverse = ctx.rest
    tensors = (gradient, frequencies, offsets)
    of_x = _ROPE(tensors, (gradient, frequencies, offset, offsets, interleaved, not inverse))
    return of_x, None, None, None, None, None


def _fake(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x.new_empty(x.shape)


def _signature(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int,
    offsets: torch.Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> tuple[Any, ...]:
    # Not the offset: each step of decoding has another.
    flags = (frequencies.dtype, dtype_of(offsets), interleaved, inverse)
    return ("rope", device_type(x), x.dtype, (x.shape, frequencies.shape, shape_of(offsets)), flags)


def _sizes(signature: Signature) -> Mapping[str, int]:
    x = signature.shapes[0]
    assert x is not None
    return {"rows": x[0] * x[1] * x[2], "columns": x[3]}


def _check(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int,
    offsets: torch.Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> None:
    check_dtype("rope", "x", x.dtype, FLOATS)
    if x.dim() != 4:
        raise InvalidInputError(
            f"rope: x has shape {tuple(x.shape)}; (batch, heads, length, width) is needed"
        )
    if frequencies.dim() != 2 or frequencies.shape[0] != 2 or frequencies.dtype != torch.float32:
        raise InvalidInputError(
            f"rope: frequencies is {frequencies.dtype} of shape {tuple(frequencies.shape)}; float32 of shape (2, "
            "pairs) is needed: rope_frequencies makes it"
        )
    batches, _, length, width = x.shape
    if 2 * frequencies.shape[1] > width:
        raise InvalidInputError(
            f"rope: frequencies has {frequencies.shape[1]} pairs; for a width of {width}, at most {width // 2} fit"
        )
    check_devices("rope", x=x, frequencies=frequencies, offset=offsets)
    if offsets is None:
        _check_positions(offset, offset, length)
        return
    if offsets.dtype not in (torch.int32, torch.int64) or tuple(offsets.shape) != (batches,):
        raise InvalidInputError(
            f"rope: offset is {offsets.dtype} of shape {tuple(offsets.shape)}; an int, or int32 or int64 of shape "
            f"({batches},), is needed"
        )
    if offsets.device.type == "cpu" and batches:
        _check_positions(int(offsets.min()), int(offsets.max()), length)


def _check_positions(least: int, most: int, length: int) -> None:
    if least < 0 or most + length > MOST_POSITION:
        raise InvalidInputError(
            f"rope: positions go from {least} to {most + length - 1}; allowed are 0 to {MOST_POSITION - 1}"
        )


def _possible(signature: Signature) -> str | None:
    return float_reason(signature.dtype) or size_reason(signature.shapes[0])


def _metal(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int,
    offsets: torch.Tensor | None,
    interleaved: bool,
    inverse: bool,
) -> torch.Tensor:
    from steelworks.kernels.metal import rope as kernels

    where = offset if offsets is None else offsets
    return kernels.rope(x, frequencies, where, interleaved=interleaved, inverse=inverse)


_ROPE: Final = Operator(
    "rope",
    "(Tensor x, Tensor frequencies, SymInt offset, Tensor? offsets, bool interleaved, bool inverse) -> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(torch.float32, None, False, False),
    no_path={
        ("cuda", "steel"): "there is no Triton kernel of ours; torch.compile fuses the composition",
        ("mps", "graph"): "PyTorch has no operator for it, so nothing to ask for",
    },
    backward=_backward,
    saved=_saved,
)
_ROPE.metal(_possible, _metal)
