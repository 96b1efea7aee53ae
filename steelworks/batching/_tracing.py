"""OpenTelemetry spans, where that library is installed and set up; otherwise nothing at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from steelworks.batching._request import COMPLETED, Request


class Tracer:
    """Makes one span a request, from its arrival to its end, as a child of the caller's span.

    Off unless opentelemetry is installed and a tracer provider was set (or ``enabled`` is True):
    capturing the caller's context costs about a microsecond a request.

    Args:
        name: name of the queue, an attribute of each span.
        enabled: True or False to force it; None to find out.
    """

    def __init__(self, name: str, enabled: bool | None = None) -> None:
        self._name = name
        self._trace: Any = None
        self._context: Any = None
        if enabled is False:
            return
        try:
            from opentelemetry import context, trace
        except ImportError:
            if enabled:
                raise ImportError("tracing=True needs opentelemetry: pip install opentelemetry-api") from None
            return
        provider = trace.get_tracer_provider()
        if enabled or type(provider).__name__ not in ("ProxyTracerProvider", "NoOpTracerProvider"):
            self._trace = trace.get_tracer("steelworks")
            self._context = context

    @property
    def on(self) -> bool:
        """Whether spans are made."""
        return self._trace is not None

    def capture(self) -> Any:
        """The caller's context, to be the parent of the request's span."""
        return self._context.get_current() if self._trace is not None else None

    def batch(self, requests: Sequence[Request], started: float) -> None:
        """Make the spans of a batch that completed."""
        if self._trace is not None:
            for request in requests:
                if request.outcome == COMPLETED:
                    self._span(request, started, len(requests), None)

    def failed(self, requests: Sequence[Request], started: float, error: BaseException) -> None:
        """Make the spans of requests that failed."""
        if self._trace is not None:
            for request in requests:
                self._span(request, started, 1, error)

    def _span(self, request: Request, started: float, size: int, error: BaseException | None) -> None:
        now_ns, now = time.time_ns(), time.perf_counter()
        span = self._trace.start_span(
            "steelworks.request",
            context=request.context,
            start_time=now_ns - int((now - request.arrived) * 1e9),
            attributes={
                "steelworks.queue": self._name,
                "steelworks.batch_requests": size,
                "steelworks.wait_seconds": started - request.arrived,
            },
        )
        if error is not None:
            span.record_exception(error)
        span.end(end_time=now_ns)
