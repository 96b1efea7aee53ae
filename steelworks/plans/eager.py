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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from steelworks.devices.base import Device, Stream
from steelworks.plans.batches import OutputLayout, cut, merge, probe_layout
from steelworks.plans.cost import FittedCost
from steelworks.plans.inputs import Group, InputReader, Padding, Reading
from steelworks.plans.plan import Plan, Runner, Ticket

logger = logging.getLogger("steelworks.plans")

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
    """

    max_batch_size: int = 32
    padding: Padding | None = None
    deterministic: bool = False
    unbatched: bool = False
    packing: bool | None = None


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

    def runner(self, depth: int = 1) -> Runner:
        """Make a runner; they share the model and nothing else."""
        stream = self.device.new_stream() if self.device.capabilities.streams else None
        return _EagerRunner(self, stream)

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
        """Call the model on merged CPU or device tensors; the output is on the CPU."""
        home = self.device.torch_device.type
        if home != "cpu":
            tensors = [t if t.device.type == home else self.device.copy_in(t) for t in tensors]
        args, kwargs = group.rebuild(tensors)
        with torch.no_grad():
            output = self.model(*args, **kwargs)
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
                    layout = probe_layout(self.call, reading)
                    group.state["layout"] = layout
        return layout

    def row_size(self, readings: Sequence[Reading], length: int) -> int:
        """Deterministic mode: the number of rows to pad this batch to."""
        rows = sum(reading.rows for reading in readings)
        group = readings[0].lane.group
        trusted: dict[tuple[int, int], bool] = group.state.setdefault("trusted", {})
        for size in (*(s for s in _ROW_SIZES if s >= rows), 0):
            if size == 0:
                return 0
            if size == _ROW_SIZES[0]:
                return size
            known = trusted.get((length, size))
            if known is None:
                with self._learning:
                    known = trusted.setdefault((length, size), self._same_bits(readings[0], length, size))
            if known:
                return size
        return 0

    def _same_bits(self, reading: Reading, length: int, size: int) -> bool:
        """Whether a batch of ``size`` rows gives the bits that the reference size gives."""
        group = reading.lane.group
        row = Reading(tuple(leaf[:1] for leaf in reading.leaves), 1, reading.lane, reading.length)
        noise = [
            torch.flip(leaf, dims=(-1,)) if leaf.dim() > 1 and i != group.mask_index else leaf
            for i, leaf in enumerate(row.leaves)
        ]
        other = Reading(tuple(noise), 1, reading.lane, reading.length)
        reference = _first_row(self.call(merge([row], length, _ROW_SIZES[0]), group), 0)
        for place in (0, size - 1):
            batch: list[Reading] = [other] * size
            batch[place] = row
            if not _equal_bits(reference, _first_row(self.call(merge(batch, length), group), place)):
                return False
        return True


class _EagerTicket(Ticket):
    __slots__ = ("results",)

    def __init__(self, results: list[Any]) -> None:
        self.results = results


class _EagerRunner(Runner):
    def __init__(self, plan: EagerPlan, stream: Stream | None) -> None:
        self._plan = plan
        self._stream = stream

    def launch(self, readings: Sequence[Reading]) -> Ticket:
        if self._stream is None:
            return _EagerTicket(self._run(readings))
        with self._stream.use():
            return _EagerTicket(self._run(readings))

    def finish(self, ticket: Ticket) -> list[Any]:
        assert isinstance(ticket, _EagerTicket)
        return ticket.results

    def _run(self, readings: Sequence[Reading]) -> list[Any]:
        plan = self._plan
        options = plan.options
        lane = readings[0].lane
        group = lane.group
        started = time.perf_counter()
        layout: OutputLayout | None = None
        length = 0
        rows = sum(reading.rows for reading in readings)
        fill = 0
        if group.sequence:
            length = lane.length if options.deterministic else max(reading.length for reading in readings)
            if any(reading.length != length for reading in readings):
                layout = plan.layout(readings[0])
                if not layout.padding:
                    return self._by_length(readings)
        if options.deterministic:
            fill = plan.row_size(readings, length)
            if fill == 0:
                return self._one_by_one(readings)
            group.state["row_buckets"] = _ROW_SIZES
        output = plan.call(merge(readings, length, fill), group)
        results = cut(output, readings, layout, length, options.unbatched)
        cost = group.state.get("cost")
        if cost is None:
            cost = group.state.setdefault("cost", FittedCost())
        cost.observe(max(rows, fill), length or 1, time.perf_counter() - started)
        return results

    def _by_length(self, readings: Sequence[Reading]) -> list[Any]:
        """Padding is off: run the requests of each length by themselves."""
        results: list[Any] = [None] * len(readings)
        for length in sorted({reading.length for reading in readings}):
            places = [i for i, reading in enumerate(readings) if reading.length == length]
            chosen = [readings[i] for i in places]
            output = self._plan.call(merge(chosen), readings[0].lane.group)
            for i, result in zip(
                places, cut(output, chosen, None, length, self._plan.options.unbatched), strict=True
            ):
                results[i] = result
        return results

    def _one_by_one(self, readings: Sequence[Reading]) -> list[Any]:
        """No row size is both large enough and trusted: halve the batch."""
        if len(readings) == 1:
            reading = readings[0]
            length = reading.lane.length if reading.lane.group.sequence else 0
            layout = self._plan.layout(reading) if length != reading.length and length else None
            output = self._plan.call(merge(readings, length), reading.lane.group)
            return cut(output, readings, layout, length, self._plan.options.unbatched)
        half = len(readings) // 2
        return [*self._run(readings[:half]), *self._run(readings[half:])]


def _deterministic_bucket(model: object, options: EagerOptions) -> Any:
    multiple = options.padding.multiple if options.padding is not None else 1
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)

    def bucket(length: int) -> int:
        # One more than needed: a batch without any padding may take other kernels than one with.
        wide = (length // multiple + 1) * multiple
        return min(wide, max(length, int(limit))) if limit else wide

    return bucket


def _first_row(output: Any, place: int) -> list[torch.Tensor]:
    return [
        leaf[place] for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.dim()
    ]


def _equal_bits(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(_bits(x).equal(_bits(y)) for x, y in zip(a, b, strict=True))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor
