"""Rotary position embedding against float64, in checking mode under four schedules."""

from __future__ import annotations

import pytest
import torch
from _cases import DTYPES, assert_close, embedded, padded_rows, run_checked

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels import reference
from steelworks.kernels.metal.rope import MOST_POSITION, rope, rope_frequencies, rope_table

#: Sine and cosine of Metal: 4 units of the last place each; the angle: 4 roundings in turns, 2 pi in radians.
EXTRA = 4 * 2.0**-23 + 8 * 3.15 * 2.0**-24


def _draw(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    made = torch.Generator().manual_seed(sum((i + 1) * n for i, n in enumerate(shape)))
    return torch.randn(shape, generator=made).to(dtype)


def _radians(rotary: int, base: float = 10000.0) -> torch.Tensor:
    return base ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / max(rotary, 1))


def _check(
    x: torch.Tensor,
    rotary: int,
    offset: int | torch.Tensor,
    case: object,
    *,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    table = rope_frequencies(rotary)
    got = run_checked("rope", lambda: rope(x, table, offset, interleaved=interleaved, inverse=inverse), case)
    assert got.dtype == x.dtype, case
    assert got.is_contiguous(), case
    want = reference.rope(x, _radians(rotary), offset, interleaved=interleaved, inverse=inverse)
    # A turned element has its own size and its partner's; a copied one is exact.
    size = reference.rope(x.double().abs(), torch.zeros(rotary // 2, dtype=torch.float64))
    pairs = rotary // 2
    partner = size.clone()
    if interleaved:
        partner[..., 0:rotary:2], partner[..., 1:rotary:2] = size[..., 1:rotary:2], size[..., 0:rotary:2]
    else:
        partner[..., :pairs], partner[..., pairs:rotary] = size[..., pairs:rotary], size[..., :pairs]
    assert_close("rope", got, want, case, terms=2, magnitude=size + partner, extra=EXTRA)
    assert torch.equal(got[..., rotary:], x[..., rotary:].contiguous()), case
    return got


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("width", [2, 4, 6, 8, 16, 18, 32, 64, 66, 128, 256])
def test_heads_of_any_width_match_the_reference(width: int, interleaved: bool) -> None:
    for batch, heads, length in ((1, 1, 1), (2, 3, 5), (1, 4, 9), (1, 5, 2), (3, 8, 1)):
        for rotary in {width, width // 4 * 2}:
            case = f"{batch}x{heads}x{length}x{width}, {rotary} turned, {'interleaved' if interleaved else 'halves'}"
            _check(_draw(batch, heads, length, width), rotary, 3, case, interleaved=interleaved)


def test_odd_widths_have_their_last_elements_copied() -> None:
    for width in (1, 3, 5, 9, 33):
        for rotary in {0, width // 4 * 2, width - 1}:
            for interleaved in (False, True):
                case = f"width {width}, {rotary} turned, interleaved {interleaved}"
                _check(_draw(1, 2, 3, width), rotary, 1, case, interleaved=interleaved)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_and_bfloat_are_rounded_once(dtype: torch.dtype) -> None:
    for width in (2, 16, 64):
        for interleaved in (False, True):
            x = _draw(2, 5, 3, width, dtype=dtype)
            _check(
                x, width, 100, f"width {width} {dtype}, interleaved {interleaved}", interleaved=interleaved
            )


@pytest.mark.parametrize("offset", [0, 1, 1000, 4095, 131071, 1000003, 2**20 + 1, MOST_POSITION - 6])
def test_angles_are_right_at_every_position(offset: int) -> None:
    # In float32, position * frequency in radians is off by up to 0.5 at the last of these.
    for interleaved in (False, True):
        _check(
            _draw(1, 2, 6, 32),
            32,
            offset,
            f"offset {offset}, interleaved {interleaved}",
            interleaved=interleaved,
        )


def test_each_sequence_may_have_an_offset_of_its_own() -> None:
    for dtype in (torch.int32, torch.int64):
        offset = torch.tensor([0, 7, 100000], dtype=dtype)
        got = _check(_draw(3, 2, 4, 16), 16, offset, f"offsets {dtype}")
        alone = rope(_draw(3, 2, 4, 16)[1:2], rope_frequencies(16), 7)
        assert torch.equal(got[1:2], alone)
    _check(_draw(1, 2, 4, 16), 16, torch.tensor([5]), "one offset for one sequence")


def test_turning_back_undoes_it() -> None:
    for interleaved in (False, True):
        x = _draw(2, 3, 5, 24)
        _check(x, 20, 50, f"inverse, interleaved {interleaved}", interleaved=interleaved, inverse=True)
        table = rope_frequencies(20)
        there = rope(x, table, 50, interleaved=interleaved)
        back = rope(there, table, 50, interleaved=interleaved, inverse=True)
        assert float((back - x).abs().max()) < 4e-6


def test_a_score_depends_on_the_distance_of_positions_only() -> None:
    q, k, table = _draw(1, 1, 1, 64), _draw(1, 1, 1, 64), rope_frequencies(64)
    scores = [
        float((rope(q, table, at + 9) * rope(k, table, at)).sum()) for at in (0, 1000, 10**6, 16 * 10**6)
    ]
    assert max(scores) - min(scores) < 1e-4


def test_views_are_read_in_place_and_nothing_beside_them() -> None:
    x = _draw(2, 3, 5, 16)
    views = {
        "at an offset": embedded(x),
        "rows apart": padded_rows(x),
        "length before heads": x.transpose(1, 2).contiguous().transpose(1, 2),
        "a part of the heads": _draw(2, 7, 5, 16)[:, 2:5],
        "a part of a packed projection": _draw(2, 5, 3, 48)[..., 16:32].transpose(1, 2),
        "every other element": _draw(2, 3, 5, 32)[..., ::2],
        "one sequence repeated": x[:1].expand(4, 3, 5, 16),
        "one head repeated": x[:, :1].expand(2, 6, 5, 16),
    }
    for name, view in views.items():
        for interleaved in (False, True):
            _check(view, 12, 3, f"{name}, interleaved {interleaved}", interleaved=interleaved)


def test_nan_and_inf_stay_in_their_pair() -> None:
    x = torch.ones(1, 1, 2, 8)
    x[0, 0, 1, 1] = float("nan")
    got = run_checked("rope", lambda: rope(x, rope_frequencies(8)), "a nan")
    assert got.isnan().nonzero().tolist() == [[0, 0, 1, 1], [0, 0, 1, 5]]


def test_frequencies_are_those_of_the_formula() -> None:
    table = rope_frequencies(8, base=500000.0, scale=0.25)
    turns = 0.25 * _radians(8, 500000.0) / (2 * torch.pi)
    assert table.shape == (2, 4)
    assert table.dtype == torch.float32
    assert float(((table.double().sum(0) - turns) / turns).abs().max()) < 2.0**-46
    assert torch.equal(rope_table(0.25 * _radians(8, 500000.0)), table)


def test_empty_tensors_have_an_empty_result() -> None:
    for shape in ((0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4)):
        assert rope(torch.empty(shape), rope_frequencies(4)).shape == shape


def test_device_bytes_are_the_least_possible_but_for_frequencies() -> None:
    x = _draw(2, 8, 5, 32)
    with metalsim.options(check=True) as session:
        rope(x, rope_frequencies(32), 3)
    threads = 2 * 2 * 5 * 16  # a pair of four heads: one offset and two floats each
    assert session.counters.device_read == 4 * x.numel() + 12 * threads
    assert session.counters.device_written == 4 * x.numel()


@pytest.mark.parametrize(
    ("x", "table", "offset", "said"),
    [
        (torch.ones(1, 1, 1, 4, dtype=torch.int32), rope_frequencies(4), 0, "float32, float16 or bfloat16"),
        (torch.ones(1, 1, 4), rope_frequencies(4), 0, "length, width"),
        (torch.ones(1, 1, 1, 4), rope_frequencies(6), 0, "at most 2 fit"),
        (torch.ones(1, 1, 1, 4), torch.ones(2), 0, "rope_frequencies makes it"),
        (torch.ones(1, 1, 1, 4), rope_frequencies(4), -1, "positions go from -1"),
        (torch.ones(1, 1, 2, 4), rope_frequencies(4), MOST_POSITION - 1, "allowed are 0 to"),
        (torch.ones(2, 1, 1, 4), rope_frequencies(4), torch.tensor([1, 2, 3]), "is needed"),
        (torch.ones(2, 1, 1, 4), rope_frequencies(4), torch.tensor([1, -2]), "positions go from -2"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    x: torch.Tensor, table: torch.Tensor, offset: int | torch.Tensor, said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        rope(x, table, offset)


def test_a_table_of_impossible_frequencies_is_refused() -> None:
    for arguments in (
        {"rotary": 3},
        {"rotary": -2},
        {"rotary": 4, "base": 0.0},
        {"rotary": 4, "scale": -1.0},
    ):
        with pytest.raises(InvalidInputError, match="even number"):
            rope_frequencies(**arguments)
