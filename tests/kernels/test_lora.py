"""LoRA in one launch: one adapter, and one a row, against float64 in checking mode."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _cases import assert_close, embedded, padded_rows, run_checked, run_poisoned

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import lora as family
from steelworks.kernels.metal.lora import lora_linear, lora_linear_multi

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; ``adapters`` 0 is the form with one adapter."""

    m: int
    n: int
    k: int
    r: int = 8
    dtype: torch.dtype = F32
    adapters: int = 0
    bias: bool = True
    views: bool = False


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    scales: torch.Tensor
    of_row: torch.Tensor


def _tensors(case: Case) -> Tensors:
    made = torch.Generator().manual_seed(case.m * 1009 + case.n * 31 + case.k + case.r)

    def draw(*shape: int) -> torch.Tensor:
        drawn = torch.randn(shape, generator=made).to(case.dtype)
        return padded_rows(drawn) if case.views and len(shape) > 1 else drawn

    count = (case.adapters,) if case.adapters else ()
    return Tensors(
        draw(case.m, case.k),
        draw(case.n, case.k),
        draw(*count, case.r, case.k),
        draw(*count, case.n, case.r),
        draw(case.n) if case.bias else None,
        torch.randn(max(case.adapters, 1), generator=made),
        torch.randint(-1, max(case.adapters, 1), (case.m,), generator=made, dtype=torch.int32),
    )


def _call(case: Case, t: Tensors) -> torch.Tensor:
    if case.adapters:
        return lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
    return lora_linear(t.x, t.weight, t.a, t.b, float(t.scales[0]), t.bias)


def _compare(got: torch.Tensor, case: Case, t: Tensors) -> None:
    bias = None if t.bias is None else t.bias.abs()
    if case.adapters:
        want = reference.lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
        size = reference.lora_linear_multi(
            t.x.abs(), t.weight.abs(), t.a.abs(), t.b.abs(), t.scales.abs(), t.of_row, bias
        )
    else:
        scale = float(t.scales[0])
        want = reference.lora_linear(t.x, t.weight, t.a, t.b, scale, t.bias)
        size = reference.lora_linear(t.x.abs(), t.weight.abs(), t.a.abs(), t.b.abs(), abs(scale), bias)
    assert_close("lora", got, want, case, terms=case.k + case.r + 10, magnitude=size)


def _check(case: Case) -> None:
    tensors = _tensors(case)
    _compare(run_checked("lora", lambda: _call(case, tensors), case), case, tensors)


@pytest.mark.parametrize("adapters", [0, 3])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_few_rows_are_those_of_float64(dtype: torch.dtype, adapters: int) -> None:
    for m in (1, 2, 4, 5, 8):
        for n, k in ((1, 1), (3, 31), (64, 32), (65, 33)):
            for r in (1, 8, 33):
                _check(Case(m, n, k, r, dtype, adapters))


@pytest.mark.parametrize("adapters", [0, 3])
@pytest.mark.parametrize(("dtype", "r"), [(F32, 8), (F16, 8), (BF16, 8), (F32, 64)])
def test_small_tiles_are_those_of_float64(dtype: torch.dtype, r: int, adapters: int) -> None:
    for m in (9, 31, 32, 33) if dtype == F32 and r == 8 else (9, 33):
        for n in (1, 31, 32):
            for k in (1, 16, 17):
                _check(Case(m, n, k, r, dtype, adapters))


@pytest.mark.parametrize("adapters", [0, 2])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_large_tiles_are_those_of_float64(dtype: torch.dtype, adapters: int) -> None:
    for m, n, k in ((33, 33, 15), (63, 65, 16), (64, 64, 32), (65, 63, 33), (97, 35, 1)):
        _check(Case(m, n, k, 8, dtype, adapters))


@pytest.mark.parametrize("m", [3, 12])
def test_every_rank_from_1_to_64_is_right(m: int) -> None:
    for r in (1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64):
        _check(Case(m, 10, 20, r))


@pytest.mark.parametrize("m", [4, 40])
def test_all_rows_may_have_one_adapter_or_none_or_each_its_own(m: int) -> None:
    case = Case(m, 20, 18, 5, adapters=m)
    tensors = _tensors(case)
    for pattern in (
        torch.full((m,), 2),
        torch.full((m,), -1),
        torch.arange(m),
        torch.arange(m).flip(0),
        torch.arange(m) // 8,
        torch.arange(m) % 2 - 1,
    ):
        tensors.of_row.copy_(pattern)
        got = run_checked("lora", lambda: _call(case, tensors), (case, pattern.tolist()))
        _compare(got, case, tensors)


def test_a_number_that_names_no_adapter_is_none() -> None:
    for m in (3, 11):
        case = Case(m, 9, 12, 4, adapters=2)
        tensors = _tensors(case)
        tensors.of_row[0], tensors.of_row[1], tensors.of_row[2] = 2, -7, 2**31 - 1
        _compare(run_checked("lora", lambda: _call(case, tensors), case), case, tensors)  # noqa: B023


def test_rows_of_one_adapter_do_not_see_infinities_of_another() -> None:
    for m in (4, 12):
        case = Case(m, 9, 12, 4, adapters=2)
        tensors = _tensors(case)
        tensors.of_row.copy_(torch.arange(m) % 2)
        tensors.a[1] = math.inf
        got = run_checked("lora", lambda: _call(case, tensors), case)  # noqa: B023
        tensors.a[1] = 0
        tensors.b[1] = 0
        want = _call(case, tensors)
        assert torch.equal(got[::2], want[::2])
        assert not got[1::2].isfinite().any()


def test_views_with_stale_data_behind_are_read_in_place() -> None:
    for m in (1, 5, 33):
        for adapters in (0, 2):
            _check(Case(m, 34, 19, 6, adapters=adapters, views=True))


def test_transposed_tensors_are_taken() -> None:
    for m in (2, 10):
        t = _tensors(Case(m, 12, 14))
        turned = [part.t().contiguous().t() for part in (t.x, t.weight, t.a, t.b)]
        got = run_checked("lora", lambda: lora_linear(*turned, 0.5, None), m)  # noqa: B023
        assert torch.equal(got, lora_linear(t.x, t.weight, t.a, t.b, 0.5))


def test_without_bias_and_with_an_offset_bias() -> None:
    for m in (2, 10):
        _check(Case(m, 12, 14, bias=False))
        case = Case(m, 12, 14)
        t = _tensors(case)
        assert t.bias is not None
        moved = embedded(t.bias)
        got = run_checked("lora", lambda: lora_linear(t.x, t.weight, t.a, t.b, 2.0, moved), case)  # noqa: B023
        assert torch.equal(got, lora_linear(t.x, t.weight, t.a, t.b, 2.0, t.bias))


def test_more_dimensions_of_x_are_kept() -> None:
    t = _tensors(Case(12, 7, 5, 3, adapters=2))
    x, of_row = t.x.view(2, 6, 5), t.of_row.view(2, 6)
    got = run_checked("lora", lambda: lora_linear_multi(x, t.weight, t.a, t.b, t.scales, of_row), "3d")
    assert torch.equal(got.view(12, 7), lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row))


def test_nan_and_infinity_in_a_row_stay_in_that_row() -> None:
    for m in (4, 12):
        for value in (math.nan, math.inf):
            t = _tensors(Case(m, 9, 12, 4))
            clean = lora_linear(t.x, t.weight, t.a, t.b)
            t.x[1, 3] = value
            got = run_checked("lora", lambda: lora_linear(t.x, t.weight, t.a, t.b), m)  # noqa: B023
            assert not got[1].isfinite().any()
            others = [i for i in range(m) if i != 1]
            assert torch.equal(got[others], clean[others])


def test_denormals_and_signed_zeros_pass() -> None:
    for m in (4, 12):
        case = Case(m, 9, 12, 4)
        t = _tensors(case)
        t.x[0], t.x[1] = 1e-40, -0.0
        _compare(run_checked("lora", lambda: _call(case, t), case), case, t)  # noqa: B023


def test_empty_dimensions() -> None:
    for m, n, k in ((0, 5, 6), (3, 0, 6), (3, 5, 0), (12, 5, 0)):
        _check(Case(m, n, k, 2))
        _check(Case(m, n, k, 2, adapters=2))


def test_a_tile_reads_every_matrix_once() -> None:
    for m, n, k, r in ((32, 32, 48, 8), (64, 64, 48, 8)):
        t = _tensors(Case(m, n, k, r))
        assert t.bias is not None
        with metalsim.options(check=True) as session:
            lora_linear(t.x, t.weight, t.a, t.b, 0.5)
        counters = session.counters
        if m == 32:  # a thread that holds two packets may be compiled to read one twice
            assert counters.device_read == 4 * (m * k + n * k + r * k + n * r)
        assert counters.device_written == 4 * m * n
        assert counters.barriers == 2 * k // 16 + 2  # two a step, two for B
        assert counters.mmas == (m * n * k + m * r * k + m * n * r) / 8**3


def test_rows_with_one_adapter_cost_no_pass_of_their_own() -> None:
    t = _tensors(Case(32, 32, 48, 8, adapters=3))
    t.of_row.fill_(1)
    with metalsim.options(check=True) as session:
        _call(Case(32, 32, 48, 8, adapters=3, bias=False), t)
    assert session.counters.mmas == (32 * 32 * 48 + 32 * 8 * 48 + 32 * 32 * 8) / 8**3


def test_one_row_reads_the_weight_once() -> None:
    t = _tensors(Case(1, 64, 96, 8))
    with metalsim.options(check=True) as session:
        lora_linear(t.x, t.weight, t.a, t.b, 0.5)
    # x is read by each of 16 simdgroups, and once for each of the 8 ranks: it stays in the cache.
    assert session.counters.device_read == 4 * (64 * 96 + 8 * 96 + 64 * 8 + (16 + 8) * 96)


def test_the_host_lays_parameters_out_as_the_kernels_do() -> None:
    header = Path(family.__file__).with_suffix("") / "params.h"
    assert re.findall(r"^  int (\w+);", header.read_text(), re.M) == list(family._Params._fields)


def test_unfit_arguments_are_refused_with_a_reason() -> None:
    t = _tensors(Case(3, 5, 7, 4, adapters=2))
    one = (t.a[0], t.b[0])
    for call, reason in (
        (lambda: lora_linear(t.x, t.weight[:, :3], *one), "(..., k) and (n, k) are needed"),
        (lambda: lora_linear(t.x, t.weight, t.a, t.b), "(r, k) is needed"),
        (lambda: lora_linear(t.x, t.weight, torch.zeros(65, 7), torch.zeros(5, 65)), "1 to 64"),
        (lambda: lora_linear(t.x, t.weight, torch.zeros(0, 7), torch.zeros(5, 0)), "1 to 64"),
        (lambda: lora_linear(t.x, t.weight, t.a[0], t.b[0, :, :2]), "(1, 5, 4) is needed"),
        (lambda: lora_linear(t.x, t.weight, *one, 1.0, torch.zeros(4)), "(5,) is needed"),
        (lambda: lora_linear(t.x.half(), t.weight, *one), "they must be the same"),
        (
            lambda: lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales.half(), t.of_row),
            "float32 of shape (2,)",
        ),
        (
            lambda: lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row.long()),
            "int32 of shape (3,)",
        ),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(reason)):
            call()


def test_an_unchecked_run_gives_the_same_bits_as_a_checked_one() -> None:
    for m in (3, 33):
        case = Case(m, 20, 40, adapters=2)
        t = _tensors(case)
        checked = run_checked("lora", lambda: _call(case, t), case)  # noqa: B023
        assert torch.equal(run_poisoned(lambda: _call(case, t)), checked)  # noqa: B023
