"""Copies under ``install("mps")``: on the stand-in for an Apple GPU, and through PyTorch's dispatcher."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from steelworks.devices._mps_gate import gate_of
from steelworks.errors import DeviceRuleError
from steelworks.ops import _mps_copies, overrides
from steelworks.paths import _hazards
from steelworks.testing import FakeMPS

VERSIONS = ("2.13.0", "2.14.1", "2.15.0")
LONG = 30.0


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMPS]:
    """The stand-in with the override installed; every rule is kept."""
    made = FakeMPS(request.param)
    _install(made, monkeypatch)
    yield made
    made.check()
    assert not made.global_synchronizes, "it waited for all streams"


@pytest.fixture
def latest(monkeypatch: pytest.MonkeyPatch) -> FakeMPS:
    """The stand-in of a torch with streams, with the override installed."""
    made = FakeMPS("2.15.0")
    _install(made, monkeypatch)
    return made


def _install(fake: FakeMPS, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(_hazards, "_backend", fake.torch)
    switch = overrides._Switch()
    switch.on = True
    run = overrides._copies(fake.own_copy, switch)
    fake.override_copies(lambda dst, src, non_blocking=False: run(None, dst, src, non_blocking))
    return switch


def _there(fake: FakeMPS, tensor: torch.Tensor) -> torch.Tensor:
    moved: torch.Tensor = fake.torch.Tensor.to(tensor, torch.device("mps", 0))
    return moved


X = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 4


# --- what PyTorch's own does: these would pass for nothing if the stand-in let everything through -------------


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda f: _there(f, X.half()).to("cpu", torch.float32), "R1"),
        (lambda f: torch.empty(2, 3, dtype=torch.float64).copy_(_there(f, X)), "R1"),
        (lambda f: _there(f, f.pin(X)), "R2"),
        (lambda f: _there(f, X).copy_(f.pin(X)), "R2"),
        (lambda f: f.pin(X).copy_(_there(f, X)), "R2"),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_pytorchs_own_copy_breaks_the_rule(
    version: str, call: Callable[[FakeMPS], Any], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeMPS(version)
    call(fake)
    assert fake.latent == (rule,)
    _install(fake, monkeypatch)
    call(fake)
    assert fake.latent == (rule,), "so does the override"


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_a_copy_to_the_cpu_changes_the_dtype_there(
    fake: FakeMPS, given: torch.dtype, wanted: torch.dtype
) -> None:
    there = _there(fake, X.to(given))
    assert torch.equal(there.to("cpu", wanted), X.to(given).to(wanted))
    assert torch.equal(there.cpu(), X.to(given))
    assert "cast" not in fake.kinds


@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.int64])
def test_a_copy_to_the_device_changes_the_dtype_before_it(fake: FakeMPS, given: torch.dtype) -> None:
    moved = fake.torch.Tensor.to(X.to(given), "mps", torch.float16)
    assert (moved.device.type, moved.dtype) == ("mps", torch.float16)
    assert torch.equal(moved.cpu(), X.to(given).half())
    assert fake.kinds[0] == "copy_in" and "cast" not in fake.kinds


def test_assigned_parts_views_and_broadcasts_are_right(fake: FakeMPS) -> None:
    there = _there(fake, torch.zeros(4, 3))
    there[1:3].copy_(X.double())
    there[3] = torch.tensor([7, 8, 9])
    want = torch.zeros(4, 3)
    want[1:3], want[3] = X, torch.tensor([7.0, 8.0, 9.0])
    assert torch.equal(there.cpu(), want)
    here = torch.zeros(3, 4, dtype=torch.float64)
    here.copy_(there.t())
    assert torch.equal(here, want.t().double())
    rows = torch.zeros(5, 3, dtype=torch.float16)
    rows[::2].copy_(there[3])
    assert torch.equal(rows[::2], want[3].half().expand(3, 3)) and not rows[1::2].any()


@pytest.mark.parametrize("wanted", [torch.float32, torch.float16])
@pytest.mark.parametrize("non_blocking", [False, True])
def test_pinned_memory_goes_through_ordinary_memory(
    fake: FakeMPS, wanted: torch.dtype, non_blocking: bool
) -> None:
    there = _there(fake, torch.zeros(2, 3))
    there.copy_(fake.pin(X.to(wanted)), non_blocking)
    assert torch.equal(there.cpu(), X)
    pinned = fake.pin(torch.zeros(2, 3, dtype=wanted))
    assert pinned.copy_(there, non_blocking) is pinned
    assert torch.equal(pinned, X.to(wanted))


def test_a_tensor_that_a_copy_made_itself_is_never_left_to_a_copy_that_does_not_wait(fake: FakeMPS) -> None:
    asked: list[tuple[torch.dtype, torch.dtype, bool]] = []

    def own(dst: torch.Tensor, src: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        asked.append((dst.dtype, src.dtype, non_blocking))
        return fake.own_copy(dst, src, non_blocking)

    there = _there(fake, X)
    for dst, src in ((there, X.double()), (torch.zeros(2, 3).half(), there), (there, fake.pin(X))):
        _mps_copies.copy_safely(own, dst, src, True)
    assert asked == [(torch.float32, torch.float32, False)] * 3
    _mps_copies.copy_safely(own, there, X, True)
    assert asked[-1][2], "a plain copy stays as it was asked for"


def test_between_tensors_on_the_device_pytorchs_own_copy_runs(fake: FakeMPS) -> None:
    there, other = _there(fake, X), _there(fake, torch.zeros(2, 3).half())
    assert other.copy_(there) is other
    assert torch.equal(other.cpu(), X.half())
    assert "copy_" in fake.kinds


def test_switched_off_everything_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMPS("2.15.0")
    switch = _install(fake, monkeypatch)
    there = _there(fake, X.half())
    switch.on = False
    there.to("cpu", torch.float32)
    assert fake.latent == ("R1",)


def test_a_copy_within_a_copy_is_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMPS("2.15.0")
    _install(fake, monkeypatch)
    there, calls = _there(fake, X), list[tuple[torch.dtype, torch.dtype]]()

    def own(dst: torch.Tensor, src: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        calls.append((dst.dtype, src.dtype))
        if len(calls) == 1:
            run(None, there, X.double())  # outside a copy it would be cast first
        return dst

    switch = overrides._Switch()
    switch.on = True
    run = overrides._copies(own, switch)
    run(None, there, X)
    assert calls == [(torch.float32, torch.float32), (torch.float32, torch.float64)]


@pytest.mark.parametrize("inside", [False, True])
def test_within_an_operation_a_copy_takes_its_turn_and_lets_nobody_in(
    inside: bool, latest: FakeMPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    before = _hazards.in_turn
    monkeypatch.setattr(_hazards, "in_turn", lambda *a: (turns.append("turn"), before(*a))[1])
    monkeypatch.setattr(_mps_copies, "_finish", lambda: turns.append("let others in"))
    there = _there(latest, X.half())
    turns.clear()
    overrides._local.inside = inside
    try:
        there.to("cpu", torch.float32)
        there.cpu()
        there.copy_(there)
    finally:
        overrides._local.inside = False
    assert turns.count("turn") == 3
    assert turns.count("let others in") == (0 if inside else 2)


def test_after_a_copy_that_fails_the_next_one_is_safe_again(latest: FakeMPS) -> None:
    there = _there(latest, X.half())
    with pytest.raises(RuntimeError):
        there.copy_(torch.zeros(5, 7))
    assert torch.equal(there.to("cpu", torch.float32), X)
    latest.check()


# --- threads --------------------------------------------------------------------------------------------------


def _on_a_stream(fake: FakeMPS, body: Callable[[], Any]) -> tuple[threading.Thread, list[BaseException]]:
    problems: list[BaseException] = []

    def run() -> None:
        try:
            with fake.mps.stream(fake.mps.Stream()):
                body()
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, problems


def _strided(fake: FakeMPS) -> torch.Tensor:
    return _there(fake, torch.zeros(3, 4)).t()


@pytest.mark.parametrize("safe", [True, False])
def test_copies_on_two_streams_take_turns(safe: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeMPS("2.15.0")
    if safe:
        _install(fake, monkeypatch)
    first, second = _strided(fake), _strided(fake)
    source = _there(fake, torch.ones(4, 3))
    second.copy_(source)  # its lazy state is there (R6)
    began = threading.Event()
    with fake.hold("copy_") as hold:
        one, problems = _on_a_stream(fake, lambda: first.copy_(source))
        hold.wait()

        def other() -> None:
            began.set()
            second.copy_(source)

        two, more = _on_a_stream(fake, other)
        assert began.wait(LONG)
        if safe:
            assert gate_of(fake.torch)._turn.locked()
        else:
            two.join(LONG)
            assert [p.rule for p in more] == ["R3"]  # type: ignore[attr-defined]
    one.join(LONG)
    two.join(LONG)
    if safe:
        assert not problems and not more
        fake.check()
        assert torch.equal(first.cpu(), torch.ones(4, 3))


def test_many_threads_copy_both_ways_on_streams_of_their_own(latest: FakeMPS) -> None:
    answers: dict[int, bool] = {}

    def body(number: int) -> None:
        value = torch.full((3, 4), float(number))
        for _ in range(20):
            there = latest.torch.Tensor.to(value.double(), "mps", torch.float16)
            there.t().copy_(there.t())
            answers[number] = torch.equal(there.t().to("cpu", torch.float32), value.t())

    _there(latest, X).copy_(_there(latest, X))
    _there(latest, X).t().cpu()
    threads = [_on_a_stream(latest, lambda n=n: body(n)) for n in range(6)]  # type: ignore[misc]
    for thread, problems in threads:
        thread.join(LONG)
        assert not problems, problems
    assert answers == dict.fromkeys(range(6), True)
    latest.check()
    assert not latest.global_synchronizes


def test_while_a_copy_to_the_cpu_waits_for_its_stream_others_may_encode(latest: FakeMPS) -> None:
    there = _there(latest, X.half())
    done = threading.Event()

    def read() -> None:
        with gate_of_block(latest):
            there.to("cpu", torch.float32)

    with latest.hold("synchronize", "commit") as hold:
        reader, problems = _on_a_stream(latest, read)
        hold.wait()

        def other() -> None:
            _hazards.in_turn(latest.run, "add")
            done.set()

        encoder, more = _on_a_stream(latest, other)
        assert done.wait(LONG), "the reader kept the turn while it waited"
    for thread in (reader, encoder):
        thread.join(LONG)
    assert not problems and not more
    latest.check()


def gate_of_block(fake: FakeMPS) -> Any:
    """A block that holds the turn, as ``stream.use()`` does with streams."""
    from steelworks.devices._mps_gate import Held

    return Held(gate_of(fake.torch), True, "a test")


# --- PyTorch's dispatcher -------------------------------------------------------------------------------------

CHILD = """
import warnings
import torch
from steelworks.ops import _mps_copies, overrides

warnings.simplefilter("ignore")
seen = []
safe = _mps_copies.copy_safely
_mps_copies.copy_safely = lambda own, dst, src, nb, patient: (
    seen.append((dst.device.type, src.device.type, dst.dtype, nb)), own(dst, src, nb))[1]
switch = overrides._Switch()
# Like mps, meta is a device beside the CPU: its key wins over the CPU's, and copy_ is the one for all.
library = torch.library.Library("aten", "IMPL")
for key in ("Meta", "MPS"):
    overrides._replace_copies(library, key, switch)
here, there = torch.ones(3), torch.ones(3, device="meta")
there.copy_(here)
assert not seen, "it is switched off"
switch.on = True

def calls(run, *want):
    seen.clear()
    run()
    assert seen == list(want), seen

calls(lambda: here.to("meta", torch.half), ("meta", "cpu", torch.half, False))
calls(lambda: here.to("meta", non_blocking=True), ("meta", "cpu", torch.float, True))
calls(lambda: there.half(), ("meta", "meta", torch.half, False))
calls(lambda: there.copy_(here), ("meta", "cpu", torch.float, False))
calls(lambda: there.__setitem__(0, here[0]), ("meta", "cpu", torch.float, False))
calls(lambda: here.double())
try:
    calls(lambda: here.copy_(there))
except NotImplementedError as problem:  # PyTorch's own word on it
    assert "Cannot copy out of meta" in str(problem)
assert seen == [("cpu", "meta", torch.float, False)], seen
before = there._version
there.copy_(here)
assert there._version == before + 1
leaf = torch.ones(3, requires_grad=True)
assert type(leaf.to("meta", torch.half).grad_fn).__name__ == "ToCopyBackward0"
with torch.inference_mode():
    calls(lambda: there.copy_(here), ("meta", "cpu", torch.float, False))

# A copy to the CPU in two steps: what it copies there is no part of a graph, and counts once.
_mps_copies.copy_safely = lambda own, dst, src, nb, patient: safe(lambda d, s, n: d.fill_(2), dst, src, nb)
leaf = torch.ones(3, device="meta", dtype=torch.half, requires_grad=True)
made = leaf.to("cpu", torch.float)
assert torch.equal(made.detach(), torch.full((3,), 2.0))
assert type(made.grad_fn).__name__ == "ToCopyBackward0"
assert made.grad_fn.next_functions[0][0].variable is leaf
before = here._version
here.copy_(leaf.detach())
assert here._version == before + 1

# PyTorch's own copy is reached past what is registered, and is right on the CPU, too.
target = torch.zeros(3)
assert _mps_copies.pytorchs_own()(target, torch.ones(3), False) is target and target.sum() == 3
print("all seen")
"""


def test_the_dispatcher_hands_every_copy_with_a_tensor_of_the_device_to_the_override() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0 and "all seen" in done.stdout, done.stdout + done.stderr


def test_a_torch_whose_cpu_has_a_copy_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        _mps_copies, "_C", type("C", (), {"_dispatch_has_kernel_for_dispatch_key": lambda *_: True})
    )
    with pytest.raises(DeviceRuleError, match="an aten::copy_ for the CPU alone"):
        _mps_copies.pytorchs_own()
