"""The supported subset of Metal, one test an idiom; docs/metal_subset.md names them.

Kernels are grouped into few sources, because a compilation costs more than a launch.
"""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import pytest
import torch

from steelworks import metalsim
from steelworks.metalsim.errors import MetalSyntaxError, UnknownKernelError

HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


@functools.cache
def library(source: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(HEADER + source)


def numbers(kernel: metalsim.MetalKernel, count: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """What a kernel with one output buffer writes, run by one thread."""
    out = torch.zeros(count, dtype=dtype)
    kernel(out, threads=1)
    return out.tolist()


def per_lane(kernel: metalsim.MetalKernel, threads: int = 32, dtype: torch.dtype = torch.int32) -> list[int]:
    """What each thread of one threadgroup writes."""
    out = torch.zeros(threads, dtype=dtype)
    kernel(out, threads=threads, group_size=threads)
    return out.tolist()


def refused(source: str, *words: str) -> MetalSyntaxError:
    """The error for a source outside the subset; it must contain the words."""
    with pytest.raises(SyntaxError) as caught:
        metalsim.compile_shader(HEADER + source)
    error = caught.value
    assert isinstance(error, MetalSyntaxError)
    for word in words:
        assert word in str(error)
    return error


# vectors

VECTORS = """
kernel void construct(device float* o) {
  float2 a(1, 2);
  float4 b = float4(a, 3, 4), c = float4(0.5, a, 9), d = float4(float3(7.0f), 8), e = 6;
  float3 f = {1, 2, 3};
  uint4 g = {8, 9};
  o[0] = b.x; o[1] = b.w; o[2] = c.z; o[3] = c.w; o[4] = d.z; o[5] = d.w; o[6] = e.y; o[7] = f.z + g.y + g.z;
}
kernel void swizzle(device float* o) {
  float4 v(1, 2, 3, 4);
  v.xy = v.yx;
  v.zw *= 10.0f;
  v.r += 100;
  float3 w = v.bgr;
  float4 s = v.xxyy;
  o[0] = v.x; o[1] = v.y; o[2] = v.z; o[3] = v.w; o[4] = w.x; o[5] = w.z; o[6] = s.y; o[7] = s.w;
}
kernel void subscript(device float* o) {
  float4 v(1, 2, 3, 4);
  for (int i = 0; i < 4; ++i) v[i] = v[i] * i;
  for (int i = 0; i < 4; ++i) o[i] = v[i];
}
kernel void arithmetic(device float* o) {
  float2 v(6, 8);
  float2 a = v * 2 + 1, b = -v / float2(2, 4), c = 1.0 - v;
  int4 i = (int4(1, 2, 3, 4) << 2) & 12;
  uint2 u = uint2(7, 9) % 4;
  o[0] = a.x; o[1] = a.y; o[2] = b.x; o[3] = b.y; o[4] = c.x; o[5] = i.w; o[6] = u.x; o[7] = (~int2(0)).x;
}
kernel void compare(device float* o) {
  float4 v(1, 2, 3, 4);
  bool4 small = v < 3.0f;
  float4 s = select(v, float4(0), small);
  o[0] = small.x; o[1] = small.z; o[2] = any(small); o[3] = all(small); o[4] = s.x; o[5] = s.w;
  o[6] = sizeof(bool4);
  o[7] = all(!small || v == v);
}
kernel void convert(device float* o) {
  float4 v(1.75, -2.75, 300, 4);
  int4 i = int4(v);
  half4 h = half4(v);
  uchar2 b = uchar2(float2(3.9, 200));
  bool2 t = bool2(int2(0, 5));
  o[0] = i.x; o[1] = i.y; o[2] = float(h.z); o[3] = b.x; o[4] = b.y; o[5] = t.x; o[6] = t.y;
}
kernel void packed(device packed_float3* p, device float* o) {
  float3 v = p[1] * 2.0f;
  p[0] = v + p[1];
  packed_char4 c = packed_char4(1, 2, 3, 4);
  o[0] = p[0][2]; o[1] = sizeof(packed_float3); o[2] = sizeof(float3); o[3] = c.w; o[4] = dot(p[1], v);
  o[5] = p[0].x;
}
template <typename T> T pair_of(float a, float b) { return T(a, b); }
kernel void dependent(device float* o) {
  float2 f = pair_of<float2>(1, 2);
  half2 h = pair_of<half2>(3, 4);
  vec<int, 2> i = pair_of<vec<int, 2>>(5, 6);
  o[0] = f.y; o[1] = float(h.y); o[2] = i.y; o[3] = is_same_v<vec<float, 2>, float2>;
}
kernel void matrices(device float* o) {
  float2x2 m = float2x2(float2(1, 2), float2(3, 4));
  float2 v = m * float2(1, 1), w = float2(1, 1) * m;
  float2x2 t = transpose(m) * m;
  float3x3 e(2.0f);
  o[0] = v.x; o[1] = v.y; o[2] = w.x; o[3] = w.y; o[4] = t[0][1]; o[5] = determinant(m); o[6] = e[1].y;
  o[7] = e[1].x;
}
"""


def test_vectors_are_made_of_scalars_and_vectors() -> None:
    assert numbers(library(VECTORS).construct, 8) == [1, 4, 2, 9, 7, 8, 6, 12]


def test_swizzles_are_read_and_written() -> None:
    assert numbers(library(VECTORS).swizzle, 8) == [102, 1, 30, 40, 30, 102, 102, 1]


def test_a_vector_has_subscripts() -> None:
    assert numbers(library(VECTORS).subscript, 4) == [0, 2, 6, 12]


def test_vectors_compute_by_component_also_with_scalars() -> None:
    assert numbers(library(VECTORS).arithmetic, 8) == [13, 17, -3, -2, -5, 0, 3, -1]


def test_a_comparison_gives_a_vector_of_bool() -> None:
    assert numbers(library(VECTORS).compare, 8) == [1, 0, 1, 0, 0, 4, 4, 1]


def test_vector_conversion_is_by_value_and_not_of_bits() -> None:
    assert numbers(library(VECTORS).convert, 7) == [1, -2, 300, 3, 200, 0, 1]


def test_packed_vectors_have_no_padding_and_compute_as_vectors() -> None:
    packed, out = torch.tensor([0.0, 0, 0, 1, 2, 3]), torch.zeros(6)
    library(VECTORS).packed(packed, out, threads=1)
    assert out.tolist() == [9, 12, 16, 4, 28, 3]
    assert packed[:3].tolist() == [3, 6, 9]


def test_a_dependent_type_constructs_vectors() -> None:
    assert numbers(library(VECTORS).dependent, 4) == [2, 4, 6, 1]


def test_small_matrices_multiply_by_columns() -> None:
    assert numbers(library(VECTORS).matrices, 8) == [4, 6, 3, 7, 11, -2, 2, 0]


def test_a_vector_does_not_convert_to_another_silently() -> None:
    refused(
        "kernel void k(device half4* o, device float4* i) { o[0] = i[0]; }", ":3:", "no viable overloaded '='"
    )


def test_a_swizzle_with_a_repeated_component_can_not_be_assigned() -> None:
    refused("kernel void k(device float2* o) { o[0].xx = float2(1, 2); }", "repeats a component")


# scalars and literals

SCALARS = """
constant float kTable[3] = {1.5, 2.5, 1e1};
constant constexpr int kCount = 3;
static constexpr constant uint kMask = 0xffu;
kernel void literals(device float* o) {
  o[0] = 1.0 / 3.0; o[1] = sizeof(1.0); o[2] = sizeof(0.5h); o[3] = float(1.5h) + float(0.25bf);
  o[4] = 1e-3; o[5] = 0x1p-2;
  o[6] = .5; o[7] = 2.;
}
kernel void constants(device float* o) {
  float sum = 0;
  for (int i = 0; i < kCount; ++i) sum += kTable[i];
  o[0] = sum; o[1] = kMask; o[2] = M_PI_F; o[3] = INFINITY;
  o[4] = FLT_MAX == numeric_limits<float>::max(); o[5] = INT_MAX;
}
kernel void halves(device float* o) {
  half a = 2048, b = 1;
  o[0] = float(a + b); o[1] = float(half(1.0f / 3.0f)); o[2] = float(numeric_limits<half>::max());
  o[3] = float(half(1e-8f)); o[4] = sizeof(half); o[5] = float(a * half(32) + b);
}
kernel void bfloats(device float* o) {
  bfloat a = bfloat(256.0f), b = bfloat(1.0f);
  half h = half(1.5f);
  o[0] = float(a + b); o[1] = float(bfloat(h)); o[2] = float(half(bfloat(2.5f))); o[3] = sizeof(bfloat);
  o[4] = a * 1.5f; o[5] = a > b;
}
kernel void bits(device float* o) {
  o[0] = as_type<uint>(1.0f) == 0x3f800000u; o[1] = as_type<float>(0x40000000);
  o[2] = as_type<half2>(0x3c003c00u).y == 1.0h;
  o[3] = as_type<long>(int2(1, 1)) == 0x100000001l;
}
kernel void sizes(device float* o) {
  o[0] = sizeof(long); o[1] = sizeof(size_t); o[2] = sizeof(uchar); o[3] = sizeof(float3x3);
  o[4] = sizeof(atomic_bool);
  o[5] = sizeof(char) == 1 && char(-1) < 0; o[6] = sizeof(uint64_t); o[7] = is_same_v<int64_t, long>;
}
struct Params { int n; float scale; uchar flags[4]; };
kernel void structs(constant Params& p, device float* o) { o[0] = p.n * p.scale + p.flags[2]; }
kernel void lambdas(device float* o) {
  auto square = [](float x) { return x * x; };
  if constexpr (sizeof(float) == 4) o[0] = square(3.0f);
  array<int, 3> a = {1, 2, 3};
  int sum = 0;
  for (int v : a) sum += v;
  o[1] = sum; o[2] = a.size();
}
"""


def test_floating_literals_are_float_half_or_bfloat_never_double() -> None:
    third = float(torch.tensor(1 / 3, dtype=torch.float32))
    milli = float(torch.tensor(1e-3, dtype=torch.float32))
    assert numbers(library(SCALARS).literals, 8) == [third, 4, 2, 1.75, milli, 0.25, 0.5, 2]


def test_constants_live_at_program_scope() -> None:
    pi = float(torch.tensor(math.pi, dtype=torch.float32))
    assert numbers(library(SCALARS).constants, 6) == [14, 255, pi, math.inf, 1, 2**31]


def test_half_rounds_after_every_operation() -> None:
    third = float(torch.tensor(1 / 3, dtype=torch.float16))
    assert numbers(library(SCALARS).halves, 6) == [2048, third, 65504, 0, 2, math.inf]


def test_bfloat_rounds_converts_to_half_and_computes_with_float() -> None:
    assert numbers(library(SCALARS).bfloats, 6) == [256, 1.5, 2.5, 2, 384, 1]


def test_as_type_keeps_the_bits() -> None:
    assert numbers(library(SCALARS).bits, 4) == [1, 2, 1, 1]


def test_scalar_sizes_are_those_of_metal() -> None:
    assert numbers(library(SCALARS).sizes, 8) == [8, 8, 1, 48, 4, 1, 8, 1]


def test_a_constant_struct_is_bound_from_bytes() -> None:
    out = torch.zeros(1)
    data = torch.tensor([3], dtype=torch.int32).view(torch.uint8), torch.tensor([0.5]).view(torch.uint8)
    params = torch.cat((*data, torch.tensor([1, 2, 3, 4], dtype=torch.uint8)))
    library(SCALARS).structs(params, out, threads=1)
    assert out.item() == 4.5


def test_lambdas_if_constexpr_arrays_and_range_for() -> None:
    assert numbers(library(SCALARS).lambdas, 3) == [9, 6, 3]


def test_double_is_refused_with_its_line() -> None:
    error = refused(
        "kernel void k(device float* o) {\n  double x = 1;\n  o[0] = x; }", "program_source:4", "double"
    )
    assert (error.filename, error.lineno) == ("program_source", 4)


# templates and names

TEMPLATES = """
template <typename T, int N>
kernel void fill(device T* o [[buffer(0)]], uint i [[thread_position_in_grid]]) { o[i] = T(N) + T(i); }
template [[host_name("fill_" "float")]] kernel void fill<float, 5>(device float*, uint);
template [[host_name("fill_int")]] [[kernel]] void fill<int, 7>(device int* o [[buffer(0)]],
  uint i [[thread_position_in_grid]]);
#define INSTANTIATE(name, \
  ...) template [[host_name(#name)]] [[kernel]] decltype(fill<__VA_ARGS__>) fill<__VA_ARGS__>;
INSTANTIATE(fill_half, half, 9)
namespace deep { namespace inner {
template <typename T> [[kernel]] void set(device T* o) { o[0] = T(3); }
} }
template [[host_name("set_long")]] kernel void ::deep::inner::set<long>(device long* o);
namespace named { kernel void plain(device float* o) { o[0] = 1; } }
template <typename T> struct Op { static T apply(T a) { return a + T(1); } };
template <typename T, template <typename> class F> kernel void mapped(device T* o) {
  o[0] = F<T>::apply(o[0]); }
template [[host_name("mapped_float")]] kernel void mapped<float, Op>(device float*);
[[kernel]] void attribute_form(device float* o) { o[0] = 4; }
[[max_total_threads_per_threadgroup(64)]] kernel void limited(device float* o) { o[0] = 5; }
template <int N>
[[kernel, max_total_threads_per_threadgroup(N * 32)]] void limited_by(device float* o) { o[0] = N; }
template [[host_name("limited_by_3")]] [[kernel]] decltype(limited_by<3>) limited_by<3>;
struct Worker { static void run(threadgroup float* s [[threadgroup(0)]]) { s[0] = 1; } };
"""


def test_template_kernels_are_named_by_host_name() -> None:
    lib = library(TEMPLATES)
    for name, dtype, first in (
        ("fill_float", torch.float32, 5),
        ("fill_int", torch.int32, 7),
        ("fill_half", torch.float16, 9),
    ):
        out = torch.zeros(3, dtype=dtype)
        getattr(lib, name)(out)
        assert out.tolist() == [first, first + 1, first + 2]


def test_a_kernel_template_in_a_namespace_is_instantiated_from_outside() -> None:
    assert numbers(library(TEMPLATES).set_long, 1, torch.int64) == [3]


def test_a_kernel_in_a_namespace_has_a_qualified_name() -> None:
    assert numbers(getattr(library(TEMPLATES), "named::plain"), 1) == [1]


def test_template_template_parameters_work() -> None:
    assert numbers(library(TEMPLATES).mapped_float, 1) == [1]


def test_kernel_may_be_an_attribute() -> None:
    assert numbers(library(TEMPLATES).attribute_form, 1) == [4]


def test_a_kernel_may_limit_its_threadgroup() -> None:
    assert library(TEMPLATES).limited.max_threads_per_threadgroup == 64
    assert library(TEMPLATES).limited_by_3.max_threads_per_threadgroup == 96


def test_a_template_that_is_not_instantiated_is_no_kernel() -> None:
    assert "fill" not in dir(library(TEMPLATES))


def test_two_kernels_of_one_name_are_refused() -> None:
    refused(
        "template <typename T> kernel void f(device T* o) { o[0] = 1; }\n"
        'template [[host_name("x")]] kernel void f<float>(device float*);\n'
        'template [[host_name("x")]] kernel void f<int>(device int*);',
        "two kernels are named 'x'",
    )


# parameters

PARAMETERS = """
kernel void implicit(device float* a, constant float& b, const device float c[3],
  uint i [[thread_position_in_grid]]) {
  a[i] = b + c[i];
}
constant constexpr int kSlot = 2;
kernel void numbered(device float* a [[buffer(1)]], constant int& b [[ buffer(kSlot) ]],
  device float& c [[buffer(0)]]) {
  a[0] = b; c = 8;
}
kernel void positions(device uint* o, uint3 g [[thread_position_in_grid]],
  ushort2 t [[thread_position_in_threadgroup]],
                      uint2 tg [[threadgroup_position_in_grid]], uint3 n [[threads_per_grid]],
                      uint2 tgs [[threadgroups_per_grid]], ushort3 size [[threads_per_threadgroup]],
                      uint2 asked [[dispatch_threads_per_threadgroup]]) {
  device uint* p = o + 10 * (g.y * n.x + g.x);
  p[0] = g.x; p[1] = g.y; p[2] = t.x; p[3] = t.y; p[4] = tg.x; p[5] = n.x; p[6] = tgs.x; p[7] = size.x;
  p[8] = asked.x;
  p[9] = size.y;
}
kernel void indices(device uint* o, uint i [[thread_position_in_grid]],
  ushort t [[thread_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]], uint sg [[simdgroup_index_in_threadgroup]],
                    uint sgs [[simdgroups_per_threadgroup]], ushort width [[threads_per_simdgroup]],
                    uint quad [[quadgroup_index_in_threadgroup]], uint ql [[thread_index_in_quadgroup]],
                    uint quads [[quadgroups_per_threadgroup]], uint w2 [[thread_execution_width]]) {
  device uint* p = o + 9 * i;
  p[0] = t; p[1] = lane; p[2] = sg; p[3] = sgs; p[4] = width; p[5] = quad; p[6] = ql; p[7] = quads; p[8] = w2;
}
kernel void pointers(constant ulong* addresses, device float* o) {
  device float* first = reinterpret_cast<device float*>(addresses[0]);
  device float* second = reinterpret_cast<device float*>(addresses[1]);
  o[0] = first[0] + second[1];
}
"""


def test_buffers_without_an_index_are_numbered_in_order() -> None:
    a, c = torch.zeros(3), torch.tensor([1.0, 2, 3])
    library(PARAMETERS).implicit(a, 0.5, c)
    assert a.tolist() == [1.5, 2.5, 3.5]


def test_buffer_indices_may_be_constant_expressions() -> None:
    first, second = torch.zeros(1), torch.zeros(1)
    library(PARAMETERS).numbered(first, second, 6, arg_casts="int32", threads=1)
    assert (first.item(), second.item()) == (8, 6)


def test_positions_have_the_type_the_kernel_asks_for_and_edge_groups_shrink() -> None:
    out = torch.zeros(5 * 3, 10, dtype=torch.int32)
    library(PARAMETERS).positions(out, threads=(5, 3), group_size=(4, 2))
    assert out[0].tolist() == [0, 0, 0, 0, 0, 5, 2, 4, 4, 2]
    assert out[4 + 5 * 2].tolist() == [4, 2, 0, 0, 1, 5, 2, 1, 4, 1]


def test_indices_in_threadgroup_simdgroup_and_quadgroup() -> None:
    out = torch.zeros(70, 9, dtype=torch.int32)
    library(PARAMETERS).indices(out, threads=70, group_size=70)
    assert out[69].tolist() == [69, 5, 2, 3, 32, 17, 1, 18, 32]


def test_a_list_of_tensors_is_an_array_of_addresses() -> None:
    out = torch.zeros(1)
    library(PARAMETERS).pointers([torch.tensor([1.0]), torch.tensor([5.0, 7.0])], out, threads=1)
    assert out.item() == 8


@pytest.mark.parametrize(
    ("parameter", "words"),
    [
        ("texture2d<float> t [[texture(0)]]", "textures"),
        ("threadgroup float* s [[threadgroup(0)]]", "threadgroup memory can't be passed"),
        ("uint n", "neither a pointer or reference"),
        ("float* p", "address space device or constant"),
        ("device float* p [[buffer(31)]]", "out of range"),
        ("uint i [[thread_position_in_the_grid]]", "not supported on a kernel parameter"),
        ("uint i [[stage_in]]", "compute kernels only"),
        ("float3 i [[thread_position_in_grid]]", "must be ushort, uint or a vector"),
    ],
)
def test_a_parameter_that_torch_can_not_bind_is_refused(parameter: str, words: str) -> None:
    refused(f"kernel void k(device float* o, {parameter}) {{ o[0] = 1; }}", "program_source:3", words)


def test_function_constants_are_refused() -> None:
    refused(
        "constant int kMode [[function_constant(0)]];\nkernel void k(device int* o) { o[0] = kMode; }",
        "source:3",
        "host_name",
    )


# threadgroup memory

GROUP = """
struct Pair { float a; int b; };
kernel void arrays(device float* o, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float a[64], b[4][8];
  threadgroup int single;
  threadgroup Pair pairs[2] = {};
  threadgroup union { float f[2]; uint u[2]; } both;
  threadgroup alignas(16) half aligned[8];
  if (i == 0) { single = 3; pairs[1].b = 4; both.f[1] = 1.0; b[3][7] = 5; aligned[1] = 6; }
  a[i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  threadgroup float* p = &a[1];
  const threadgroup float* q = p;
  o[i] = single + pairs[1].b + (both.u[1] == 0x3f800000) + b[3][7] + float(aligned[1]) + q[0];
  o[i] += a[(i + 1) % 64];
}
template <typename T, int N> kernel void templated(device T* o, uint i [[thread_index_in_threadgroup]]) {
  constexpr int M = N * 2;
  threadgroup T shared[M];
  shared[i] = T(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = shared[N - 1 - i];
}
template [[host_name("templated_float_4")]] kernel void templated<float, 4>(device float*, uint);
template [[host_name("templated_int_8")]] kernel void templated<int, 8>(device int*, uint);
kernel void scoped(device float* o, uint i [[thread_index_in_threadgroup]]) {
  for (int round = 0; round < 2; ++round) {
    threadgroup float inner[32];
    inner[i] = round + i;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    o[i] = inner[31 - i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}
kernel void too_much(device float* o) { threadgroup float big[9000]; big[0] = 1; o[0] = big[0]; }
kernel void fresh(device uint* o) { threadgroup uint never[1]; o[0] = never[0]; }
"""


def test_threadgroup_variables_have_every_form() -> None:
    out = torch.zeros(64)
    library(GROUP).arrays(out, threads=64, group_size=64)
    assert out.tolist() == [3 + 4 + 1 + 5 + 6 + 1 + (i + 1) % 64 for i in range(64)]


def test_threadgroup_variables_of_template_instances_are_apart() -> None:
    four, eight = torch.zeros(4), torch.zeros(8, dtype=torch.int32)
    library(GROUP).templated_float_4(four, threads=4)
    library(GROUP).templated_int_8(eight, threads=8)
    assert four.tolist() == [3, 2, 1, 0]
    assert eight.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_threadgroup_variable_may_be_declared_in_a_loop() -> None:
    out = torch.zeros(32)
    library(GROUP).scoped(out, threads=32)
    assert out.tolist() == [1 + 31 - i for i in range(32)]


def test_the_threadgroup_memory_of_a_kernel_is_known_before_it_runs() -> None:
    lib = library(GROUP)
    assert lib.templated_float_4.static_thread_group_memory_length == 32
    assert lib.templated_int_8.static_thread_group_memory_length == 64
    assert lib.arrays.static_thread_group_memory_length == 256 + 128 + 4 + 16 + 8 + 16


def test_more_than_32_kib_of_threadgroup_memory_is_refused_when_the_pipeline_is_made() -> None:
    with pytest.raises(UnknownKernelError, match="36000.*exceeds.*32768"):
        _ = library(GROUP).too_much


def test_threadgroup_memory_begins_as_nan() -> None:
    assert numbers(library(GROUP).fresh, 1, torch.int32) == [-1]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("threadgroup float s[4] = {1, 2, 3, 4}; o[0] = s[0];", "initializer"),
        ("threadgroup float s[4], *p; o[0] = s[0];", "separate declarations"),
        ("using T = threadgroup float; T s; o[0] = s;", "name it at each use"),
    ],
)
def test_a_threadgroup_declaration_outside_the_subset_is_refused(code: str, words: str) -> None:
    refused(f"kernel void k(device float* o) {{\n{code}\n}}", "program_source:4", words)


def test_a_threadgroup_variable_outside_a_kernel_is_refused() -> None:
    refused("threadgroup float s[4];\nkernel void k(device float* o) { o[0] = s[0]; }", "inside a kernel")


# address spaces

SPACES = """
template <typename T> METAL_FUNC T sum2(const device T* p) { return p[0] + p[1]; }
template <typename T> METAL_FUNC T sum2(const threadgroup T* p) { return p[0] + p[1]; }
template <typename T> METAL_FUNC T sum2(constant T* p) { return p[0] + p[1]; }
template <typename T> METAL_FUNC T sum2(const thread T* p) { return p[0] + p[1]; }
struct Box {
  float v;
  operator float() const thread { return v; }
  operator float() const device { return v; }
  void set(float x) thread { v = x; }
};
template <typename T> struct pointed {};
template <typename T> struct pointed<device T*> { typedef T type; };
template <typename T> struct pointed<threadgroup T*> { typedef T type; };
struct Number {
  int v;
  constexpr Number(int x) thread : v(x) {}
  constexpr Number(int x) constant : v(x) {}
};
constant Number kFour(4);
METAL_FUNC void twice(thread float& x) { x *= 2; }
inline device float& at(device float* p, int i) { return p[i]; }
kernel void spaces(device float* o, constant float* c, device Box* boxes) {
  threadgroup float s[2];
  s[0] = 1; s[1] = 2;
  float t[2] = {3, 4};
  Box local;
  local.set(7);
  twice(t[0]);
  at(o, 4) = 9;
  device float* device* unused = nullptr;
  o[0] = sum2(c); o[1] = sum2(s); o[2] = sum2(t); o[3] = float(local) + float(boxes[0]);
  o[5] = unused == nullptr;
  o[6] = is_same_v<typename pointed<threadgroup float*>::type, float>; o[7] = kFour.v;
}
"""


def test_overloads_by_address_space_become_one() -> None:
    out = torch.zeros(8)
    library(SPACES).spaces(out, [10.0, 20.0], torch.tensor([5.0]), threads=1)
    assert out.tolist() == [30, 3, 10, 12, 9, 1, 1, 4]


def test_overloads_by_address_space_with_different_bodies_are_refused() -> None:
    refused(
        "int which(device int* p) { return 1; }\nint which(threadgroup int* p) { return 2; }\n"
        "kernel void k(device int* o) { o[0] = which(o); }",
        "program_source:4",
        "address spaces only",
    )


def test_a_constant_can_not_be_written() -> None:
    refused(
        "kernel void k(constant float* c, device float* o) { c[0] = 1; }", "program_source:3", "read-only"
    )


# simdgroups

SIMD = """
#define KERNEL(name, expression) kernel void name(device int* o, uint i [[thread_index_in_threadgroup]]) { \
  o[i] = int(expression); }
KERNEL(sum, simd_sum(int(i)))
KERNEL(sum_float, simd_sum(float(i) * 0.5f))
KERNEL(product, simd_product(i % 2 ? 1 : 2) >> 8)
KERNEL(smallest, simd_min(50 - int(i)))
KERNEL(largest, simd_max(half(i)))
KERNEL(both, simd_sum(int2(i, 1)).y)
KERNEL(and_, simd_and(i | 0x100u))
KERNEL(or_, simd_or(1u << i) == 0xffffffffu)
KERNEL(xor_, simd_xor(i))
KERNEL(inclusive, simd_prefix_inclusive_sum(int(i)))
KERNEL(exclusive, simd_prefix_exclusive_sum(int(i)))
KERNEL(product_scan, simd_prefix_exclusive_product(i < 4 ? 2 : 1))
KERNEL(shuffle, simd_shuffle(int(i), ushort(31 - i)))
KERNEL(shuffle_xor, simd_shuffle_xor(int(i), ushort(5)))
KERNEL(shuffle_up, simd_shuffle_up(int(i), ushort(3)))
KERNEL(shuffle_down, simd_shuffle_down(int(i), ushort(3)))
KERNEL(rotate_up, simd_shuffle_rotate_up(int(i), ushort(3)))
KERNEL(rotate_down, simd_shuffle_rotate_down(int(i), ushort(3)))
KERNEL(fill_up, simd_shuffle_and_fill_up(int(i), -int(i), ushort(3)))
KERNEL(fill_down, simd_shuffle_and_fill_down(int(i), -int(i), ushort(3)))
KERNEL(fill_down_8, simd_shuffle_and_fill_down(int(i), -int(i), ushort(3), ushort(8)))
KERNEL(broadcast, simd_broadcast(int(i), ushort(9)))
KERNEL(broadcast_first, simd_broadcast_first(int(i) + 4))
KERNEL(ballot, ulong(simd_ballot(i % 2 == 0)) == 0x55555555ul)
KERNEL(all_, simd_all(i < 32) && !simd_all(i < 31))
KERNEL(any_, simd_any(i == 17) && !simd_any(i == 99))
KERNEL(first, simd_is_first())
KERNEL(active, popcount(ulong(simd_active_threads_mask())))
KERNEL(quad_total, quad_sum(int(i)))
KERNEL(quad_move, quad_shuffle_xor(int(i), ushort(1)))
KERNEL(quad_spread, quad_broadcast(int(i), ushort(2)))
KERNEL(quad_vote_, quad_all(i >= 4) ? 2 : quad_any(i == 1))
kernel void barriers(device int* o, uint i [[thread_index_in_threadgroup]]) {
  threadgroup int s[32];
  s[i] = i;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = s[31 - i];
}
"""

LANES = list(range(32))
SIMD_EXPECTED = {
    "sum": [496] * 32,
    "sum_float": [248] * 32,
    "product": [256] * 32,
    "smallest": [19] * 32,
    "largest": [31] * 32,
    "both": [32] * 32,
    "and_": [256] * 32,
    "or_": [1] * 32,
    "xor_": [0] * 32,
    "inclusive": [i * (i + 1) // 2 for i in LANES],
    "exclusive": [i * (i - 1) // 2 for i in LANES],
    "product_scan": [2 ** min(i, 4) for i in LANES],
    "shuffle": [31 - i for i in LANES],
    "shuffle_xor": [i ^ 5 for i in LANES],
    "shuffle_up": [i if i < 3 else i - 3 for i in LANES],
    "shuffle_down": [i + 3 if i < 29 else i for i in LANES],
    "rotate_up": [(i - 3) % 32 for i in LANES],
    "rotate_down": [(i + 3) % 32 for i in LANES],
    "fill_up": [i - 3 if i >= 3 else -(29 + i) for i in LANES],
    "fill_down": [i + 3 if i < 29 else -(i + 3 - 32) for i in LANES],
    "fill_down_8": [i + 3 if i % 8 < 5 else -(i - 5) for i in LANES],
    "broadcast": [9] * 32,
    "broadcast_first": [4] * 32,
    "ballot": [1] * 32,
    "all_": [1] * 32,
    "any_": [1] * 32,
    "first": [1] + [0] * 31,
    "active": [32] * 32,
    "quad_total": [4 * (i // 4 * 4) + 6 for i in LANES],
    "quad_move": [i ^ 1 for i in LANES],
    "quad_spread": [i // 4 * 4 + 2 for i in LANES],
    "quad_vote_": [1] * 4 + [2] * 28,
    "barriers": [31 - i for i in LANES],
}


@pytest.mark.parametrize("name", SIMD_EXPECTED)
def test_a_simdgroup_function_gives_every_lane_its_value(name: str) -> None:
    assert per_lane(getattr(library(SIMD), name)) == SIMD_EXPECTED[name]


def test_a_reduction_takes_the_lanes_that_exist() -> None:
    assert per_lane(library(SIMD).sum, threads=20) == [190] * 20


@pytest.mark.parametrize("kind", ["long", "bfloat", "bool"])
def test_simdgroup_functions_refuse_types_that_metal_refuses(kind: str) -> None:
    refused(f"kernel void k(device {kind}* o) {{ o[0] = simd_sum(o[0]); }}", "program_source:3", "simd_sum")


# simdgroup matrices

MATRIX = """
kernel void multiply(device float* d, device const float* a, device const half* b, constant int& ld) {
  simdgroup_float8x8 left, sum = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_half8x8 right;
  simdgroup_load(left, a, 8);
  simdgroup_load(right, b, ld, ulong2(1, 2), true);
  simdgroup_multiply_accumulate(sum, left, right, sum);
  simdgroup_store(sum, d, 8);
}
kernel void elements(device float* d, uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_matrix<float, 8, 8> m;
  m.thread_elements() = float2(2 * lane, 2 * lane + 1);
  reinterpret_cast<thread vec<float, 2>&>(m.thread_elements()) += 0.5f;
  simdgroup_store(m, d, 8);
}
kernel void diagonal(device float* d) {
  simdgroup_float8x8 two(2.0f), three = make_diagonal_simdgroup_matrix<float, 8, 8>(3.0f), r;
  simdgroup_multiply(r, two, three);
  simdgroup_store(r, d, 8, ulong2(0, 0), true);
}
"""


def test_simdgroup_matrices_load_multiply_accumulate_and_store() -> None:
    a, b = torch.randn(8, 8), torch.randn(12, 10).half()
    out = torch.zeros(8, 8)
    library(MATRIX).multiply(out, a, b, 10, arg_casts={3: "int32"}, threads=32)
    expected = a.double() @ b[2:10, 1:9].T.double() + 1
    assert torch.allclose(out.double(), expected, atol=1e-5)


def test_thread_elements_follow_apples_lane_map() -> None:
    out = torch.zeros(8, 8)
    library(MATRIX).elements(out, threads=32)
    expected = torch.zeros(8, 8)
    for lane in range(32):
        quarter = lane // 4
        row, column = (quarter & 4) + (lane // 2) % 4, (quarter & 2) * 2 + (lane % 2) * 2
        expected[row, column], expected[row, column + 1] = 2 * lane + 0.5, 2 * lane + 1.5
    assert torch.equal(out, expected)


def test_a_simdgroup_matrix_may_be_diagonal() -> None:
    out = torch.zeros(8, 8)
    library(MATRIX).diagonal(out, threads=32)
    assert torch.equal(out, 6 * torch.eye(8))


# atomics

ATOMICS = """
kernel void counts(device atomic_int* n, device atomic<uint>* m, device atomic_float* f,
  uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
  atomic_fetch_max_explicit(n + 1, int(i), memory_order_relaxed);
  atomic_fetch_min_explicit(n + 2, -int(i), memory_order_relaxed);
  atomic_fetch_or_explicit(m, 1u << (i % 32), memory_order_relaxed);
  atomic_fetch_and_explicit(m + 1, ~(1u << (i % 32)), memory_order_relaxed);
  atomic_fetch_xor_explicit(m + 2, i, memory_order_relaxed);
  atomic_fetch_sub_explicit(m + 3, 1u, memory_order_relaxed);
  atomic_fetch_add_explicit(f, 0.5f, memory_order_relaxed);
}
kernel void grouped(device uint* o, uint i [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint bins[4];
  if (i < 4) atomic_store_explicit(&bins[i], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&bins[i % 4], 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i < 4) o[i] = atomic_load_explicit(&bins[i], memory_order_relaxed);
}
kernel void swap(device atomic_uint* a, device atomic_bool* b, uint i [[thread_position_in_grid]]) {
  uint old = atomic_load_explicit(a, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(a, &old, old * 2, memory_order_relaxed,
  memory_order_relaxed)) {}
  atomic_exchange_explicit(b, true, memory_order_relaxed);
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device);
}
kernel void wide(device atomic_ulong* a, uint i [[thread_position_in_grid]]) {
  atomic_max_explicit(a, ulong(i) << 40, memory_order_relaxed);
}
"""


def test_atomic_operations_do_what_they_say() -> None:
    n, m, f = (
        torch.zeros(3, dtype=torch.int32),
        torch.tensor([0, -1, 0, 100], dtype=torch.int32),
        torch.zeros(1),
    )
    library(ATOMICS).counts(n, m, f, threads=100)
    xor = functools.reduce(lambda a, b: a ^ b, range(100))
    assert n.tolist() == [100, 99, -99]
    assert m.tolist() == [-1, 0, xor, 0]
    assert f.item() == 50


def test_threadgroup_atomics_work() -> None:
    out = torch.zeros(4, dtype=torch.int32)
    library(ATOMICS).grouped(out, threads=100, group_size=100)
    assert out.tolist() == [25] * 4


def test_compare_exchange_retries_until_it_wins() -> None:
    a, b = torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    library(ATOMICS).swap(a, b, threads=10)
    assert (a.item(), b.item()) == (1024, 1)


def test_atomic_ulong_has_a_maximum() -> None:
    a = torch.zeros(1, dtype=torch.int64)
    library(ATOMICS).wide(a, threads=9)
    assert a.item() == 8 << 40


def test_atomics_take_relaxed_order_only() -> None:
    refused(
        "kernel void k(device atomic_int* n) { atomic_store_explicit(n, 1, memory_order_seq_cst); }",
        "program_source:3",
        "memory_order_relaxed only",
    )


def test_other_types_have_no_atomic() -> None:
    refused("kernel void k(device atomic<half>* n) { n[0]; }", "atomic")


# mathematics

FUNCTIONS = {
    "acos": math.acos,
    "asin": math.asin,
    "atan": math.atan,
    "atanh": math.atanh,
    "ceil": math.ceil,
    "cos": math.cos,
    "cosh": math.cosh,
    "exp": math.exp,
    "exp2": lambda x: 2**x,
    "exp10": lambda x: 10**x,
    "fabs": abs,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "rint": round,
    "rsqrt": lambda x: x**-0.5,
    "sin": math.sin,
    "sinh": math.sinh,
    "sqrt": math.sqrt,
    "tan": math.tan,
    "tanh": math.tanh,
    "trunc": math.trunc,
    "asinh": math.asinh,
    "fract": lambda x: x - math.floor(x),
    "sinpi": lambda x: math.sin(math.pi * x),
    "cospi": lambda x: math.cos(math.pi * x),
    "tanpi": lambda x: math.tan(math.pi * x),
    "saturate": lambda x: min(max(x, 0), 1),
    "sign": lambda x: 1,
    "round": round,
    "abs": abs,
}

MATH = (
    "kernel void all_of(device float* o, device float* f, device float* p, device float* h,\n"
    "                   device float* v, constant float& x) {\n"
    + "".join(
        f"  o[{i}] = {n}(x); f[{i}] = fast::{n}(x); p[{i}] = precise::{n}(x); h[{i}] = float({n}(half(x))); "
        f"v[{i}] = {n}(float3(0.5f, x, 0.5f)).y;\n"
        for i, n in enumerate(FUNCTIONS)
    )
    + """}
kernel void more(device float* o) {
  float whole, cosine; int exponent;
  o[0] = fma(2.0f, 3.0f, 4.0f); o[1] = pow(2.0f, 10.0f); o[2] = atan2(1.0f, 1.0f); o[3] = fmod(7.0f, 4.0f);
  o[4] = copysign(3.0f, -1.0f); o[5] = modf(2.75f, whole); o[6] = whole; o[7] = frexp(8.0f, exponent);
  o[8] = exponent;
  o[9] = ldexp(1.0f, 4); o[10] = sincos(0.0f, cosine); o[11] = cosine; o[12] = clamp(5.0f, 0.0f, 1.0f);
  o[13] = mix(2.0f, 4.0f, 0.25f); o[14] = step(1.0f, 2.0f); o[15] = smoothstep(0.0f, 2.0f, 1.0f);
  o[16] = fdim(5.0f, 3.0f);
  o[17] = median3(3.0f, 1.0f, 2.0f); o[18] = max3(1.0f, 3.0f, 2.0f); o[19] = powr(4.0f, 0.5f);
  o[20] = ilogb(9.0f);
}
kernel void nans(device float* o) {
  o[0] = isnan(NAN); o[1] = isinf(-INFINITY); o[2] = isfinite(1.0f); o[3] = signbit(-0.0f);
  o[4] = max(NAN, 2.0f);
  o[5] = fmin(3.0f, NAN); o[6] = isunordered(NAN, 1.0f); o[7] = isnormal(1e-40f);
  o[8] = any(isnan(float2(1, NAN)));
}
kernel void integers(device int* o) {
  o[0] = popcount(0xf0u); o[1] = clz(1u); o[2] = ctz(8); o[3] = mulhi(0x80000000u, 4u); o[4] = abs(-5);
  o[5] = min(3, -4);
  o[6] = max(2u, 7u); o[7] = clamp(9, 1, 5); o[8] = addsat(uchar(250), uchar(10)); o[9] = subsat(3u, 5u);
  o[10] = reverse_bits(1u) == 0x80000000u; o[11] = rotate(0x80000001u, 1u); o[12] = extract_bits(0xabcdu,
  4, 8);
  o[13] = insert_bits(0u, 0xfu, 4, 4); o[14] = hadd(3, 4); o[15] = rhadd(3, 4); o[16] = absdiff(-3, 4);
  o[17] = mad24(3, 4, 5);
  o[18] = clz(ushort(1)); o[19] = popcount(uint2(3, 7)).y; o[20] = max(int3(1, 5, 3), 4).x;
  o[21] = extract_bits(-1, 0, 4);
  o[22] = select(1, 2, true); o[23] = mulhi(-1, 1); o[24] = madhi(0x40000000, 8, 1);
}
kernel void geometry(device float* o) {
  float3 a(1, 2, 2), b(0, 3, 4);
  o[0] = dot(a, b); o[1] = length(b); o[2] = cross(a, b).x; o[3] = normalize(b).z; o[4] = distance(a, b);
  o[5] = length_squared(a); o[6] = reflect(float2(1, -1), float2(0, 1)).y; o[7] = distance_squared(a, b);
  o[8] = fma(a, 2.0f, b).y; o[9] = clamp(b, 1.0f, 3.5f).z; o[10] = mix(a, b, 0.5f).x; o[11] = max(a, 1.5f).x;
  o[12] = smoothstep(0.0f, 4.0f, a).y; o[13] = pow(b, float3(2)).z;
}
kernel void packs(device float* o) {
  uint p = pack_float_to_unorm4x8(float4(0, 1, 0.5, 2));
  float4 v = unpack_unorm4x8_to_float(p);
  o[0] = v.x; o[1] = v.y; o[2] = v.w; o[3] = unpack_snorm2x16_to_float(pack_float_to_snorm2x16(float2(-1,
  0.5))).x;
}
"""
)


def test_float_functions_agree_with_the_host_in_every_variant() -> None:
    x = 0.3125
    outs = [torch.zeros(len(FUNCTIONS)) for _ in range(5)]
    library(MATH).all_of(*outs, x, threads=1)
    expected = torch.tensor([float(f(x)) for f in FUNCTIONS.values()])
    for out, tolerance in zip(outs, (1e-6, 1e-6, 1e-6, 2e-3, 1e-6), strict=True):
        assert torch.allclose(out, expected, rtol=tolerance, atol=1e-7)


def test_functions_of_several_arguments() -> None:
    expected = [10, 1024, math.pi / 4, 3, -3, 0.75, 2, 0.5, 4, 16, 0, 1, 1, 2.5, 1, 0.5, 2, 2, 3, 2, 3]
    assert numbers(library(MATH).more, 21) == pytest.approx(expected, rel=1e-6)


def test_special_values_are_told_apart() -> None:
    assert numbers(library(MATH).nans, 9) == [1, 1, 1, 1, 2, 3, 1, 0, 1]


def test_integer_functions() -> None:
    expected = [4, 31, 3, 2, 5, -4, 7, 5, 255, 0, 1, 3, 0xBC, 0xF0, 3, 4, 7, 17, 15, 3, 4, -1, 2, -1, 3]
    assert numbers(library(MATH).integers, 25, torch.int32) == expected


def test_geometric_functions_and_functions_of_vectors_with_scalars() -> None:
    root6 = math.sqrt(6)
    expected = [14, 5, 2, 0.8, root6, 9, 1, 6, 7, 3.5, 0.5, 1.5, 0.5, 16]
    assert numbers(library(MATH).geometry, 14) == pytest.approx(expected, rel=1e-6)


def test_packing_to_normalised_integers() -> None:
    assert numbers(library(MATH).packs, 4) == [0, 1, 1, -1]


def test_functions_that_metal_lacks_are_refused() -> None:
    refused("kernel void k(device float* o) { o[0] = erf(o[0]); }", "program_source:3", "erf")


# headers, traits, preprocessor


def test_type_traits_and_limits() -> None:
    source = """
    template <typename T, typename = enable_if_t<is_floating_point_v<T>>> constexpr int kind(T) { return 1; }
    template <typename T, typename = enable_if_t<is_integral<T>::value>,
    typename = void> constexpr int kind(T) { return 2; }
    kernel void traits(device float* o) {
      o[0] = kind(1.0h) * 10 + kind(3u);
      o[1] = is_same<conditional_t<true, int, float>,
      int>::value && is_unsigned_v<uint> && is_floating_point_v<float4>;
      o[2] = is_same_v<remove_cv_t<const float>, float> && is_same_v<decltype(declval<float>() + 1), float>;
      o[3] = float(numeric_limits<bfloat>::epsilon()); o[4] = numeric_limits<short>::lowest();
      o[5] = isnan(numeric_limits<float>::quiet_NaN());
    }
    """
    assert numbers(library(source).traits, 6) == [12, 1, 1, 2**-7, -32768, 1]


def test_the_preprocessor_knows_metal() -> None:
    source = """
    #if defined(__METAL__) && __METAL_VERSION__ >= 310
    #pragma METAL fp math_mode(safe)
    kernel void version(device float* o) {
      #pragma unroll
      for (int i = 0; i < 3; ++i) o[i] = __LINE__ > 0;
    }
    #endif
    """
    assert numbers(library(source).version, 3) == [1, 1, 1]


def test_every_header_of_metals_library_can_be_included() -> None:
    names = ("stdlib", "simdgroup", "simdgroup_matrix", "atomic", "math", "integer", "common",
    "geometric", "relational",
             "type_traits", "limits", "array", "compute", "matrix", "pack", "types")  # fmt: skip
    source = (
        "".join(f"#include <metal_{n}>\n" for n in names) + "kernel void k(device float* o) { o[0] = 1; }"
    )
    assert numbers(library(source).k, 1) == [1]


def test_headers_of_the_host_are_not_there() -> None:
    refused(
        "#include <cmath>\nkernel void k(device float* o) { o[0] = 1; }",
        "program_source:3",
        "'cmath' file not found",
    )


C10 = """
#include <c10/metal/utils.h>
#include <c10/metal/atomic.h>
#include <c10/metal/error.h>
#include <c10/metal/random.h>
#include <c10/metal/reduction_utils.h>
#include <c10/metal/special_math.h>
using namespace c10::metal;
kernel void special(device float* x, uint i [[thread_position_in_grid]]) {
  x[i] = c10::metal::erf(x[i]) + log_gamma(x[i]); }
kernel void reduce(device float* x, device float* y, uint i [[thread_index_in_threadgroup]],
  uint n [[threads_per_threadgroup]]) {
  threadgroup float shared[simdgroup_size];
  float sum = threadgroup_sum(shared, x[i], i, n);
  if (i == 0) y[0] = sum;
}
kernel void halves_added(device AtomicType_t<half>* d, uint i [[thread_position_in_grid]]) {
  AtomicType<half>::atomic_add(d, i % 2, half(1));
}
kernel void failing(device float* x, device ErrorMessages* errors) {
  if (x[0] < 0) TORCH_REPORT_ERROR(errors, "negative ", 7); }
"""


def test_torchs_metal_headers_compile_and_compute() -> None:
    x = torch.linspace(0.1, 2, 20)
    out = x.clone()
    library(C10).special(out)
    assert torch.allclose(out, torch.erf(x) + torch.lgamma(x), atol=2e-6)


def test_torchs_threadgroup_reduction_sums_a_full_group() -> None:
    x, y = torch.arange(1024.0), torch.zeros(1)
    with metalsim.options():
        library(C10).reduce(x, y, threads=1024, group_size=1024)
    assert y.item() == 1023 * 512


def test_torchs_emulated_half_atomics_count() -> None:
    d = torch.zeros(2, dtype=torch.float16)
    library(C10).halves_added(d, threads=64)
    assert d.tolist() == [32, 32]


def test_a_kernel_reports_errors_through_torchs_buffer() -> None:
    library(C10).failing(torch.ones(1), threads=1, error_buf_idx=1)
    with pytest.raises(RuntimeError, match="negative 7"):
        library(C10).failing(-torch.ones(1), threads=1, error_buf_idx=1)


# what is outside the subset


@pytest.mark.parametrize(
    "code",
    [
        "new int;",
        "throw 1;",
        "goto end; end:;",
        "long long x = 1;",
        "thread_local int x = 1;",
        "static_assert(sizeof(typeid(int)));",
        'asm("nop");',
        "undeclared(1);",
    ],
)
def test_what_metal_has_not_is_refused_with_its_line(code: str) -> None:
    error = refused(f"kernel void k(device float* o) {{\n  o[0] = 1;\n  {code}\n}}")
    assert (error.filename, error.lineno) == ("program_source", 5)


@pytest.mark.parametrize(
    "code",
    [
        "int thread = 1;",
        "int device;",
        "int threadgroup, other;",
        "int constant[2];",
        "auto f = [](int thread, int step) { return thread + step; };",
        "o[0] = float(thread * 2);",
        "o[0] = o[thread];",
        "struct { int device; } s; s.device = 1;",
        "for (int thread : {1, 2}) o[thread] = 1;",
        "int kernel = 1;",
    ],
)
def test_an_address_space_is_no_name(code: str) -> None:
    error = refused(f"kernel void k(device float* o) {{\n  o[0] = 1;\n  {code}\n}}", "name")
    assert (error.filename, error.lineno) == ("program_source", 5)


ADDRESS_SPACES = """
struct Pair {
  int a, b;
  Pair(int x) thread : a(x), b(x) {}
  Pair(int x) constant : a(x), b(x) {}
  Pair() thread = default;
  int sum() const thread { return a + b; }
  int first() const device;
};
int Pair::first() const device { return a; }
template <typename T> int of(T thread* p, const device T& q, thread const T (&r)[2]) { return *p + q + r[1]; }
template <typename T> int either(thread T&& x) { return x; }
using Pointer = metal::conditional_t<true, device int*, constant int*>;
kernel void qualified(device int* o, const device int* device* unused [[buffer(1)]]) {
  int mine = 1;
  const int two[2] = {2, 3};
  thread Pair pair(4);
  Pointer p = o;
  auto twice = [](thread const int& x) -> int { return 2 * x; };
  p[0] = of(&mine, *(const device int*)o, two) + pair.sum() + twice(5) + either(6);
}
"""


def test_an_address_space_stands_at_many_places() -> None:
    out = torch.tensor([100], dtype=torch.int32)
    library(ADDRESS_SPACES).qualified(out, out, threads=1)
    assert out.tolist() == [1 + 100 + 3 + 8 + 10 + 6]


@pytest.mark.parametrize(
    "source",
    [
        "vertex float4 v(uint i [[vertex_id]]) { return float4(i); }",
        "[[fragment]] float4 f() { return float4(1); }",
        "kernel void k(device float* o) { o[0] = 1;",
        'template [[host_name("x")]] kernel void absent<float>(device float*);',
        "kernel int k(device float* o) { return 1; }",
    ],
)
def test_a_source_that_is_no_compute_code_is_refused(source: str) -> None:
    refused(source, "error")


def test_the_written_subset_names_every_test_of_this_file() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metal_subset.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    here = {name for name in globals() if name.startswith("test_")}
    assert named == here - {"test_the_written_subset_names_every_test_of_this_file"}
