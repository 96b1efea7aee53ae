"""Streams: a device stream of its own for every thread that asks."""

from __future__ import annotations

from steelworks.errors import StreamPoolClosedError
from steelworks.streams._ledger import StreamPoolStatistics
from steelworks.streams.pool import StreamPool

__all__ = ["StreamPool", "StreamPoolClosedError", "StreamPoolStatistics"]
