"""Keeps two of our streams from being the same vendor stream while both are alive.

torch hands vendor streams out round robin from a fixed pool: its 33rd is the first again. Other
code in the process takes from the same pool, so a stream just made may be one already in use.

A vendor stream that is no longer in use is the first to be taken again: vendor libraries keep workspaces for
each stream that they ever saw (cuBLAS 33 MiB on an H200), so the fewer, the better.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from steelworks.devices.base import Stream

_log = logging.getLogger(__name__)

RawT = TypeVar("RawT")
StreamT = TypeVar("StreamT", bound=Stream)


class LiveStreams(Generic[RawT, StreamT]):
    """The live streams of one device.

    Args:
        limit: how many distinct vendor streams there are.
        make: makes (takes) a vendor stream.
        key: what two handles to the same vendor stream have in common.
        wrap: makes our stream of a number, unique on the device, and a vendor stream.
    """

    def __init__(
        self,
        limit: int,
        make: Callable[[], RawT],
        key: Callable[[RawT], Hashable],
        wrap: Callable[[int, RawT], StreamT],
    ) -> None:
        self._limit = limit
        self._make = make
        self._key = key
        self._wrap = wrap
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._alive: weakref.WeakValueDictionary[Hashable, StreamT] = weakref.WeakValueDictionary()
        self._left: deque[RawT] = deque()  # vendor streams whose stream is gone; finalizers take no lock

    def new(self) -> StreamT:
        """Make a stream; when every vendor stream is in use, share one and say so in the log."""
        with self._lock:
            candidates = itertools.chain(self._leftovers(), (self._make() for _ in range(self._limit)))
            raw = next((raw for raw in candidates if self._key(raw) not in self._alive), None)
            if raw is None:
                raw = self._make()
                _log.warning(
                    "more than %d streams are in use on this device, which has no more; "
                    "two of them share one queue of device work",
                    self._limit,
                )
            stream = self._wrap(next(self._numbers), raw)
            self._alive[self._key(raw)] = stream
            weakref.finalize(stream, self._left.append, raw).atexit = False
            return stream

    def _leftovers(self) -> Iterator[RawT]:
        """Vendor streams that were in use, the latest first; taking one removes it."""
        while self._left:
            yield self._left.pop()
