"""Attention over few keys on CUDA: one launch, which reads all keys of a head at once.

For long sequences PyTorch's fused kernels are at the floor. For short ones they are not: a launch of theirs takes
longer than the work, a mask whose last dimension is broadcast makes PyTorch fall back to matrix products and a softmax
in memory, and some of them need a second kernel that clears memory.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import (
    Arg,
    Kernel,
    Launch,
    Options,
    Plans,
    cdiv,
    constexpr,
    interpreted,
    jit,
    power_of_two,
    supports_pdl,
    tl,
    wait_for_previous,
)

DTYPES: Final = (torch.float16, torch.bfloat16)
#: More keys than this, or larger heads, are PyTorch's.
MOST_KEYS: Final = 128
MOST_SIZE: Final = 128
_LEAST: Final = 16  # least side of a matrix product in Triton
_LOG2E: Final = math.log2(math.e)


@jit
def _attention_kernel(
    q: Arg, k: Arg, v: Arg, mask: Arg, out: Arg,
    heads: Arg, shared: Arg, queries: Arg, keys: Arg, size: Arg, value_size: Arg, scale: Arg,
    q_batch: Arg, q_head: Arg, q_row: Arg, k_batch: Arg, k_head: Arg, k_row: Arg,
    v_batch: Arg, v_head: Arg, v_row: Arg, m_batch: Arg, m_head: Arg, m_row: Arg, m_key: Arg,
    BQ: constexpr, BK: constexpr, D: constexpr, DV: constexpr, MASK: constexpr, CAUSAL: constexpr,
    WIDE: constexpr, PDL: constexpr,
) -> None:  # fmt: skip
    """BQ queries of a head. MASK: "" is none, "bool" excludes where it is 0, "float" is added. out: (b, q, h, dv)."""
    of = tl.program_id(0)
    batch = (of // heads).to(tl.int64)
    head = (of % heads).to(tl.int64)
    key_head = head // shared
    rows = tl.program_id(1) * BQ + tl.arange(0, BQ)
    seen = tl.arange(0, BK)
    deep = tl.arange(0, D)
    wide = tl.arange(0, DV)
    row_known = rows < queries
    key_known = seen < keys
    wait_for_previous(PDL)
    q_at = q + batch * q_batch + head * q_head + rows[:, None].to(tl.int64) * q_row + deep[None, :]
    k_at = k + batch * k_batch + key_head * k_head + seen[None, :].to(tl.int64) * k_row + deep[:, None]
    v_at = v + batch * v_batch + key_head * v_head + seen[:, None].to(tl.int64) * v_row + wide[None, :]
    q_tile = tl.load(q_at, mask=row_known[:, None] & (deep < size)[None, :], other=0.0)
    k_tile = tl.load(k_at, mask=key_known[None, :] & (deep < size)[:, None], other=0.0)
    v_tile = tl.load(v_at, mask=key_known[:, None] & (wide < value_size)[None, :], other=0.0)
    allowed = row_known[:, None] & key_known[None, :]
    m_at = mask + batch * m_batch + head * m_head + rows[:, None].to(tl.int64) * m_row + seen[None, :] * m_key
    if WIDE:
        scores = tl.dot(q_tile.to(tl.float32), k_tile.to(tl.float32), input_precision="ieee") * scale
    else:
        scores = tl.dot(q_tile, k_tile) * scale
    if MASK == "float":
        scores += tl.load(m_at, mask=allowed, other=0.0).to(tl.float32) * 1.4426950408889634
    if MASK == "bool":
        allowed = allowed & (tl.load(m_at, mask=allowed, other=0) != 0)
    if CAUSAL:
        allowed = allowed & (seen[None, :] <= rows[:, None] + (keys - queries))
    scores = tl.where(allowed, scores, float("-inf"))
    most = tl.max(scores, 1)
    most = tl.where(most == float("-inf"), 0.0, most)  # a row that may see nothing
    weights = tl.exp2(scores - most[:, None])
    total = tl.sum(weights, 1)
    if WIDE:
        sums = tl.dot(weights, v_tile.to(tl.float32), input_precision="ieee")
    else:
        sums = tl.dot(weights.to(v_tile.dtype), v_tile)
    result = tl.where(total[:, None] == 0.0, 0.0, sums / total[:, None])
    place = ((batch * queries + rows[:, None]) * heads + head) * value_size + wide[None, :]
    tl.store(
        out + place, result.to(out.dtype.element_ty), mask=row_known[:, None] & (wide < value_size)[None, :]
    )


_KERNEL: Final = Kernel(
    _attention_kernel,
    pointers=5,
    plain=("heads", "shared", "queries", "keys", "m_batch", "m_head", "m_row", "m_key"),
)
_plans: Plans[Launch] = Plans()


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """``softmax(scale q k^T + mask) v`` for at most 128 keys.

    Scores and sums are in float32; weights are rounded once before they meet the values, as in the vendor's kernels.
    A row that may see no key is 0. Values of excluded keys must be finite.

    Args:
        query: ``(batch, heads, queries, d)``, float16 or bfloat16; d at most 128.
        key: ``(batch, key_heads, keys, d)``; heads is a multiple of key_heads.
        value: ``(batch, key_heads, keys, dv)``; dv at most 128.
        mask: Broadcastable to ``(batch, heads, queries, keys)``; bool (false excludes) or floating point (added). Read
            as it lies in memory, broadcast dimensions included.
        causal: Query i sees keys up to ``i + keys - queries``.
        scale: By default ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, queries, dv)``, whose memory is dense as ``(batch, queries, heads, dv)``: what merges the heads
        copies nothing.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or too large.
    """
    signature = (
        query.shape, query.stride(), query.dtype, query.device, key.shape, key.stride(), key.dtype, value.shape,
        value.stride(), value.dtype, None if mask is None else (mask.shape, mask.stride(), mask.dtype), causal, scale,
    )  # fmt: skip
    launch = _plans.get(signature)
    if launch is None:
        _check(query, key, value, mask)
    batch, heads, queries, _ = query.shape
    keys, value_size = value.shape[2:]
    out = query.new_empty((batch, queries, heads, value_size))
    if out.numel() == 0:
        return out.transpose(1, 2)
    if keys == 0:
        return out.zero_().transpose(1, 2)
    q, k, v = (t if t.stride(3) == 1 or t.shape[3] == 1 else t.contiguous() for t in (query, key, value))
    beside = out if mask is None else mask.view(torch.uint8) if mask.dtype == torch.bool else mask
    if launch is None:
        wide = beside if mask is None else beside.expand(batch, heads, queries, keys)
        launch = _plans.keep(signature, _bind(q, k, v, mask, wide, out, causal, scale))
    launch(q, k, v, beside, out)
    return out.transpose(1, 2)


def _bind(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    wide: torch.Tensor,
    out: torch.Tensor,
    causal: bool,
    scale: float | None,
) -> Launch:
    batch, heads, queries, size = q.shape
    keys, value_size = v.shape[2:]
    scale = size**-0.5 if scale is None else float(scale)
    tile = tuning.pick(tuning.ATTENTION, heads=batch * heads, keys=power_of_two(keys))
    rows = min(tile.rows, max(_LEAST, power_of_two(queries)))
    pdl = supports_pdl(q.get_device())
    return _KERNEL.bind(
        (q, k, v, wide, out),
        scalars=(
            heads, heads // k.shape[1], queries, keys, size, value_size, scale * _LOG2E,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            *((0, 0, 0, 0) if mask is None else wide.stride()),
        ),
        constants={
            "BQ": rows, "BK": max(_LEAST, power_of_two(keys)), "D": max(_LEAST, power_of_two(size)),
            "DV": max(_LEAST, power_of_two(value_size)),
            "MASK": "" if mask is None else "bool" if mask.dtype == torch.bool else "float",
            "CAUSAL": causal, "WIDE": interpreted(), "PDL": pdl,
        },
        grid=(batch * heads, cdiv(queries, rows)),
        options=Options(num_warps=tile.warps, num_stages=1, pdl=pdl),
    )  # fmt: skip


def unsupported(sizes: tuple[int, int, int], dtypes: tuple[Any, ...]) -> str | None:
    """Why these kernels can't take keys, d and dv, and the dtypes of query, key, value; or None."""
    keys, size, value_size = sizes
    if keys > MOST_KEYS:
        return f"there are {keys} keys; the Triton kernels have up to {MOST_KEYS}"
    if max(size, value_size) > MOST_SIZE:
        return f"the head size is {max(size, value_size)}; the Triton kernels have up to {MOST_SIZE}"
    if dtypes[0] not in DTYPES or any(d != dtypes[0] for d in dtypes):
        return f"{dtypes[0]} is neither float16 nor bfloat16, or key and value have another dtype"
    return None


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> None:
    if any(t.dim() != 4 for t in (query, key, value)):
        raise InvalidInputError(
            f"query, key and value have shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}; "
            "(batch, heads, length, size) is needed"
        )
    heads, key_heads = query.shape[1], key.shape[1]
    fits = (
        key.shape[0] == query.shape[0] and key.shape[3] == query.shape[3] and key.shape[:3] == value.shape[:3]
    )
    if not fits or (heads and (key_heads == 0 or heads % key_heads)) or query.shape[3] == 0:
        raise InvalidInputError(
            f"query, key and value have shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}, "
            "which do not fit together"
        )
    sizes = (key.shape[2], query.shape[3], value.shape[3])
    reason = unsupported(sizes, (query.dtype, key.dtype, value.dtype))
    if reason is not None:
        raise InvalidInputError(f"{reason}: take PyTorch's attention")
    if mask is None:
        return
    if mask.dtype not in (torch.bool, torch.float16, torch.bfloat16, torch.float32):
        raise InvalidInputError(f"mask is {mask.dtype}; bool, float16, bfloat16 or float32 is needed")
    shape = (*query.shape[:3], key.shape[2])
    sides = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.dim() > 4 or any(have not in (1, want) for have, want in sides):
        raise InvalidInputError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to {tuple(shape)}"
        )
