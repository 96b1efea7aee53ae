"""Whether a model is run packed: only where that is right, and measured to be faster.

The user's module is left alone: packing is installed on a twin that shares its weights.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from steelworks.plans._int8 import take_layers
from steelworks.plans.batches import merge
from steelworks.plans.inputs import Group, Reading

logger = logging.getLogger("steelworks.plans")

_TRIAL_LENGTH = 32  # positions of the longest row of the trial batch
_TRIAL_SHARES = (1.0, 0.25, 0.6, 0.4, 0.8, 0.3, 0.5, 0.7)  # lengths of its rows, as shares of that
_TRIAL_RUNS = 4
_GAIN = 0.97  # packed time over padded time, below which packing is chosen


class Twin:
    """A module that shares the user's weights and runs packed.

    Attributes:
        module: to be called instead of the user's.
    """

    def __init__(self, module: nn.Module, handle: Any) -> None:
        self.module = module
        self._handle = handle

    def remove(self) -> None:
        """Let the twin go."""
        self._handle.remove()


def find_twin(
    model: Any,
    reading: Reading,
    mask: str,
    run: Callable[[Any, Sequence[torch.Tensor], Group], Any],
    force: bool,
    quantized: nn.Module | None = None,
) -> Twin | None:
    """A twin of ``model`` that runs packed, if it gives the same answers and is faster.

    Args:
        model: the user's model.
        reading: any request of the group that is to be packed.
        mask: the name of the mask among the inputs.
        run: runs a model on merged tensors of a group.
        force: choose packing wherever it is right, without measuring.
        quantized: the model in int8, to run instead; ``model`` itself is what packing is verified with,
            since int8 turns a difference in the last bit into one of a whole step.
    """
    if not isinstance(model, nn.Module) or mask not in reading.lane.group.names:
        return None
    from steelworks.plans import packing

    group = reading.lane.group
    try:
        shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
        module = copy.deepcopy(model, shared)
    except Exception as error:  # a module may hold anything: locks, generators ...
        logger.info("packing is off: the module can't be copied (%s: %s)", type(error).__name__, error)
        return None
    handle = packing.install(module)
    if handle is None:
        return None
    rows = _trial(reading)
    args, kwargs = group.rebuild(merge(rows[:1]))
    report = packing.verify(
        module, handle, kwargs, dict(zip(group.names, group.pad_values, strict=True)), mask
    )
    if args or not report.ok:
        logger.info("packing is off: %s", report.reason)
        handle.remove()
        return None
    if quantized is not None:
        take_layers(module, quantized)
        handle.reread()
    if not force:
        batch, rival = merge(rows), model if quantized is None else quantized
        padded, packed = _fastest(lambda: run(rival, batch, group), lambda: run(module, batch, group))
        if packed > _GAIN * padded:
            logger.info(
                "packing is off: a trial took %.2f ms packed, %.2f ms padded", packed * 1e3, padded * 1e3
            )
            handle.remove()
            return None
    return Twin(module, handle)


def _trial(reading: Reading) -> list[Reading]:
    """Rows of different lengths, made by repeating and cutting the request's first row."""
    group = reading.lane.group
    rows = []
    for share in _TRIAL_SHARES:
        length = max(1, round(share * _TRIAL_LENGTH))
        leaves = []
        for index, leaf in enumerate(reading.leaves):
            row = leaf[:1]
            if index in group.sequence:
                repeats = [1] * row.dim()
                repeats[1] = -(-length // row.shape[1])
                row = row.repeat(repeats)[:, :length]
            leaves.append(row)
        rows.append(Reading(tuple(leaves), 1, reading.lane, length))
    return rows


def _fastest(*calls: Callable[[], object]) -> list[float]:
    """The best time of each call, in seconds; the calls take turns, so that both meet the same machine."""
    best = [float("inf")] * len(calls)
    for _ in range(_TRIAL_RUNS):
        for place, call in enumerate(calls):
            started = time.perf_counter()
            call()
            best[place] = min(best[place], time.perf_counter() - started)
    return best
