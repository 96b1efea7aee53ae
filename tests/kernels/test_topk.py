"""The k largest and smallest against a stable sort, in checking mode under four schedules."""

from __future__ import annotations

import pytest
import torch
from _ordering import DTYPES, SPECIALS, Pair, check, draw, views

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.topk import topk

#: Threads take 8 elements each: limits of simdgroups and of the group, one less and one more, and primes.
LENGTHS = (1, 2, 3, 7, 8, 9, 31, 33, 101, 255, 256, 257, 509, 1024)
CHUNK, STAGED = 8192, 1024


def _check(x: torch.Tensor, k: int, case: object, dim: int = -1, *, largest: bool = True) -> Pair:
    want = reference.topk(x, k, dim, largest=largest)
    return check("topk", lambda: topk(x, k, dim, largest=largest), x, want, dim, case)


def _some(length: int) -> list[int]:
    """Numbers of winners: few, half, all but one, all."""
    return sorted({k for k in (1, 2, length // 2, length - 1, length) if 1 <= k <= length})


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("ties", [True, False])
def test_the_winners_of_rows_of_any_length_are_those_of_a_stable_sort(largest: bool, ties: bool) -> None:
    for length in LENGTHS:
        for k in _some(length):
            x = draw(3, length, ties=ties)
            _check(x, k, f"{k} of 3x{length}, ties {ties}, largest {largest}", largest=largest)


def test_every_k_of_a_row_is_right() -> None:
    x = draw(2, 37, ties=True)
    for k in range(1, 38):
        _check(x, k, f"{k} of 37")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_ordered_by_value(dtype: torch.dtype) -> None:
    for length in (1, 5, 33, 300):
        for k in _some(length)[:3]:
            for largest in (True, False):
                for ties in (True, False):
                    case = f"{k} of 2x{length} {dtype}, largest {largest}, ties {ties}"
                    _check(draw(2, length, dtype=dtype, ties=ties), k, case, largest=largest)


def test_all_values_of_sixteen_bits_are_ordered() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, 37, dtype=torch.int32).to(torch.int16).view(dtype)
        _check(x, 700, f"bit patterns of {dtype}")


def test_integers_include_the_limits() -> None:
    for dtype in (torch.int32, torch.int64):
        info = torch.iinfo(dtype)
        x = torch.tensor([0, info.max, -1, info.min, 1, info.max - 1, info.min + 1], dtype=dtype)
        for k in range(1, 8):
            for largest in (True, False):
                _check(x, k, f"{k} of the limits of {dtype}, largest {largest}", largest=largest)


@pytest.mark.parametrize("name", SPECIALS)
def test_special_values_are_ordered_as_in_torch(name: str) -> None:
    for repeats in (1, 40):
        x = torch.tensor(SPECIALS[name] * repeats)
        for k in (1, 2, x.numel() // 2 + 1, x.numel()):
            for largest in (True, False):
                case = f"{k} of {name}, {x.numel()} elements, largest {largest}"
                values, _ = _check(x, k, case, largest=largest)
                assert torch.equal(values.nan_to_num(), torch.topk(x, k, largest=largest)[0].nan_to_num()), (
                    case
                )


def test_of_equal_elements_the_first_are_taken() -> None:
    for length in (7, 300, 9000):
        x = torch.zeros(length)
        x[length // 2] = 1.0
        for k in (2, 4):
            _, indices = _check(x, k, f"{k} of {length} equal ones")
            assert indices.tolist() == [length // 2, 0, 1, 2][:k]


@pytest.mark.parametrize("k", [10, 65])
def test_long_rows_are_shared_by_several_threadgroups(k: int) -> None:
    for length in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 3, 20011):
        for rows in (1, 3) if length == CHUNK + 1 else (1,):
            x = draw(rows, length, ties=k == 10)
            with metalsim.options() as session:
                topk(x, k)
            assert len(session.launches) == (1 if length <= CHUNK else 2)
            _check(x, k, f"{k} of {rows}x{length}")


def test_candidates_that_are_many_are_cut_down_again() -> None:
    x = draw(70001)
    with metalsim.options() as session:
        topk(x, 1000)
    assert len(session.launches) == 3
    _check(x, 1000, "1000 of 70001")


def test_more_winners_than_threadgroup_memory_holds_are_sorted_in_passes() -> None:
    for length, k in (
        (2000, STAGED), (2000, STAGED + 1), (CHUNK, 3000), (9001, 1500), (9001, 2048), (9001, 2049), (9001, 9001),
    ):  # fmt: skip
        _check(draw(length, ties=length == 9001), k, f"{k} of {length}", largest=length % 2 == 1)


def test_ties_at_high_places_are_decided_by_the_place() -> None:
    x = torch.ones(70000)
    x[:66000] = -1.0
    for k in (1, 300, 5000):
        _check(x, k, f"{k} of equal elements behind place 66000")


def test_every_dimension_of_a_tensor_can_be_chosen() -> None:
    x = draw(3, 5, 7, 6, ties=True)
    for dim in range(-4, 4):
        for k in _some(x.shape[dim]):
            _check(x, k, f"{k} of {tuple(x.shape)} along {dim}", dim)
    for shape, dim in (((300, 5), 0), ((1, CHUNK + 9, 2), 1), ((4, 9, 1), 1), ((1, 40, 1), 1)):
        _check(draw(*shape), 3, f"3 of {shape} along {dim}", dim)


def test_views_are_read_in_place_and_nothing_beside_them() -> None:
    for length in (5, 33, 300):
        for dtype in (torch.float32, torch.int32):
            for name, view in views(draw(6, length, dtype=dtype)).items():
                for dim in (0, 1):
                    _check(view, 3, f"3 of {name}, {length} {dtype}, along {dim}", dim)


def test_nothing_and_scalars_have_a_result() -> None:
    for shape, k, dim in (((0, 5), 3, 1), ((5, 0), 0, 1), ((4, 3), 0, 0), ((3,), 0, 0), ((2, 0, 3), 2, 2)):
        values, indices = topk(torch.ones(shape), k, dim)
        assert values.shape == indices.shape == torch.topk(torch.ones(shape), k, dim)[0].shape
    values, indices = _check(torch.tensor(2.5), 1, "a scalar", 0)
    assert values.shape == torch.Size([]) and values.item() == 2.5 and indices.item() == 0


def test_a_byte_costs_two_barriers_and_an_atomic_for_each_open_element_and_bin() -> None:
    for length, k in ((197, 20), (250, 64)):
        with metalsim.options() as session:
            topk(torch.ones(1, length), k)
        digits = 4 + 1  # all keys are equal, so every byte of the key and of the place is looked at
        rounds = (k - 1).bit_length() - 3  # of merging the winners, from runs of 8
        assert session.counters.atomics == 1 + 256 + digits * (length + 256) + k
        assert session.counters.barriers == 1 + 2 * digits + 1 + 2 * rounds + 1


def test_a_row_is_read_once_and_its_winners_once_more() -> None:
    for rows, length, k in ((3, 500, 10), (1, CHUNK, 1000), (2, 33, 33)):
        x = draw(rows, length)
        with metalsim.options(check=True) as session:
            topk(x, k)
        assert session.counters.device_read == 4 * rows * (length + k), (length, k)
        assert session.counters.device_written == rows * k * (4 + 8), (length, k)
    x = draw(3 * CHUNK)
    with metalsim.options(check=True) as session:
        topk(x, 20)
    candidates = 3 * 20 * 8
    assert session.counters.device_read == 4 * (x.numel() + 20) + candidates
    assert session.counters.device_written == 20 * 12 + candidates


@pytest.mark.parametrize(
    ("x", "k", "dim", "said"),
    [
        (torch.ones(3), 4, 0, "k is 4; dim 0 has 3"),
        (torch.ones(3), -1, 0, "0 to 3"),
        (torch.ones(3, 3), 1, 2, "-2 to 1"),
        (torch.ones(3, dtype=torch.float64), 1, 0, "float64; allowed are torch.float32"),
        (torch.ones(3, dtype=torch.bool), 1, 0, "bool"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(
    x: torch.Tensor, k: int, dim: int, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        topk(x, k, dim)
