"""The seam for evidence: one hook around every step that another thread can interleave with.

A component of ``streams`` or ``batching`` calls :func:`before` ahead of such a step and
:func:`after` behind it, with the state it observed. The steps carry the names of the actions
in the TLA+ models, so a model's state graph can be replayed on the running code, and a trace
of the running code can be checked against the model.

With no hook installed (production), both are a load and a comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Hook(Protocol):
    """What a test or a checker installs to see, delay or order the steps."""

    def before(self, step: str, subject: object) -> None:
        """Called by the thread that is about to take ``step`` on ``subject``; may block."""

    def after(self, step: str, subject: object, observed: dict[str, Any]) -> None:
        """Called by the same thread right after the step, with the state it observed."""


_hook: Hook | None = None


def watched() -> bool:
    """Whether a hook is installed; a hot path asks before it builds what :func:`after` would report."""
    return _hook is not None


def before(step: str, subject: object) -> None:
    """Announce ``step``; a hook may block here to order threads."""
    if _hook is not None:
        _hook.before(step, subject)


def after(step: str, subject: object, **observed: Any) -> None:
    """Report that ``step`` was taken, and what was observed."""
    if _hook is not None:
        _hook.after(step, subject, observed)


@contextmanager
def installed(hook: Hook) -> Iterator[Hook]:
    """Install ``hook`` for the length of a ``with`` block; one hook at a time."""
    global _hook
    if _hook is not None:
        raise RuntimeError("a seam hook is installed already; leave its 'with' block first")
    _hook = hook
    try:
        yield hook
    finally:
        _hook = None
