"""A plan that calls the model as it is: the plan for cpu and mps, and CUDA's fallback.

Promises: any shape runs; requests of different lengths are padded only where probing showed that
the answer stays the same (I8); with ``deterministic=True`` a request's result does not depend on what
it was batched with, bit for bit (I3).

How ``deterministic`` keeps that promise: a request is always padded to a length that follows from its
own length alone, with at least one padded position, so that the same kernels run whether or not
others need padding; row counts are padded to one of a few sizes; and a size is used only after a trial
showed that it gives the same bits as the reference size, at the first and the last row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from steelworks.devices.base import Device
from steelworks.plans._compiled import Compiled
from steelworks.plans._immediate import ImmediateRunner
from steelworks.plans._int8 import quantized_copy
from steelworks.plans._packed import Twin, find_twin
from steelworks.plans.batches import OutputLayout, cut, merge, probe_layout
from steelworks.plans.cost import FittedCost
from steelworks.plans.inputs import Group, InputReader, Padding, Reading
from steelworks.plans.plan import Plan, Runner

logger = logging.getLogger("steelworks.plans")

_MAX_PROBES = 8  # requests that may leave it open whether padding is possible
# A size is tried with so many rows that the model answered so many numbers for them, or for so long.
_TRIAL_ROWS, _FEWEST_TRIAL_ROWS, _TRIAL_NUMBERS, _TRIAL_SECONDS = 64, 4, 1024, 0.2
_ROW_SIZES = (2, 4, 8, 16, 32, 64, 128, 256)  # deterministic mode; 2 is the reference


@dataclass(frozen=True)
class EagerOptions:
    """How an eager plan runs.

    Attributes:
        max_batch_size: the most rows one batch may have.
        padding: which inputs may be padded; None to batch by exact shape only.
        deterministic: results bit-identical whatever the batch mates (I3).
        unbatched: requests carry no batch dimension.
        packing: no padding inside encoders: True, False, or None to decide by measurement.
        compile: run the model through ``torch.compile`` (dynamic shapes).
        quantize: run large linear layers in int8 (cpu).
    """

    max_batch_size: int = 32
    padding: Padding | None = None
    deterministic: bool = False
    unbatched: bool = False
    packing: bool | None = None
    compile: bool = False
    quantize: bool = False


class EagerPlan(Plan):
    """Calls the model for every batch; see the module's text for what it promises."""

    def __init__(
        self, model: nn.Module | Any, device: Device, options: EagerOptions, example: object = None
    ) -> None:
        bucket = _deterministic_bucket(model, options) if options.deterministic else None
        reader = InputReader(
            options.padding,
            bucket=bucket,
            unbatched=options.unbatched,
            expect=example,
            devices=tuple({"cpu", device.torch_device.type}),
        )
        super().__init__(device, reader, options.max_batch_size)
        self.model = model
        self.options = options
        self._example = example
        self._learning = threading.Lock()
        self._twins: list[Twin] = []
        self._compiled = Compiled(model) if options.compile else None
        self._quantized = quantized_copy(model) if options.quantize else None

    def runner(self, depth: int = 1) -> Runner:
        """Make a runner; they share the model and nothing else."""
        return _EagerRunner(self)

    def predict(self, group: Group, rows: int, length: int) -> float:
        """Predicted seconds, from the batches that ran."""
        cost: FittedCost | None = group.state.get("cost")
        return cost.predict(rows, length) if cost is not None else float(rows * length)

    def may_pad(self, group: Group) -> bool:
        """Whether lanes may be mixed: not in deterministic mode, nor where padding changes the answers."""
        if self.options.deterministic:
            return False  # a request's padding must follow from its own length alone
        layout: OutputLayout | None = group.state.get("layout")
        return bool(group.sequence) and (layout is None or layout.padding)

    def warm_up(self) -> None:
        """Run the example, alone and as a full batch, and learn its output layout."""
        if self._example is None:
            return
        reading = self.reader.read(self._example)
        runner = self.runner()
        copies = max(1, self.max_batch_size // reading.rows)
        try:
            self.device.warm_up(lambda: runner.finish(runner.launch([reading])))
            if reading.lane.group.sequence:
                self.layout(reading)
            for count in (1, copies):
                runner.finish(runner.launch([reading] * count))
        finally:
            runner.close()

    def call(self, tensors: Sequence[torch.Tensor], group: Group) -> Any:
        """Call the model (or its packed twin) on merged CPU or device tensors; the output is on the CPU."""
        twin: Twin | None = group.state.get("twin")
        if twin is not None:
            return self._call(twin.module, tensors, group)
        return self._call(self.model if self._quantized is None else self._quantized, tensors, group)

    def _call_as_given(self, tensors: Sequence[torch.Tensor], group: Group) -> Any:
        """Call the user's own model, which tells about padding what int8 would blur."""
        return self._call(self.model, tensors, group)

    def _call(self, model: Any, tensors: Sequence[torch.Tensor], group: Group) -> Any:
        home = self.device.torch_device.type
        if home != "cpu":
            tensors = [t if t.device.type == home else self.device.copy_in(t) for t in tensors]
        args, kwargs = group.rebuild(tensors)
        with torch.no_grad():
            if self._compiled is not None and model is self.model:
                output = self._compiled.run(tensors, args, kwargs)
            else:
                output = model(*args, **kwargs)
        if home != "cpu":
            output = pytree.tree_map_only(torch.Tensor, self.device.copy_out, output)
        return output

    def layout(self, reading: Reading) -> OutputLayout:
        """The output layout of the request's group, probed once, by one thread."""
        group = reading.lane.group
        layout: OutputLayout | None = group.state.get("layout")
        if layout is None:
            with self._learning:
                layout = group.state.get("layout")
                if layout is None:
                    layout = probe_layout(self._call_as_given, reading)
                    if layout is None:  # this request does not tell; another one may, but not forever
                        layout = OutputLayout((), padding=False)
                        tried = group.state["probes"] = group.state.get("probes", 0) + 1
                        if tried < _MAX_PROBES:
                            return layout
                    if layout.padding:
                        self._find_twin(reading)
                    group.state["layout"] = layout
        return layout

    def _find_twin(self, reading: Reading) -> None:
        """Run the group packed from now on, if that is right and wins."""
        options = self.options
        if options.packing is False or options.deterministic or options.padding is None:
            return
        if self.device.torch_device.type == "cuda":
            return
        force = options.packing is True
        twin = find_twin(self.model, reading, options.padding.mask, self._call, force, self._quantized)
        if twin is not None:
            self._twins.append(twin)
            reading.lane.group.state["twin"] = twin

    def packs(self, group: Group) -> bool:
        """Whether the group runs packed."""
        return "twin" in group.state

    def close(self) -> None:
        """Free what the plan holds."""
        super().close()
        for twin in self._twins:
            twin.remove()

    def row_size(self, readings: Sequence[Reading], length: int) -> int:
        """Deterministic mode: the number of rows to pad this batch to; 0 if it is to be split up."""
        rows = sum(reading.rows for reading in readings)
        if rows == 1:
            return _ROW_SIZES[0]  # the reference itself
        trusted: dict[tuple[int, ...], bool] = readings[0].lane.group.state.setdefault("trusted", {})
        # A batch without padding, or on another number of cores, may take other kernels.
        kind = (length, int(readings[0].length == length), torch.get_num_threads())
        for size in _ROW_SIZES:
            if size >= rows:
                known = trusted.get((size, *kind))
                if known is None:
                    with self._learning:
                        known = trusted.get((size, *kind))
                        if known is None:
                            known = trusted[(size, *kind)] = self._same_bits(readings[0], length, size)
                if known:
                    return size
        return 0

    def _same_bits(self, reading: Reading, length: int, size: int) -> bool:
        """Whether a batch of ``size`` gives every row, at every place, the bits of the reference size."""
        group = reading.lane.group
        rows, wanted = self._references(reading, length)
        for first in range(0, len(rows), size):
            places = [(first + place) % len(rows) for place in range(size)]
            output = self.call(merge([rows[i] for i in places], length), group)
            if not all(_equal_bits(wanted[i], _row_of(output, place)) for place, i in enumerate(places)):
                return False
        return bool(rows)

    def _references(self, reading: Reading, length: int) -> tuple[list[Reading], list[list[torch.Tensor]]]:
        """Rows to try sizes with, and what the reference size answers; none if all answers are NaN.

        As many as it takes to see a difference in rounding, which a few numbers may not show: the less
        the model answers, the more rows.
        """
        known: dict[Any, Any] = reading.lane.group.state.setdefault("references", {})
        kind = (length, reading.length == length, torch.get_num_threads())
        if kind not in known:
            known[kind] = ([], [])
            for content in (_noise, _rolled):  # some models take no content but their own
                try:
                    rows, answers = self._answers(reading, length, content)
                except Exception:
                    if content is _rolled:
                        del known[kind]  # this request is to blame, perhaps
                        raise
                    continue
                if rows:
                    known[kind] = rows, answers
                    break
        found: tuple[list[Reading], list[list[torch.Tensor]]] = known[kind]
        return found

    def _answers(
        self, reading: Reading, length: int, content: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> tuple[list[Reading], list[list[torch.Tensor]]]:
        group = reading.lane.group
        rows: list[Reading] = []
        answers: list[list[torch.Tensor]] = []
        numbers = 0
        end = time.perf_counter() + _TRIAL_SECONDS
        while len(rows) < _TRIAL_ROWS and numbers < _TRIAL_NUMBERS:
            if len(rows) >= _FEWEST_TRIAL_ROWS and time.perf_counter() > end:
                break
            leaves = tuple(
                leaf[:1] if i == group.mask_index else content(leaf[:1], len(rows))
                for i, leaf in enumerate(reading.leaves)
            )
            row = Reading(leaves, 1, reading.lane, reading.length)
            answer = _row_of(self.call(merge([row], length, _ROW_SIZES[0]), group), 0)
            if any(part.is_floating_point() and part.isnan().any() for part in answer):
                return [], []  # NaN shows nothing
            rows.append(row)
            answers.append([part.clone() for part in answer])
            numbers += max(1, sum(part.numel() for part in answer))
        return rows, answers


class _EagerRunner(ImmediateRunner):
    def __init__(self, plan: EagerPlan) -> None:
        super().__init__(plan.device)
        self._plan = plan

    def _run(self, readings: Sequence[Reading]) -> list[Any]:
        plan = self._plan
        lane = readings[0].lane
        if not lane.group.sequence:
            return self._run_at(readings, 0, None)
        lengths = {reading.length for reading in readings}
        length = lane.length if plan.options.deterministic else max(lengths)
        if lengths == {length}:
            if plan.options.deterministic:
                # At the model's longest there is no padding, which may take other kernels: no mates.
                return [result for reading in readings for result in self._run_at([reading], length, None)]
            return self._run_at(readings, length, None)
        for reading in readings:  # mostly the first one tells
            layout = plan.layout(reading)
            if "layout" in lane.group.state:
                break
        if not layout.padding:
            return self._apart(readings, lengths)
        if plan.options.deterministic and length in lengths:
            return self._apart(readings, lengths, length)
        return self._run_at(readings, length, layout)

    def _run_at(self, readings: Sequence[Reading], length: int, layout: OutputLayout | None) -> list[Any]:
        """Run requests as one batch, padded to ``length`` if there is a layout to cut them back by."""
        plan = self._plan
        group = readings[0].lane.group
        started = time.perf_counter()
        rows = sum(reading.rows for reading in readings)
        fill = 0
        if plan.options.deterministic:
            fill = plan.row_size(readings, length)
            if fill == 0 and len(readings) > 1:  # no size is both large enough and trusted
                half = len(readings) // 2
                first = self._run_at(readings[:half], length, layout)
                return [*first, *self._run_at(readings[half:], length, layout)]
        output = plan.call(merge(readings, length, fill), group)
        results = cut(output, readings, layout, length, plan.options.unbatched, fill)
        cost = group.state.get("cost")
        if cost is None:
            cost = group.state.setdefault("cost", FittedCost())
        cost.observe(max(rows, fill), length or 1, time.perf_counter() - started)
        return results

    def _apart(self, readings: Sequence[Reading], lengths: set[int], only: int = 0) -> list[Any]:
        """Run the requests of each length by themselves, or those of length ``only`` and all others."""
        results: list[Any] = [None] * len(readings)
        for group in [{only}, lengths - {only}] if only else [{length} for length in sorted(lengths)]:
            places = [i for i, reading in enumerate(readings) if reading.length in group]
            chosen = [readings[i] for i in places]
            if only:
                answers = self._run(chosen)
            else:
                answers = self._run_at(chosen, chosen[0].length, None)
            for i, result in zip(places, answers, strict=True):
                results[i] = result
        return results


def _deterministic_bucket(model: object, options: EagerOptions) -> Any:
    multiple = options.padding.multiple if options.padding is not None else 1
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)

    def bucket(length: int) -> int:
        # One more than needed: a batch without any padding may take other kernels than one with.
        wide = (length // multiple + 1) * multiple
        return min(wide, max(length, int(limit))) if limit else wide

    return bucket


def _noise(leaf: torch.Tensor, number: int) -> torch.Tensor:
    """Content that shows differences in rounding, as zeros would not. Ids come from the request."""
    if not leaf.is_floating_point():
        return _rolled(leaf, number)
    made = torch.arange(leaf.numel(), dtype=torch.float64).add(1000.0 * number).mul(0.7).sin()
    return made.reshape(leaf.shape).to(device=leaf.device, dtype=leaf.dtype)


def _rolled(leaf: torch.Tensor, number: int) -> torch.Tensor:
    """The request's own content, in another order."""
    return leaf.roll(number, dims=-1) if leaf.dim() > 1 else leaf


def _row_of(output: Any, place: int) -> list[torch.Tensor]:
    return [
        leaf[place] for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.dim()
    ]


def _equal_bits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(_bits(x).equal(_bits(y)) for x, y in zip(a, b, strict=True))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() else tensor
