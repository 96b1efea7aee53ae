"""The list of systems, by name. A system's module is imported only in the process that measures it."""

from __future__ import annotations

import importlib

from benchmarks.peers._system import System

_WHERE = {
    "threads": "plain:Threads",
    "threads_1": "plain:ThreadsOne",
    "lock": "plain:Lock",
    "batched": "batched:BatchedThreads",
    "batched_asyncio": "batched:BatchedAsyncio",
    "async_batcher": "async_batcher:AsyncBatcherSystem",
    "litserve": "litserve:LitServe",
    "ray_serve": "ray_serve:RayServe",
    "oracle": "oracle:Oracle",
    "steelworks": "steelworks_queue:Steelworks",
    "steelworks_max_wait": "steelworks_queue:SteelworksMaxWait",
    "steelworks_deterministic": "steelworks_queue:SteelworksDeterministic",
    "steelworks_asyncio": "steelworks_queue:SteelworksAsyncio",
}
NAMES = tuple(_WHERE)
OWN = tuple(name for name in NAMES if name.startswith("steelworks"))
PEERS = tuple(name for name in NAMES if name not in OWN and name != "oracle")


def load(name: str) -> type[System]:
    """The class of system ``name``."""
    module, _, attribute = _WHERE[name].partition(":")
    found: type[System] = getattr(importlib.import_module(f"benchmarks.peers.{module}"), attribute)
    return found
