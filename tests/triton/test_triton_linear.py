"""Linear layers in Triton against float64: epilogues, three at once, odd shapes and strides, refusals, early reads."""

from __future__ import annotations

import gc
import threading
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional

from steelworks.errors import InvalidInputError
from steelworks.kernels.triton import _settled, tuning
from steelworks.kernels.triton import linear as family
from steelworks.kernels.triton.linear import Layer, linear, qkv_linear

F16, BF16 = torch.float16, torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Half the distance between neighbours at 1; twice that for bfloat16, which the interpreter truncates.
ROUNDOFF = {F16: 2.0**-11, BF16: 2.0**-7}
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
TILES = [tuning.ThinTile(16, 32, 4, 4), tuning.ThinTile(16, 16, 1, 4), tuning.LinearTile(16, 32, 32, 4, 3),
         tuning.LinearTile(64, 64, 64, 4, 3)]  # fmt: skip


def drawn(*shape: int, dtype: torch.dtype = F16, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(sum(shape) * 31 + seed)
    return torch.randn(shape, generator=random).to(dtype).to(DEVICE)


def assert_right(
    got: torch.Tensor,
    x: torch.Tensor,
    layer: Layer,
    activation: str | None = None,
    residual: torch.Tensor | None = None,
) -> None:
    x64, w64 = x.double(), layer.weight.double()
    want, size = functional.linear(x64, w64), functional.linear(x64.abs(), w64.abs())
    for added in (layer.bias, residual):
        if added is not None:
            want, size = want + added.double(), size + added.double().abs()
    if activation is not None:
        want = getattr(functional, activation)(want)
    assert got.shape == want.shape and got.dtype == x.dtype and got.is_contiguous()
    bound = ROUNDOFF[x.dtype] * want.abs() + (x.shape[-1] + 10) * 2.0**-23 * size + 1e-7
    assert bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("activation", [None, "relu", "gelu", "silu"])
@pytest.mark.parametrize("beside", [False, True])
def test_bias_residual_and_activation(dtype: torch.dtype, activation: str | None, beside: bool) -> None:
    x, layer = drawn(2, 9, 70, dtype=dtype), Layer(drawn(33, 70, dtype=dtype), drawn(33, dtype=dtype))
    residual = drawn(2, 9, 33, dtype=dtype) if beside else None
    got = linear(x, layer.weight, layer.bias, activation, residual)
    assert_right(got, x, layer, activation, residual)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (17, 33, 40), (65, 96, 128), (3, 130, 100)])
def test_every_tile_takes_every_shape(
    tile: tuning.ThinTile | tuning.LinearTile, m: int, n: int, k: int
) -> None:
    x, layer, residual = drawn(m, k), Layer(drawn(n, k), drawn(n)), drawn(m, n)
    got = family._run(x, (layer,), "gelu", residual, tile)
    assert_right(got[0], x, layer, "gelu", residual)


@pytest.mark.parametrize("tile", [None, *TILES], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_three_layers_of_different_widths(
    tile: tuning.ThinTile | tuning.LinearTile | None, bias: bool
) -> None:
    x = drawn(2, 5, 64)
    layers = tuple(Layer(drawn(n, 64, seed=n), drawn(n, seed=n) if bias else None) for n in (96, 16, 40))
    for got, layer in zip(family._run(x, layers, None, None, tile), layers, strict=True):
        assert_right(got, x, layer)


def test_the_layers_come_in_the_order_of_the_arguments() -> None:
    x, weights, biases = (
        drawn(4, 32),
        [drawn(32, 32, seed=i) for i in range(3)],
        [drawn(32, seed=i) for i in range(3)],
    )
    for got, weight, bias in zip(qkv_linear(x, *weights, *biases), weights, biases, strict=True):
        assert_right(got, x, Layer(weight, bias))


def test_rows_that_are_apart_and_transposed_operands() -> None:
    wide = drawn(6, 100)
    x, weight = wide[:, 3:67], drawn(64, 48).t()
    assert_right(linear(x, weight), x, Layer(weight, None))
    assert_right(linear(x.t().contiguous().t(), weight), x, Layer(weight, None))
    apart = drawn(48, 100)[:, 5:69]
    assert_right(linear(x, apart), x, Layer(apart, None))


def test_many_rows_take_the_other_kernel() -> None:
    x, layer = drawn(130, 32), Layer(drawn(20, 32), drawn(20))
    assert isinstance(
        tuning.pick(tuning.LINEAR, rows=130, columns=20, terms=32, described=1), tuning.LinearTile
    )
    assert_right(linear(x, layer.weight, layer.bias), x, layer)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 8, 8), (70, 40, 72), (33, 100, 256)])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_operands_may_come_through_descriptors(m: int, n: int, k: int, activation: str | None) -> None:
    tile = tuning.LinearTile(32, 32, 32, 4, 2, described=True)
    x, layer, residual = drawn(m, k), Layer(drawn(n, k), drawn(n, seed=2)), drawn(m, n, seed=3)
    (got,) = family._run(x, (layer,), activation, residual, tile)
    assert_right(got, x, layer, activation, residual)


def test_many_rows_come_through_descriptors_only_where_they_can() -> None:
    for rows, columns, terms in ((512, 768, 3072), (4096, 3072, 768), (512, 4096, 4096), (4096, 384, 1536)):
        sizes = {"rows": rows, "columns": columns, "terms": terms}
        assert tuning.pick(tuning.LINEAR, **sizes, described=1).described
        assert not tuning.pick(tuning.LINEAR, **sizes, described=0).described


def test_not_a_number_passes_through_every_activation() -> None:
    x, weight = drawn(1, 32), torch.eye(32, dtype=F16, device=DEVICE)
    x[0, 3] = float("nan")
    for activation in (None, "relu", "gelu", "silu"):
        assert bool(linear(x, weight, None, activation)[0, 3].isnan())


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 8), (4, 0, 8), (4, 8, 0)])
def test_no_rows_no_columns_no_terms(m: int, n: int, k: int) -> None:
    x, layer = drawn(m, k), Layer(drawn(n, k), drawn(n))
    got = linear(x, layer.weight, layer.bias, "relu")
    assert got.shape == (m, n)
    assert torch.equal(got, functional.relu(functional.linear(x, layer.weight, layer.bias)))


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = drawn(4, 8), drawn(6, 8), drawn(6)
    for wrong, message in (
        ((x.float(), weight.float()), "float16 or bfloat16"),
        ((x, drawn(6, 9)), r"\(n, 8\) is needed"),
        ((x, weight, drawn(5)), "bias is"),
        ((x, weight, bias, "tanh"), "allowed are"),
        ((x, weight, bias, None, drawn(4, 7)), "residual is"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            linear(*wrong)
    with pytest.raises(InvalidInputError, match="give all or none"):
        qkv_linear(x, weight, weight, weight, bias)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a stream was waited for; no GPU is needed for the rules."""
    counted: list[int] = []
    stream = SimpleNamespace(synchronize=lambda: counted.append(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return counted


@torch.no_grad()
def test_a_parameter_is_waited_for_once_and_again_when_it_was_changed(waits: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    for changes in (1, 2):
        assert _settled.settled(weight, None) and _settled.settled(weight)
        assert len(waits) == changes
        weight.add_(1)
    weight.data = torch.ones(4, 4)
    assert _settled.settled(weight) and len(waits) == 3


@torch.no_grad()
def test_one_that_changes_all_the_time_is_not_waited_for(waits: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    for _ in range(2 * _settled.MOST_CHANGES):
        weight.add_(1)
        early = _settled.settled(weight)
    assert not early and len(waits) == _settled.MOST_CHANGES + 1


def test_only_parameters_outside_of_training_and_captures_are_read_early(
    waits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    assert not _settled.settled(weight)  # gradients are on
    with torch.no_grad():
        assert not _settled.settled(weight.t()) and not _settled.settled(torch.zeros(4, 4))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert not _settled.settled(weight)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        assert not waits
        assert _settled.settled(weight)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert _settled.settled(weight)  # known by now
    with torch.inference_mode():
        assert not _settled.settled(torch.nn.Parameter(torch.zeros(4, 4), requires_grad=False))


@torch.no_grad()
def test_what_is_gone_is_forgotten(waits: list[int]) -> None:
    weight = torch.nn.Parameter(torch.zeros(4, 4))
    _settled.settled(weight)
    key = id(weight)
    assert key in _settled._seen
    del weight
    gc.collect()
    assert key not in _settled._seen


@needs_gpu
def test_a_weight_that_our_own_kernel_has_just_written_is_read_whole() -> None:
    """The kernel before is one of ours that lets the next start early, and it writes the weight."""
    identity = torch.eye(384, dtype=F16, device=DEVICE)
    with torch.no_grad():
        for number in range(200):
            weight = torch.nn.Parameter(linear(drawn(384, 384, seed=number), identity), requires_grad=False)
            got = linear(identity, weight)
            assert torch.equal(got, weight.t())


@needs_gpu
def test_many_threads_and_a_graph() -> None:
    x, layer = drawn(32, 384), Layer(*(torch.nn.Parameter(drawn(*s)) for s in ((384, 384), (384,))))
    with torch.no_grad():
        want = linear(x, layer.weight, layer.bias, "gelu")
    failures: list[int] = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(100):
                if not torch.equal(linear(x, layer.weight, layer.bias, "gelu"), want):
                    failures.append(number)

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with torch.no_grad():
        linear(x, layer.weight, layer.bias, "gelu")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = linear(x, layer.weight, layer.bias, "gelu")
        captured.zero_()
        graph.replay()
    assert torch.equal(captured, want)
