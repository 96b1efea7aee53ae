"""Attention: softmax(scale * q k^T + mask) v in one pass over the keys; the scores never go to memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import SIMD_WIDTH, Variant, empty, launch, metal_type

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MASK_NONE, _MASK_BOOL, _MASK_ADD = 0, 1, 2
#: The largest head size: of the largest tile.
MAX_HEAD_SIZE = max(row.choice.head_size for row in tuning.ATTENTION_TILES)


class _Params(NamedTuple):
    """attention/params.h: the same fields in the same order."""

    q_heads: int
    group: int
    q_len: int
    k_len: int
    d: int
    dv: int
    causal: int
    q_batch: int
    q_head: int
    q_row: int
    k_batch: int
    k_head: int
    k_row: int
    v_batch: int
    v_head: int
    v_row: int
    mask_batch: int
    mask_head: int
    mask_row: int
    mask_key: int
    split_keys: int
    splits: int
    rows: int


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Scaled dot-product attention.

    A row that may see no key (its mask excludes all, or there are none) is 0. Keys that a mask excludes get
    weight 0, but their values must be finite: 0 times NaN is NaN. Sums are in float32, rounded once.

    Args:
        q: Queries, ``(batch, heads, queries, d)``; float32, float16 or bfloat16; any strides.
        k: Keys, ``(batch, key_heads, keys, d)`` of the same dtype; ``heads`` is a multiple of ``key_heads``,
            and query head ``h`` uses key head ``h // (heads // key_heads)``.
        v: Values, ``(batch, key_heads, keys, dv)``.
        mask: Broadcastable to ``(batch, heads, queries, keys)``. Boolean: where it is false, the key is
            excluded. Floating point: added to the scaled score; -inf excludes.
        causal: Query ``i`` sees keys up to ``i + keys - queries``: the last query sees all. (torch aligns the
            first query with the first key instead; for as many queries as keys it is the same.)
        scale: What scores are multiplied by; by default ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, queries, dv)``, dense, of q's dtype.

    Raises:
        InvalidInputError: shapes or dtypes that do not fit together, or a head size above 256.
    """
    _check(q, k, v)
    batch, heads, q_len, d = q.shape
    key_heads, k_len, dv = v.shape[1], v.shape[2], v.shape[3]
    out = empty((batch, heads, q_len, dv), q.dtype, q.device)
    if out.numel() == 0:
        return out
    q, k, v = (t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous() for t in (q, k, v))
    kind, mask_type = _MASK_NONE, metal_type(q.dtype)
    mask_strides: tuple[int, ...] = (0, 0, 0, 0)
    if mask is not None:
        mask, kind, mask_type = _check_mask(mask, (batch, heads, q_len, k_len))
        mask_strides = mask.stride()
    group = heads // key_heads
    vector, splits = _choose_vector(q_len, k_len, group, max(d, dv), batch * key_heads)
    sizes = (heads, group, q_len, k_len, d, dv, int(causal))
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *mask_strides)
    split_keys = max(1, -(-k_len // splits))
    params = _Params._make((*sizes, *strides, split_keys, splits, batch * heads * q_len))
    factor = 1.0 / math.sqrt(d) if scale is None else float(scale)
    types = (metal_type(q.dtype), mask_type, kind)
    if vector is not None:
        _vector(q, k, v, mask, out, params, factor, types, vector)
        return out
    tile: tuning.AttentionTile = tuning.pick(
        tuning.ATTENTION_TILES, head_size=max(d, dv), element_bytes=q.element_size()
    )
    arguments = (*types, tile.queries, tile.keys, tile.head_size, tile.simdgroups, tile.share)
    threads = tile.simdgroups * SIMD_WIDTH
    launch(
        Variant("attention", "attention", arguments),
        q,
        k,
        v,
        mask,
        out,
        list(params),
        factor,
        threads=(-(-q_len // tile.queries) * threads, heads, batch),
        group=(threads, 1, 1),
    )
    return out


def _choose_vector(
    q_len: int, k_len: int, group: int, head_size: int, heads: int
) -> tuple[tuning.AttentionVector | None, int]:
    """The vector form and how many threadgroups share the keys of a row; None for the tiled form."""
    if q_len > tuning.ATTENTION_VECTOR_QUERIES:
        return None, 1
    rows = group * q_len
    vector: tuning.AttentionVector = tuning.pick(tuning.ATTENTION_VECTORS, rows=rows, head_size=head_size)
    splits: int = tuning.pick(tuning.ATTENTION_SPLITS, keys=k_len, groups=heads * -(-rows // vector.rows))
    return vector, splits


def _vector(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    out: torch.Tensor,
    params: _Params,
    scale: float,
    types: tuple[str, str, int],
    chosen: tuning.AttentionVector,
) -> None:
    dtype, mask_type, kind = types
    partial = params.splits > 1
    target = out
    if partial:
        target = empty((params.splits, params.rows, params.dv + 2), torch.float32, q.device)
    target_type = metal_type(target.dtype)
    sizes = (chosen.rows, chosen.elements, chosen.simdgroups)
    arguments = (dtype, target_type, mask_type, kind, *sizes, partial)
    threads = chosen.simdgroups * SIMD_WIDTH
    chunks = -(-params.group * params.q_len // chosen.rows)
    packed = list(params)
    launch(
        Variant("attention", "attention_vector", arguments, header="vector"),
        q,
        k,
        v,
        mask,
        target,
        packed,
        scale,
        threads=(chunks * params.splits * threads, params.q_heads // params.group, q.shape[0]),
        group=(threads, 1, 1),
    )
    if partial:
        launch(
            Variant("attention", "attention_combine", (dtype,), header="vector"),
            target,
            out,
            packed,
            threads=(params.dv, params.rows),
            group=(64, 1),
        )


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise InvalidInputError(
                f"{name} has shape {tuple(tensor.shape)}; (batch, heads, length, size) is needed: "
                "add or merge dimensions"
            )
        if tensor.dtype not in _DTYPES or tensor.dtype != q.dtype:
            raise InvalidInputError(
                f"{name} is {tensor.dtype} and q is {q.dtype}; they must be the same, and one of float32, "
                "float16, bfloat16: convert them"
            )
        if tensor.device != q.device:
            raise InvalidInputError(
                f"{name} is on '{tensor.device}' and q on '{q.device}'; move them to one device"
            )
    if k.shape[0] != q.shape[0] or v.shape[:3] != k.shape[:3] or k.shape[3] != q.shape[3]:
        raise InvalidInputError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; needed are "
            "(batch, heads, queries, d), (batch, key_heads, keys, d), (batch, key_heads, keys, dv)"
        )
    if q.shape[1] and (k.shape[1] == 0 or q.shape[1] % k.shape[1]):
        raise InvalidInputError(
            f"q has {q.shape[1]} heads and k {k.shape[1]}; the first must be a multiple of the second"
        )
    for name, size in (("d", q.shape[3]), ("dv", v.shape[3])):
        if size > MAX_HEAD_SIZE or (name == "d" and size == 0):
            raise InvalidInputError(f"the head size {name} is {size}; 1 to {MAX_HEAD_SIZE} are allowed")


def _check_mask(mask: torch.Tensor, shape: tuple[int, int, int, int]) -> tuple[torch.Tensor, int, str]:
    """The mask with all dimensions (expanded, not copied), its kind, and its type in Metal."""
    if mask.dtype != torch.bool and mask.dtype not in _DTYPES:
        raise InvalidInputError(
            f"mask is {mask.dtype}; bool, float32, float16 or bfloat16 are allowed: convert it"
        )
    try:
        full = mask.expand(shape)
    except RuntimeError as problem:
        raise InvalidInputError(
            f"mask has shape {tuple(mask.shape)}, which does not broadcast to "
            f"(batch, heads, queries, keys) = {shape}"
        ) from problem
    if mask.dtype == torch.bool:
        return full.view(torch.uint8), _MASK_BOOL, "uchar"
    return full, _MASK_ADD, metal_type(mask.dtype)
