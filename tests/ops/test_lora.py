"""lora_linear and multi_lora_linear: every path against float64, gradients, and what torch builds on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.lora import lora_linear, multi_lora_linear

from ._family_cases import (
    EDGES,
    FLOATS,
    LAYOUTS,
    SIZES,
    assert_compiles_and_exports,
    assert_same,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


@dataclass(frozen=True)
class Problem:
    """The operands of one call."""

    x: torch.Tensor
    weight: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    scales: torch.Tensor
    adapters: torch.Tensor


def _problem(
    rows: tuple[int, ...],
    n: int,
    k: int,
    r: int,
    *,
    dtype: torch.dtype = F32,
    count: int = 0,
    bias: bool = True,
    layout: str = "dense",
    edges: tuple[float, ...] = (),
) -> Problem:
    stack = (count,) if count else ()
    generator = torch.Generator().manual_seed(n * 31 + k)
    return Problem(
        laid_out(draw(*rows, k, dtype=dtype, seed=1, edges=edges), layout),
        laid_out(draw(n, k, dtype=dtype, seed=2), layout),
        laid_out(draw(*stack, r, k, dtype=dtype, seed=3), layout if not count else "dense"),
        laid_out(draw(*stack, n, r, dtype=dtype, seed=4), layout if not count else "dense"),
        draw(n, dtype=dtype, seed=5) if bias else None,
        torch.randn(max(count, 1), generator=generator),
        torch.randint(-1, max(count, 1), rows, generator=generator, dtype=torch.int32),
    )


def _one(p: Problem, scale: float = 0.5) -> torch.Tensor:
    return lora_linear(p.x, p.weight, p.a, p.b, scale, p.bias)


def _many(p: Problem) -> torch.Tensor:
    return multi_lora_linear(p.x, p.weight, p.a, p.b, p.scales, p.adapters, p.bias)


def _check_one(p: Problem, scale: float, got: torch.Tensor, case: object) -> None:
    want = reference.lora_linear(p.x, p.weight, p.a, p.b, scale, p.bias)
    bias = None if p.bias is None else p.bias.abs()
    size = reference.lora_linear(p.x.abs(), p.weight.abs(), p.a.abs(), p.b.abs(), abs(scale), bias)
    assert got.dtype == p.x.dtype and got.is_contiguous(), case
    terms = p.weight.shape[1] + p.a.shape[-2]
    assert_within(got, want, terms=terms, magnitude=size, roundings=4, case=case)


def _check_many(p: Problem, got: torch.Tensor, case: object) -> None:
    arguments = (p.scales, p.adapters)
    want = reference.lora_linear_multi(p.x, p.weight, p.a, p.b, *arguments, p.bias)
    bias = None if p.bias is None else p.bias.abs()
    size = reference.lora_linear_multi(
        p.x.abs(), p.weight.abs(), p.a.abs(), p.b.abs(), p.scales.abs(), p.adapters, bias
    )
    assert got.dtype == p.x.dtype and got.is_contiguous(), case
    terms = p.weight.shape[1] + p.a.shape[-2]
    assert_within(got, want, terms=terms, magnitude=size, roundings=4, case=case)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(SIZES, min_size=0, max_size=3),
    n=SIZES,
    k=SIZES,
    r=st.sampled_from((1, 4, 8, 65)),
    dtype=st.sampled_from((*FLOATS, F64)),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    scale=st.sampled_from((0.0, 1.0, -2.0, 0.125)),
)
def test_one_adapter_matches_float64(
    rows: list[int], n: int, k: int, r: int, dtype: torch.dtype, bias: bool, layout: str, scale: float
) -> None:
    p = _problem(tuple(rows), n, k, r, dtype=dtype, bias=bias, layout=layout)
    _check_one(p, scale, _one(p, scale), (rows, n, k, r, dtype, bias, layout, scale))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(SIZES, min_size=0, max_size=2),
    n=SIZES,
    k=SIZES,
    r=st.sampled_from((1, 8)),
    count=st.sampled_from((1, 2, 7)),
    dtype=st.sampled_from((*FLOATS, F64)),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_an_adapter_for_each_row_matches_float64(
    rows: list[int], n: int, k: int, r: int, count: int, dtype: torch.dtype, bias: bool, layout: str
) -> None:
    p = _problem(tuple(rows), n, k, r, dtype=dtype, count=count, bias=bias, layout=layout)
    _check_many(p, _many(p), (rows, n, k, r, count, dtype, bias, layout))


def test_edge_values_come_out_as_in_float64() -> None:
    p = _problem((40,), 8, 6, 4, edges=EDGES)
    _check_one(p, 0.5, _one(p), "edges")
    many = _problem((40,), 8, 6, 4, count=3, edges=EDGES)
    _check_many(many, _many(many), "edges, many")


def test_the_metal_kernels_give_the_same() -> None:
    for rows in ((3,), (2, 17)):
        p, q = _problem(rows, 24, 16, 8), _problem(rows, 24, 16, 8, count=3)
        with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
            one, many = _one(p), _many(q)
        assert recorded.of("lora_linear", "steel") == recorded.of("multi_lora_linear", "steel") == 1
        _check_one(p, 0.5, one, f"metal {rows}")
        _check_many(q, many, f"metal {rows}, many")


def test_a_rank_that_no_kernel_has_takes_the_vendor_path() -> None:
    p = _problem((3,), 5, 6, 65)
    with paths.simulate_metal(), paths.use("steel"):
        _check_one(p, 0.5, _one(p), "rank 65")


def test_rows_without_an_adapter_see_none_and_a_broken_adapter_harms_its_own_rows_only() -> None:
    p = _problem((6,), 5, 7, 2, count=3)
    p.a[0] = math.nan
    p.b[2] = math.inf
    adapters = torch.tensor([-1, 1, 0, 2, 99, 1], dtype=torch.int32)
    got = multi_lora_linear(p.x, p.weight, p.a, p.b, p.scales, adapters, p.bias)
    plain = torch.nn.functional.linear(p.x, p.weight, p.bias)
    assert_same(got[[0, 4]], plain[[0, 4]])
    assert bool(got[[1, 5]].isfinite().all())
    assert bool(got[2].isnan().all())
    assert not bool(got[3].isfinite().any())


def test_a_number_too_large_for_int32_names_no_adapter() -> None:
    p = _problem((3,), 24, 16, 8, count=3)
    adapters = torch.tensor([2**32, -(2**32), 2**32 + 1])
    plain = torch.nn.functional.linear(p.x, p.weight, p.bias)
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            got = multi_lora_linear(p.x, p.weight, p.a, p.b, p.scales, adapters, p.bias)
        torch.testing.assert_close(got, plain)


def test_autocast_converts_operands_of_several_dtypes() -> None:
    p = _problem((3,), 4, 5, 2)
    with torch.autocast("cpu", dtype=BF16):
        got = lora_linear(p.x.to(BF16), p.weight, p.a, p.b, 0.5, p.bias)
    assert got.dtype == BF16
    torch.testing.assert_close(got.float(), _one(p), rtol=0.05, atol=0.05)


def test_no_rows_and_no_adapters_have_a_result() -> None:
    assert _one(_problem((0,), 5, 6, 2)).shape == (0, 5)
    assert _one(_problem((3,), 0, 6, 2)).shape == (3, 0)
    p = _problem((3,), 5, 6, 2, count=1)
    none = multi_lora_linear(p.x, p.weight, p.a[:0], p.b[:0], p.scales[:0], p.adapters, p.bias)
    assert_same(none, torch.nn.functional.linear(p.x, p.weight, p.bias))


@pytest.mark.parametrize("rows", [(3,), (2, 2), ()])
def test_gradients_are_those_of_finite_differences(rows: tuple[int, ...]) -> None:
    p = _problem(rows, 4, 5, 2, dtype=F64)
    tensors = [t.clone().requires_grad_() for t in (p.x, p.weight, p.a, p.b, p.bias) if t is not None]

    def run(
        x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return lora_linear(x, w, a, b, 0.75, bias)

    def registered(*operands: torch.Tensor) -> torch.Tensor:
        return torch.ops.steelworks.lora_linear(*operands[:4], 0.75, operands[4])

    def forward(*operands: torch.Tensor) -> torch.Tensor:
        return torch.ops.steelworks.lora_linear_forward(*operands[:4], 0.75, operands[4])[0]

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradcheck(registered, tensors)
    assert torch.autograd.gradcheck(forward, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(forward, tensors)


def test_gradients_of_many_adapters_are_those_of_finite_differences() -> None:
    p = _problem((5,), 4, 5, 2, dtype=F64, count=3)
    tensors = [t.clone().requires_grad_() for t in (p.x, p.weight, p.a, p.b, p.bias) if t is not None]
    adapters = torch.tensor([0, 2, -1, 2, 0], dtype=torch.int32)

    def run(
        x: torch.Tensor, w: torch.Tensor, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return multi_lora_linear(x, w, a, b, p.scales, adapters, bias)

    assert torch.autograd.gradcheck(run, tensors)


@pytest.mark.parametrize("wanted", [(0,), (2, 3), (1,), (4,), (0, 2, 3)])
def test_only_the_gradients_that_are_needed_are_made(wanted: tuple[int, ...]) -> None:
    p = _problem((6,), 4, 5, 2)
    tensors = [t.clone() for t in (p.x, p.weight, p.a, p.b, p.bias) if t is not None]
    exact = [t.double() for t in tensors]
    for number in wanted:
        tensors[number].requires_grad_()
        exact[number].requires_grad_()
    lora_linear(*tensors[:4], 0.5, tensors[4]).square().sum().backward()
    x, w, a, b, bias = exact
    (x @ w.T + bias + 0.5 * (x @ a.T @ b.T)).square().sum().backward()
    for number, (have, want) in enumerate(zip(tensors, exact, strict=True)):
        if number in wanted:
            assert have.grad is not None and want.grad is not None
            torch.testing.assert_close(have.grad.double(), want.grad, rtol=1e-4, atol=1e-4)
        else:
            assert have.grad is None


def test_a_training_step_may_take_the_metal_kernels() -> None:
    p = _problem((3,), 24, 16, 8)
    assert p.bias is not None
    leaves = [t.clone().requires_grad_() for t in (p.x, p.weight, p.a, p.b, p.bias)]
    x, w, a, b, bias = leaves
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        out = lora_linear(x, w, a, b, 0.5, bias)
        out.square().sum().backward()
    assert recorded.of("lora_linear_forward", "steel") == recorded.of("lora_linear_backward", "steel") == 1
    _check_one(p, 0.5, out, "training")
    found = [t.grad for t in leaves]
    for t in leaves:
        t.grad = None
    (x @ w.T + bias + 0.5 * (x @ a.T @ b.T)).square().sum().backward()
    for have, leaf in zip(found, leaves, strict=True):
        torch.testing.assert_close(have, leaf.grad, rtol=1e-4, atol=1e-4)


def test_torchs_own_checks_of_the_operator_pass() -> None:
    p, q = _problem((3,), 4, 5, 2), _problem((3,), 4, 5, 2, count=2)
    leaves = [t.clone().requires_grad_() for t in (p.x, p.weight, p.a, p.b)]
    torch.library.opcheck(torch.ops.steelworks.lora_linear.default, (*leaves, 0.5, None))
    torch.library.opcheck(torch.ops.steelworks.lora_linear.default, (p.x, p.weight, p.a, p.b, 0.5, p.bias))
    torch.library.opcheck(torch.ops.steelworks.lora_linear_forward.default, (*leaves, 0.5, None))
    low = p.x @ p.a.T
    tensors = (draw(3, 4), p.x, p.weight, p.a, p.b, low)
    for needs in ([True] * 5, [False, False, True, True, False]):
        torch.library.opcheck(torch.ops.steelworks.lora_linear_backward.default, (*tensors, 0.5, needs))
    arguments = (q.x, q.weight, q.a, q.b, q.scales, q.adapters, q.bias)
    torch.library.opcheck(torch.ops.steelworks.multi_lora_linear.default, arguments)


def test_compile_and_export_give_the_same() -> None:
    p, q = _problem((3,), 4, 5, 2), _problem((3,), 4, 5, 2, count=2)
    assert_compiles_and_exports(lambda x, w, a, b: lora_linear(x, w, a, b, 0.5), p.x, p.weight, p.a, p.b)
    assert_compiles_and_exports(multi_lora_linear, q.x, q.weight, q.a, q.b, q.scales, q.adapters)


def test_a_compiled_training_step_has_the_gradients_of_the_plain_one() -> None:
    p = _problem((6,), 4, 5, 2)

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return lora_linear(p.x, p.weight, a, b, 0.5, p.bias).square().sum()

    found = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        a, b = p.a.clone().requires_grad_(), p.b.clone().requires_grad_()
        run(a, b).backward()
        found.append((a.grad, b.grad))
    torch.testing.assert_close(found[0], found[1])


def test_many_threads_at_once_get_what_one_gets() -> None:
    cases = [_problem((rows,), 6, 5, 2, dtype=dtype) for rows in (1, 3, 8) for dtype in (F32, BF16)]
    assert_threads_agree(_one, [(p,) for p in cases])
    many = [_problem((rows,), 6, 5, 2, count=3) for rows in (1, 3, 8)]
    assert_threads_agree(_many, [(p,) for p in many])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x": torch.ones(3, 6)}, r"x has shape \(3, 6\).*\(\.\.\., 5\)"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\).*\(n, k\)"),
        ({"a": torch.ones(2, 6)}, r"a has shape \(2, 6\)"),
        ({"b": torch.ones(4, 3)}, r"b has shape \(4, 3\).*\(4, 2\)"),
        ({"bias": torch.ones(1)}, r"bias has shape \(1,\).*\(4,\)"),
        ({"a": torch.ones(2, 5, dtype=BF16)}, "a is torch.bfloat16 and x.*convert"),
        ({"x": torch.ones(3, 5, dtype=torch.int64)}, "x is torch.int64.*float32"),
        ({"x": torch.ones(3, 5, device="meta")}, "'meta'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(changes: dict[str, torch.Tensor], said: str) -> None:
    p = _problem((3,), 4, 5, 2)
    given_tensors = {"x": p.x, "weight": p.weight, "a": p.a, "b": p.b, "bias": p.bias, **changes}
    with pytest.raises(InvalidInputError, match=said):
        lora_linear(**given_tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a": torch.ones(2, 5)}, r"a has shape \(2, 5\).*\(count, r, k\)"),
        ({"scales": torch.ones(3)}, r"scales .*\(3,\).*\(2,\)"),
        ({"scales": torch.ones(2, dtype=torch.int32)}, "scales is torch.int32.*float32"),
        ({"adapters": torch.zeros(4, dtype=torch.int32)}, r"adapters .*\(4,\).*\(3,\)"),
        ({"adapters": torch.zeros(3)}, "adapters is torch.float32.*int32"),
    ],
)
def test_what_does_not_fit_many_adapters_is_refused_with_a_reason(
    changes: dict[str, torch.Tensor], said: str
) -> None:
    p = _problem((3,), 4, 5, 2, count=2)
    operands = {"x": p.x, "weight": p.weight, "a": p.a, "b": p.b, "scales": p.scales, "adapters": p.adapters}
    with pytest.raises(InvalidInputError, match=said):
        multi_lora_linear(**{**operands, **changes})
