"""Prometheus metrics of queues, through prometheus_client.

Nothing is counted twice: a collector reads ``queue.statistics()`` when it is scraped, so metrics cost the hot
path nothing.

Example:
    >>> steelworks.metrics.register(queue)          # into prometheus_client's default registry
    >>> prometheus_client.start_http_server(9000, addr="127.0.0.1")
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from steelworks.batching.queue import BatchQueue
from steelworks.batching.statistics import HistogramSnapshot, QueueStatistics

_LABELS = ("queue",)
_GAUGES = {
    "pending": "Requests that wait for a worker.",
    "running": "Requests in a batch now.",
    "workers": "Worker threads.",
}
_COUNTERS = {
    "accepted": "Requests taken in.",
    "rejected": "Requests refused because too many waited.",
    "batches": "Batches that ran, retries included.",
    "rows": "Rows in the batches that ran.",
    "retries": "Batches run again in halves after an error.",
    "workers_replaced": "Workers that died or hung and were replaced.",
}
_ENDS = ("completed", "failed", "cancelled", "expired", "dropped")
_HISTOGRAMS = {
    "batch_rows": "Rows a batch.",
    "wait_seconds": "Seconds from a request's arrival to the start of its batch.",
    "run_seconds": "Seconds from the start of a batch to its end.",
    "total_seconds": "Seconds from a request's arrival to its end.",
}


class QueueCollector(Collector):
    """Collects the metrics of the queues registered with one registry; the label ``queue`` is their name."""

    def __init__(self) -> None:
        self._queues: dict[str, weakref.ref[BatchQueue]] = {}

    def add(self, queue: BatchQueue) -> None:
        """Collect ``queue`` too.

        Raises:
            ValueError: an open queue of this name is registered already; a closed one gives way.
        """
        name = queue.options.name
        reference = self._queues.get(name)
        known = reference() if reference is not None else None
        if known is not None and known is not queue and not known.closed:
            raise ValueError(
                f"a queue named {name!r} is registered already; give each queue a name of its own"
            )
        self._queues[name] = weakref.ref(queue)

    def remove(self, queue: BatchQueue) -> None:
        """Collect ``queue`` no longer."""
        if (known := self._queues.get(queue.options.name)) is not None and known() is queue:
            del self._queues[queue.options.name]

    def collect(self) -> Iterable[Metric]:
        """One metric family for each number of :class:`QueueStatistics`."""
        now: dict[str, QueueStatistics] = {}
        for name, reference in list(self._queues.items()):
            if (queue := reference()) is None:
                self._queues.pop(name, None)
            else:
                now[name] = queue.statistics()
        for key, text in _GAUGES.items():
            gauge = GaugeMetricFamily(f"steelworks_queue_{key}", text, labels=_LABELS)
            for name, statistics in now.items():
                gauge.add_metric([name], getattr(statistics, key))
            yield gauge
        for key, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"steelworks_queue_{key}", text, labels=_LABELS)
            for name, statistics in now.items():
                counter.add_metric([name], getattr(statistics, key))
            yield counter
        ended = CounterMetricFamily(
            "steelworks_queue_ended", "Requests that ended, by how they ended.", labels=(*_LABELS, "outcome")
        )
        for name, statistics in now.items():
            for outcome in _ENDS:
                ended.add_metric([name, outcome], getattr(statistics, outcome))
        yield ended
        for key, text in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(f"steelworks_queue_{key}", text, labels=_LABELS)
            for name, statistics in now.items():
                snapshot: HistogramSnapshot = getattr(statistics, key)
                histogram.add_metric([name], _cumulated(snapshot), snapshot.total)
            yield histogram


def _cumulated(snapshot: HistogramSnapshot) -> list[tuple[str, float]]:
    buckets: list[tuple[str, float]] = []
    seen = 0
    for edge, count in zip((*map(str, snapshot.edges), "+Inf"), snapshot.counts, strict=True):
        seen += count
        buckets.append((edge, float(seen)))
    return buckets


_collectors: weakref.WeakKeyDictionary[CollectorRegistry, QueueCollector] = weakref.WeakKeyDictionary()


def register(queue: BatchQueue, registry: CollectorRegistry = REGISTRY) -> None:
    """Export ``queue``'s statistics through ``registry``; it is forgotten when the queue is garbage.

    Args:
        queue: a queue; its ``name`` becomes the label ``queue``.
        registry: where to; prometheus_client's default registry if not given.

    Raises:
        ValueError: a live queue of this name is registered already.
    """
    collector = _collectors.get(registry)
    if collector is None:
        collector = _collectors[registry] = QueueCollector()
        registry.register(collector)
    collector.add(queue)


def unregister(queue: BatchQueue, registry: CollectorRegistry = REGISTRY) -> None:
    """Export ``queue`` no longer; nothing happens if it was not registered."""
    collector = _collectors.get(registry)
    if collector is not None:
        collector.remove(queue)
