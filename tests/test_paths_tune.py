"""Measuring the paths, the profile on disk, and what the selector makes of it."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ops_helpers import shrink_examples
from typer.testing import CliRunner

from steelworks import ops, paths
from steelworks.cli.app import app
from steelworks.errors import InvalidInputError
from steelworks.paths import Signature, _profile, _tune
from steelworks.paths._profile import Entry
from steelworks.paths._registry import REGISTRY, implementation_of

OP = "of_the_tests"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache directory of the test's own, and nothing declared that was not there before."""
    monkeypatch.setattr(_profile, "directory", lambda: tmp_path / "paths")
    monkeypatch.setattr(_tune, "_ROUND_SECONDS", 1e-5)
    operations, implementations = REGISTRY.operations, REGISTRY.implementations
    _profile.forget()
    paths.refresh()
    yield tmp_path
    REGISTRY.operations, REGISTRY.implementations = operations, implementations
    monkeypatch.undo()
    _profile.forget()
    paths.refresh()


def _declare(calls: list[str], fails: str | None = None) -> None:
    def signature(x: torch.Tensor) -> tuple[Any, ...]:
        return (OP, x.device.type, x.dtype, (x.shape,), ())

    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for columns in (4, 4096):
            yield (torch.zeros(columns, device=device, dtype=dtype),)

    def run(path: str) -> Any:
        def body(x: torch.Tensor) -> torch.Tensor:
            calls.append(path)
            if path == fails:
                raise RuntimeError("it broke")
            return x

        return body

    paths.declare(
        OP, sizes=lambda s: {"columns": (s.shapes[0] or (1,))[-1]}, signature=signature, examples=examples
    )
    paths.register(OP, "any", "vendor", run=run("vendor"))
    paths.register(OP, "cpu", "steel", run=run("steel"))


@dataclass
class _Counted:
    dtypes: list[str]
    columns: list[int]
    rounds: int


def _counted(quick: bool, dtypes: list[torch.dtype] | None = None) -> _Counted:
    """What a measurement of three sizes does; rounds of the first call."""
    rounds = []

    def run(x: torch.Tensor) -> torch.Tensor:
        return x

    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for columns in (4, 8, 4096):
            yield (torch.zeros(columns, device=device, dtype=dtype),)

    _declare([])
    known = REGISTRY.operations[OP]
    paths.declare(OP, sizes=known.sizes, signature=known.signature, examples=examples)
    paths.register(OP, "cpu", "steel", run=run)
    with paths.simulate_metal(), pytest.MonkeyPatch.context() as patch:
        before = _tune._race
        patch.setattr(_tune, "_race", lambda *a: (rounds.append(a[4]), before(*a))[1])
        tuned = paths.tune("cpu", [OP], dtypes, quick=quick, write=False)
    return _Counted([e.dtype for e in tuned.entries], [e.sizes["columns"] for e in tuned.entries], rounds[0])


def _implementation(op: str, device: str, path: str) -> Any:
    found = implementation_of(op, device, path)
    assert found is not None, (op, device, path)
    return found


def _signature(columns: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> Signature:
    return Signature(OP, device, dtype, ((columns,),))


def _times(columns: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    return dict(_profile.times(_signature(columns, dtype), {"columns": columns}))


def _times_on_the_cpu(columns: int) -> dict[str, float]:
    return dict(_profile.times(_signature(columns, device="cpu"), {"columns": columns}))


def test_every_possible_path_is_measured_for_every_example_and_dtype() -> None:
    calls: list[str] = []
    _declare(calls)
    titles: list[tuple[str, int, int]] = []
    with paths.simulate_metal():
        tuned = paths.tune("cpu", [OP], [torch.float32, torch.float16], progress=lambda *t: titles.append(t))
    assert [(e.dtype, e.sizes["columns"]) for e in tuned.entries] == [
        ("float32", 4), ("float32", 4096), ("float16", 4), ("float16", 4096),
    ]  # fmt: skip
    for entry in tuned.entries:
        assert set(entry.seconds) == {"steel", "vendor"}
        assert all(s > 0 for s in entry.seconds.values())
    assert titles == [(f"{OP} float32", 0, 2), (f"{OP} float16", 1, 2)]
    assert min(calls.count("steel"), calls.count("vendor")) >= 4 * _tune._WHOLE.rounds


def test_what_was_measured_is_kept_and_explained() -> None:
    _declare([])
    with paths.simulate_metal():
        before = paths.explain(OP, [(4,)], torch.float32, "cpu")
        tuned = paths.tune("cpu", [OP], [torch.float32])
        after = paths.explain(OP, [(4,)], torch.float32, "cpu")
    assert tuned.file is not None and tuned.file.is_file()
    assert {c.seconds for c in before.candidates} == {None}
    measured = {c.path: c.seconds for c in after.candidates}
    assert measured == {"graph": None, **tuned.entries[0].seconds}
    assert re.search(r"vendor possible, \d+\.\d us when measured here", str(after))


def test_without_keeping_nothing_is_written(cache: Path) -> None:
    _declare([])
    with paths.simulate_metal():
        tuned = paths.tune("cpu", [OP], [torch.float32], write=False)
    assert tuned.file is None and tuned.entries
    assert not list(cache.rglob("*.json"))


def test_selecting_writes_and_measures_nothing(cache: Path) -> None:
    calls: list[str] = []
    _declare(calls)
    with paths.simulate_metal():
        paths.choose(_signature(4, device="cpu"))
    assert not calls
    assert not list(cache.iterdir())


def test_a_path_that_fails_is_named_and_its_calls_are_left_out() -> None:
    _declare([], fails="steel")
    with paths.simulate_metal():
        tuned = paths.tune("cpu", [OP], [torch.float32])
    assert tuned.entries == ()
    assert tuned.file is None
    assert tuned.failures[0] == f"{OP} on the steel path: RuntimeError: it broke"


# --- the operations that there are ----------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The typical calls with no size above 16: simulated kernels are slow."""
    shrink_examples(monkeypatch.setitem)


def _with_a_choice() -> dict[str, set[str]]:
    """By operation, the devices on which a kernel of ours stands beside PyTorch's."""
    _tune._examples_of_ours()
    found: dict[str, set[str]] = {}
    for op, device, path in REGISTRY.implementations:
        if path == "steel":
            found.setdefault(op, set()).add(device)
    return found


def test_every_operation_with_a_kernel_of_ours_has_typical_calls_that_it_takes(tiny: None) -> None:
    devices = _with_a_choice()
    assert len(devices) > 60
    for op, on in devices.items():
        operation = REGISTRY.operations[op]
        examples = _tune.examples_of(operation)
        assert examples is not None and operation.signature is not None, f"{op} can't be tuned"
        vendor = _implementation(op, "cpu", "vendor")
        taken: dict[str, int] = dict.fromkeys(on, 0)
        for arguments in examples(torch.device("cpu"), torch.float16):
            signature = Signature(*operation.signature(*arguments))
            assert operation.sizes(signature)
            vendor.run(*arguments)
            for device in on:
                elsewhere = signature._replace(device=device)
                taken[device] += _implementation(op, device, "steel").possible(elsewhere) is None
        assert all(taken.values()), f"{op}: a device takes none of its typical calls: {taken}"


def test_calls_of_an_operation_differ_in_what_the_profile_knows_of_them() -> None:
    ours = _tune._examples_of_ours()
    for op in ("linear", "attention", "quantized_linear", "top_k", "lora_linear", "multi_lora_linear"):
        operation = REGISTRY.operations[op]
        assert operation.signature is not None
        seen = []
        with torch.device("meta"):
            for call in ours.CALLS[ours._KINDS[op].calls]:
                if "int" in call.variant:  # quantizing needs numbers
                    seen.append({"call": call})
                    continue
                arguments = ours._KINDS[op].make(ours.Draw(torch.device("meta"), torch.float16), call)
                seen.append(dict(operation.sizes(Signature(*operation.signature(*arguments)))))
        assert not [s for n, s in enumerate(seen) if s in seen[:n]], op


#: One of each kind; the others differ in what they compute.
REAL = (
    "softmax", "log_softmax", "layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "linear", "qkv_linear",
    "matmul", "bmm", "attention", "lora_linear", "lora_linear_forward", "lora_linear_backward", "multi_lora_linear",
    "quantized_linear", "top_k", "conv2d", "rope", "embedding", "sort", "copy", "cumsum", "cummax", "sum", "max",
    "argmax", "exp", "add", "lt",
)  # fmt: skip


@pytest.mark.parametrize("op", REAL)
def test_the_real_operations_are_measured_through_their_metal_kernels(
    op: str, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tune, "_WARM_UPS", 1)
    with paths.simulate_metal():
        tuned = paths.tune("cpu", [op], [torch.float16], quick=True, write=False)
    mine = [e for e in tuned.entries if e.op == op]
    assert 1 <= len(mine) <= 2 * len({e.op for e in tuned.entries})
    for entry in tuned.entries:
        assert set(entry.seconds) == {"steel", "vendor"}
    assert not tuned.failures and not tuned.left


def test_the_real_operations_are_measured_through_their_triton_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is not made for this platform")
    child = Path(__file__).with_name("ops") / "_tune_child.py"
    done = subprocess.run(
        [sys.executable, str(child)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0 and "all measured" in done.stdout, done.stdout + done.stderr


# --- what bounds it -------------------------------------------------------------------------------------------


def test_quick_takes_the_first_two_calls_in_one_dtype_and_fewer_rounds() -> None:
    quick, whole = _counted(quick=True), _counted(quick=False)
    assert quick.dtypes == ["float16"] * 2 and quick.columns == [4, 8]
    assert whole.dtypes == ["float32"] * 3 + ["float16"] * 3 + ["bfloat16"] * 3
    assert quick.rounds < whole.rounds


def test_given_dtypes_count_in_a_quick_run_too() -> None:
    assert _counted(quick=True, dtypes=[torch.float32]).dtypes == ["float32"] * 2


def test_when_the_time_is_up_no_further_call_is_begun_and_what_was_measured_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(_tune.time, "monotonic", lambda: now[0])
    calls: list[str] = []
    _declare(calls)
    known = REGISTRY.operations[OP]

    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        for columns in (4, 64, 4096):
            yield (torch.zeros(columns, device=device, dtype=dtype),)
            now[0] += 4

    paths.declare(OP, sizes=known.sizes, signature=known.signature, examples=examples)
    with paths.simulate_metal():
        tuned = paths.tune("cpu", [OP], [torch.float32, torch.float16], seconds=7.0)
    assert [e.sizes["columns"] for e in tuned.entries] == [4, 64]
    assert tuned.left == (f"{OP} float32", f"{OP} float16")
    assert tuned.file is not None and _times_on_the_cpu(64)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(seconds: float) -> None:
    with paths.simulate_metal(), pytest.raises(InvalidInputError, match="a number above 0 is needed"):
        paths.tune("cpu", ["softmax"], seconds=seconds)


def test_a_measurement_of_some_sizes_leaves_those_of_others_as_they_were() -> None:
    _write((64, 1.0, 2.0), (4096, 3.0, 4.0))
    _write((64, 5.0, 6.0))
    assert _times(64) == {"steel": 5.0, "vendor": 6.0}
    assert _times(4096) == {"steel": 3.0, "vendor": 4.0}


@pytest.mark.parametrize(("given", "near"), [(0, True), (1, False), (4, False)])
def test_what_was_measured_without_something_says_nothing_of_calls_with_it(given: int, near: bool) -> None:
    assert (_profile._distance({"after": 0}, {"after": given}) == 0) is near
    assert (_profile._distance({"after": given}, {"after": 0}) == 0) is near


def test_an_operation_with_one_path_on_the_device_is_refused_by_name_and_left_out_of_all() -> None:
    _declare([])
    with pytest.raises(InvalidInputError, match="sort has one path on 'cuda', vendor, so there is nothing"):
        _tune._operations(["sort"], "cuda")
    on_cuda = {o.name for o in _tune._operations(None, "cuda")}
    assert on_cuda == {op for op, devices in _with_a_choice().items() if "cuda" in devices}
    assert {o.name for o in _tune._operations(None, "mps")} > on_cuda - {"dequantize"}


def test_tuning_leaves_the_random_numbers_of_the_user_alone() -> None:
    def examples(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[Any, ...]]:
        yield (torch.randn(4, device=device, dtype=dtype),)

    _declare([])
    known = REGISTRY.operations[OP]
    paths.declare(OP, sizes=known.sizes, signature=known.signature, examples=examples)
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    with paths.simulate_metal():
        paths.tune("cpu", [OP], [torch.float32])
    assert torch.equal(torch.rand(3), want)


def test_what_can_not_be_measured_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the CPU has one path"):
        paths.tune("cpu")
    with paths.simulate_metal():
        with pytest.raises(InvalidInputError, match="no operation 'softmux'"):
            paths.tune("cpu", ["softmux"])
        paths.declare(OP, sizes=lambda s: {})
        with pytest.raises(InvalidInputError, match="has no examples"):
            paths.tune("cpu", [OP])


# --- the profile ----------------------------------------------------------------------------------------------


def _write(*entries: tuple[int, float, float], dtype: str = "float32") -> Path:
    made = [Entry(OP, dtype, {"columns": c}, {"steel": s, "vendor": v}) for c, s, v in entries]
    file = _profile.write("cuda", made)
    _profile.forget()
    paths.refresh()
    return file


def test_the_nearest_sizes_count_and_far_ones_do_not() -> None:
    _write((64, 1.0, 2.0), (1024, 3.0, 4.0))
    assert _times(64) == {"steel": 1.0, "vendor": 2.0}
    assert _times(200) == {"steel": 1.0, "vendor": 2.0}
    assert _times(400) == {"steel": 3.0, "vendor": 4.0}
    assert _times(4096) == {"steel": 3.0, "vendor": 4.0}
    assert _times(4097) == {}
    assert _times(15) == {}
    assert _times(64, torch.float16) == {}


@pytest.mark.parametrize("calls", [1, 7])
def test_a_time_is_that_of_one_call_however_many_a_round_has(
    calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [5.0]
    monkeypatch.setattr(_tune.time, "perf_counter", lambda: now[0])

    def run(seconds: float) -> None:
        now[0] += seconds

    assert _tune._round(run, (0.25,), torch.device("cpu"), calls) == 0.25


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_of_several_sizes_nearby_the_nearest_counts(order: tuple[int, ...]) -> None:
    entries = ((64, 1.0, 2.0), (128, 3.0, 4.0), (256, 5.0, 6.0))
    _write(*(entries[i] for i in order))
    assert [_times(columns)["steel"] for columns in (60, 80, 100, 130, 180, 182, 250)] == [
        1,
        1,
        3,
        3,
        3,
        5,
        5,
    ]


def test_the_selector_takes_what_was_faster_by_size() -> None:
    _declare([])
    paths.register(OP, "cuda", "steel", run=len)
    _write((64, 1e-6, 2e-6), (1024, 4e-6, 3e-6))
    assert paths.choose(_signature(64)).path == "steel"
    assert paths.choose(_signature(64)).rule == "profile"
    assert paths.choose(_signature(1024)).path == "vendor"
    assert paths.choose(_signature(1 << 20)).rule == "default"


def test_measuring_again_replaces_only_the_same_operation_and_dtype() -> None:
    _write((64, 1.0, 2.0))
    _write((64, 5.0, 6.0), dtype="float16")
    _write((64, 3.0, 4.0))
    assert _times(64) == {"steel": 3.0, "vendor": 4.0}
    assert _times(64, torch.float16) == {"steel": 5.0, "vendor": 6.0}


@pytest.mark.parametrize("package", ["steelworks", "triton", "torch.__version__"])
def test_a_profile_of_other_versions_is_not_used(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _write((64, 1.0, 2.0))
    _profile.forget()
    assert _times(64)
    if package == "torch.__version__":
        monkeypatch.setattr(_profile.torch, "__version__", "9.9.9")
    else:
        before = _profile.importlib.metadata.version
        monkeypatch.setattr(
            _profile.importlib.metadata, "version", lambda name: "9.9.9" if name == package else before(name)
        )
    _profile.forget()
    assert _times(64) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 1}', '{"format": 99}', "\x00"])
def test_a_broken_profile_is_ignored_with_one_warning(text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = _write((64, 1.0, 2.0))
    file.write_text(text)
    _profile.forget()
    with caplog.at_level(logging.WARNING):
        assert _times(64) == {}
        assert _times(64) == {}
    assert len(caplog.records) <= 1
    _write((64, 1.0, 2.0))
    assert _times(64)


def test_a_profile_whose_machine_was_edited_is_not_used() -> None:
    file = _write((64, 1.0, 2.0))
    content = json.loads(file.read_text())
    content["machine"]["name"] = "another"
    file.write_text(json.dumps(content))
    _profile.forget()
    assert _times(64) == {}


def test_no_half_written_file_is_left_when_writing_fails(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(_profile.json, "dump", fail)
    with pytest.raises(OSError, match="full"):
        _profile.write("cuda", [Entry(OP, "float32", {"columns": 1}, {"steel": 1.0})])
    assert not [f for f in cache.rglob("*") if f.is_file()]


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_shows_the_times_and_where_they_are_kept(tmp_path: Path) -> None:
    _declare([])
    file = tmp_path / "times.json"
    with paths.simulate_metal():
        arguments = ["tune", "--device", "cpu", "--only", OP, "--dtype", "f32", "--json", str(file)]
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "columns 4096" in done.output
    assert "kept in" in done.output
    content = json.loads(file.read_text())
    assert [e["sizes"] for e in content["entries"]] == [{"columns": 4}, {"columns": 4096}]
    assert content["versions"]["torch"] == torch.__version__


def test_the_command_can_be_quick_and_says_what_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    _declare([])
    asked: dict[str, Any] = {}
    before = _tune.tune

    def tune(*given: Any, **more: Any) -> Any:
        asked.update(more)
        return replace(before(*given, **more), left=("sort float16",))

    monkeypatch.setattr(paths, "tune", tune)
    with paths.simulate_metal():
        arguments = ["tune", "--device", "cpu", "--quick", "--seconds", "9", "--only", OP, "--no-keep"]
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert (asked["quick"], asked["seconds"], asked["write"]) == (True, 9.0, False)
    assert "time was up; not (wholly) measured: sort float16" in done.output
    assert "float16" in done.output and "float32" not in done.output
    assert "nothing was kept" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "the CPU has one path"),
        (["--dtype", "f64"], "allowed are f32, f16, bf16"),
        (["--device", "tpu"], "not available here"),
        (["--op", "softmux", "--device", "cpu"], "there is no operation|the CPU has one path"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["tune", *arguments])
    assert done.exit_code == 2
    assert re.search(said, done.output + (done.stderr or "")), done.output


def test_the_operations_still_answer_after_a_profile_was_written() -> None:
    _write((64, 1.0, 2.0))
    x = torch.randn(2, 4)
    assert torch.equal(ops.softmax(x), torch.softmax(x, -1))
