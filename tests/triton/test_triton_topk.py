"""top_k in Triton against a stable sort: the same elements, the same places, every time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.triton import topk, tuning
from steelworks.kernels.triton.topk import top_k

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
KINDS = ("random", "ties", "ascending", "descending", "equal")


@pytest.fixture(params=[4096, 64], ids=["one level", "several levels"])
def levels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows longer than this many elements are chosen from through maxima of 32, and of 32 of those."""
    monkeypatch.setattr(tuning, "TOPK_TOP", request.param)
    topk._PLANS.clear()
    yield
    topk._PLANS.clear()


def draw(kind: str, *shape: int, dtype: torch.dtype = F32, device: str = "cpu") -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=random)
    if kind == "ties":
        x = torch.randint(-1, 2, shape, generator=random).float()
    elif kind == "equal":
        x = torch.full(shape, 2.5)
    elif kind in ("ascending", "descending"):
        x = x.sort(dim=-1, descending=kind == "descending")[0]
    return x.to(dtype).to(device)


def check(x: torch.Tensor, k: int, case: str, dim: int = -1, *, largest: bool = True) -> None:
    want = reference.topk(x.cpu(), k, dim, largest=largest)
    values, indices = top_k(x, k, dim, largest)
    assert values.is_contiguous() and indices.is_contiguous()
    assert values.dtype == x.dtype and indices.dtype == torch.int64
    assert torch.equal(indices.cpu(), want), f"{case}: other places"
    expected = x.cpu().gather(dim, want) if x.dim() else x.cpu()
    got = values.cpu()
    assert torch.equal(got.isnan(), expected.isnan()), f"{case}: NaN elsewhere"
    assert torch.equal(got.nan_to_num(), expected.nan_to_num()), f"{case}: other values"
    assert torch.equal(got.signbit() & ~got.isnan(), expected.signbit() & ~expected.isnan()), f"{case}: signs"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [True, False])
def test_the_chosen_are_the_first_of_a_stable_sort(
    kind: str, largest: bool, levels: None, device: str
) -> None:
    for length, k in ((33, 7), (700, 20)):
        check(draw(kind, 1, length, device=device), k, f"{kind} {k} of {length}", largest=largest)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("largest", [True, False])
def test_half_precision_is_ordered_by_value(
    dtype: torch.dtype, largest: bool, levels: None, device: str
) -> None:
    for kind in ("random", "ties"):
        check(draw(kind, 1, 500, dtype=dtype, device=device), 40, f"{kind} {dtype}", largest=largest)


def test_every_k_of_a_row_is_right(device: str) -> None:
    x = draw("ties", 2, 37, device=device)
    for k in (1, 2, 19, 36, 37):
        check(x, k, f"{k} of 37")


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_nan_is_above_all_and_the_zeros_are_equal(
    dtype: torch.dtype, largest: bool, levels: None, device: str
) -> None:
    x = draw("random", 4, 300, dtype=dtype, device=device)
    x[0, 7:40] = math.nan
    x[1, 3], x[1, 77], x[1, 5] = math.inf, -math.inf, -math.nan
    x[2] = 0.0
    x[2, ::2] = -0.0
    x[3] = math.nan
    x[3, 250] = -math.inf
    for k in (2, 40) if dtype == F32 else (40,):
        check(x, k, f"{k} of special values {dtype}", largest=largest)


def test_negative_nan_is_above_all_as_well(levels: None, device: str) -> None:
    bits = torch.full((1, 200), 0x3F800000, dtype=torch.int32)
    bits[0, 150] = -0x400000  # 0xFFC00000, the NaN that x86 makes of 0 / 0
    check(bits.view(F32).to(device), 3, "a NaN with a sign")


def test_the_most_that_are_chosen_is_right(device: str) -> None:
    check(draw("random", 1, 600, device=device), tuning.TOPK_MOST, "the largest k")


def test_without_sorting_the_chosen_come_in_the_order_of_their_indices(levels: None, device: str) -> None:
    x = draw("random", 3, 400, device=device)
    values, indices = top_k(x, 30, sorted=False)
    want = reference.topk(x.cpu(), 30).sort(dim=-1)[0]
    assert torch.equal(indices.cpu(), want)
    assert torch.equal(values.cpu(), x.cpu().gather(-1, want))


@pytest.mark.parametrize("dim", [0, 1, -3])
def test_any_dimension_is_right(dim: int, device: str) -> None:
    check(draw("random", 3, 9, 2, device=device), 2, f"along {dim}", dim)


def test_views_give_what_dense_tensors_give(levels: None, device: str) -> None:
    base = draw("random", 2, 300, 2, device=device).transpose(1, 2)
    for name, view in {
        "transposed": base,
        "every second": base[:, ::2],
        "part of a row": base.contiguous()[:, :, 5:205],
        "broadcast": base[:1].expand(3, 2, 300),
    }.items():
        check(view, 20, name)


def test_a_tensor_without_dimensions_has_one_element(device: str) -> None:
    values, indices = top_k(torch.tensor(3.0, device=device), 1)
    assert (values.item(), indices.item()) == (3.0, 0)
    assert values.shape == indices.shape == ()


def test_none_of_a_row_and_of_no_rows(device: str) -> None:
    assert top_k(torch.ones(3, 4, device=device), 0)[1].shape == (3, 0)
    assert top_k(torch.ones(0, 4, device=device), 2)[0].shape == (0, 2)


def test_the_same_call_gives_the_same_result_every_time(levels: None, device: str) -> None:
    x = draw("ties", 2, 300, device=device)
    first = top_k(x, 20)
    for _ in range(2):
        again = top_k(x, 20)
        assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 4),
    length=st.integers(1, 400),
    data=st.data(),
    kind=st.sampled_from(KINDS),
    largest=st.booleans(),
    dtype=st.sampled_from([F32, F16, BF16]),
)
def test_top_k_of_any_shape(
    rows: int, length: int, data: st.DataObject, kind: str, largest: bool, dtype: torch.dtype, levels: None,
    device: str,
) -> None:  # fmt: skip
    k = data.draw(st.integers(1, min(length, 64)))
    topk._PLANS.clear()
    check(draw(kind, rows, length, dtype=dtype, device=device), k, f"{k} of {kind} {length}", largest=largest)


def test_what_is_not_supported_is_refused_with_what_is(device: str) -> None:
    x = draw("random", 2, 300, device=device)
    for call, words in (
        (lambda: top_k(x, 301), "0 to 300 are allowed"),
        (lambda: top_k(x, -1), "0 to 300 are allowed"),
        (lambda: top_k(x, 257), "up to 256"),
        (lambda: top_k(x.double(), 2), "float32, float16 or bfloat16"),
        (lambda: top_k(x.int(), 2), "float32, float16 or bfloat16"),
        (lambda: top_k(x, 2, 2), "-2 to 1"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            call()
