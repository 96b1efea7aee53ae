"""What ``steelworks.ops`` makes of the Triton kernels: arguments in their order, gradients."""

from __future__ import annotations

import sys

import pytest
import torch

from steelworks import ops, paths
from steelworks.kernels import reference
from steelworks.paths._registry import implementation_of

assert ops
NORMS = sys.modules["steelworks.ops._norms_gradients"]


def _draw(*shape: int, device: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return torch.randn(shape, generator=generator).to(device)


def _run(op: str, *arguments: object) -> torch.Tensor:
    implementation = implementation_of(op, "cuda", "steel")
    assert implementation is not None
    result: torch.Tensor = implementation.run(*arguments)
    return result


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax_gets_its_arguments(op: str, device: str) -> None:
    x = _draw(3, 5, 7, device=device)
    for dim in (-1, 1):
        want = getattr(reference, op)(x.cpu(), dim).float()
        torch.testing.assert_close(_run(op, x, dim, None).cpu(), want)
    assert _run(op, x.half(), -1, torch.float32).dtype == torch.float32


def test_norms_get_their_arguments(device: str) -> None:
    x, residual, w, b = (_draw(*s, device=device) for s in ((3, 8), (3, 8), (8,), (8,)))
    cases = {
        "layer_norm": (x, (8,), w, b, 1e-3),
        "rms_norm": (x, (8,), w, 1e-3),
        "add_layer_norm": (x, residual, (8,), w, b, 1e-3),
        "add_rms_norm": (x, residual, (8,), w, 1e-3),
    }
    for op, arguments in cases.items():
        vendor = implementation_of(op, "cuda", "vendor")
        assert vendor is not None
        torch.testing.assert_close(_run(op, *arguments), vendor.run(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_gradients_of_norms_are_pytorchs(centred: bool, shape: tuple[int, ...], device: str) -> None:
    x, gradient = _draw(3, *shape, device=device), _draw(5, *shape, device=device)[:3]
    w = _draw(*shape, device=device)
    got = NORMS.triton_gradients(gradient, x, w, shape, 1e-3, centred, torch.float32 if centred else None)
    leaves = [t.clone().requires_grad_() for t in ((x, w, w) if centred else (x, w))]
    norm = torch.nn.functional.layer_norm if centred else torch.nn.functional.rms_norm
    want = torch.autograd.grad(norm(leaves[0], shape, *leaves[1:], eps=1e-3), leaves, gradient)
    for mine, theirs in zip(got, want, strict=False):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_training_on_a_gpu_has_pytorchs_gradients_on_both_paths() -> None:
    for path in ("steel", "vendor", "auto"):
        leaves = [_draw(*s, device="cuda").requires_grad_() for s in ((4, 6, 32), (32,), (32,))]
        again = [t.detach().clone().requires_grad_() for t in leaves]
        x, w, b = leaves
        with paths.use(path):
            y, total = ops.layer_norm(ops.rms_norm(x, 32, w), 32, w, b, residual=x)
            loss = (ops.softmax(y) * ops.log_softmax(total, 1)).sum()
        got = torch.autograd.grad(loss, leaves)
        x, w, b = again
        total = torch.nn.functional.rms_norm(x, (32,), w) + x
        y = torch.nn.functional.layer_norm(total, (32,), w, b)
        want = torch.autograd.grad((torch.softmax(y, -1) * torch.log_softmax(total, 1)).sum(), again)
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
