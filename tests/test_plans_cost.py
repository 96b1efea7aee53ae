"""Costs: the fit finds what made the times, and the bucket table is optimal."""

from __future__ import annotations

import itertools
import random

import pytest
from helpers import in_threads
from hypothesis import given, settings
from hypothesis import strategies as st

from steelworks.plans.cost import BucketTable, Choice, FittedCost

SHAPES = [(rows, length) for rows in (1, 2, 4, 8, 16, 32) for length in (4, 16, 64, 128)]


def fitted(a: float, b: float, c: float, noise: float = 0.0, rounds: int = 20) -> FittedCost:
    cost, dice = FittedCost(), random.Random(1)
    for _ in range(rounds):
        for rows, length in SHAPES:
            seconds = a + b * rows * length + c * rows * length**2
            cost.observe(rows, length, seconds * (1 + noise * dice.uniform(-1, 1)))
    return cost


# ---------------------------------------------------------------- the fit


@pytest.mark.parametrize(
    ("a", "b", "c"),
    [
        (1e-3, 2e-5, 3e-8),
        (1e-5, 1e-6, 0.0),
        (0.0, 1e-4, 0.0),
        (5e-4, 0.0, 0.0),
        (0.0, 0.0, 1e-7),
        (20.0, 3.0, 0.1),
    ],
)
def test_the_fit_recovers_known_coefficients(a: float, b: float, c: float) -> None:
    found = fitted(a, b, c).coefficients
    typical = a + b * 8 * 32 + c * 8 * 32**2
    assert found[0] == pytest.approx(a, rel=1e-3, abs=1e-3 * typical)
    assert found[1] * 256 == pytest.approx(b * 256, rel=1e-3, abs=1e-3 * typical)
    assert found[2] * 8192 == pytest.approx(c * 8192, rel=1e-3, abs=1e-3 * typical)


def test_noise_of_ten_percent_moves_predictions_by_a_few_percent_only() -> None:
    cost = fitted(1e-3, 2e-5, 3e-8, noise=0.1)
    for rows, length in ((1, 32), (8, 32), (32, 128)):
        exact = 1e-3 + 2e-5 * rows * length + 3e-8 * rows * length**2
        assert cost.predict(rows, length) == pytest.approx(exact, rel=0.1)


def test_before_anything_was_seen_batches_are_ordered_by_size() -> None:
    cost = FittedCost()
    assert cost.predict(1, 8) < cost.predict(2, 8) < cost.predict(2, 16)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.integers(1, 512), st.floats(1e-7, 10.0)),
        min_size=1,
        max_size=30,
    )
)
def test_whatever_was_measured_predictions_are_positive_and_grow_with_rows(
    seen: list[tuple[int, int, float]],
) -> None:
    cost = FittedCost()
    for rows, length, seconds in seen:
        cost.observe(rows, length, seconds)
    assert min(cost.coefficients) >= 0.0
    assert max(cost.coefficients) > 0.0
    for length in (1, 32, 512):
        predicted = [cost.predict(rows, length) for rows in (1, 2, 8, 64)]
        assert predicted == sorted(predicted)
        assert predicted[0] >= 0.0


def test_one_shape_alone_is_predicted_as_measured() -> None:
    cost = FittedCost()
    for _ in range(5):
        cost.observe(4, 16, 0.25)
    assert cost.predict(4, 16) == pytest.approx(0.25, rel=1e-3)


def test_the_fit_follows_a_machine_that_became_slower() -> None:
    cost = fitted(1e-3, 1e-5, 0.0, rounds=20)
    for _ in range(40):
        for rows, length in SHAPES:
            cost.observe(rows, length, 3 * (1e-3 + 1e-5 * rows * length))
    assert cost.predict(8, 64) == pytest.approx(3 * (1e-3 + 1e-5 * 512), rel=0.1)


def test_one_outlier_among_hundreds_does_not_turn_the_fit_around() -> None:
    cost = fitted(1e-3, 2e-5, 0.0, rounds=20)
    cost.observe(1, 4, 0.01)  # ten times too slow
    assert cost.predict(32, 128) == pytest.approx(1e-3 + 2e-5 * 4096, rel=0.05)


def test_threads_may_observe_and_predict_at_once() -> None:
    cost = FittedCost()

    def work(index: int) -> None:
        for rows, length in SHAPES * 20:
            cost.observe(rows, length, 1e-3 + 1e-5 * rows * length)
            cost.predict(rows, length)

    assert in_threads(4, work) == [None] * 4
    assert cost.predict(8, 64) == pytest.approx(1e-3 + 1e-5 * 512, rel=0.01)


# ---------------------------------------------------------------- the bucket table


def cheapest_by_trying(seconds: dict[int, float], rows: int) -> float:
    """The least time over all multisets of buckets that hold ``rows`` rows."""
    best = float("inf")
    for runs in range(1, rows + 1):
        for chosen in itertools.combinations_with_replacement(seconds, runs):
            if sum(chosen) >= rows:
                best = min(best, sum(seconds[size] for size in chosen))
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 9), st.floats(0.01, 10.0), min_size=1, max_size=4),
    st.integers(1, 8),
)
def test_the_table_is_as_cheap_as_the_best_of_all_sets_of_runs(seconds: dict[int, float], rows: int) -> None:
    choice = BucketTable(seconds).best(rows)
    assert choice.seconds == pytest.approx(cheapest_by_trying(seconds, rows))
    assert choice.seconds == pytest.approx(sum(seconds[size] for size in choice.runs))
    assert sum(choice.runs) >= rows
    assert list(choice.runs) == sorted(choice.runs, reverse=True)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(1, 64), st.floats(0.01, 10.0), min_size=1, max_size=6), st.integers(1, 200)
)
def test_no_run_could_be_left_out(seconds: dict[int, float], rows: int) -> None:
    runs = BucketTable(seconds).best(rows).runs
    assert sum(runs) - min(runs) < rows


def test_a_bucket_that_is_slower_than_a_larger_one_is_not_used() -> None:
    table = BucketTable({8: 2.0, 16: 1.0})
    assert table.best(3).runs == (16,)
    assert table.best(16).runs == (16,)


def test_two_small_runs_are_taken_where_they_are_cheaper_than_one_large_one() -> None:
    table = BucketTable({1: 1.0, 8: 2.0, 64: 10.0})
    assert table.best(9).runs == (8, 1)
    assert table.best(10).runs == (8, 8)
    assert table.best(60).runs == (64,)
    assert table.best(72).runs == (64, 8)


def test_nothing_costs_nothing() -> None:
    choice = BucketTable({4: 1.0}).best(0)
    assert (choice.runs, choice.seconds) == ((), 0.0)


def test_sizes_are_ascending() -> None:
    assert BucketTable({8: 1.0, 2: 1.0, 4: 1.0}).sizes == (2, 4, 8)


@pytest.mark.parametrize("seconds", [{}, {0: 1.0}, {4: 0.0}, {4: -1.0}])
def test_buckets_that_make_no_sense_are_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="row buckets|no row buckets"):
        BucketTable(seconds)


def test_the_table_grows_under_its_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    table = BucketTable({1: 1.0, 4: 2.0})
    extend, held = table._extend, []

    def noting(rows: int) -> Choice:
        held.append(table._growing.locked())
        return extend(rows)

    monkeypatch.setattr(table, "_extend", noting)
    assert table.best(3).runs == (4,)
    assert held == [True] * 3
    table.best(3)
    assert len(held) == 3, "asking again is a lookup"


def test_of_equally_cheap_sets_the_one_with_fewer_and_larger_runs_is_taken() -> None:
    assert BucketTable({1: 1.0, 2: 2.0, 4: 4.0}).best(4).runs == (4,)
    assert BucketTable({2: 1.0, 4: 1.0}).best(2).runs == (4,)
    assert BucketTable({1: 1.0, 2: 2.0, 3: 3.0}).best(5).runs == (3, 2)


def test_threads_that_ask_at_once_get_the_same_right_answers() -> None:
    seconds = {1: 1.0, 7: 3.0, 20: 6.0}
    expected = [BucketTable(seconds).best(rows) for rows in range(300)]
    for _ in range(10):
        table = BucketTable(seconds)
        outcomes = in_threads(8, lambda index, table=table: [table.best(rows) for rows in range(299, 0, -37)])
        for own in outcomes:
            assert own == [expected[rows] for rows in range(299, 0, -37)]
        assert table._best == expected
