"""conv2d: every path against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.conv2d import conv2d

from ._family_cases import (
    FLOATS,
    LAYOUTS,
    assert_compiles_and_exports,
    assert_threads_agree,
    assert_within,
    draw,
    laid_out,
)

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
PAIRS = st.sampled_from((1, 2, (1, 2), (3, 1)))


def _two(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def _check(
    got: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    case: object,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
) -> None:
    holes = _two(dilation)
    if padding == "same":
        reach = [h * (taps - 1) for h, taps in zip(holes, weight.shape[2:], strict=True)]
        pads = (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2)
    else:
        zeros = (0, 0) if isinstance(padding, str) else _two(padding)
        pads = (zeros[1], zeros[1], zeros[0], zeros[0])
    options = {"stride": _two(stride), "padding": pads, "dilation": holes, "groups": groups}
    want = reference.activate(reference.conv2d(x, weight, bias, **options), activation)  # type: ignore[arg-type]
    size = reference.conv2d(x.abs(), weight.abs(), None if bias is None else bias.abs(), **options)  # type: ignore[arg-type]
    assert got.dtype == x.dtype, case
    assert_within(got, want, terms=weight[0].numel(), magnitude=1.2 * size, roundings=4, case=case)


@settings(deadline=None, max_examples=60)
@given(
    batch=st.sampled_from((1, 2)),
    per_group=st.sampled_from((1, 3)),
    out_per_group=st.sampled_from((1, 4)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.sampled_from(((1, 1), (3, 3), (2, 1))),
    stride=PAIRS,
    padding=st.sampled_from((0, 1, (1, 2), "valid", "same")),
    dilation=st.sampled_from((1, 2, (1, 2))),
    groups=st.sampled_from((1, 2)),
    activation=st.sampled_from((None, "relu", "gelu", "silu")),
    dtype=st.sampled_from((*FLOATS, F64)),
    layout=st.sampled_from((*LAYOUTS, "channels last")),
)
def test_every_form_matches_float64(
    batch: int,
    per_group: int,
    out_per_group: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int] | str,
    dilation: int | tuple[int, int],
    groups: int,
    activation: str | None,
    dtype: torch.dtype,
    layout: str,
) -> None:
    x = draw(batch, per_group * groups, *size, dtype=dtype)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    else:
        x = laid_out(x, layout)
    weight = draw(out_per_group * groups, per_group, *kernel, dtype=dtype, seed=1)
    bias = draw(out_per_group * groups, dtype=dtype, seed=2)
    stride = 1 if padding == "same" else stride
    got = conv2d(x, weight, bias, stride, padding, dilation, groups, activation=activation)
    _check(got, x, weight, bias, (x.shape, weight.shape, stride, padding, dilation, groups, dtype, layout),
           stride=stride, padding=padding, dilation=dilation, groups=groups, activation=activation)  # fmt: skip


def test_the_result_has_the_memory_format_of_the_input() -> None:
    x, weight = draw(2, 3, 6, 5), draw(4, 3, 3, 3, seed=1)
    last = x.contiguous(memory_format=torch.channels_last)
    for run in (paths.use("vendor"), paths.use("steel")):
        with paths.simulate_metal(), run:
            assert conv2d(x, weight).is_contiguous()
            assert conv2d(last, weight).is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(conv2d(last, weight), conv2d(x, weight))


def test_the_metal_kernels_give_the_same() -> None:
    x, weight, bias = draw(2, 3, 9, 8), draw(8, 3, 3, 3, seed=1), draw(8, seed=2)
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        got = conv2d(x, weight, bias, stride=2, padding=1, activation="gelu")
        same = conv2d(x, weight, bias, padding="same")
    assert recorded.of("conv2d", "steel") == 2
    _check(got, x, weight, bias, "metal", stride=2, padding=1, activation="gelu")
    _check(same, x, weight, bias, "metal, same", padding="same")


def test_edge_values_come_out_as_in_float64() -> None:
    x = draw(1, 2, 9, 9, edges=(0.0, 1.0, 1e-10, 1e10))
    weight = draw(3, 2, 2, 2, seed=1)
    _check(conv2d(x, weight), x, weight, None, "finite edges")
    x[0, 0, 4, 4] = math.nan
    got = conv2d(x, weight)
    assert bool(got[:, :, 3:5, 3:5].isnan().all()) and int(got.isnan().sum()) == 3 * 4


def test_nothing_in_gives_nothing_out() -> None:
    assert conv2d(torch.ones(0, 3, 5, 5), torch.ones(4, 3, 3, 3)).shape == (0, 4, 3, 3)


def test_gradients_are_those_of_finite_differences() -> None:
    tensors = [draw(1, 2, 4, 5, dtype=F64), draw(2, 2, 2, 3, dtype=F64, seed=1), draw(2, dtype=F64, seed=2)]
    assert torch.autograd.gradcheck(
        lambda x, w, b: conv2d(x, w, b, padding=1, activation="silu"), [t.requires_grad_() for t in tensors]
    )


def test_torchs_own_checks_of_the_operator_pass() -> None:
    x, weight, bias = draw(2, 4, 6, 5), draw(4, 2, 3, 3, seed=1), draw(4, seed=2)
    last = x.contiguous(memory_format=torch.channels_last)
    for given_x, shift in ((x, None), (last, bias)):
        options = ([2, 1], [1, 0], False, [1, 1], 2, "relu")
        torch.library.opcheck(torch.ops.steelworks.conv2d.default, (given_x, weight, shift, *options))


def test_compile_and_export_give_the_same() -> None:
    x, weight, bias = draw(2, 4, 6, 5), draw(4, 2, 3, 3, seed=1), draw(4, seed=2)
    assert_compiles_and_exports(lambda a, b, c: conv2d(a, b, c, 2, 1, groups=2), x, weight, bias)
    assert_compiles_and_exports(lambda a, b: conv2d(a, b, padding="same", groups=2), x, weight)


def test_many_threads_at_once_get_what_one_gets() -> None:
    weight = draw(4, 3, 3, 3)
    cases = [(draw(n, 3, 6, 6, seed=n), weight, None, s) for n in (1, 2) for s in (1, 2)]
    assert_threads_agree(conv2d, cases)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": torch.ones(3, 5, 5)}, r"input has shape \(3, 5, 5\).*\(batch, channels, height, width\)"),
        ({"weight": torch.ones(4, 2, 3, 3)}, r"3 channels.*\(4, 2, 3, 3\)"),
        ({"groups": 2}, "groups is 2"),
        ({"groups": 0}, "groups is 0"),
        ({"bias": torch.ones(3)}, r"bias has shape \(3,\).*\(4,\)"),
        ({"stride": 0}, "stride is 0.*at least 1"),
        ({"padding": (1, 2, 3)}, r"padding is \(1, 2, 3\)"),
        ({"padding": "full"}, "padding is 'full'.*'same'"),
        ({"padding": "same", "stride": 2}, "'same'.*stride"),
        ({"dilation": 4}, "5 x 5.*9 x 9.*must fit"),
        ({"activation": "tanh"}, "activation is 'tanh'.*'relu'"),
        ({"weight": torch.ones(4, 3, 3, 3, dtype=BF16)}, "weight is torch.bfloat16.*convert"),
        ({"weight": torch.ones(4, 3, 3, 3, device="meta")}, "'meta'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(changes: dict[str, object], said: str) -> None:
    operands = {"input": torch.ones(1, 3, 5, 5), "weight": torch.ones(4, 3, 3, 3)}
    with pytest.raises(InvalidInputError, match=said):
        conv2d(**{**operands, **changes})  # type: ignore[arg-type]
