"""The selector: what is forced, hazards, defaults; caching, threads and tasks; what explain says."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from steelworks import ops, paths
from steelworks.errors import InvalidInputError
from steelworks.paths import Signature, _choose, _hazards, _profile, _state
from steelworks.paths._registry import REGISTRY
from steelworks.paths.defaults import Default

OP = "of_the_tests"
RUNS = {p: (lambda *_, p=p: p) for p in paths.PATHS}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of this machine, no profile, and nothing declared that was not there before."""
    for name in (_state.ENVIRONMENT, _state.SIMULATE, *_state.ALIASES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_profile, "times", lambda signature, sizes: {})
    monkeypatch.setattr(_choose, "_logged", set())
    operations, implementations = REGISTRY.operations, REGISTRY.implementations
    paths.refresh()
    yield
    REGISTRY.operations, REGISTRY.implementations = operations, implementations
    monkeypatch.undo()
    paths.refresh()


def declare(**possible: dict[str, Any]) -> None:
    """Declares the tests' operation, with these devices' paths: ``mps={"steel": None, "graph": "too large"}``."""
    paths.declare(OP, sizes=lambda s: {"columns": (s.shapes[0] or (1,))[-1]}, family="tests")
    paths.register(OP, "any", "vendor", run=RUNS["vendor"])
    for device, of_device in possible.items():
        for path, why_not in of_device.items():
            paths.register(OP, device, path, run=RUNS[path], possible=lambda _, w=why_not: w)


def chosen(device: str = "cuda", columns: int = 8, dtype: torch.dtype = torch.float32) -> paths.Choice:
    return paths.choose((OP, device, dtype, ((4, columns),), ()))


def test_without_another_path_the_vendor_runs() -> None:
    declare()
    choice = chosen()
    assert (choice.path, choice.rule) == ("vendor", "only")
    assert choice.run() == "vendor"


def test_a_forced_path_is_taken_in_the_block_and_not_after_it() -> None:
    declare(cuda={"steel": None})
    with paths.use("steel"):
        assert chosen().run() == "steel"
        assert chosen().rule == "forced"
    assert chosen().run() == "vendor"


def test_the_innermost_block_counts_and_auto_lifts_the_outer_ones() -> None:
    declare(cuda={"steel": None})
    with paths.use("steel"):
        with paths.use("vendor"):
            assert chosen().path == "vendor"
        with paths.use("vendor", op="tests"):
            assert chosen().path == "vendor"
        with paths.use("auto"):
            assert (chosen().path, chosen().rule) == ("vendor", "default")
        assert chosen().path == "steel"


def test_auto_lifts_what_is_forced_for_one_operation() -> None:
    declare(cuda={"steel": None})
    with paths.use("steel", op=OP):
        assert chosen().path == "steel"
        with paths.use("auto", op=OP):
            assert (chosen().path, chosen().rule) == ("vendor", "default")
        assert chosen().path == "steel"
    with paths.use("vendor"), paths.use("steel", op=OP), paths.use("auto", op=OP):
        assert (chosen().path, chosen().rule) == ("vendor", "forced")


def test_a_path_may_be_forced_for_one_operation_or_family_only() -> None:
    declare(cuda={"steel": None})
    with paths.use("steel", op="softmax"):
        assert chosen().path == "vendor"
    for name in (OP, "tests"):
        with paths.use("steel", op=name):
            assert chosen().path == "steel"


def test_what_is_forced_but_not_possible_falls_back_with_one_logged_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    declare(cuda={"steel": "its rows are too long"})
    with caplog.at_level(logging.WARNING), paths.use("steel"):
        for columns in (8, 9, 10):
            choice = chosen(columns=columns)
            assert choice.path == "vendor"
            assert choice.fallback is not None and "its rows are too long" in choice.fallback
    assert len(caplog.records) == 1
    assert "its rows are too long" in caplog.text


def test_other_threads_are_not_forced() -> None:
    declare(cuda={"steel": None})
    seen: list[str] = []
    with paths.use("steel"):
        thread = threading.Thread(target=lambda: seen.append(chosen().path))
        thread.start()
        thread.join()
    assert seen == ["vendor"]


def test_each_asyncio_task_has_its_own_forced_path() -> None:
    declare(cuda={"steel": None})

    async def task(path: str, mine: asyncio.Event, other: asyncio.Event) -> str:
        with paths.use(path):
            mine.set()
            await other.wait()
            return chosen().path

    async def both() -> list[str]:
        a, b = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(task("steel", a, b), task("vendor", b, a))

    assert asyncio.run(both()) == ["steel", "vendor"]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("steel", "steel"),
        (f"{OP}=steel", "steel"),
        ("softmax=steel", "vendor"),
        (f"steel,{OP}=vendor", "vendor"),
    ],
)
def test_the_environment_forces_for_all_or_by_operation(
    monkeypatch: pytest.MonkeyPatch, value: str, path: str
) -> None:
    declare(cuda={"steel": None})
    monkeypatch.setenv(_state.ENVIRONMENT, value)
    paths.refresh()
    assert chosen().path == path
    with paths.use("vendor"):
        assert chosen().path == "vendor"


@pytest.mark.parametrize(("name", "path"), list(_state.ALIASES.items()))
def test_the_aliases_force_on_mps_only(monkeypatch: pytest.MonkeyPatch, name: str, path: str) -> None:
    declare(mps={"steel": None, "graph": None}, cuda={"steel": None})
    monkeypatch.setenv(name, "1")
    paths.refresh()
    assert (chosen("mps").path, chosen("mps").rule) == (path, "forced")
    assert chosen("cuda").rule == "default"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({_state.ENVIRONMENT: "stele"}, "'stele'; allowed are 'steel', 'graph', 'vendor', 'auto'"),
        ({_state.ENVIRONMENT: "=steel"}, "before '='"),
        ({"MPS_FORCE_STEEL_PATH": "perhaps"}, "use 1 or 0"),
        ({"MPS_FORCE_STEEL_PATH": "1", "MPS_FORCE_MPS_PATH": "1"}, "set one of them"),
    ],
)
def test_a_wrong_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    declare()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    paths.refresh()
    with pytest.raises(InvalidInputError, match=said):
        chosen()


def test_wrong_names_are_refused_with_the_right_ones() -> None:
    with pytest.raises(InvalidInputError, match="allowed are 'steel', 'graph', 'vendor', 'auto'"):
        with paths.use("fast"):
            pass
    with pytest.raises(InvalidInputError, match="no such operation; there are .*softmax"):
        with paths.use("steel", op="softmux"):
            pass
    with pytest.raises(InvalidInputError, match="no operation 'softmux'"):
        paths.choose(("softmux", "cpu", torch.float32, (), ()))
    with pytest.raises(InvalidInputError, match="device 'tpu'"):
        paths.register("softmax", "tpu", "steel", run=RUNS["steel"])


def test_with_several_mps_streams_ours_is_taken_and_otherwise_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(mps={"steel": None})
    assert chosen("mps").path == "vendor"
    monkeypatch.setattr(_hazards, "several_streams", lambda: True)
    assert (chosen("mps").path, chosen("mps").rule) == ("steel", "hazard")
    with paths.use("vendor"):
        assert chosen("mps").path == "vendor"
    monkeypatch.setattr(_hazards, "several_streams", lambda: False)
    assert chosen("mps").path == "vendor"


def test_a_hazard_stands_above_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(mps={"steel": None})
    monkeypatch.setattr(_profile, "times", lambda s, sizes: {"steel": 3e-6, "vendor": 2e-6})
    paths.refresh()
    assert (chosen("mps").path, chosen("mps").rule) == ("vendor", "profile")
    monkeypatch.setattr(_hazards, "several_streams", lambda: True)
    assert (chosen("mps").path, chosen("mps").rule) == ("steel", "hazard")


def test_once_a_thread_is_on_a_stream_of_its_own_there_are_several_for_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class FakeMPS:
        at = 0
        current_stream = classmethod(lambda cls: cls.at)
        default_stream = classmethod(lambda cls: 0)

    monkeypatch.setattr(_hazards, "_backend", type("Backend", (), {"mps": FakeMPS}))
    assert not _hazards.several_streams()
    FakeMPS.at = 3
    assert _hazards.several_streams()
    FakeMPS.at = 0
    assert _hazards.several_streams()
    paths.refresh()
    assert not _hazards.several_streams()


def test_a_torch_without_mps_streams_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hazards, "_backend", type("Backend", (), {"mps": type("Old", (), {})}))
    assert not _hazards.several_streams()


def test_the_fastest_measured_path_wins_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cuda={"steel": None})
    monkeypatch.setattr(_profile, "times", lambda s, sizes: {"steel": 2e-6, "vendor": 3e-6})
    paths.refresh()
    assert (chosen().path, chosen().rule) == ("steel", "profile")
    monkeypatch.setattr(_profile, "times", lambda s, sizes: {"steel": 3e-6, "vendor": 3e-6, "graph": 1e-6})
    paths.refresh()
    assert chosen().path == "steel"  # graph is not possible, and steel comes first of equals


def test_a_profile_that_lacks_a_possible_path_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cuda={"steel": None})
    monkeypatch.setattr(_profile, "times", lambda s, sizes: {"steel": 2e-6})
    paths.refresh()
    assert (chosen().path, chosen().rule) == ("vendor", "default")


def test_a_default_applies_by_device_dtype_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cuda={"steel": None})
    row = Default("cuda", (OP,), "steel", "for the test", (torch.float16,), {"columns": (16, 64)})
    monkeypatch.setattr(_choose, "DEFAULTS", (row,))
    assert chosen(columns=16, dtype=torch.float16).path == "steel"
    assert chosen(columns=64, dtype=torch.float16).path == "steel"
    assert chosen(columns=15, dtype=torch.float16).path == "vendor"
    assert chosen(columns=65, dtype=torch.float16).path == "vendor"
    assert chosen(columns=16).path == "vendor"
    assert chosen("mps", columns=16, dtype=torch.float16).path == "vendor"


def test_a_default_that_is_not_possible_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cuda={"steel": "its rows are too long"})
    rows = tuple(Default("cuda", (OP,), path, f"for the test: {path}") for path in ("steel", "vendor"))
    monkeypatch.setattr(_choose, "DEFAULTS", rows)
    paths.register(OP, "cuda", "graph", run=RUNS["graph"])  # else there is nothing to choose
    assert (chosen().path, chosen().reason) == ("vendor", "for the test: vendor")


def test_every_default_names_an_operation_that_there_is() -> None:
    for row in paths.DEFAULTS:
        for op in row.ops:
            assert op in REGISTRY.operations, (row, op)
        assert row.reason


def test_a_new_implementation_is_seen_at_once() -> None:
    declare()
    with paths.use("steel"):
        assert chosen().path == "vendor"
        paths.register(OP, "cuda", "steel", run=RUNS["steel"])
        assert chosen().path == "steel"


def test_a_choice_is_made_once_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    declare()
    asked: list[Signature] = []
    paths.register(OP, "cuda", "steel", run=RUNS["steel"], possible=lambda s: asked.append(s))  # type: ignore[func-returns-value]
    for _ in range(3):
        chosen()
    assert len(asked) == 1
    assert chosen() is chosen()
    paths.refresh()
    chosen()
    assert len(asked) == 2


def test_the_choices_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    declare()
    monkeypatch.setattr(_choose, "_MOST_CHOICES", 5)
    for columns in range(1, 40):
        chosen(columns=columns)
    assert len(_state.current().cache) <= 5


def test_many_threads_choose_alike() -> None:
    declare(cuda={"steel": None})
    seen: list[str] = []
    barrier = threading.Barrier(8)

    def body(path: str) -> None:
        barrier.wait()
        for i in range(200):
            with paths.use(path):
                if chosen(columns=1 + i % 7).path != path:
                    seen.append(path)
            if i % 50 == 0:
                paths.refresh()

    threads = [threading.Thread(target=body, args=(("steel", "vendor")[i % 2],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not seen


def test_if_no_path_is_possible_the_error_says_why_for_each() -> None:
    paths.declare(OP, sizes=lambda s: {})
    paths.register(OP, "any", "vendor", run=RUNS["vendor"], possible=lambda _: "too large")
    with pytest.raises(InvalidInputError, match="4x8: steel: .*no such implementation.*vendor: too large"):
        chosen()


def test_cpu_tensors_take_ours_only_inside_simulate_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cpu={"steel": None})
    assert chosen("cpu").path == "vendor"
    with paths.use("steel"):
        assert chosen("cpu").path == "vendor"
    with paths.simulate_metal():
        assert (chosen("cpu").path, chosen("cpu").rule) == ("steel", "simulated")
        with paths.use("vendor"):
            assert chosen("cpu").path == "vendor"
    assert chosen("cpu").path == "vendor"
    monkeypatch.setenv(_state.SIMULATE, "1")
    paths.refresh()
    assert chosen("cpu").path == "steel"


def test_record_counts_the_calls_of_the_block_by_path() -> None:
    x = torch.randn(2, 8)
    with paths.record() as counted:
        ops.softmax(x)
        ops.softmax(x)
        with paths.simulate_metal():
            ops.softmax(x)
    ops.softmax(x)
    assert counted.of("softmax", "vendor") == 2
    assert counted.of("softmax", "steel") == 1


def test_explain_says_what_is_possible_what_won_and_why() -> None:
    explained = paths.explain("softmax", [(64, 512)], torch.float64, device="mps")
    assert explained.path == "vendor"
    text = str(explained)
    assert "softmax of (64, 512) in float64 on mps: vendor" in text
    assert "steel  not possible: torch.float64 is none of" in text
    assert "graph  not possible: PyTorch computes softmax with a Metal kernel of its own" in text
    assert "vendor possible, not measured here" in text


def test_explain_shows_measured_times(monkeypatch: pytest.MonkeyPatch) -> None:
    declare(cuda={"steel": None})
    monkeypatch.setattr(_profile, "times", lambda s, sizes: {"steel": 2e-6, "vendor": 3.25e-6})
    text = str(paths.explain(OP, [(4, 8)], torch.float32, device="cuda"))
    assert "why: the fastest when measured on this machine, at 2.0 us (profile)" in text
    assert "vendor possible, 3.2 us when measured here" in text


def test_explain_shows_what_was_forced_in_vain() -> None:
    with paths.use("graph"):
        explained = paths.explain("softmax", [(4, 8)], torch.float32, device="cpu")
    assert explained.fallback == "paths.use('graph') asks for graph: MPSGraph is on mps only"
    assert "not as forced" in str(explained)


def test_explain_is_what_a_call_does() -> None:
    x = torch.randn(3, 8)
    for path in ("steel", "vendor"):
        with paths.simulate_metal(), paths.use(path), paths.record() as counted:
            ops.log_softmax(x)
            assert paths.explain("log_softmax", [x.shape], x.dtype, "cpu").path == path
            assert counted.of("log_softmax", path) == 1


def test_explain_refuses_what_there_is_not() -> None:
    with pytest.raises(InvalidInputError, match="no operation 'softmux'"):
        paths.explain("softmux", [(1,)], torch.float32)
    with pytest.raises(InvalidInputError, match="device is 'meta'"):
        paths.explain("softmax", [(1,)], torch.float32, device="meta")
