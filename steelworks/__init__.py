"""Steelworks: call one PyTorch model from many threads, safely and fast.

See :class:`BatchQueue` (the queue), :func:`batch_inference` (its short form), :func:`plan` (a model made
ready for one device) and :class:`StreamPool` (a stream for each thread).
"""

from __future__ import annotations

from steelworks.batching import BatchQueue, QueueOptions, QueueStatistics, batch_inference, metrics
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
from steelworks.plans import Padding, Plan, plan
from steelworks.streams import StreamPool, StreamPoolStatistics

__version__ = "0.1.0.dev0"

__all__ = [
    "BatchQueue",
    "DeadlineExceededError",
    "DeviceRuleError",
    "ForkedProcessError",
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
    "batch_inference",
    "metrics",
    "plan",
]
