"""What the kernels' tests share, tested itself: each of its checks says no where it must."""

from __future__ import annotations

import pytest
import torch
from _cases import assert_close, assert_equal, bound, poisoned, run_checked

from steelworks import metalsim
from steelworks.kernels.metal import _launch

SOURCE = """
kernel void fill(
    device float* out [[buffer(0)]], constant int& most [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  if (int(i) < most) out[i] = float(i);
}
"""


def filled(most: int) -> torch.Tensor:
    out = _launch.empty((8,), torch.float32, torch.device("cpu"))
    metalsim.compile_shader(SOURCE).fill(out, most, threads=8, arg_casts={1: "int32"})
    return out


def test_an_element_beyond_the_bound_fails() -> None:
    want = torch.linspace(1, 2, 16, dtype=torch.float64)
    allowed = bound(torch.float32, want, terms=4, magnitude=want)
    assert_close("cases", want.float(), want, "as it is", terms=4)
    wrong = want.float()
    wrong[11] += 2 * float(allowed[11])
    with pytest.raises(AssertionError, match=r"1 of 16 elements differ; the first at \(11,\)"):
        assert_close("cases", wrong, want, "one wrong", terms=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_right_only_where_they_are_wanted(value: float) -> None:
    want = torch.ones(4, dtype=torch.float64)
    wrong = want.float()
    wrong[2] = value
    with pytest.raises(AssertionError, match="1 of 4 elements differ"):
        assert_close("cases", wrong, want, "unwanted", terms=1)
    with pytest.raises(AssertionError, match="1 of 4 elements differ"):
        assert_close("cases", want.float(), wrong.double(), "missing", terms=1)
    assert_close("cases", wrong, wrong.double(), "wanted", terms=1)


def test_equal_means_every_bit_of_the_dtype() -> None:
    want = torch.arange(6, dtype=torch.int32)
    assert_equal("cases", want.clone(), want, "the same")
    with pytest.raises(AssertionError, match=r"the first at \(5,\): 4 instead of 5"):
        assert_equal("cases", want.clamp(max=4), want, "one wrong")
    with pytest.raises(AssertionError, match="int64 instead of"):
        assert_equal("cases", want.long(), want, "another dtype")


def test_an_element_that_is_not_written_is_not_right_by_luck() -> None:
    with poisoned():
        out = filled(7)
    assert torch.equal(out[:7], torch.arange(7.0))
    assert out[7].isnan()


def test_an_element_that_is_not_written_is_a_finding() -> None:
    assert torch.equal(run_checked("cases", lambda: filled(8), "whole"), torch.arange(8.0))
    with pytest.raises(AssertionError, match="4 of 32 bytes were never written"):
        run_checked("cases", lambda: filled(7), "one missing")


def test_a_result_that_depends_on_the_schedule_fails() -> None:
    runs = iter(range(8))

    def another_each_time() -> torch.Tensor:
        return filled(8) + next(runs)

    with pytest.raises(AssertionError, match="not that of the first schedule"):
        run_checked("cases", another_each_time, "another each time")
