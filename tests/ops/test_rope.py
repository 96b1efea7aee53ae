"""rope: every path against float64, at every position."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.ops.rope import MOST_POSITION, rope, rope_frequencies, rope_table

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


def _radians(rotary: int) -> torch.Tensor:
    return 10000.0 ** -(torch.arange(0, rotary, 2, dtype=F64) / max(rotary, 1))


def _check(
    got: torch.Tensor, x: torch.Tensor, rotary: int, offset: int | torch.Tensor, case: object, **options: bool
) -> None:
    want = reference.rope(x, _radians(rotary), offset, **options)
    assert got.dtype == x.dtype, case
    size = x.double().abs().amax(-1, keepdim=True)
    have = got.to(F32) if got.dtype == F64 else got  # angles are right to float32
    assert_within(have, want, terms=32, magnitude=2 * size, roundings=1, case=case)


@settings(deadline=None, max_examples=80)
@given(
    batch=st.sampled_from((1, 2)),
    heads=st.sampled_from((1, 3)),
    length=st.sampled_from((1, 5, 17)),
    width=st.sampled_from((2, 8, 11)),
    share=st.sampled_from((0.0, 0.5, 1.0)),
    offset=st.sampled_from((0, 1, 4095, 123457, 2**24 - 17, "tensor")),
    interleaved=st.booleans(),
    inverse=st.booleans(),
    dtype=st.sampled_from((*FLOATS, F64)),
    layout=st.sampled_from(LAYOUTS),
)
def test_every_form_matches_float64(
    batch: int,
    heads: int,
    length: int,
    width: int,
    share: float,
    offset: int | str,
    interleaved: bool,
    inverse: bool,
    dtype: torch.dtype,
    layout: str,
) -> None:
    rotary = int(share * width) // 2 * 2
    x = laid_out(draw(batch, heads, length, width, dtype=dtype), layout)
    where = offset if isinstance(offset, int) else torch.tensor([7, 10_000_019][:batch])
    got = rope(x, rope_frequencies(rotary), where, interleaved=interleaved, inverse=inverse)
    case = (x.shape, rotary, offset, interleaved, inverse, dtype, layout)
    _check(got, x, rotary, where, case, interleaved=interleaved, inverse=inverse)


def test_the_angle_is_right_to_float32_at_the_last_position() -> None:
    x = torch.zeros(1, 1, 1, 128)
    x[..., :64] = 1.0
    got = rope(x, rope_frequencies(128), MOST_POSITION - 1)
    want = reference.rope(x, _radians(128), MOST_POSITION - 1)
    assert float((got.double() - want).abs().max()) < 1e-6


def test_the_metal_kernel_gives_the_same() -> None:
    x = draw(2, 3, 5, 16)
    for where in (3, torch.tensor([0, 1000])):
        for inverse in (False, True):
            with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
                got = rope(x, rope_frequencies(16), where, inverse=inverse)
            assert recorded.of("rope", "steel") == 1
            _check(got, x, 16, where, ("metal", where), inverse=inverse)


def test_the_inverse_turns_back() -> None:
    x, table = draw(2, 3, 5, 16), rope_frequencies(16)
    torch.testing.assert_close(rope(rope(x, table, 9), table, 9, inverse=True), x)


def test_a_table_may_be_made_from_any_frequencies() -> None:
    x, radians = draw(1, 2, 6, 8), torch.tensor([1.0, 0.3, 2.5, 0.0], dtype=F64)
    assert_within(rope(x, rope_table(radians), 5), reference.rope(x, radians, 5), terms=32, magnitude=10.0)


def test_nothing_has_a_result() -> None:
    for path in ("vendor", "steel"):
        with paths.simulate_metal(), paths.use(path):
            assert rope(torch.ones(0, 2, 3, 8), rope_frequencies(8)).shape == (0, 2, 3, 8)
            assert rope(torch.ones(1, 2, 0, 8), rope_frequencies(8)).shape == (1, 2, 0, 8)


def test_the_gradient_is_turned_back_on_every_path() -> None:
    x, table = draw(1, 2, 3, 8, dtype=F64).requires_grad_(), rope_frequencies(6)
    assert torch.autograd.gradcheck(lambda t: rope(t, table, 5, interleaved=True), [x])
    registered = torch.ops.steelworks.rope
    assert torch.autograd.gradcheck(lambda t: registered(t, table, 5, None, True, False), [x])
    assert torch.autograd.gradgradcheck(lambda t: registered(t, table, 5, None, True, False), [x])
    y = draw(1, 2, 3, 8).requires_grad_()
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        rope(y, table, 5).backward(torch.ones(1, 2, 3, 8))
    assert recorded.of("rope", "steel") == 2
    assert y.grad is not None
    torch.testing.assert_close(y.grad, rope(torch.ones(1, 2, 3, 8), table, 5, inverse=True))


def test_torchs_own_checks_of_the_operator_pass() -> None:
    x, table = draw(2, 3, 5, 16).requires_grad_(), rope_frequencies(16)
    torch.library.opcheck(torch.ops.steelworks.rope.default, (x, table, 3, None, False, False))
    where = torch.tensor([0, 9])
    torch.library.opcheck(torch.ops.steelworks.rope.default, (x.detach(), table, 0, where, True, True))
    heads_last = draw(2, 5, 3, 16).transpose(1, 2)  # the result is dense all the same
    torch.library.opcheck(torch.ops.steelworks.rope.default, (heads_last, table, 3, None, False, False))


def test_compile_and_export_give_the_same() -> None:
    x, table, where = draw(2, 3, 5, 16), rope_frequencies(16), torch.tensor([0, 9])
    assert_compiles_and_exports(lambda t, f: rope(t, f, 3), x, table)
    assert_compiles_and_exports(rope, x, table, where)


def test_many_threads_at_once_get_what_one_gets() -> None:
    table = rope_frequencies(8)
    assert_threads_agree(rope, [(draw(1, 2, n, 8, dtype=d), table, n) for n in (1, 5) for d in (F32, BF16)])


_X, _TABLE = torch.ones(2, 1, 3, 8), rope_frequencies(8)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((torch.ones(3, 8), _TABLE), r"x has shape \(3, 8\).*\(batch, heads, length, width\)"),
        ((torch.ones(8), _TABLE), r"x has shape \(8,\)"),
        ((_X.int(), _TABLE), "x is torch.int32.*convert"),
        ((_X, _TABLE.double()), "frequencies is torch.float64.*rope_frequencies makes it"),
        ((_X[..., :6], _TABLE), "4 pairs.*width of 6, at most 3"),
        ((_X, _TABLE, -1), "positions go from -1 to 1; allowed are 0 to 16777215"),
        ((_X, _TABLE, 2**24 - 2), "positions go from 16777214 to 16777216"),
        ((_X, _TABLE, torch.tensor([0, 2**24])), "positions go from 0"),
        ((_X, _TABLE, torch.tensor([0, 1, 2])), r"offset is torch.int64 of shape \(3,\).*\(2,\)"),
        ((_X, _TABLE, torch.tensor([0.0, 1.0])), "offset is torch.float32"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(arguments: tuple[object, ...], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        rope(*arguments)  # type: ignore[arg-type]
