"""Streams: a device stream of its own for every thread that asks."""

from __future__ import annotations

from steelworks.streams._ledger import StreamPoolClosedError, StreamPoolStatistics
from steelworks.streams.pool import StreamPool

__all__ = ["StreamPool", "StreamPoolClosedError", "StreamPoolStatistics"]
