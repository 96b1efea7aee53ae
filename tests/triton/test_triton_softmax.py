"""softmax and log_softmax in Triton against float64, within bounds from dtype and length."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.triton import _softmax_kernels, softmax, tuning

Near = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | float, str], None]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
UNIT = 2.0**-24
FORMS = {"softmax": softmax.softmax, "log_softmax": softmax.log_softmax}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def draw(*shape: int, dtype: torch.dtype = F32, device: str = "cpu", spread: float = 3.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape) + 1)
    return (torch.randn(shape, generator=random) * spread).to(dtype).to(device)


def bound(form: str, x: torch.Tensor, dim: int, want: torch.Tensor) -> torch.Tensor:
    """What float32 may be off by: a sum of ``length`` terms in any order, and an exponential of x - maximum."""
    length = x.shape[dim] if x.dim() else 1
    exact = x.double()
    distance = (exact - exact.amax(dim, keepdim=True)).abs().nan_to_num(0, 0, 0)
    relative = UNIT * (length + 16 + 4 * distance)
    return relative * want.abs().nan_to_num(0, 0, 0) if form == "softmax" else relative


def check(form: str, x: torch.Tensor, dim: int, near: Near, case: str) -> None:
    want = getattr(reference, form)(x, dim)
    near(FORMS[form](x, dim), want, bound(form, x, dim, want), f"{form} {case}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 31, 64, 65, 257, 1000, 1024, 4099])
def test_rows_of_any_length_are_right(form: str, length: int, device: str, near: Near) -> None:
    check(form, draw(5, length, device=device), -1, near, f"5x{length}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_precision_is_rounded_once(form: str, dtype: torch.dtype, device: str, near: Near) -> None:
    for length in (33, 1024):
        check(form, draw(3, length, dtype=dtype, device=device), -1, near, f"{dtype} {length}")


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_do_not_fit_in_registers_are_read_twice(
    form: str, device: str, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ROW_MOST", 64)
    monkeypatch.setattr(tuning, "SOFTMAX_LONG", tuning.LongRows(block=128, warps=4))
    softmax._FORWARD.clear()
    before = _softmax_kernels.LONG_ROWS.variants
    for length in (65, 128, 129, 700):
        x = draw(3, length, device=device)
        x[1, : length - 1] = -math.inf  # whole blocks of -inf in a row that is not
        check(form, x, -1, near, f"long {length}")
    softmax._FORWARD.clear()
    assert device == "cpu" or _softmax_kernels.LONG_ROWS.variants > before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape,dim", [((4, 33, 5), 1), ((70, 3), 0), ((2, 300, 40), -2), ((2, 3, 4, 5), 0)])
def test_any_dimension_is_right(
    form: str, shape: tuple[int, ...], dim: int, device: str, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tile in (8192, 512):  # in one go, and block by block
        monkeypatch.setattr(tuning, "SOFTMAX_COLUMN_TILE", tile)
        softmax._FORWARD.clear()
        check(form, draw(*shape, device=device), dim, near, f"{shape} along {dim}, tile {tile}")
    softmax._FORWARD.clear()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [0, 1])
def test_special_values_are_torchs(form: str, dim: int, device: str, near: Near) -> None:
    x = draw(8, 8, device=device)
    x[0] = -math.inf
    x[1, 2], x[2, 3], x[3, 4] = math.nan, math.inf, -math.inf
    x[4], x[5], x[6, 0] = 0.0, 1e10, 1e-10
    check(form, x, dim, near, f"special values along {dim}")


@pytest.mark.parametrize("form", FORMS)
def test_views_give_what_dense_tensors_give(form: str, device: str, near: Near) -> None:
    base = draw(4, 9, 24, device=device)
    views = {
        "columns of a wider row": base[:, :, :17],
        "every second row": base[:, ::2],
        "transposed": base.transpose(1, 2),
        "a row apart": base[:, 3],
        "broadcast": base[:1].expand(4, 9, 24),
        "not at 16 bytes": base.flatten()[1:-23].view(-1, 24),
    }
    for name, view in views.items():
        for dim in (0, -1):
            check(form, view, dim, near, f"{name} along {dim}")


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_nothing_gives_nothing(shape: tuple[int, ...], device: str) -> None:
    for form in FORMS.values():
        assert form(torch.empty(shape, device=device), 0).shape == shape


def test_a_tensor_without_dimensions_has_one_element(device: str) -> None:
    assert softmax.softmax(torch.tensor(5.0, device=device), 0).item() == 1.0
    assert softmax.log_softmax(torch.tensor(5.0, device=device)).item() == 0.0


def test_the_result_can_have_another_dtype(device: str, near: Near) -> None:
    x = draw(3, 40, dtype=BF16, device=device)
    for form in FORMS:
        want = getattr(reference, form)(x, -1)
        near(FORMS[form](x, -1, dtype=F32), want, bound(form, x, -1, want), f"{form} to float32")


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape,dim", [((5, 257), -1), ((3, 1024), -1), ((4, 33, 5), 1), ((2, 700, 3), 1)])
def test_backward_is_autograds(
    log: bool, shape: tuple[int, ...], dim: int, device: str, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = draw(*shape, device=device).double().requires_grad_()
    y = (torch.log_softmax if log else torch.softmax)(exact, dim)
    grad = draw(*shape, device=device, spread=1.0)
    (want,) = torch.autograd.grad(y, exact, grad.double())
    backward = softmax.log_softmax_backward if log else softmax.softmax_backward
    rounded = y.detach().float()
    # y is given in float32: its own rounding counts as well, and cancels in the subtraction.
    parts = grad.double().abs().sum(dim, keepdim=True) * (1 if not log else y.exp())
    limit = UNIT * (shape[dim] + 16 + y.abs()) * (parts + grad.abs())
    for most in (tuning.ROW_MOST, 128):
        monkeypatch.setattr(tuning, "ROW_MOST", most)
        softmax._BACKWARD.clear()
        near(backward(grad, rounded, dim), want, limit, f"{shape} along {dim}, rows up to {most}")
        got = backward(grad.transpose(0, -1).contiguous().transpose(0, -1), rounded, dim)
        near(got, want, limit, f"{shape} along {dim}, a strided gradient")
    softmax._BACKWARD.clear()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    data=st.data(),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from([F32, F16, BF16]),
    spread=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
)
def test_softmax_of_any_shape(
    shape: list[int],
    data: st.DataObject,
    form: str,
    dtype: torch.dtype,
    spread: float,
    device: str,
    near: Near,
) -> None:
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = draw(*shape, dtype=dtype, device=device, spread=spread)
    step = data.draw(st.integers(1, 3))
    check(form, x[::step], dim, near, f"{shape} {dtype} along {dim}, step {step}")


@pytest.mark.parametrize(
    "x,dim,words",
    [
        (torch.zeros(3, dtype=torch.float64), 0, "float32, float16 or bfloat16"),
        (torch.zeros(3, dtype=torch.int32), 0, "float32, float16 or bfloat16"),
        (torch.zeros(3), 1, "-1 to 0"),
        (torch.zeros(3, 4), -3, "-2 to 1"),
    ],
)
def test_what_is_not_supported_is_refused_with_what_is(
    x: torch.Tensor, dim: int, words: str, device: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        softmax.softmax(x.to(device), dim)


@needs_gpu
def test_a_captured_call_computes_from_what_its_input_then_holds() -> None:
    x = draw(64, 1024, device="cuda")
    softmax.softmax(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = softmax.softmax(softmax.log_softmax(x))
    x.copy_(draw(64, 1024, device="cuda", spread=1.0))
    graph.replay()
    torch.testing.assert_close(y, torch.softmax(x, -1), rtol=1e-4, atol=1e-6)


def test_threads_that_need_different_variants_at_once_all_get_theirs(device: str) -> None:
    softmax._FORWARD.clear()
    lengths = [100 + 3 * n for n in range(8)]
    results: dict[int, float] = {}
    start = threading.Barrier(len(lengths))

    def run(length: int) -> None:
        start.wait()
        x = draw(2, length, device=device)
        results[length] = float((softmax.softmax(x) - torch.softmax(x, -1)).abs().max())

    # The interpreter patches modules while it runs: there, one thread at a time.
    threads = [threading.Thread(target=run, args=(length,)) for length in lengths]
    if device == "cpu":
        start = threading.Barrier(1)
        for length in lengths:
            run(length)
    else:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(results.values()) < 1e-6
    assert len(results) == len(lengths)
