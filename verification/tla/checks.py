"""Runs TLC in the background, two at a time, so that a test run or the command waits as little as possible."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from . import graph, paths_replay, pool_replay, queue_replay, tlc
from .models import POOL, Config
from .replay import Subject


class Checks:
    """The runs of TLC for some configurations; started at once, asked for later.

    Args:
        configs: what to check. Of those that are replayed, the graph is kept until :meth:`close`.
    """

    def __init__(self, configs: Iterable[Config]) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="tla-graphs-"))
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tlc")
        self._runs: dict[str, Future[tlc.Outcome]] = {
            config.name: self._pool.submit(self._run, config) for config in configs
        }
        self._graphs: dict[str, graph.Graph] = {}

    def _file(self, config: Config) -> Path | None:
        return self._place / f"{config.name}.dot" if config.replayed else None

    def _run(self, config: Config) -> tlc.Outcome:
        return tlc.run(**config.arguments(), dump=self._file(config))

    def outcome(self, config: Config) -> tlc.Outcome:
        """What TLC found; waits for it."""
        return self._runs[config.name].result()

    def graph(self, config: Config) -> graph.Graph:
        """The state graph of a configuration that is replayed."""
        self.outcome(config)
        if config.name not in self._graphs:
            path = self._file(config)
            assert path is not None, f"{config.name} is not replayed"
            self._graphs[config.name] = graph.read(path)
        return self._graphs[config.name]

    def close(self) -> None:
        """Forget the runs that have not begun, wait for the others, and remove the files."""
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self._place, ignore_errors=True)


def subject(config: Config) -> Subject:
    """The code that the model of ``config`` speaks of."""
    if config.model == POOL:
        return pool_replay.PoolSubject(config.constants)
    if config.model == "Paths":
        return paths_replay.PathsSubject(config.constants)
    return queue_replay.QueueSubject(config.constants)
