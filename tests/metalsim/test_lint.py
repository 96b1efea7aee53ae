"""The lints for Metal source: each rule finds its faults at their lines, and is silent on sound source."""

from __future__ import annotations

import subprocess
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from steelworks.metalsim import _toolchain
from steelworks.metalsim.errors import ToolchainError
from steelworks.metalsim.lint import RULES, LintFinding, lint, lint_file


def compiler_missing() -> bool:
    try:
        _toolchain.find_compiler()
    except ToolchainError:
        return True
    return False


pytestmark = pytest.mark.skipif(compiler_missing(), reason="needs clang++ 17 or newer")

HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"
SOUND = """
struct Params { int n; float scale; };
template <typename T> inline T load(device const T* from, int i) { return from[i]; }
inline void store(threadgroup float& to, float v) { to = v; }
inline float largest(thread const float* values, int n) {
  float most = values[0];
  for (int i = 1; i < n; ++i) most = max(most, values[i]);
  return most;
}
struct Pair {
  float a, b;
  Pair(float x, float y) : a(x), b(y) {}
  float sum() const { return a + b; }
};
kernel void sound(device const float* x, device float* out, constant Params& p, device float4* v,
                  uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[64], edge[2];
  threadgroup float4 wide[8];
  threadgroup float* row = tile + 8;
  float kept[4] = {1, 2, 3, 4};
  store(tile[t], load(x, i) * p.scale);
  if (t < 8) wide[t] = v[i];
  if (t < 2) edge[t] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  half h = half(row[0]);
  int4 whole = int4(v[i]);
  uint4 bits = as_type<uint4>(whole);
  float4 wider = (float4)half4(h);
  device const float2* halves = (device const float2*)(x + 2 * i);
  out[i] = tile[63 - t] + largest(kept, 4) + Pair(edge[0], edge[1]).sum() + float(bits.x) + wider.x +
           halves[0].y;
  v[i] = float4(whole) * wide[t % 8];
}
template <typename T>
kernel void copied(device const T* x, device T* out, uint i [[thread_position_in_grid]]) {
  threadgroup T tile[32];
  tile[i % 32] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = tile[i % 32];
}
template [[host_name("copied_half")]] kernel void copied<half>(device const half*, device half*, uint);
template [[host_name("copied_float")]] kernel void copied<float>(device const float*, device float*, uint);
"""


def found(body: str, rule: str | None = None) -> list[LintFinding]:
    """Findings in ``body``, whose first line is line 3."""
    return [f for f in lint(HEAD + body, "test.metal") if rule is None or f.rule == rule]


def inside(statements: str) -> str:
    """A kernel around statements; they stand on line 4."""
    return (
        "kernel void k(device float* x, device float4* v, uint i [[thread_position_in_grid]]) {"
        f"\n{statements}\n}}\n"
    )


def places(findings: list[LintFinding]) -> list[tuple[int, str]]:
    return [(f.line, f.rule) for f in findings]


def test_sound_source_has_no_findings() -> None:
    assert found(SOUND) == []


def test_no_rule_objects_to_the_many_forms_that_address_spaces_take() -> None:
    assert lint_file(Path(__file__).with_name("sound_forms.metal")) == []


def test_each_finding_says_where_what_and_how_to_mend_it() -> None:
    (finding,) = found(inside("double y = 1; x[i] = y;"))
    assert (finding.file, finding.line, finding.rule, finding.severity) == (
        "test.metal",
        4,
        "double",
        "error",
    )
    assert "use float" in finding.mend
    assert finding.text().startswith("test.metal:4: error: ")
    assert set(finding.to_dict()) == {"file", "line", "rule", "severity", "message", "mend"}
    with pytest.raises(FrozenInstanceError):
        finding.line = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "statement",
    [
        "threadgroup float t[8]; device float* d = t; x[i] = d[0];",
        "thread float* q = x; x[i] = q[0];",
        "threadgroup float* e = (threadgroup float*)x; x[i] = e[0];",
        "threadgroup float* e = reinterpret_cast<threadgroup float*>(x); x[i] = e[0];",
        "float y = 1; device float* d = &y; x[i] = d[0];",
    ],
    ids=["array", "parameter", "C cast", "reinterpret_cast", "local"],
)
def test_a_pointer_to_another_address_space_is_found(statement: str) -> None:
    assert places(found(inside(statement))) == [(4, "address-space")]


def test_an_argument_in_another_address_space_is_found_at_the_call() -> None:
    helper = "inline float first(device const float* p) { return p[0]; } "
    body = helper + inside("threadgroup float t[8]; x[i] = first(t);")
    (finding,) = found(body)
    assert (finding.line, finding.rule) == (4, "address-space")
    assert "threadgroup float" in finding.message
    assert "device" in finding.message


def test_a_reference_to_another_address_space_is_found() -> None:
    helper = "inline void put(threadgroup float& t) { t = 1; } "
    assert places(found(helper + inside("put(x[i]);"))) == [(4, "address-space")]


def test_an_error_in_an_instance_of_a_template_is_found() -> None:
    body = (
        "template <typename T> kernel void k(device T* x, uint i [[thread_position_in_grid]]) {\n"
        "threadgroup T tile[8];\n"
        "device T* d = tile; x[i] = d[0];\n}\n"
        'template [[host_name("k_float")]] kernel void k<float>(device float*, uint);\n'
    )
    assert set(places(found(body))) == {(5, "address-space")}


@pytest.mark.parametrize("parameter", ["float* p", "const float& p", "thread float* q, const int* p"])
def test_a_pointer_or_reference_without_address_space_is_found(parameter: str) -> None:
    (finding,) = found(f"inline float bare({parameter}) {{ return 1; }}\n", "pointer-space")
    assert finding.line == 3
    assert "'p'" in finding.message


@pytest.mark.parametrize(
    "statement",
    ["if constexpr (sizeof(int) == 4) x[i] = 1;", "static_assert(sizeof(int) == 4); x[i] = 1;"],
)
def test_newer_cpp_than_14_is_found(statement: str) -> None:
    findings = found(inside(statement))
    assert places(findings) == [(4, "cpp14")]
    assert findings[0].severity == "warning"


def test_double_is_found_wherever_it_is_written() -> None:
    body = "inline float f(device double* p) { return float(p[0]); }\n" + inside(
        "x[i] = float((double)x[i]);"
    )
    assert places(found(body)) == [(3, "double"), (5, "double")]


def test_double_does_not_keep_other_rules_from_being_applied() -> None:
    assert places(found(inside("double y = 1; thread float* q = x; x[i] = q[0] + y;"))) == [
        (4, "address-space"),
        (4, "double"),
    ]


@pytest.mark.parametrize(
    "name", ["half", "bfloat", "kernel", "device", "thread", "vertex", "__mine", "_Mine"]
)
def test_a_reserved_name_is_found_as_an_error(name: str) -> None:
    findings = found(inside(f"float {name} = 1; x[i] = 2;"), "reserved-name")
    assert [(f.line, f.severity) for f in findings] == [(4, "error")]
    assert f"'{name}'" in findings[0].message


@pytest.mark.parametrize("name", ["sampler", "texture_buffer", "float4", "texture2d"])
def test_a_variable_that_hides_a_type_of_the_library_is_found_as_a_warning(name: str) -> None:
    findings = found(inside(f"float {name} = 1; x[i] = {name};"), "reserved-name")
    assert [(f.line, f.severity) for f in findings] == [(4, "warning")]


def test_reserved_names_of_parameters_types_and_later_declarators_are_found() -> None:
    body = "struct __Pair { int a; };\ninline int f(int thread, int b) { return b; }\n" + inside(
        "int a = 1, half; x[i] = a;"
    )
    assert [f.line for f in found(body, "reserved-name")] == [3, 4, 6]


def test_the_use_of_a_reserved_name_is_no_declaration() -> None:
    assert (
        found(inside("half a = half(x[i]); const half b = a; x[i] = static_cast<half>(b) + __LINE__;")) == []
    )


def test_a_c_cast_between_vectors_of_one_size_is_found() -> None:
    findings = found(inside("int4 a = (int4)v[i]; x[i] = a.x;"))
    assert places(findings) == [(4, "vector-cast")]
    assert "int4(value)" in findings[0].mend
    assert "as_type<int4>(value)" in findings[0].mend


@pytest.mark.parametrize("cast", ["*(thread int4*)&y", "*reinterpret_cast<thread int4*>(&y)"])
def test_reading_a_vector_as_another_through_a_pointer_is_found(cast: str) -> None:
    assert places(found(inside(f"float4 y = v[i]; int4 a = {cast}; x[i] = a.x;"))) == [(4, "vector-bit-cast")]


@pytest.mark.parametrize("cast", ["int4(v[i])", "(half4)v[i]", "(float4)v[i]", "as_type<int4>(v[i])"])
def test_a_conversion_that_says_what_it_means_is_not_found(cast: str) -> None:
    assert found(inside(f"auto a = {cast}; x[i] = a.x;")) == []


def test_source_that_does_not_compile_is_a_finding_and_no_error() -> None:
    findings = found(inside("x[i] = unknown;"))
    assert places(findings) == [(4, "syntax")]
    assert "unknown" in findings[0].message


def test_source_outside_the_subset_is_a_finding() -> None:
    body = "kernel void k(texture2d<float> image [[texture(0)]], device float* x) { x[0] = 1; }\n"
    (finding,) = found(body)
    assert (finding.line, finding.rule) == (3, "syntax")
    assert "texture" in finding.message


def test_headers_of_torch_are_not_linted_and_do_not_disturb() -> None:
    body = "#include <c10/metal/utils.h>\n" + inside("double y = c10::metal::max(x[i], 2.0f); x[i] = y;")
    assert places(found(body)) == [(5, "double")]


def test_a_file_is_linted_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "my kernel.metal"
    path.write_text(HEAD + inside("double y = 1; x[i] = y;"), encoding="utf-8")
    (finding,) = lint_file(path)
    assert (finding.file, finding.line) == (str(path), 4)


def test_the_module_describes_every_rule() -> None:
    from steelworks.metalsim import lint as module

    assert module.__doc__ is not None
    assert all(f"    {rule} " in module.__doc__ for rule in RULES)


def test_without_a_compiler_lint_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> subprocess.CompletedProcess[str]:
        raise ToolchainError(_toolchain.MEND)

    monkeypatch.setattr(_toolchain, "find_compiler", none)
    with pytest.raises(ToolchainError, match="Install clang"):
        lint(HEAD + SOUND)
