"""Which variant of a kernel runs when, as data: rows with limits and reasons. The first that holds is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from steelworks.errors import InvalidInputError

Choice = TypeVar("Choice")
#: Least and most by the name of a size, both included; None is no limit.
Limits = Mapping[str, tuple[int | None, int | None]]


def within(sizes: Mapping[str, int], limits: Limits) -> bool:
    """Whether every size that has a limit keeps it."""
    return all(
        (least is None or sizes[name] >= least) and (most is None or sizes[name] <= most)
        for name, (least, most) in limits.items()
    )


@dataclass(frozen=True)
class Row(Generic[Choice]):
    """One row of a table.

    Attributes:
        choice: What to run.
        reason: Why, with figures.
        when: Where it holds.
    """

    choice: Choice
    reason: str
    when: Limits = field(default_factory=dict)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether every limit holds."""
        return within(sizes, self.when)


def pick(table: Sequence[Row[Any]], **sizes: int) -> Any:
    """The choice of the first row whose limits hold.

    Raises:
        InvalidInputError: no row holds.
    """
    for row in table:
        if row.holds(sizes):
            return row.choice
    raise InvalidInputError(f"no kernel variant for {sizes}; the table ends without a row for all sizes")
