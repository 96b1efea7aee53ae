"""Watches a long run from a thread of its own: memory, threads, progress; ends the process on a hang."""

from __future__ import annotations

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psutil

HANG_S = 120.0
ALLOWED_GROWTH_MIB = 32.0
MAX_SAMPLES = 2000


class Watch:
    """Samples until it is left; ``with Watch(progress) as watch``.

    Args:
        progress: gives the number of requests that ended and a dict of further numbers for the sample.
        interval_s: seconds between samples.
        title: begins each printed line.
        total: for the percentage; None where it is not known.
    """

    def __init__(
        self,
        progress: Callable[[], tuple[int, dict[str, Any]]],
        *,
        interval_s: float = 1.0,
        title: str = "",
        total: int | None = None,
    ) -> None:
        self.samples: list[dict[str, Any]] = []
        self._progress = progress
        self._interval = interval_s
        self._title = title
        self._total = total
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._process = psutil.Process()

    def __enter__(self) -> Watch:
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        moved, last, printed = time.perf_counter(), -1, 0.0
        while not self._stop.wait(self._interval):
            now = time.perf_counter()
            done, extra = self._progress()
            sample = {
                "s": round(now - self._began, 1),
                "done": done,
                "rss_mib": round(self._process.memory_info().rss / 2**20, 1),
                "threads": threading.active_count(),
                **extra,
            }
            self.samples.append(sample)
            if len(self.samples) > MAX_SAMPLES:  # keep the curve, halve its resolution
                self.samples[:] = self.samples[::2]
                self._interval *= 2
            if done != last:
                moved, last = now, done
            elif now - moved > HANG_S:
                self._give_up()
            if now - printed >= 5.0:
                self._print(sample)
                printed = now

    def _print(self, sample: dict[str, Any]) -> None:
        share = f" {100 * sample['done'] / self._total:5.1f} %" if self._total else ""
        rate = sample["done"] / max(sample["s"], 1e-9)
        rest = "  ".join(f"{k} {v}" for k, v in sample.items() if k not in ("s", "done"))
        print(
            f"{self._title} {sample['s']:7.1f} s{share} {sample['done']:9d} ended {rate:8.0f}/s  {rest}",
            flush=True,
        )

    def _give_up(self) -> None:
        print(f"FAILED: nothing ended for {HANG_S:.0f} s; the threads are at:", flush=True)
        faulthandler.dump_traceback(file=sys.stdout, all_threads=True)
        sys.stdout.flush()
        os._exit(1)

    def memory_problem(self) -> str | None:
        """What is wrong with the memory curve: the last fifth against the second; None if it is flat."""
        curve = [s["rss_mib"] for s in self.samples]
        fifth = len(curve) // 5
        if not fifth:
            return None
        early, late = statistics.median(curve[fifth : 2 * fifth]), statistics.median(curve[-fifth:])
        if late - early > max(ALLOWED_GROWTH_MIB, 0.05 * early):
            return f"resident memory grew from {early:.0f} to {late:.0f} MiB"
        return None
