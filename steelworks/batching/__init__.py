"""The dynamic-batching queue."""

from __future__ import annotations

from steelworks.batching import metrics
from steelworks.batching.options import QueueOptions
from steelworks.batching.queue import BatchQueue
from steelworks.batching.short import batch_inference
from steelworks.batching.statistics import HistogramSnapshot, QueueStatistics

__all__ = ["BatchQueue", "HistogramSnapshot", "QueueOptions", "QueueStatistics", "batch_inference", "metrics"]
