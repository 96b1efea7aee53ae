"""The express lane: callers that find nothing waiting run their request themselves.

The way through a worker costs two thread switches, and with them two hand-overs of the GIL. A captured graph
needs neither the worker nor the thread's own settings, so a caller may launch it and wait for it on its own
thread. A few runs exist (``QueueOptions.express``); each is used by one caller at a time (I1), and whoever
holds them all knows that none is in use: that is how closing waits for them.

A run that succeeds or fails ends its request exactly once, by returning or raising (I2). What happened is
written to a log, which the scheduler adds to its counters when somebody asks.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from steelworks import seam
from steelworks.errors import InvalidInputError
from steelworks.plans.plan import MISS, Express

# Seconds for which the lane stays closed after it was too short: with more callers than runs, batches are
# faster than one graph a caller, and a mixture of both is slower than either.
_CLOSED_SECONDS = 0.02
_LOG_LIMIT = 8192  # entries after which a caller asks for the log to be added up


class ExpressLane:
    """Runs that callers use on their own threads; see the module's text.

    Args:
        runs: the runs; none for a lane that is always closed.
    """

    def __init__(self, runs: Sequence[Express]) -> None:
        self._free: queue.SimpleQueue[Express] = queue.SimpleQueue()
        self._size = len(runs)
        # Two that gather the runs at the same time would each wait for those that the other has.
        self._settling = threading.Lock()
        self._closed_until = 0.0
        self.log: deque[tuple[float, float, bool]] = deque()
        for run in runs:
            self._free.put(run)

    @property
    def running(self) -> int:
        """How many runs are in use now."""
        return self._size - self._free.qsize()

    @property
    def log_is_long(self) -> bool:
        """Whether the log should be added up soon."""
        return len(self.log) > _LOG_LIMIT

    def run(self, request: Any) -> Any:
        """The request's result, or ``MISS`` if it has to take the way through a worker.

        Raises what the run raises.
        """
        started = time.perf_counter()
        if started < self._closed_until:
            return MISS
        try:
            express = self._free.get_nowait()
        except queue.Empty:
            self._closed_until = started + _CLOSED_SECONDS
            return MISS
        result: Any = MISS
        failed = True
        try:
            if seam.watched():
                seam.before("Direct", self)
            result = express.run(request)
            failed = False
        except InvalidInputError:
            failed = False  # refused at the door, hence never accepted
            raise
        finally:
            if failed or result is not MISS:
                self.log.append((started, time.perf_counter(), not failed))
            self._free.put(express)
            if seam.watched():
                seam.after("Direct", self, ran=failed or result is not MISS)
        return result

    def settle(self, timeout: float | None = None, keep: bool = False) -> bool:
        """Wait until no run is in use; False on timeout.

        Args:
            timeout: seconds; None waits as long as it takes.
            keep: keep all runs, so that none is used any more.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if not self._settling.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
            return False
        held = []
        try:
            for _ in range(self._size):
                left = None if end is None else max(0.0, end - time.monotonic())
                try:
                    held.append(self._free.get(timeout=left) if left != 0.0 else self._free.get_nowait())
                except queue.Empty:
                    return False
            if keep:
                self._size = 0
                for run in held:
                    run.close()
                held.clear()
            return True
        finally:
            for run in held:
                self._free.put(run)
            self._settling.release()
