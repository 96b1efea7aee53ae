"""MPSDevice against a stand-in that enforces the rules of MPS.

Every rule has a scenario. The device passes it; a subclass that drops the rule on purpose fails
it. Collisions are forced with ``FakeMPS.hold``, so neither outcome is luck.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from steelworks.devices import MPSDevice, Stream
from steelworks.devices._mps_gate import gate_of
from steelworks.errors import DeviceRuleError, ForkedProcessError, InvalidInputError
from steelworks.testing import FakeMPS, FakeMPSAbort, FakeMPSTensor

BEFORE_STREAMS = ("2.13.0", "2.14.1")
ALL = (*BEFORE_STREAMS, "2.15.0")

Scenario = Callable[[FakeMPS, MPSDevice], None]


class Running:
    """A thread whose end and outcome can be waited for."""

    def __init__(self, call: Callable[[], Any], ended: threading.Event | None = None) -> None:
        self.error: BaseException | None = None
        self.value: Any = None
        self.ended = threading.Event() if ended is None else ended
        self._call = call
        self._thread = threading.Thread(target=self._body)
        self._thread.start()

    def _body(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()

    def result(self) -> Any:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the thread did not end"
        if self.error is not None:
            raise self.error
        return self.value


class WatchedLock:
    """A lock that sets an event when a thread has to wait for it."""

    def __init__(self, contended: threading.Event) -> None:
        self._lock = threading.Lock()
        self.contended = contended

    def acquire(self) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        self.contended.set()
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()


def make(version: str, kind: type[MPSDevice] = MPSDevice, streams: bool = False) -> tuple[FakeMPS, MPSDevice]:
    fake = FakeMPS(version)
    return fake, kind(backend=fake.torch, streams=streams)


# Devices that break one rule each


class NoGate(MPSDevice):
    """Lets any thread in at any time."""

    def _guard(self, what: str) -> AbstractContextManager[None]:
        return nullcontext()


class GlobalSynchronize(MPSDevice):
    """Waits for all streams, from any thread."""

    def _synchronize(self, raw: Any) -> None:
        self._backend.mps.synchronize()


class CastsOnTheWayOut(MPSDevice):
    """Copies to the CPU and to float32 in one (R1)."""

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._guard("copy_out()"):
            moved: torch.Tensor = self._backend.Tensor.to(tensor, torch.device("cpu"), torch.float32)
            return moved


class CopiesPinned(MPSDevice):
    """Copies from pinned memory (R2)."""

    def copy_in(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._guard("copy_in()"):
            moved: torch.Tensor = self._backend.Tensor.to(tensor, self.torch_device)
            return moved


class NoWarmUp(MPSDevice):
    """Leaves the lazy state to whoever comes first (R6)."""

    def _warm_kinds(self) -> None:
        pass


class WaitsWithTheLock(MPSDevice):
    """Keeps others from encoding while it waits for the GPU."""

    def _synchronize(self, raw: Any) -> None:
        raw.synchronize()


class CopiesOutWithTheLock(MPSDevice):
    """Leaves the waiting to the copy, which can't let others encode."""

    def copy_out(self, tensor: torch.Tensor) -> torch.Tensor:
        with self._guard("copy_out()"):
            moved: torch.Tensor = self._backend.Tensor.to(tensor, torch.device("cpu"))
            return moved


class FollowsByEvent(MPSDevice):
    """Orders streams by events, which work on the default stream only."""

    def _synchronize(self, raw: Any) -> None:
        event = self._backend.mps.Event()
        event.record()
        event.wait()


# Scenarios, one a rule; each fails with a device that breaks the rule


def use_while_another_thread_encodes(fake: FakeMPS, device: MPSDevice) -> None:
    """A worker is inside an operation; another thread copies a tensor in."""

    def work() -> None:
        with device.worker_scope(0, 1):
            fake.run("add")

    with fake.hold("add") as hold:
        worker = Running(work)
        hold.wait()
        with pytest.raises(DeviceRuleError, match="owns the Apple GPU"):
            device.copy_in(torch.ones(2))
    worker.result()


def synchronize_while_another_thread_commits(fake: FakeMPS, device: MPSDevice) -> None:
    """A worker waits for the GPU; another thread synchronizes."""
    stream = device.new_stream()

    def work() -> None:
        with device.worker_scope(0, 1):
            fake.run("add")
            stream.synchronize()

    with fake.hold("synchronize", "commit") as hold:
        worker = Running(work)
        hold.wait()
        with pytest.raises(DeviceRuleError, match="owns the Apple GPU"):
            stream.synchronize()
    worker.result()


def a_worker_of_streams_lives(fake: FakeMPS, device: MPSDevice) -> None:
    """A worker does all it may do, on a stream; nothing waits for every stream."""
    stream = device.new_stream()
    with device.worker_scope(0, 2), stream.use():
        device.warm_up(lambda: fake.run("softmax"))
        device.copy_out(device.copy_in(torch.ones(2)))
        stream.synchronize()
    stream.follow_current()
    assert fake.global_synchronizes == ()


def read_half_precision_back(fake: FakeMPS, device: MPSDevice) -> None:
    """A half-precision result comes out as it is."""
    out = device.copy_out(device.copy_in(torch.ones(2, dtype=torch.float16)))
    fake.check()
    assert out.dtype == torch.float16


def send_pinned_memory(fake: FakeMPS, device: MPSDevice) -> None:
    """The caller's tensor is pinned."""
    assert torch.equal(device.copy_out(device.copy_in(fake.pin(torch.arange(3)))), torch.arange(3))
    fake.check()


def encode_on_two_streams(kind: str) -> Scenario:
    """Two threads run the same kind of operation, each on its own stream."""

    def scenario(fake: FakeMPS, device: MPSDevice) -> None:
        waits_or_ended = threading.Event()
        device._gate._turn = WatchedLock(waits_or_ended)  # type: ignore[assignment]
        first, second = device.new_stream(), device.new_stream()

        def work(stream: Stream) -> None:
            with stream.use():
                fake.run(kind, (8, 8))

        fake.run(kind, (8, 8))  # its lazy state is another rule
        with fake.hold(kind) as hold:
            one = Running(lambda: work(first))
            hold.wait()
            two = Running(lambda: work(second), waits_or_ended)
            assert waits_or_ended.wait(30)
        one.result()
        two.result()
        fake.check()
        assert fake.streams_used == {0, first.id, second.id}

    scenario.__doc__ = encode_on_two_streams.__doc__
    return scenario


def run_first_softmax_from_two_threads(fake: FakeMPS, device: MPSDevice) -> None:
    """After warm-up, two threads use an operation for the first time, without the device's help."""
    device.warm_up(lambda: None)

    def work() -> None:
        with fake.mps.stream(fake.mps.Stream()):
            fake.run("softmax")

    with fake.hold("softmax", "first_use") as hold:
        one = Running(work)
        while not (hold.reached or one.ended.wait(0.01)):
            pass
        Running(work).result()
    one.result()


def encode_while_another_thread_waits(fake: FakeMPS, device: MPSDevice) -> None:
    """A thread waits for its stream inside its block; another encodes meanwhile."""
    encode_meanwhile(fake, device, lambda stream: stream.synchronize())


def encode_while_another_thread_copies_out(fake: FakeMPS, device: MPSDevice) -> None:
    """A thread waits for a result inside its block; another encodes meanwhile."""
    there = device.copy_in(torch.ones(2))
    encode_meanwhile(fake, device, lambda _: device.copy_out(there))


def encode_meanwhile(fake: FakeMPS, device: MPSDevice, wait_for: Callable[[Stream], object]) -> None:
    """A thread does ``wait_for`` its stream, which the GPU does not finish; another encodes."""
    waits_or_ended = threading.Event()
    device._gate._turn = WatchedLock(waits_or_ended)  # type: ignore[assignment]
    first, second = device.new_stream(), device.new_stream()

    def wait() -> None:
        with first.use():
            fake.run("add")
            wait_for(first)

    def encode() -> None:
        with second.use():
            fake.run("add")

    with fake.hold("synchronize", "commit") as hold:
        waiting = Running(wait)
        hold.wait()
        encoding = Running(encode, waits_or_ended)
        assert waits_or_ended.wait(30)
        encoded = second.id in fake.streams_used
    waiting.result()
    encoding.result()
    assert encoded, "the second thread had to wait until the first one's GPU work was done"


def follow_a_stream_that_is_not_the_default(fake: FakeMPS, device: MPSDevice) -> None:
    """Work on one stream waits for work on another."""
    first, second = device.new_stream(), device.new_stream()
    with first.use():
        second.follow_current()
    fake.check()


def rule(
    name: str, scenario: Scenario, broken: type[MPSDevice], failure: type[BaseException], *versions: str
) -> Iterator[Any]:
    """One case a version; no versions: 2.15 with several streams."""
    for version in versions or ("2.15.0",):
        label = f"{name}-{version}" if versions else name
        yield pytest.param(version, not versions, scenario, broken, failure, id=label)


RULES = [
    *rule("owner", use_while_another_thread_encodes, NoGate, FakeMPSAbort, *BEFORE_STREAMS),
    *rule("synchronize", synchronize_while_another_thread_commits, NoGate, FakeMPSAbort, *BEFORE_STREAMS),
    *rule("global-synchronize", a_worker_of_streams_lives, GlobalSynchronize, AssertionError),
    *rule("R1", read_half_precision_back, CastsOnTheWayOut, AssertionError, *ALL),
    *rule("R2", send_pinned_memory, CopiesPinned, AssertionError, *ALL),
    *rule("R3-clone", encode_on_two_streams("clone"), NoGate, FakeMPSAbort),
    *rule("R3-contiguous", encode_on_two_streams("contiguous"), NoGate, FakeMPSAbort),
    *rule("R3-copy_", encode_on_two_streams("copy_"), NoGate, FakeMPSAbort),
    *rule("R4", encode_on_two_streams("linear"), NoGate, FakeMPSAbort),
    *rule("R5", encode_on_two_streams("bmm"), NoGate, FakeMPSAbort),
    *rule("R6", run_first_softmax_from_two_threads, NoWarmUp, FakeMPSAbort),
    *rule("waiting", encode_while_another_thread_waits, WaitsWithTheLock, AssertionError),
    *rule("waiting-copy", encode_while_another_thread_copies_out, CopiesOutWithTheLock, AssertionError),
    *rule("events", follow_a_stream_that_is_not_the_default, FollowsByEvent, NotImplementedError),
]


@pytest.mark.parametrize(("version", "streams", "scenario", "broken", "failure"), RULES)
def test_the_device_keeps_the_rule(
    version: str, streams: bool, scenario: Scenario, broken: object, failure: object
) -> None:
    fake, device = make(version, streams=streams)
    scenario(fake, device)
    fake.check()


@pytest.mark.parametrize(("version", "streams", "scenario", "broken", "failure"), RULES)
def test_a_device_without_the_rule_fails(
    version: str,
    streams: bool,
    scenario: Scenario,
    broken: type[MPSDevice],
    failure: type[BaseException],
) -> None:
    fake, device = make(version, broken, streams)
    with pytest.raises(failure):
        scenario(fake, device)


# Ownership


@pytest.mark.parametrize("version", ALL)
def test_a_second_worker_is_refused_by_the_name_of_the_owner(version: str) -> None:
    fake, device = make(version)
    claimed, done = threading.Event(), threading.Event()

    def own() -> None:
        threading.current_thread().name = "the-owner"
        with device.worker_scope(0, 1):
            claimed.set()
            done.wait(30)

    owner = Running(own)
    claimed.wait(30)
    with pytest.raises(DeviceRuleError, match=r"thread 'the-owner' owns .* BatchQueue"):
        with device.worker_scope(0, 1):
            pass
    done.set()
    owner.result()
    with device.worker_scope(0, 1):
        fake.run("add")
    fake.check()


@pytest.mark.parametrize(
    "call",
    [
        lambda device: device.copy_in(torch.ones(2)),
        lambda device: device.copy_out(FakeMPS().torch.ones(2, device="mps")),
        lambda device: device.warm_up(lambda: None),
        lambda device: device.new_stream().use().__enter__(),
        lambda device: device.new_stream().synchronize(),
    ],
    ids=["copy_in", "copy_out", "warm_up", "use", "synchronize"],
)
def test_every_call_off_the_owning_thread_is_refused(call: Callable[[MPSDevice], object]) -> None:
    fake, device = make("2.13.0")
    with device.worker_scope(0, 1):
        before = fake.kinds
        with pytest.raises(DeviceRuleError, match="only one thread at a time"):
            Running(lambda: call(device)).result()
        assert fake.kinds == before


def test_the_owner_may_do_everything_and_enter_again() -> None:
    fake, device = make("2.13.0")
    stream = device.new_stream()
    with device.worker_scope(0, 1):
        with stream.use():
            device.warm_up(lambda: None)
            there = device.copy_in(torch.arange(4.0))
            device.record(there, stream)
            stream.follow_current()
            assert torch.equal(device.copy_out(there + 1), torch.arange(4.0) + 1)
            stream.synchronize()
    assert set(fake.global_synchronizes) == {threading.get_ident()}
    fake.check()


def test_ownership_ends_with_the_scope_also_when_the_worker_fails() -> None:
    _, device = make("2.13.0")

    def fail() -> None:
        with device.worker_scope(0, 1):
            raise KeyError

    with pytest.raises(KeyError):
        Running(fail).result()
    with device.worker_scope(0, 1):
        device.copy_in(torch.ones(2))


def test_a_worker_that_died_without_leaving_its_scope_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    _, device = make("2.13.0")
    scope = device.worker_scope(0, 1)
    Running(scope.__enter__).result()
    with device.worker_scope(0, 1):
        device.copy_in(torch.ones(2))
    assert "ended while it owned the Apple GPU" in caplog.text


def test_a_worker_that_leaves_after_it_was_replaced_does_not_free_its_successors_device() -> None:
    _, device = make("2.13.0")
    scope = device.worker_scope(0, 1)
    Running(scope.__enter__).result()
    with device.worker_scope(0, 1):
        scope.__exit__(None, None, None)
        with pytest.raises(DeviceRuleError, match="owns the Apple GPU"):
            Running(lambda: device.copy_in(torch.ones(2))).result()
    Running(lambda: device.copy_in(torch.ones(2))).result()


def test_a_worker_leaves_no_work_behind() -> None:
    fake, device = make("2.13.0")
    with device.worker_scope(0, 1):
        fake.run("add")
        assert fake.global_synchronizes == ()
    assert len(fake.global_synchronizes) == 1


def test_in_2_15_even_the_owner_synchronizes_the_default_stream_only() -> None:
    fake, device = make("2.15.0")
    with device.worker_scope(0, 1):
        device.warm_up(lambda: None)
        device.new_stream().synchronize()
    assert fake.global_synchronizes == ()
    assert fake.streams_used == {0}


def test_two_device_objects_have_one_owner_between_them() -> None:
    fake, device = make("2.13.0")
    other = MPSDevice(backend=fake.torch)
    with device.worker_scope(0, 1):
        with pytest.raises(DeviceRuleError, match="owns the Apple GPU"):
            Running(lambda: other.copy_in(torch.ones(2))).result()


@pytest.mark.parametrize("version", ALL)
def test_more_than_one_worker_is_refused_without_streams(version: str) -> None:
    _, device = make(version)
    with pytest.raises(DeviceRuleError, match=r"2 workers .* use num_workers=1"):
        with device.worker_scope(0, 2):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_told_to_spawn() -> None:
    _, device = make("2.13.0")
    gate_of(device._backend)._fields.acquire()  # as if another thread held it at the fork
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a child that hangs ends by this signal
        try:
            device.copy_in(torch.ones(2))
        except ForkedProcessError as error:
            os._exit(0 if "spawn" in str(error) else 2)
        except BaseException:
            os._exit(3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Streams


@pytest.mark.parametrize("version", BEFORE_STREAMS)
def test_streams_are_refused_where_torch_has_none(version: str) -> None:
    with pytest.raises(DeviceRuleError, match=rf"torch {version} has no MPS streams; install torch 2\.15"):
        make(version, streams=True)


def test_the_environment_opts_into_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELWORKS_MPS_STREAMS", "1")
    assert MPSDevice(backend=FakeMPS("2.15.0").torch).capabilities.streams


def test_the_environment_is_ignored_with_a_warning_where_torch_has_no_streams(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STEELWORKS_MPS_STREAMS", "1")
    assert MPSDevice(backend=FakeMPS("2.14.1").torch).capabilities.owner_thread
    assert "has no MPS streams" in caplog.text


def test_the_environment_must_say_yes_or_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELWORKS_MPS_STREAMS", "maybe")
    with pytest.raises(InvalidInputError, match="STEELWORKS_MPS_STREAMS='maybe'"):
        MPSDevice(backend=FakeMPS("2.15.0").torch)


@pytest.mark.parametrize("version", ALL)
def test_without_opting_in_one_thread_owns_the_device(version: str) -> None:
    capabilities = make(version)[1].capabilities
    assert capabilities.owner_thread
    assert not capabilities.streams
    assert (capabilities.max_streams, capabilities.max_workers, capabilities.default_workers) == (1, 1, 1)


def test_with_streams_no_thread_owns_the_device() -> None:
    capabilities = make("2.15.0", streams=True)[1].capabilities
    assert not capabilities.owner_thread
    assert capabilities.streams
    assert capabilities.max_streams == 32


def test_one_process_uses_mps_in_one_way() -> None:
    fake, device = make("2.15.0", streams=True)
    unused = MPSDevice(backend=fake.torch, streams=False)
    device.copy_in(torch.ones(2))
    with pytest.raises(DeviceRuleError, match="already uses MPS with streams=True"):
        unused.copy_in(torch.ones(2))


def test_a_tensor_is_recorded_on_the_stream_it_is_handed_to() -> None:
    fake, device = make("2.15.0", streams=True)
    tensor: Any = device.copy_in(torch.ones(2))
    stream = device.new_stream()
    device.record(tensor, stream)
    assert tensor.recorded_on == [1]
    fake.check()


def test_work_inside_use_goes_to_that_stream_and_afterwards_to_the_one_before() -> None:
    fake, device = make("2.15.0", streams=True)
    stream = device.new_stream()
    with stream.use():
        assert fake.mps.current_stream().stream_id == 1
    assert fake.mps.current_stream().stream_id == 0


def test_threads_with_streams_of_their_own_get_right_answers_from_one_model() -> None:
    fake, device = make("2.15.0", streams=True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(24, 6), nn.LayerNorm(6)).eval()
    inputs = [torch.randn(2, 3, 8) for _ in range(4)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    fake.put(model)
    device.warm_up(lambda: model(device.copy_in(inputs[0])))

    def work(x: torch.Tensor) -> torch.Tensor:
        stream = device.new_stream()
        with torch.no_grad(), device.worker_scope(0, 4):
            for _ in range(10):
                with stream.use():
                    y = device.copy_out(model(device.copy_in(x)).t().contiguous().t())
        return y

    threads = [Running(lambda x=x: work(x)) for x in inputs]  # type: ignore[misc]
    for thread, answer in zip(threads, expected, strict=True):
        assert torch.equal(thread.result(), answer)
    fake.check()
    assert fake.global_synchronizes == ()


@pytest.mark.parametrize("streams", [False, True], ids=["owner", "streams"])
def test_a_block_that_another_thread_ends_frees_the_device_and_keeps_that_threads_stream(
    streams: bool,
) -> None:
    fake, device = make("2.15.0", streams=streams)

    def generate() -> Iterator[int]:
        with device.new_stream().use():
            yield 1

    generator = generate()
    suspended, end = threading.Event(), threading.Event()

    def suspend() -> None:
        next(generator)
        suspended.set()
        end.wait(30)

    thread = Running(suspend)
    suspended.wait(30)
    mine = fake.mps.Stream()
    fake.mps.set_stream(mine)
    generator.close()
    assert fake.mps.current_stream() == mine
    Running(lambda: device.copy_in(torch.ones(2))).result()
    end.set()
    thread.result()
    fake.check()


# What applies, and what is allowed


@pytest.mark.parametrize(
    ("version", "ids"),
    [
        ("2.13.0", ["E1", "E2", "E3", "R1", "R2", "R6", "R7"]),
        ("2.14.1", ["E1", "E2", "E3", "R1", "R2", "R6", "R7"]),
        ("2.15.0", ["R1", "R2", "R3", "R4", "R5", "R6", "R7"]),
        ("2.15.0a0+git1234", ["R1", "R2", "R3", "R4", "R5", "R6", "R7"]),
        ("3.0", ["R1", "R2", "R3", "R4", "R5", "R6", "R7"]),
    ],
)
def test_the_hazards_are_those_of_the_version(version: str, ids: list[str]) -> None:
    hazards = make(version)[1].hazards()
    assert [hazard.id for hazard in hazards] == ids
    assert all(hazard.summary.endswith(".") and hazard.measure.endswith(".") for hazard in hazards)


def test_the_measures_for_shared_kernels_say_how_streams_are_kept_apart() -> None:
    alone = {hazard.id: hazard.measure for hazard in make("2.15.0")[1].hazards()}
    streams = {hazard.id: hazard.measure for hazard in make("2.15.0", streams=True)[1].hazards()}
    for hazard in ("R3", "R4", "R5"):
        assert "opt-in" in alone[hazard]
        assert "lock" in streams[hazard]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_a_dtype_that_the_gpu_lacks_is_refused_with_the_way_out(dtype: torch.dtype) -> None:
    _, device = make("2.15.0")
    with pytest.raises(InvalidInputError, match="cast it on the CPU first"):
        device.copy_in(torch.ones(2, dtype=dtype))


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_a_tensor_comes_back_as_it_went(version: str, dtype: torch.dtype) -> None:
    fake, device = make(version)
    tensor = torch.randint(0, 2, (3, 4)).to(dtype)
    there = device.copy_in(tensor)
    assert there.device.type == "mps"
    assert device.copy_in(there) is there
    back = device.copy_out(there.t())
    assert type(back) is torch.Tensor
    assert back.dtype == dtype
    assert torch.equal(back, tensor.t())
    fake.check()


def test_warm_up_runs_every_kind_once_and_then_the_call_on_the_calling_thread() -> None:
    fake, device = make("2.13.0")
    calls: list[int] = []
    device.warm_up(lambda: calls.append(len(fake.kinds)))
    warmed = len(fake.kinds)
    assert {"linear", "softmax", "layer_norm", "mm", "clone", "copy_in", "copy_out"} <= fake.ready
    device.warm_up(lambda: calls.append(len(fake.kinds)))
    assert calls == [warmed, warmed]
    assert fake.threads == {threading.get_ident()}


def test_a_kind_that_this_torch_lacks_does_not_stop_the_warm_up() -> None:
    fake, device = make("2.13.0")

    def absent(*_: object, **__: object) -> None:
        raise NotImplementedError("not on this GPU")

    fake.torch.topk = absent
    calls: list[int] = []
    device.warm_up(lambda: calls.append(1))
    assert calls == [1]
    assert "where" in fake.ready


# The stand-in itself: it fails where the real one does


def collide(
    version: str, first: str, second: Callable[[FakeMPS], object], phase: str = "encode"
) -> FakeMPSAbort:
    """Stop one thread inside ``first``, do ``second`` from another; return the abort."""
    fake = FakeMPS(version)
    fake.run("add")
    act = fake.mps.synchronize if first == "synchronize" else lambda: fake.run(first)
    with fake.hold(first, phase) as hold:
        one = Running(act)
        hold.wait()
        with pytest.raises(FakeMPSAbort) as caught:
            second(fake)
    with pytest.raises(FakeMPSAbort):
        one.result()
    assert fake.aborted is caught.value
    return caught.value


@pytest.mark.parametrize("version", BEFORE_STREAMS)
def test_before_2_15_a_second_encoder_on_a_command_buffer_ends_the_process(version: str) -> None:
    abort = collide(version, "add", lambda fake: fake.run("add"))
    assert "A command encoder is already encoding to this command buffer" in str(abort)


@pytest.mark.parametrize("version", BEFORE_STREAMS)
def test_before_2_15_committing_twice_ends_the_process(version: str) -> None:
    abort = collide(version, "synchronize", lambda fake: fake.get_command_buffer().commit(), "commit")
    assert "commit an already committed command buffer" in str(abort)


def test_before_2_15_encoding_into_a_committed_buffer_ends_the_process() -> None:
    abort = collide("2.13.0", "synchronize", lambda fake: fake.run("add"), "commit")
    assert "_status < MTLCommandBufferStatusCommitted" in str(abort)


def test_before_2_15_a_second_synchronize_ends_the_process() -> None:
    abort = collide("2.13.0", "synchronize", lambda fake: fake.mps.synchronize(), "commit")
    assert "Completed handler provided after commit call" in str(abort)


def test_before_2_15_synchronizing_while_another_thread_encodes_ends_the_process() -> None:
    abort = collide("2.13.0", "add", lambda fake: fake.mps.synchronize())
    assert "SIGSEGV" in str(abort)


def test_a_copy_that_casts_commits_what_another_thread_has_committed() -> None:
    fake = FakeMPS("2.15.0")
    half = fake.torch.ones(2, device="mps", dtype=torch.float16)
    with fake.hold("synchronize", "off_queue") as copying:
        one = Running(lambda: half.to("cpu", torch.float32))
        copying.wait()
        with fake.hold("synchronize", "commit") as committed:
            two = Running(fake.mps.default_stream().synchronize)
            committed.wait()
            copying.release()
            with pytest.raises(FakeMPSAbort, match=r"Completed handler provided after commit call.*R1"):
                one.result()
    with pytest.raises(FakeMPSAbort):
        two.result()


def test_a_copy_from_pinned_memory_records_on_what_another_thread_has_committed() -> None:
    fake = FakeMPS("2.15.0")
    with fake.hold("synchronize", "commit") as committed:
        one = Running(fake.mps.default_stream().synchronize)
        committed.wait()
        with pytest.raises(FakeMPSAbort, match=r"Completed handler provided after commit call.*R2"):
            fake.torch.Tensor.to(fake.pin(torch.ones(2)), "mps")
    with pytest.raises(FakeMPSAbort):
        one.result()


def test_from_2_15_threads_on_one_stream_take_turns() -> None:
    fake = FakeMPS("2.15.0")
    fake.run("add")
    with fake.hold("add") as hold:
        one = Running(lambda: fake.run("add"))
        hold.wait()
        queue = fake._machine.streams[0].queue
        assert Running(lambda: queue.acquire(blocking=False)).result() is False
    one.result()
    Running(lambda: fake.run("add")).result()
    fake.check()


def test_from_2_15_an_extension_off_the_queue_ends_the_process() -> None:
    with pytest.raises(FakeMPSAbort, match="expected to execute on queue"):
        FakeMPS("2.15.0").get_command_buffer()


def test_two_first_uses_of_a_kind_at_once_end_the_process() -> None:
    abort = collide("2.13.0", "tanh", lambda fake: fake.run("tanh"), "first_use")
    assert "Double free" in str(abort)


def test_after_an_abort_every_thread_finds_the_process_ended() -> None:
    fake = FakeMPS("2.15.0")
    with pytest.raises(FakeMPSAbort):
        fake.get_command_buffer()
    for call in (lambda: fake.run("add"), lambda: fake.mps.synchronize(), fake.check):
        with pytest.raises(FakeMPSAbort):
            Running(call).result()  # type: ignore[arg-type]


def test_an_abort_is_no_exception_that_a_handler_swallows() -> None:
    assert not issubclass(FakeMPSAbort, Exception)


def test_a_hold_that_nothing_reaches_fails_instead_of_hanging() -> None:
    fake = FakeMPS("2.15.0")
    with fake.hold("softmax", patience=0.01) as hold:
        fake.run("add")
        with pytest.raises(TimeoutError, match="no thread came to 'encode' of 'softmax'"):
            hold.wait()


@pytest.mark.parametrize("version", BEFORE_STREAMS)
def test_before_2_15_there_is_no_public_stream(version: str) -> None:
    assert not hasattr(FakeMPS(version).mps, "Stream")


def test_streams_come_round_robin_with_ids_1_to_32() -> None:
    fake = FakeMPS("2.15.0")
    assert [fake.mps.Stream().stream_id for _ in range(34)] == [*range(1, 33), 1, 2]


def test_a_new_thread_starts_on_the_default_stream() -> None:
    fake = FakeMPS("2.15.0")
    fake.mps.set_stream(fake.mps.Stream())
    assert fake.mps.current_stream().stream_id == 1
    assert Running(lambda: fake.mps.current_stream().stream_id).result() == 0


def test_events_work_on_the_default_stream_only() -> None:
    fake = FakeMPS("2.15.0")
    fake.mps.Event().record()
    with fake.mps.stream(fake.mps.Stream()):
        with pytest.raises(NotImplementedError):
            fake.mps.Event().record()
        with pytest.raises(NotImplementedError):
            fake.mps.Event().wait()


def test_a_module_on_the_stand_in_computes_what_it_computes_on_the_cpu() -> None:
    fake = FakeMPS("2.13.0")
    model = nn.LSTM(4, 5, batch_first=True).eval()  # makes its first state with torch.zeros(device=)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        expected = model(x)[0]
        answer = fake.put(model)(fake._to_device(x))[0]
    assert isinstance(answer, FakeMPSTensor)
    assert torch.equal(answer.cpu(), expected)


def test_a_cpu_tensor_in_an_operation_on_the_device_is_refused() -> None:
    fake = FakeMPS("2.13.0")
    with pytest.raises(RuntimeError, match="same device"):
        fake.torch.ones(2, device="mps") + torch.ones(2)


def test_reading_a_number_back_is_work_for_the_device() -> None:
    fake = FakeMPS("2.13.0")
    assert fake.torch.ones(3, device="mps").sum().item() == 3
    assert fake.kinds[-1] == "_local_scalar_dense"


def test_the_stand_in_wants_a_version() -> None:
    with pytest.raises(ValueError, match="version='new'"):
        FakeMPS("new")
