"""cumsum, cumprod, cummax and cummin: every path against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops import scan

from ._family_cases import (
    EDGES,
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

SCANS: dict[str, Callable[..., Any]] = {
    "cumsum": scan.cumsum,
    "cumprod": scan.cumprod,
    "cummax": scan.cummax,
    "cummin": scan.cummin,
}
EXTREMES = ("cummax", "cummin")
DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)


def _check(name: str, x: torch.Tensor, dim: int, exclusive: bool, got: Any, case: object) -> None:
    want, places = reference.scan(name, x, dim, exclusive=exclusive)
    if places is not None:
        values, indices = got
        assert_same(indices, places, case)
        assert_same(values, want.to(x.dtype), case)
        return
    if not x.is_floating_point():
        assert_same(got, want, case)
        return
    assert got.dtype == x.dtype, case
    size, _ = reference.scan(name, x.abs(), dim, exclusive=exclusive)
    # A low-precision cumulative sum may be rounded at every step.
    steps = x.shape[dim] if x.dim() else 1
    assert_within(got, want, terms=steps, magnitude=size, roundings=steps + 1, case=case)


@settings(deadline=None, max_examples=120)
@given(
    name=st.sampled_from(tuple(SCANS)),
    shape=st.lists(SIZES, min_size=1, max_size=3),
    dim=st.integers(-3, 2),
    dtype=st.sampled_from(DTYPES),
    exclusive=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_every_scan_matches_float64(
    name: str, shape: list[int], dim: int, dtype: torch.dtype, exclusive: bool, layout: str, edges: bool
) -> None:
    dim = dim % len(shape)
    some = EDGES if name in EXTREMES else (0.0, 1.0, math.nan, math.inf)
    x = laid_out(draw(*shape, dtype=dtype, edges=some if edges else ()), layout)
    case = (name, shape, dim, dtype, exclusive, layout, edges)
    _check(name, x, dim, exclusive, SCANS[name](x, dim, exclusive=exclusive), case)


@pytest.mark.parametrize("name", SCANS)
def test_the_metal_kernels_give_the_same(name: str) -> None:
    x = draw(3, 40, edges=(0.0, 1.0, math.nan) if name in EXTREMES else ())
    for exclusive in (False, True):
        with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
            got = SCANS[name](x, exclusive=exclusive)
        assert recorded.of(name, "steel") == 1
        _check(name, x, -1, exclusive, got, ("metal", name, exclusive))


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_scalars_and_nothing_have_a_result(name: str, exclusive: bool) -> None:
    for x in (torch.tensor(3.0), torch.ones(0, 4), torch.ones(4, 0)):
        _check(name, x, -1, exclusive, SCANS[name](x, exclusive=exclusive), (name, x.shape))


@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    x = draw(2, 5, dtype=torch.float64).requires_grad_()

    def values(t: torch.Tensor, exclusive: bool) -> torch.Tensor:
        got = SCANS[name](t, exclusive=exclusive)
        found: torch.Tensor = got if isinstance(got, torch.Tensor) else got[0]
        return found[:, 1:]  # the first exclusive extreme is infinite

    for exclusive in (False, True):
        assert torch.autograd.gradcheck(lambda t, e=exclusive: values(t, e), [x])


def test_a_dtype_is_converted_to_before_the_sum() -> None:
    x = draw(50, dtype=torch.float16) * 1000
    assert_same(scan.cumsum(x, dtype=torch.float32), torch.cumsum(x.float(), -1))
    assert_same(scan.cumprod(x[:3], dtype=torch.float64), torch.cumprod(x[:3].double(), -1))


@pytest.mark.parametrize("name", SCANS)
def test_torchs_own_checks_of_the_operator_pass(name: str) -> None:
    operator = getattr(torch.ops.steelworks, name).default
    for arguments in ((draw(3, 20), -1, False), (draw(4, 5, dtype=torch.int32), 0, True)):
        torch.library.opcheck(operator, arguments)


def test_compile_and_export_give_the_same() -> None:
    x = draw(7, 4)
    assert_compiles_and_exports(lambda t: (scan.cumsum(t, 0), *scan.cummax(t, 1)), x)


def test_many_threads_at_once_get_what_one_gets() -> None:
    for run in SCANS.values():
        assert_threads_agree(run, [(draw(n, 40, seed=n), dim) for n in (1, 4) for dim in (0, 1)])


@pytest.mark.parametrize("name", SCANS)
def test_a_dimension_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}: dim is 2; for 2 dimensions, -2 to 1 are allowed"):
        SCANS[name](torch.ones(3, 4), 2)


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes_of_complex_numbers_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError, match="complex64, whose elements have no order"):
        SCANS[name](torch.ones(3, dtype=torch.complex64))
