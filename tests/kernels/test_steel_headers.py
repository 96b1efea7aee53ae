"""The headers that all families share: index functions, loader, reductions, special functions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _cases import SCHEDULES

from steelworks import metalsim
from steelworks.kernels.metal import _launch

KERNELS = """
using namespace steel;

kernel void element(device long* out [[buffer(0)]], constant int* p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  const int row = int(i) / 10, column = int(i) % 10;
  out[2 * i] = steel_element(row, column, p[0], p[1], 100);
  out[2 * i + 1] = steel_element_strided(row, column, p[0], p[1], 100, 10);
}
kernel void left(device int* out [[buffer(0)]], constant int* p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  out[i] = steel_left(int(i), p[0], p[1]);
}
kernel void fragment(device int* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[2 * i] = steel_fragment_row(int(i));
  out[2 * i + 1] = steel_fragment_column(int(i));
}

template <typename T, int ROWS, int COLS, int THREADS>
[[kernel]] void load(device const T* from [[buffer(0)]], device T* out [[buffer(1)]], constant int* p [[buffer(2)]],
                     uint at [[thread_index_in_threadgroup]]) {
  constexpr int LD = COLS + 3;
  threadgroup T tile[ROWS * LD];
  typedef TileLoader<T, ROWS, COLS, LD, THREADS> Loader;
  if (p[0] == ROWS && p[1] == COLS) Loader::full(from, p[2], tile, int(at));
  else Loader::edge(from, p[2], tile, int(at), p[0], p[1]);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = int(at); i < ROWS * COLS; i += THREADS) out[i] = tile[i / COLS * LD + i % COLS];
}
template [[host_name("load_32_16_64")]] [[kernel]] decltype(load<float, 32, 16, 64>) load<float, 32, 16, 64>;
template [[host_name("load_5_12_32")]] [[kernel]] decltype(load<float, 5, 12, 32>) load<float, 5, 12, 32>;
template [[host_name("load_3_7_64")]] [[kernel]] decltype(load<float, 3, 7, 64>) load<float, 3, 7, 64>;
template [[host_name("load_9_24_32")]] [[kernel]] decltype(load<half, 9, 24, 32>) load<half, 9, 24, 32>;

kernel void reduce(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                   uint at [[thread_index_in_threadgroup]], uint simd [[simdgroup_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simds [[simdgroups_per_threadgroup]],
                   uint threads [[threads_per_threadgroup]]) {
  threadgroup float scratch[32];
  // One after the other through the same scratch.
  out[at] = group_reduce<Sum>(x[at], scratch, int(simd), int(lane), int(simds));
  out[threads + at] = group_reduce<Max>(x[at], scratch, int(simd), int(lane), int(simds));
  out[2 * threads + at] = group_reduce<Min>(x[at], scratch, int(simd), int(lane), int(simds));
  out[3 * threads + at] = group_reduce<Product>(x[at], scratch, int(simd), int(lane), int(simds));
}
kernel void neutral(device float* out [[buffer(0)]], device int* whole [[buffer(1)]]) {
  out[0] = Sum::neutral<float>(); out[1] = Product::neutral<float>();
  out[2] = Max::neutral<float>(); out[3] = Min::neutral<float>();
  whole[0] = Max::neutral<int>(); whole[1] = Min::neutral<int>();
}
kernel void rows(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                 uint lane [[thread_index_in_simdgroup]]) {
  const int at = steel_fragment_row(int(lane)) * 8 + steel_fragment_column(int(lane));
  const float2 mine = float2(x[at], x[at + 1]);
  out[lane] = fragment_row_sum(mine);
  out[32 + lane] = fragment_row_max(mine);
}
kernel void special(device const float* x [[buffer(0)]], device float* out [[buffer(1)]], constant int& n [[buffer(2)]],
                    uint i [[thread_position_in_grid]]) {
  out[i] = erf_float(x[i]);
  out[n + i] = erfc_float(x[i]);
}
"""


@pytest.fixture(scope="module")
def library() -> metalsim.ShaderLibrary:
    lines: list[str] = []
    pasted: set[Any] = set()
    for name in ("loader.h", "fragment.h", "reduce.h", "math.h"):
        path = _launch.INCLUDE / "steel" / name
        if path not in pasted:
            _launch._paste(path, lines, pasted)
    with metalsim.options(check=True):
        return metalsim.compile_shader("\n".join(lines) + '\n#line 1 "test"\n' + KERNELS)


@pytest.fixture(params=SCHEDULES, ids=lambda s: "-".join(map(str, s)), autouse=True)
def _checking(request: pytest.FixtureRequest) -> Iterator[None]:
    schedule, order, seed = request.param
    with metalsim.options(check=True, schedule=schedule, order=order, seed=seed) as session:
        yield
    assert not session.findings, session.report().text()


def test_an_element_has_an_offset_inside_and_none_outside(library: metalsim.ShaderLibrary) -> None:
    out = torch.empty(100, 2, dtype=torch.int64)
    library.element(out, [4, 5], threads=100, arg_casts={1: "int32"})
    for i, (plain, strided) in enumerate(out.tolist()):
        row, column = divmod(i, 10)
        inside = row < 4 and column < 5
        assert plain == (row * 100 + column if inside else -1)
        assert strided == (row * 100 + column * 10 if inside else -1)


def test_what_is_left_of_a_size_is_at_most_a_tile(library: metalsim.ShaderLibrary) -> None:
    out = torch.empty(12, dtype=torch.int32)
    library.left(out, [7, 4], threads=12, arg_casts={1: "int32"})
    assert out.tolist() == [4, 4, 4, 4, 3, 2, 1, 0, -1, -2, -3, -4]


def test_the_lanes_of_a_fragment_have_each_element_once(library: metalsim.ShaderLibrary) -> None:
    out = torch.empty(32, 2, dtype=torch.int32)
    library.fragment(out, threads=32)
    places = [(row, column + i) for row, column in out.tolist() for i in (0, 1)]
    assert sorted(places) == list(itertools.product(range(8), range(8)))


@pytest.mark.parametrize("shape", [(32, 16, 64), (5, 12, 32), (3, 7, 64), (9, 24, 32)], ids=str)
def test_the_loader_brings_what_is_inside_and_zeros_beside_it(
    library: metalsim.ShaderLibrary, shape: tuple[int, int, int]
) -> None:
    rows, columns, threads = shape
    dtype = torch.float16 if shape[0] == 9 else torch.float32
    kernel = getattr(library, "load_" + "_".join(map(str, shape)))
    for r, c in itertools.product((0, 1, rows - 1, rows), (0, 1, columns - 1, columns)):
        stride = columns + 5
        x = torch.arange(1, 1 + max(1, r * stride), dtype=dtype)
        inside = x[: (r - 1) * stride + c] if r and c else x[:0]  # exactly what may be read
        out = torch.full((rows, columns), float("nan"), dtype=dtype)
        want = torch.zeros(rows, columns, dtype=dtype)
        if r and c:
            want[:r, :c] = x.as_strided((r, c), (stride, 1))
        kernel(inside, out, [r, c, stride], threads=threads, group_size=threads, arg_casts={2: "int32"})
        assert torch.equal(out, want), f"{r} x {c} of {shape}"


@pytest.mark.parametrize("simdgroups", [1, 2, 5, 31, 32])
def test_a_reduction_gives_every_thread_the_combination_of_all(
    library: metalsim.ShaderLibrary, simdgroups: int
) -> None:
    threads = 32 * simdgroups
    x = torch.randperm(threads, generator=torch.Generator().manual_seed(1)).float() / 512 + 0.25
    out = torch.empty(4, threads)
    library.reduce(x, out, threads=threads, group_size=threads)
    for values in out:
        assert bool((values == values[0]).all()), "not the same bits in every thread"
    assert out[0, 0].item() == pytest.approx(x.double().sum().item(), rel=1e-6)
    assert (out[1, 0], out[2, 0]) == (x.max(), x.min())
    assert out[3, 0].item() == pytest.approx(x.double().prod().item(), rel=1e-4, abs=1e-30)


def test_a_nan_wins_and_infinities_count_in_a_reduction(library: metalsim.ShaderLibrary) -> None:
    for place in (0, 31, 32, 63):
        for value in (float("nan"), float("inf"), -float("inf")):
            x = torch.ones(64)
            x[place] = value
            out = torch.empty(4, 64)
            library.reduce(x, out, threads=64, group_size=64)
            want = torch.stack((x.sum(), x.max(), x.min(), x.prod()))
            assert torch.equal(out[:, 0].nan_to_num(nan=7.0), want.nan_to_num(nan=7.0)), f"{value} at {place}"


def test_neutral_elements_change_nothing(library: metalsim.ShaderLibrary) -> None:
    out, whole = torch.empty(4), torch.empty(2, dtype=torch.int32)
    library.neutral(out, whole, threads=1)
    assert out.tolist() == [0.0, 1.0, -float("inf"), float("inf")]
    assert whole.tolist() == [-(2**31), 2**31 - 1]


def test_a_row_of_a_fragment_is_reduced_over_its_eight_columns(library: metalsim.ShaderLibrary) -> None:
    x, out = torch.randn(8, 8), torch.empty(2, 32)
    library.rows(x, out, threads=32, group_size=32)
    lanes = torch.arange(32)
    row = (lanes >> 4 & 1) * 4 + (lanes >> 1 & 3)
    assert torch.allclose(out[0], x.sum(1)[row], atol=1e-5)
    assert torch.equal(out[1], x.max(1).values[row])


def test_the_error_function_is_within_four_units_of_the_last_place(library: metalsim.ShaderLibrary) -> None:
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-40, 1.0, -1.0])))
    out = torch.empty(2, x.numel())
    library.special(x, out, x.numel(), threads=x.numel(), arg_casts={2: "int32"})
    erf, erfc = torch.erf(x.double()), torch.special.erfc(x.double())
    assert float(((out[0] - erf).abs() / erf.abs().clamp(min=1e-38)).max()) < 4 * 2.0**-24 * 2
    # The tail has the error of exp(-x * x), whose argument is rounded: 1e-5 where erfc is 1e-38.
    normal = erfc > 1e-37
    assert float(((out[1] - erfc).abs() / erfc)[normal].max()) < 1e-5
    assert float(out[1][~normal].max()) < 1e-36


def test_the_error_function_has_its_limits_and_keeps_nan(library: metalsim.ShaderLibrary) -> None:
    x, out = torch.tensor([float("inf"), -float("inf"), float("nan")]), torch.empty(2, 3)
    library.special(x, out, 3, threads=3, arg_casts={2: "int32"})
    assert out[:, :2].tolist() == [[1.0, -1.0], [0.0, 2.0]]
    assert bool(out[:, 2].isnan().all())
