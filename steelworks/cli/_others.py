"""How busy other programs kept the machine while something was measured."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: Cores kept busy by others, from which a figure is said to be disturbed.
DISTURBED = 0.2
_STAT = Path("/proc/stat")  # Linux; elsewhere nothing is known
_SHORTEST = 0.5  # seconds; the counters are too coarse for less


class OtherLoad:
    """Counts from when it is made; this process and its children that have ended are not others."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._machine, self._own = machine_seconds(), own_seconds()

    def cores(self) -> float | None:
        """Cores that others kept busy since then, on average; None where that can't be known."""
        wall, machine = time.perf_counter() - self._began, machine_seconds()
        if machine is None or self._machine is None or wall < _SHORTEST:
            return None
        return max(0.0, (machine - self._machine) - (own_seconds() - self._own)) / wall


def machine_seconds() -> float | None:
    """Seconds that all cores were busy since the machine started; None where that is not told."""
    try:
        fields = _STAT.read_text(encoding="ascii").partition("\n")[0].split()[1:9]
    except (OSError, UnicodeDecodeError):
        return None
    if len(fields) < 8:
        return None
    user, nice, system, _idle, _wait, interrupts, soft, _stolen = map(int, fields)
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Seconds of processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
