"""LoRA in Triton against float64: forward, an adapter for each row, gradients, graphs, threads, refusals."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch

from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.triton import lora as family
from steelworks.kernels.triton._lora_tiles import Described, pick_described
from steelworks.kernels.triton.lora import (
    BESIDE,
    Tile,
    lora_backward,
    lora_forward,
    lora_linear,
    lora_linear_multi,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Half the distance between neighbours at 1; twice that for bfloat16, which the interpreter truncates.
ROUNDOFF = {F32: 2.0**-24, F16: 2.0**-11, BF16: 2.0**-7}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")


@dataclass(frozen=True)
class Tensors:
    """The arguments of a call; ``a`` and ``b`` are stacks for more than one adapter."""

    x: torch.Tensor
    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor
    scales: torch.Tensor
    of_row: torch.Tensor


def made(m: int, n: int, k: int, r: int, dtype: torch.dtype = F32, count: int = 0) -> Tensors:
    random = torch.Generator().manual_seed(m * 1009 + n * 31 + k + r)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype).to(DEVICE)

    stack = (count,) if count else ()
    return Tensors(
        draw(m, k),
        draw(n, k),
        draw(*stack, r, k),
        draw(*stack, n, r),
        draw(n),
        torch.randn(max(count, 1), generator=random).to(DEVICE),
        torch.randint(-1, max(count, 1), (m,), generator=random, dtype=torch.int32).to(DEVICE),
    )


def assert_close(
    got: torch.Tensor, want: torch.Tensor, size: torch.Tensor, terms: int, roundings: int = 1
) -> None:
    """``size`` is the sum of the terms' absolute values; the low-rank sums are rounded before they are used."""
    unit = ROUNDOFF[got.dtype]
    inner = roundings * unit if got.dtype != F32 else 0.0
    bound = unit * want.abs() + (inner + (terms + 10) * 2.0**-24) * size + 1e-30
    difference = (got.double() - want).abs()
    assert got.shape == want.shape
    assert bool((difference <= bound).all()), f"off by {float((difference / bound).max())} bounds"


def check_one(t: Tensors, got: torch.Tensor, scale: float, bias: torch.Tensor | None) -> None:
    size = reference.lora_linear(
        t.x.abs(), t.weight.abs(), t.a.abs(), t.b.abs(), abs(scale), None if bias is None else bias.abs()
    )
    want = reference.lora_linear(t.x, t.weight, t.a, t.b, scale, bias)
    assert_close(got, want, size, t.x.shape[1] + t.a.shape[0])


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (1, 33, 70), (5, 64, 128), (20, 70, 129), (70, 65, 100)]
)
def test_the_result_is_that_of_float64(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    t = made(m, n, k, 8, dtype)
    check_one(t, lora_linear(t.x, t.weight, t.a, t.b, 0.5, t.bias), 0.5, t.bias)
    check_one(t, lora_linear(t.x, t.weight, t.a, t.b, -2.0), -2.0, None)


@pytest.mark.parametrize("r", [1, 2, 7, 8, 15, 16, 17, 33, 63, 64])
def test_every_rank_is_right(r: int) -> None:
    t = made(9, 40, 50, r)
    check_one(t, lora_linear(t.x, t.weight, t.a, t.b, 0.25, t.bias), 0.25, t.bias)


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_sum_in_parts_is_the_whole_sum(
    parts: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = made(18, 30, 1024, 5, dtype)
    tile = Tile(32, 32, 32, most_parts=parts)
    if DEVICE == "cpu":  # as a stream has on a GPU: the same counters for all launches
        counters = torch.zeros(family._counters.MOST, dtype=torch.int32)
        monkeypatch.setattr(family._counters, "zeros", lambda count, like: counters)
    for _ in range(2):  # the second finds its counters at zero only if the first left them so
        got, _low = family._forward(t.x, t.weight, t.a, t.b, 0.5, t.bias, False, tile)
        check_one(t, got, 0.5, t.bias)


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("m", "n", "k", "r"), [(1, 1, 1, 1), (70, 140, 1040, 6), (17, 33, 512, 64)])
def test_the_adapter_may_be_added_to_what_pytorch_computed(
    m: int, n: int, k: int, r: int, dtype: torch.dtype
) -> None:
    t = made(m, n, k, r, dtype)
    got, low = family._forward(t.x, t.weight, t.a, t.b, 2.0, t.bias, True, BESIDE)
    check_one(t, got, 2.0, t.bias)
    size = t.x.abs().double() @ t.a.abs().double().mT
    assert_close(low, t.x.double() @ t.a.double().mT, size, k)


SMALL = Described(32, 32, 32, warps=4, stages=2, low_rows=16, parts=2)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize(
    ("m", "n", "k", "r"), [(1, 8, 8, 1), (70, 140, 1040, 6), (17, 40, 512, 64), (32, 64, 1024, 16)]
)
def test_operands_may_come_through_descriptors(
    m: int, n: int, k: int, r: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = made(m, n, k, r, dtype)
    if DEVICE == "cpu":  # as a stream has on a GPU: the same counters for all launches
        counters = torch.zeros(family._counters.MOST, dtype=torch.int32)
        monkeypatch.setattr(family._counters, "zeros", lambda count, like: counters)
    size = t.x.abs().double() @ t.a.abs().double().mT
    for _ in range(2):  # the second finds its counters at zero only if the first left them so
        got, low = family._forward(t.x, t.weight, t.a, t.b, 0.3, t.bias, True, SMALL)
        check_one(t, got, 0.3, t.bias)
        assert_close(low, t.x.double() @ t.a.double().mT, size, k)
    got, _low = family._forward(t.x, t.weight, t.a, t.b, 0.3, None, False, SMALL)
    check_one(t, got, 0.3, None)


def test_gradients_are_right_through_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    t = made(40, 72, 1040, 5, F16)
    given = [tensor.div(8) for tensor in (t.x, t.weight, t.a, t.b)]
    grad = made(40, 72, 8, 1, F16).x @ made(72, 8, 8, 1, F16).x.mT / 8
    found = {}
    for tile in (SMALL, BESIDE):
        monkeypatch.setattr(family, "_plans", type(family._plans)())
        monkeypatch.setattr(family, "pick_tile", lambda *sizes, tile=tile, **options: tile)
        ours = [tensor.clone().requires_grad_() for tensor in given]
        lora_linear(ours[0], ours[1], ours[2], ours[3], 0.5).backward(grad)
        found[tile] = [tensor.grad for tensor in ours]
    exact = [tensor.double().requires_grad_() for tensor in given]
    (exact[0] @ exact[1].mT + 0.5 * (exact[0] @ exact[2].mT) @ exact[3].mT).backward(grad.double())
    for mine, other, wanted in zip(found[SMALL], found[BESIDE], exact, strict=True):
        assert mine is not None and other is not None and wanted.grad is not None
        torch.testing.assert_close(mine.double(), wanted.grad, rtol=1e-2, atol=2e-2)
        torch.testing.assert_close(mine, other, rtol=1e-2, atol=2e-2)


def test_descriptors_are_used_where_tiles_fill_the_multiprocessors() -> None:
    assert pick_described(512, 4096, 16, 132) == Described(128, 128, low_rows=32, parts=8)
    assert pick_described(512, 4096, 64, 132) == Described(128, 128)
    assert pick_described(1024, 1024, 16, 132) == Described(64, 128, warps=4)
    assert pick_described(2048, 4096, 16, 132) == Described(256, 128, stages=4, low_rows=64)
    assert pick_described(512, 11008, 16, 132) is None


def test_operands_that_no_descriptor_takes_are_computed_otherwise() -> None:
    t = made(20, 24, 64, 4, F16)
    assert family._described(t.x, t.weight, 4096, 4096, 4) is not None
    apart = torch.zeros(20, 68, dtype=F16, device=DEVICE)[:, :64]  # rows that are not 16 bytes apart
    assert family._described(apart, t.weight, 4096, 4096, 4) is None
    late = torch.zeros(20 * 64 + 1, dtype=F16, device=DEVICE)[1:].view(20, 64)  # begins between two places
    assert family._described(late, t.weight, 4096, 4096, 4) is None
    assert family._described(t.x.float(), t.weight.float(), 4096, 4096, 4) is None
    late.copy_(t.x)
    got, _low = family._forward(late, t.weight, t.a, t.b, 0.5, t.bias, False, BESIDE)
    check_one(t, got, 0.5, t.bias)


def test_gradients_are_right_where_pytorch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "pick_tile", lambda *sizes, **options: BESIDE)
    test_gradients_are_those_of_autograd_in_float64(71, 150, 1030, 5)


def test_rows_that_lie_apart_and_more_dimensions_are_taken() -> None:
    t = made(12, 20, 24, 4)
    x = torch.zeros(3, 4, 30, device=DEVICE)[:, :, :24]
    x.copy_(t.x.view(3, 4, 24))
    weight = torch.full((20, 37), torch.nan, device=DEVICE)[:, :24]
    weight.copy_(t.weight)
    got = lora_linear(x, weight, t.a.mT.contiguous().mT, t.b.mT.contiguous().mT, 0.5, t.bias)
    assert got.shape == (3, 4, 20)
    check_one(t, got.view(12, 20), 0.5, t.bias)


def test_no_rows_and_no_columns_give_empty_results() -> None:
    t = made(3, 5, 7, 2)
    assert lora_linear(t.x[:0], t.weight, t.a, t.b).shape == (0, 5)
    assert lora_linear(t.x, t.weight[:0], t.a, t.b[:0]).shape == (3, 0)


def test_no_inner_columns_give_the_bias() -> None:
    t = made(3, 5, 0, 2)
    torch.testing.assert_close(lora_linear(t.x, t.weight, t.a, t.b, 1.0, t.bias), t.bias.expand(3, 5))


def test_nan_reaches_its_row_and_no_other() -> None:
    t = made(9, 33, 20, 4)
    t.x[4, 7] = torch.nan
    got = lora_linear(t.x, t.weight, t.a, t.b, 0.5)
    assert bool(got[4].isnan().all())
    assert not bool(got[[0, 1, 2, 3, 5, 6, 7, 8]].isnan().any())


@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 33, 70), (5, 64, 128), (40, 70, 129)])
def test_each_row_has_its_own_adapter(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    t = made(m, n, k, 9, dtype, count=4)
    got = lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
    want = reference.lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
    size = reference.lora_linear_multi(
        t.x.abs(), t.weight.abs(), t.a.abs(), t.b.abs(), t.scales.abs(), t.of_row, t.bias.abs()
    )
    assert_close(got, want, size, k + 9)


def test_rows_without_an_adapter_are_plain_rows() -> None:
    t = made(6, 20, 30, 4, count=2)
    t.a.fill_(torch.nan)
    for nobody in (-1, 2, 1000, -(2**31)):
        of_row = torch.full((6,), nobody, dtype=torch.int32, device=DEVICE)
        got = lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, of_row, t.bias)
        torch.testing.assert_close(
            got, torch.nn.functional.linear(t.x, t.weight, t.bias), rtol=1e-5, atol=1e-5
        )


def test_adapters_in_a_sum_in_parts_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tile = Tile(32, 32, 32, most_parts=4)
    monkeypatch.setattr(family, "pick_tile", lambda *sizes, **options: tile)
    t = made(21, 31, 1024, 5, count=3)
    for _ in range(2):
        got = lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
    want = reference.lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize(("m", "n", "k", "r"), [(1, 33, 70, 3), (20, 64, 48, 8), (70, 65, 100, 33)])
def test_gradients_are_those_of_autograd_in_float64(m: int, n: int, k: int, r: int) -> None:
    t = made(m, n, k, r)
    given = [t.x, t.weight, t.a, t.b, t.bias]
    ours = [tensor.clone().requires_grad_() for tensor in given]
    exact = [tensor.double().requires_grad_() for tensor in given]
    grad = torch.randn(m, n, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    lora_linear(ours[0], ours[1], ours[2], ours[3], 0.5, ours[4]).backward(grad)
    x, weight, a, b, bias = exact
    (x @ weight.mT + 0.5 * (x @ a.mT) @ b.mT + bias).backward(grad.double())
    for mine, wanted in zip(ours, exact, strict=True):
        assert mine.grad is not None and wanted.grad is not None
        torch.testing.assert_close(mine.grad.double(), wanted.grad, rtol=1e-4, atol=1e-3)


def test_only_needed_gradients_are_computed() -> None:
    t = made(4, 8, 12, 2)
    _out, low = lora_forward(t.x, t.weight, t.a, t.b)
    grad = torch.ones(4, 8, device=DEVICE)
    for needed in range(5):
        needs = tuple(place == needed for place in range(5))
        found = lora_backward(grad, t.x, t.weight, t.a, t.b, low, 1.0, needs)  # type: ignore[arg-type]
        assert [g is not None for g in found] == list(needs)


def test_gradients_of_no_rows_are_zeros() -> None:
    t = made(3, 8, 12, 2)
    a = t.a.clone().requires_grad_()
    lora_linear(t.x[:0], t.weight, a, t.b).sum().backward()
    assert a.grad is not None and not bool(a.grad.any())


def test_what_does_not_fit_is_refused_with_the_mend() -> None:
    t = made(3, 5, 7, 2)
    with pytest.raises(InvalidInputError, match="1 to 64 are allowed"):
        lora_linear(t.x, t.weight, torch.zeros(65, 7), torch.zeros(5, 65))
    with pytest.raises(InvalidInputError, match=r"\(\.\.\., k\) and \(n, k\) are needed"):
        lora_linear(t.x[:, :6], t.weight, t.a, t.b)
    with pytest.raises(InvalidInputError, match="convert them"):
        lora_linear(t.x, t.weight, t.a.double(), t.b)
    with pytest.raises(InvalidInputError, match="int32"):
        lora_linear_multi(t.x, t.weight, t.a[None], t.b[None], t.scales, t.of_row.long())


@needs_gpu
def test_a_captured_call_is_right_at_each_replay() -> None:
    t = made(64, 4096, 4096, 16, BF16, count=4)
    one = Tensors(t.x, t.weight, t.a[0], t.b[0], t.bias, t.scales, t.of_row)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return (
            lora_linear(t.x, t.weight, t.a[0], t.b[0], 0.5, t.bias),
            lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias),
        )

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        first, second = both()
    for _ in range(3):
        t.x.normal_()
        first.fill_(torch.nan)
        second.fill_(torch.nan)
        graph.replay()
        check_one(one, first, 0.5, t.bias)
        want = reference.lora_linear_multi(t.x, t.weight, t.a, t.b, t.scales, t.of_row, t.bias)
        assert float((second.double() - want).norm() / want.norm()) < 1e-2


@needs_gpu
def test_many_threads_on_their_own_streams_get_their_own_results() -> None:
    t = made(16, 4096, 4096, 16, BF16)
    want = reference.lora_linear(t.x, t.weight, t.a, t.b, 0.5)
    wrong: list[float] = []

    def work(factor: float) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                got = lora_linear(t.x * factor, t.weight, t.a, t.b, 0.5)
            error = float((got.double() - want * factor).norm() / want.norm() / factor)
            if not error < 1e-2:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(2.0**i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
