"""Prometheus metrics and OpenTelemetry spans of a queue."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import steelworks as sw

ROOT = Path(__file__).resolve().parent.parent


def double(x: torch.Tensor) -> torch.Tensor:
    if bool((x < 0).any()):
        raise ValueError("negative")
    return x * 2


def scraped(registry: CollectorRegistry) -> dict[tuple[str, str], float]:
    samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            rest = sample.labels.get("outcome") or sample.labels.get("le") or ""
            samples[sample.name, rest] = sample.value
    return samples


def test_a_scrape_agrees_with_the_queues_statistics() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double, name="scraped") as queue:
        sw.metrics.register(queue, registry)
        for _ in range(5):
            queue(torch.ones(1, 2))
        with pytest.raises(ValueError, match="negative"):
            queue(-torch.ones(1, 2))
        samples, statistics = scraped(registry), queue.statistics()
    assert samples["steelworks_queue_accepted_total", ""] == statistics.accepted == 6
    assert samples["steelworks_queue_ended_total", "completed"] == statistics.completed == 5
    assert samples["steelworks_queue_ended_total", "failed"] == statistics.failed == 1
    assert samples["steelworks_queue_batch_rows_count", ""] == statistics.batch_rows.count
    assert samples["steelworks_queue_wait_seconds_bucket", "+Inf"] == statistics.wait_seconds.count
    assert samples["steelworks_queue_pending", ""] == 0


def test_histogram_buckets_are_cumulated() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double) as queue:
        sw.metrics.register(queue, registry)
        queue(torch.ones(1, 2))
        queue(torch.ones(3, 2))
        samples = scraped(registry)
    assert samples["steelworks_queue_batch_rows_bucket", "1.0"] == 1
    assert samples["steelworks_queue_batch_rows_bucket", "2.0"] == 1
    assert samples["steelworks_queue_batch_rows_bucket", "4.0"] == 2
    assert samples["steelworks_queue_batch_rows_sum", ""] == 4


def test_every_way_of_ending_is_exported() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double) as queue:
        sw.metrics.register(queue, registry)
        samples = scraped(registry)
    ways = {way for name, way in samples if name == "steelworks_queue_ended_total"}
    assert ways == {"completed", "failed", "cancelled", "expired", "dropped"}


def test_several_queues_share_a_registry_and_leave_it_one_by_one() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double, name="a") as a, sw.BatchQueue(double, name="b") as b:
        sw.metrics.register(a, registry)
        sw.metrics.register(b, registry)
        sw.metrics.register(b, registry)
        b(torch.ones(1, 2))
        text = generate_latest(registry).decode()
        assert 'steelworks_queue_accepted_total{queue="a"} 0.0' in text
        assert 'steelworks_queue_accepted_total{queue="b"} 1.0' in text
        with sw.BatchQueue(double, name="b") as namesake:
            sw.metrics.unregister(namesake, registry)  # it never was registered
        sw.metrics.unregister(a, registry)
        text = generate_latest(registry).decode()
        assert 'queue="a"' not in text
        assert 'queue="b"' in text


def test_two_queues_of_one_name_are_refused() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double, name="twin") as first, sw.BatchQueue(double, name="twin") as second:
        sw.metrics.register(first, registry)
        with pytest.raises(ValueError, match="name of its own"):
            sw.metrics.register(second, registry)


def test_a_queue_takes_the_place_of_a_closed_one_of_its_name() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double, name="again") as first:
        sw.metrics.register(first, registry)
    with sw.BatchQueue(double, name="again") as second:
        sw.metrics.register(second, registry)
        second(torch.zeros(1, 2))
        assert scraped(registry)["steelworks_queue_accepted_total", ""] == 1


def test_a_queue_that_is_gone_is_no_longer_scraped() -> None:
    registry = CollectorRegistry()
    queue = sw.BatchQueue(double, name="gone")
    sw.metrics.register(queue, registry)
    queue.close()
    del queue
    gc.collect()
    assert ("steelworks_queue_accepted_total", "") not in scraped(registry)


def test_an_unregistered_queue_is_no_longer_scraped() -> None:
    registry = CollectorRegistry()
    with sw.BatchQueue(double) as queue:
        sw.metrics.register(queue, registry)
        sw.metrics.unregister(queue, registry)
        assert ("steelworks_queue_accepted_total", "") not in scraped(registry)


TRACED = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import torch
import steelworks as sw

def double(x):
    if bool((x < 0).any()):
        raise ValueError("negative")
    return x * 2

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with sw.BatchQueue(double, name="traced") as queue:
    with trace.get_tracer("test").start_as_current_span("caller") as caller:
        queue(torch.ones(1, 2))
        try:
            queue(-torch.ones(1, 2))
        except ValueError:
            pass
spans = [span for span in exporter.get_finished_spans() if span.name == "steelworks.request"]
assert len(spans) == 2, spans
assert all(span.parent.span_id == caller.get_span_context().span_id for span in spans)
assert all(span.attributes["steelworks.queue"] == "traced" for span in spans)
assert sum(1 for span in spans if span.events) == 1  # the exception
print("traced")
"""


def test_each_request_gets_a_span_under_its_callers_span() -> None:
    # In a process of its own: a tracer provider can be set once a process, and turns spans on everywhere.
    done = subprocess.run(
        [sys.executable, "-c", TRACED], capture_output=True, text=True, timeout=100, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "traced"
