"""Devices: finding them, the CPU's shares, and what CUDA does that needs no GPU to see."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steelworks.devices import CPUDevice, CUDADevice, resolve
from steelworks.devices._cores import usable_cores
from steelworks.devices._thread_share import ThreadShare
from steelworks.errors import DeviceRuleError, InvalidInputError


def in_thread(call: Callable[[], Any]) -> Any:
    """Run ``call`` in a thread that starts and ends here; return or raise what it did."""
    outcome: list[Any] = []

    def body() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


# Finding devices


def test_resolving_the_same_device_twice_gives_the_same_object() -> None:
    assert resolve("cpu") is resolve(torch.device("cpu")) is resolve("cpu:0")


def test_a_device_resolves_to_itself() -> None:
    device = CPUDevice(cores=3)
    assert resolve(device) is device


def test_none_resolves_to_torchs_default_device() -> None:
    assert resolve(None) is resolve("cpu")


def test_threads_that_resolve_at_once_get_one_object() -> None:
    barrier = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        barrier.wait()
        found.append(resolve("cpu"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


@pytest.mark.parametrize("name", ["tpu", "cpu-1", ""])
def test_an_unknown_device_is_refused_by_naming_those_that_exist(name: str) -> None:
    with pytest.raises(InvalidInputError, match="'cuda'"):
        resolve(name)


def test_a_device_that_steelworks_does_not_run_on_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="runs on 'cpu', 'cuda' and 'mps'"):
        resolve("meta")


def test_something_that_is_no_device_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="give a string"):
        resolve(3)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has an NVIDIA GPU")
def test_cuda_without_a_gpu_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInputError, match="sees no NVIDIA GPU; use 'cpu'"):
        resolve("cuda")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_mps_without_a_gpu_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidInputError, match="sees no Apple GPU; use 'cpu'"):
        resolve("mps")


# Counting cores


@pytest.mark.parametrize(
    ("limit", "cores"), [("150000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_the_quota_of_a_control_group_limits_the_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    group = tmp_path / "fs" / "service" / "job"
    group.mkdir(parents=True)
    (group.parent / "cpu.max").write_text(limit + "\n")
    membership = tmp_path / "cgroup"
    membership.write_text("0::/service/job\n")
    everything = usable_cores(str(tmp_path / "nowhere"), str(tmp_path / "nothing"))
    assert usable_cores(str(tmp_path / "fs"), str(membership)) == (everything if cores is None else cores)


@pytest.mark.parametrize(("quota", "cores"), [("100000", 1), ("-1", None)])
def test_the_quota_of_an_old_style_control_group_counts_too(
    tmp_path: Path, quota: str, cores: int | None
) -> None:
    group = tmp_path / "fs" / "cpu,cpuacct"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text(quota)
    (group / "cpu.cfs_period_us").write_text("100000")
    membership = tmp_path / "cgroup"
    membership.write_text("5:memory:/x\n2:cpu,cpuacct:/gone\n")
    everything = usable_cores(str(tmp_path / "nowhere"), str(tmp_path / "nothing"))
    assert usable_cores(str(tmp_path / "fs"), str(membership)) == (everything if cores is None else cores)


# The CPU's shares


def test_a_cpu_has_a_worker_for_every_core_and_no_streams() -> None:
    capabilities = CPUDevice(cores=6).capabilities
    assert (capabilities.default_workers, capabilities.max_streams, capabilities.default_depth) == (6, 6, 1)
    assert not capabilities.streams
    assert not capabilities.owner_thread
    assert capabilities.survives_fork


@pytest.mark.parametrize(("count", "share"), [(1, 7), (2, 3), (7, 1), (20, 1)])
def test_a_worker_gets_its_part_of_the_cores_and_at_least_one(count: int, share: int) -> None:
    def work() -> int:
        with CPUDevice(cores=7).worker_scope(0, count):
            return torch.get_num_threads()

    assert in_thread(work) == share


def test_a_worker_gets_back_what_it_had_before() -> None:
    def work() -> tuple[int, int]:
        before = torch.get_num_threads()
        with CPUDevice(cores=12).worker_scope(1, 4):
            CPUDevice().set_thread_share(5)
        return before, torch.get_num_threads()

    before, after = in_thread(work)
    assert before == after


def test_a_worker_that_fails_gets_back_what_it_had_before() -> None:
    def work() -> tuple[int, int]:
        before = torch.get_num_threads()
        with pytest.raises(KeyError):
            with CPUDevice(cores=12).worker_scope(1, 4):
                raise KeyError
        return before, torch.get_num_threads()

    before, after = in_thread(work)
    assert before == after


def test_a_share_leaves_other_threads_and_later_ones_as_they_were() -> None:
    mine = torch.get_num_threads()
    fresh = in_thread(torch.get_num_threads)
    seen: list[int] = []
    go, done = threading.Event(), threading.Event()

    def neighbour() -> None:
        torch.get_num_threads()
        go.wait(30)
        seen.append(torch.get_num_threads())
        done.set()

    threading.Thread(target=neighbour).start()

    def work() -> int:
        CPUDevice().set_thread_share(5)
        go.set()
        assert done.wait(30)
        return torch.get_num_threads()

    assert in_thread(work) == 5
    assert seen == [fresh]
    assert torch.get_num_threads() == mine
    assert in_thread(torch.get_num_threads) == fresh


def test_a_share_holds_in_a_new_thread_after_the_program_set_the_number_of_threads() -> None:
    # In a process of its own: torch.set_num_threads can't be taken back.
    script = """
import ctypes, os, threading, torch
from steelworks.devices import CPUDevice
torch.set_num_threads(3)
library = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
mkl = getattr(library, "MKL_Get_Max_Threads", torch.get_num_threads)
def work():
    CPUDevice().set_thread_share(5)
    seen.append((torch.get_num_threads(), mkl()))
    with CPUDevice(cores=4).worker_scope(0, 2):
        seen.append((torch.get_num_threads(), mkl()))
    seen.append((torch.get_num_threads(), mkl()))
def look():
    seen.append((torch.get_num_threads(), mkl()))
seen = []
for target in (work, look):
    thread = threading.Thread(target=target); thread.start(); thread.join()
assert seen == [(5, 5), (2, 2), (5, 5), (3, 3)], seen
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into the Linux library")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)


@pytest.mark.parametrize("cores", [0, -1])
def test_a_share_of_no_cores_is_refused(cores: int) -> None:
    with pytest.raises(InvalidInputError, match="needs 1 or more"):
        CPUDevice().set_thread_share(cores)


@pytest.mark.parametrize(("index", "count"), [(2, 2), (-1, 2), (0, 0)])
def test_a_worker_that_is_not_one_of_the_count_is_refused(index: int, count: int) -> None:
    with pytest.raises(InvalidInputError, match=f"worker {index} of {count}"):
        CPUDevice().worker_scope(index, count)


def test_without_openmp_torch_sets_the_share_and_the_log_says_why_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    share = ThreadShare(openmp=())
    before = torch.get_num_threads()
    share.set(2)
    state = share.swap(3)
    share.restore(state)
    assert asked == [2, 3, before]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no OpenMP library" in caplog.text


def test_cpu_tensors_pass_through_uncopied() -> None:
    tensor = torch.ones(3)
    device = CPUDevice()
    assert device.copy_in(tensor) is tensor
    assert device.copy_out(tensor) is tensor


def test_warming_the_cpu_up_runs_the_call_once_on_the_calling_thread() -> None:
    calls: list[int] = []
    CPUDevice().warm_up(lambda: calls.append(threading.get_ident()))
    assert calls == [threading.get_ident()]


@pytest.mark.parametrize("device", [CPUDevice(), CUDADevice(0)], ids=["cpu", "cuda"])
def test_every_hazard_has_an_id_a_summary_and_a_measure(device: CPUDevice | CUDADevice) -> None:
    hazards = device.hazards()
    assert hazards
    assert len({hazard.id for hazard in hazards}) == len(hazards)
    assert all(hazard.summary.endswith(".") and hazard.measure.endswith(".") for hazard in hazards)


def test_a_share_taken_by_a_suspended_generator_is_not_put_back_in_the_thread_that_closes_it() -> None:
    def generate() -> Iterator[int]:
        with CPUDevice(cores=9).new_stream().use():
            yield torch.get_num_threads()

    generator = generate()
    assert in_thread(lambda: next(generator)) == 9

    def close() -> int:
        CPUDevice().set_thread_share(7)
        generator.close()
        return torch.get_num_threads()

    assert in_thread(close) == 7


# CUDA, as far as it shows without a GPU


class FakeCUDA:
    """Streams that come round robin from 32, as torch's do; records what is asked of it."""

    def __init__(self) -> None:
        self.made = 0
        self.asked: list[str] = []
        self.now = SimpleNamespace(
            cuda_stream=0,
            synchronize=lambda: self.asked.append("synchronize current"),
            wait_stream=lambda other: self.asked.append(f"0 waits for {other.cuda_stream}"),
        )

    def Stream(self, device: torch.device) -> Any:
        self.made += 1
        handle = (self.made - 1) % 32 + 1
        return SimpleNamespace(
            cuda_stream=handle,
            device=device,
            synchronize=lambda: self.asked.append(f"synchronize {handle}"),
            wait_stream=lambda other: self.asked.append(f"{handle} waits for {other.cuda_stream}"),
        )

    def current_stream(self, device: torch.device) -> Any:
        return self.now

    @contextmanager
    def stream(self, raw: Any) -> Any:
        before, self.now = self.now, raw
        yield
        self.now = before

    @contextmanager
    def device(self, device: torch.device) -> Any:
        self.asked.append(f"enter {device}")
        yield
        self.asked.append(f"leave {device}")


class FakeTensor:
    """A tensor that notes how it is moved."""

    def __init__(self, device: str, pinned: bool = False) -> None:
        self.device = torch.device(device)
        self.pinned = pinned
        self.moves: list[tuple[Any, ...]] = []

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> FakeTensor:
        copy = FakeTensor("cpu", pinned=True)
        copy.moves = [*self.moves, ("pin",)]
        return copy

    def to(self, device: torch.device, non_blocking: bool = False) -> FakeTensor:
        moved = FakeTensor(str(device))
        moved.moves = [
            *self.moves,
            ("to", str(device), "pinned" if self.pinned else "pageable", non_blocking),
        ]
        return moved

    def record_stream(self, raw: Any) -> None:
        self.moves.append(("record", raw.cuda_stream))


def test_making_a_cuda_device_touches_no_gpu() -> None:
    device = CUDADevice(1)
    assert device.torch_device == torch.device("cuda", 1)


def test_live_cuda_streams_are_distinct_even_when_others_take_from_the_same_pool() -> None:
    cuda = FakeCUDA()
    device = CUDADevice(0, cuda=cuda)
    streams: list[Any] = []
    for _ in range(32):
        streams.append(device.new_stream())
        cuda.Stream(torch.device("cuda", 0))  # other code in the process
    assert len({stream.raw.cuda_stream for stream in streams}) == 32
    assert len({stream.id for stream in streams}) == 32


def test_a_33rd_live_cuda_stream_is_shared_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    streams: list[Any] = [device.new_stream() for _ in range(33)]
    assert len({stream.raw.cuda_stream for stream in streams}) == 32
    assert len({stream.id for stream in streams}) == 33
    assert "more than 32 streams" in caplog.text


def test_a_dropped_cuda_stream_can_be_had_again(caplog: pytest.LogCaptureFixture) -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    for _ in range(100):
        device.new_stream()
    assert not caplog.records


def test_dropped_cuda_streams_are_the_first_to_be_taken_again() -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    kept: Any = device.new_stream()
    dropped: Any = [device.new_stream() for _ in range(3)]
    numbers = {stream.raw.cuda_stream for stream in dropped}
    del dropped
    again: Any = [device.new_stream() for _ in range(3)]
    assert {stream.raw.cuda_stream for stream in again} == numbers
    assert kept.raw.cuda_stream not in numbers


def test_a_cuda_stream_waits_for_the_current_one_but_not_for_itself() -> None:
    cuda = FakeCUDA()
    stream = CUDADevice(0, cuda=cuda).new_stream()
    stream.follow_current()
    with stream.use():
        stream.follow_current()
    assert cuda.asked == ["1 waits for 0"]


def test_synchronizing_a_cuda_stream_waits_for_that_stream_only() -> None:
    cuda = FakeCUDA()
    device = CUDADevice(0, cuda=cuda)
    first, second = device.new_stream(), device.new_stream()
    second.synchronize()
    assert cuda.asked == ["synchronize 2"]
    assert first.id != second.id


def test_a_copy_to_the_gpu_goes_through_pinned_memory_and_does_not_wait() -> None:
    moved: Any = CUDADevice(0, cuda=FakeCUDA()).copy_in(FakeTensor("cpu"))  # type: ignore[arg-type]
    assert moved.moves == [("pin",), ("to", "cuda:0", "pinned", True)]


def test_a_pinned_tensor_is_not_pinned_again() -> None:
    moved: Any = CUDADevice(0, cuda=FakeCUDA()).copy_in(FakeTensor("cpu", pinned=True))  # type: ignore[arg-type]
    assert moved.moves == [("to", "cuda:0", "pinned", True)]


def test_a_tensor_of_another_gpu_is_refused_in_both_directions() -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    stranger: Any = FakeTensor("cuda:1")
    with pytest.raises(InvalidInputError, match="on cuda:1 was given to cuda:0"):
        device.copy_in(stranger)
    with pytest.raises(DeviceRuleError, match="on cuda:1 was given to cuda:0"):
        device.copy_out(stranger)


def test_recording_a_tensor_names_the_stream_to_the_allocator() -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    tensor: Any = FakeTensor("cuda:0")
    device.record(tensor, device.new_stream())
    assert tensor.moves == [("record", 1)]


def test_recording_on_a_stream_of_another_kind_is_refused() -> None:
    device = CUDADevice(0, cuda=FakeCUDA())
    with pytest.raises(DeviceRuleError, match="is no CUDA stream"):
        device.record(FakeTensor("cuda:0"), CPUDevice().new_stream())  # type: ignore[arg-type]


def test_a_cuda_worker_runs_with_its_gpu_current() -> None:
    cuda = FakeCUDA()
    with CUDADevice(1, cuda=cuda).worker_scope(0, 1):
        cuda.asked.append("work")
    assert cuda.asked == ["enter cuda:1", "work", "leave cuda:1"]


# CUDA, with a GPU

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.bool])
def test_a_tensor_comes_back_from_the_gpu_as_it_went(dtype: torch.dtype) -> None:
    device = resolve("cuda")
    tensor = torch.randint(0, 2, (7, 5)).to(dtype)
    stream = device.new_stream()
    with stream.use():
        there = device.copy_in(tensor)
        assert there.device == device.torch_device
        back = device.copy_out(there.t())
    assert back.device.type == "cpu"
    assert back.dtype == dtype
    assert torch.equal(back, tensor.t())


@pytest.mark.cuda
@needs_cuda
def test_the_source_of_a_copy_may_be_changed_at_once() -> None:
    device = resolve("cuda")
    stream = device.new_stream()
    with stream.use():
        for number in range(50):
            source = torch.full((1 << 18,), float(number))
            there = device.copy_in(source)
            source.fill_(-1)
            assert device.copy_out(there).eq(number).all()


@pytest.mark.cuda
@needs_cuda
def test_cuda_warms_up_and_names_itself() -> None:
    device = resolve("cuda")
    calls: list[int] = []
    device.warm_up(lambda: calls.append(1))
    assert calls == [1]
    assert device.capabilities.name == torch.cuda.get_device_name(device.torch_device)
