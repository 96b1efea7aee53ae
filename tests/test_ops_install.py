"""PyTorch's own operators under ``install``: unedited code takes the selector, and stays right."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import steelworks
from steelworks import paths
from steelworks.errors import DeviceRuleError, InvalidInputError
from steelworks.ops import overrides
from steelworks.paths._registry import REGISTRY


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.compiler.reset()
    yield
    steelworks.uninstall()


def _draw(*shape: int, grad: bool = False) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=generator).requires_grad_(grad)


X, W, B = _draw(3, 8), _draw(5, 8), _draw(5)
Q, K = _draw(2, 4, 7, 16), _draw(2, 4, 9, 16)

#: What code calls, and the operation that then runs.
CALLS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "linear": (lambda: F.linear(X, W, B), "linear"),
    "linear without bias": (lambda: F.linear(X, W), "linear"),
    "linear of 3 dimensions": (lambda: F.linear(_draw(2, 3, 8), W, B), "linear"),
    "addmm": (lambda: torch.addmm(B, X, W.t()), "linear"),
    "addmm of a matrix": (lambda: torch.addmm(_draw(3, 5), X, W.t()), "linear"),
    "mm": (lambda: torch.mm(X, W.t()), "matmul"),
    "matmul": (lambda: X @ W.t(), "matmul"),
    "matmul of batches": (lambda: _draw(2, 3, 8) @ _draw(2, 8, 4), "bmm"),
    "bmm": (lambda: torch.bmm(_draw(2, 3, 8), _draw(2, 8, 4)), "bmm"),
    "softmax": (lambda: torch.softmax(X, 0), "softmax"),
    "log_softmax": (lambda: F.log_softmax(X, -1), "log_softmax"),
    "layer_norm": (lambda: F.layer_norm(X, (8,), W[0], W[1]), "layer_norm"),
    "rms_norm": (lambda: F.rms_norm(X, (8,), W[0]), "rms_norm"),
    "attention": (lambda: F.scaled_dot_product_attention(Q, K, K), "attention"),
    "causal attention": (lambda: F.scaled_dot_product_attention(Q, Q, Q, is_causal=True), "attention"),
    "masked attention": (
        lambda: F.scaled_dot_product_attention(Q, K, K, _draw(2, 1, 1, 9) > -0.5, scale=0.3),
        "attention",
    ),
    "clone": (lambda: X.clone(), "copy"),
    "contiguous": (lambda: X.t().contiguous(), "copy"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "enable_grad"])
def test_unedited_code_takes_our_kernels_and_gets_the_same_result(name: str, mode: str) -> None:
    call, op = CALLS[name]
    want = call()
    with paths.simulate_metal(), steelworks.install("cpu"), getattr(torch, mode)():
        with paths.record() as counted:
            got = call()
    assert counted.of(op, "steel") == 1, counted.counts
    assert sum(counted.counts.values()) == 1, f"it called itself: {counted.counts}"
    torch.testing.assert_close(got, want)
    assert got.stride() == want.stride()


@pytest.mark.parametrize("name", CALLS)
def test_the_vendor_path_calls_the_original_kernel_and_not_itself(name: str) -> None:
    call, op = CALLS[name]
    want = call()
    with paths.simulate_metal(), steelworks.install("cpu"), paths.use("vendor"), paths.record() as counted:
        assert torch.equal(call(), want)
    assert counted.counts == {(op, "vendor"): 1}


@pytest.mark.parametrize("inner", [lambda x: F.linear(x, torch.eye(8)), lambda x: torch.mm(x, torch.eye(8))])
def test_what_a_kernel_of_ours_calls_is_pytorchs_own(inner: Callable[[torch.Tensor], torch.Tensor]) -> None:
    before = REGISTRY.implementations
    try:
        paths.register("softmax", "cpu", "steel", run=lambda x, dim, dtype: inner(x))
        with paths.simulate_metal(), steelworks.install("cpu"), torch.no_grad(), paths.record() as counted:
            assert torch.equal(torch.softmax(X, -1), X)
        assert counted.counts == {("softmax", "steel"): 1}
    finally:
        REGISTRY.implementations = before
        paths.refresh()


@pytest.mark.parametrize("name", CALLS)
def test_after_uninstall_everything_is_pytorchs_again(name: str) -> None:
    call, _ = CALLS[name]
    want = call()
    with paths.simulate_metal(), paths.record() as counted:
        steelworks.install("cpu")
        steelworks.uninstall("cpu")
        assert torch.equal(call(), want)
    assert not counted.counts


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch.addmm(B, X, W.t(), beta=2),
        lambda: torch.addmm(B, X, W.t(), alpha=0.5),
        lambda: torch.addmm(torch.ones(1), X, W.t()),
        lambda: torch.addmm(B, X, W.t(), out=torch.empty(3, 5)),
        lambda: F.linear(X, W[0]),
        lambda: F.linear(X.double(), W.double(), B.double()),
        lambda: F.scaled_dot_product_attention(Q, K, K, is_causal=True),
        lambda: F.scaled_dot_product_attention(Q, K[:, :2], K[:, :2], enable_gqa=True),
        lambda: F.scaled_dot_product_attention(Q[0], K[0], K[0]),
        lambda: torch.softmax(torch.tensor(2.0), 0),
        lambda: F.layer_norm(X.double(), (8,)),
        lambda: torch.native_layer_norm(X, (8,), None, None, 1e-5)[1],
        lambda: torch.mm(X, W.t().to_sparse()),
        lambda: torch.vmap(lambda v: F.linear(v, W, B))(X),
        lambda: torch.func.grad(lambda v: torch.softmax(v, -1)[:, 0].sum())(X),
        lambda: X.t().clone(),
        lambda: torch.complex(X, X).clone().real,
        lambda: torch.randn(0, 8) @ W.t(),
    ],
)
def test_forms_that_ours_does_not_take_give_what_pytorch_gives(call: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(0)
    want = call()
    with paths.simulate_metal(), steelworks.install("cpu"):
        torch.manual_seed(0)
        got = call()
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "call",
    [
        lambda: F.linear(X, W.t()),
        lambda: torch.mm(X, W),
        lambda: torch.softmax(X, 3),
        lambda: F.layer_norm(X, (7,)),
        lambda: F.linear(X, W.double()),
    ],
)
def test_errors_stay_pytorchs(call: Callable[[], torch.Tensor]) -> None:
    with pytest.raises((RuntimeError, IndexError)) as want:
        call()
    with paths.simulate_metal(), steelworks.install("cpu"):
        with pytest.raises(type(want.value)) as got:
            call()
    assert str(got.value).splitlines()[0] == str(want.value).splitlines()[0]


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.norm, self.rms = nn.LayerNorm(16), nn.RMSNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        h = torch.softmax(self.down(F.gelu(self.up(self.rms(x)))), -1)
        return x + h @ h.mT @ h


def test_gradients_of_an_unedited_model_are_pytorchs() -> None:
    def train() -> list[torch.Tensor]:
        block, x = _Block(), _draw(2, 5, 16)
        loss = (block(x) * torch.linspace(-1, 1, 16)).sum()
        loss.backward()
        return [p.grad for p in block.parameters() if p.grad is not None]

    want = train()
    with paths.simulate_metal(), steelworks.install("cpu"), paths.record() as counted:
        got = train()
    for op in ("linear", "layer_norm", "rms_norm", "softmax"):
        assert counted.of(op, "steel") > 0, counted.counts
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)


def test_a_model_compiled_while_installed_gives_the_same() -> None:
    block, x = _Block().eval(), _draw(2, 5, 16)
    with torch.no_grad():
        want = block(x)
        with paths.simulate_metal(), steelworks.install("cpu"):
            torch.testing.assert_close(torch.compile(block, backend="aot_eager")(x), want)
    torch.compiler.reset()


def test_a_model_exported_while_installed_gives_the_same() -> None:
    block, x = _Block().eval(), _draw(2, 5, 16)
    with torch.no_grad():
        want = block(x)
        with paths.simulate_metal(), steelworks.install("cpu"):
            program = torch.export.export(block, (x,))
            torch.testing.assert_close(program.module()(x), want)
    torch.testing.assert_close(program.module()(x), want)
    torch.compiler.reset()


def test_autocast_lowers_as_before() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        want = F.linear(X, W, B)
    with paths.simulate_metal(), steelworks.install("cpu"), torch.autocast("cpu", torch.bfloat16):
        with paths.record() as counted:
            got = F.linear(X, W, B)
    assert counted.of("linear", "steel") == 1
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)


def test_threads_outside_the_block_get_pytorchs_and_nobody_calls_itself() -> None:
    want, wrong = F.linear(X, W, B), []
    with paths.simulate_metal(), steelworks.install("cpu"):

        def body(inside: bool) -> None:
            with paths.record() as counted:
                for _ in range(20):
                    if inside:
                        with paths.simulate_metal():
                            got = F.linear(X, W, B)
                    else:
                        got = F.linear(X, W, B)
                    if not torch.allclose(got, want, atol=1e-5):
                        wrong.append(got)
            if counted.of("linear", "steel" if inside else "vendor") != 20:
                wrong.append(counted.counts)

        threads = [threading.Thread(target=body, args=(i % 2 == 0,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


# --- what is refused ------------------------------------------------------------------------------------------


def test_a_second_install_is_refused_and_the_first_stays() -> None:
    with paths.simulate_metal():
        done = steelworks.install("cpu")
        assert "linear" in done.operators
        with pytest.raises(DeviceRuleError, match=r"installed on 'cpu' already; call uninstall\('cpu'\)"):
            steelworks.install("cpu")
        with paths.record() as counted:
            F.linear(X, W)
        assert counted.of("linear", "steel") == 1


def test_it_can_be_installed_again_after_uninstall() -> None:
    with paths.simulate_metal():
        for _ in range(3):
            with steelworks.install("cpu"), paths.record() as counted:
                F.linear(X, W)
            assert counted.of("linear", "steel") == 1
    steelworks.uninstall()


def test_the_cpu_is_refused_outside_a_simulation() -> None:
    with pytest.raises(DeviceRuleError, match="the only path is PyTorch's own.*simulate_metal"):
        steelworks.install("cpu")


@pytest.mark.parametrize(
    ("device", "said"), [("meta", "allowed are 'cpu', 'cuda', 'mps'"), ("mps", "no 'mps' device")]
)
def test_a_device_that_is_not_there_is_refused(device: str, said: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(InvalidInputError, match=said):
        steelworks.install(device)


def test_it_is_refused_after_a_compile_until_the_compiler_is_reset() -> None:
    torch.compile(lambda x: x + 1, backend="eager")(X)
    with paths.simulate_metal():
        with pytest.raises(DeviceRuleError, match="models were compiled"):
            steelworks.install("cpu")
        torch.compiler.reset()
        steelworks.install("cpu")


def test_a_failed_install_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    good = overrides._replace
    done: list[str] = []

    def second_fails(library: Any, override: Any, *rest: Any) -> None:
        good(library, override, *rest) if not done else fail()
        done.append(override.aten)

    monkeypatch.setattr(overrides, "_switches", {})
    monkeypatch.setattr(overrides, "_replace", second_fails)
    with paths.simulate_metal():
        with pytest.raises(RuntimeError, match="no"):
            steelworks.install("cpu")
        with paths.record() as counted:
            F.linear(X, W)
        assert not counted.counts
        monkeypatch.undo()
        steelworks.install("cpu")
