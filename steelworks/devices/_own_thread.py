"""A block that sets something of its thread, and may end in another.

A generator suspended inside a ``with`` block is closed by whatever thread collects it. What the
block set belongs to the thread that entered it; the closing thread's own must stay as it is.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from types import TracebackType


class OwnThread(AbstractContextManager[None]):
    """Enters and leaves ``block``; leaves it alone when another thread does the leaving.

    Args:
        block: a context manager that does nothing when it is dropped, so no generator.
    """

    __slots__ = ("_block", "_thread")

    def __init__(self, block: AbstractContextManager[object]) -> None:
        self._block = block
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self._block.__enter__()
        self._thread = threading.current_thread()  # and not its ident, which a later thread may get

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is threading.current_thread():
            self._block.__exit__(kind, error, trace)
