"""What the tests of the operation families share: drawn tensors, error bounds, checks that every operation passes."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from hypothesis import strategies as st

#: Half the distance between neighbours at 1.
ROUNDOFF: Final = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
SIZES: Final = st.sampled_from((1, 2, 3, 5, 8, 16, 17, 33))
#: 0, the identity, tiny, large, not finite.
EDGES: Final = (0.0, -0.0, 1.0, -1.0, 1e-10, 1e10, math.nan, math.inf, -math.inf)
LAYOUTS: Final = ("dense", "rows apart", "transposed", "every other", "reversed dimensions", "expanded")
THREADS: Final = 8


def draw(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, edges: Sequence[float] = ()
) -> torch.Tensor:
    """Normally distributed numbers (integers from -9 to 9, or booleans); some replaced by edge values."""
    made = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=made) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(0 if dtype == torch.uint8 else -9, 10, shape, generator=made).to(dtype)
    drawn = torch.randn(shape, generator=made, dtype=torch.float64)
    if edges and drawn.numel():
        values = torch.tensor(edges, dtype=torch.float64)
        chosen = values[torch.randint(len(edges), shape, generator=made)]
        drawn = torch.where(torch.rand(shape, generator=made) < 0.2, chosen, drawn)
    return drawn.to(dtype)


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values (but "expanded": its first row for all) with other strides; what lies between is NaN or large."""
    if x.dim() == 0 or layout == "dense":
        return x
    stale: float | int = math.nan if x.is_floating_point() else 1
    if layout == "rows apart":
        room = torch.full((*x.shape[:-1], x.shape[-1] + 3), stale, dtype=x.dtype)
        return room[..., 1 : x.shape[-1] + 1].copy_(x)
    if layout == "transposed":
        return x.mT.contiguous().mT if x.dim() > 1 else x
    if layout == "every other":
        room = torch.full((*x.shape[:-1], 2 * x.shape[-1]), stale, dtype=x.dtype)
        return room[..., ::2].copy_(x)
    if layout == "reversed dimensions":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    assert layout == "expanded", layout
    return x[:1].expand(x.shape)


def assert_within(
    got: torch.Tensor,
    want: torch.Tensor,
    *,
    terms: int = 1,
    magnitude: torch.Tensor | float | None = None,
    roundings: int = 1,
    case: object = "",
) -> None:
    """Fails unless every element is near the float64 reference, and NaN and infinities are where they should be.

    Args:
        got: The result.
        want: The reference.
        terms: How many terms are summed in float32.
        magnitude: The sum of the terms' sizes; by default the size of the reference.
        roundings: How often the result, or a part of it, is rounded to its dtype.
        case: Named in the message.
    """
    assert got.shape == want.shape, f"{case}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    have, exact = got.detach().double(), want.double()
    finite = exact.nan_to_num(0.0, 0.0, 0.0).abs()
    size = finite if magnitude is None else torch.as_tensor(magnitude, dtype=torch.float64)
    size = torch.maximum(size.nan_to_num(0.0, 0.0, 0.0), finite)
    inner = ROUNDOFF[torch.float64 if got.dtype == torch.float64 else torch.float32]
    allowed = ((terms + 16) * inner + roundings * ROUNDOFF[got.dtype]) * size
    allowed = allowed + {torch.float16: 2.0**-24}.get(got.dtype, 2.0**-126) * roundings
    most = torch.finfo(got.dtype).max
    good = ((have - exact).abs() <= allowed) | (have == exact) | (have.isnan() & exact.isnan())
    good |= have.isinf() & (have.sign() == exact.sign()) & (exact.abs() + allowed >= most)
    if bool(good.all()):
        return
    at = tuple(int(i) for i in (~good).nonzero()[0])
    raise AssertionError(
        f"{case}: {int((~good).sum())} of {have.numel()} elements differ; the first at {at}: {have[at].item():.9g} "
        f"instead of {exact[at].item():.9g}, allowed {allowed.expand_as(exact)[at].item():.3g}"
    )


def assert_same(got: Any, want: Any, case: object = "") -> None:
    """Fails unless results (tensors, or tuples of them) have the same dtype, shape and values; NaN equals NaN."""
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor), f"{case}: {type(got)}"
        assert (got.dtype, got.shape) == (want.dtype, want.shape), f"{case}: {got.dtype} {tuple(got.shape)}"
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda m: f"{case}: {m}")
        return
    assert len(got) == len(want), case
    for left, right in zip(got, want, strict=True):
        assert_same(left, right, case)


class _Calls(torch.nn.Module):
    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.run(*tensors)


def assert_compiles_and_exports(run: Callable[..., Any], *tensors: torch.Tensor) -> None:
    """What ``torch.compile`` and ``torch.export`` make of a function has its results, and no graph break."""
    want = run(*tensors)
    torch._dynamo.reset()
    assert_same(torch.compile(run, backend="aot_eager", fullgraph=True)(*tensors), want, "compiled")
    program = torch.export.export(_Calls(run), tensors)
    assert_same(program.module()(*tensors), want, "exported")


def assert_threads_agree(run: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
    """Many threads at once get what one gets; each calls with all arguments, beginning at another."""
    want = [run(*a) for a in arguments]
    gate = threading.Barrier(THREADS)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            gate.wait(timeout=60)
            for step in range(3 * len(arguments)):
                at = (number + step) % len(arguments)
                assert_same(run(*arguments[at]), want[at], f"thread {number}, arguments {at}")
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "a thread did not end"
    if problems:
        raise problems[0]
