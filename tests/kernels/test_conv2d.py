"""Convolution in both memory formats against float64, in checking mode under every schedule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _cases import assert_close, embedded, padded_rows, run_checked, run_poisoned

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal import conv2d as family
from steelworks.kernels.metal.conv2d import conv2d

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """Sizes and options of one call; ``last``: channels last in memory."""

    channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    batch: int = 1
    dtype: torch.dtype = F32
    last: bool = False
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True
    activation: str | None = None


@dataclass(frozen=True)
class Tensors:
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def _tensors(case: Case) -> Tensors:
    made = torch.Generator().manual_seed(case.channels * 1009 + case.out_channels * 31 + case.size[0])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made).to(case.dtype)

    x = draw(case.batch, case.channels, *case.size)
    weight = draw(case.out_channels, case.channels // case.groups, *case.kernel)
    if case.last:
        x, weight = x.to(memory_format=torch.channels_last), weight.to(memory_format=torch.channels_last)
    return Tensors(x, weight, draw(case.out_channels) if case.bias else None)


def _call(case: Case, t: Tensors) -> torch.Tensor:
    return conv2d(
        t.x, t.weight, t.bias, stride=case.stride, padding=case.padding, dilation=case.dilation,
        groups=case.groups, activation=case.activation,
    )  # fmt: skip


def _compare(got: torch.Tensor, case: Case, t: Tensors) -> None:
    above, beside = case.padding
    options = {
        "stride": case.stride, "padding": (beside, beside, above, above), "dilation": case.dilation,
        "groups": case.groups,
    }  # fmt: skip
    want = reference.conv2d(t.x, t.weight, t.bias, **options)
    size = reference.conv2d(t.x.abs(), t.weight.abs(), None if t.bias is None else t.bias.abs(), **options)
    if case.activation is not None:
        want = getattr(torch.nn.functional, case.activation)(want)
    terms = math.prod(t.weight.shape[1:])
    # An activation is at most 1.2 times as steep as the identity, and is itself rounded a few times.
    extra = 0.0 if case.activation is None else (terms + 40) * 2.0**-24
    assert_close("conv2d", got, want, case, terms=terms, magnitude=size, extra=extra)


def _check(case: Case) -> None:
    t = _tensors(case)
    _compare(run_checked("conv2d", lambda: _call(case, t), case), case, t)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_small_tiles_are_those_of_float64(dtype: torch.dtype, last: bool) -> None:
    for channels, out_channels in ((1, 4), (3, 5), (4, 32), (5, 33), (17, 4)):
        for size in ((3, 3), (4, 5), (6, 7), (8, 6)):
            _check(Case(channels, out_channels, size, dtype=dtype, last=last))
        _check(Case(channels, out_channels, (5, 4), (1, 1), 2, dtype, last))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_large_tiles_are_those_of_float64(dtype: torch.dtype, last: bool) -> None:
    for channels, out_channels, size in ((2, 33, (9, 9)), (3, 64, (10, 10)), (16, 65, (8, 9))):
        _check(Case(channels, out_channels, size, dtype=dtype, last=last))


@pytest.mark.parametrize("last", [False, True])
def test_every_combination_of_options_is_that_of_float64(last: bool) -> None:
    for kernel in ((1, 1), (3, 2), (2, 5)):
        for stride in ((1, 1), (2, 1), (3, 2)):
            for padding in ((0, 0), (2, 1)):
                for dilation in ((1, 1), (2, 1), (1, 2)):
                    _check(
                        Case(3, 6, (9, 10), kernel, 2, F32, last, stride, padding, dilation)
                    )  # fmt: skip


@pytest.mark.parametrize("last", [False, True])
def test_groups_do_not_see_each_other(last: bool) -> None:
    for groups in (2, 3):
        for per_group in (1, 2, 5, 33):
            for out_per_group in (1, 3, 4, 7):
                options = {"last": last, "padding": (1, 1), "groups": groups}
                _check(Case(groups * per_group, groups * out_per_group, (5, 4), (2, 3), 2, **options))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
def test_depthwise_is_that_of_float64(dtype: torch.dtype, last: bool) -> None:
    for channels in (2, 31, 65):
        for multiplier in (1, 2):
            for size, stride in (((5, 5), (1, 1)), ((9, 8), (2, 2))):
                _check(
                    Case(
                        channels,
                        channels * multiplier,
                        size,
                        (3, 3),
                        2,
                        dtype,
                        last,
                        stride,
                        (1, 1),
                        groups=channels,
                    )
                )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_come_after_the_bias(activation: str, last: bool) -> None:
    for out_channels in (2, 6):
        for bias in (False, True):
            _check(Case(3, out_channels, (6, 5), last=last, bias=bias, activation=activation))


def test_one_dimensional_and_single_element_images() -> None:
    for last in (False, True):
        _check(Case(4, 5, (1, 1), (1, 1), last=last))
        _check(Case(4, 5, (1, 40), (1, 3), last=last))
        _check(Case(4, 5, (40, 1), (3, 1), last=last))
        _check(Case(4, 5, (1, 1), (3, 3), last=last, padding=(1, 1)))
        _check(Case(4, 5, (2, 2), (5, 5), last=last, padding=(4, 4), stride=(3, 3)))


def test_many_images_share_tiles_of_pixels_when_channels_are_last() -> None:
    for batch in (3, 7):
        for last in (False, True):
            _check(Case(4, 5, (3, 3), (2, 2), batch, last=last))


def test_same_padding_gives_the_size_of_the_input() -> None:
    for kernel in ((3, 3), (2, 4), (1, 5)):
        for dilation in ((1, 1), (2, 3)):
            case = Case(3, 5, (7, 8), kernel, dilation=dilation)
            t = _tensors(case)
            got = run_checked(
                "conv2d",
                lambda: conv2d(t.x, t.weight, t.bias, padding="same", dilation=case.dilation),  # noqa: B023
                case,
            )
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            sides = (reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2)
            want = reference.conv2d(t.x, t.weight, t.bias, padding=sides, dilation=dilation)
            size = reference.conv2d(t.x.abs(), t.weight.abs(), None, padding=sides, dilation=dilation) + 4
            assert got.shape[2:] == t.x.shape[2:]
            assert_close("conv2d", got, want, case, terms=3 * kernel[0] * kernel[1], magnitude=size)


def test_the_result_has_the_memory_format_of_the_input() -> None:
    for out_channels in (2, 6):
        for last in (False, True):
            t = _tensors(Case(3, out_channels, (6, 5), last=last))
            wanted = torch.channels_last if last else torch.contiguous_format
            assert conv2d(t.x, t.weight).is_contiguous(memory_format=wanted)


def test_a_weight_in_the_other_format_is_taken() -> None:
    for last in (False, True):
        case = Case(3, 6, (6, 5), last=last)
        t = _tensors(case)
        other = torch.contiguous_format if last else torch.channels_last
        turned = Tensors(t.x, t.weight.clone(memory_format=other), t.bias)
        assert torch.equal(run_checked("conv2d", lambda: _call(case, turned), case), _call(case, t))  # noqa: B023


def test_views_with_stale_data_behind_are_read_in_place() -> None:
    for out_channels in (2, 6):
        case = Case(3, out_channels, (6, 5), batch=2)
        t = _tensors(case)
        assert t.bias is not None
        views = Tensors(padded_rows(t.x), embedded(t.weight), embedded(t.bias))
        _compare(run_checked("conv2d", lambda: _call(case, views), case), case, t)  # noqa: B023
        rows = padded_rows(t.x.permute(0, 2, 3, 1).contiguous()).permute(
            0, 3, 1, 2
        )  # channels last, pixels apart
        views = Tensors(rows, t.weight, t.bias)
        _compare(run_checked("conv2d", lambda: _call(case, views), case), case, t)  # noqa: B023
        turned = Tensors(t.x.transpose(2, 3).contiguous().transpose(2, 3), t.weight, t.bias)
        _compare(run_checked("conv2d", lambda: _call(case, turned), case), case, t)  # noqa: B023


def test_nan_and_infinity_reach_the_pixels_that_see_them_and_no_other() -> None:
    for last in (False, True):
        for out_channels in (2, 6):
            t = _tensors(Case(3, out_channels, (7, 7), last=last))
            clean = conv2d(t.x, t.weight)
            for value in (math.nan, math.inf):
                t.x[0, 1, 3, 3] = value
                got = run_checked("conv2d", lambda: conv2d(t.x, t.weight), (last, value))  # noqa: B023
                seen = torch.zeros(5, 5, dtype=torch.bool)
                seen[1:4, 1:4] = True
                assert not got[..., seen].isfinite().any()
                assert torch.equal(got[..., ~seen], clean[..., ~seen])


def test_denormals_and_signed_zeros_pass() -> None:
    for out_channels in (2, 6):
        case = Case(3, out_channels, (6, 5))
        t = _tensors(case)
        t.x[0, :, :3], t.x[0, :, 3:] = 1e-40, -0.0
        _compare(run_checked("conv2d", lambda: _call(case, t), case), case, t)  # noqa: B023


def test_empty_batches_and_channels() -> None:
    for channels, out_channels, batch in ((3, 5, 0), (3, 0, 2), (0, 5, 2), (0, 2, 2)):
        _check(Case(channels, out_channels, (4, 4), batch=batch))


def test_a_tile_reads_the_weight_once_and_writes_each_pixel_once() -> None:
    for last in (False, True):
        case = Case(8, 32, (6, 10), (3, 3), last=last, bias=False)
        t = _tensors(case)
        with metalsim.options(check=True) as session:
            _call(case, t)
        counters = session.counters
        pixels, inner = 4 * 8, 8 * 9
        assert counters.device_read == 4 * (pixels * inner + t.weight.numel())
        assert counters.device_written == 4 * pixels * 32
        assert counters.barriers == 2 * -(-inner // 16)
        assert counters.mmas == pixels * 32 * 80 / 8**3  # 72 inner indices in steps of 16


def test_whole_steps_are_followed_by_no_empty_one() -> None:
    for last in (False, True):
        case = Case(4, 32, (5, 9), (2, 2), last=last, bias=False)
        t = _tensors(case)
        with metalsim.options(check=True) as session:
            _call(case, t)
        assert session.counters.mmas == 4 * 8 * 32 * 16 / 8**3  # 16 inner indices are one step


def test_the_host_lays_parameters_out_as_the_kernels_do() -> None:
    header = Path(family.__file__).with_suffix("") / "params.h"
    assert re.findall(r"^  int (\w+);", header.read_text(), re.M) == list(family._Params._fields)


def test_unfit_arguments_are_refused_with_a_reason() -> None:
    t = _tensors(Case(4, 6, (5, 5)))
    for call, reason in (
        (lambda: conv2d(t.x[0], t.weight), "are needed"),
        (lambda: conv2d(t.x, t.weight, groups=2), "groups times the weight's second dimension"),
        (lambda: conv2d(t.x[:, :2], t.weight), "groups times the weight's second dimension"),
        (lambda: conv2d(t.x, t.weight[:5, :2], groups=2), "a multiple of groups"),
        (lambda: conv2d(t.x.half(), t.weight), "they must be the same"),
        (lambda: conv2d(t.x, t.weight, torch.zeros(5)), "(6,) is needed"),
        (lambda: conv2d(t.x, t.weight, stride=0), "each at least 1"),
        (lambda: conv2d(t.x, t.weight, padding=-1), "each at least 0"),
        (lambda: conv2d(t.x, t.weight, padding="full"), "'same' or 'valid'"),
        (lambda: conv2d(t.x, t.weight, padding="same", stride=2), "needs stride 1"),
        (lambda: conv2d(t.x, t.weight, dilation=3), "must fit into the padded input"),
        (lambda: conv2d(t.x, t.weight, padding=2**30, stride=2**20), "take less padding"),
        (lambda: conv2d(t.x, t.weight, padding="same", dilation=2**29), "take less padding"),
        (lambda: conv2d(t.x, t.weight[..., :0]), "at least one tap"),
        (lambda: conv2d(t.x, t.weight, activation="tanh"), "allowed are None, 'relu'"),
    ):
        with pytest.raises(InvalidInputError, match=re.escape(reason)):
            call()


def test_an_unchecked_run_gives_the_same_bits_as_a_checked_one() -> None:
    for last in (False, True):
        case = Case(3, 6, (6, 5), last=last)
        t = _tensors(case)
        checked = run_checked("conv2d", lambda: _call(case, t), case)  # noqa: B023
        assert torch.equal(run_poisoned(lambda: _call(case, t)), checked)  # noqa: B023
