"""``steelworks metal check | run | lint``, as a user calls them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from typer.testing import CliRunner

from steelworks.cli import _metal_child, _metal_spec
from steelworks.cli._metal_child import Outcome, run_job
from steelworks.cli._metal_job import FOUR_SCHEDULES, Job, NotRunnableError, run
from steelworks.cli._options import CommandError
from steelworks.cli.app import app
from steelworks.metalsim import _toolchain
from steelworks.metalsim.errors import ToolchainError

SOURCE = """#include <metal_stdlib>
using namespace metal;
kernel void scale(device const float* x, device float* out, constant float& by,
                  uint i [[thread_position_in_grid]]) {
  out[i] = x[i] * by;
}
kernel void turned(device const float* x, device float* out, uint t [[thread_position_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];
#ifdef FIXED
  threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
  out[t] = tile[63 - t];
}
kernel void half_written(device half* out, uint i [[thread_position_in_grid]]) {
  if (i % 2 == 0) out[i] = 1;
}
kernel void far_away(device float* out, constant long& at) { out[at] = 1; }
kernel void endless(device const int* x, device int* out) {
  int i = 0;
  while (x[i % 2] == 0) ++i;
  out[0] = i;
}
kernel void order(device atomic_int* counter, device int* out, uint i [[thread_position_in_grid]]) {
  out[i] = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}
kernel void add(device int* x, device const int* y, constant int* n, uint2 p [[thread_position_in_grid]]) {
  x[p.y * n[1] + p.x] += y[p.y * n[1] + p.x] + n[0];
}
kernel void too_large(device float* out) {
  threadgroup float a[9000];
  a[0] = 1;
  out[0] = a[0];
}
"""
TURNED = [
    "--kernel",
    "turned",
    "--threads",
    "64",
    "--group",
    "64",
    "--arg",
    "f32[64]=randn",
    "--arg",
    "f32[64]=empty",
]


def compiler_missing() -> bool:
    try:
        _toolchain.find_compiler()
    except ToolchainError:
        return True
    return False


needs_clang = pytest.mark.skipif(compiler_missing(), reason="needs clang++ 17 or newer")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the current folder, so that its name is the same in each test, and it is compiled once."""
    monkeypatch.chdir(tmp_path)
    path = Path("kernels.metal")
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process: starting a child takes seconds, and few tests are about it."""

    def run_here(job: Job, timeout: float) -> Outcome:
        outcome = Outcome(job.kernel)
        merger = _metal_child._Merger(outcome)
        try:
            run(job, lambda event: merger.take(json.loads(json.dumps(event))))
        except NotRunnableError as problem:
            merger.take({"event": "refused", "reason": str(problem)})
        return outcome

    monkeypatch.setattr(_metal_child, "run_job", run_here)


Metal = Callable[..., tuple[int, str]]


@pytest.fixture
def metal(file: Path) -> Metal:
    """Calls ``steelworks metal COMMAND FILE ...``; exit status and all output."""

    def call(command: str, *arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["metal", command, str(file), *arguments], env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return call


def from_json(metal: Metal, command: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    status, output = metal(command, *arguments, "--json")
    data: dict[str, Any] = json.loads(output)
    return status, data


@needs_clang
@pytest.mark.usefixtures("here")
class TestCheck:
    def test_a_clean_kernel_ends_with_status_0(self, metal: Metal) -> None:
        status, output = metal("check", *TURNED, "-D", "FIXED")
        assert status == 0
        assert "no findings under 4 schedules" in output

    def test_a_race_ends_with_status_1_and_shows_both_lines(self, metal: Metal) -> None:
        status, output = metal("check", *TURNED)
        assert status == 1
        assert "data race in threadgroup memory in 'tile'" in output
        assert "kernels.metal:9: tile[t] = x[t];" in output
        assert "kernels.metal:13: out[t] = tile[63 - t];" in output
        assert "mend: put threadgroup_barrier" in output

    def test_a_definition_keeps_the_line_numbers(self, metal: Metal) -> None:
        _, data = from_json(metal, "check", *TURNED, "-D", "OTHER", "-D", "MORE=2")
        lines = {a["line"] for f in data["findings"] for a in (f["first"], f["second"]) if a}
        assert lines == {9, 13}

    def test_json_has_the_launch_the_findings_and_the_schedules_that_showed_them(self, metal: Metal) -> None:
        status, data = from_json(metal, "check", *TURNED)
        assert (status, data["status"], data["clean"], data["kernel"]) == (1, 1, False, "turned")
        assert data["arguments"] == ["f32[64]=randn", "f32[64]=empty"]
        assert data["schedules"] == list(FOUR_SCHEDULES)
        races = [f for f in data["findings"] if f["kind"] == "race_threadgroup"]
        assert len(races) == 1
        assert races[0]["schedules"] == list(FOUR_SCHEDULES)

    def test_schedules_can_be_chosen(self, metal: Metal) -> None:
        _, data = from_json(metal, "check", *TURNED, "--schedule", "run_ahead/reverse", "--schedule", "ring")
        assert data["schedules"] == ["run_ahead/reverse", "ring/forward"]

    def test_an_output_left_out_is_found(self, metal: Metal) -> None:
        launch = ("--kernel", "half_written", "--threads", "8", "--group", "8", "--arg", "f16[8]=empty")
        status, data = from_json(metal, "check", *launch)
        assert status == 1
        assert [(f["kind"], f["variable"], f["bytes"]) for f in data["findings"]] == [("unwritten", "out", 8)]

    def test_what_is_not_left_empty_needs_no_writing(self, metal: Metal) -> None:
        launch = ("--kernel", "half_written", "--threads", "8", "--group", "8", "--arg", "f16[8]=zeros")
        assert metal("check", *launch)[0] == 0

    def test_a_result_that_depends_on_the_order_is_noted_and_no_finding(self, metal: Metal) -> None:
        launch = ("--threads", "64", "--group", "32", "--arg", "i32[1]=zeros", "--arg", "i32[64]=empty")
        status, output = metal("check", "--kernel", "order", *launch)
        assert status == 0
        assert "note: 'out' differs between the schedules" in output

    def test_an_unknown_kernel_ends_with_status_2_and_names_those_that_are_there(self, metal: Metal) -> None:
        status, output = metal("check", "--kernel", "missing", "--threads", "1")
        assert status == 2
        assert "there is no kernel 'missing'" in output
        assert "scale" in output

    def test_a_kernel_must_be_named_where_there_are_several(self, metal: Metal) -> None:
        status, output = metal("check", "--threads", "1")
        assert status == 2
        assert "name one with --kernel" in output

    def test_a_buffer_without_argument_ends_with_status_2(self, metal: Metal) -> None:
        status, output = metal("check", "--kernel", "scale", "--threads", "1", "--arg", "f32[1]=ones")
        assert status == 2
        assert "1 'out', 2 'by'" in output

    def test_too_much_threadgroup_memory_ends_with_status_2(self, metal: Metal) -> None:
        status, output = metal("check", "--kernel", "too_large", "--threads", "1", "--arg", "f32[1]=empty")
        assert status == 2
        assert "threadgroup memory size (36000)" in output

    def test_source_that_does_not_compile_ends_with_status_2_and_the_line(
        self, metal: Metal, file: Path
    ) -> None:
        file.write_text("kernel void k(device float* x) {\n  x[0] = unknown;\n}\n", encoding="utf-8")
        status, output = metal("check", "--threads", "1", "--arg", "f32[1]=empty")
        assert status == 2
        assert "kernels.metal:2:" in output.replace("\n", "")

    def test_only_kernel_of_a_file_needs_no_name(self, metal: Metal, file: Path) -> None:
        file.write_text("kernel void k(device float* x) { x[0] = 1; }\n", encoding="utf-8")
        assert metal("check", "--threads", "1", "--arg", "f32[1]=empty")[0] == 0


@needs_clang
@pytest.mark.usefixtures("here")
class TestRun:
    def test_run_prints_what_was_written(self, metal: Metal) -> None:
        launch = ("--threads", "4", "--group", "4", "--arg", "f32[4]=arange", "--arg", "f32[4]=empty")
        status, output = metal("run", "--kernel", "scale", *launch, "--arg", "f32=2.5")
        assert status == 0
        assert "out f32[4]" in output
        assert "[0, 2.5, 5, 7.5]" in output

    def test_run_saves_what_was_written(self, metal: Metal, tmp_path: Path) -> None:
        numpy.save(tmp_path / "x.npy", numpy.arange(6, dtype=numpy.float32).reshape(2, 3))
        launch = (
            "--threads",
            "6",
            "--group",
            "2",
            "--arg",
            f"{tmp_path}/x.npy",
            "--arg",
            "f32[2,3]=full(-1)",
        )
        status, _ = metal("run", "--kernel", "scale", *launch, "--arg", "f32=2", "--save", str(tmp_path))
        assert status == 0
        assert numpy.load(tmp_path / "1_out.npy").tolist() == [[0, 2, 4], [6, 8, 10]]

    def test_lists_of_values_and_one_tensor_twice_can_be_passed(self, metal: Metal) -> None:
        arguments = ("--arg", "i32[2,3]=arange", "--arg", "@0", "--arg", "i32=10,3")
        _, data = from_json(metal, "run", "--kernel", "add", "--threads", "3,2", "--group", "3", *arguments)
        assert data["outputs"][0]["first"] == [10, 12, 14, 16, 18, 20]

    def test_what_stays_unwritten_is_shown_as_nan(self, metal: Metal) -> None:
        launch = ("--kernel", "half_written", "--threads", "4", "--group", "4", "--arg", "f16[4]=empty")
        _, data = from_json(metal, "run", *launch)
        assert data["outputs"][0]["first"] == [1.0, "nan", 1.0, "nan"]
        assert data["outputs"][0]["nan"] == 2


@needs_clang
class TestChild:
    def job(self, kernel: str, *arguments: str, check: bool = True) -> Job:
        return Job("kernels.metal", SOURCE, kernel, (1,), (1,), arguments, 0, ("ring/forward",), check)

    def test_a_child_tells_what_it_found(self) -> None:
        outcome = run_job(self.job("half_written", "f16[2]=empty"), timeout=60)
        assert [f.finding["kind"] for f in outcome.findings] == ["unwritten"]
        assert (outcome.status, outcome.reason) == (1, "")

    def test_an_endless_kernel_is_stopped_and_ends_with_status_2(self) -> None:
        outcome = run_job(self.job("endless", "i32[2]=zeros", "i32[1]=zeros", check=False), timeout=0.5)
        assert outcome.status == 2
        assert "did not end within 0.5 s under schedule ring/forward" in outcome.reason

    def test_a_child_that_is_killed_while_it_runs_a_kernel_is_a_finding(self) -> None:
        outcome = Outcome("k")
        merger = _metal_child._Merger(outcome)
        merger.take({"event": "launch", "schedule": "ring/forward"})
        merger.crashed(-11, "something\nwent wrong")
        (found,) = outcome.findings
        assert found.finding["kind"] == "crash"
        assert "SIGSEGV" in found.finding["detail"]
        assert "went wrong" in found.finding["detail"]
        assert outcome.status == 1

    def test_a_child_that_dies_before_the_launch_is_not_runnable(self) -> None:
        outcome = Outcome("k")
        _metal_child._Merger(outcome).crashed(1, "ImportError: no torch")
        assert outcome.status == 2
        assert "ended with status 1: ImportError: no torch" in outcome.reason

    def test_a_write_far_outside_harms_nothing(self) -> None:
        outcome = run_job(self.job("far_away", "f32[4]=zeros", "i64=100000000"), timeout=60)
        assert [f.finding["kind"] for f in outcome.findings] == ["out_of_bounds"]


@needs_clang
class TestLint:
    def test_findings_end_with_status_1(self, metal: Metal, file: Path) -> None:
        file.write_text("kernel void k(device float* x) {\n  double y = 1; x[0] = y;\n}\n", encoding="utf-8")
        status, output = metal("lint")
        assert status == 1
        assert "kernels.metal:2: error: Metal has no double  [double]" in output

    def test_clean_source_ends_with_status_0(self, metal: Metal) -> None:
        status, data = from_json(metal, "lint")
        assert (status, data) == (0, {"clean": True, "findings": []})

    def test_a_rule_can_be_ignored(self, metal: Metal, file: Path) -> None:
        file.write_text("kernel void k(device float* x) { double y = 1; x[0] = y; }\n", encoding="utf-8")
        assert metal("lint", "--ignore", "double")[0] == 0

    def test_an_unknown_rule_is_refused(self, metal: Metal) -> None:
        status, output = metal("lint", "--ignore", "everything")
        assert status == 2
        assert "address-space" in output


@needs_clang
def test_the_kernels_of_a_file_are_listed(metal: Metal) -> None:
    status, output = metal("check", "--list")
    assert status == 0
    assert "scale(x, out, by)" in output
    status, data = from_json(metal, "run", "--list")
    assert [k["name"] for k in data["kernels"]][:2] == ["scale", "turned"]
    assert data["kernels"][0]["line"] == 3


@pytest.mark.parametrize("command", ["check", "run"])
def test_without_a_compiler_a_launch_ends_with_status_2_and_the_mend(
    metal: Metal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("STEELWORKS_CLANG", "/no/such/clang++")
    status, output = metal(command, *TURNED)
    assert status == 2
    assert "apt install clang-19" in output


@pytest.mark.parametrize("command", ["lint", "check"])
def test_without_a_compiler_lint_and_list_end_with_status_2_and_the_mend(
    metal: Metal, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def none() -> None:
        raise ToolchainError(_toolchain.MEND)

    monkeypatch.setattr(_toolchain, "find_compiler", none)
    status, output = metal(command, *(["--list"] if command == "check" else []))
    assert status == 2
    assert "apt install clang-19" in output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--threads is missing"),
        (["--threads", "0"], "one to three whole numbers above 0"),
        (["--threads", "1,2,3,4"], "one to three whole numbers above 0"),
        (["--threads", "8", "--group", "x"], "--group x"),
        (["--threads", "8", "--schedule", "sideways"], "--schedule sideways"),
        (["--threads", "8", "--arg", "f99[3]=ones"], "'f99' is no dtype"),
        (["--threads", "8", "--arg", "i32[3]=randn"], "use randint(a,b)"),
        (["--threads", "8", "--arg", "f32[3]=heap"], "'heap' is no fill"),
        (["--threads", "8", "--arg", "f32=randn"], "a tensor needs a shape"),
        (["--threads", "8", "--arg", "i32[3]=randint(5,5)"], "a must be below b"),
        (["--threads", "8", "--arg", "missing.npy"], "there is no file missing.npy"),
        (["--threads", "8", "--arg", "@0"], "names no earlier argument"),
        (["--threads", "8", "--seed", "-1"], "--seed -1"),
        (["--threads", "8", "--define", "1x"], "--define 1x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_option_is_refused_with_what_is_allowed(
    metal: Metal, arguments: list[str], told: str
) -> None:
    status, output = metal("check", *arguments)
    assert status == 2
    assert told in output


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["metal", "check", str(tmp_path / "none.metal"), "--threads", "1"])
    assert result.exit_code == 2
    assert "can't be read" in result.output


@pytest.mark.parametrize(
    ("spec", "dtype", "values"),
    [
        ("f32[3]=arange", torch.float32, [0, 1, 2]),
        ("bf16[2]=ones", torch.bfloat16, [1, 1]),
        ("u32[2]=full(0xFFFFFFFF)", torch.uint32, [0xFFFFFFFF] * 2),
        ("i8[2]=full(-3)", torch.int8, [-3, -3]),
        ("bool[2]=zeros", torch.bool, [False, False]),
        ("f16[]=full(0.5)", torch.float16, 0.5),
        ("i64[3]=randint(4,5)", torch.int64, [4, 4, 4]),
        ("u8[2]=empty", torch.uint8, [255, 255]),
    ],
)
def test_a_tensor_is_made_as_written(spec: str, dtype: torch.dtype, values: object) -> None:
    (tensor,) = _metal_spec.build((_metal_spec.parse(spec, 0),), seed=0)
    assert tensor.dtype == dtype
    assert tensor.tolist() == values


def test_random_tensors_depend_on_the_seed_and_on_their_place() -> None:
    specs = tuple(_metal_spec.parse("f32[16]=randn", i) for i in range(2))
    first, again, other = (_metal_spec.build(specs, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    numpy.save(tmp_path / "x.npy", numpy.zeros((2, 2), dtype=numpy.float64))
    with pytest.raises(CommandError, match=r"has shape \[2, 2\], not \[4\]"):
        _metal_spec.build((_metal_spec.parse(f"f32[4]={tmp_path}/x.npy", 0),), 0)
    with pytest.raises(CommandError, match="float64, which no Metal device has"):
        _metal_spec.build((_metal_spec.parse(f"{tmp_path}/x.npy", 0),), 0)


@pytest.mark.parametrize(
    ("spec", "cast"),
    [
        ("i64=7", None),
        ("i32=7", "int32"),
        ("f32=0.5", None),
        ("f16=0.5", "fp16"),
        ("u32=7", "int32"),
        ("bool=1", "uint8"),
    ],
)
def test_a_value_is_cast_to_what_was_written(spec: str, cast: str | None) -> None:
    assert _metal_spec.parse(spec, 0).cast == cast


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "metalsim.md"


def fences(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def mended(source: str, diff: str) -> str:
    """``source`` after the replacements of a diff without context: - lines by the + lines behind them."""
    for old, new in re.findall(r"^-(.*)\n((?:\+.*\n)+)", diff, flags=re.MULTILINE):
        assert old in source
        source = source.replace(old, "\n".join(line[1:] for line in new.splitlines()))
    return source


@needs_clang
@pytest.mark.usefixtures("here")
def test_the_document_shows_what_the_commands_print(file: Path) -> None:
    (source,), (diff,) = fences("metal"), fences("diff")
    sessions = fences("console")
    assert len(sessions) == 3
    for number, session in enumerate(sessions):
        Path("row_sum.metal").write_text(mended(source, diff) if number else source, encoding="utf-8")
        command, _, shown = session.partition("\n")
        words = shlex.split(command.removeprefix("$ steelworks "))
        result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert result.output == shown


@needs_clang
def test_the_python_examples_of_the_document_run(monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {}
    for example in fences("python"):
        exec(compile(example, "metalsim.md", "exec"), names)
    for schedule, order in names["SCHEDULES"]:
        names["test_scale_is_right_and_has_no_defects"](schedule, order)
    names["test_code_written_for_torch_mps"](monkeypatch)
