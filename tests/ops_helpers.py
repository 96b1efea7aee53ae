"""What the tests of ``steelworks.ops`` share: paths to run on, references, bounds, edge values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch

from steelworks import paths
from steelworks.ops import _examples

FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
#: Half the distance between neighbours at 1.
ROUNDOFF: Final = {
    torch.float64: 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
EDGES: Final = (0.0, 1.0, 1e-10, 1e10, float("nan"), float("inf"), float("-inf"))
#: PyTorch on the CPU, and our Metal kernels in metalsim.
PATHS: Final = ("vendor", "steel")


@contextmanager
def on_path(path: str, *, op: str | None = None) -> Iterator[paths.Record]:
    """CPU tensors take this path in the block; what took which is counted."""
    with ExitStack() as stack:
        if path == "steel":
            stack.enter_context(paths.simulate_metal())
        stack.enter_context(paths.use(path, op=op))
        yield stack.enter_context(paths.record())


def assert_near(
    got: torch.Tensor,
    want: torch.Tensor,
    case: object,
    *,
    terms: int,
    magnitude: torch.Tensor | float | None = None,
) -> None:
    """Fails unless ``got`` is within what rounding to its dtype, and ``terms`` float32 roundings, may cost.

    Args:
        got: The result.
        want: The reference, in float64.
        case: Named in the failure.
        terms: Roundings of intermediate results.
        magnitude: What they are relative to; by default the reference.
    """
    assert got.shape == want.shape, f"{case}: shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    have, exact = got.detach().double(), want.detach().double()
    size = exact.abs() if magnitude is None else torch.as_tensor(magnitude, dtype=torch.float64)
    unit = ROUNDOFF[torch.float64 if got.dtype == torch.float64 else torch.float32]
    inner = (terms + 16) * unit * size.nan_to_num(0.0, 0.0, 0.0)
    allowed = inner + 2 * ROUNDOFF[got.dtype] * (exact.abs().nan_to_num(0.0, 0.0, 0.0) + inner)
    allowed = allowed + torch.finfo(got.dtype).tiny
    good = (have - exact).abs() <= allowed
    good |= (have == exact) | (have.isnan() & exact.isnan())
    good |= (
        have.isinf() & (have.sign() == exact.sign()) & (exact.abs() + allowed >= torch.finfo(got.dtype).max)
    )
    if bool(good.all()):
        return
    at = tuple(int(i) for i in (~good).nonzero()[0])
    raise AssertionError(
        f"{case}: {int((~good).sum())} of {got.numel()} elements differ; the first at {at}: {have[at].item():.9g} "
        f"instead of {exact[at].item():.9g}, allowed {allowed.expand_as(exact)[at].item():.3g}"
    )


def strided(values: torch.Tensor, form: str) -> torch.Tensor:
    """The same values in another layout: ``dense``, ``offset``, ``padded``, ``transposed`` or ``every_other``."""
    if form == "dense" or values.dim() == 0 or values.numel() == 0:
        return values.contiguous()
    if form == "offset":
        storage = torch.full((values.numel() + 7,), float("nan")).to(values.dtype)
        return storage[3 : 3 + values.numel()].view(values.shape).copy_(values)
    if form == "padded":
        storage = torch.full((*values.shape[:-1], values.shape[-1] + 3), float("nan")).to(values.dtype)
        return storage[..., : values.shape[-1]].copy_(values)
    if form == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    storage = torch.full((*values.shape[:-1], 2 * values.shape[-1]), float("nan")).to(values.dtype)
    return storage[..., ::2].copy_(values)


FORMS: Final = ("dense", "offset", "padded", "transposed", "every_other")


def both(run: Callable[[], Any], op: str) -> Iterator[tuple[str, Any]]:
    """The results on both paths, having checked that each was taken."""
    for path in PATHS:
        with on_path(path) as counted:
            result = run()
        assert counted.of(op, path) > 0, f"{op} did not take the {path} path: {counted.counts}"
        yield path, result


def shrink_examples(set_item: Callable[[Any, str, Any], None]) -> None:
    """Makes the calls that ``tune`` measures small, with no size above 16; equal ones of an operation are left out."""
    for name, calls in list(_examples.CALLS.items()):
        small = [_examples.Call(tuple(min(size, 16) for size in call.sizes), call.variant) for call in calls]
        set_item(_examples.CALLS, name, tuple(dict.fromkeys(small)))
