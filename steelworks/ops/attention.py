"""Scaled dot-product attention, grouped-query attention included."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F

from steelworks.errors import InvalidInputError
from steelworks.paths import Signature

from ._checks import FLOATS, check_devices, check_dtype, check_same_floats
from ._library import Operator, device_type, dtype_of, float_reason, shape_of

#: The largest head size of the Metal kernels.
_METAL_HEAD_SIZE: Final = 256


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T + mask) v, as ``torch.nn.functional.scaled_dot_product_attention``.

    A row that may see no key (its mask excludes all, or there are none) is 0, and so are its gradients. Keys that a
    mask excludes get weight 0, but their values must be finite: 0 times NaN is NaN. Differentiable, through the
    vendor's.

    Args:
        query: ``(batch, heads, queries, d)``, floating point.
        key: ``(batch, key_heads, keys, d)``, of query's dtype; ``heads`` is a multiple of ``key_heads``, and query head
            ``h`` uses key head ``h // (heads // key_heads)``.
        value: ``(batch, key_heads, keys, dv)``, of query's dtype.
        mask: Broadcastable to ``(batch, heads, queries, keys)``. Boolean: where it is false, the key is excluded.
            Floating point: added to the scaled score; -inf excludes.
        causal: Query ``i`` sees keys up to ``i + keys - queries``: the last query sees all, as when decoding.
            (PyTorch's ``is_causal`` aligns the first query with the first key; for as many queries as keys it is the
            same.) It may be given besides a mask.
        scale: What scores are multiplied by; by default ``1 / sqrt(d)``.

    Returns:
        ``(batch, heads, queries, dv)``.

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit together.
    """
    result: torch.Tensor = ATTENTION((query, key, value, mask), (query, key, value, mask, causal, scale))
    return result


def _vendor(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    queries, keys = query.shape[2], key.shape[2]
    own = causal and mask is None and queries == keys  # PyTorch's is_causal means the same, and is faster
    if causal and not own and queries > 1:
        seen = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
        if mask is None:
            mask = seen
        elif mask.dtype == torch.bool:
            mask = mask & seen
        else:
            mask = mask.masked_fill(~seen, -math.inf)
    if mask is not None:
        if mask.dtype not in (torch.bool, torch.float32, query.dtype):
            mask = mask.to(query.dtype)
        if mask.dim() < 2:
            mask = mask.expand(queries, keys)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=own, scale=scale, enable_gqa=grouped
    )


def _fake(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    return query.new_empty((*query.shape[:3], value.shape[3]))


def _signature(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[Any, ...]:
    shapes = (query.shape, key.shape, value.shape, shape_of(mask))
    flags = (causal, key.dtype, value.dtype, dtype_of(mask))
    return ("attention", device_type(query), query.dtype, shapes, flags)


def _sizes(signature: Signature) -> Mapping[str, int]:
    query, key = signature.shapes[:2]
    assert query is not None and key is not None
    sizes = {"heads": query[0] * query[1], "queries": query[2], "keys": key[2], "head": query[3]}
    return {**sizes, "masked": int(any(signature.shapes[3:])), "causal": int(bool(signature.flags[0]))}


def _check(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4:
            raise InvalidInputError(
                f"attention: {name} has shape {tuple(tensor.shape)}; (batch, heads, length, size) is needed: add or "
                "merge dimensions"
            )
    check_same_floats("attention", query=query, key=key, value=value)
    check_devices("attention", query=query, key=key, value=value, mask=mask)
    fits = key.shape[0] == query.shape[0] and key.shape[3] == query.shape[3]
    if not fits or value.shape[:3] != key.shape[:3] or query.shape[3] == 0:
        raise InvalidInputError(
            f"attention: query, key and value have shapes {tuple(query.shape)}, {tuple(key.shape)} and "
            f"{tuple(value.shape)}; (batch, heads, queries, d), (batch, key_heads, keys, d) and (batch, key_heads, "
            "keys, dv) are needed, d being at least 1"
        )
    if query.shape[1] and (key.shape[1] == 0 or query.shape[1] % key.shape[1]):
        raise InvalidInputError(
            f"attention: query has {query.shape[1]} heads and key {key.shape[1]}; the first must be a multiple of the "
            "second"
        )
    if mask is None:
        return
    check_dtype("attention", "mask", mask.dtype, (torch.bool, *FLOATS))
    shape = (*query.shape[:3], key.shape[2])
    sizes = zip(reversed(mask.shape), reversed(shape), strict=False)
    if mask.dim() > 4 or any(have not in (1, want) for have, want in sizes):
        raise InvalidInputError(
            f"attention: mask has shape {tuple(mask.shape)}, which does not broadcast to (batch, heads, queries, keys) "
            f"= {tuple(shape)}"
        )


def _possible(signature: Signature) -> str | None:
    query, _, value = signature.shapes[:3]
    assert query is not None and value is not None
    size = max(query[3], value[3])
    if size > _METAL_HEAD_SIZE:
        return f"the head size is {size}; the Metal kernels have up to {_METAL_HEAD_SIZE}"
    if signature.flags[-1] == torch.float64:
        return "the mask is float64"
    return float_reason(signature.dtype)


def _metal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    from steelworks.kernels.metal import attention as kernels

    return kernels.attention(query, key, value, mask, causal=causal, scale=scale)


def _possible_triton(signature: Signature) -> str | None:
    from steelworks.kernels.triton.attention import unsupported

    query, key, value = signature.shapes[:3]
    assert query is not None and key is not None and value is not None
    if signature.flags[-1] == torch.float64:
        return "the mask is float64"
    return unsupported((key[2], query[3], value[3]), (signature.dtype, *signature.flags[1:3]))


def _triton(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> torch.Tensor:
    from steelworks.kernels.triton import attention as kernels

    return kernels.attention(query, key, value, mask, causal, scale)


ATTENTION: Final = Operator(
    "attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, bool causal, float? scale) -> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    flags=(False, torch.float32, torch.float32, None),
    no_path={
        ("mps", "graph"): "PyTorch picks MPSGraph or a kernel of its own by itself; neither can be asked for",
    },
    autocast="lower",
)
ATTENTION.metal(_possible, _metal)
ATTENTION.triton(_possible_triton, _triton)
