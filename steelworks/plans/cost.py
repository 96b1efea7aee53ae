"""What a batch costs, and which batches to run: measured, never guessed.

Two models of cost. :class:`FittedCost` is for devices that run any shape: it fits
``t(B, L) = a + b B L + c B L**2`` (a launch, the linear layers, attention) to the batches that ran.
:class:`BucketTable` is for captured plans, which run a fixed set of shapes: it holds the time
measured for each and answers with the set of runs whose times add up to the least.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_FORGET = 0.995  # weight an observation keeps after each later one: the last few hundred count
_RIDGE = 1e-9


class FittedCost:
    """Least squares over the batches seen so far, newer ones weighing more. Thread-safe.

    Before anything was observed the prediction is ``rows * length`` in arbitrary units, which
    orders batches by size: enough to choose among them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gram = [[0.0] * 3 for _ in range(3)]
        self._moment = [0.0] * 3
        self._scale = (1.0, 1.0, 1.0)
        self._coefficients = (0.0, 1.0, 0.0)
        self._fitted = 0
        self._seen = 0

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """``(a, b, c)`` of the fit, in seconds; fitted anew if batches were observed since."""
        with self._lock:
            if self._fitted != self._seen:
                solved = _solve_nonnegative(self._gram, self._moment)
                self._coefficients = tuple(s * k for s, k in zip(solved, self._scale, strict=True))  # type: ignore[assignment]
                self._fitted = self._seen
            return self._coefficients

    def predict(self, rows: int, length: int) -> float:
        """Seconds for a batch of ``rows`` x ``length`` (length 1 where there is no sequence)."""
        a, b, c = self.coefficients
        work = rows * length
        return a + b * work + c * work * length

    def observe(self, rows: int, length: int, seconds: float) -> None:
        """Add a measured batch (about three microseconds; the fit waits until it is asked for)."""
        work = float(rows * length)
        with self._lock:
            if self._seen == 0:
                self._scale = (1.0, 1.0 / work, 1.0 / (work * length))
            x = (1.0, work * self._scale[1], work * length * self._scale[2])
            for i in range(3):
                self._moment[i] = self._moment[i] * _FORGET + x[i] * seconds
                row = self._gram[i]
                for j in range(3):
                    row[j] = row[j] * _FORGET + x[i] * x[j]
            self._seen += 1


def _solve_nonnegative(
    gram: Sequence[Sequence[float]], moment: Sequence[float]
) -> tuple[float, float, float]:
    """Non-negative least squares in three unknowns: the best of the eight supports."""
    best: tuple[float, float, float] = (0.0, 0.0, 0.0)
    best_loss = 0.0
    for support in ((0, 1, 2), (0, 1), (0, 2), (1, 2), (1,), (2,), (0,)):
        solution = _solve(
            # Relative to each column's own size: the columns differ by orders of magnitude.
            [[gram[i][j] * (1.0 + _RIDGE if i == j else 1.0) for j in support] for i in support],
            [moment[i] for i in support],
        )
        if solution is None or min(solution) < 0.0:
            continue
        full = [0.0, 0.0, 0.0]
        for place, value in zip(support, solution, strict=True):
            full[place] = value
        loss = sum(
            full[i] * (sum(gram[i][j] * full[j] for j in range(3)) - 2.0 * moment[i]) for i in range(3)
        )
        if loss < best_loss:
            best, best_loss = (full[0], full[1], full[2]), loss
    return best


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Gaussian elimination with pivoting; None where the matrix is singular."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    for column in range(n):
        pivot = max(range(column, n), key=lambda r: abs(rows[r][column]))
        if abs(rows[pivot][column]) < 1e-300:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(column + 1, n):
            factor = rows[r][column] / rows[column][column]
            for c in range(column, n + 1):
                rows[r][c] -= factor * rows[column][c]
    answer = [0.0] * n
    for i in reversed(range(n)):
        answer[i] = (rows[i][n] - sum(rows[i][j] * answer[j] for j in range(i + 1, n))) / rows[i][i]
    return answer


@dataclass(frozen=True)
class Choice:
    """The runs that serve a number of rows at the least total time.

    Attributes:
        runs: the row bucket of each run, the first to be run first.
        seconds: their predicted total.
    """

    runs: tuple[int, ...]
    seconds: float


class BucketTable:
    """The cheapest set of runs for any number of rows, from measured times.

    Args:
        seconds: measured time of each row bucket, for one length. A bucket serves any number of
            rows up to its size; the spare rows are padding.

    Raises:
        ValueError: no buckets, or a time that is not positive.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        if not seconds:
            raise ValueError("no row buckets were given; give at least one batch size")
        if any(size < 1 or time <= 0.0 for size, time in seconds.items()):
            raise ValueError(f"row buckets need sizes of 1 or more and positive times, not {dict(seconds)}")
        self._seconds = dict(sorted(seconds.items()))
        self._best: list[Choice] = [Choice((), 0.0)]
        self._growing = threading.Lock()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The row buckets, ascending."""
        return tuple(self._seconds)

    def best(self, rows: int) -> Choice:
        """The least-time set of runs that serves ``rows`` rows; larger runs come first.

        The table grows as needed, one entry a row count: asking again is a lookup.
        """
        if len(self._best) <= rows:
            with self._growing:
                while len(self._best) <= rows:
                    self._best.append(self._extend(len(self._best)))
        return self._best[rows]

    def _extend(self, rows: int) -> Choice:
        options = []
        for size, time in self._seconds.items():
            rest = self._best[max(0, rows - size)]
            options.append((time + rest.seconds, len(rest.runs), -size, size, rest))
        total, _, _, size, rest = min(options, key=lambda option: option[:3])
        return Choice(tuple(sorted((size, *rest.runs), reverse=True)), total)
