"""Matrix product: every tile and vector form against float64, in checking mode under four schedules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from _cases import DTYPES, assert_close, embedded, padded_rows, run_checked, run_poisoned

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import _launch, tuning
from steelworks.kernels.metal import gemm as host
from steelworks.kernels.metal.gemm import gemm
from steelworks.kernels.metal.tuning import GemmChoice, GemmTile, GemvColumns, GemvDot

TILES = tuple(row.choice for row in tuning.GEMM if isinstance(row.choice, GemmTile))
DOTS = tuple(row.choice for row in tuning.GEMM if isinstance(row.choice, GemvDot))
COLUMNS = tuple(row.choice for row in tuning.GEMM if isinstance(row.choice, GemvColumns))
F32, F16, BF16 = DTYPES
#: trans_a, trans_b: nn, nt, tn, tt.
LAYOUTS = ((False, False), (False, True), (True, False), (True, True))
#: Which layouts each dtype is tried in with every tile: all four in float, and the others share them.
LAYOUTS_OF = {F32: LAYOUTS, F16: LAYOUTS[::3], BF16: LAYOUTS[1:3]}
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 53, 61, 67, 71, 79, 97, 101, 127, 131)


def variants() -> Iterator[_launch.Variant]:
    """Most of what the tests launch, to be compiled in one go: one by one takes several times as long."""
    for dtype in DTYPES:
        name = _launch.metal_type(dtype)
        for tile in TILES:
            sizes = (tile.bm, tile.bn, tile.bk, tile.wm, tile.wn, tile.stages)
            for layout in LAYOUTS_OF[dtype]:
                yield _launch.Variant("gemm", "gemm_tiled", (name, name, *sizes, *layout))
        for dot in DOTS:
            for trans in (False, True) if dtype == F32 else (False,):
                sizes_4 = (dot.rows, dot.columns, dot.simds_k, dot.simds_n)
                yield _launch.Variant("gemm", "gemv_dot", (name, name, *sizes_4, trans), header="vector")
        for wide in COLUMNS:
            for trans in (False, True) if dtype == F32 else (False,):
                sizes_3 = (wide.rows, wide.packet, wide.simds)
                yield _launch.Variant("gemm", "gemv_columns", (name, name, *sizes_3, trans), header="vector")


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    with metalsim.options(check=True):
        _launch.prepare(*variants())


@pytest.fixture(autouse=True)
def _checking() -> Iterator[None]:
    """All launches are in checking mode: the kernels are compiled for that only, which halves the time."""
    with metalsim.options(check=True) as session:
        yield
    assert not session.findings, session.report().text()


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int, batch: Sequence[int] = ()) -> torch.Tensor:
    """Values of either sign, of size about 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*batch, rows, columns), generator=generator).to(dtype)


def stored(values: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The same matrix, stored as its transpose if asked; as a view with stale data before and behind."""
    return embedded(values.mT.contiguous()).mT if transposed else embedded(values)


def product(
    a: torch.Tensor, b: torch.Tensor, choice: GemmChoice | None, splits: int | None = None, **options: Any
) -> torch.Tensor:
    """gemm with the choice named."""
    problem = host._problem(a, b, host._Options(**options))
    if problem.out.numel():
        host._run(problem, choice, splits)
    return problem.out


def check(
    a: torch.Tensor,
    b: torch.Tensor,
    case: str,
    choice: GemmChoice | None = None,
    splits: int | None = None,
    **options: Any,
) -> None:
    """One case: in checking mode under four schedules, and compared with float64."""
    out = run_checked("gemm", lambda: product(a, b, choice, splits, **options), case)
    compare(out, a, b, case, **options)


def compare(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor, case: str, **options: Any) -> None:
    plain = {name: value for name, value in options.items() if name != "out_dtype"}
    sizes = {name: value for name, value in plain.items() if name != "activation"}
    smooth = options.get("activation") in ("gelu", "silu")
    assert_close(
        "gemm",
        out,
        reference.gemm(a, b, **plain),
        case,
        terms=a.shape[-2 if options.get("trans_a") else -1],
        # The slope of an activation is at most 1.13; gelu and silu are within 5e-6 of their argument.
        magnitude=1.13 * reference.gemm_magnitude(a, b, **sizes),
        extra=5e-6 if smooth else 0.0,
    )


def around(*tile: int) -> Iterator[tuple[int, ...]]:
    """All combinations of each size and its neighbours."""
    return itertools.product(*((size - 1, size, size + 1) for size in tile))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.bm}x{t.bn}x{t.bk}s{t.stages}")
def test_every_tile_is_right_one_below_at_and_one_above_its_size(tile: GemmTile, dtype: torch.dtype) -> None:
    small = tile.bm * tile.bn <= 4096
    for number, (m, n, k) in enumerate(around(tile.bm, tile.bn, tile.bk)):
        layouts = LAYOUTS_OF[dtype]
        # The large tiles and the short dtypes take the layouts in turn.
        for layout in layouts if small and dtype == F32 else (layouts[number % len(layouts)],):
            case = f"{tile} {dtype} trans={layout} {m}x{n}x{k}"
            a = stored(matrix(m, k, dtype, number), layout[0])
            b = stored(matrix(k, n, dtype, number + 1), layout[1])
            check(a, b, case, tile, splits=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("choice", (*DOTS, *COLUMNS), ids=lambda c: f"{type(c).__name__}{c.rows}")
def test_every_vector_form_is_right_around_its_sizes(
    choice: GemvDot | GemvColumns, dtype: torch.dtype
) -> None:
    inner = isinstance(choice, GemvDot)
    packet = 16 // dtype.itemsize
    width = choice.columns * choice.simds_n if inner else 32 * choice.packet
    lanes = 32 * choice.simds_k * packet if inner else 32 * choice.simds
    depths = (1, packet - 1, packet, packet + 1, lanes - 1, lanes, lanes + 1)
    for number, (n, k) in enumerate(itertools.product((1, 2, width - 1, width, width + 1), depths)):
        m = number % choice.rows + 1
        trans = dtype == F32 and number % 2 == 1
        # A vector is contiguous either way; one with gaps takes the form for contiguous rows.
        a = matrix(m, k, dtype, number)
        if trans:
            a = padded_rows(matrix(k, m, dtype, number)).mT
        b = stored(matrix(k, n, dtype, number + 1), inner)
        case = f"{choice} {dtype} {m}x{n}x{k} trans_a={trans}"
        if k == 1 or (n == 1 and not inner):
            continue  # the host names such operands otherwise
        check(a if trans else embedded(a), b, case, choice, splits=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sizes_zero_and_one_work_in_every_place(dtype: torch.dtype) -> None:
    for m, n, k in itertools.product((0, 1, 2), repeat=3):
        bias = matrix(1, n, dtype, 3)[0]
        check(matrix(m, k, dtype, 1), matrix(k, n, dtype, 2), f"{dtype} {m}x{n}x{k}", bias=bias)


def test_a_product_without_terms_is_what_the_epilogue_makes_of_zero() -> None:
    bias, residual = matrix(1, 5, F32, 1)[0], matrix(3, 5, F32, 2)
    out = run_poisoned(
        lambda: gemm(torch.empty(3, 0), torch.empty(0, 5), bias=bias, residual=residual, beta=2.0)
    )
    assert torch.equal(out, bias + 2.0 * residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_prime_sizes_are_right_by_the_table(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    picks = torch.randint(len(PRIMES), (60, 3), generator=generator).tolist()
    for number, places in enumerate(picks):
        m, n, k = (PRIMES[place] for place in places)
        layout = LAYOUTS_OF[dtype][number % len(LAYOUTS_OF[dtype])]
        a, b = (
            stored(matrix(m, k, dtype, number), layout[0]),
            stored(matrix(k, n, dtype, number + 9), layout[1]),
        )
        check(a, b, f"{dtype} trans={layout} {m}x{n}x{k}")


def test_the_flags_transpose_what_is_given() -> None:
    for number, (trans_a, trans_b) in enumerate(LAYOUTS):
        a = matrix(*((20, 33) if trans_a else (33, 20)), F32, number)
        b = matrix(*((40, 20) if trans_b else (20, 40)), F32, number)
        check(a, b, f"flags {trans_a} {trans_b}", trans_a=trans_a, trans_b=trans_b)


def test_few_columns_are_computed_as_few_rows_of_the_transposed_product() -> None:
    for number, (m, n, k) in enumerate(itertools.product((17, 33, 70), (1, 2, 3, 4, 7, 13), (16, 45))):
        a, b = embedded(matrix(m, k, F32, number)), embedded(matrix(k, n, F32, number))
        bias, residual = matrix(1, n, F32, 1)[0], matrix(m, n, F32, 2)
        check(a, b, f"{m}x{n}x{k}", bias=bias, residual=residual)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3,), (3,)),
        ((3,), ()),
        ((), (3,)),
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 1), (1, 3)),
        ((2, 1, 2), (3, 1)),
        ((2, 1, 2, 1), (1, 3, 1, 2)),
        ((1,), (1,)),
        ((2, 0), (1, 0)),
    ],
    ids=str,
)
def test_batch_dimensions_broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    for number, (m, n, k) in enumerate(((5, 33, 20), (33, 31, 17), (1, 40, 33))):
        a, b = matrix(m, k, F32, number, left), matrix(k, n, F32, number, right)
        bias, residual = matrix(1, n, F32, 1)[0], matrix(m, n, F32, 2)
        check(a, b, f"batch {left} {right} {m}x{n}x{k}", bias=bias, residual=residual)
        check(a, b.mT.contiguous(), f"batch {left} {right} {m}x{n}x{k} nt", trans_b=True)


def test_batches_with_strides_of_their_own_are_read_where_they_lie() -> None:
    a = matrix(20, 9, F32, 1, (4, 3))
    b = matrix(9, 40, F32, 2, (4, 3))
    residual = matrix(20, 40, F32, 3, (3, 4)).transpose(0, 1)
    views = {
        "permuted": (a.transpose(0, 1).contiguous().transpose(0, 1), b),
        "every second": (matrix(20, 9, F32, 4, (8, 3))[::2], matrix(9, 40, F32, 5, (4, 6))[:, ::2]),
        "padded": (padded_rows(a), padded_rows(b)),
        "rows outside the batch": (matrix(4, 9, F32, 6, (20, 3)).permute(2, 1, 0, 3), b),
        "batch inside the rows": (matrix(4 * 3, 9, F32, 7, (20,)).view(20, 4, 3, 9).permute(1, 2, 0, 3), b),
        "expanded": (a[:1].expand(4, 3, 20, 9), b[:, :1].expand(4, 3, 9, 40)),
    }
    for name, (left, right) in views.items():
        check(left, right, name, residual=residual)


def test_a_shared_right_operand_makes_one_product_of_the_batch() -> None:
    a, b = matrix(8, 20, F32, 1, (4, 2)), matrix(20, 40, F32, 2)
    with metalsim.options(check=True) as session:
        gemm(a, b)
    (launched,) = session.launches
    assert launched.kernel.startswith("gemm_tiled")
    assert launched.threads[1] == 1, "the batch was not merged into the rows"


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_epilogue_is_right_in_every_form(dtype: torch.dtype, activation: str | None) -> None:
    shapes = (
        (1, 40, 33, True),
        (3, 40, 33, True),
        (2, 130, 20, False),
        (7, 70, 35, False),
        (33, 35, 20, False),
    )
    extras = itertools.product((False, True), ("", "full", "row"), (False, True))
    for number, (bias, residual, scaled) in enumerate(extras):
        for m, n, k, inner in (shapes[number % 5], shapes[(number + 2) % 5]):
            a, b = matrix(m, k, dtype, number), stored(matrix(k, n, dtype, number + 1), inner)
            options: dict[str, Any] = {"activation": activation}
            if bias:
                options["bias"] = embedded(matrix(1, n, dtype, 2)[0])
            if residual:
                options["residual"] = padded_rows(matrix(m if residual == "full" else 1, n, dtype, 3))
            if scaled:
                options.update(alpha=-0.5, beta=1.75)
            check(a, b, f"{dtype} {m}x{n}x{k} {sorted(options)} {residual} scaled={scaled}", **options)


def test_a_residual_may_lie_transposed_and_a_bias_may_have_gaps() -> None:
    a, b = matrix(40, 20, F32, 1), matrix(20, 33, F32, 2)
    residual = matrix(33, 40, F32, 3).mT
    bias = matrix(33, 2, F32, 4)[:, 0]
    check(a, b, "transposed residual", residual=residual, bias=bias)


SPLIT_FORMS = (TILES[-1], TILES[0], DOTS[1], DOTS[-1], COLUMNS[-1])


@pytest.mark.parametrize("choice", SPLIT_FORMS, ids=lambda c: type(c).__name__)
def test_a_split_sum_is_right_for_any_number_of_splits(choice: GemmChoice) -> None:
    inner = isinstance(choice, GemvDot)
    m = 9 if isinstance(choice, GemmTile) else choice.rows
    for number, (splits, k) in enumerate(itertools.product((2, 3, 5), (33, 64, 95, 96, 97, 160))):
        a, b = embedded(matrix(m, k, F32, number)), stored(matrix(k, 37, F32, number + 1), inner)
        bias, residual = matrix(1, 37, F32, 2)[0], matrix(m, 37, F32, 3)
        check(
            a,
            b,
            f"{choice} k={k} splits={splits}",
            choice,
            splits,
            bias=bias,
            residual=residual,
            activation="silu",
        )


def test_split_sums_of_a_batch_and_of_a_transposed_product_are_right() -> None:
    a, b = matrix(9, 70, F32, 1, (3,)), matrix(70, 20, F32, 2, (3,))
    check(a, b, "batch", TILES[-1], 3, residual=matrix(9, 20, F32, 3))
    tall = matrix(33, 2048, F32, 4)
    check(
        tall,
        matrix(2048, 3, F32, 5),
        "few columns",
        bias=matrix(1, 3, F32, 6)[0],
        residual=matrix(33, 3, F32, 7),
    )


def test_short_dtypes_can_give_a_float_result() -> None:
    for dtype in (F16, BF16):
        a, b = matrix(33, 40, dtype, 1), matrix(40, 35, dtype, 2)
        bias, residual = matrix(1, 35, dtype, 3)[0], matrix(33, 35, F32, 4)
        check(a, b, f"{dtype} to float", bias=bias, residual=residual, out_dtype=F32)
        assert gemm(a, b, out_dtype=F32).dtype == F32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_where_they_lie_and_nothing_beside_them(dtype: torch.dtype) -> None:
    for number, (m, n, k) in enumerate(((1, 37, 33), (3, 37, 33), (7, 66, 33), (33, 35, 18))):
        a, b = matrix(m, k, dtype, number), matrix(k, n, dtype, number + 1)
        lefts = {"offset": embedded(a), "padded": padded_rows(a)}
        rights = {"padded": padded_rows(b), "padded transposed": padded_rows(b.mT.contiguous()).mT}
        if dtype == F32:
            lefts["transposed"] = padded_rows(a.mT.contiguous()).mT
            gaps = torch.stack((a, torch.full_like(a, float("nan"))), -1)
            lefts["every second"] = padded_rows(gaps.flatten(-2))[:, ::2]
            lefts["one row, repeated"] = embedded(a[:1]).expand(m, k)
            rights["one column, repeated"] = embedded(b[:, :1].contiguous()).expand(k, n)
        for (left, x), (right, y) in itertools.product(lefts.items(), rights.items()):
            check(x, y, f"{dtype} {m}x{n}x{k} a {left}, b {right}")


def test_special_values_go_where_they_belong_and_nowhere_else() -> None:
    infinity, nan = float("inf"), float("nan")
    for m, n, k in ((1, 40, 33), (3, 40, 33), (7, 40, 33), (33, 40, 33)):
        for inner, value in itertools.product((False, True), (infinity, -infinity, nan, -0.0, 1e-40, 3e38)):
            a, b = matrix(m, k, F32, 1), matrix(k, n, F32, 2)
            a[m - 1, k - 1] = value
            b[k - 1, n - 1] = 0.0
            check(a, stored(b, inner), f"{m}x{n}x{k} with {value} in a")
            a, b = matrix(m, k, F32, 1), matrix(k, n, F32, 2)
            b[0, 0] = value
            check(a, stored(b, inner), f"{m}x{n}x{k} with {value} in b")


def test_activations_keep_nan_and_saturate_at_infinity() -> None:
    for activation in ("relu", "gelu", "silu"):
        values = (float("nan"), float("inf"), -1e4, 1e4, -20.0, 0.0, 1e-30, -9.0, -3.0, -1.4)
        check(torch.tensor(values).unsqueeze(1), torch.ones(1, 40), activation, activation=activation)


def test_gelu_is_accurate_where_it_is_small() -> None:
    x = torch.linspace(-8.0, 8.0, 2001).unsqueeze(1)
    out = gemm(x, torch.ones(1, 1), activation="gelu")
    # Written so, it loses nothing to cancellation.
    want = 0.5 * x.double() * torch.special.erfc(-x.double() / 2**0.5)
    assert float(((out.double() - want).abs() / want.abs().clamp(min=1e-12)).max()) < 2e-5


def test_a_result_that_does_not_fit_half_becomes_infinite() -> None:
    a, b = torch.full((9, 33), 200.0, dtype=F16), torch.full((33, 40), 200.0, dtype=F16)
    check(a, b, "overflow")
    assert bool(gemm(a, b).isinf().all())


def test_sums_are_kept_in_float() -> None:
    for dtype in (F16, BF16):
        for m, inner in ((1, True), (1, False), (3, True), (7, False)):
            a, b = torch.ones(m, 4096, dtype=dtype), stored(torch.ones(4096, 9, dtype=dtype), inner)
            assert torch.equal(product(a, b, None, 1), torch.full((m, 9), 4096.0, dtype=dtype)), (
                f"{dtype} {m} {inner}"
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((3, 4), (5, 6)), r"op\(a\) is 3 x 4 and op\(b\) is 5 x 6"),
        (((4,), (4, 6)), "use unsqueeze"),
        (((2, 3, 4), (3, 4, 6)), "do not broadcast"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(arguments: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        gemm(torch.zeros(arguments[0]), torch.zeros(arguments[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": torch.zeros(7)}, r"must be \(6,\)"),
        ({"bias": torch.zeros(6, dtype=F16)}, "bias is torch.float16"),
        ({"residual": torch.zeros(4, 6)}, "does not broadcast"),
        ({"residual": torch.zeros(2, 3, 6)}, "does not broadcast"),
        ({"activation": "tanh"}, "'relu', 'gelu', 'silu'"),
        ({"out_dtype": F16}, "out_dtype is torch.float16"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        gemm(torch.zeros(3, 4), torch.zeros(4, 6), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=str)
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match="allowed are torch.float32, torch.float16, torch.bfloat16"):
        gemm(torch.zeros(3, 4, dtype=dtype), torch.zeros(4, 6, dtype=dtype))


def test_operands_of_different_dtypes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="they must agree"):
        gemm(torch.zeros(3, 4), torch.zeros(4, 6, dtype=F16))


def test_sizes_beyond_int32_arithmetic_are_refused() -> None:
    a = torch.zeros(1).expand(1, 2**30 + 1)
    with pytest.raises(InvalidInputError, match="cut the product into pieces"):
        gemm(a, a, trans_b=True)


def test_without_checks_the_result_has_the_same_bits() -> None:
    tile = GemmTile(
        bm=32, bn=32, bk=8, wm=1, wn=2, stages=2
    )  # not among those compiled above, for checking only
    a, b = matrix(50, 45, F32, 1), matrix(45, 41, F32, 2)
    checked = product(a, b, tile)
    with metalsim.options(check=False):
        plain = run_poisoned(lambda: product(a, b, tile))
    assert torch.equal(checked, plain)
