"""What the kernels' tests share: error bounds, poisoned outputs, views with stale data behind, schedules, counts.

A test of a family computes a float64 reference, runs the host function (``run_poisoned`` or ``run_checked``) and
compares (``assert_close``)::

    out = run_checked("softmax", lambda: softmax(view, -1), case)
    assert_close("softmax", out, reference, case, terms=length, magnitude=1.0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch

from steelworks import metalsim
from steelworks.kernels.metal import _launch

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
#: Half the distance between neighbours at 1: what rounding to the dtype costs, relative.
ROUNDOFF: Final = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
#: Absolute error that denormals may bring: a GPU may flush float's (and so bfloat's), not half's.
SMALLEST: Final = {torch.float32: 2.0**-126, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}
#: schedule, order, seed: the four ways in which every checked case runs.
SCHEDULES: Final = (
    ("ring", "forward", 0),
    ("run_ahead", "forward", 0),
    ("run_ahead", "reverse", 0),
    ("run_ahead", "shuffled", 7),
)


@dataclass
class Total:
    """How much of a family was run: results compared with the reference, launches in checking mode."""

    compared: int = 0
    checked: int = 0


TOTALS: Final[dict[str, Total]] = {}


def total(family: str) -> Total:
    """The counters of a family."""
    return TOTALS.setdefault(family, Total())


def bound(
    dtype: torch.dtype,
    reference: torch.Tensor,
    terms: int,
    magnitude: torch.Tensor | float,
    extra: float = 0.0,
) -> torch.Tensor:
    """How far from the float64 reference a result may be, element by element.

    The result is a sum of ``terms`` terms in float32, in any order, rounded once to ``dtype``. Every one of the
    ``terms`` roundings (and ten more, for what is done besides the sum) costs at most 2^-24 of the sum of the
    terms' sizes.

    Args:
        dtype: Of the result.
        reference: The exact result, float64.
        terms: How many are summed (K of a product, the length of a row).
        magnitude: The sum of the terms' absolute values, as the result's shape or a number.
        extra: Additional relative error, of ``magnitude``: of an approximated function.
    """
    unit = ROUNDOFF[torch.float32]
    inner = (terms + 10) * unit
    size = torch.as_tensor(magnitude, dtype=torch.float64)
    accumulated = (inner / (1 - inner) + extra) * size
    finite = torch.nan_to_num(reference.double(), nan=0.0, posinf=0.0, neginf=0.0).abs()
    return accumulated + ROUNDOFF[dtype] * (finite + accumulated) + SMALLEST[dtype]


def assert_close(
    family: str,
    got: torch.Tensor,
    reference: torch.Tensor,
    case: object,
    *,
    terms: int,
    magnitude: torch.Tensor | float | None = None,
    extra: float = 0.0,
) -> None:
    """Fails, naming the case, unless every element is within ``bound``, and NaN and inf are where they should be.

    An element whose reference rounds to inf in the dtype, or is within the bound of doing so, may be inf.
    ``magnitude`` is the size of the reference by default. Counts one compared case.
    """
    total(family).compared += 1
    want = reference.double()
    assert got.shape == want.shape, f"{case}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if got.numel() == 0:
        return
    have = got.detach().cpu().double()
    if magnitude is None:
        magnitude = torch.nan_to_num(want, nan=0.0, posinf=0.0, neginf=0.0).abs()
    allowed = bound(got.dtype, want, terms, magnitude, extra).nan_to_num(nan=float("inf"))
    most = torch.finfo(got.dtype).max
    good = (have - want).abs() <= allowed
    good |= have.isnan() & want.isnan()
    good |= have == want
    good |= have.isinf() & (have.sign() == want.sign()) & (want.abs() + allowed >= most)
    if bool(good.all()):
        return
    at = tuple(int(i) for i in (~good).nonzero()[0])
    limit = allowed.expand_as(want)[at]
    raise AssertionError(
        f"{case}: {int((~good).sum())} of {got.numel()} elements differ; the first at {at}: "
        f"{have[at].item():.9g} instead of {want[at].item():.9g}, allowed {limit.item():.3g}"
    )


def assert_equal(family: str, got: torch.Tensor, reference: torch.Tensor, case: object) -> None:
    """Fails, naming the case, unless dtypes, shapes and values are the same (NaN equals NaN). Counts one case."""
    total(family).compared += 1
    have = got.detach().cpu()
    assert have.shape == reference.shape, (
        f"{case}: shape {tuple(have.shape)} instead of {tuple(reference.shape)}"
    )
    assert have.dtype == reference.dtype, f"{case}: {have.dtype} instead of {reference.dtype}"
    same = have == reference
    if reference.is_floating_point():
        same |= have.isnan() & reference.isnan()
    if bool(same.all()):
        return
    at = tuple(int(i) for i in (~same).nonzero()[0])
    raise AssertionError(
        f"{case}: {int((~same).sum())} of {have.numel()} elements differ; the first at {at}: "
        f"{have[at].item()} instead of {reference[at].item()}"
    )


def embedded(
    values: torch.Tensor, before: int = 3, after: int = 5, stale: float = float("nan")
) -> torch.Tensor:
    """The same values as a dense view at an offset, with stale data before and behind."""
    storage = _stale(before + values.numel() + after, values, stale)
    view = storage[before : before + values.numel()].view(values.shape)
    return view.copy_(values)


def padded_rows(
    values: torch.Tensor, pad: int = 3, before: int = 3, stale: float = float("nan")
) -> torch.Tensor:
    """The same values as a view whose rows (last dimension) are ``pad`` apart, with stale data in between."""
    shape = (*values.shape[:-1], values.shape[-1] + pad)
    count = 1
    for size in shape:
        count *= size
    storage = _stale(before + count + 5, values, stale)
    view = storage[before : before + count].view(shape)[..., : values.shape[-1]]
    return view.copy_(values)


def _stale(count: int, like: torch.Tensor, stale: float) -> torch.Tensor:
    value: float | int = stale
    if not like.dtype.is_floating_point:
        value = 1 if like.dtype == torch.bool else torch.iinfo(like.dtype).max
    return torch.full((count,), value, dtype=like.dtype, device=like.device)


def reset_allocator() -> None:
    """Outputs are plain again."""
    _launch._allocate = _PLAIN


_PLAIN: Final = _launch._allocate


@contextmanager
def poisoned(session: metalsim.Session | None = None) -> Iterator[None]:
    """Outputs allocated in this block are full of NaN (or of the largest integer) and lie between stale data.

    With a session of checking mode, every byte of them must be written exactly once.
    """

    def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        like = torch.empty(shape, dtype=dtype, device=device)
        output = embedded(like, before=4, after=4)
        value = (
            float("nan")
            if dtype.is_floating_point
            else (True if dtype == torch.bool else torch.iinfo(dtype).max)
        )
        output.fill_(value)
        if session is not None and output.numel():
            session.expect(output)
        return output

    _launch._allocate = allocate
    try:
        yield
    finally:
        reset_allocator()


def run_poisoned(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Runs a host function with poisoned outputs, unchecked (fast)."""
    with poisoned():
        return run()


def run_checked(
    family: str,
    run: Callable[[], torch.Tensor],
    case: object,
    schedules: tuple[tuple[str, str, int], ...] = SCHEDULES,
) -> torch.Tensor:
    """Runs a host function in checking mode under every schedule; no findings, and the same bits each time.

    Outputs are poisoned; each byte must be written exactly once. Counts each run. Returns the result.
    """
    first: torch.Tensor | None = None
    for schedule, order, seed in schedules:
        with metalsim.options(check=True, schedule=schedule, order=order, seed=seed) as session:
            with poisoned(session):
                result = run()
        total(family).checked += 1
        where = f"{case} under {schedule}, {order}, seed {seed}"
        assert not session.findings, f"{where}:\n{session.report().text()}"
        if first is None:
            first = result
        else:
            assert same_bits(first, result), f"{where}: the result is not that of the first schedule"
    assert first is not None, "no schedule was given"
    return first


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal, a NaN being equal to a NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        and (not a.dtype.is_floating_point or torch.equal(a.isnan(), b.isnan()))
    )
