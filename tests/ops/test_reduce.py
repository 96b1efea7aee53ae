"""sum, mean, extremes, any and all: every path against float64."""

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
from steelworks.ops import reduce

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

OVER_DIMS: dict[str, Callable[..., torch.Tensor]] = {
    "sum": reduce.sum,
    "mean": reduce.mean,
    "amax": reduce.amax,
    "amin": reduce.amin,
    "any": reduce.any,
    "all": reduce.all,
}
PLACES: dict[str, Callable[..., torch.Tensor]] = {"argmax": reduce.argmax, "argmin": reduce.argmin}
BOTH: dict[str, Callable[..., Any]] = {"max": reduce.max, "min": reduce.min}
EVERY: dict[str, Callable[..., Any]] = {**OVER_DIMS, **PLACES, **BOTH}
DTYPES = (*FLOATS, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool)
SOME = (0.0, 1.0, 1e-10, math.nan, math.inf)


def _check(name: str, x: torch.Tensor, dim: Any, keepdim: bool, got: torch.Tensor, case: object) -> None:
    plain = x.to(torch.uint8) if x.dtype == torch.bool and name in PLACES else x
    want = reference.reduce(name, plain, dim, keepdim=keepdim)
    if name not in ("sum", "mean") or not x.is_floating_point():
        assert_same(got, want.to(got.dtype), case)
        expected = (
            torch.bool if name in ("any", "all") else torch.int64 if name in ("sum", *PLACES) else x.dtype
        )
        assert got.dtype == expected, case
        return
    assert got.dtype == x.dtype, case
    size = reference.reduce(name, x.abs(), dim, keepdim=keepdim)
    assert_within(got, want, terms=x.numel(), magnitude=size, roundings=2, case=case)


@settings(deadline=None, max_examples=150)
@given(
    name=st.sampled_from(tuple(OVER_DIMS)),
    shape=st.lists(SIZES, min_size=1, max_size=4),
    dims=st.one_of(st.none(), st.lists(st.integers(0, 3), unique=True, max_size=3), st.integers(-1, 0)),
    keepdim=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_a_reduction_over_any_dimensions_matches_float64(
    name: str, shape: list[int], dims: Any, keepdim: bool, dtype: torch.dtype, layout: str, edges: bool
) -> None:
    if name == "mean" and not dtype.is_floating_point:
        dtype = torch.float32
    if isinstance(dims, list):
        dims = [d for d in dims if d < len(shape)]
    x = laid_out(draw(*shape, dtype=dtype, edges=SOME if edges else ()), layout)
    got = OVER_DIMS[name](x, dims, keepdim)
    named = list(range(len(shape))) if dims == [] else dims
    _check(name, x, named, keepdim, got, (name, shape, dims, keepdim, dtype, layout, edges))


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(tuple(PLACES)),
    shape=st.lists(SIZES, min_size=1, max_size=3),
    dim=st.one_of(st.none(), st.integers(-3, 2)),
    keepdim=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    edges=st.booleans(),
)
def test_where_the_extreme_is_matches_float64(
    name: str, shape: list[int], dim: int | None, keepdim: bool, dtype: torch.dtype, layout: str, edges: bool
) -> None:
    dim = dim if dim is None else dim % len(shape)
    x = laid_out(draw(*shape, dtype=dtype, edges=EDGES if edges else ()), layout)
    got = PLACES[name](x, dim, keepdim)
    _check(name, x, dim, keepdim, got, (name, shape, dim, keepdim, dtype, layout, edges))


@pytest.mark.parametrize("name", BOTH)
def test_the_extreme_and_its_place_are_those_of_torch(name: str) -> None:
    function = getattr(torch, name)
    for dtype in DTYPES:
        x = draw(4, 5, 6, dtype=dtype, edges=EDGES)
        assert_same(BOTH[name](x), function(x), (name, dtype))
        for dim in (0, -1):
            want = tuple(function(x, dim, keepdim=True))
            assert_same(BOTH[name](x, dim, True), want, (name, dtype, dim))


@pytest.mark.parametrize("name", EVERY)
def test_the_metal_kernels_give_the_same(name: str) -> None:
    x = draw(3, 40, edges=(0.0, 1.0, math.nan) if name in (*PLACES, *BOTH) else ())
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        got = EVERY[name](x, 1)
    assert recorded.of(name, "steel") == 1
    if name in BOTH:
        assert_same(got, tuple(getattr(torch, name)(x, 1)))
    else:
        _check(name, x, 1, False, got, ("metal", name))


def test_scalars_and_nothing_have_the_results_of_torch() -> None:
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            scalar, none = torch.tensor(3.0), torch.ones(0, 4)
            assert_same(reduce.sum(scalar, 0, True), torch.sum(scalar, 0, True), path)
            assert_same(reduce.sum(none, 0), torch.zeros(4), path)
            assert_same(reduce.mean(none, 0), torch.full((4,), math.nan), path)
            assert_same(reduce.any(none, 0), torch.zeros(4, dtype=torch.bool), path)
            assert_same(reduce.all(none), torch.tensor(True), path)
            assert_same(reduce.amax(none, 1), torch.ones(0), path)
            assert_same(reduce.argmax(scalar), torch.tensor(0), path)


def test_a_dtype_is_converted_to_before_the_sum() -> None:
    x = draw(50, dtype=torch.float16) * 10000
    assert_same(reduce.sum(x, dtype=torch.float32), x.float().sum())
    assert_same(reduce.mean(torch.arange(5), dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "amin", "max", "min"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    x = draw(3, 4, dtype=torch.float64).requires_grad_()

    def values(t: torch.Tensor) -> torch.Tensor:
        got = EVERY[name](t, 1)
        found: torch.Tensor = got if isinstance(got, torch.Tensor) else got[0]
        return found

    assert torch.autograd.gradcheck(values, [x])


@pytest.mark.parametrize("name", EVERY)
def test_torchs_own_checks_of_the_operator_pass(name: str) -> None:
    operator = getattr(torch.ops.steelworks, name).default
    dim: Any = [1] if name in OVER_DIMS else 1
    cases = [(draw(3, 20), dim, False)]
    if name not in BOTH:
        cases.append((draw(3, 4, dtype=torch.float32 if name == "mean" else torch.int32), None, True))
    for arguments in cases:
        torch.library.opcheck(operator, arguments)


def test_compile_and_export_give_the_same() -> None:
    def several(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (reduce.sum(x, (0, 2)), *reduce.max(x, 1), reduce.argmin(x), reduce.any(x, -1, True))

    assert_compiles_and_exports(several, draw(3, 4, 5))


def test_many_threads_at_once_get_what_one_gets() -> None:
    for name in ("sum", "amax", "argmax", "max"):
        assert_threads_agree(EVERY[name], [(draw(n, 40, seed=n), dim) for n in (1, 4) for dim in (0, 1)])


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("sum", (torch.ones(3, 4), 2), "sum: dim is 2; for 2 dimensions, -2 to 1 are allowed"),
        ("sum", (torch.ones(3, 4), (0, -2)), "names a dimension twice"),
        ("mean", (torch.arange(3),), "torch.int64.*dtype=torch.float32"),
        ("amax", (torch.ones(0, 4), 0), r"no elements along dim .*\(0, 4\)"),
        ("argmax", (torch.ones(0),), "no elements"),
        ("max", (torch.ones(0, 4), 0), "no elements"),
        ("argmin", (torch.ones(3, dtype=torch.complex64),), "no order"),
        ("min", (torch.ones(3, 4), 5), "dim is 5"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(name: str, arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        EVERY[name](*arguments)
