"""Attention over few keys in Triton against float64: masks of every shape, causal, grouped heads, strides, refusals."""

from __future__ import annotations

import pytest
import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels.triton.attention import MOST_KEYS, attention

F16, BF16 = torch.float16, torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Half the distance between neighbours at 1; twice that for bfloat16, which the interpreter truncates.
ROUNDOFF = {F16: 2.0**-11, BF16: 2.0**-7}


def drawn(*shape: int, dtype: torch.dtype = F16, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape) * 31 + seed)
    return torch.randn(shape, generator=random).to(dtype).to(DEVICE)


def reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask.double()
    elif mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        scores = scores.masked_fill(~seen.tril(scores.shape[-1] - scores.shape[-2]), -torch.inf)
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v


def assert_right(
    got: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **others: object
) -> None:
    want = reference(q, k, v, **others)  # type: ignore[arg-type]
    size = reference(q, k, v.abs(), **others)  # type: ignore[arg-type]
    assert got.shape == want.shape and got.dtype == q.dtype
    # Scores are sums of d terms in float32; weights and the result are rounded once each.
    bound = ROUNDOFF[q.dtype] * (want.abs() + 2 * size) + 1e-5 * size.max()
    assert bool(((got.double() - want).abs() <= bound).all()), float(
        ((got.double() - want).abs() / bound).max()
    )


def qkv(
    batch: int = 2, heads: int = 3, queries: int = 9, keys: int = 9, size: int = 32, dtype: torch.dtype = F16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        drawn(batch, heads, queries, size, dtype=dtype, seed=1),
        drawn(batch, heads, keys, size, dtype=dtype, seed=2),
        drawn(batch, heads, keys, size, dtype=dtype, seed=3),
    )


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(
    ("queries", "keys", "size"),
    [(1, 1, 1), (9, 9, 32), (32, 32, 32), (70, 70, 64), (3, 100, 24), (40, 128, 128)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_shapes(queries: int, keys: int, size: int, dtype: torch.dtype, causal: bool) -> None:
    q, k, v = qkv(queries=queries, keys=keys, size=size, dtype=dtype)
    assert_right(attention(q, k, v, causal=causal), q, k, v, causal=causal)


@pytest.mark.parametrize(
    "shape", [(2, 3, 9, 11), (2, 1, 1, 11), (1, 1, 9, 11), (2, 1, 9, 1), (11,), (1, 1), (9, 11)]
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, F16])
def test_masks_that_broadcast(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = qkv(keys=11)
    mask = drawn(*shape).to(torch.float32)
    mask = mask > -0.5 if dtype == torch.bool else mask.to(dtype)
    assert_right(attention(q, k, v, mask), q, k, v, mask=mask)
    assert_right(attention(q, k, v, mask, causal=True, scale=0.3), q, k, v, mask=mask, causal=True, scale=0.3)


def test_a_mask_expanded_from_one_element() -> None:
    q, k, v = qkv()
    mask = torch.ones(1, dtype=torch.bool, device=DEVICE).expand(2, 1, 9, 9)
    assert_right(attention(q, k, v, mask), q, k, v)


def test_a_row_that_may_see_nothing_is_zero() -> None:
    q, k, v = qkv()
    mask = torch.ones(9, 9, dtype=torch.bool, device=DEVICE)
    mask[4] = False
    got = attention(q, k, v, mask)
    assert bool((got[:, :, 4] == 0).all())
    assert_right(got, q, k, v, mask=mask)
    floats = torch.zeros(9, 9, device=DEVICE).masked_fill(~mask, -torch.inf)
    assert torch.equal(attention(q, k, v, floats), got)
    assert bool((attention(q, k[:, :, :4], v[:, :, :4], causal=True)[:, :, :5] == 0).all())


def test_heads_that_share_keys() -> None:
    q, k, v = drawn(2, 6, 5, 16), drawn(2, 2, 7, 16), drawn(2, 2, 7, 40)
    assert_right(attention(q, k, v), q, k, v)


def test_heads_that_lie_apart_as_a_model_leaves_them() -> None:
    whole = drawn(2, 9, 3 * 3 * 32)
    q, k, v = (t.view(2, 9, 3, 32).transpose(1, 2) for t in whole.split(96, dim=-1))
    got = attention(q, k, v)
    assert_right(got, q, k, v)
    assert got.transpose(1, 2).is_contiguous()
    apart = drawn(2, 3, 32, 9).transpose(2, 3)
    assert_right(attention(apart, k, v), apart, k, v)


def test_nothing_to_attend_to_and_nobody_who_asks() -> None:
    q, k, v = qkv()
    assert attention(q[:, :, :0], k, v).shape == (2, 3, 0, 32)
    assert bool((attention(q, k[:, :, :0], v[:, :, :0]) == 0).all())
    assert attention(q[:0], k[:0], v[:0]).shape == (0, 3, 9, 32)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = qkv(dtype=BF16)
    assert_right(attention(q * 100, k * 100, v), q * 100, k * 100, v)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = qkv()
    for wrong, message in (
        ((q[0], k[0], v[0]), "length, size"),
        ((q, k[:, :2], v[:, :2]), "do not fit"),
        ((q.float(), k.float(), v.float()), "neither float16 nor bfloat16"),
        ((*qkv(keys=MOST_KEYS + 1),), "keys"),
        ((q, k, v, torch.ones(9, 8, dtype=torch.bool, device=DEVICE)), "does not broadcast"),
        ((q, k, v, torch.ones(9, 9, dtype=torch.int32, device=DEVICE)), "mask is"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            attention(*wrong)
