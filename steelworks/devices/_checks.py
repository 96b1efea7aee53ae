"""Checks that every device makes of its arguments."""

from __future__ import annotations

from steelworks.errors import InvalidInputError


def check_worker(index: int, count: int) -> None:
    """Raise InvalidInputError unless ``index`` is one of ``count`` workers."""
    if count < 1 or not 0 <= index < count:
        raise InvalidInputError(
            f"worker {index} of {count} was given; the index must be 0 or more and below the count"
        )
