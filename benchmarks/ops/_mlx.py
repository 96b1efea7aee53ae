"""MLX's CUDA backend as a peer: a chain of calls, each on the result of the one before, evaluated at once.

MLX makes CUDA graphs of what it evaluates by itself, on streams of its own, so its calls can't be captured in ours. The
time of a chain, divided by its length, is that of the same work: on the device, or on the host where that is longer.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from benchmarks._common import Spread

REPEATS = 7
Chains = dict[str, Callable[[], Spread]]


def _mlx() -> Any:
    """``mlx.core`` with a CUDA device, or None."""
    try:
        core: Any = importlib.import_module("mlx.core")
        return core if core.cuda.is_available() else None
    except (ImportError, AttributeError, OSError):
        return None


def _chain(make: Callable[[Any], tuple[Any, Callable[[Any], Any]]], length: int) -> Chains:
    """Under the name ``mlx``, if it is there: ``make`` gives the first array and the step."""
    core = _mlx()
    if core is None:
        return {}

    def measure() -> Spread:
        first, step = make(core)
        core.eval(first)
        taken = []
        for _ in range(REPEATS + 2):  # the first two compile and fill caches
            began = time.perf_counter()
            value = first
            for _ in range(length):
                value = step(value)
            core.eval(value)
            core.synchronize()
            taken.append((time.perf_counter() - began) * 1e6 / length)
        return Spread.of(taken[2:])

    return {"mlx": measure}


def _drawn(core: Any, *shape: int, size: float = 1.0) -> Any:
    return (core.random.normal(shape) * size).astype(core.bfloat16)


def softmax(rows: int, columns: int, length: int) -> Chains:
    """Of each row."""
    return _chain(lambda core: (_drawn(core, rows, columns), lambda x: core.softmax(x, axis=-1)), length)


def norm(op: str, rows: int, columns: int, residual: bool, length: int) -> Chains:
    """``rms_norm`` or ``layer_norm`` with weight (and bias); with a residual, of a sum."""

    def make(core: Any) -> tuple[Any, Callable[[Any], Any]]:
        weight, bias, beside = _drawn(core, columns), _drawn(core, columns), _drawn(core, rows, columns)
        core.eval(weight, bias, beside)

        def step(x: Any) -> Any:
            h = x + beside if residual else x
            if op == "rms_norm":
                return core.fast.rms_norm(h, weight, 1e-5)
            return core.fast.layer_norm(h, weight, bias, 1e-5)

        return _drawn(core, rows, columns), step

    return _chain(make, length)


def lora(m: int, d: int, r: int, length: int) -> Chains:
    """A linear layer with its adapter."""

    def make(core: Any) -> tuple[Any, Callable[[Any], Any]]:
        w, a = _drawn(core, d, d, size=d**-0.5), _drawn(core, r, d, size=d**-0.5)
        b = _drawn(core, d, r, size=0.1 * r**-0.5)
        core.eval(w, a, b)
        return _drawn(core, m, d), lambda x: x @ w.T + 2.0 * ((x @ a.T) @ b.T)

    return _chain(make, length)


def int4(m: int, size: int, group: int, length: int) -> Chains:
    """A linear layer with a weight in 4 bits."""

    def make(core: Any) -> tuple[Any, Callable[[Any], Any]]:
        weight = core.quantize(_drawn(core, size, size, size=size**-0.5), group_size=group, bits=4)
        core.eval(*weight)

        def step(x: Any) -> Any:
            return core.quantized_matmul(x, *weight, transpose=True, group_size=group, bits=4)

        return _drawn(core, m, size), step

    return _chain(make, length)
