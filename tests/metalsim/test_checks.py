"""What checking mode finds in Metal source, beyond the planted-defect corpus, and what it must not find."""

from __future__ import annotations

import functools

import pytest
import torch

from steelworks import metalsim

SOURCE = """#include <metal_stdlib>
using namespace metal;
#define AT uint i [[thread_position_in_threadgroup]]

struct Row { float4 values; float weight; float3 colour; };
constant float table[2][3] = {{1, 2, 3}, {4, 5, 6}};

kernel void column_of_table(device float* o, constant uint& column, AT) { o[i] = table[0][column]; }
kernel void index_of_local(device float* o, constant uint& at, AT) {
  float kept[4] = {1, 2, 3, 4};
  o[i] = kept[at % 8];
}
template <int N> struct Kept {
  float values[N];  // at the end of a struct, where C takes an array to go on
  float get(uint at) const thread { return values[at]; }
};
kernel void index_of_member(device float* o, constant uint& at, AT) {
  Kept<4> kept;
  for (int k = 0; k < 4; ++k) kept.values[k] = o[i] + k;
  o[i] = kept.get(at % 8);
}
struct Pair {
  float value;
  int place;
  float sum() const thread { return value + place; }
};
float sum_of_row(constant float* row) { return row[0] + row[1]; }
float value_of(thread const Pair& pair) { return pair.value; }
#define KEPT Pair kept[4]; for (int k = 0; k < 4; ++k) kept[k] = Pair{o[i] + k, k}
kernel void copy_of_struct(device float* o, constant uint& at, AT) {
  KEPT;
  const Pair one = kept[at];
  o[i] = one.value + one.place;
}
kernel void method_of_struct(device float* o, constant uint& at, AT) { KEPT; o[i] = kept[at].sum(); }
kernel void reference_to_struct(device float* o, constant uint& at, AT) { KEPT; o[i] = value_of(kept[at]); }
kernel void row_of_table(device float* o, constant uint& at, AT) { o[i] = sum_of_row(table[at / 2]); }
kernel void end_of_local(device float* o, constant uint& count, AT) {
  float kept[4] = {1, 2, 3, 4}, sum = 0;
  for (thread const float* from = kept; from < kept + count; ++from) sum += *from;
  o[i] = sum;
}

kernel void load_vector(device const float* x, device float* o, constant uint& at, AT) {
  o[i] = (*(device const float4*)(x + at)).w;
}
kernel void copy_vector(device const float* x, device float4* o, constant uint& at, AT) {
  o[i] = *(device const float4*)(x + at);
}
kernel void store_vector(device const float* x, device half* o, constant uint& at, AT) {
  *(device half4*)(o + at) = half4(x[i]);
}
kernel void copy_struct(device const float* x, device Row* o, constant uint& at, AT) {
  Row row = *(device const Row*)(x + at);
  o[i] = row;
}
kernel void reinterpret(device const float* x, device uint* o, constant uint& at, AT) {
  o[i] = as_type<uint4>(*(device const float4*)(x + at)).y;
}
kernel void packed(device const float* x, device float* o, constant uint& at, AT) {
  packed_float4 v = *(device const packed_float4*)(x + at);
  float3 w = *(device const packed_float3*)(x + at);
  *(device packed_float2*)(o + at) = packed_float2(v.x + w.y, float4(v).z);
}
kernel void move_vectors(device const float4* x, device float4* o, AT) {
  threadgroup float4 tile[32];
  tile[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = tile[31 - i];
}

kernel void broadcast(device float* o, constant uint& lane, AT) { o[i] = simd_broadcast(float(i), lane); }
kernel void shuffle(device float* o, constant uint& lane, AT) { o[i] = simd_shuffle(float(i), lane); }
kernel void shuffle_xor(device float* o, constant uint& mask, AT) { o[i] = simd_shuffle_xor(float(i), mask); }
kernel void quad_spread(device float* o, constant uint& lane, AT) { o[i] = quad_broadcast(float(i), lane); }
kernel void quad_xor(device float* o, constant uint& mask, AT) { o[i] = quad_shuffle_xor(float(i), mask); }

kernel void sum_in_branch(device float* o, AT) {
  float sum = -1;
  if (i % 32 < 8) sum = simd_sum(float(i % 32));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = sum;
}
kernel void sum_of_those_left(device float* o, AT) {
  o[i] = -1;
  if (i % 32 >= 8) return;
  o[i] = simd_any(i == 1) ? simd_sum(float(i % 32)) : -2;
}
kernel void quad_in_branch(device float* o, AT) {
  float sum = -1;
  if (i % 4 < 2) sum = quad_sum(1.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = sum;
}
kernel void loop_of_unequal_length(device float* o, AT) {
  float sum = 0;
  for (uint step = 0; step < i % 32; ++step) sum += simd_sum(1);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = sum;
}
kernel void two_functions(device float* o, AT) {
  if (i % 32 < 8) o[i] = simd_sum(1.0f);
  else o[i] = simd_max(float(i));
}
kernel void function_and_barrier(device float* o, AT) {
  o[i] = 0;
  if (i % 32 < 8) o[i] = simd_sum(1.0f);
  else simdgroup_barrier(mem_flags::mem_none);
}
kernel void barrier_of_some(device float* o, AT) {
  if (i % 32 < 8) simdgroup_barrier(mem_flags::mem_none);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = 0;
}
kernel void lane_at_barrier(device float* o, AT) {
  float value = 0;
  if (i % 32 < 8) value = simd_shuffle(float(i), 9);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = value;
}

kernel void large_frame(device float* o, constant uint& count, AT) {
  float kept[512 * 1024];
  for (uint at = 0; at < count; ++at) kept[at] = at ^ i;
  o[i] = kept[count / 2];
}
"""
SCHEDULES = [(schedule, order) for schedule in ("ring", "run_ahead") for order in ("forward", "reverse")]


@functools.cache
def library() -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, name="checks")


def run(kernel: str, *arguments: object, threads: int = 64, **options: object) -> metalsim.Session:
    """One threadgroup; integers are bound as uint."""
    casts = {n: "int32" for n, a in enumerate(arguments) if isinstance(a, int)}
    with metalsim.options(**{"check": True, **options}) as session:  # type: ignore[arg-type]
        getattr(library(), kernel)(*arguments, threads=threads, group_size=threads, arg_casts=casts or None)
    return session


def kinds(session: metalsim.Session) -> list[str]:
    return sorted({finding.kind for finding in session.findings})


def line_of(kernel: str, words: str) -> int:
    lines = SOURCE.split("\n")
    start = next(n for n, line in enumerate(lines) if f"void {kernel}(" in line)
    return 1 + next(n for n in range(start, len(lines)) if words in lines[n])


# bounds of arrays


def test_an_index_past_a_row_is_found_though_it_stays_inside_the_array() -> None:
    (finding,) = run("column_of_table", torch.zeros(1), 3, threads=1).findings
    assert finding.kind == "out_of_bounds"
    assert finding.first is not None and finding.first.line == line_of("column_of_table", "table[0]")
    assert "index 3" in finding.detail
    assert kinds(run("column_of_table", torch.zeros(1), 2, threads=1)) == []


def test_an_index_past_a_local_array_is_found() -> None:
    assert kinds(run("index_of_local", torch.zeros(1), 5, threads=1)) == ["out_of_bounds"]
    assert kinds(run("index_of_local", torch.zeros(1), 3, threads=1)) == []


def test_an_index_past_a_local_array_at_the_end_of_a_struct_is_found() -> None:
    assert kinds(run("index_of_member", torch.zeros(1), 5, threads=1)) == ["out_of_bounds"]
    assert kinds(run("index_of_member", torch.zeros(1), 3, threads=1)) == []


@pytest.mark.parametrize(
    "kernel", ["copy_of_struct", "method_of_struct", "reference_to_struct", "row_of_table"]
)
def test_the_element_after_an_array_is_found_though_it_is_not_read_as_a_number(kernel: str) -> None:
    (finding,) = run(kernel, torch.zeros(1), 4, threads=1).findings
    assert finding.kind == "out_of_bounds"
    assert f"index {2 if kernel == 'row_of_table' else 4} of an array" in finding.detail
    assert kinds(run(kernel, torch.zeros(1), 3, threads=1)) == []


def test_a_pointer_to_the_end_of_an_array_is_no_access() -> None:
    assert kinds(run("end_of_local", torch.zeros(1), 4, threads=1)) == []


# alignment of vectors


@pytest.mark.parametrize(
    ("kernel", "words", "output"),
    [
        ("load_vector", "float4*)", torch.zeros(1)),
        ("copy_vector", "float4*)", torch.zeros(4)),
        ("copy_struct", "Row*)", torch.zeros(12)),
        ("reinterpret", "float4*)", torch.zeros(1, dtype=torch.int32)),
    ],
)
def test_a_vector_read_where_only_its_components_are_aligned_is_found(
    kernel: str, words: str, output: torch.Tensor
) -> None:
    x = torch.arange(32, dtype=torch.float32)
    findings = run(kernel, x, output, 3, threads=1).findings
    assert {f.kind for f in findings} == {"misaligned"}
    assert findings[0].variable == "x" and findings[0].offset >= 12
    assert findings[0].first is not None and findings[0].first.line == line_of(kernel, words)
    assert run(kernel, x, output, 4, threads=1).findings == ()


def test_a_vector_written_where_only_its_components_are_aligned_is_found() -> None:
    out = torch.zeros(8, dtype=torch.half)
    (finding,) = run("store_vector", torch.ones(1), out, 2, threads=1).findings
    assert (finding.kind, finding.variable, finding.offset, finding.bytes) == ("misaligned", "o", 4, 8)
    assert out.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert run("store_vector", torch.ones(1), out, 4, threads=1).findings == ()


def test_packed_vectors_need_the_alignment_of_their_components_only() -> None:
    out = torch.zeros(8)
    assert run("packed", torch.arange(8, dtype=torch.float32), out, 3, threads=1).findings == ()
    assert out[3:5].tolist() == [3 + 4, 5]


def test_a_union_with_a_vector_is_copied_in_checking_mode_too() -> None:
    source = """#include <metal_stdlib>
union Bits { float4 v; uint words[4]; };
kernel void copy(device const Bits* x, device Bits* o) { Bits b = x[0]; b.words[1] += 1; o[0] = b; }
"""
    x, out = torch.arange(4, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    with metalsim.options(check=True) as session:
        metalsim.compile_shader(source).copy(x, out, threads=1)
    assert session.findings == ()
    assert out.tolist() == [0, 2, 2, 3]


def test_a_copy_of_a_vector_counts_its_bytes_once() -> None:
    x, out = torch.rand(32, 4), torch.zeros(32, 4)
    counters = run("move_vectors", x, out, threads=32).counters
    assert torch.equal(out, x.flip(0))
    assert (counters.device_read, counters.device_written) == (512, 512)
    assert (counters.group_read, counters.group_written) == (512, 512)


# lanes


@pytest.mark.parametrize(
    ("kernel", "valid", "absent"),
    [
        ("broadcast", 31, 32),
        ("shuffle", 31, 40),
        ("shuffle_xor", 31, 32),
        ("quad_spread", 3, 4),
        ("quad_xor", 3, 4),
    ],
)
def test_a_lane_that_no_simdgroup_has_is_absent(kernel: str, valid: int, absent: int) -> None:
    assert kinds(run(kernel, torch.zeros(64), absent)) == ["absent_lane"]
    assert kinds(run(kernel, torch.zeros(64), valid)) == []


LEGAL = {
    "sum_in_branch": [28.0 if i % 32 < 8 else -1.0 for i in range(64)],
    "sum_of_those_left": [[-1.0, 28.0, -2.0][(i % 32 < 8) * (1 + i // 32)] for i in range(64)],
    "quad_in_branch": [2.0, 2.0, -1.0, -1.0] * 16,
    "loop_of_unequal_length": [float(sum(31 - s for s in range(i % 32))) for i in range(64)],
}


@pytest.mark.parametrize("kernel", LEGAL)
@pytest.mark.parametrize(("schedule", "order"), SCHEDULES)
def test_a_simdgroup_function_works_on_the_lanes_that_come_to_it(
    kernel: str, schedule: str, order: str
) -> None:
    out = torch.zeros(64)
    assert run(kernel, out, schedule=schedule, order=order).findings == ()
    assert out.tolist() == LEGAL[kernel]


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("two_functions", "divergent_simd"),
        ("function_and_barrier", "divergent_simd"),
        ("barrier_of_some", "divergent_barrier"),
        ("lane_at_barrier", "absent_lane"),
    ],
)
@pytest.mark.parametrize(("schedule", "order"), SCHEDULES)
def test_lanes_that_wait_for_each_other_at_different_places_are_found(
    kernel: str, kind: str, schedule: str, order: str
) -> None:
    assert kinds(run(kernel, torch.zeros(64), schedule=schedule, order=order)) == [kind]


# stacks


@pytest.mark.parametrize("check", [False, True])
def test_a_frame_larger_than_the_stack_is_an_overflow_whatever_it_touches_first(check: bool) -> None:
    session = run("large_frame", torch.zeros(4), 8, threads=4, check=check)
    assert kinds(session) == ["stack_overflow"]
    roomy = run("large_frame", torch.zeros(4), 8, threads=4, check=check, stack_bytes=4 << 20)
    assert kinds(roomy) == []
