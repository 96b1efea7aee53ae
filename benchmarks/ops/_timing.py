"""Device time inside a CUDA graph, and host time of a call. Every operator case is timed by these two functions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks._common import Spread

#: Runs before anything is captured: they compile, choose algorithms and fill caches.
WARM_UPS = 3


def graph_time(calls: Sequence[Callable[[], Any]], launches: int, repeats: int = 15) -> Spread:
    """Microseconds of device time a call, in a graph that makes ``launches`` calls one after the other.

    Args:
        calls: The same work on different data, taken in turn: together larger than the L2 cache where the work is
            meant to reach memory.
        launches: Calls in the graph; enough that its own start (some 10 us) disappears.
        repeats: Replays that are timed, each with events.

    Returns:
        The spread over the replays. What calls return is kept until the end, so that no output is reused.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(
        torch.cuda.current_stream()
    )  # what made the inputs, and whatever used their memory before
    with torch.cuda.stream(stream), torch.no_grad():
        for call in calls:
            for _ in range(WARM_UPS):
                call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = [calls[number % len(calls)]() for number in range(launches)]
        graph.replay()
        graph.replay()
        pairs = []
        for _ in range(repeats):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            graph.replay()
            pair[1].record()
            pairs.append(pair)
        stream.synchronize()
    spread = Spread.of(begin.elapsed_time(end) * 1000 / launches for begin, end in pairs)
    del kept, graph
    return spread


def host_time(call: Callable[[], Any], repeats: int = 15, calls: int = 200) -> Spread:
    """Microseconds of host time a call takes to return, while the device keeps up (it is waited for between)."""
    taken = []
    with torch.no_grad():
        for _ in range(WARM_UPS):
            call()
        for _ in range(repeats):
            torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(calls):
                call()
            taken.append((time.perf_counter() - began) * 1e6 / calls)
    torch.cuda.synchronize()
    return Spread.of(taken)
