"""Has TLC follow what happened in scenes through DriverRace.tla.

The steps of a scene are named after the model's actions: ``Send`` by the scene, ``Lock``, ``Refuse``, ``Forget`` and
``Unlock`` by the guard, ``Begin`` and ``Finish`` by the stand-in of the driver. Encoders, which a scene knows by their
addresses, are numbered in the order in which they are made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from verification.tla import tlc

from .run import Event

_KINDS = '{"make", "encode", "end", "commit", "wait"}'
Step = tuple[str, int, str, int]


@dataclass(frozen=True)
class Followed:
    """What TLC found.

    Attributes:
        traces: how many were followed.
        events: in them.
        violated: the invariant of DriverRace that does not hold on the way, "" for none.
        wrong: the first step that the model does not allow, with those before it; "" for none.
        seconds: of TLC.
    """

    traces: int
    events: int
    violated: str
    wrong: str
    seconds: float


def steps(events: Sequence[Event]) -> list[Step]:
    """The events as TraceDriver.tla takes them: action, thread, call, encoder (or thread)."""
    numbers: dict[str, int] = {}
    made = 0
    making: dict[int, int] = {}
    found: list[Step] = []
    for event in events:
        on = 0
        if event.name == "Send" and event.call == "make":
            made += 1
            on = making[event.thread] = made
        elif event.name == "Send" and event.call == "handle":
            on = event.about
        elif (event.name == "Send" and event.call in ("encode", "end")) or event.name == "Forget":
            on = numbers.get(event.object, 0)
        elif event.name == "Finish" and event.call == "make":
            numbers[event.object] = making[event.thread]
        found.append((event.name, event.thread, event.call, on))
    return found


def follow(
    traces: Sequence[Sequence[Event]], *, bug: str = "none", invariants: Sequence[str] = ()
) -> Followed:
    """Follow traces.

    Args:
        traces: the events of each scene.
        bug: the mistake of the model to follow them in.
        invariants: what must hold on the way.
    """
    logs = [steps(events) for events in traces]
    threads = {step[1] for log in logs for step in log}
    handlers = {step[1] for log in logs for step in log if step[2] == "handle"}
    encoders = max([step[3] for log in logs for step in log if step[2] != "handle"], default=1)
    # A handler's thread may be another scene's caller: it has a number of its own in the model.
    shift = max(threads, default=0)
    logs = [
        [
            (name, thread + shift if _handles(log, thread) else thread, call, on)
            for name, thread, call, on in log
        ]
        for log in logs
    ]
    text = (
        "---- MODULE RecordedDriver ----\nEXTENDS Integers\n"
        f"Callers == 1..{shift}\n"
        f"Completers == {_set(thread + shift for thread in handlers)}\n"
        f"Encoders == 1..{max(encoders, 1)}\n"
        "Log == <<\n" + ",\n".join(_tla(log) for log in logs) + "\n>>\n====\n"
    )
    constants = {
        "Threads": "<- Callers",
        "Handlers": "<- Completers",
        "Contexts": "<- Encoders",
        "Kinds": _KINDS,
        "Shared": "TRUE",
        "Bug": f'"{bug}"',
    }
    outcome = tlc.run(
        "TraceDriver",
        constants,
        specification="TraceSpec",
        invariants=invariants,
        deadlock=True,
        modules={"RecordedDriver": text},
    )
    wrong = ""
    if outcome.exit_code == tlc.DEADLOCK:
        trace = int(re.findall(r"/\\ trace = (\d+)", outcome.output)[-1])
        at = int(re.findall(r"/\\ at = (\d+)", outcome.output)[-1])
        shown = "\n".join(f"  {show(step)}" for step in logs[trace - 1][:at][-15:])
        wrong = f"event {at} of trace {trace} is not allowed:\n{shown}"
    elif outcome.exit_code not in (tlc.HOLDS, tlc.INVARIANT):
        raise RuntimeError(outcome.output)
    return Followed(len(logs), sum(map(len, logs)), outcome.violated, wrong, outcome.seconds)


def show(step: Step) -> str:
    """A step in words."""
    name, thread, call, on = step
    what = {"Send": f" {call}" + (f" of {on}" if on else ""), "Forget": f" {on}"}.get(name, f" ({call})")
    return f"thread {thread}: {name}{what}"


def _handles(log: Sequence[Step], thread: int) -> bool:
    return any(step[1] == thread and step[2] == "handle" for step in log)


def _set(numbers: Iterable[int]) -> str:
    return "{" + ", ".join(map(str, sorted(numbers))) + "}"


def _tla(log: Sequence[Step]) -> str:
    events = (
        f'<<"{name}", {thread}, "{call if name == "Send" else ""}", {on}>>' for name, thread, call, on in log
    )
    return "<<" + ", ".join(events) + ">>"
