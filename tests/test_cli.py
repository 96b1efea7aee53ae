"""The commands, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import steelworks
from steelworks.cli import _compare, _environment, _isolated, _minilm, _options, _others
from steelworks.cli._load import Run, ScenarioResult
from steelworks.cli._run import check_outputs
from steelworks.cli.app import app

ROW_KEYS = {"name", "throughput_rps", "p50_ms", "p99_ms", "errors", "max_abs_difference"}
ROOT = Path(__file__).resolve().parent.parent

MODELS = '''
import os, threading
import torch
from torch import nn

def linear():
    torch.manual_seed(0)
    return nn.Linear(8, 2), [torch.randn(1, 8) for _ in range(6)]

class Holder:
    def __init__(self):
        self.model, self.requests = linear()

class Refusing(nn.Module):
    def forward(self, x):
        if x[0, 0] == 3:
            raise ValueError("three is refused")
        return x

def refusing():
    return Refusing(), [torch.full((1, 2), float(i)) for i in range(6)]

def misshapen():
    return nn.Linear(8, 2), [torch.randn(1, 8), torch.randn(1, 3)]

class Aborting(nn.Module):
    """Does what plain threads do on some devices: with more than one caller the process ends."""
    def forward(self, x):
        if threading.current_thread().name == "caller-1":
            os.abort()
        return x

def aborting():
    return Aborting(), [torch.zeros(1, 2)] * 4

def nothing(): return linear()[0], []
def no_module(): return (lambda x: x), [torch.zeros(1, 2)]
def no_pair(): return linear()[0]
def no_tensor(): return linear()[0], ["text"]
not_callable = 3
'''


@contextmanager
def plain_queue(call: Callable[[Any], Any]) -> Iterator[Callable[[Any], Any]]:
    yield call


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a module of factories, the current folder for the test."""
    (tmp_path / "factories.py").write_text(MODELS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("factories", None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_version_is_that_of_the_package() -> None:
    assert run("--version").output.strip() == f"steelworks {steelworks.__version__}"


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_version_and_the_help_are_shown_without_importing_torch(option: str) -> None:
    script = (
        "import sys; from steelworks.cli import main; import atexit; "
        "atexit.register(lambda: print('torch' in sys.modules)); "
        f"sys.argv = ['steelworks', {option!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    shown, last = done.stdout.strip().rsplit("\n", 1)
    assert "steelworks" in shown
    assert last == "False"


def test_help_names_every_command() -> None:
    output = run("--help").output
    assert all(command in output for command in ("demo", "bench", "doctor"))


# --- demo


def test_the_demo_answers_every_sentence_in_every_scenario_and_writes_its_files(tmp_path: Path) -> None:
    report, plot = tmp_path / "demo.json", tmp_path / "demo.png"
    done = run(
        "demo", "--requests", "12", "--callers", "3", "--device", "cpu",
        "--json", str(report), "--plot", str(plot),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("verdict: ok: BatchQueue answered")
    written = json.loads(report.read_text())
    assert [row["name"] for row in written["scenarios"]] == ["threads", "lock", "single", "oracle", "queue"]
    for row in written["scenarios"]:
        assert set(row) == ROW_KEYS
        assert row["errors"] == 0
        assert row["throughput_rps"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert 0 <= row["max_abs_difference"] < 1e-5
    assert written["settings"]["callers"] == 3
    assert written["versions"]["torch"] == torch.__version__
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_demo_embeds_into_unit_vectors_that_tell_meanings_apart() -> None:
    minilm = _minilm.load_minilm()
    with torch.inference_mode():
        cat, kitten, tax = (
            minilm.model(**minilm.tokenize(text))[0]
            for text in ("A cat sits on the mat.", "A kitten is sitting on a rug.", "Tax law was amended.")
        )
    assert cat.shape == (_minilm.EMBEDDING_SIZE,)
    assert cat.norm().item() == pytest.approx(1.0, abs=1e-5)
    assert cat @ kitten > 0.5 > cat @ tax


def test_padding_does_not_change_an_embedding() -> None:
    minilm = _minilm.load_minilm()
    x = minilm.tokenize("A cat sits on the mat.")
    padded = {key: nn.functional.pad(value, (0, 5)) for key, value in x.items()}
    with torch.inference_mode():
        torch.testing.assert_close(minilm.model(**padded), minilm.model(**x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("option", ["--callers", "--requests", "--repeats"])
def test_less_than_one_caller_or_request_is_refused(option: str) -> None:
    done = run("demo", option, "0")
    assert done.exit_code == 2
    assert f"error: {option} 0: at least 1 is needed" in done.output


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing/plot.png", "does not exist"), ("plot.bmp", "must end in"), ("folder.png", "is a folder")],
)
def test_a_plot_that_can_not_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(_minilm, "load_minilm", lambda: pytest.fail("the work has begun"))
    (tmp_path / "folder.png").mkdir()
    done = run("demo", "--plot", str(tmp_path / name))
    assert done.exit_code == 2
    assert reason in done.output


def test_checking_a_path_leaves_no_file_and_does_not_touch_one_that_is_there(tmp_path: Path) -> None:
    _options.require_writable(tmp_path / "new.json", "--json")
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "old.json").write_text("kept")
    _options.require_writable(tmp_path / "old.json", "--json")
    assert (tmp_path / "old.json").read_text() == "kept"


def test_a_missing_extra_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_options, "missing_packages", lambda extra: ["transformers"])
    done = run("demo", "--requests", "1")
    assert done.exit_code == 2
    assert "transformers" in done.output and "pip install 'steelworks[demo]'" in done.output


def test_a_plot_needs_matplotlib_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_options, "missing_packages", lambda extra: ["transformers"])
    check_outputs(tmp_path / "plot.png", None)
    monkeypatch.setattr(_options, "missing_packages", lambda extra: ["matplotlib"])
    with pytest.raises(_options.CommandError, match="--plot needs matplotlib"):
        check_outputs(tmp_path / "plot.png", None)


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "mps:7"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device: str) -> None:
    done = run("demo", "--device", device)
    assert done.exit_code == 2
    assert f"--device {device}" in done.output and "cpu" in done.output


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    done = run("demo", "--scenario", "psychic")
    assert done.exit_code == 2
    assert "threads, lock, single, oracle, queue" in done.output


# --- bench


@pytest.mark.parametrize("factory", ["linear", "Holder"])
def test_bench_measures_a_model_of_the_users_own(models: Path, factory: str) -> None:
    done = run("bench", "--model", f"factories:{factory}", "--callers", "2", "--json", "out.json")
    assert done.exit_code == 0, done.output
    written = json.loads((models / "out.json").read_text())
    assert [row["errors"] for row in written["scenarios"]] == [0, 0, 0, 0, 0]
    assert written["settings"]["requests"] == 6
    assert written["passed"] is True


def test_bench_takes_requests_again_when_more_are_asked_for(models: Path) -> None:
    run("bench", "--model", "factories:linear", "--callers", "2", "--requests", "20", "--json", "out.json")
    written = json.loads((models / "out.json").read_text())
    assert written["settings"]["requests"] == 20


def test_bench_runs_only_the_scenarios_that_were_named_and_the_reference(models: Path) -> None:
    run("bench", "--model", "factories:linear", "--scenario", "lock", "--json", "out.json")
    written = json.loads((models / "out.json").read_text())
    assert [row["name"] for row in written["scenarios"]] == ["lock", "single"]


def test_figures_that_other_programs_disturbed_are_said_to_be(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = iter([0.05, 0.6])  # the reference, then the lock
    monkeypatch.setattr(_compare.OtherLoad, "cores", lambda load: next(busy))
    done = run("bench", "--model", "factories:linear", "--scenario", "lock", "--json", "out.json")
    assert "disturbed: other programs kept cores busy meanwhile (lock 0.6)" in done.output
    assert json.loads((models / "out.json").read_text())["cores_used_by_others"] == {
        "single": 0.05,
        "lock": 0.6,
    }


@pytest.mark.parametrize("cores", [None, 0.1])
def test_figures_of_a_quiet_or_unknown_machine_are_not(
    models: Path, monkeypatch: pytest.MonkeyPatch, cores: float | None
) -> None:
    monkeypatch.setattr(_compare.OtherLoad, "cores", lambda load: cores)
    done = run("bench", "--model", "factories:linear", "--scenario", "lock")
    assert "disturbed" not in done.output


def test_what_others_did_is_what_the_machine_did_less_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, own, wall = iter([100.0, 108.0]), iter([10.0, 13.0]), iter([0.0, 10.0])
    monkeypatch.setattr(_others, "machine_seconds", lambda: next(machine))
    monkeypatch.setattr(_others, "own_seconds", lambda: next(own))
    monkeypatch.setattr(_others.time, "perf_counter", lambda: next(wall))
    assert _others.OtherLoad().cores() == pytest.approx(0.5)


def test_the_machine_s_busy_seconds_leave_out_idling_and_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_others, "_STAT", tmp_path / "stat")
    assert _others.machine_seconds() is None
    (tmp_path / "stat").write_text("cpu  100 20 3 9999 8888 4 5 7777 0 0\ncpu0 1 2 3\n")
    assert _others.machine_seconds() == pytest.approx(132 / os.sysconf("SC_CLK_TCK"))


def test_bench_keeps_every_repeat(models: Path) -> None:
    run(
        "bench", "--model", "factories:linear", "--scenario", "lock", "--repeats", "3",
        "--json", "out.json",
    )  # fmt: skip
    written = json.loads((models / "out.json").read_text())
    repeats = written["throughput_of_repeats"]["lock"]
    assert len(repeats) == 3
    row = next(row for row in written["scenarios"] if row["name"] == "lock")
    assert row["throughput_rps"] == sorted(repeats)[1]


def test_requests_that_the_model_refuses_are_errors_of_every_scenario(models: Path) -> None:
    done = run("bench", "--model", "factories:refusing", "--callers", "2", "--json", "out.json")
    written = json.loads((models / "out.json").read_text())
    errors = {row["name"]: row["errors"] for row in written["scenarios"]}
    assert (errors["threads"], errors["lock"], errors["single"], errors["queue"]) == (1, 1, 1, 1)
    assert "three is refused" in written["notes"]["queue"]
    assert done.exit_code == 1
    assert "verdict: FAILED" in done.output


def test_answers_that_differ_from_single_calls_fail_the_verdict(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_wrong(workload: Any, settings: Any, example: Any) -> Any:
        return plain_queue(lambda x: workload.model(x) + 0.5)

    monkeypatch.setattr(_compare, "open_queue", open_wrong)
    done = run("bench", "--model", "factories:linear", "--callers", "2")
    assert done.exit_code == 1
    assert "its answers differ by 0.5 from single calls" in done.output


def test_the_oracle_is_the_best_of_its_ways_to_spend_the_cores(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    seconds = {1: 3.0, 4: 2.0}

    def measured(workload: Any, requests: Any, device: Any, way: Any, progress: Any) -> Run:
        return Run(seconds[way.workers], [0.1] * len(requests), [None] * len(requests))

    monkeypatch.setattr(_compare, "run_oracle", measured)
    run("bench", "--model", "factories:linear", "--scenario", "oracle", "--json", "out.json")
    written = json.loads((models / "out.json").read_text())
    assert written["oracle"] == {"workers": 4, "threads_per_worker": 1, "batch_size": 32}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("factories", "write package.module:factory"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("factories:missing", "no function 'missing'"),
        ("factories:not_callable", "no function 'not_callable'"),
        ("factories:no_pair", "the factory returned Linear"),
        ("factories:no_module", "the model is a function"),
        ("factories:nothing", "the list of requests is empty"),
        ("factories:no_tensor", "request 0 is no tensor"),
        ("factories:misshapen", "the model refuses request 1, of shape [1, 3]: RuntimeError"),
    ],
)
def test_a_factory_that_does_not_fit_is_a_clear_error(models: Path, name: str, reason: str) -> None:
    done = run("bench", "--model", name)
    assert done.exit_code == 2
    assert reason in done.output


def test_plain_threads_that_end_their_process_are_shown_and_end_nothing_else(models: Path) -> None:
    done = run(
        "bench", "--model", "factories:aborting", "--callers", "2", "--isolate",
        "--scenario", "threads", "--json", "out.json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    written = json.loads((models / "out.json").read_text())
    row = next(row for row in written["scenarios"] if row["name"] == "threads")
    assert (row["throughput_rps"], row["errors"], row["p50_ms"]) == (0.0, 4, None)
    assert "was ended by SIGABRT" in written["notes"]["threads"]


def test_a_scenario_measured_in_its_own_process_gives_its_row(models: Path) -> None:
    row, note = _isolated.measure("threads", ["bench", "--model", "factories:linear", "--callers", "2"], 6)
    assert isinstance(row, ScenarioResult)
    assert (row.name, row.errors) == ("threads", 0) and row.throughput_rps > 0
    assert note == "measured in a process of its own"


# --- doctor


def test_doctor_says_what_applies_here_and_what_is_done_about_it() -> None:
    done = run("doctor")
    assert done.exit_code == 0, done.output
    for words in ("Python", "torch", "device cpu", "BatchQueue starts", "verdict:"):
        assert words in done.output


def test_doctor_writes_its_findings_as_json(tmp_path: Path) -> None:
    assert run("doctor", "--json", str(tmp_path / "doctor.json")).exit_code == 0
    written = json.loads((tmp_path / "doctor.json").read_text())
    cpu = next(device for device in written["devices"] if device["device"] == "cpu")
    assert cpu["capabilities"]["device_type"] == "cpu"
    assert all(set(hazard) == {"id", "summary", "measure"} for hazard in cpu["hazards"])
    assert written["torch"]["version"] == torch.__version__


def test_doctor_says_which_tools_of_the_evidence_are_here_and_how_to_get_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_compiler() -> Any:
        raise RuntimeError("apt install clang-19")

    monkeypatch.setattr("steelworks.metalsim._toolchain.find_compiler", no_compiler)
    monkeypatch.setattr("verification.tla.tlc.missing", lambda: "")
    monkeypatch.setattr("verification.tla.tlc.java", lambda: "/bin/the-java")
    output = run("doctor").output
    assert "clang (for steelworks metal, verify): missing: apt install clang-19" in output
    assert "java (for verify: models): /bin/the-java" in output
    for tool in ("lean", "cbmc", "objc"):
        assert f"tool      {tool} (for verify: " in output


def test_doctor_looks_for_the_tools_of_verify_in_a_source_checkout_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steelworks.cli._tools.ROOT", tmp_path)
    tools = json.loads(run("doctor", "--json", "-").output)["tools"]
    assert [tool["name"] for tool in tools] == ["clang"]


def test_doctor_prints_json_alone_when_asked_to() -> None:
    assert json.loads(run("doctor", "--json", "-").output)["steelworks"] == steelworks.__version__


def test_doctor_reports_a_device_that_can_not_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("driver too old")

    monkeypatch.setattr("steelworks.devices.resolve", broken)
    done = run("doctor")
    assert done.exit_code == 0
    assert "driver too old" in done.output


def test_the_extras_that_are_checked_are_those_of_the_project_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, packages in _environment.EXTRAS.items():
        declared = {line.split(">")[0] for line in project["optional-dependencies"][extra]}
        assert declared == set(packages), extra
