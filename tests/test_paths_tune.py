"""Measuring the paths, the profile on disk, and what the selector makes of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from steelworks import ops, paths
from steelworks.cli.app import app
from steelworks.errors import InvalidInputError
from steelworks.paths import Signature, _profile, _tune
from steelworks.paths._profile import Entry
from steelworks.paths._registry import REGISTRY

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


def _signature(columns: int, dtype: torch.dtype = torch.float32, device: str = "cuda") -> Signature:
    return Signature(OP, device, dtype, ((columns,),))


def _times(columns: int, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    return dict(_profile.times(_signature(columns, dtype), {"columns": columns}))


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
    assert min(calls.count("steel"), calls.count("vendor")) >= 4 * _tune._ROUNDS


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


def test_the_real_operations_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    small = ((1, 8), (2, 16))
    for family in ("softmax", "norms"):
        monkeypatch.setattr(sys.modules[f"steelworks.ops.{family}"], "ROWS", small)
    monkeypatch.setattr(sys.modules["steelworks.ops.linear"], "PRODUCTS", ((2, 8, 8),))
    with paths.simulate_metal():
        tuned = paths.tune("cpu", ["softmax", "layer_norm", "rms_norm", "linear"], [torch.float32])
    assert {e.op for e in tuned.entries} == {
        "softmax", "log_softmax", "layer_norm", "add_layer_norm", "rms_norm", "add_rms_norm", "linear",
    }  # fmt: skip
    assert not tuned.failures


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
        arguments = ["tune", "--device", "cpu", "--op", OP, "--dtype", "f32", "--json", str(file)]
        done = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert "columns 4096" in done.output
    assert "kept in" in done.output
    content = json.loads(file.read_text())
    assert [e["sizes"] for e in content["entries"]] == [{"columns": 4}, {"columns": 4096}]
    assert content["versions"]["torch"] == torch.__version__


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
