"""layer_norm and rms_norm in Triton against float64, within bounds from dtype and length."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.triton import norms, tuning

Near = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | float, str], None]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
UNIT = 2.0**-24
EPS = 1e-5
FORMS = {"layer_norm": norms.layer_norm, "rms_norm": norms.rms_norm}
TRAINING = {"layer_norm": norms.layer_norm_forward, "rms_norm": norms.rms_norm_forward}
Tensor = torch.Tensor


def draw(*shape: int, dtype: torch.dtype = F32, device: str = "cpu", seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape) + 1000 * seed)
    return (torch.randn(shape, generator=random) * 2 + 0.5).to(dtype).to(device)


def bound(form: str, h: Tensor, weight: Tensor | None, bias: Tensor | None, want: Tensor) -> Tensor:
    """What float32 may be off by: sums of ``length`` terms in any order; the mean's error stays in h - mean."""
    length = h.shape[-1]
    h = h.double()
    mean = h.mean(-1, keepdim=True) if form == "layer_norm" else torch.zeros_like(h[..., :1])
    rstd = 1 / ((h - mean).square().mean(-1, keepdim=True) + EPS).sqrt()
    size = rstd * (h.abs().mean(-1, keepdim=True) + h.abs())
    if weight is not None:
        size = size * weight.double().abs()
    if bias is not None:
        size = size + bias.double().abs()
    return (UNIT * (length + 16) * size).nan_to_num(0, 0, 0)


def check(
    form: str,
    x: Tensor,
    near: Near,
    case: str,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    want = getattr(reference, form)(x, 1, weight, bias, EPS, residual)
    got = FORMS[form](x, x.shape[-1], weight, bias, EPS, residual=residual)
    h = x.double() if residual is None else x.double() + residual.double()
    if residual is not None:
        got, total = got
        near(total, h, UNIT * h.abs(), f"{form} {case}: x + residual")
    near(got, want, bound(form, h, weight, bias, want), f"{form} {case}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("length", [1, 2, 31, 64, 65, 257, 1000, 1024, 4099])
def test_rows_of_any_length_are_right(form: str, length: int, device: str, near: Near) -> None:
    x = draw(5, length, device=device)
    weight, bias = draw(length, device=device, seed=1), draw(length, device=device, seed=2)
    check(form, x, near, f"5x{length}")
    check(form, x, near, f"5x{length} with all", weight, bias, draw(5, length, device=device, seed=3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given_weight", [False, True])
@pytest.mark.parametrize("given_bias", [False, True])
@pytest.mark.parametrize("given_residual", [False, True])
def test_every_combination_of_operands_is_right(
    form: str, given_weight: bool, given_bias: bool, given_residual: bool, device: str, near: Near
) -> None:
    x = draw(3, 96, device=device)
    weight = draw(96, device=device, seed=1) if given_weight else None
    bias = draw(96, device=device, seed=2) if given_bias else None
    residual = draw(3, 96, device=device, seed=3) if given_residual else None
    check(form, x, near, f"{given_weight} {given_bias} {given_residual}", weight, bias, residual)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("of_weight", [F32, F16, BF16])
def test_half_precision_is_rounded_once_whatever_the_weight_is(
    form: str, dtype: torch.dtype, of_weight: torch.dtype, device: str, near: Near
) -> None:
    x, residual = (draw(3, 200, dtype=dtype, device=device, seed=n) for n in (0, 3))
    weight, bias = (draw(200, dtype=of_weight, device=device, seed=n) for n in (1, 2))
    check(form, x, near, f"{dtype}", weight, bias, residual)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_do_not_fit_in_registers_are_merged_block_by_block(
    form: str, device: str, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "ROW_MOST", 64)
    monkeypatch.setattr(tuning, "NORMS_LONG", tuning.LongRows(block=128, warps=4))
    norms._FORWARD.clear()
    for length in (65, 128, 129, 700):
        weight, bias = draw(length, device=device, seed=1), draw(length, device=device, seed=2)
        x = draw(3, length, device=device)
        check(form, x, near, f"long {length}")
        check(form, x, near, f"long {length} with all", weight, bias, draw(3, length, device=device, seed=3))
    norms._FORWARD.clear()


@pytest.mark.parametrize("long", [False, True])
def test_a_large_mean_costs_no_precision_of_the_variance(
    long: bool, device: str, near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    if long:
        monkeypatch.setattr(tuning, "ROW_MOST", 64)
        monkeypatch.setattr(tuning, "NORMS_LONG", tuning.LongRows(block=128, warps=4))
    norms._FORWARD.clear()
    x = draw(2, 512, device=device) + 4096.0
    want = reference.layer_norm(x, 1, None, None, EPS)
    # Squares of x itself would lose all but one bit of the variance; distances from the mean lose the mean's error.
    near(norms.layer_norm(x, 512, eps=EPS), want, 4096 * 16 * UNIT, "mean 4096")
    norms._FORWARD.clear()


@pytest.mark.parametrize("form", FORMS)
def test_special_values_are_torchs(form: str, device: str, near: Near) -> None:
    x = draw(6, 40, device=device)
    x[0], x[1], x[4] = 0.0, 1e10, 1e-10
    x[2, 3] = math.nan
    x[3, 4] = math.inf
    check(form, x, near, "special values")


@pytest.mark.parametrize("form", FORMS)
def test_views_give_what_dense_tensors_give(form: str, device: str, near: Near) -> None:
    base = draw(4, 9, 24, device=device)
    views = {
        "columns of a wider row": base[:, :, :17],
        "every second row": base[:, ::2],
        "transposed": base.transpose(1, 2),
        "broadcast": base[:1].expand(4, 9, 24),
        "not at 16 bytes": base.flatten()[1:-23].view(-1, 24),
    }
    for name, view in views.items():
        length = view.shape[-1]
        weight = draw(2 * length, device=device, seed=1)[::2]
        check(form, view, near, name, weight)
        check(form, view, near, f"{name} with a residual", weight, None, view.contiguous())
        check(form, view.contiguous(), near, f"{name} as the residual", weight, None, view)


@pytest.mark.parametrize("form", FORMS)
def test_several_dimensions_are_normalised_as_one(form: str, device: str, near: Near) -> None:
    x, weight = draw(4, 6, 10, device=device), draw(6, 10, device=device, seed=1)
    want = getattr(reference, form)(x, 2, weight, None, EPS)
    flat = x.reshape(4, 60)
    limit = bound(form, flat, weight.flatten(), None, want).reshape(4, 6, 10)
    near(FORMS[form](x, (6, 10), weight, None, EPS), want, limit, f"{form} over (6, 10)")


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_nothing_gives_nothing(shape: tuple[int, ...], device: str) -> None:
    x = torch.empty(shape, device=device)
    for form in FORMS.values():
        assert form(x, shape[-1]).shape == shape
        y, total = form(x, shape[-1], residual=x)
        assert y.shape == total.shape == shape


def _backward_case(form: str, rows: int, length: int, device: str, dtype: torch.dtype, near: Near) -> None:
    x, grad, of_total = (draw(rows, length, dtype=dtype, device=device, seed=n) for n in (0, 3, 4))
    weight, bias = (draw(length, dtype=dtype, device=device, seed=n) for n in (1, 2))
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = getattr(reference, form)(exact[0], 1, exact[1], exact[2], EPS)
    want = list(torch.autograd.grad(y, exact, grad.double()))
    want[0] = want[0] + of_total.double()
    kept = TRAINING[form](x, length, weight, bias, EPS)
    got = norms.norm_backward(
        grad, x, weight, kept.mean, kept.rstd, normalized_shape=length, bias_dtype=dtype, total_grad=of_total
    )
    normal = ((y - exact[2]) / exact[1]).detach().abs()
    given = (grad.double() * weight.double()).abs()
    sums = given.mean(-1, keepdim=True) + normal * (given * normal).mean(-1, keepdim=True)
    rstd = kept.rstd.double().reshape(rows, 1)
    mean = x.double().abs().mean(-1, keepdim=True) * rstd
    grown = (1 + normal + mean) * (1 + mean)  # the mean's rounding, that of the statistics, and their product
    limits = [
        UNIT * (length + 32) * ((given + sums) * rstd * grown + of_total.double().abs()),
        UNIT * (rows + length + 32) * (grad.double().abs() * (normal + grown)).sum(0),
        UNIT * (rows + 32) * grad.double().abs().sum(0),
    ]
    for name, mine, right, limit in zip(("x", "weight", "bias"), got, want, limits, strict=True):
        assert mine is not None
        near(mine, right, limit, f"{form} {rows}x{length} {dtype}: gradient of {name}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows,length", [(1, 1), (7, 100), (65, 33), (40, 300), (3, 1024)])
def test_backward_is_autograds(form: str, rows: int, length: int, device: str, near: Near) -> None:
    _backward_case(form, rows, length, device, F32, near)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_backward_of_half_precision_is_rounded_once(
    form: str, dtype: torch.dtype, device: str, near: Near
) -> None:
    _backward_case(form, 9, 120, device, dtype, near)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_that_are_not_wanted_are_none(form: str, device: str, near: Near) -> None:
    x, grad = draw(5, 48, device=device), draw(5, 48, device=device, seed=3)
    kept = TRAINING[form](x, 48, None, None, EPS)
    got = norms.norm_backward(grad, x, None, kept.mean, kept.rstd, normalized_shape=48)
    exact = x.double().requires_grad_()
    (want,) = torch.autograd.grad(getattr(reference, form)(exact, 1, None, None, EPS), exact, grad.double())
    near(got[0], want, UNIT * 400 * float(kept.rstd.max()) * float(grad.abs().max()) * 8, "without a weight")
    assert got[1] is None
    assert got[2] is None


def test_weight_gradients_need_no_temporary_of_all_rows(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(96, 16, device=device)
    kept = norms.layer_norm_forward(x, 16, torch.ones(16, device=device))
    largest: list[int] = []
    empty = torch.empty

    def watched(*args: object, **options: object) -> Tensor:
        made = empty(*args, **options)  # type: ignore[call-overload]
        largest.append(made.numel() if made.dtype == F32 and made.dim() == 3 else 0)
        return made

    monkeypatch.setattr(tuning, "NORM_BACKWARD", (tuning.Row(tuning.RowLoop(4, 4, 1), "few programs"),))
    monkeypatch.setattr(norms, "processors", lambda index: 4)
    monkeypatch.setattr(torch, "empty", watched)
    norms._BACKWARD.clear()
    ones = torch.ones(16, device=device)
    norms.norm_backward(x, x, ones, kept.mean, kept.rstd, normalized_shape=16, bias_dtype=F32)
    norms._BACKWARD.clear()
    assert max(largest) == 2 * 4 * 16


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40),
    length=st.integers(1, 300),
    form=st.sampled_from(sorted(FORMS)),
    dtype=st.sampled_from([F32, F16, BF16]),
    with_residual=st.booleans(),
    step=st.integers(1, 3),
)
def test_norms_of_any_shape(
    rows: int,
    length: int,
    form: str,
    dtype: torch.dtype,
    with_residual: bool,
    step: int,
    device: str,
    near: Near,
) -> None:
    x = draw(rows * step, length, dtype=dtype, device=device)[::step]
    residual = draw(rows, length, dtype=dtype, device=device, seed=3) if with_residual else None
    weight, bias = (draw(length, dtype=dtype, device=device, seed=n) for n in (1, 2))
    check(form, x, near, f"{rows}x{length} {dtype}", weight, bias, residual)


def test_what_does_not_fit_is_refused_with_what_does(device: str) -> None:
    x = draw(3, 8, device=device)
    cases = [
        (lambda: norms.layer_norm(x.double(), 8), "float32, float16 or bfloat16"),
        (lambda: norms.layer_norm(x, 7), "normalized_shape is \\(7,\\)"),
        (lambda: norms.rms_norm(x, ()), "at least one"),
        (lambda: norms.rms_norm(x, 8, draw(7, device=device)), "weight has shape \\(7,\\)"),
        (lambda: norms.layer_norm(x, 8, residual=x[:2]), "must be the same"),
        (lambda: norms.layer_norm(x, 8, residual=x.half()), "must be the same"),
    ]
    for call, words in cases:
        with pytest.raises(InvalidInputError, match=words):
            call()


def test_backward_of_rows_that_are_too_long_is_refused() -> None:
    assert norms.backward_unsupported(tuning.NORM_BACKWARD_MOST) is None
    assert "up to 16384" in str(norms.backward_unsupported((2, tuning.NORM_BACKWARD_MOST)))
