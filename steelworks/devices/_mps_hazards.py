"""The known dangers of MPS with several threads, by torch version, as data.

The ids R1 to R7 are the open ones of torch 2.15; E1 to E3 are the ones that 2.15 closed.
"""

from __future__ import annotations

from dataclasses import dataclass

from steelworks.devices.base import Hazard

STREAMS_SINCE = (2, 15)

_ONE_OWNER = "One thread at a time owns the device; use from another raises DeviceRuleError."
_ONE_STREAM = "One stream only, so it can't arise; streams are opt-in."
_ONE_ENCODER = (
    "A process-wide lock lets one thread at a time put work on any stream through stream.use(); "
    "waiting for the GPU does not hold it."
)


@dataclass(frozen=True)
class _Entry:
    id: str
    summary: str
    alone: str  # the measure with one owner thread
    streams: str = ""  # the measure with several streams
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = (99, 0)


_TABLE = (
    _Entry(
        "E1",
        "arange, linspace, logspace, eye and renorm take the stream's encoder outside its queue: "
        "'A command encoder is already encoding to this command buffer', a crash or a hang.",
        _ONE_OWNER,
        until=STREAMS_SINCE,
    ),
    _Entry(
        "E2",
        "The shader and pipeline caches have no lock: 'malloc: Double free of object', heap corruption.",
        _ONE_OWNER,
        until=STREAMS_SINCE,
    ),
    _Entry(
        "E3",
        "synchronize() runs outside the stream's queue: 'commit an already committed command buffer'.",
        "Only the owner thread synchronizes.",
        until=STREAMS_SINCE,
    ),
    _Entry(
        "R1",
        "A blocking copy to the CPU that also changes the dtype synchronizes outside the stream's queue.",
        "copy_out() keeps the dtype; a cast is done on the CPU afterwards.",
        "copy_out() keeps the dtype; a cast is done on the CPU afterwards.",
    ),
    _Entry(
        "R2",
        "A copy from or to pinned memory records an event outside the stream's queue.",
        "copy_in() copies a pinned tensor to ordinary memory first; copy_out() returns ordinary memory.",
        "copy_in() copies a pinned tensor to ordinary memory first; copy_out() returns ordinary memory.",
    ),
    _Entry(
        "R3",
        "clone, contiguous and copy_ on two streams race for an encoder that one shared object keeps.",
        _ONE_STREAM,
        _ONE_ENCODER,
        since=STREAMS_SINCE,
    ),
    _Entry(
        "R4",
        "Contiguous linear encodes one cached matrix multiplication per shape from every stream; "
        "Apple calls that not thread safe.",
        _ONE_STREAM,
        _ONE_ENCODER,
        since=STREAMS_SINCE,
    ),
    _Entry(
        "R5",
        "mm, bmm, conv and others encode one cached MPSGraph per shape from several streams at once.",
        _ONE_STREAM,
        _ONE_ENCODER,
        since=STREAMS_SINCE,
    ),
    _Entry(
        "R6",
        "Lazy singletons are made without a lock: two threads that use a kind of operation first may crash.",
        "warm_up() runs one operation of each kind on one thread before the model.",
        "warm_up() runs one operation of each kind on one thread before the model.",
    ),
    _Entry(
        "R7",
        "The profiler and metal_capture touch the streams' state directly.",
        "Steelworks never calls them; do not profile while workers run.",
        "Steelworks never calls them; do not profile while workers run.",
    ),
)


def hazards_of(version: tuple[int, int], streams: bool) -> tuple[Hazard, ...]:
    """Return the hazards of torch ``version`` (major, minor), with the measure for the mode in use."""
    return tuple(
        Hazard(entry.id, entry.summary, entry.streams if streams else entry.alone)
        for entry in _TABLE
        if entry.since <= version < entry.until
    )
