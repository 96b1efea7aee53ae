"""Rotary position embedding."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import Variant, empty, launch, metal_type
from ._views import GROUP, ceil_div, check_float, check_size, round_up

#: Positions are exact in float32 up to here.
MOST_POSITION = 2**24


@dataclass(frozen=True)
class _Params:
    """rope/params.h: the same fields in the same order."""

    heads: int
    length: int
    width: int
    pairs: int
    batch_stride: int
    head_stride: int
    row_stride: int
    offset_step: int
    inverse: int


def rope_frequencies(
    rotary: int, base: float = 10000.0, scale: float = 1.0, *, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The table for ``rope``: pair i turns by ``scale * base ** (-2 i / rotary)`` radians a position.

    Args:
        rotary: How many elements of a head are turned; even.
        base: Theta.
        scale: Of positions: 0.5 for a context twice as long (linear scaling).

    Returns:
        ``(2, rotary / 2)``, float32: see ``rope_table``.

    Raises:
        InvalidInputError: ``rotary`` is odd or negative, or ``base`` or ``scale`` are not positive.
    """
    if rotary < 0 or rotary % 2 or base <= 0 or scale <= 0:
        raise InvalidInputError(
            f"rope_frequencies: rotary is {rotary}, base {base}, scale {scale}; an even number and two positive ones "
            "are needed"
        )
    exponents = torch.arange(0, rotary, 2, dtype=torch.float64) / max(rotary, 1)
    return rope_table(scale * torch.as_tensor(base, dtype=torch.float64) ** -exponents, device=device)


def rope_table(radians: torch.Tensor, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """The table for ``rope`` from frequencies in radians a position, one a pair; best given in float64 on the
    CPU.

    Returns:
        ``(2, pairs)``, float32: frequencies in turns a position, as the nearest float and what is missing to
        it.
    """
    turns = radians.double().cpu() / (2 * math.pi)
    high = turns.float()
    return torch.stack([high, (turns - high.double()).float()]).to(device)


def rope(
    x: torch.Tensor,
    frequencies: torch.Tensor,
    offset: int | torch.Tensor = 0,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    """Turns pairs of elements by an angle proportional to the position.

    (a, b) becomes (a cos t - b sin t, a sin t + b cos t) with t = (offset + row) * frequency. Angles are
    right to float32 precision at every position, which the usual float32 product of position and frequency is
    not.

    Args:
        x: ``(batch, heads, length, width)``; float32, float16 or bfloat16; any strides, but if the last
            dimension is not dense it is copied. (For ``(batch, length, heads, width)``, pass ``x.transpose(1,
            2)``.)
        frequencies: From ``rope_frequencies`` or ``rope_table``: ``(2, pairs)``, float32; the first ``2 *
            pairs`` elements of ``width`` are turned, the others copied.
        offset: Position of the first row; or int32 or int64 of shape ``(batch,)``, one for each sequence.
        interleaved: Pairs are neighbours (2 i, 2 i + 1); otherwise halves (i, i + pairs), as in most models.
        inverse: Turns back: the gradient, and the way to undo it.

    Returns:
        A dense tensor of ``x``'s shape and dtype.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit, or positions outside 0 to 2**24.
    """
    check_float("rope", "x", x)
    if x.dim() != 4:
        raise InvalidInputError(
            f"rope: x has shape {tuple(x.shape)}; (batch, heads, length, width) is needed"
        )
    batches, heads, length, width = x.shape
    if frequencies.dim() != 2 or frequencies.shape[0] != 2 or frequencies.dtype != torch.float32:
        raise InvalidInputError(
            f"rope: frequencies is {frequencies.dtype} of shape {tuple(frequencies.shape)}; float32 of shape "
            "(2, pairs) is needed: rope_frequencies makes it"
        )
    pairs = frequencies.shape[1]
    if 2 * pairs > width:
        raise InvalidInputError(
            f"rope: frequencies has {pairs} pairs; for a width of {width}, at most {width // 2} fit"
        )
    offsets = _offsets(x, offset, batches, length)
    out = empty(x.shape, x.dtype, x.device)
    if out.numel() == 0:
        return out
    check_size("rope", batches * heads, length, width)
    x = x if x.stride(-1) == 1 or width == 1 else x.contiguous()
    batch_stride, head_stride, row_stride, _ = x.stride()
    params = _Params(
        heads,
        length,
        width,
        pairs,
        batch_stride,
        head_stride,
        row_stride,
        offset_step=int(offsets.numel() > 1),
        inverse=int(inverse),
    )
    across = pairs + ceil_div(width - 2 * pairs, 2)
    group: int = tuning.pick(tuning.ELEMENTWISE_GROUPS, across=across)
    share = tuning.ROPE_HEADS
    launch(
        Variant("rope", "rope", (metal_type(x.dtype), interleaved, share)),
        x,
        frequencies.contiguous() if pairs else None,
        offsets,
        out,
        list(astuple(params)),
        threads=(round_up(across, group), round_up(length, GROUP // group), batches * ceil_div(heads, share)),
        group=(group, GROUP // group, 1),
    )
    return out


def _offsets(x: torch.Tensor, offset: int | torch.Tensor, batches: int, length: int) -> torch.Tensor:
    """The offsets as int32 on x's device; checked where that needs no copy to the host."""
    if isinstance(offset, torch.Tensor):
        if offset.dtype not in (torch.int32, torch.int64) or tuple(offset.shape) != (batches,):
            raise InvalidInputError(
                f"rope: offset is {offset.dtype} of shape {tuple(offset.shape)}; an int, or int32 or int64 of shape "
                f"({batches},), is needed"
            )
        least, most = (
            (int(offset.min()), int(offset.max())) if offset.device.type == "cpu" and batches else (0, 0)
        )
        made = offset.to(x.device, torch.int32).contiguous()
    else:
        least = most = offset
        made = torch.full((1,), min(max(offset, 0), MOST_POSITION), dtype=torch.int32, device=x.device)
    if least < 0 or most + length > MOST_POSITION:
        raise InvalidInputError(
            f"rope: positions go from {least} to {most + length - 1}; allowed are 0 to {MOST_POSITION - 1}"
        )
    return made
