"""The configurations in which the models are checked, and what each must give.

A configuration that holds has a pinned number of states: a change of a model that makes it say less is noticed. One
with a ``Bug`` must fail in the way that is written beside it: a property that nothing can violate is worth nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .tlc import HOLDS, INVARIANT, LIVENESS

POOL = "StreamPool"
QUEUE = "BatchQueue"
DRIVER = "DriverRace"

INVARIANTS: Mapping[str, tuple[str, ...]] = {
    POOL: ("OneOwner", "OneUser", "NoneLost", "Locked", "LockedByOne", "NoWaste", "Findable", "Queue"),
    QUEUE: (
        "OnceEach",
        "InLine",
        "NoneLost",
        "Bounded",
        "RoomIsUsed",
        "OneUser",
        "Awake",
        "Closing",
        "Prompt",
        "Fit",
        "InTurn",
        "Piped",
    ),
    DRIVER: (
        "OneInside",
        "NoUseAfterDestroy",
        "EndsOnce",
        "Alive",
        "Books",
        "OneHolder",
        "RefusedIfShared",
        "Moves",
    ),
}

_POOL = {
    "Threads": "{t1, t2}",
    "Size": "1",
    "Mode": '"wait"',
    "Timeouts": "TRUE",
    "Interrupts": "TRUE",
    "Closing": "TRUE",
    "Forking": "TRUE",
    "Bug": '"none"',
}
_QUEUE = {
    "Requests": "{r1, r2}",
    "Callers": "{}",
    "Workers": "{w1}",
    "Clocked": "{r1}",
    "Wide": "{}",
    "WideRows": "2",
    "Urgent": "{}",
    "MaxBatch": "2",
    "MaxPending": "1",
    "Depth": "1",
    "Overflow": '"block"',
    "Features": '{"cancel", "expire", "raise", "die"}',
    "Bug": '"none"',
}
_DRIVER = {
    "Threads": "{t1, t2}",
    "Handlers": "{}",
    "Contexts": "{c1, c2}",
    "Kinds": '{"make", "encode", "end"}',
    "Shared": "TRUE",
    "Bug": '"none"',
}
_DEFAULTS = {POOL: _POOL, QUEUE: _QUEUE, DRIVER: _DRIVER}


@dataclass(frozen=True)
class Config:
    """A model in one configuration.

    Attributes:
        name: of the configuration.
        model: the module.
        changed: the constants that are not as usual.
        says: what it is there for, in words.
        states: distinct states; None for a run that stops at a violation.
        exit_code: TLC's.
        violated: the invariant that must be violated, "" where that is not an invariant.
        properties: temporal properties that are checked, under fairness.
        symmetry: whether threads that are alike are taken for the same (safety only).
        replayed: whether its whole graph is replayed on the code.
        quick: whether it belongs to the set that runs with the tests.
    """

    name: str
    model: str
    says: str
    changed: Mapping[str, str] = field(default_factory=dict)
    states: int | None = None
    exit_code: int = HOLDS
    violated: str = ""
    properties: tuple[str, ...] = ()
    symmetry: bool = False
    replayed: bool = False
    quick: bool = True

    @property
    def constants(self) -> dict[str, str]:
        """All constants of the model."""
        return {**_DEFAULTS[self.model], **self.changed}

    def arguments(self) -> dict[str, Any]:
        """The arguments of ``tlc.run`` but for the dump."""
        return {
            "model": self.model,
            "constants": self.constants,
            "specification": "FairSpec" if self.properties else "Spec",
            "invariants": () if self.properties else INVARIANTS[self.model],
            "properties": self.properties,
            "symmetry": "Alike" if self.symmetry else "",
        }


def _pool(
    name: str, says: str, states: int | None = None, *, changed: Mapping[str, str] | None = None, **more: Any
) -> Config:
    return Config(name, POOL, says, changed or {}, states, **more)


def _queue(
    name: str, says: str, states: int | None = None, *, changed: Mapping[str, str] | None = None, **more: Any
) -> Config:
    return Config(name, QUEUE, says, changed or {}, states, **more)


def _driver(
    name: str, says: str, states: int | None = None, *, changed: Mapping[str, str] | None = None, **more: Any
) -> Config:
    return Config(name, DRIVER, says, changed or {}, states, **more)


def _features(*names: str) -> str:
    return "{" + ", ".join(f'"{name}"' for name in names) + "}"


_QUIET = {"Timeouts": "FALSE", "Interrupts": "FALSE", "Closing": "FALSE", "Forking": "FALSE"}
_THREE = {"Threads": "{t1, t2, t3}"}
_PAIR = {"MaxPending": "2", "Clocked": "{}"}
_TRIO = {"Requests": "{r1, r2, r3}", **_PAIR}
_PIPED = {**_PAIR, "Depth": "2", "MaxBatch": "1"}
_WAITS = {"Handlers": "{h1}", "Contexts": "{c1}", "Kinds": '{"commit", "wait"}'}

HOLDING: tuple[Config, ...] = (
    _pool("pool-wait", "two threads and one stream, all that may happen", 672, replayed=True),
    _pool(
        "pool-share",
        "two threads share one stream and take turns",
        755,
        changed={"Mode": '"share"', "Interrupts": "FALSE"},
        replayed=True,
    ),
    _pool(
        "pool-error", "two threads, one stream, none waits", 384, changed={"Mode": '"error"'}, replayed=True
    ),
    _pool(
        "pool-queue",
        "three threads and one stream: a queue of two",
        915,
        changed={**_QUIET, **_THREE},
        replayed=True,
    ),
    _pool(
        "pool-large",
        "three threads and two streams, all that may happen",
        52906,
        changed={**_THREE, "Size": "2"},
        quick=False,
    ),
    _pool(
        "pool-four",
        "four threads and two streams, threads alike",
        21578,
        changed={"Threads": "{t1, t2, t3, t4}", "Size": "2", "Forking": "FALSE", "Closing": "FALSE"},
        symmetry=True,
        quick=False,
    ),
    _pool(
        "pool-share-large",
        "three threads share two streams",
        10989,
        changed={**_THREE, "Size": "2", "Mode": '"share"', "Forking": "FALSE", "Closing": "FALSE"},
        replayed=True,
        quick=False,
    ),
    _pool(
        "pool-served",
        "who asks gets a stream, if streams keep being returned",
        915,
        changed={**_QUIET, **_THREE},
        properties=("Served",),
    ),
    _pool(
        "pool-sleeps-end",
        "a wait ends also where the pool is closed, threads are interrupted or time out",
        644,
        changed={"Forking": "FALSE"},
        properties=("NoneSleepsForEver",),
        quick=False,
    ),
    _queue(
        "queue-core",
        "two requests, one worker: cancelling, deadlines, bad batches, dying workers",
        383,
        replayed=True,
    ),
    _queue(
        "queue-close",
        "closing beside dying workers",
        428,
        changed={"Clocked": "{}", "Features": _features("die", "close")},
        replayed=True,
    ),
    _queue(
        "queue-callers",
        "callers that block, give up, and run their requests themselves",
        731,
        changed={"Callers": "{r1, r2}", "Clocked": "{}", "Features": _features("direct", "drain", "close")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-withdraw",
        "callers that block and give up, and cancelled futures",
        109,
        changed={
            "Callers": "{r1}",
            "Clocked": "{r2}",
            "Features": _features("withdraw", "expire", "cancel", "direct"),
        },
        replayed=True,
    ),
    _queue(
        "queue-lend",
        "a caller leads a worker's runner and may be interrupted",
        620,
        changed={"MaxPending": "2", "Clocked": "{}", "Features": _features("lend", "die", "cancel")},
        replayed=True,
    ),
    _queue(
        "queue-lend-close",
        "leading beside draining and closing",
        936,
        changed={"MaxPending": "2", "Clocked": "{}", "Features": _features("lend", "drain", "close")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-halves",
        "three requests in a batch that raises or ends its worker",
        2281,
        changed={
            "Requests": "{r1, r2, r3}",
            "MaxBatch": "3",
            "MaxPending": "3",
            "Clocked": "{}",
            "Features": _features("raise", "die"),
        },
        replayed=True,
    ),
    _queue(
        "queue-mates",
        "two requests in a batch that raises or ends its worker, one of which passes its deadline meanwhile",
        303,
        changed={"MaxPending": "2", "Features": _features("expire", "raise", "die")},
        replayed=True,
    ),
    _queue(
        "queue-two",
        "two workers",
        1084,
        changed={"Workers": "{w1, w2}", "Clocked": "{}", "Features": _features("cancel", "die")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-two-more",
        "two workers that share three requests, die and are replaced",
        6972,
        changed={
            "Requests": "{r1, r2, r3}",
            "Workers": "{w1, w2}",
            "MaxPending": "2",
            "Clocked": "{}",
            "Features": _features("die"),
        },
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-drop",
        "overflow: the oldest is dropped",
        422,
        changed={
            "Requests": "{r1, r2, r3}",
            "Overflow": '"drop"',
            "Clocked": "{}",
            "Features": _features("cancel"),
        },
        replayed=True,
    ),
    _queue(
        "queue-reject",
        "overflow: the newest is refused",
        99,
        changed={"Overflow": '"reject"', "Features": _features("cancel", "expire")},
        replayed=True,
    ),
    _queue(
        "queue-large",
        "three requests, one worker, all that may happen to them",
        11172,
        changed={
            "Requests": "{r1, r2, r3}",
            "Callers": "{r2}",
            "Features": _features("cancel", "expire", "withdraw", "raise", "die", "close"),
        },
        quick=False,
    ),
    _queue(
        "queue-lend-large",
        "leading beside everything else",
        6918,
        changed={
            "Callers": "{r2}",
            "Features": _features("cancel", "expire", "withdraw", "raise", "die", "close", "lend", "drain"),
        },
        quick=False,
    ),
    _queue(
        "queue-two-large",
        "three requests, two workers that die and are replaced",
        42196,
        changed={
            "Requests": "{r1, r2, r3}",
            "Workers": "{w1, w2}",
            "Clocked": "{}",
            "Features": _features("cancel", "raise", "die", "close"),
        },
        quick=False,
    ),
    _queue(
        "queue-plainly",
        "it implements Lifecycle.tla, which traces of the code are followed in",
        5490,
        changed={"Features": _features("cancel", "expire", "raise", "die", "close", "lend", "drain")},
        properties=("LivesPlainly",),
        quick=False,
    ),
    _queue(
        "queue-all-end",
        "every accepted request ends and is told, also when the queue is closed",
        132,
        changed={"Clocked": "{}", "Features": _features("close")},
        properties=("EveryOneIsTold", "CloseEnds"),
    ),
    _queue(
        "queue-all-end-dying",
        "every accepted request ends and is told, also when workers die",
        428,
        changed={"Clocked": "{}", "Features": _features("die", "close")},
        properties=("EveryOneEnds", "EveryOneIsTold", "CloseEnds"),
        quick=False,
    ),
    _queue(
        "queue-lives-plainly",
        "it implements Lifecycle.tla, which traces of the code are followed in",
        562,
        changed={"Clocked": "{}", "Features": _features("cancel", "die", "close")},
        properties=("LivesPlainly",),
    ),
    _queue(
        "queue-everyone-ends",
        "every accepted request ends and is told",
        1512,
        changed={"Features": _features("cancel", "raise", "die", "close", "drain")},
        properties=("EveryOneEnds", "EveryOneIsTold", "CloseEnds"),
        quick=False,
    ),
    _queue(
        "queue-lend-ends",
        "the same beside a caller that leads",
        1160,
        changed={"Clocked": "{}", "MaxPending": "2", "Features": _features("lend", "die", "close")},
        properties=("EveryOneEnds", "CloseEnds"),
        quick=False,
    ),
    _queue(
        "queue-rows",
        "requests of one row and of two, two rows a batch",
        300,
        changed={**_TRIO, "Wide": "{r2}", "MaxPending": "3", "Features": _features("cancel")},
        replayed=True,
    ),
    _queue(
        "queue-rows-wider",
        "a request of more rows than a batch has runs alone, beside batches that raise and workers that die",
        1683,
        changed={**_TRIO, "Wide": "{r2}", "WideRows": "3", "Features": _features("raise", "die")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-rows-two",
        "two workers, each of which takes its share of the rows",
        730,
        changed={
            **_TRIO,
            "Workers": "{w1, w2}",
            "Wide": "{r2, r3}",
            "MaxBatch": "3",
            "MaxPending": "3",
            "Features": _features(),
        },
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-urgent",
        "a request of higher priority overtakes those that have not aged",
        464,
        changed={**_TRIO, "Urgent": "{r3}", "MaxPending": "3", "Features": _features("age")},
        replayed=True,
    ),
    _queue(
        "queue-urgent-parked",
        "two of higher priority, of which one waits for room",
        621,
        changed={**_TRIO, "Urgent": "{r2, r3}", "MaxBatch": "1", "Features": _features("age", "cancel")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-urgent-drop",
        "overflow: who waited longest is dropped, also after a retry, and whatever its priority",
        1866,
        changed={**_TRIO, "Urgent": "{r3}", "Overflow": '"drop"', "Features": _features("die")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-pipe",
        "two batches in flight, which may raise",
        480,
        changed={**_TRIO, "Depth": "2", "MaxBatch": "1", "MaxPending": "3", "Features": _features("raise")},
        replayed=True,
    ),
    _queue(
        "queue-pipe-deep",
        "three batches in flight",
        546,
        changed={**_TRIO, "Depth": "3", "MaxBatch": "1", "MaxPending": "3", "Features": _features("raise")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-pipe-mates",
        "batches in flight that raise and are run in halves, and a deadline that passes meanwhile",
        1298,
        changed={
            **_TRIO,
            "Clocked": "{r1}",
            "Depth": "2",
            "MaxPending": "3",
            "Features": _features("raise", "expire"),
        },
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-pipe-die",
        "two batches in flight, a worker that dies, and closing",
        679,
        changed={**_PIPED, "Features": _features("raise", "die", "close")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-pipe-second-chance",
        "two batches in flight, and requests that run alone after a worker died",
        2602,
        changed={**_TRIO, "Depth": "2", "MaxPending": "3", "Features": _features("raise", "die")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-pipe-held",
        "a request on its second chance is taken while another is in flight, and held until that has ended",
        224,
        changed={**_PIPED, "Urgent": "{r2}", "Features": _features("raise", "die")},
        replayed=True,
    ),
    _queue(
        "queue-pipe-two",
        "two workers with two batches in flight each",
        1218,
        changed={**_TRIO, "Workers": "{w1, w2}", "Depth": "2", "MaxBatch": "1", "Features": _features()},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-gather",
        "a worker waits for more requests, for a time (max_wait), and not where no more may wait",
        210,
        changed={**_PAIR, "MaxBatch": "3", "Features": _features("gather", "cancel")},
        replayed=True,
    ),
    _queue(
        "queue-gather-more",
        "it waits for as many as it expects",
        388,
        changed={**_TRIO, "MaxBatch": "3", "MaxPending": "3", "Features": _features("gather")},
        replayed=True,
    ),
    _queue(
        "queue-gather-close",
        "waiting for more beside closing and dying workers",
        777,
        changed={**_PAIR, "Features": _features("gather", "close", "die")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-gather-rows",
        "it waits for more rows, some of which wait for room",
        1081,
        changed={**_TRIO, "Wide": "{r3}", "MaxBatch": "3", "Features": _features("gather", "cancel")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-gather-refused",
        "it does not wait for more where those are refused",
        556,
        changed={**_TRIO, "MaxBatch": "3", "Overflow": '"reject"', "Features": _features("gather")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-gather-two",
        "two workers that wait for more",
        2076,
        changed={**_PAIR, "Workers": "{w1, w2}", "Features": _features("gather", "close")},
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-gather-pipe",
        "waiting for more beside batches in flight and requests of two rows",
        456,
        changed={
            **_TRIO,
            "Depth": "2",
            "Wide": "{r3}",
            "MaxBatch": "3",
            "MaxPending": "3",
            "Features": _features("gather"),
        },
        replayed=True,
        quick=False,
    ),
    _queue(
        "queue-together",
        "rows, a priority, batches in flight and waiting for more, beside deadlines, errors and deaths",
        8908,
        changed={
            **_TRIO,
            "Clocked": "{r1}",
            "Wide": "{r3}",
            "Urgent": "{r2}",
            "Depth": "2",
            "Features": _features("gather", "age", "raise", "die", "expire"),
        },
        quick=False,
    ),
    _queue(
        "queue-none-starves",
        "whatever overtakes it, every request ends, since it ages",
        63,
        changed={**_PAIR, "Urgent": "{r2}", "MaxBatch": "1", "Features": _features("age")},
        properties=("EveryOneEnds",),
        quick=False,
    ),
    _queue(
        "queue-pipe-ends",
        "every accepted request ends, with two batches in flight",
        679,
        changed={**_PIPED, "Features": _features("raise", "die", "close")},
        properties=("EveryOneEnds", "CloseEnds"),
        quick=False,
    ),
    _queue(
        "queue-gather-ends",
        "the same where a worker waits for more",
        252,
        changed={**_PAIR, "Features": _features("gather", "close")},
        properties=("EveryOneEnds",),
        quick=False,
    ),
    _queue(
        "queue-together-plainly",
        "it implements Lifecycle.tla also with rows, a priority and batches in flight",
        5197,
        changed={
            **_TRIO,
            "Depth": "2",
            "Wide": "{r3}",
            "Urgent": "{r2}",
            "Features": _features("raise", "die", "age"),
        },
        properties=("LivesPlainly",),
        quick=False,
    ),
    _driver("driver-shared", "two threads make, use and end encoders, also each other's", 6249),
    _driver("driver-own", "two threads with encoders of their own", 1273, changed={"Shared": "FALSE"}),
    _driver(
        "driver-waits",
        "commits, waits for the GPU, and its completion handlers, beside encoding",
        5793,
        changed={**_WAITS, "Kinds": '{"make", "end", "commit", "wait"}'},
    ),
    _driver(
        "driver-alike",
        "three threads, threads and encoders alike",
        7606,
        changed=_THREE,
        symmetry=True,
        quick=False,
    ),
    _driver("driver-three", "three threads and one encoder", 991, changed={**_THREE, "Contexts": "{c1}"}),
    _driver(
        "driver-ends",
        "every call ends, with one encoder",
        159,
        changed={"Contexts": "{c1}"},
        properties=("EveryCallEnds",),
    ),
    _driver("driver-two-end", "every call ends", 6249, properties=("EveryCallEnds",), quick=False),
    _driver(
        "driver-waits-end",
        "every commit, and every wait for the GPU, ends",
        483,
        changed=_WAITS,
        properties=("EveryCallEnds",),
    ),
)


#: Those of the must-fail configurations that run with the tests; the command runs all.
_WITH_THE_TESTS = frozenset(
    {
        (POOL, "dropped lock"),
        (POOL, "lost wake-up"),
        (POOL, "nobody looks"),
        (QUEUE, "lost wake-up"),
        (QUEUE, "bisect loses a neighbour"),
        (QUEUE, "lent twice"),
        (QUEUE, "close wakes nobody"),
        (QUEUE, "rows are not counted"),
        (QUEUE, "no priority"),
        (QUEUE, "forgets what is in flight"),
        (QUEUE, "waits without room"),
        (DRIVER, "no guard"),
        (DRIVER, "guard on ends only"),
        (DRIVER, "not recursive"),
        (DRIVER, "ended is not looked up"),
    }
)


def _bug(
    model: str,
    bug: str,
    violated: str,
    changed: Mapping[str, str] | None = None,
    properties: tuple[str, ...] = (),
) -> Config:
    return Config(
        f"{model}: {bug}" + (" (liveness)" if properties else ""),
        model,
        f"must fail: {bug}",
        {**(changed or {}), "Bug": f'"{bug}"'},
        exit_code=LIVENESS if properties else INVARIANT,
        violated=violated,
        properties=properties,
        quick=(model, bug) in _WITH_THE_TESTS,
    )


def _use_after_destroy(bug: str) -> Config:
    """The encoder is used after it was destroyed: what the missing guard leads to, beyond who may be inside."""
    return Config(
        f"{DRIVER}: {bug} (used after it was destroyed)",
        DRIVER,
        f"must fail: {bug}",
        {"Bug": f'"{bug}"'},
        exit_code=INVARIANT,
        violated="NoUseAfterDestroy",
        properties=("NeverUsedAfterDestroy",),
        quick=bug == "no guard",
    )


_LEND = {"MaxPending": "2", "Clocked": "{}", "Features": _features("lend", "die", "close")}
_URGENT = {**_PAIR, "Urgent": "{r2}", "MaxBatch": "1", "Features": _features("age")}
_GATHER = {**_PAIR, "MaxBatch": "3", "Features": _features("gather")}
_HALVES = {"MaxPending": "2", "Clocked": "{}", "Features": _features("raise", "die")}

FAILING: tuple[Config, ...] = (
    _bug(POOL, "dropped lock", "Locked"),
    _bug(POOL, "granted twice", "NoneLost"),
    _bug(POOL, "lost wake-up", "Findable"),
    _bug(POOL, "nobody looks", "NoWaste"),
    _bug(POOL, "late hand-over lost", "Queue"),
    _bug(POOL, "stays in the queue", "Queue"),
    _bug(POOL, "close wakes nobody", "Findable"),
    _bug(POOL, "free while shared", "NoneLost", {"Mode": '"share"'}),
    _bug(POOL, "no turns", "OneUser", {"Mode": '"share"'}),
    _bug(POOL, "fork keeps the pool", "Locked"),
    _bug(POOL, "lost wake-up", "", {**_QUIET}, ("Served",)),
    _bug(
        QUEUE,
        "ends twice",
        "OnceEach",
        {"Callers": "{r1}", "Clocked": "{}", "Features": _features("withdraw")},
    ),
    _bug(QUEUE, "lost wake-up", "Awake"),
    _bug(QUEUE, "no bound", "Bounded", {"Features": _features("cancel")}),
    _bug(QUEUE, "bisect loses a neighbour", "NoneLost", _HALVES),
    _bug(QUEUE, "nobody is told", "NoneLost"),
    _bug(QUEUE, "death loses requests", "NoneLost"),
    _bug(QUEUE, "lent twice", "OneUser", _LEND),
    _bug(QUEUE, "left in hand", "", _LEND, ("EveryOneEnds",)),
    _bug(
        QUEUE,
        "shared run",
        "OneUser",
        {"Callers": "{r1, r2}", "Clocked": "{}", "Features": _features("direct")},
    ),
    _bug(QUEUE, "close wakes nobody", "", {"Features": _features("close")}, ("CloseEnds",)),
    _bug(QUEUE, "retries for ever", "", _HALVES, ("EveryOneEnds",)),
    _bug(QUEUE, "rows are not counted", "Fit", {**_PAIR, "Wide": "{r2}", "Features": "{}"}),
    _bug(QUEUE, "no priority", "InTurn", _URGENT),
    _bug(QUEUE, "no aging", "InTurn", _URGENT),
    _bug(QUEUE, "no aging", "", _URGENT, ("EveryOneEnds",)),
    _bug(QUEUE, "forgets what is in flight", "NoneLost", {**_PIPED, "Features": _features("raise")}),
    _bug(QUEUE, "solo in company", "Piped", {**_PIPED, "Features": _features("die")}),
    _bug(QUEUE, "a full batch wakes nobody", "Prompt", {**_GATHER, "MaxBatch": "2", "MaxPending": "3"}),
    _bug(QUEUE, "waits without room", "Prompt", {**_GATHER, "MaxPending": "1"}),
    _bug(QUEUE, "waits again", "", {**_GATHER, "MaxPending": "3"}, ("EveryOneEnds",)),
    _bug(QUEUE, "no end of waiting", "", {**_GATHER, "MaxPending": "3"}, ("EveryOneEnds",)),
    _bug(DRIVER, "no guard", "OneInside"),
    _bug(DRIVER, "guard on ends only", "OneInside"),
    _bug(DRIVER, "guard on calls only", "OneInside"),
    _bug(DRIVER, "makes unguarded", "OneInside"),
    _bug(DRIVER, "unlocks early", "OneInside"),
    _bug(DRIVER, "a lock per encoder", "OneInside"),
    _bug(DRIVER, "not recursive", "Moves"),
    _bug(DRIVER, "waits with the lock", "Moves", _WAITS),
    _bug(DRIVER, "ended is not looked up", "NoUseAfterDestroy"),
    _bug(DRIVER, "ended are not kept", "Alive"),
    _use_after_destroy("no guard"),
    _use_after_destroy("guard on ends only"),
    _use_after_destroy("guard on calls only"),
)


def named(name: str) -> Config:
    """The configuration of that name."""
    return next(config for config in HOLDING if config.name == name)
