"""The operations inside PyTorch: gradients, opcheck, torch.compile, torch.export, PyTorch's own samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ops_helpers import PATHS, on_path
from torch import nn

from steelworks import ops

LIBRARY = torch.ops.steelworks


@pytest.fixture(autouse=True, scope="module")
def _one_core() -> None:
    torch.set_num_threads(1)


def _draw(*shape: int, grad: bool = True, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad)


#: A call of every registered operation, with float64 or float32 tensors.
CALLS: dict[str, Callable[[torch.dtype], tuple[Any, tuple[Any, ...]]]] = {
    "softmax": lambda d: (LIBRARY.softmax, (_draw(3, 5, dtype=d), 0, None)),
    "log_softmax": lambda d: (LIBRARY.log_softmax, (_draw(3, 5, dtype=d), 1, None)),
    "layer_norm": lambda d: (
        LIBRARY.layer_norm,
        (_draw(3, 2, 4, dtype=d), [2, 4], _draw(2, 4, dtype=d), _draw(2, 4, dtype=d), 1e-3),
    ),
    "layer_norm plain": lambda d: (LIBRARY.layer_norm, (_draw(3, 5, dtype=d), [5], None, None, 1e-5)),
    "layer_norm bias": lambda d: (
        LIBRARY.layer_norm,
        (_draw(3, 5, dtype=d), [5], None, _draw(5, dtype=d), 1e-5),
    ),
    "rms_norm": lambda d: (LIBRARY.rms_norm, (_draw(3, 5, dtype=d), [5], _draw(5, dtype=d), 1e-3)),
    "rms_norm plain": lambda d: (LIBRARY.rms_norm, (_draw(3, 5, dtype=d), [5])),
    "add_layer_norm": lambda d: (
        LIBRARY.add_layer_norm,
        (_draw(3, 5, dtype=d), _draw(3, 5, dtype=d), [5], _draw(5, dtype=d), _draw(5, dtype=d), 1e-3),
    ),
    "add_rms_norm": lambda d: (
        LIBRARY.add_rms_norm,
        (_draw(3, 5, dtype=d), _draw(3, 5, dtype=d), [5], _draw(5, dtype=d), 1e-3),
    ),
    "linear": lambda d: (
        LIBRARY.linear,
        (_draw(2, 3, 4, dtype=d), _draw(5, 4, dtype=d), _draw(5, dtype=d), None, _draw(2, 3, 5, dtype=d)),
    ),
    "linear plain": lambda d: (LIBRARY.linear, (_draw(3, 4, dtype=d), _draw(5, 4, dtype=d))),
    "linear relu": lambda d: (
        LIBRARY.linear,
        (_draw(3, 4, dtype=d), _draw(5, 4, dtype=d), None, "relu", None),
    ),
    "linear gelu": lambda d: (
        LIBRARY.linear,
        (_draw(3, 4, dtype=d), _draw(5, 4, dtype=d), _draw(5, dtype=d), "gelu", None),
    ),
    "linear silu": lambda d: (
        LIBRARY.linear,
        (_draw(3, 4, dtype=d), _draw(5, 4, dtype=d), None, "silu", _draw(3, 5, dtype=d)),
    ),
    "qkv_linear": lambda d: (
        LIBRARY.qkv_linear,
        (
            _draw(2, 3, 4, dtype=d),
            *(_draw(n, 4, dtype=d) for n in (5, 2, 3)),
            *(_draw(n, dtype=d) for n in (5, 2, 3)),
        ),
    ),
    "qkv_linear plain": lambda d: (
        LIBRARY.qkv_linear,
        (_draw(3, 4, dtype=d), *(_draw(n, 4, dtype=d) for n in (5, 5, 3))),
    ),
    "matmul": lambda d: (LIBRARY.matmul, (_draw(2, 3, 4, dtype=d), _draw(4, 5, dtype=d))),
    "matmul broadcast": lambda d: (LIBRARY.matmul, (_draw(1, 3, 4, dtype=d), _draw(2, 4, 5, dtype=d))),
    "matmul vectors": lambda d: (LIBRARY.matmul, (_draw(4, dtype=d), _draw(4, dtype=d))),
    "matmul left vector": lambda d: (LIBRARY.matmul, (_draw(4, dtype=d), _draw(2, 4, 5, dtype=d))),
    "matmul right vector": lambda d: (LIBRARY.matmul, (_draw(2, 3, 4, dtype=d), _draw(4, dtype=d))),
    "bmm": lambda d: (LIBRARY.bmm, (_draw(2, 3, 4, dtype=d), _draw(2, 4, 5, dtype=d))),
}


@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    function, arguments = CALLS[name](torch.float64)
    assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("name", CALLS)
def test_second_gradients_are_those_of_finite_differences(name: str) -> None:
    function, arguments = CALLS[name](torch.float64)
    assert torch.autograd.gradgradcheck(function, arguments)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("path", PATHS)
def test_opcheck_finds_nothing(path: str, name: str) -> None:
    function, arguments = CALLS[name](torch.float32)
    with on_path(path):
        torch.library.opcheck(function.default, arguments)


def _public(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """All operations in one function."""
    h = ops.linear(x, w, b, activation="gelu", residual=x)
    h, total = ops.layer_norm(h, 8, b, b, residual=x)
    h = ops.rms_norm(h, 8, b) + ops.rms_norm(total, 8, residual=h)[0]
    scores = ops.softmax(ops.matmul(h, h.mT)) + ops.log_softmax(ops.bmm(h, h.mT), 1)
    return ops.layer_norm(ops.matmul(scores, h), 8)


def _loss(y: torch.Tensor) -> torch.Tensor:
    return (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()


def _inputs(grad: bool) -> tuple[torch.Tensor, ...]:
    return tuple(_draw(*shape, grad=grad, dtype=torch.float32) for shape in ((2, 3, 8), (8, 8), (8,)))


@pytest.mark.parametrize("path", PATHS)
def test_steel_gradients_are_those_of_pytorch(path: str) -> None:
    inputs = _inputs(True)
    with on_path("vendor"):
        _loss(_public(*inputs)).backward()
    want = [x.grad for x in inputs]
    again = _inputs(True)
    with on_path(path) as counted:
        loss = _loss(_public(*again))
    before = sum(counted.counts.values())
    assert {p for _, p in counted.counts} == {path}
    loss.backward()  # outside the block: what was forced in the forward holds in the backward
    if path == "steel":
        assert counted.of("matmul", "steel") > 2, counted.counts
        assert sum(counted.counts.values()) > before
    for got, expected in zip(again, want, strict=True):
        torch.testing.assert_close(got.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("grad", [False, True])
def test_compiled_without_a_break_it_gives_what_eager_gives(path: str, grad: bool) -> None:
    torch._dynamo.reset()
    inputs = _inputs(grad)
    compiled = torch.compile(_public, backend="aot_eager", fullgraph=True)
    with on_path(path) as counted:
        want = _public(*inputs)
        eager = sum(counted.counts.values())
        got = compiled(*inputs)
        assert sum(counted.counts.values()) == 2 * eager
        torch.testing.assert_close(got, want)
        if grad:
            gradients = torch.autograd.grad(_loss(got), inputs)
            wanted = torch.autograd.grad(_loss(want), inputs)
            torch.testing.assert_close(gradients, wanted, rtol=1e-4, atol=1e-5)


def test_a_compiled_function_takes_the_path_of_the_call_and_not_of_the_compile() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.softmax(x), backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 8)
    with on_path("vendor"):
        compiled(x)
    with on_path("steel") as counted:
        torch.testing.assert_close(compiled(x), torch.softmax(x, -1))
    assert counted.of("softmax", "steel") == 1


def test_inductor_compiles_it() -> None:
    torch._dynamo.reset()
    inputs = _inputs(False)
    torch.testing.assert_close(torch.compile(_public, fullgraph=True)(*inputs), _public(*inputs))


def test_compiled_shapes_may_be_dynamic() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: ops.softmax(ops.linear(x, w)), backend="aot_eager", dynamic=True)
    w = torch.randn(4, 8)
    for rows in (2, 3, 7):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(compiled(x, w), torch.softmax(x @ w.t(), -1))


class _Module(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(_draw(8, 8, dtype=torch.float32).detach())
        self.bias = nn.Parameter(_draw(8, dtype=torch.float32).detach())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _public(x, self.weight, self.bias)


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_program_is_loaded_and_gives_the_same(tmp_path: Any, strict: bool) -> None:
    module, x = _Module().eval(), _draw(2, 3, 8, grad=False, dtype=torch.float32)
    with torch.no_grad():
        program = torch.export.export(module, (x,), strict=strict)
        torch.export.save(program, tmp_path / "program.pt2")
        loaded = torch.export.load(tmp_path / "program.pt2")
        names = {str(node.target) for node in loaded.graph.nodes if node.op == "call_function"}
        for op in ("linear", "softmax", "log_softmax", "layer_norm", "add_layer_norm", "rms_norm", "bmm"):
            assert f"steelworks.{op}.default" in names
        for path in PATHS:
            with on_path(path) as counted:
                torch.testing.assert_close(loaded.module()(x), module(x))
            assert {p for _, p in counted.counts} == {path}


# --- PyTorch's own samples ------------------------------------------------------------------------------------


def _layer_norm(
    x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> torch.Tensor:
    return ops.layer_norm(x, shape, weight, bias, eps)


SAMPLED: dict[str, Callable[..., torch.Tensor]] = {
    "softmax": lambda x, dim, dtype=None: ops.softmax(x, dim, dtype),
    "log_softmax": lambda x, dim, dtype=None: ops.log_softmax(x, dim, dtype),
    "nn.functional.layer_norm": _layer_norm,
    "nn.functional.rms_norm": lambda x, shape, weight=None, eps=None: ops.rms_norm(x, shape, weight, eps),
    "nn.functional.linear": lambda x, weight, bias=None: ops.linear(x, weight, bias),
    "matmul": ops.matmul,
    "bmm": ops.bmm,
}


def _samples_of(name: str) -> Any:
    # Imported here: it imports triton, and tests/triton must be able to ask for the interpreter before that.
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (i for i in op_db if i.name == name and not i.variant_test_name)
    return info


@pytest.mark.parametrize("name", SAMPLED)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_pytorchs_own_samples_give_what_pytorch_gives(name: str, path: str, dtype: torch.dtype) -> None:
    info = _samples_of(name)
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
        want = info.op(sample.input, *sample.args, **sample.kwargs)
        with on_path(path):
            got = SAMPLED[name](sample.input, *sample.args, **sample.kwargs)
        wide = {"rtol": 3e-2, "atol": 3e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(got, want, equal_nan=True, **wide)
        count += 1
    assert count, "PyTorch has no samples"


@pytest.mark.parametrize("name", SAMPLED)
def test_gradients_of_pytorchs_own_samples_are_pytorchs(name: str) -> None:
    info = _samples_of(name)
    for sample in info.sample_inputs("cpu", torch.float32, requires_grad=True):
        leaves = [
            t
            for t in (sample.input, *sample.args)
            if isinstance(t, torch.Tensor) and t.requires_grad and t.is_leaf
        ]
        want = info.op(sample.input, *sample.args, **sample.kwargs)
        if not leaves or not want.numel():
            continue
        expected = torch.autograd.grad(want.sum(), leaves)
        with on_path("steel"):
            got = SAMPLED[name](sample.input, *sample.args, **sample.kwargs)
            gradients = torch.autograd.grad(got.sum(), leaves)
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-4)
