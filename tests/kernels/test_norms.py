"""layer_norm and rms_norm against float64, in checking mode under four schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from _cases import DTYPES, ROUNDOFF, assert_close, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal._launch import Variant, empty, launch
from steelworks.kernels.metal.norms import add_layer_norm, add_rms_norm, layer_norm, rms_norm

INF, NAN = math.inf, math.nan
F32, F16 = torch.float32, torch.float16
OPERATIONS = {"layer_norm": layer_norm, "rms_norm": rms_norm}
WITH_SUM = {"layer_norm": add_layer_norm, "rms_norm": add_rms_norm}
#: Limits of the forms, one less and one more, and primes.
WIDTHS = (1, 2, 3, 7, 8, 9, 31, 32, 33, 101, 127, 128, 129, 257, 511, 512, 513, 1021, 1025, 2049)
LONG = (4095, 4096, 4097, 8191, 16384, 16385, 20011)
#: Which of weight, bias and residual are given.
GIVEN = (
    (True, True, True),
    (True, True, False),
    (True, False, False),
    (False, True, True),
    (False, False, False),
)


def _draw(*shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype = F32) -> torch.Tensor:
    seed = sum((i + 1) * n for i, n in enumerate(shape))
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift).to(dtype)


def _check(
    operation: str,
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    case: object,
    eps: float = 1e-5,
) -> torch.Tensor:
    got = run_checked(
        "norms", lambda: OPERATIONS[operation](x, shape, weight, bias, eps, residual=residual), case
    )
    _compare(operation, got, x, len(shape), weight, bias, residual, case, eps)
    return got


def _compare(
    operation: str,
    got: torch.Tensor,
    x: torch.Tensor,
    dimensions: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    case: object,
    eps: float,
) -> None:
    assert got.dtype == x.dtype, case
    want = getattr(reference, operation)(x, dimensions, weight, bias, eps, residual)
    width = math.prod(x.shape[x.dim() - dimensions :])
    # h and its mean are rounded before their difference is taken: their size counts, not the difference's.
    dims = tuple(range(-dimensions, 0))
    h = x.double() if residual is None else x.double() + residual.double()
    centred = h - h.mean(dims, keepdim=True) if operation == "layer_norm" else h
    scale = ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    size = 2 * h.abs().amax(dims, keepdim=True) * scale
    # The spread's relative error comes from the mean's absolute one.
    size = size * (1 + ROUNDOFF[F32] * width * size)
    if weight is not None:
        size = size * weight.double().abs()
    if bias is not None:
        size = size + bias.double().abs()
    assert_close("norms", got, want, case, terms=width, magnitude=size.nan_to_num(0.0, 0.0, 0.0))


def _with_sum(
    operation: str, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, totals: list[torch.Tensor]
) -> torch.Tensor:
    normal, total = WITH_SUM[operation](x, residual, x.shape[-1], weight)
    totals.append(total)
    return normal


def _looped(variant: Variant, x: torch.Tensor, weight: torch.Tensor, group: int) -> torch.Tensor:
    out = empty(x.shape, x.dtype, x.device)
    rows, width = x.shape
    params = [rows, width, width, width, 1, 0, 0, 0]
    launch(variant, x, x, weight, weight, out, out, params, 1e-5, threads=(rows * group,), group=(group,))
    return out


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rows", [1, 5, 33])
def test_rows_of_any_width_match_the_reference(operation: str, rows: int) -> None:
    for number, width in enumerate(WIDTHS):
        x = _draw(rows, width, scale=2.0, shift=0.5)
        has = GIVEN[number % len(GIVEN)]
        weight, bias = (_draw(width, shift=s) if h else None for h, s in zip(has, (1.0, 0.0), strict=False))
        residual = _draw(rows, width, scale=0.5) if has[2] else None
        case = f"{operation} {rows}x{width}, weight, bias, residual: {has}"
        _check(operation, x, (width,), weight, bias, residual, case)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("has", GIVEN)
def test_weight_bias_and_residual_are_optional(operation: str, has: tuple[bool, bool, bool]) -> None:
    for width in (6, 100, 130, 600):
        x = _draw(4, width)
        weight, bias = (_draw(width) if h else None for h in has[:2])
        residual = _draw(4, width, scale=2.0) if has[2] else None
        _check(
            operation,
            x,
            (width,),
            weight,
            bias,
            residual,
            f"{operation} {width}, weight, bias, residual: {has}",
        )


@pytest.mark.parametrize("operation", OPERATIONS)
def test_long_rows_match_the_reference(operation: str) -> None:
    for width in LONG:
        x, weight, bias = _draw(2, width, shift=1.0), _draw(width), _draw(width)
        _check(operation, x, (width,), weight, bias, None, f"{operation} 2x{width}")
    x = _draw(1, 16400)
    _check(
        operation, x, (16400,), None, None, _draw(1, 16400, scale=3.0), f"{operation} 1x16400 with a residual"
    )


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_and_bfloat_are_rounded_once(dtype: torch.dtype) -> None:
    for width in (1, 5, 32, 33, 127, 300, 768):
        x, residual = _draw(6, width, dtype=dtype), _draw(6, width, scale=3.0, dtype=dtype)
        weight, bias = _draw(width, dtype=dtype), _draw(width, dtype=dtype)
        _check("layer_norm", x, (width,), weight, bias, residual, f"layer_norm 6x{width} {dtype}")
    for width in (100, 700):
        x, weight = _draw(6, width, dtype=dtype), _draw(width, dtype=dtype)
        _check("rms_norm", x, (width,), weight, None, None, f"rms_norm 6x{width} {dtype}")


def test_a_float_weight_goes_with_a_half_input() -> None:
    for width in (33, 512, 600):
        x = _draw(5, width, dtype=F16)
        for operation in OPERATIONS:
            case = f"{operation} half 5x{width} with a float weight"
            _check(operation, x, (width,), _draw(width), _draw(width), None, case)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_sum_comes_along_in_the_same_launch(operation: str) -> None:
    for width, dtype in ((5, F32), (100, F32), (300, F32), (1000, F32), (16390, F32), (33, F16), (600, F16)):
        x, residual, weight = (_draw(*s, dtype=dtype) for s in ((3, width), (3, width), (width,)))
        totals: list[torch.Tensor] = []

        case = f"{operation} with its sum, 3x{width} {dtype}"
        got = run_checked("norms", lambda t=(x, residual, weight, totals): _with_sum(operation, *t), case)
        eps = 1e-5 if operation == "layer_norm" else 1e-6
        _compare(operation, got, x, 1, weight, None, residual, case, eps)
        assert all(torch.equal(total, (x.double() + residual.double()).to(dtype)) for total in totals), case


@pytest.mark.parametrize("operation", OPERATIONS)
def test_several_dimensions_are_normalised_together(operation: str) -> None:
    x = _draw(2, 3, 4, 5)
    for dimensions in (1, 2, 3, 4):
        shape = x.shape[4 - dimensions :]
        _check(operation, x, shape, _draw(*shape), _draw(*shape), None, f"{operation} over {tuple(shape)}")
    assert torch.equal(OPERATIONS[operation](x, 5), OPERATIONS[operation](x, (5,)))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_views_are_read_in_place_and_nothing_beside_them(operation: str) -> None:
    for width in (5, 33, 100, 300, 600):
        x, weight, bias = _draw(6, width), _draw(width), _draw(width)
        views = {
            "at an offset": embedded(x),
            "rows apart": padded_rows(x),
            "transposed": x.t().contiguous().t(),
            "every other row": _draw(12, width)[::2],
            "one row repeated": x[:1].expand(6, width),
        }
        for name, view in views.items():
            for residual in (None, padded_rows(_draw(6, width), pad=1)):
                case = f"{operation} {name}, width {width}, {'with' if residual is not None else 'without'} residual"
                _check(operation, view, (width,), embedded(weight), embedded(bias), residual, case)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_special_values_are_as_in_float64(operation: str) -> None:
    rows = {
        "zeros": [0.0, 0.0, -0.0],
        "equal": [7.25, 7.25, 7.25],
        "nan": [0.0, NAN, 1.0],
        "denormals": [1e-40, -1e-40, 0.0],
        "small": [1e-18, -2e-18, 3e-18],
        "large": [1e15, -2e15, 3e15],
    }
    for name, values in rows.items():
        for repeats in (1, 30, 200, 6000):
            x = torch.tensor([values * repeats, [0.5, 1.0, 2.0] * repeats])
            width = 3 * repeats
            _check(operation, x, (width,), None, None, None, f"{operation} of {name}, {width} elements")


def test_an_infinite_element_makes_a_layer_norm_nan_and_an_rms_norm_zero_but_for_itself() -> None:
    for width in (3, 100, 600):
        x = torch.ones(2, width)
        x[0, 1] = INF
        layer = run_checked("norms", lambda x=x, w=width: layer_norm(x, w), f"inf in {width}")
        assert bool(layer[0].isnan().all())
        assert bool((layer[1] == 0).all())
        root = run_checked("norms", lambda x=x, w=width: rms_norm(x, w), f"inf in {width}")
        assert bool(root[0, 1].isnan())
        assert float(root[0].nan_to_num(0.0).abs().sum()) == 0.0


@pytest.mark.parametrize("width", [30, 100, 300, 1000, 5000, 17000])
def test_the_variance_of_a_row_far_from_zero_is_not_lost(width: int) -> None:
    # mean 10,000, deviation 1: in float32 the difference of mean squares has an error of about 6, more than
    # the variance.
    x = _draw(3, width, shift=1e4)
    _check("layer_norm", x, (width,), None, None, None, f"{width} elements around 10,000")
    got = layer_norm(x, width)
    assert float((got.double() - reference.layer_norm(x, 1, None, None, 1e-5)).abs().max()) < 3e-3


def test_the_first_element_may_lie_far_from_the_others() -> None:
    for width in (100, 600, 5000, 17000):
        x = _draw(1, width)
        x[0, 0] = 3e4
        _check("layer_norm", x, (width,), None, None, None, f"an outlier before {width - 1} others")


def test_the_looped_form_runs_with_groups_of_any_size() -> None:
    for rms, operation in ((False, "layer_norm"), (True, "rms_norm")):
        variant = Variant("norms", "norm_row_looped", ("float", "float", rms, 4))
        for group in (32, 96, 1024):
            for width in (1, 127, 1000, 5003):
                x, weight = _draw(2, width, shift=2.0), _draw(width)

                case = f"{operation} looped, width {width}, {group} threads"
                got = run_checked("norms", lambda v=variant, t=(x, weight), g=group: _looped(v, *t, g), case)
                _compare(operation, got, x, 1, weight, None, None, case, 1e-5)


def test_empty_tensors_have_an_empty_result() -> None:
    for shape in ((0, 5), (5, 0), (2, 0, 3)):
        for operation, function in OPERATIONS.items():
            got = run_checked(
                "norms", lambda f=function, s=shape: f(torch.empty(s), s[-1]), (operation, shape)
            )
            assert got.shape == torch.Size(shape)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [F32, F16])
def test_device_bytes_are_the_least_possible_up_to_16384_elements(operation: str, dtype: torch.dtype) -> None:
    size = 4 if dtype == F32 else 2
    for rows, width in ((5, 7), (40, 100), (3, 300), (2, 1000)):
        x, weight = _draw(rows, width, dtype=dtype), _draw(width, dtype=dtype)
        with metalsim.options(check=True) as session:
            OPERATIONS[operation](x, width, weight)
        # The weight is read once a row: on a GPU it comes from the cache after the first one.
        assert session.counters.device_read == 2 * rows * width * size, (rows, width)
        assert session.counters.device_written == rows * width * size, (rows, width)


def test_a_residual_and_its_sum_cost_one_read_and_one_write_more() -> None:
    for rows, width in ((5, 7), (40, 100), (2, 1000)):
        x, residual = _draw(rows, width), _draw(rows, width, scale=2.0)
        with metalsim.options(check=True) as session:
            add_rms_norm(x, residual, width)
        assert session.counters.device_read == 2 * rows * width * 4
        assert session.counters.device_written == 2 * rows * width * 4


def test_a_row_costs_one_barrier_and_a_short_one_none() -> None:
    for width, barriers in ((100, 0), (500, 0), (600, 3)):
        with metalsim.options() as session:
            layer_norm(_draw(3, width), width, _draw(width))
        assert session.counters.barriers == barriers, width


@pytest.mark.parametrize(
    ("x", "shape", "options", "said"),
    [
        (torch.ones(2, 3, dtype=torch.int32), 3, {}, "float32, float16 or bfloat16"),
        (torch.ones(2, 3), 2, {}, "x.s last dimensions are"),
        (torch.ones(2, 3), (), {}, "at least one"),
        (torch.ones(2, 3), 3, {"weight": torch.ones(2)}, "weight has shape"),
        (torch.ones(2, 3), 3, {"weight": torch.ones(3, dtype=F16)}, "convert it"),
        (
            torch.ones(2, 3, dtype=F16),
            3,
            {"weight": torch.ones(3), "bias": torch.ones(3, dtype=F16)},
            "convert one",
        ),
        (torch.ones(2, 3), 3, {"residual": torch.ones(3)}, "must be the same"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    x: torch.Tensor, shape: int | tuple[int, ...], options: dict[str, torch.Tensor], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        layer_norm(x, shape, **options)
