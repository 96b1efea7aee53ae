"""``compile_shader`` and its kernels behave as those of ``torch.mps``; options and sessions."""

from __future__ import annotations

import functools
import json
import threading

import pytest
import torch

from steelworks import metalsim
from steelworks.metalsim import _toolchain
from steelworks.metalsim.errors import MetalsimError, MetalsimWarning, MetalSyntaxError

SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void as_long(device long* o, constant long* v, constant long& n) { for (long i = 0; i < n;
  ++i) o[i] = v[i]; }
kernel void as_float(device float* o, constant float* v, constant long& n) {
  for (long i = 0; i < n; ++i) o[i] = v[i];
}
kernel void as_bytes(device uchar* o, constant uchar* v, constant long& n) {
  for (long i = 0; i < n; ++i) o[i] = v[i];
}
kernel void add(device float* x, constant float& a, uint i [[thread_position_in_grid]]) { x[i] += a; }
kernel void count(device atomic_int* n) { atomic_fetch_add_explicit(n, 1, memory_order_relaxed); }
kernel void sizes(device uint* o, uint3 n [[threads_per_grid]],
  uint3 g [[dispatch_threads_per_threadgroup]]) {
  o[0] = n.x; o[1] = n.y; o[2] = n.z; o[3] = g.x; o[4] = g.y; o[5] = g.z;
}
[[max_total_threads_per_threadgroup(100)]] kernel void small(device float* x) { x[0] = 1; }
kernel void copy(device float* out, device const float* in, uint i [[thread_position_in_grid]]) {
  out[i] = in[i]; }
kernel void half_of(device float* out, uint i [[thread_position_in_grid]]) { if (i % 2 == 0) out[i] = i; }
kernel void twice(device float* out, uint i [[thread_position_in_grid]]) { out[i] = 1; out[i ^ 1] = 2; }
kernel void race(device float* out, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  out[i] = shared[63 - i];
}
kernel void past(device float* out, uint i [[thread_position_in_grid]]) { out[i + 1] = i; }
kernel void diverges(device float* out, uint i [[thread_index_in_threadgroup]]) {
  if (i < 40) threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = i;
}
"""


@functools.cache
def library() -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def longs(value: object, count: int, **options: object) -> list[int]:
    out = torch.zeros(count, dtype=torch.int64)
    library().as_long(out, value, count, threads=1, **options)
    return out.tolist()


def floats(value: object, count: int) -> list[float]:
    out = torch.zeros(count)
    library().as_float(out, value, count, threads=1)
    return out.tolist()


def raw(value: object, cast: object, dtype: torch.dtype, count: int) -> list[float]:
    """What the kernel gets for a value, read as ``count`` elements of ``dtype``."""
    size = count * torch.empty(0, dtype=dtype).element_size()
    out = torch.zeros(size, dtype=torch.uint8)
    library().as_bytes(out, value, size, threads=1, arg_casts=cast)
    return out.view(dtype).tolist()


# values


def test_an_int_is_int64() -> None:
    assert longs(-(2**40), 1) == [-(2**40)]


def test_a_bool_is_an_int() -> None:
    assert longs(True, 1) == [1]


def test_a_float_is_float32() -> None:
    assert floats(0.1, 1) == [float(torch.tensor(0.1))]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_sequence_of_ints_is_packed_int64(kind: type) -> None:
    assert longs(kind([1, -2, 2**33]), 3) == [1, -2, 2**33]


def test_a_list_that_begins_with_a_float_is_packed_float32() -> None:
    assert floats([0.5, 2, 3.25], 3) == [0.5, 2, 3.25]


@pytest.mark.parametrize(
    ("cast", "dtype", "value", "expected"),
    [
        ("fp16", torch.float16, 0.1, float(torch.tensor(0.1).half())),
        ("bf16", torch.bfloat16, 0.1, float(torch.tensor(0.1).bfloat16())),
        ("int32", torch.int32, -7, -7),
        ("int16", torch.int16, 70000, 4464),
        ("int8", torch.int8, -128, -128),
        ("uint8", torch.uint8, 250, 250),
        ("int32", torch.int32, 2.9, 2),
        ("fp16", torch.float16, 3, 3),
    ],
)
def test_a_cast_changes_the_type_of_a_value(
    cast: str, dtype: torch.dtype, value: float, expected: float
) -> None:
    assert raw(value, {1: cast}, dtype, 1) == [expected]


def test_a_cast_in_a_dict_holds_for_its_argument_only() -> None:
    assert longs([5, 6], 2, arg_casts={0: "int8"}) == [5, 6]


def test_one_cast_holds_for_all_values() -> None:
    out = torch.zeros(1)
    library().add(out, 1, threads=1, arg_casts={1: "int32"})
    assert out.view(torch.int32).item() == 1


def test_a_cast_holds_for_lists() -> None:
    assert raw([1, 2, 3], {1: "int16"}, torch.int16, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((None,), {}, "Unsupported argument type"),
        (("text",), {}, "Unsupported argument type"),
        (([],), {}, "Empty list/tuple"),
        (([None],), {}, "Unexpected argument types"),
        (([1, 2.5],), {}, "all its values must be int"),
        ((2**63,), {}, "does not fit"),
        ((1,), {"arg_casts": "fp8"}, "Unsupported cast instruction"),
        ((1,), {"arg_casts": {1: "double"}}, "Unsupported cast instruction"),
        ((1,), {"arg_casts": 3}, "Unexpected caster arg type int"),
        (([0] * 513,), {}, "4096"),
    ],
)
def test_an_argument_that_torch_refuses_is_refused(arguments: tuple, options: dict, words: str) -> None:
    with pytest.raises(RuntimeError, match=words) as caught:
        library().as_long(torch.zeros(1, dtype=torch.int64), *arguments, 1, threads=1, **options)
    assert isinstance(caught.value, MetalsimError)


# tensors


def test_a_view_gives_its_offset_and_not_its_strides() -> None:
    x = torch.zeros(10)
    library().add(x[2::3], 1.0)
    assert x.tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]


def test_a_tensor_elsewhere_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"argument 0 is on device 'meta'"):
        library().add(torch.zeros(3, device="meta"), 1.0)


def test_float64_is_refused_because_no_metal_device_has_it() -> None:
    with pytest.raises(TypeError, match="convert it to float32"):
        library().add(torch.zeros(3, dtype=torch.float64), 1.0)


def test_a_buffer_that_nothing_binds_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"'copy' declares buffers that no argument binds: 1 'in'"):
        library().copy(torch.zeros(3))


def test_arguments_past_the_last_buffer_are_ignored() -> None:
    x = torch.zeros(2)
    library().add(x, 1.0, 7, torch.zeros(1))
    assert x.tolist() == [1, 1]


# the grid


def test_threads_is_by_default_the_size_of_the_first_tensor() -> None:
    n = torch.zeros(5, dtype=torch.int32)
    library().count(n)
    assert n[0].item() == 5


@pytest.mark.parametrize("threads", [6, (6,), [3, 2], (1, 2, 3)])
def test_threads_is_the_exact_grid(threads: object) -> None:
    n = torch.zeros(1, dtype=torch.int32)
    library().count(n, threads=threads)
    assert n.item() == 6


@pytest.mark.parametrize(
    ("threads", "group", "expected"),
    [
        (70, None, [70, 1, 1, 70, 1, 1]),
        (5000, None, [5000, 1, 1, 1024, 1, 1]),
        ((4, 3), None, [4, 3, 1, 1024, 1, 1]),
        ((4, 3, 2), (2, 2, 1), [4, 3, 2, 2, 2, 1]),
    ],
)
def test_the_default_group_is_that_of_torch(threads: object, group: object, expected: list[int]) -> None:
    out = torch.zeros(6, dtype=torch.int32)
    library().sizes(out, threads=threads, group_size=group)
    assert out.tolist() == expected


def test_an_empty_grid_does_nothing() -> None:
    n = torch.zeros(1, dtype=torch.int32)
    library().count(n, threads=0)
    assert n.item() == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"threads": 4096, "group_size": 1025}, ValueError, "exceeds 1024 limit"),
        ({"threads": (64, 64), "group_size": (64, 32)}, ValueError, "exceeds 1024 limit"),
        ({"threads": (64, 64), "group_size": 64}, RuntimeError, "same number"),
        ({"threads": (1, 1, 1, 1)}, RuntimeError, "4 dimensions"),
        ({"threads": ()}, RuntimeError, "0 dimensions"),
        ({"threads": -1}, RuntimeError, "from 0"),
        ({"threads": "many"}, RuntimeError, "an int or one to three"),
        ({"threads": 4, "group_size": 0}, RuntimeError, "at least one thread"),
    ],
)
def test_a_grid_that_torch_refuses_is_refused(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        library().add(torch.zeros(4096), 1.0, **options)


def test_without_a_tensor_threads_must_be_given() -> None:
    with pytest.raises(RuntimeError, match="Number of threads is undefined"):
        library().add([1.0], 1.0)


def test_a_kernels_own_limit_holds() -> None:
    assert library().small.max_threads_per_threadgroup == 100
    with pytest.raises(ValueError, match="exceeds 100 limit"):
        library().small(torch.zeros(1), threads=200, group_size=101)


# the library


def test_dir_lists_the_kernels() -> None:
    assert {"add", "copy", "small"} <= set(dir(library()))


def test_an_unknown_kernel_is_a_runtime_error_as_in_torch() -> None:
    with pytest.raises(RuntimeError, match="Failed to create function state object for: nothing"):
        _ = library().nothing


def test_python_may_probe_a_library_for_special_methods() -> None:
    assert not hasattr(library(), "__wrapped__")


def test_a_kernel_has_the_attributes_of_torchs() -> None:
    kernel = library().race
    assert (kernel.max_threads_per_threadgroup, kernel.thread_execution_width) == (1024, 32)
    assert kernel.static_thread_group_memory_length == 256


def test_a_source_error_has_file_line_and_text() -> None:
    with pytest.raises(SyntaxError) as caught:
        metalsim.compile_shader("kernel void k(device float* o) {\n  o[0] = missing;\n}", name="mine.metal")
    assert isinstance(caught.value, MetalSyntaxError)
    assert (caught.value.filename, caught.value.lineno) == ("mine.metal", 2)
    assert "mine.metal:2:10: error: use of undeclared identifier 'missing'\n    o[0] = missing;" in str(
        caught.value
    )


def test_a_macro_error_is_a_source_error() -> None:
    with pytest.raises(SyntaxError, match=r"program_source:2:2: error: only here"):
        metalsim.compile_shader("\n#error only here\n")


def test_source_must_be_text() -> None:
    with pytest.raises(TypeError, match="bytes"):
        metalsim.compile_shader(b"kernel void k() {}")  # type: ignore[arg-type]


# options and sessions


@pytest.mark.parametrize(
    "options",
    [{"schedule": "random"}, {"order": "sideways"}, {"seed": -1}, {"workers": -2}, {"max_findings": -1}],
)
def test_an_option_that_is_not_allowed_is_named(options: dict) -> None:
    name = next(iter(options))
    with pytest.raises(MetalsimError, match=name):
        with metalsim.options(**options):
            pass


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("schedule", ["ring", "run_ahead"])
@pytest.mark.parametrize("order", ["forward", "reverse", "shuffled"])
def test_a_correct_kernel_gives_the_same_under_every_schedule(check: bool, schedule: str, order: str) -> None:
    x, out = torch.randn(300), torch.zeros(300)
    with metalsim.options(
        check=check, schedule=schedule, order=order, seed=7, outputs=[out] if check else ()
    ) as session:
        library().copy(out, x, threads=300, group_size=64)
    assert torch.equal(out, x)
    assert not session.findings, session.report().text()


def test_a_session_records_every_launch_and_sums_the_counters() -> None:
    x, out = torch.randn(64), torch.zeros(64)
    with metalsim.options(check=True) as session:
        library().copy(out, x)
        library().copy(out, x, threads=32, group_size=16)
    assert [(r.kernel, r.threads, r.group_size) for r in session.launches] == [
        ("copy", (64, 1, 1), (64, 1, 1)),
        ("copy", (32, 1, 1), (16, 1, 1)),
    ]
    counters = session.counters
    assert (counters.threads, counters.groups) == (96, 3)
    assert (counters.device_read, counters.device_written, counters.device_bytes) == (384, 384, 768)


def test_options_hold_for_their_thread_only() -> None:
    seen: list[object] = []
    with metalsim.options() as session:
        thread = threading.Thread(
            target=lambda: seen.append(library().count(torch.zeros(1, dtype=torch.int32)))
        )
        thread.start()
        thread.join()
    assert seen == [None]
    assert session.launches == []


def test_the_innermost_options_hold() -> None:
    with metalsim.options() as outer:
        with metalsim.options() as inner:
            library().count(torch.zeros(1, dtype=torch.int32))
        library().count(torch.zeros(1, dtype=torch.int32))
    assert (len(outer.launches), len(inner.launches)) == (1, 1)


def test_a_race_names_kernel_variable_lines_and_threads() -> None:
    with metalsim.options(check=True) as session:
        library().race(torch.zeros(64), threads=64, group_size=64)
    finding = next(f for f in session.findings if f.kind == "race_threadgroup")
    assert (finding.kernel, finding.variable) == ("race", "shared")
    assert finding.first is not None
    assert finding.second is not None
    lines = {finding.first.line, finding.second.line}
    source = SOURCE.split("\n")
    assert {source[line - 1].strip() for line in lines} == {"shared[i] = i;", "out[i] = shared[63 - i];"}
    assert {finding.first.file, finding.second.file} == {"program_source"}
    text = finding.text()
    assert "data race in threadgroup memory in 'shared'" in text
    assert "program_source:" in text


def test_an_access_past_a_view_is_found_though_the_storage_goes_on() -> None:
    x = torch.zeros(20)
    with metalsim.options(check=True) as session:
        library().past(x[:10], threads=10)
    assert [(f.kind, f.variable) for f in session.findings] == [("out_of_bounds", "out")]


def test_an_output_that_is_not_written_everywhere_is_found() -> None:
    out = torch.zeros(10)
    with metalsim.options(check=True, outputs=[out]) as session:
        library().half_of(out)
    assert [(f.kind, f.variable, f.bytes) for f in session.findings] == [("unwritten", "out", 20)]


def test_an_output_that_is_written_twice_is_found_unless_allowed() -> None:
    out = torch.zeros(1)
    with metalsim.options(check=True) as session:
        session.expect(out)
        library().count(out.view(torch.int32), threads=1)
    found = {f.kind for f in session.findings}
    assert "unwritten" not in found
    with metalsim.options(check=True, outputs=[twice := torch.zeros(2)]) as session:
        library().twice(twice, threads=2, group_size=1)
    assert "written_twice" in {f.kind for f in session.findings}
    with metalsim.options(check=True) as session:
        session.expect(again := torch.zeros(2), once=False)
        library().twice(again, threads=2, group_size=1)
    assert "written_twice" not in {f.kind for f in session.findings}


def test_an_output_is_expected_of_the_first_launch_that_may_write_it() -> None:
    x, out, last = torch.randn(8), torch.zeros(8), torch.zeros(8)
    with metalsim.options(check=True, outputs=[out, last]) as session:
        library().copy(out, x)
        library().copy(last, out)
        library().half_of(out)
    assert not session.findings, session.report().text()


def test_an_output_with_gaps_can_not_be_expected() -> None:
    with pytest.raises(MetalsimError, match="has gaps"):
        with metalsim.options(check=True, outputs=[torch.zeros(4, 4)[:, :2]]):
            pass


def test_a_defect_found_outside_a_session_is_a_warning() -> None:
    with pytest.warns(MetalsimWarning, match="not all threads reach the same barrier"):
        library().diverges(torch.zeros(64), threads=64, group_size=64)


def test_a_report_is_plain_data() -> None:
    with metalsim.options(check=True) as session:
        library().past(torch.zeros(10), threads=10)
    report = session.report()
    assert not report.clean
    data = json.loads(json.dumps(report.to_dict()))
    assert data["findings"][0]["kind"] == "out_of_bounds"
    assert data["counters"]["threads"] == 10


def test_a_clean_report_says_so() -> None:
    with metalsim.options(check=True) as session:
        library().copy(torch.zeros(4), torch.zeros(4))
    assert (session.report().clean, session.report().text()) == (True, "no findings")


def test_sixteen_threads_launch_at_once() -> None:
    tensors = [torch.zeros(256) for _ in range(16)]
    gate = threading.Barrier(16)

    def work(x: torch.Tensor) -> None:
        gate.wait(30)
        for _ in range(20):
            library().add(x, 1.0)

    library()
    threads = [threading.Thread(target=work, args=(x,)) for x in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((x == 20).all() for x in tensors)


def test_the_compiler_that_is_used_can_be_asked() -> None:
    assert _toolchain.find_compiler().major >= _toolchain.MINIMUM_VERSION
