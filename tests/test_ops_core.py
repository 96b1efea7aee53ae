"""The operations' plumbing: which way a call goes, and what is refused."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace

import pytest
import torch
from ops_helpers import both, on_path
from torch.utils._python_dispatch import TorchDispatchMode

from steelworks import ops, paths
from steelworks.errors import InvalidInputError
from steelworks.paths._choose import through_vendor


@pytest.fixture(autouse=True)
def _one_core() -> None:
    torch.set_num_threads(1)


X = torch.linspace(-2, 2, 24).view(3, 8)
W = torch.linspace(-1, 1, 40).view(5, 8)


def test_each_operation_takes_the_path_that_is_asked_for() -> None:
    calls = {
        "softmax": lambda: ops.softmax(X),
        "log_softmax": lambda: ops.log_softmax(X),
        "layer_norm": lambda: ops.layer_norm(X, 8),
        "add_layer_norm": lambda: ops.layer_norm(X, 8, residual=X)[0],
        "rms_norm": lambda: ops.rms_norm(X, 8),
        "add_rms_norm": lambda: ops.rms_norm(X, 8, residual=X)[0],
        "linear": lambda: ops.linear(X, W),
        "qkv_linear": lambda: ops.qkv_linear(X, W, W[:3], W[1:], *(W[:n, 0] for n in (5, 3, 4))),
        "matmul": lambda: ops.matmul(X, W.t()),
        "bmm": lambda: ops.bmm(X[None], W.t()[None]),
    }
    for op, call in calls.items():
        results = dict(both(call, op))
        torch.testing.assert_close(results["steel"], results["vendor"])


def test_a_backward_takes_the_path_of_its_forward_wherever_it_runs() -> None:
    x, table = torch.randn(1, 2, 3, 8, requires_grad=True), ops.rope_frequencies(8)
    with on_path("steel"), paths.record() as counted:
        y = ops.rope(x, table)
    assert counted.of("rope", "steel") == 1
    backward = threading.Thread(target=lambda: y.sum().backward())
    backward.start()
    backward.join()
    assert dict(counted.counts) == {("rope", "steel"): 2}
    assert x.grad is not None


def test_the_operators_of_torch_library_give_dense_results_as_their_fake_kernels_say() -> None:
    x = torch.randn(8, 3).t()  # whose strides PyTorch's own relu keeps
    assert not torch.relu(x).is_contiguous()
    for given in (x, x.to("meta")):
        assert torch.ops.steelworks.relu(given).is_contiguous()
    torch.library.opcheck(torch.ops.steelworks.relu.default, (x,))


def test_outside_simulate_metal_the_cpu_gets_exactly_what_pytorch_gives() -> None:
    assert torch.equal(ops.softmax(X), torch.softmax(X, -1))
    assert torch.equal(ops.linear(X, W), torch.nn.functional.linear(X, W))
    assert torch.equal(ops.matmul(X, W.t()), X @ W.t())


def test_a_dispatch_mode_sees_the_operation() -> None:
    seen: list[str] = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with on_path("steel"), See():
        ops.softmax(X)
    assert seen == ["steelworks.softmax.default"]
    seen.clear()
    with on_path("vendor"), See():
        ops.softmax(X)
    assert seen == ["aten._softmax.default"]


def test_vmap_and_functional_gradients_give_what_pytorch_gives() -> None:
    want = torch.vmap(lambda v: torch.softmax(v, -1))(X)
    for path in ("vendor", "steel"):
        with on_path(path):
            torch.testing.assert_close(torch.vmap(lambda v: ops.softmax(v, -1))(X), want)
            gradient = torch.func.grad(lambda v: ops.softmax(v, -1)[:, 0].sum())(X)
            torch.testing.assert_close(
                gradient, torch.func.grad(lambda v: torch.softmax(v, -1)[:, 0].sum())(X)
            )


def test_tensors_with_a_negative_bit_are_read_with_their_sign() -> None:
    for x in (torch.complex(X, X + 1).conj().imag, torch._neg_view(X)):
        assert x.is_neg()
        for path in ("vendor", "steel"):
            with on_path(path):
                torch.testing.assert_close(ops.softmax(x), torch.softmax(x, -1))
                torch.testing.assert_close(ops.linear(x, W), torch.nn.functional.linear(x, W))


def test_sparse_tensors_are_left_to_pytorch() -> None:
    sparse = X.to_sparse()
    for path in ("vendor", "steel"):
        with on_path(path):
            torch.testing.assert_close(ops.matmul(sparse, W.t()), X @ W.t())


def test_subclasses_are_left_to_pytorch_and_stay_subclasses() -> None:
    class Mine(torch.Tensor):
        pass

    with on_path("steel"):
        assert type(ops.softmax(X.as_subclass(Mine))) is Mine


def test_autocast_lowers_products_as_pytorch_does() -> None:
    for path in ("vendor", "steel"):
        with on_path(path), torch.autocast("cpu", torch.bfloat16):
            assert ops.linear(X, W).dtype == torch.nn.functional.linear(X, W).dtype == torch.bfloat16
            assert ops.matmul(X, W.t()).dtype == torch.bfloat16
            assert ops.softmax(X).dtype == torch.softmax(X, -1).dtype
            assert ops.linear(X.requires_grad_(False), W.clone().requires_grad_()).dtype == torch.bfloat16


def test_float64_falls_back_to_pytorch() -> None:
    with on_path("steel") as counted:
        got = ops.softmax(X.double())
    assert torch.equal(got, torch.softmax(X.double(), -1))
    assert counted.of("softmax", "vendor") == 1


def test_the_operators_of_torch_library_give_the_same_with_their_defaults() -> None:
    for path in ("vendor", "steel"):
        with on_path(path):
            assert torch.equal(torch.ops.steelworks.softmax(X), ops.softmax(X))
            assert torch.equal(torch.ops.steelworks.linear(X, W), ops.linear(X, W))
            assert torch.equal(torch.ops.steelworks.layer_norm(X, [8]), ops.layer_norm(X, 8))
            assert torch.equal(torch.ops.steelworks.rms_norm(X, [8]), ops.rms_norm(X, 8))


def test_many_threads_use_one_operation_on_paths_of_their_own() -> None:
    want = {"vendor": ops.linear(X, W), "steel": dict(both(lambda: ops.linear(X, W), "linear"))["steel"]}
    wrong: list[str] = []
    barrier = threading.Barrier(6)

    def body(path: str) -> None:
        barrier.wait()
        for _ in range(20):
            with on_path(path) as counted:
                if not torch.equal(ops.linear(X, W), want[path]) or counted.of("linear", path) != 1:
                    wrong.append(path)

    threads = [threading.Thread(target=body, args=(("steel", "vendor")[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ops.softmax(X, 2), "dim is 2; for 2 dimensions, -2 to 1 are allowed"),
        (lambda: ops.softmax(X.long()), "x is torch.int64; a floating-point dtype is needed"),
        (lambda: ops.softmax(X, -1, torch.int32), "dtype is torch.int32"),
        (lambda: ops.log_softmax(torch.tensor(1.0), 1), "log_softmax: dim is 1"),
        (lambda: ops.linear(X, W.half()), "x is torch.float32 and weight is torch.float16"),
        (lambda: ops.linear(X, W.t()), r"x has shape \(3, 8\) and weight \(8, 5\)"),
        (lambda: ops.linear(X, W, torch.ones(4)), r"bias has shape \(4,\); with this weight \(5,\)"),
        (lambda: ops.linear(X, W, activation="tanh"), "activation is 'tanh'; allowed are None, 'relu'"),
        (
            lambda: ops.linear(X, W, residual=torch.ones(5)),
            r"residual has shape \(5,\); the result's, \(3, 5\)",
        ),
        (lambda: ops.linear(X, W.to("meta")), "x is on 'cpu' and weight on 'meta'"),
        (lambda: ops.qkv_linear(X, W, W.t(), W), r"x has shape \(3, 8\) and key \(8, 5\)"),
        (lambda: ops.qkv_linear(X, W, W, W.half()), "x is torch.float32 and value is torch.float16"),
        (lambda: ops.qkv_linear(X, W, W, W, torch.ones(5)), "give all biases or none"),
        (lambda: ops.qkv_linear(X, W, W, W, *[torch.ones(4)] * 3), r"query_bias has shape \(4,\)"),
        (lambda: ops.matmul(X, W), r"a has shape \(3, 8\) and b \(5, 8\)"),
        (lambda: ops.matmul(X, torch.ones(8, 2).long()), "a is torch.float32 and b is torch.int64"),
        (lambda: ops.matmul(torch.ones(2, 3, 8), torch.ones(3, 8, 2)), r"\(2,\) and \(3,\) do not broadcast"),
        (lambda: ops.bmm(X, W.t()), r"\(B, M, K\) and \(B, K, N\) are needed"),
        (lambda: ops.layer_norm(X, 7), r"normalized_shape is \(7,\) and x has shape \(3, 8\)"),
        (lambda: ops.layer_norm(X, 8, torch.ones(7)), r"weight has shape \(7,\); \(8,\) is needed"),
        (
            lambda: ops.layer_norm(X, 8, torch.ones(8).half()),
            "weight is torch.float16 and x is torch.float32",
        ),
        (lambda: ops.layer_norm(X.long(), 8), "x is torch.int64"),
        (lambda: ops.rms_norm(X, 8, residual=X.half()), "residual is torch.float16"),
        (lambda: ops.rms_norm(X, (3, 4)), "normalized_shape is"),
    ],
)
@pytest.mark.parametrize("path", ["vendor", "steel"])
def test_what_is_not_allowed_is_refused_with_what_is(path: str, call, said: str) -> None:  # type: ignore[no-untyped-def]
    with on_path(path), pytest.raises(InvalidInputError, match=said):
        call()


def test_a_refusal_comes_again_when_the_same_call_is_repeated() -> None:
    for _ in range(2):
        with pytest.raises(InvalidInputError, match="dim is 2"):
            ops.softmax(X, 2)
        with pytest.raises(InvalidInputError, match="convert one"):
            ops.linear(X, W.half())


def test_the_public_names_are_there() -> None:
    import steelworks

    assert steelworks.ops is ops
    assert steelworks.paths is paths
    for name in ops.__all__:
        assert callable(getattr(ops, name))


def test_in_training_pytorchs_own_is_taken_unless_ours_is_asked_for() -> None:
    softmax = sys.modules["steelworks.ops.softmax"]._SOFTMAX
    linear = sys.modules["steelworks.ops.linear"].LINEAR
    x = X.clone().requires_grad_()
    choice = paths.choose(softmax.signature(x, -1, None))
    for rule, vendor in (("default", True), ("profile", True), ("forced", False), ("hazard", False)):
        decided = replace(choice, path="steel", rule=rule)
        assert softmax.trains_through_vendor(decided, (x,)) is vendor
        assert not softmax.trains_through_vendor(decided, (X,))
        assert not linear.trains_through_vendor(decided, (x, W, None, None))
        with torch.no_grad():
            assert not softmax.trains_through_vendor(decided, (x,))


def test_what_pytorch_runs_in_place_of_a_choice_is_counted_as_the_vendors() -> None:
    choice = paths.choose(("softmax", "cpu", X.dtype, (X.shape,), (-1, None)))
    with paths.record() as counted:
        assert through_vendor(replace(choice, path="steel"), torch.softmax, X, -1).shape == X.shape
    assert counted.counts == {("softmax", "vendor"): 1}


def test_autocast_converts_operands_of_two_dtypes() -> None:
    x = torch.randn(3, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = ops.linear(x, weight), torch.nn.functional.linear(x, weight)
    assert torch.equal(got, expected)
    grads = torch.autograd.grad(got.float().sum(), (x, weight))
    wanted = torch.autograd.grad(expected.float().sum(), (x, weight))
    assert all(torch.equal(g, w) and g.dtype == w.dtype for g, w in zip(grads, wanted, strict=True))
