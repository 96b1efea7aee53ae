"""attention: every path against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.attention import attention

from ._family_cases import (
    FLOATS,
    LAYOUTS,
    assert_compiles_and_exports,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
LENGTHS = st.sampled_from((1, 2, 3, 8, 17))


def _check(
    got: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    case: object,
    **options: object,
) -> None:
    want = reference.attention(q, k, v, mask, **options)  # type: ignore[arg-type]
    weights = reference.attention_weights(
        q,
        k,
        mask,
        causal=bool(options.get("causal")),
        scale=options.get("scale"),  # type: ignore[arg-type]
    )
    size = weights @ v.double().abs().repeat_interleave(q.shape[1] // max(k.shape[1], 1), dim=1)
    assert got.dtype == q.dtype and got.is_contiguous(), case
    # A score's rounding error is absolute: it multiplies its weight.
    largest = q.double().abs().amax((), keepdim=False) if q.numel() == 0 else q.double().abs().max()
    spread = 1 + float(largest) * float(k.double().abs().max() if k.numel() else 0) * q.shape[-1]
    assert_within(got, want, terms=int(64 * spread), magnitude=size + 1e-6, roundings=16, case=case)


def _mask(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
    if kind == "none":
        return None
    seen = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    if kind == "bool":
        return seen
    added = draw(*shape, dtype=F32 if kind == "float32" else dtype, seed=9)
    return added.masked_fill(~seen, -math.inf)


@settings(deadline=None, max_examples=80)
@given(
    batch=st.sampled_from((1, 2)),
    key_heads=st.sampled_from((1, 2)),
    group=st.sampled_from((1, 3)),
    queries=LENGTHS,
    keys=LENGTHS,
    d=st.sampled_from((1, 8, 20)),
    dv=st.sampled_from((1, 8)),
    dtype=st.sampled_from((*FLOATS, F64)),
    mask=st.sampled_from(("none", "bool", "added", "float32")),
    mask_shape=st.sampled_from(("full", "keys", "rows", "batch")),
    causal=st.booleans(),
    scale=st.sampled_from((None, 0.3, 1.0)),
    layout=st.sampled_from(LAYOUTS),
)
def test_every_form_matches_float64(
    batch: int,
    key_heads: int,
    group: int,
    queries: int,
    keys: int,
    d: int,
    dv: int,
    dtype: torch.dtype,
    mask: str,
    mask_shape: str,
    causal: bool,
    scale: float | None,
    layout: str,
) -> None:
    heads = key_heads * group
    q = laid_out(draw(batch, heads, queries, d, dtype=dtype, seed=1), layout)
    k = laid_out(draw(batch, key_heads, keys, d, dtype=dtype, seed=2), layout)
    v = laid_out(draw(batch, key_heads, keys, dv, dtype=dtype, seed=3), layout)
    shape = {
        "full": (batch, heads, queries, keys),
        "keys": (keys,),
        "rows": (queries, 1),
        "batch": (batch, 1, 1, keys),
    }[mask_shape]
    given_mask = _mask(mask, shape, dtype)
    got = attention(q, k, v, given_mask, causal, scale)
    _check(got, q, k, v, given_mask, (q.shape, k.shape, v.shape, dtype, mask, mask_shape, causal, scale, layout),
           causal=causal, scale=scale)  # fmt: skip


@pytest.mark.parametrize(("queries", "keys"), [(1, 5), (5, 5), (3, 7)])
def test_the_last_query_of_a_causal_call_sees_all_keys(queries: int, keys: int) -> None:
    q, k, v = draw(1, 2, queries, 8), draw(1, 2, keys, 8, seed=1), draw(1, 2, keys, 8, seed=2)
    last = attention(q, k, v, causal=True)[:, :, -1:]
    torch.testing.assert_close(last, attention(q[:, :, -1:], k, v))
    seen = keys - queries + 1
    first = attention(q, k, v, causal=True)[:, :, :1]
    torch.testing.assert_close(first, attention(q[:, :, :1], k[:, :, :seen], v[:, :, :seen]))


def test_a_row_that_may_see_no_key_is_zero_and_so_is_its_gradient() -> None:
    q, k, v = draw(1, 1, 3, 4).requires_grad_(), draw(1, 1, 5, 4, seed=1), draw(1, 1, 5, 4, seed=2)
    mask = torch.tensor([[True], [False], [True]])
    out = attention(q, k, v, mask)
    assert out[0, 0, 1].tolist() == [0.0] * 4
    out.sum().backward()
    assert q.grad is not None and bool(q.grad.isfinite().all()) and q.grad[0, 0, 1].tolist() == [0.0] * 4
    assert not bool(attention(q.detach(), k[:, :, :0], v[:, :, :0]).any())


def test_scores_that_are_large_do_not_overflow() -> None:
    q, k, v = 1e4 * draw(1, 1, 3, 4), 1e4 * draw(1, 1, 5, 4, seed=1), draw(1, 1, 5, 4, seed=2)
    _check(attention(q, k, v, scale=1.0), q, k, v, None, "large", scale=1.0)


def test_the_metal_kernels_give_the_same() -> None:
    for queries, mask_kind, causal in ((1, "none", False), (33, "bool", False), (33, "none", True)):
        q, k, v = draw(2, 4, queries, 16), draw(2, 2, 40, 16, seed=1), draw(2, 2, 40, 16, seed=2)
        mask = _mask(mask_kind, (2, 1, 1, 40), F32)
        with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
            got = attention(q, k, v, mask, causal)
        assert recorded.of("attention", "steel") == 1
        _check(got, q, k, v, mask, f"metal, {queries} queries", causal=causal)


def test_what_no_kernel_takes_goes_to_the_vendor() -> None:
    wide = draw(1, 1, 2, 300)
    exact = draw(1, 1, 2, 8, dtype=F64)
    with paths.simulate_metal(), paths.use("steel"):
        _check(attention(wide, wide, wide), wide, wide, wide, None, "a head size of 300")
        _check(attention(exact, exact, exact), exact, exact, exact, None, "float64")


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_finite_differences(causal: bool) -> None:
    tensors = [
        draw(1, 2, 3, 4, dtype=F64),
        draw(1, 1, 5, 4, dtype=F64, seed=1),
        draw(1, 1, 5, 3, dtype=F64, seed=2),
    ]
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention(q, k, v, causal=causal), [t.requires_grad_() for t in tensors]
    )


def test_a_call_that_needs_gradients_takes_the_vendor_path_even_if_steel_is_forced() -> None:
    q = draw(1, 1, 2, 8).requires_grad_()
    with paths.simulate_metal(), paths.use("steel"):
        attention(q, q, q).sum().backward()
    assert q.grad is not None


def test_torchs_own_checks_of_the_operator_pass() -> None:
    q, k, v = draw(1, 4, 3, 8), draw(1, 2, 5, 8, seed=1), draw(1, 2, 5, 6, seed=2)
    for mask in (None, torch.ones(3, 5, dtype=torch.bool)):
        torch.library.opcheck(torch.ops.steelworks.attention.default, (q, k, v, mask, True, None))


def test_compile_and_export_give_the_same() -> None:
    q, k, v = draw(1, 4, 3, 8), draw(1, 2, 5, 8, seed=1), draw(1, 2, 5, 6, seed=2)
    assert_compiles_and_exports(lambda a, b, c: attention(a, b, c, causal=True), q, k, v)


def test_many_threads_at_once_get_what_one_gets() -> None:
    cases = [
        tuple(draw(1, 2, n, 8, dtype=dtype, seed=s) for s in range(3))
        for n in (1, 5, 9)
        for dtype in (F32, BF16)
    ]
    assert_threads_agree(attention, cases)


_Q = torch.ones(1, 4, 3, 8)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"query": torch.ones(4, 3, 8)},
            r"query has shape \(4, 3, 8\).*\(batch, heads, length, size\).*add or merge",
        ),
        ({"key": torch.ones(1, 3, 5, 8), "value": torch.ones(1, 3, 5, 8)}, "4 heads and key 3.*multiple"),
        ({"key": torch.ones(1, 2, 5, 9)}, r"\(1, 2, 5, 9\)"),
        ({"value": torch.ones(1, 2, 6, 8)}, r"\(1, 2, 6, 8\)"),
        ({"value": torch.ones(1, 2, 5, 8, dtype=BF16)}, "value is torch.bfloat16.*convert"),
        ({"mask": torch.ones(3, 6)}, r"mask has shape \(3, 6\).*broadcast.*\(1, 4, 3, 5\)"),
        ({"mask": torch.ones(3, 5, dtype=torch.int32)}, "mask is torch.int32.*bool"),
        ({"query": torch.ones(1, 4, 3, 8, device="meta")}, "'meta'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(changes: dict[str, torch.Tensor], said: str) -> None:
    operands = {"query": _Q, "key": torch.ones(1, 2, 5, 8), "value": torch.ones(1, 2, 5, 8), "mask": None}
    with pytest.raises(InvalidInputError, match=said):
        attention(**{**operands, **changes})  # type: ignore[arg-type]
