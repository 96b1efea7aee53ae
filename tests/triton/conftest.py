"""The Triton kernels run on the GPU where there is one, and in Triton's interpreter on CPU tensors elsewhere."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

import pytest
import torch

ON_GPU = torch.cuda.is_available()
_TOO_LATE = not ON_GPU and "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, so before the tests' modules are

#: Half the distance between neighbours at 1; twice that for bfloat16, which the interpreter truncates.
ROUNDOFF = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8 if ON_GPU else 2.0**-7}
#: Below this a result may be 0: float32 is flushed there, float16 has no more bits.
LEAST = {torch.float32: 2.0**-126, torch.float16: 2.0**-24, torch.bfloat16: 2.0**-126}

Near = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | float, str], None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without Triton there is nothing to run."""
    try:
        import triton  # noqa: F401
    except ImportError:
        missing = pytest.mark.skip(reason="triton is not installed")
        for item in items:
            if "triton" in item.path.parts:
                item.add_marker(missing)


@pytest.fixture(autouse=True)
def interpreter() -> None:
    """Fails where Triton was imported before the interpreter could be asked for; NumPy's warnings are not ours."""
    assert not _TOO_LATE, (
        "triton was imported before TRITON_INTERPRET=1 was set: run 'pytest tests/triton' by itself"
    )
    warnings.filterwarnings("ignore", category=RuntimeWarning)


@pytest.fixture
def device() -> str:
    """Where the tensors of a test lie."""
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture
def near() -> Near:
    """Asserts that a result is as wanted (float64) within a bound an element, and NaN and inf exactly where wanted.

    ``bound`` is for the arithmetic in float32; the rounding of the result to its dtype is added.
    """

    def check(got: torch.Tensor, want: torch.Tensor, bound: torch.Tensor | float, case: str) -> None:
        assert got.shape == want.shape, f"{case}: shape {tuple(got.shape)}, {tuple(want.shape)} is wanted"
        assert got.is_contiguous(), f"{case}: the result is not dense"
        unit, least = ROUNDOFF[got.dtype], LEAST[got.dtype]
        got, want = got.detach().double().cpu(), want.detach().double().cpu()
        if isinstance(bound, torch.Tensor):
            bound = bound.detach().double().cpu()
        assert torch.equal(got.isnan(), want.isnan()), f"{case}: NaN in other places"
        infinite = want.isinf()
        assert torch.equal(got[infinite], want[infinite]), f"{case}: infinities in other places"
        allowed = torch.as_tensor(bound).expand_as(want) + unit * want.abs() + least
        plain = want.isfinite()
        excess = ((got - want).abs() - allowed)[plain]
        worst = float(excess.max()) if excess.numel() else 0.0
        assert worst <= 0, f"{case}: {worst:.3g} beyond the bound of {float(allowed[plain].max()):.3g}"

    return check
