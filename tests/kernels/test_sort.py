"""Stable sorting against torch's in float64, in checking mode under four schedules."""

from __future__ import annotations

import pytest
import torch
from _ordering import DTYPES, SPECIALS, Pair, check, draw, views

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.sort import sort

TILE = 2048
#: Threads take 8 elements each: limits of threads, simdgroups and runs, one less and one more, and primes.
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 101, 127, 129, 255, 256, 257, 511, 513, 1021)


def _check(x: torch.Tensor, case: object, dim: int = -1, *, descending: bool = False) -> Pair:
    case = f"{case}, along {dim}, descending {descending}"
    want = reference.sort(x, dim, descending=descending)
    return check("sort", lambda: sort(x, dim, descending=descending), x, want, dim, case)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("ties", [True, False])
def test_rows_of_any_length_are_sorted_stably(descending: bool, ties: bool) -> None:
    for length in LENGTHS:
        for rows in (1, 3):
            _check(draw(rows, length, ties=ties), f"{rows}x{length}, ties {ties}", descending=descending)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_ordered_by_value(dtype: torch.dtype) -> None:
    for length in (1, 2, 5, 33, 64, 100, 300):
        for descending in (False, True):
            for ties in (True, False):
                x = draw(2, length, dtype=dtype, ties=ties)
                _check(x, f"2x{length} {dtype}, ties {ties}", descending=descending)


@pytest.mark.parametrize("length", [TILE - 1, TILE, TILE + 1, 2 * TILE, 2 * TILE + 1, 3 * TILE + 5, 9001])
def test_long_rows_are_merged_from_tiles(length: int) -> None:
    x = draw(1, length, ties=length % 2 == 1)
    with metalsim.options() as session:
        sort(x)
    tiles = -(-length // TILE)
    assert len(session.launches) == 1 + (tiles - 1).bit_length()
    _check(x, f"1x{length}")
    if length < 3 * TILE:
        _check(x, f"1x{length}", descending=True)


def test_long_rows_of_integers_of_64_bits_are_merged() -> None:
    _check(draw(2, TILE + 77, dtype=torch.int64), f"2x{TILE + 77} int64")


def test_tiles_that_are_in_order_or_in_reverse_are_merged() -> None:
    for length in (TILE + 3, 2 * TILE + 100):
        rising = torch.arange(length).float()
        for name, x in {"rising": rising, "falling": -rising, "equal": torch.ones(length)}.items():
            _check(x, f"{length} {name}")


def test_all_values_of_sixteen_bits_are_ordered() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for step in (37, 41):
            x = torch.arange(-(2**15), 2**15, step, dtype=torch.int32).to(torch.int16).view(dtype)
            _check(x, f"every {step}th bit pattern of {dtype}")


def test_integers_include_the_limits() -> None:
    for dtype in (torch.int32, torch.int64):
        info = torch.iinfo(dtype)
        x = torch.tensor([0, info.max, -1, info.min, 1, info.max - 1, info.min + 1, info.max], dtype=dtype)
        for count in range(1, 9):
            for descending in (False, True):
                _check(x[:count], f"{count} limits of {dtype}", descending=descending)


@pytest.mark.parametrize("name", SPECIALS)
def test_special_values_are_ordered_as_in_torch(name: str) -> None:
    for repeats in (1, 2, 7, 40):
        x = torch.tensor(SPECIALS[name] * repeats)
        for view, dim in ((x, 0), (x[:, None].expand(-1, 2).contiguous(), 0)):
            for descending in (False, True):
                values, _ = _check(view, f"{name} {tuple(view.shape)}", dim, descending=descending)
                torchs = torch.sort(view, dim, descending=descending)[0]
                assert torch.equal(values.nan_to_num(), torchs.nan_to_num()), (name, repeats)


def test_every_order_of_few_elements_is_sorted() -> None:
    for count in (2, 3, 4):
        orders = torch.cartesian_prod(*[torch.arange(count)] * count).float()
        _check(orders, f"all rows of {count} elements of {count}")
        _check(orders.t().contiguous(), f"all columns of {count} elements of {count}", 0)


def test_every_dimension_of_a_tensor_can_be_chosen() -> None:
    x = draw(3, 5, 7, 6, ties=True)
    for dim in range(-4, 4):
        for descending in (False, True):
            _check(x, tuple(x.shape), dim, descending=descending)
    for shape, dim in (((300, 5), 0), ((1, TILE + 9, 2), 1), ((4, 9, 1), 1), ((1, 40, 1), 1), ((40, 3), 0)):
        for descending in (False, True):
            _check(draw(*shape, ties=True), shape, dim, descending=descending)


def test_views_are_read_in_place_and_nothing_beside_them() -> None:
    for length in (5, 33, 300):
        for dtype in (torch.float32, torch.int32):
            for name, view in views(draw(6, length, dtype=dtype)).items():
                for dim in (0, 1):
                    for descending in (False, True):
                        _check(view, f"{name}, {length} {dtype}", dim, descending=descending)


def test_nothing_and_scalars_have_a_result() -> None:
    for shape in ((0, 5), (5, 0), (0,), (2, 0, 3)):
        for dim in range(len(shape)):
            values, indices = sort(torch.ones(shape), dim)
            assert values.shape == indices.shape == torch.Size(shape)
    values, indices = _check(torch.tensor(2.5), "a scalar", 0)
    assert values.item() == 2.5 and indices.item() == 0


def test_an_input_is_left_as_it_is() -> None:
    x = draw(3, 100)
    before = x.clone()
    sort(x)
    assert torch.equal(x, before)


def test_device_bytes_of_a_tile_are_the_input_twice_and_the_outputs() -> None:
    for shape, dim in (((3, 500), 1), ((1, TILE), 1), ((40, 7), 0)):
        x = draw(*shape)
        with metalsim.options(check=True) as session:
            sort(x, dim)
        assert session.counters.device_read == 2 * 4 * x.numel(), (
            shape
        )  # for the keys, and for the values at the end
        assert session.counters.device_written == 12 * x.numel(), shape


def test_a_tile_costs_two_barriers_for_each_doubling_of_its_runs() -> None:
    for length, doublings in ((8, 0), (9, 1), (16, 1), (17, 2), (256, 5), (257, 6), (TILE, 8)):
        with metalsim.options() as session:
            sort(draw(1, length))
        assert session.counters.barriers == 2 + 2 * doublings, length  # from runs of 8


def test_a_merge_reads_and_writes_every_pair_once() -> None:
    length = 2 * TILE
    x = draw(length)
    with metalsim.options(check=True) as session:
        sort(x)
    bisection = 2 * 2 * 12 * 2 * 8  # two tiles, two edges, at most 12 steps of two pairs
    least = 4 * length + 8 * length + 4 * length  # keys, pairs, values
    assert least < session.counters.device_read <= least + bisection
    assert session.counters.device_written == 8 * length + 12 * length


@pytest.mark.parametrize(
    ("x", "dim", "said"),
    [
        (torch.ones(3, 3), 2, "-2 to 1"),
        (torch.ones(3, dtype=torch.float64), 0, "float64; allowed are torch.float32"),
        (torch.ones(3, dtype=torch.uint8), 0, "uint8"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_a_reason(x: torch.Tensor, dim: int, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        sort(x, dim)
