"""The checks of the Triton kernels: what they say of a few kernels, and of bugs planted in them."""

from __future__ import annotations

import importlib.util

import pytest

from verification.triton import planted, ptx

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

NEEDS_SENTRYWARD = pytest.mark.skipif(
    importlib.util.find_spec("sentryward") is None, reason="sentryward is not installed"
)
BUGS = {bug.what: bug for bug in planted.bugs()}


@pytest.mark.evidence
@NEEDS_SENTRYWARD
def test_a_softmax_and_a_norm_are_free_of_races() -> None:
    found = planted.run("races", r"^(softmax 3x50|norms rms stats)$")
    assert found["wrong"] == []
    assert found["counts"]["undecided"] == 0
    assert found["counts"]["free"] + found["counts"]["free without copies"] == 2


@NEEDS_SENTRYWARD
def test_most_barriers_of_a_softmax_are_needed() -> None:
    counts = planted.run("barriers", r"^softmax 3x50$")["counts"]
    assert counts["flagged"] >= 1
    assert counts["undecided"] == 0
    assert counts["flagged"] + counts["not needed"] == counts["barriers"]


@pytest.mark.evidence
def test_accesses_of_a_few_kernels_stay_in_their_operands() -> None:
    found = planted.run("bounds", r"^(softmax 3x50|topk 2x100 5|int8 1x40x130)$")
    assert found["wrong"] == []
    assert found["counts"]["accesses"] > 0


@pytest.mark.evidence
def test_kernels_that_start_early_read_what_is_settled() -> None:
    found = planted.run("early", r"^(softmax 3x50|linear 16x32 in 1 early)$")
    assert found["wrong"] == []
    assert found["counts"]["early"] == 1


@pytest.mark.parametrize(
    "what",
    [
        "softmax reads one element behind the row",
        "two programs of softmax store the same row",
        "no barrier after the places of the chosen are written",
        "weights that may be changing count as settled",
        "softmax never waits",
    ],
)
def test_a_planted_bug_is_noticed(what: str) -> None:
    assert planted.missed(BUGS[what]) == ""


def test_an_entry_that_no_longer_fits_the_code_is_missed() -> None:
    bug = next(iter(BUGS.values()))
    stale = planted.Bug(**{**vars(bug), "find": "what stands nowhere"})
    assert "stands 0 times" in planted.missed(stale)


_STORES = """
.visible .entry k(.param .u64 k_param_0)
.reqntid 64
{
\tmov.u32 %r1, %tid.x;
\tand.b32 %r2, %r1, 31;
\tshl.b32 %r3, %r2, 2;
\tld.param.b64 %rd1, [k_param_0];
\tst.shared.b32 [%r3], VALUE;
\tret;
}
"""


def test_threads_that_store_one_value_to_one_place_are_taken_for_one() -> None:
    text, copies = ptx.without_copies(_STORES.replace("VALUE", "%r2"), 64)
    assert copies == 1
    assert "and.b32 %first1, %first1, 32;" in text


def test_threads_that_store_different_values_to_one_place_are_not() -> None:
    text, copies = ptx.without_copies(_STORES.replace("VALUE", "%r1"), 64)
    assert copies == 0
    assert "%alone" not in text
