"""Steelworks: call one PyTorch model from many threads, safely and fast.

See :class:`BatchQueue` (the queue), :func:`batch_inference` (its short form), :func:`plan` (a model made
ready for one device) and :class:`StreamPool` (a stream for each thread); :mod:`steelworks.ops` (operations on any
device) and :mod:`steelworks.paths` (which implementation of them runs); :mod:`steelworks.nn` (modules) and
:func:`accelerate` (an existing model takes the selector).

What is exported here is imported when it is first used: torch takes seconds to import, and
``steelworks --version`` does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from steelworks.errors import (
    DeadlineExceededError,
    DeviceRuleError,
    ForkedProcessError,
    InvalidInputError,
    ModelOutputError,
    QueueClosedError,
    QueueFullError,
    SteelworksError,
    StreamPoolClosedError,
    StreamPoolExhaustedError,
    WorkerDiedError,
    WorkerHungError,
)

if TYPE_CHECKING:
    from steelworks import nn, ops, paths
    from steelworks.batching import BatchQueue, QueueOptions, QueueStatistics, batch_inference, metrics
    from steelworks.nn.accelerate import accelerate
    from steelworks.ops.overrides import Installed, install, uninstall
    from steelworks.plans import Padding, Plan, plan
    from steelworks.streams import StreamPool, StreamPoolStatistics

__version__ = "0.1.0.dev0"

__all__ = [
    "BatchQueue",
    "DeadlineExceededError",
    "DeviceRuleError",
    "ForkedProcessError",
    "Installed",
    "InvalidInputError",
    "ModelOutputError",
    "Padding",
    "Plan",
    "QueueClosedError",
    "QueueFullError",
    "QueueOptions",
    "QueueStatistics",
    "SteelworksError",
    "StreamPool",
    "StreamPoolClosedError",
    "StreamPoolExhaustedError",
    "StreamPoolStatistics",
    "WorkerDiedError",
    "WorkerHungError",
    "accelerate",
    "batch_inference",
    "install",
    "metrics",
    "nn",
    "ops",
    "paths",
    "plan",
    "uninstall",
]

_MODULE_OF = {
    "BatchQueue": "steelworks.batching",
    "Installed": "steelworks.ops.overrides",
    "Padding": "steelworks.plans",
    "Plan": "steelworks.plans",
    "QueueOptions": "steelworks.batching",
    "QueueStatistics": "steelworks.batching",
    "StreamPool": "steelworks.streams",
    "StreamPoolStatistics": "steelworks.streams",
    "accelerate": "steelworks.nn.accelerate",
    "batch_inference": "steelworks.batching",
    "install": "steelworks.ops.overrides",
    "metrics": "steelworks.batching",
    "plan": "steelworks.plans",
    "uninstall": "steelworks.ops.overrides",
}
_SUBPACKAGES = ("batching", "devices", "nn", "ops", "paths", "plans", "seam", "streams")

if not TYPE_CHECKING:  # else type checkers would take any name for one that is there

    def __getattr__(name: str) -> object:
        """Import what is exported, the first time it is asked for."""
        if name in _SUBPACKAGES:
            return importlib.import_module(f"steelworks.{name}")
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'steelworks' has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value  # later uses don't come here
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_SUBPACKAGES})
