"""How close packed and padded results must be."""

from __future__ import annotations

import torch

# Largest difference allowed, as a share of the largest magnitude of the output. The two runs do the
# same sums in another order, so the bound follows the precision of the type that holds the result.
RELATIVE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}


def difference(padded: torch.Tensor, packed: torch.Tensor) -> tuple[float, bool]:
    """Compare two results of the same shape.

    Returns:
        The largest absolute difference, and whether it is within the tolerance. NaN agrees with
        NaN only; results that are not floating point must be equal.
    """
    if padded.shape != packed.shape or padded.dtype != packed.dtype:
        return float("inf"), False
    if padded.numel() == 0:
        return 0.0, True
    if not padded.is_floating_point():
        return (0.0, True) if torch.equal(padded, packed) else (float("inf"), False)
    a, b = padded.double(), packed.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gaps = torch.where(same, 0.0, (a - b).abs())
    if not bool(gaps.isfinite().all()):
        return float("inf"), False
    scale = float(torch.where(a.isfinite(), a.abs(), 0.0).max())
    largest = float(gaps.max())
    return largest, largest <= RELATIVE.get(padded.dtype, 0.0) * scale
