"""The operations against float64 references, over shapes, layouts, dtypes and edge values, on both paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ops_helpers import EDGES, FLOATS, FORMS, PATHS, assert_near, on_path, strided

from steelworks import ops
from steelworks.kernels import reference

PROPERTY = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SIZES = st.sampled_from((0, 1, 2, 3, 7, 8, 17, 32, 33, 65))


@pytest.fixture(autouse=True, scope="module")
def _one_core() -> None:
    torch.set_num_threads(1)


@st.composite
def tensors(draw: Any, *shape: int, dtype: torch.dtype, edges: bool) -> torch.Tensor:
    """Normal numbers, some of them replaced by edge values; in some layout."""
    seed = draw(st.integers(0, 2**16))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if edges and x.numel():
        for value in draw(st.lists(st.sampled_from(EDGES), max_size=3)):
            x.view(-1)[draw(st.integers(0, x.numel() - 1))] = value
    return strided(x.to(dtype), draw(st.sampled_from(FORMS)))


def _lower(dtype: torch.dtype) -> int:
    """Float32 roundings that are worth one of the dtype: PyTorch rounds to it in between, in places."""
    return 0 if dtype == torch.float32 else int(2.0**24 * torch.finfo(dtype).eps)


def _softmax_size(x: torch.Tensor, want: torch.Tensor, dim: int, log: bool) -> torch.Tensor | float:
    """What the roundings of a softmax are relative to: x - maximum is rounded, and what follows passes it on."""
    if not x.numel():
        return 1.0
    below = (x.double() - x.double().amax(dim, keepdim=True)).abs().nan_to_num(0.0, 0.0, 0.0)
    return 1 + below + x.double().abs().nan_to_num(0.0, 0.0, 0.0) if log else want.abs() * (1 + below)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
@PROPERTY
@given(data=st.data())
def test_softmax_is_near_its_reference(path: str, op: str, data: Any) -> None:
    shape = tuple(data.draw(st.lists(SIZES, min_size=1, max_size=3)))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = data.draw(tensors(*shape, dtype=data.draw(st.sampled_from(FLOATS)), edges=True))
    with on_path(path) as counted:
        got = getattr(ops, op)(x, dim)
    want = getattr(reference, op)(x, dim)
    assert counted.of(op, path) == 1
    assert got.dtype == x.dtype
    terms = 8 if path == "steel" else 8 + _lower(x.dtype)
    assert_near(got, want, (op, x, dim), terms=terms, magnitude=_softmax_size(x, want, dim, op != "softmax"))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
@PROPERTY
@given(data=st.data())
def test_norms_are_near_their_references(path: str, op: str, data: Any) -> None:
    lead = tuple(data.draw(st.lists(st.sampled_from((0, 1, 3, 5)), max_size=2)))
    shape = tuple(data.draw(st.lists(st.sampled_from((1, 2, 7, 32, 65)), min_size=1, max_size=2)))
    dtype = data.draw(st.sampled_from(FLOATS))
    x = data.draw(tensors(*lead, *shape, dtype=dtype, edges=False))
    weight = data.draw(st.none() | tensors(*shape, dtype=dtype, edges=False))
    bias = data.draw(st.none() | tensors(*shape, dtype=dtype, edges=False)) if op == "layer_norm" else None
    residual = data.draw(st.none() | tensors(*lead, *shape, dtype=dtype, edges=False))
    extra = {"bias": bias} if op == "layer_norm" else {}
    with on_path(path) as counted:
        result = getattr(ops, op)(x, shape, weight, eps=1e-3, residual=residual, **extra)
    assert counted.of(op if residual is None else f"add_{op}", path) == 1
    # What is normalised may have been rounded to the dtype before, which PyTorch's way does.
    total = x if residual is None else x + residual
    got = result if residual is None else result[0]
    if residual is not None:
        assert torch.equal(result[1], total)
    want = getattr(reference, op)(total, len(shape), weight, bias, 1e-3)
    size = 1 + total.double().abs() + (0 if bias is None else bias.double().abs())
    size = size * (1 if weight is None else 1 + weight.double().abs()) * 32
    rounded_before = residual is not None or dtype != torch.float32
    terms = 8 if not rounded_before else 8 + int(2.0**24 * torch.finfo(dtype).eps / 16)
    assert got.dtype == dtype
    assert_near(got, want, (op, x, residual), terms=terms, magnitude=size)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm"])
def test_edge_values_come_out_of_a_norm_as_in_float64(path: str, op: str) -> None:
    for value in EDGES:
        for dtype in FLOATS:
            x = torch.tensor([[value] * 4, [1.0, 2.0, value, 3.0], [0.0] * 4]).to(dtype)
            with on_path(path):
                got = getattr(ops, op)(x, 4, eps=1e-5)
            want = getattr(reference, op)(x, 1, None, None, 1e-5)
            if abs(value) == 1e10 and dtype != torch.float16:
                # Equal huge numbers: the mean's rounding is all that is left of their distances.
                got, want = got[1:], want[1:]
            if not torch.isfinite(x).all():
                assert torch.equal(got.isnan(), want.to(dtype).isnan()), (op, value, dtype)
            else:
                assert_near(got, want, (op, value, dtype), terms=64, magnitude=4.0)


@pytest.mark.parametrize("path", PATHS)
@PROPERTY
@given(data=st.data())
def test_linear_is_near_its_reference(path: str, data: Any) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    lead = tuple(data.draw(st.lists(st.sampled_from((0, 1, 2, 5)), max_size=2)))
    terms, columns = data.draw(SIZES), data.draw(st.sampled_from((0, 1, 8, 33)))
    edges = data.draw(st.booleans())
    x = data.draw(tensors(*lead, terms, dtype=dtype, edges=edges))
    weight = data.draw(tensors(columns, terms, dtype=dtype, edges=False))
    bias = data.draw(st.none() | tensors(columns, dtype=dtype, edges=edges))
    residual = data.draw(st.none() | tensors(*lead, columns, dtype=dtype, edges=edges))
    activation = (
        data.draw(st.sampled_from((None, "relu", "gelu", "silu"))) if dtype == torch.float32 else None
    )
    with on_path(path) as counted:
        got = ops.linear(x, weight, bias, activation=activation, residual=residual)
    assert counted.of("linear", path) == 1
    options: dict[str, Any] = {"trans_b": True, "bias": bias, "residual": residual}
    before = reference.gemm(x.unsqueeze(0), weight, **options).squeeze(0)
    want = reference.activate(before, activation)
    size = reference.gemm_magnitude(x.unsqueeze(0), weight, **options).squeeze(0)
    rounded = (
        0 if dtype == torch.float32 else int(2.0**24 * torch.finfo(dtype).eps)
    )  # PyTorch rounds in between
    assert_near(got, want, (x, weight, activation), terms=2 * terms + 8 + rounded, magnitude=2 * size)


@pytest.mark.parametrize("path", PATHS)
@PROPERTY
@given(data=st.data())
def test_matmul_is_near_its_reference(path: str, data: Any) -> None:
    dtype = data.draw(st.sampled_from(FLOATS))
    batch = data.draw(st.sampled_from(((), (1,), (3,), (2, 3))))
    m, n, k = (data.draw(st.sampled_from((0, 1, 5, 17, 33))) for _ in range(3))
    a = data.draw(tensors(*batch, m, k, dtype=dtype, edges=True))
    b = data.draw(tensors(*data.draw(st.sampled_from((batch, ()))), k, n, dtype=dtype, edges=False))
    with on_path(path) as counted:
        got = ops.matmul(a, b)
    assert counted.of("matmul", path) == 1
    size = reference.gemm_magnitude(a, b)
    assert_near(got, reference.gemm(a, b), (a, b), terms=k + _lower(dtype), magnitude=size)


@pytest.mark.parametrize("path", PATHS)
def test_vectors_are_multiplied_as_in_torch(path: str) -> None:
    a, b, v = torch.randn(3, 5), torch.randn(2, 5, 4), torch.randn(5)
    with on_path(path):
        for left, right in ((v, v), (a, v), (v, b), (b.mT, v)):
            torch.testing.assert_close(ops.matmul(left, right), torch.matmul(left, right))
        torch.testing.assert_close(
            ops.linear(v, a, torch.ones(3)), torch.nn.functional.linear(v, a, torch.ones(3))
        )
        torch.testing.assert_close(ops.linear(a, v), torch.nn.functional.linear(a, v))


@pytest.mark.parametrize("path", PATHS)
def test_the_identity_gives_back_what_it_is_applied_to(path: str) -> None:
    x = torch.randn(7, 16)
    with on_path(path):
        assert torch.equal(ops.linear(x, torch.eye(16)), x)
        assert torch.equal(ops.matmul(x, torch.eye(16)), x)
        assert torch.equal(ops.bmm(torch.eye(7)[None], x[None]), x[None])


@pytest.mark.parametrize("path", PATHS)
def test_softmax_of_large_numbers_neither_overflows_nor_loses_its_sum(path: str) -> None:
    for scale in (1e-10, 1.0, 1e4, 1e10, 1e38):
        x = torch.linspace(-1, 1, 33).repeat(2, 1) * scale
        with on_path(path):
            got = ops.softmax(x)
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got.sum(-1), torch.ones(2))


@pytest.mark.parametrize("path", PATHS)
def test_layer_norm_takes_a_float32_weight_for_half_tensors(path: str) -> None:
    x = torch.randn(3, 16).half()
    weight, bias = torch.randn(16), torch.randn(16)
    with on_path(path) as counted:
        got = ops.layer_norm(x, 16, weight, bias)
        rms = ops.rms_norm(x, 16, weight, 1e-5)
    assert counted.of("layer_norm", path) == counted.of("rms_norm", path) == 1
    assert got.dtype == rms.dtype == torch.float16
    torch.testing.assert_close(got, reference.layer_norm(x, 1, weight, bias, 1e-5).half())
    torch.testing.assert_close(rms, reference.rms_norm(x, 1, weight, None, 1e-5).half())


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_rms_norm_without_eps_takes_pytorchs(dtype: torch.dtype) -> None:
    x = torch.full((1, 8), 3e-4, dtype=dtype)
    for path in PATHS:
        with on_path(path):
            torch.testing.assert_close(ops.rms_norm(x, 8), torch.nn.functional.rms_norm(x, (8,)))
