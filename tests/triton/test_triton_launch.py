"""Pre-compiled launches: arguments, hints, the write-once cache of variants, and the bounded cache of plans."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels.triton import _launch
from steelworks.kernels.triton._launch import (
    Arg,
    Kernel,
    OnceEach,
    Options,
    Plans,
    _Direct,
    _divisor,
    _Variant,
    cdiv,
    constexpr,
    jit,
    power_of_two,
    tl,
)  # fmt: skip

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@jit
def _scale_kernel(x: Arg, y: Arg, n: Arg, factor: Arg, BLOCK: constexpr) -> None:
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, at < n) * factor, at < n)


def bound(kernel: Kernel, x: torch.Tensor, y: torch.Tensor, factor: float = 0.5) -> object:
    return kernel.bind(
        (x, y), scalars=(x.numel(), factor), constants={"BLOCK": 64}, grid=(cdiv(x.numel(), 64),)
    )


@pytest.mark.parametrize("size", [1, 63, 64, 200])
def test_a_launch_runs_the_kernel_over_its_grid(size: int, device: str) -> None:
    x = torch.randn(size, device=device)
    y = torch.full_like(x, -1.0)
    bound(Kernel(_scale_kernel, pointers=2), x, y)(x, y)
    assert torch.equal(y, x * 0.5)


def test_an_empty_grid_launches_nothing(device: str) -> None:
    x = torch.ones(0, device=device)
    bound(Kernel(_scale_kernel, pointers=2), x, x)(x, x)


def test_wrong_numbers_of_arguments_are_refused_with_the_right_ones(device: str) -> None:
    kernel = Kernel(_scale_kernel, pointers=2)
    x = torch.ones(4, device=device)
    with pytest.raises(InvalidInputError, match="2 tensors and 2 scalars; 1 and 2 were given"):
        kernel.bind((x,), scalars=(4, 0.5), constants={"BLOCK": 64}, grid=(1,))
    with pytest.raises(InvalidInputError, match=r"the constants \['BLOCK'\]"):
        kernel.bind((x, x), scalars=(4, 0.5), constants={"WIDTH": 64}, grid=(1,))


def test_the_compiler_is_told_what_divides_a_scalar() -> None:
    assert [_divisor(v) for v in (0, 16, 4096, 24, 8, 4, 1, 0.5, 16.0)] == [16, 16, 16, 8, 8, 1, 1, 1, 1]


def test_powers_of_two() -> None:
    assert [power_of_two(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]


def test_making_one_value_keeps_nobody_waiting_who_needs_another() -> None:
    values: OnceEach[str] = OnceEach()
    begun, release = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert release.wait(30)
        return "slow"

    thread = threading.Thread(target=values.get, args=("a", slow))
    thread.start()
    assert begun.wait(30)
    assert values.get("b", lambda: "quick") == "quick"
    release.set()
    thread.join()
    assert values.get("a", lambda: "again") == "slow"


def test_threads_that_need_the_same_value_make_it_once() -> None:
    values: OnceEach[int] = OnceEach()
    made: list[int] = []
    start = threading.Barrier(8)

    def make() -> int:
        made.append(1)
        return 5

    got: list[int] = []

    def run() -> None:
        start.wait()
        got.append(values.get("key", make))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [5] * 8
    assert made == [1]


def test_after_a_failure_the_next_caller_tries_again() -> None:
    values: OnceEach[int] = OnceEach()

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        values.get("key", fail)
    assert values.get("key", lambda: 3) == 3


def test_a_full_cache_of_plans_is_emptied_and_goes_on() -> None:
    plans: Plans[int] = Plans()
    for number in range(Plans.MOST):
        plans.keep(number, number)
    assert len(plans) == Plans.MOST
    assert plans.keep("one more", 7) == 7
    assert dict(plans) == {"one more": 7}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What launches of a kernel that was compiled ask of the driver: without a GPU, on the addresses of CPU tensors."""
    asked: list[tuple[Any, ...]] = []

    def launcher(variant: _Variant) -> tuple[Any, tuple[Any, ...]]:
        return lambda *arguments: asked.append(arguments), (variant.divisors,)

    monkeypatch.setattr(_launch, "_launcher", launcher)
    monkeypatch.setattr(Kernel, "compiled", lambda self, variant: variant)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 70 + device, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 2, raising=False)
    return asked


def test_addresses_that_are_not_aligned_take_a_variant_that_is_told_so(launched: list[Any]) -> None:
    kernel = Kernel(_scale_kernel, pointers=2)
    told = (16, 16, 16, 1)
    variant = _Variant(("*fp32", "*fp32", "i32", "fp32"), told, (("BLOCK", 64),), Options(), 2)
    launch = _Direct(kernel, variant, (3, 1, 1), (64, 0.5))
    storage = torch.zeros(200)
    offset = -storage.data_ptr() // 4 % 4  # elements to the first multiple of 16 bytes
    aligned, other = storage[offset : offset + 64], storage[offset + 100 : offset + 164]
    assert other.data_ptr() % 16 == 0
    launch(aligned, other)
    for shift in (1, 2, 3):
        launch(aligned, storage[offset + 100 + shift : offset + 164 + shift])
        launch(storage[offset + shift : offset + shift + 64], other)
    launch(aligned, other)
    assert [asked[4] for asked in launched] == [told, *[(1, 1, 16, 1)] * 6, told]


def test_a_launch_hands_over_grid_stream_addresses_scalars_and_places_for_constants(
    launched: list[Any],
) -> None:
    kernel = Kernel(_scale_kernel, pointers=2)
    variant = _Variant(("*fp32", "*fp32", "i32", "fp32"), (1, 1, 16, 1), (("BLOCK", 64),), Options(), 2)
    x, y = torch.zeros(64), torch.zeros(64)
    _Direct(kernel, variant, (3, 1, 1), (64, 0.5))(x, y)
    assert launched == [(3, 1, 1, 72, variant.divisors, x.data_ptr(), y.data_ptr(), 64, 0.5, None)]


@needs_gpu
def test_a_tensor_that_is_not_aligned_uses_a_variant_of_its_own() -> None:
    kernel = Kernel(_scale_kernel, pointers=2)
    x = torch.randn(129, device="cuda")
    y = torch.zeros(128, device="cuda")
    launch = bound(kernel, x[:128], y)
    for begin, variants in ((0, 1), (1, 2), (1, 2), (0, 2)):
        launch(x[begin : begin + 128], y)
        assert torch.equal(y, x[begin : begin + 128] * 0.5)
        assert kernel.variants == variants


@needs_gpu
def test_plain_scalars_share_a_variant_and_hinted_ones_do_not() -> None:
    for plain, variants in ((("n",), 1), ((), 3)):
        kernel = Kernel(_scale_kernel, pointers=2, plain=plain)
        for size in (5, 7, 8, 24, 16, 4096):
            x = torch.randn(size, device="cuda")
            y = torch.empty_like(x)
            bound(kernel, x, y)(x, y)
            assert torch.equal(y, x * 0.5)
        assert kernel.variants == variants


@needs_gpu
def test_launches_go_to_the_current_stream() -> None:
    kernel = Kernel(_scale_kernel, pointers=2)
    x = torch.ones(1 << 20, device="cuda")
    y = torch.zeros_like(x)
    launch = bound(kernel, x, y)
    launch(x, y)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        launch(y, y)
    torch.cuda.synchronize()
    assert float(y[0]) == 0.5  # captured, not run
    graph.replay()
    torch.cuda.synchronize()
    assert float(y[0]) == 0.25


def test_options_leave_out_what_is_not_given() -> None:
    assert "maxnreg" not in Options().as_triton()
    assert Options(maxnreg=64, pdl=True).as_triton()["maxnreg"] == 64
