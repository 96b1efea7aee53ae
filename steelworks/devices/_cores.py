"""How many cores this process may use: affinity, and the quota of its control group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(cgroup_root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> int:
    """Return the number of cores this process may keep busy, at least 1.

    The smallest of the affinity mask (or ``PYTHON_CPU_COUNT`` where Python knows it) and the
    quotas of the process's control groups, rounded down: a thread more than the quota allows
    is throttled, which costs more than the fraction of a core it would have used.

    Args:
        cgroup_root: where the control groups are mounted.
        membership: the file that names this process's control groups.
    """
    cores = _schedulable_cores()
    for quota in _quotas(Path(cgroup_root), Path(membership)):
        cores = min(cores, int(quota))
    return max(1, cores)


def _schedulable_cores() -> int:
    process_cpu_count = getattr(os, "process_cpu_count", None)  # Python 3.13
    if process_cpu_count is not None:
        return int(process_cpu_count() or 1)
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    if affinity is not None:
        return len(affinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path, membership: Path) -> Iterator[float]:
    """Yield every quota, in cores, that the process's control groups and their parents set."""
    for directory in _group_directories(root, membership):
        limit = _read(directory / "cpu.max").split()
        if len(limit) == 2 and limit[0] != "max":
            yield _ratio(limit[0], limit[1])
        quota = _read(directory / "cpu.cfs_quota_us")
        if quota and not quota.startswith("-"):
            yield _ratio(quota, _read(directory / "cpu.cfs_period_us"))


def _group_directories(root: Path, membership: Path) -> Iterator[Path]:
    for line in _read(membership).splitlines():
        controllers, _, group = line.partition(":")[2].partition(":")
        mount = root / controllers if controllers else root
        if controllers and "cpu" not in controllers.split(","):
            continue
        directory = mount / group.lstrip("/")
        while directory != mount and mount in directory.parents:
            yield directory
            directory = directory.parent
        yield mount


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _ratio(quota: str, period: str) -> float:
    try:
        return float(quota) / float(period)
    except (ValueError, ZeroDivisionError):
        return float("inf")
