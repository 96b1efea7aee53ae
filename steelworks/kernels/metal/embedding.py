"""Rows of a table, chosen by ids."""

from __future__ import annotations

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import Variant, empty, launch, metal_type
from ._views import GROUP, as_rows, ceil_div, check_float, check_size, round_up


def embedding(ids: torch.Tensor, table: torch.Tensor, *, check: bool | None = None) -> torch.Tensor:
    """``table[ids]``.

    An id that the table does not have, negative ones included, gives a row of NaN; nothing outside the table
    is read.

    Args:
        ids: int32 or int64, of any shape.
        table: ``(rows, width)``; float32, float16 or bfloat16; rows may be any distance apart.
        check: Raise for such an id instead. It needs the ids on the host, so by default that is done only on
            the CPU.

    Returns:
        ``(*ids.shape, width)``, dense, of the table's dtype.

    Raises:
        InvalidInputError: dtypes or shapes that do not fit, or (see ``check``) an id that the table does not
            have.
    """
    if ids.dtype not in (torch.int32, torch.int64):
        raise InvalidInputError(f"embedding: ids is {ids.dtype}; int32 or int64 is needed: convert it")
    check_float("embedding", "table", table)
    if table.dim() != 2:
        raise InvalidInputError(f"embedding: table has shape {tuple(table.shape)}; (rows, width) is needed")
    rows, width = table.shape
    if (ids.device.type == "cpu" if check is None else check) and ids.numel():
        least, most = int(ids.min()), int(ids.max())
        if least < 0 or most >= rows:
            raise InvalidInputError(
                f"embedding: ids go from {least} to {most}; the table has rows 0 to {rows - 1}"
            )
    out = empty((*ids.shape, width), table.dtype, table.device)
    if out.numel() == 0:
        return out
    view = as_rows(table)
    count = ids.numel()
    check_size("embedding", count, rows, width)
    packet = tuning.EMBEDDING_PACKET
    across = ceil_div(width, packet)
    group: int = tuning.pick(tuning.ELEMENTWISE_GROUPS, across=across)
    launch(
        Variant("embedding", "embedding", (metal_type(table.dtype), metal_type(ids.dtype), packet)),
        ids.contiguous(),
        view.tensor,
        out,
        [count, rows, width, view.stride],
        threads=(round_up(across, group), round_up(count, GROUP // group)),
        group=(group, GROUP // group),
    )
    return out
