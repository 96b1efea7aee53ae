"""What a queue has done so far, as numbers: counters and histograms.

Counting costs little because it is done once a batch: the waiting times of a batch in order of arrival
are sorted already, so each histogram edge is found by bisection and not request by request.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

SECONDS_EDGES = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
ROWS_EDGES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)


@dataclass(frozen=True)
class HistogramSnapshot:
    """A histogram at one moment.

    Attributes:
        edges: upper bounds of the buckets; one more bucket, without bound, follows them.
        counts: observations in each bucket (not cumulated), ``len(edges) + 1`` of them.
        total: sum of all observations, in the histogram's unit.
        count: number of observations.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    total: float
    count: int

    @property
    def mean(self) -> float:
        """Mean observation; 0.0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> float:
        """An upper bound of the ``q`` quantile: its bucket's edge (inf past the last); 0.0 of nothing."""
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q is {q}; it must be from 0 to 1")
        if not self.count:
            return 0.0
        wanted = q * self.count
        seen = 0
        for edge, count in zip(self.edges, self.counts, strict=False):
            seen += count
            if seen >= wanted and seen:
                return edge
        return float("inf")


class Histogram:
    """Counts observations in buckets. Not thread-safe: the scheduler's lock guards it."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._total = 0.0
        self._count = 0

    def observe(self, value: float) -> None:
        """Add one observation."""
        self._counts[bisect_left(self._edges, value)] += 1
        self._total += value
        self._count += 1

    def observe_sorted(self, values: Sequence[float], shift: float = 0.0) -> None:
        """Add many observations given in ascending order, each plus ``shift``."""
        if not values:
            return
        edges, counts, n = self._edges, self._counts, len(values)
        self._total += sum(values) + n * shift
        self._count += n
        done = 0
        place = bisect_left(edges, values[0] + shift)
        while done < n:
            upto = bisect_right(values, edges[place] - shift, done) if place < len(edges) else n
            counts[place] += upto - done
            done = upto
            place += 1

    def snapshot(self) -> HistogramSnapshot:
        """The histogram as it is now."""
        return HistogramSnapshot(self._edges, tuple(self._counts), self._total, self._count)


@dataclass(frozen=True)
class QueueStatistics:
    """A queue at one moment. ``accepted`` = ended + ``pending`` + ``running``, always.

    Attributes:
        accepted: requests taken in since the start.
        completed: ended with a result.
        failed: ended with an exception of the model or of its worker.
        cancelled: cancelled by the caller or by closing, before they ran.
        expired: ended because their deadline passed.
        dropped: ended to make room (``overflow="drop_oldest"``).
        rejected: refused at the door, hence not accepted (``overflow="reject"``).
        pending: waiting now, those over ``max_pending`` included.
        running: in a batch now.
        batches: batches that ran, retries included.
        rows: rows in those batches.
        retries: batches that were run again in halves after an error.
        workers: worker threads now.
        workers_replaced: workers that died or hung and were replaced.
        batch_rows: rows a batch.
        wait_seconds: from arrival to the start of the batch, completed requests.
        run_seconds: from the start of a batch to its end.
        total_seconds: from arrival to the end, completed requests.
    """

    accepted: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    dropped: int
    rejected: int
    pending: int
    running: int
    batches: int
    rows: int
    retries: int
    workers: int
    workers_replaced: int
    batch_rows: HistogramSnapshot
    wait_seconds: HistogramSnapshot
    run_seconds: HistogramSnapshot
    total_seconds: HistogramSnapshot

    @property
    def ended(self) -> int:
        """Requests that ended, each exactly once."""
        return self.completed + self.failed + self.cancelled + self.expired + self.dropped
