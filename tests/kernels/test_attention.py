"""Attention: tiled and vector forms against float64, in checking mode under every schedule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _cases import ROUNDOFF, assert_close, padded_rows, run_checked, run_poisoned

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import attention as family
from steelworks.kernels.metal import tuning
from steelworks.kernels.metal.attention import attention

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
UNIT = ROUNDOFF[F32]


@dataclass(frozen=True)
class Case:
    """Shapes and options of one call."""

    q_len: int
    k_len: int
    d: int = 64
    dtype: torch.dtype = F32
    mask: str = "none"
    causal: bool = False
    batch: int = 1
    key_heads: int = 1
    group: int = 1
    dv: int | None = None
    scale: float | None = None
    views: bool = False


def _tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    made = torch.Generator().manual_seed(case.q_len * 1009 + case.k_len * 31 + case.d)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made).to(case.dtype)

    heads = case.key_heads * case.group
    q = draw(case.batch, heads, case.q_len, case.d)
    k = draw(case.batch, case.key_heads, case.k_len, case.d)
    v = draw(case.batch, case.key_heads, case.k_len, case.d if case.dv is None else case.dv)
    if case.views:  # (batch, length, heads, size) as models have it, rows apart, stale NaN in between
        q, k, v = (padded_rows(t.transpose(1, 2).contiguous()).transpose(1, 2) for t in (q, k, v))
    return q, k, v, _mask(case, heads, made)


def _mask(case: Case, heads: int, made: torch.Generator) -> torch.Tensor | None:
    if case.mask == "none":
        return None
    shape = (case.batch, heads, case.q_len, case.k_len)
    if "row" in case.mask:
        shape = (1, 1, 1, case.k_len)
    keep = torch.rand(shape, generator=made) < 0.6
    if keep.shape[-2] > 2:
        keep[..., 1, :] = False  # a row that sees nothing
    if case.mask.startswith("bool"):
        return keep
    dtype = F32 if "float32" in case.mask else case.dtype
    return torch.randn(shape, generator=made).masked_fill(~keep, -math.inf).to(dtype)


def _check(case: Case) -> None:
    q, k, v, mask = _tensors(case)
    got = run_checked(
        "attention", lambda: attention(q, k, v, mask, causal=case.causal, scale=case.scale), case
    )
    _compare(got, q, k, v, mask, case)


def _compare(
    got: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    case: Case,
) -> None:
    weights = reference.attention_weights(q, k, mask, causal=case.causal, scale=case.scale)
    values = v.double().repeat_interleave(case.group, dim=1)
    assert_close(
        "attention", got, weights @ values, case,
        terms=case.k_len, magnitude=weights @ values.abs(), extra=_weight_error(q, k, mask, case),
    )  # fmt: skip


def _weight_error(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, case: Case) -> float:
    """The relative error of weights: that of a score (a sum of d products), twice: their sum has it too."""
    if q.numel() == 0 or k.numel() == 0:
        return 0.0
    scale = 1 / math.sqrt(case.d) if case.scale is None else abs(case.scale)
    keys = k.double().abs().repeat_interleave(case.group, dim=1)
    size = float((q.double().abs() @ keys.transpose(-1, -2)).max()) * scale
    if mask is not None and mask.dtype != torch.bool:
        size += float(mask.double().masked_fill(mask == -math.inf, 0).abs().max())
    return 2 * UNIT * ((case.d + 10) * size + 10)


#: Lengths around the tiles of 32 queries and 16 or 32 keys.
LENGTHS = [(9, 1), (31, 33), (32, 32), (33, 31), (17, 65), (64, 16), (13, 48), (37, 17)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "d", "mask"),
    [
        (F32, 64, "none"), (F32, 64, "bool"), (F32, 64, "add"), (F32, 128, "none"), (F32, 256, "none"),
        (F16, 64, "none"), (F16, 128, "bool"), (F16, 256, "add"),
        (BF16, 80, "none"), (BF16, 96, "bool"), (BF16, 64, "add float32"),
    ],
)  # fmt: skip
def test_tiled_attention_is_that_of_float64(dtype: torch.dtype, d: int, mask: str, causal: bool) -> None:
    for q_len, k_len in LENGTHS if d <= 128 else LENGTHS[:5]:
        _check(Case(q_len, k_len, d, dtype, mask, causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "d", "mask"),
    [
        (F32, 64, "none"),
        (F32, 64, "bool"),
        (F32, 128, "none"),
        (F16, 64, "add"),
        (F16, 256, "none"),
        (BF16, 96, "bool"),
    ],
)
def test_attention_of_few_queries_is_that_of_float64(
    dtype: torch.dtype, d: int, mask: str, causal: bool
) -> None:
    for q_len in (2, 3, 8):
        for k_len in (1, 7, 8, 9, 16, 41):
            _check(Case(q_len, k_len, d, dtype, mask, causal))


@pytest.mark.parametrize(("dtype", "d"), [(F32, 64), (F16, 128), (BF16, 256)])
def test_attention_of_one_query_is_that_of_float64(dtype: torch.dtype, d: int) -> None:
    for k_len in (1, 2, 7, 8, 9, 31, 32, 33, 67, 128):
        _check(Case(1, k_len, d, dtype))


def test_head_sizes_that_are_no_tile_are_padded() -> None:
    for d in (1, 3, 8, 33, 63):
        for q_len, k_len in ((5, 7), (1, 9), (9, 10), (33, 34)):
            _check(Case(q_len, k_len, d))
    for d in (65, 72):
        _check(Case(10, 11, d, BF16))


def test_values_may_have_another_size_than_keys() -> None:
    for d, dv in ((64, 40), (40, 64), (16, 1)):
        for q_len in (3, 12):
            _check(Case(q_len, 19, d, dv=dv))


def test_query_heads_share_key_heads() -> None:
    for group in (2, 3, 8):
        for q_len in (1, 2, 5, 11):
            _check(Case(q_len, 13, key_heads=2, group=group, batch=2, causal=True))


def test_masks_broadcast() -> None:
    for mask in ("bool row", "add row"):
        for q_len in (3, 10):
            _check(Case(q_len, 18, mask=mask, batch=2, key_heads=2, group=2))


def test_views_with_stale_data_behind_are_read_in_place() -> None:
    for q_len, k_len in ((1, 9), (4, 33), (33, 32), (12, 5)):
        for d in (64, 50):
            _check(Case(q_len, k_len, d, views=True, batch=2, key_heads=2))
            _check(Case(q_len, k_len, d, mask="bool", views=True, batch=2, key_heads=2, causal=True))


def test_more_queries_than_keys_leave_the_first_rows_zero_when_causal() -> None:
    for q_len, k_len in ((8, 3), (40, 3), (12, 0), (2, 0)):
        case = Case(q_len, k_len, causal=True)
        q, k, v, _ = _tensors(case)
        got = run_checked("attention", lambda: attention(q, k, v, causal=True), case)  # noqa: B023
        assert torch.equal(got[:, :, : q_len - k_len], torch.zeros(1, 1, q_len - k_len, 64)), case
        _compare(got, q, k, v, None, case)


def test_rows_that_a_mask_blinds_are_zero() -> None:
    for q_len in (2, 34):
        for fill in (False, -math.inf):
            case = Case(q_len, 35)
            q, k, v, _ = _tensors(case)
            mask = torch.full((q_len, 35), fill, dtype=torch.bool if fill is False else F32)
            got = run_checked("attention", lambda: attention(q, k, v, mask), (case, fill))  # noqa: B023
            assert torch.equal(got, torch.zeros_like(got)), (case, fill)


def test_a_mask_of_the_lowest_finite_number_is_an_average_not_a_blind_row() -> None:
    for q_len in (2, 9):
        case = Case(q_len, 20)
        q, k, v, _ = _tensors(case)
        mask = torch.full((q_len, 20), torch.finfo(F32).min)
        got = run_checked("attention", lambda: attention(q * 0, k, v, mask), case)  # noqa: B023
        assert_close(
            "attention", got, v.double().mean(-2, keepdim=True).expand_as(got), case, terms=20, magnitude=4.0
        )


def test_large_scores_do_not_overflow() -> None:
    for q_len in (1, 4, 12):
        for factor in (1e3, 1e18):
            case = Case(q_len, 21, scale=factor)
            q, k, v, _ = _tensors(case)
            got = run_checked("attention", lambda: attention(q, k, v, scale=factor), case)  # noqa: B023
            # The largest score wins alone: the others are at least hundreds below, whatever the rounding.
            want = v.double().gather(
                2, (q.double() @ k.double().mT).argmax(-1)[..., None].expand(-1, -1, -1, 64)
            )
            top = (q.double() @ k.double().mT).topk(2, dim=-1).values
            clear = ((top[..., 0] - top[..., 1]) * factor > 100)[..., None].expand_as(want)
            assert_close("attention", got[clear], want[clear], case, terms=1, magnitude=10.0)


def test_nan_reaches_the_rows_that_see_it_and_no_other() -> None:
    for q_len in (3, 12):
        q, k, v, _ = _tensors(Case(q_len, 20))
        q[0, 0, 1, 5] = math.nan
        got = run_checked("attention", lambda: attention(q, k, v), q_len)  # noqa: B023
        assert got[0, 0, 1].isnan().all()
        assert not got[0, 0, [i for i in range(q_len) if i != 1]].isnan().any()


def test_nan_in_a_key_that_is_excluded_does_no_harm() -> None:
    for q_len in (3, 12):
        q, k, v, _ = _tensors(Case(q_len, 20))
        k[0, 0, 7] = math.nan
        mask = torch.ones(q_len, 20, dtype=torch.bool)
        mask[:, 7] = False
        got = run_checked("attention", lambda: attention(q, k, v, mask), q_len)  # noqa: B023
        k[0, 0, 7] = 0
        _compare(got, q, k, v, mask, Case(q_len, 20))


def test_denormals_and_signed_zeros_pass() -> None:
    for q_len in (3, 12):
        q, k, v, _ = _tensors(Case(q_len, 20))
        v[0, 0, :, :8], v[0, 0, :, 8:16] = 1e-40, -0.0
        got = run_checked("attention", lambda: attention(q, k, v), q_len)  # noqa: B023
        _compare(got, q, k, v, None, Case(q_len, 20))


def test_empty_dimensions_give_empty_results() -> None:
    for q_len, k_len, batch, dv in ((0, 5, 1, 64), (3, 5, 0, 64), (3, 5, 1, 0)):
        case = Case(q_len, k_len, batch=batch, dv=dv)
        q, k, v, _ = _tensors(case)
        got = run_checked("attention", lambda: attention(q, k, v), case)  # noqa: B023
        assert got.shape == (batch, 1, q_len, dv)


def test_several_threadgroups_share_long_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for splits in (2, 3):
        monkeypatch.setattr(tuning, "ATTENTION_SPLITS", (tuning.Row(splits, "for the test"),))
        for q_len, k_len, causal, mask in (
            (1, 50, False, "none"), (3, 50, True, "none"), (2, 2, False, "none"), (5, 1, True, "none"),
            (3, 33, False, "bool"), (8, 4, True, "none"),
        ):  # fmt: skip
            _check(Case(q_len, k_len, mask=mask, causal=causal, key_heads=2, group=2))


def test_the_table_splits_long_keys_of_few_heads_only() -> None:
    assert family._choose_vector(1, 4096, 1, 64, 8)[1] == 4
    assert family._choose_vector(1, 4096, 1, 64, 64)[1] == 1
    assert family._choose_vector(1, 512, 1, 64, 1)[1] == 1
    assert family._choose_vector(9, 4096, 1, 64, 1) == (None, 1)


def test_every_tile_of_the_table_fits_into_threadgroup_memory() -> None:
    for row in tuning.ATTENTION_TILES:
        tile = row.choice
        for size in (2, 4):
            if size == 4 and row.when.get("element_bytes", (None, 4))[1] == 2:
                continue
            length = tile.head_size * size + 16
            keys = length * tile.keys * (1 if tile.share else 2)
            assert keys + (length * tile.queries if tile.share else 0) + 16 <= 32768, tile


def test_one_query_reads_keys_and_values_once_for_all_heads_that_share_them() -> None:
    q, k, v, _ = _tensors(Case(1, 40, key_heads=2, group=4))
    with metalsim.options(check=True) as session:
        attention(q, k, v)
    counters = session.counters
    simdgroups = 8  # each reads the queries, which are few
    assert counters.device_read == 4 * (simdgroups * q.numel() + k.numel() + v.numel())
    assert counters.device_written == 4 * q.numel()


def test_tiled_attention_reads_keys_once_a_block_of_queries_and_no_scores() -> None:
    # 60, not 64: elements are read one by one. A packet that a thread holds may be compiled to be read twice.
    q, k, v, _ = _tensors(Case(64, 64, 60))
    with metalsim.options(check=True) as session:
        attention(q, k, v)
    counters = session.counters
    assert counters.device_read == 4 * (q.numel() + 2 * (k.numel() + v.numel()))
    assert counters.device_written == 4 * q.numel()
    assert counters.barriers == 2 * 2 * 2  # two blocks of queries, two of keys, two barriers
    assert counters.mmas == 2 * 64 * 64 * 64 / 8**3


def test_a_causal_block_of_queries_skips_keys_that_none_of_its_rows_sees() -> None:
    q, k, v, _ = _tensors(Case(33, 33))
    with metalsim.options(check=True) as session:
        attention(q, k, v, causal=True)
    blocks = 1 + 2  # of 32 keys, for the first 32 queries and for the last one
    assert session.counters.barriers == 2 * blocks
    assert session.counters.mmas == blocks * 2 * 32 * 32 * 64 / 8**3


def test_the_host_lays_parameters_out_as_the_kernels_do() -> None:
    header = Path(family.__file__).with_suffix("") / "params.h"
    assert re.findall(r"^  int (\w+);", header.read_text(), re.M) == list(family._Params._fields)


def test_unfit_arguments_are_refused_with_a_reason() -> None:
    q, k, v, _ = _tensors(Case(3, 5))
    for call, reason in (
        (lambda: attention(q[0], k, v), "(batch, heads, length, size) is needed"),
        (lambda: attention(q.double(), k.double(), v.double()), "float32, float16, bfloat16"),
        (lambda: attention(q, k.half(), v), "they must be the same"),
        (lambda: attention(q, k[..., :5], v), "needed are"),
        (lambda: attention(q, k, v[:, :, :2]), "needed are"),
        (lambda: attention(q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)), "multiple of the second"),
        (lambda: attention(*(torch.zeros(1, 1, 1, 257),) * 3), "1 to 256"),
        (lambda: attention(q, k, v, torch.ones(3, 4)), "does not broadcast"),
        (lambda: attention(q, k, v, torch.ones(3, 5, dtype=torch.int32)), "bool, float32"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(reason)):
            call()


def test_an_unchecked_run_gives_the_same_bits_as_a_checked_one() -> None:
    for q_len in (3, 33):
        q, k, v, _ = _tensors(Case(q_len, 40))
        checked = run_checked("attention", lambda: attention(q, k, v), q_len)  # noqa: B023
        assert torch.equal(run_poisoned(lambda: attention(q, k, v)), checked)  # noqa: B023
