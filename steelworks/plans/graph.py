"""A plan of captured CUDA graphs, with the copies from and to pinned host memory inside.

Promises: a run costs the host one staging call an input, one graph launch and one wait; the GIL is free
during launch and wait. Every runner has its own streams, memory pools and pinned buffers, one set for each
batch in flight, so nothing is shared between workers (I1, I5). Capture happens on one thread, in
``thread_local`` mode (I4). Shapes that were not captured run on the eager plan behind this one; a model that
can't be captured does so altogether, and the reason is logged once (I8).

A graph exists for each row bucket and length. Which bucket serves a number of rows follows from the
measured time of each (:class:`steelworks.plans.cost.BucketTable`).
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from steelworks.devices.base import Device
from steelworks.devices.cuda import CUDAStream
from steelworks.plans._mapped import copy_to_device, copy_to_host
from steelworks.plans._masks import WholeMasks
from steelworks.plans._staging import SMALL_ROWS, array_of, stage, stage_small, take_rows
from steelworks.plans.batches import OutputLayout, cut, merge
from steelworks.plans.cost import BucketTable
from steelworks.plans.eager import EagerOptions, EagerPlan
from steelworks.plans.inputs import Group, InputReader, Reading
from steelworks.plans.plan import MISS, Express, Plan, Runner, Ticket

if TYPE_CHECKING:
    from steelworks.plans import PlanOptions

logger = logging.getLogger("steelworks.plans")

_DEFAULT_LENGTHS = (16, 32, 64, 128, 256, 512)
_WARM_UP_RUNS = 3
_TIMED_RUNS = 9
_MAX_COMPILED_SHAPES = 256
# A row bucket fills the device if it takes this many times the smallest one's time, at this share of the
# best rate.
_FULL_TIME = 1.5
_FULL_RATE = 0.9
_NEVER = 1 << 62


class GraphPlan(Plan):
    """Replays captured graphs; see the module's text.

    Args:
        model: a module on the device.
        device: a device with graphs.
        options: batch sizes, lengths, padding, compile.
        example: a request; None to capture for the first request that comes.
    """

    any_thread = True

    def __init__(
        self, model: nn.Module, device: Device, options: PlanOptions, example: object = None
    ) -> None:
        self.sizes = tuple(
            sorted({s for s in _sizes(options) if s <= options.max_batch_size} | {options.max_batch_size})
        )
        self.eager = EagerPlan(
            model,
            device,
            EagerOptions(options.max_batch_size, options.padding, unbatched=options.unbatched, packing=False),
        )
        self.lengths: tuple[int, ...] = tuple(sorted(options.lengths or ()))
        reader = InputReader(
            options.padding, bucket=self._bucket, unbatched=options.unbatched, expect=None, devices=("cpu",)
        )
        super().__init__(device, reader, options.max_batch_size)
        if not self.lengths:
            self.lengths = _default_lengths(
                model, None if example is None else reader.read(example).length, options
            )
        if example is not None:
            # Read anew: lanes follow from the lengths, which are known only now.
            self.reader = InputReader(
                options.padding,
                bucket=self._bucket,
                unbatched=options.unbatched,
                expect=example,
                devices=("cpu",),
            )
        self.options = options
        self.model = model
        self.call_model: Callable[..., Any] = model
        if options.compile:
            self.call_model = torch.compile(model, dynamic=False)
        self._example = example
        self._capturing = threading.Lock()
        self._reasons: set[str] = set()

    def _bucket(self, length: int) -> int:
        """The smallest captured length that holds ``length``; beyond the largest, the length itself."""
        for bucket in self.lengths:
            if bucket >= length:
                return bucket
        return length

    def runner(self, depth: int = 1) -> Runner:
        """Make a runner with its own streams, pools and buffers; captures the example's graphs."""
        return self._make(depth, self.sizes)

    def _make(self, depth: int, sizes: tuple[int, ...]) -> _GraphRunner:
        runner = _GraphRunner(self, depth, sizes)
        if self._example is not None:
            reading = self.reader.read(self._example)
            for length in self.lengths if reading.lane.group.sequence else (0,):
                runner.prepare(reading, length)
        return runner

    def express(self, count: int) -> list[Express]:
        """Runs of the smallest row bucket, for callers that find the queue empty."""
        if self._example is None:
            return []
        return [_GraphExpress(self, self._make(1, self.sizes[:1])) for _ in range(count)]

    def predict(self, group: Group, rows: int, length: int) -> float:
        """Measured seconds of the cheapest runs that serve ``rows`` rows."""
        table: BucketTable | None = group.state.get(("table", length if group.sequence else 0))
        return table.best(rows).seconds if table is not None else self.eager.predict(group, rows, length)

    def first_run(self, group: Group, rows: int, length: int) -> int:
        """The size of the first of the cheapest runs for ``rows`` rows."""
        table: BucketTable | None = group.state.get(("table", length if group.sequence else 0))
        if table is None or rows < 1:
            return min(rows, self.max_batch_size)
        return min(rows, table.best(rows).runs[0])

    def may_pad(self, group: Group) -> bool:
        """False once probing showed that padding changes the model's answers."""
        return self.eager.may_pad(group)

    def layout(self, reading: Reading) -> OutputLayout | None:
        """How the group's output is cut back; None where nothing is padded."""
        return self.eager.layout(reading) if reading.lane.group.sequence else None

    def captured(self, group: Group, length: int) -> bool:
        """Whether graphs may be used for this group and length."""
        if group.state.get("uncapturable"):
            return False
        if not group.sequence:
            return True
        layout: OutputLayout | None = group.state.get("layout")
        return length in self.lengths and (layout is None or layout.padding)

    def give_up(self, group: Group, error: BaseException) -> None:
        """Note that the group can't be captured; logs each reason once."""
        group.state["uncapturable"] = True
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        if reason not in self._reasons:
            self._reasons.add(reason)
            logger.warning("the model can't be captured into a CUDA graph and runs as it is: %s", reason)

    def compiling(self) -> ExitStack:
        """A scope in which ``torch.compile`` may make as many shapes as there are buckets."""
        stack = ExitStack()
        if self.options.compile:
            stack.enter_context(WholeMasks())
            import torch._dynamo.config as config
            import torch._inductor.config as inductor

            # Inference only: weights become constants, so that matmuls of one input are joined.
            stack.enter_context(inductor.patch(freezing=True))

            name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
            stack.enter_context(config.patch({name: _MAX_COMPILED_SHAPES}))
        return stack

    @property
    def lock(self) -> threading.Lock:
        """Held while capturing: one thread at a time (I4)."""
        return self._capturing


class _Graph:
    """One captured run: its graph, and where its inputs and outputs are."""

    __slots__ = ("graph", "outputs")

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: list[Any]) -> None:
        self.graph = graph
        self.outputs = outputs


class _Buffers:
    """Pinned and device memory of one slot for one group and length, at the largest row bucket."""

    def __init__(self, reading: Reading, length: int, rows: int, device: torch.device) -> None:
        group = reading.lane.group
        self.pinned: list[torch.Tensor] = []
        self.device: list[torch.Tensor] = []
        for index, leaf in enumerate(reading.leaves):
            shape = list(leaf.shape[1:])
            if index in group.sequence:
                shape[0] = length
            self.pinned.append(torch.zeros(rows, *shape, dtype=leaf.dtype, pin_memory=True))
            self.device.append(torch.zeros(rows, *shape, dtype=leaf.dtype, device=device))
        self.arrays = [array_of(pinned) for pinned in self.pinned]
        self.plain = all(array is not None for array in self.arrays)
        self.outputs: list[Any] = []
        self.output_array: Any = None  # numpy view of the one output tensor, where it is just one
        self.output_arrays: list[Any] = []
        self.spec: pytree.TreeSpec | None = None
        self.graphs: dict[int, _Graph] = {}
        self.size_for: list[int] = []


class _Slot:
    """One batch in flight: a stream, a memory pool, buffers and graphs of its own."""

    def __init__(self, device: Device) -> None:
        owner = device.new_stream()
        assert isinstance(owner, CUDAStream)
        self._owner = owner  # as long as this lives, nobody else is given the stream
        self.stream = owner.raw
        self.pool = torch.cuda.graph_pool_handle()
        self.buffers: dict[tuple[int, int], _Buffers] = {}
        self.busy = False
        self._device = device.torch_device
        self._raw = (self.stream.stream_id, self.stream.device_index, self.stream.device_type)
        self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def replay(self, graph: torch.cuda.CUDAGraph, behind: _Slot | None = None) -> None:
        """Launch ``graph`` on this slot's stream, and leave the thread's current stream as it was.

        Args:
            graph: one of this slot's graphs.
            behind: launch on that slot's stream instead, behind what runs there.
        """
        where = behind or self
        if _RAW_STREAMS:
            before = torch._C._cuda_getCurrentStream(self._raw[1])
            _set_raw(where._raw)
            graph.replay()
            _set_raw(before)
        else:
            current = torch.cuda.current_stream(self._device)
            torch.cuda.set_stream(where.stream)
            graph.replay()
            torch.cuda.set_stream(current)
        if behind is not None:
            self._done.record(behind.stream)

    def wait(self, behind: bool) -> None:
        """Wait for what :meth:`replay` launched, and for nothing launched later."""
        if behind:
            self._done.synchronize()
        else:
            self.stream.synchronize()


class _GraphTicket(Ticket):
    __slots__ = ("behind", "buffers", "layout", "length", "readings", "rows", "slot")

    def __init__(
        self,
        slot: _Slot,
        buffers: _Buffers,
        readings: Sequence[Reading],
        rows: int,
        length: int,
        layout: OutputLayout | None,
        behind: bool,
    ) -> None:
        self.behind = behind
        self.slot = slot
        self.buffers = buffers
        self.readings = readings
        self.rows = rows
        self.length = length
        self.layout = layout


class _DoneTicket(Ticket):
    __slots__ = ("results",)

    def __init__(self, results: list[Any]) -> None:
        self.results = results


class _GraphExpress(Express):
    """One slot with the smallest row bucket; a lean way for single tensors, the runner's for the rest."""

    def __init__(self, plan: GraphPlan, runner: _GraphRunner) -> None:
        self._plan = plan
        self._runner = runner
        self._slot = runner.slots[0]
        self._shape: torch.Size | None = None
        self._dtype: torch.dtype | None = None
        self._input: Any = None
        self._output: Any = None
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, request: Any) -> Any:
        shape = self._shape
        if (
            shape is not None
            and type(request) is torch.Tensor
            and request.shape == shape
            and request.dtype is self._dtype
            and request.is_cpu
        ):
            try:
                self._input[...] = request.numpy()
            except RuntimeError:  # it needs grad
                return MISS
            self._slot.replay(self._graph)  # type: ignore[arg-type]
            self._slot.stream.synchronize()
            return torch.from_numpy(self._output.copy())
        reading = self._plan.reader.read(request)
        buffers = self._slot.buffers.get((id(reading.lane.group), reading.lane.length))
        if buffers is None or reading.rows >= len(buffers.size_for):
            return MISS
        if type(request) is torch.Tensor and not self._plan.options.unbatched:
            self._remember(request, reading, buffers)
        return self._runner.finish(self._runner.launch([reading]))[0]

    def _remember(self, request: torch.Tensor, reading: Reading, buffers: _Buffers) -> None:
        """Take the lean way for requests of this shape from now on."""
        if buffers.output_array is None or not buffers.plain or reading.lane.group.sequence:
            return
        self._input = buffers.arrays[0][: reading.rows]
        self._output = buffers.output_array[: reading.rows]
        self._graph = buffers.graphs[buffers.size_for[reading.rows]].graph
        self._dtype = request.dtype
        self._shape = request.shape

    def close(self) -> None:
        self._shape = self._graph = self._input = self._output = None
        self._runner.close()


class _GraphRunner(Runner):
    def __init__(self, plan: GraphPlan, depth: int, sizes: tuple[int, ...]) -> None:
        self._plan = plan
        self._sizes = sizes
        self._device = plan.device.torch_device
        self.slots = [_Slot(plan.device) for _ in range(max(1, depth))]
        self._eager: Runner | None = None  # with a stream of its own; seldom needed

    # ------------------------------------------------------------ running

    def launch(self, readings: Sequence[Reading]) -> Ticket:
        lane = readings[0].lane
        group = lane.group
        length = 0
        if group.sequence:
            length = max(reading.lane.length for reading in readings)
        plan = self._plan
        key = (id(group), length)
        slot = next((s for s in self.slots if not s.busy), None)
        buffers = slot.buffers.get(key) if slot is not None else None
        if buffers is None and plan.captured(group, length):
            self.prepare(readings[0], length)
            buffers = slot.buffers.get(key) if slot is not None else None
        rows = sum(reading.rows for reading in readings)
        if slot is None or buffers is None or rows >= len(buffers.size_for):
            if self._eager is None:
                self._eager = plan.eager.runner()
            with torch.autocast("cuda", enabled=False):  # the thread may be a caller's own
                return _DoneTicket(self._eager.finish(self._eager.launch(readings)))
        if not (
            rows <= SMALL_ROWS and buffers.plain and stage_small(buffers.arrays, readings, group, length)
        ):
            stage(buffers.pinned, readings, group, length)
        graph = buffers.graphs[buffers.size_for[rows]]
        # Small graphs run side by side. One that fills the device runs behind the one before it: two at once
        # would only get into each other's way.
        behind = rows >= group.state.get(("full", length), _NEVER) and len(self.slots) > 1
        slot.replay(graph.graph, self.slots[0] if behind else None)
        slot.busy = True
        ragged = bool(group.sequence) and any(reading.length != length for reading in readings)
        layout = group.state.get("layout") if ragged else None
        return _GraphTicket(slot, buffers, readings, rows, length, layout, behind)

    def finish(self, ticket: Ticket) -> list[Any]:
        if isinstance(ticket, _DoneTicket):
            return ticket.results
        assert isinstance(ticket, _GraphTicket)
        slot, buffers, rows = ticket.slot, ticket.buffers, ticket.rows
        unbatched = self._plan.options.unbatched
        try:
            slot.wait(ticket.behind)
            if (
                rows <= SMALL_ROWS
                and buffers.output_array is not None
                and ticket.layout is None
                and not unbatched
            ):
                return take_rows(buffers.output_array, [reading.rows for reading in ticket.readings])
            # The pinned outputs are written again by the next run: results get memory of their own.
            own = [
                _own_rows(*output, rows)
                for output in zip(buffers.outputs, buffers.output_arrays, strict=True)
            ]
        finally:
            slot.busy = False
        spec = buffers.spec
        assert spec is not None
        output = own[0] if spec.is_leaf() else pytree.tree_unflatten(own, spec)
        return cut(output, ticket.readings, ticket.layout, ticket.length, unbatched)

    def close(self) -> None:
        for slot in self.slots:
            slot.buffers.clear()

    # ------------------------------------------------------------ capturing

    def prepare(self, reading: Reading, length: int) -> None:
        """Capture all row buckets for the request's group and ``length``, in every slot."""
        plan, group = self._plan, reading.lane.group
        with plan.lock:
            if not plan.captured(group, length):
                return
            try:
                with torch.cuda.device(self._device), torch.no_grad(), plan.compiling():
                    layout = plan.layout(reading)
                    if layout is not None and not layout.padding:
                        return
                    for slot in self.slots:
                        slot.buffers[(id(group), length)] = self._capture(slot, reading, length)
                    self._measure(group, length)
            except Exception as error:
                torch.cuda.synchronize(self._device)
                for slot in self.slots:
                    slot.buffers.pop((id(group), length), None)
                plan.give_up(group, error)

    def _capture(self, slot: _Slot, reading: Reading, length: int) -> _Buffers:
        group, sizes = reading.lane.group, self._sizes
        buffers = _Buffers(reading, length, sizes[-1], self._device)
        row = Reading(tuple(leaf[:1] for leaf in reading.leaves), 1, reading.lane, reading.length)
        if group.sequence and row.length > length:
            cut_leaves = tuple(
                leaf[:, :length] if i in group.sequence else leaf for i, leaf in enumerate(row.leaves)
            )
            row = Reading(cut_leaves, 1, row.lane, length)
        for pinned, batch in zip(buffers.pinned, merge([row], length, sizes[-1]), strict=True):
            pinned.copy_(batch)
        gc.collect()  # nothing that owns device memory may be freed in the middle of a capture
        for size in reversed(sizes):  # the largest first: the smaller ones fit into its memory
            buffers.graphs[size] = self._capture_one(slot, buffers, group, size)
        sizes_up = iter(sizes)
        size = next(sizes_up)
        for rows in range(sizes[-1] + 1):
            if rows > size:
                size = next(sizes_up)
            buffers.size_for.append(size)
        return buffers

    def _capture_one(self, slot: _Slot, buffers: _Buffers, group: Group, size: int) -> _Graph:
        pinned = [t[:size] for t in buffers.pinned]
        inputs = [t[:size] for t in buffers.device]
        args, kwargs = group.rebuild(inputs)
        model = self._plan.call_model

        def copy_in() -> None:
            for source, target in zip(pinned, inputs, strict=True):
                copy_to_device(source, target)

        with torch.cuda.stream(slot.stream):
            output: Any = None
            for _ in range(_WARM_UP_RUNS):
                copy_in()
                output = model(*args, **kwargs)
            flat, spec = pytree.tree_flatten(output)
            if not buffers.outputs:
                buffers.spec = spec
                buffers.outputs = [_pinned_like(leaf, size) for leaf in flat]
                buffers.output_arrays = [
                    array_of(t) if isinstance(t, torch.Tensor) else None for t in buffers.outputs
                ]
                buffers.output_array = buffers.output_arrays[0] if spec.is_leaf() else None
            del output, flat
            slot.stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=slot.pool, capture_error_mode="thread_local")
            try:
                copy_in()
                captured, _ = pytree.tree_flatten(model(*args, **kwargs))
                for leaf, target in zip(captured, buffers.outputs, strict=True):
                    if isinstance(leaf, torch.Tensor):
                        if leaf.dim() == 0 or leaf.shape[0] != size:
                            raise _not_rows(leaf, size)
                        copy_to_host(leaf, target[:size])
            finally:
                graph.capture_end()
            slot.stream.synchronize()
        return _Graph(graph, buffers.outputs)

    def _measure(self, group: Group, length: int) -> None:
        """Time every bucket once a plan, on the first slot; synchronized calls, host time included."""
        key = ("table", length)
        if key in group.state or self._sizes != self._plan.sizes:
            return
        slot = self.slots[0]
        buffers = slot.buffers[(id(group), length)]
        seconds = {}
        torch.cuda.set_stream(slot.stream)
        for size, captured in buffers.graphs.items():
            times = []
            for run in range(_TIMED_RUNS + 2):
                started = time.perf_counter()
                captured.graph.replay()
                slot.stream.synchronize()
                if run >= 2:
                    times.append(time.perf_counter() - started)
            seconds[size] = median(times)
        group.state[key] = BucketTable(seconds)
        least, rate = seconds[min(seconds)], max(size / t for size, t in seconds.items())
        filling = [s for s, t in seconds.items() if t > _FULL_TIME * least and s / t > _FULL_RATE * rate]
        group.state[("full", length)] = min(filling, default=_NEVER)


# Setting the current stream through torch.cuda costs several microseconds of Python, twice a launch.
_RAW_STREAMS = hasattr(torch._C, "_cuda_getCurrentStream") and hasattr(torch._C, "_cuda_setStream")


def _set_raw(stream: tuple[int, int, int]) -> None:
    torch._C._cuda_setStream(stream_id=stream[0], device_index=stream[1], device_type=stream[2])


def _own_rows(leaf: Any, array: Any, rows: int) -> Any:
    """A copy of the first rows; by numpy where possible, for torch would wake all its threads for it."""
    if array is not None:
        return torch.from_numpy(array[:rows].copy())
    return leaf[:rows].clone() if isinstance(leaf, torch.Tensor) else leaf


def _not_rows(leaf: torch.Tensor, rows: int) -> ValueError:
    return ValueError(f"an output of shape {list(leaf.shape)} for {rows} rows: dim 0 is not the batch")


def _pinned_like(leaf: Any, rows: int) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.dim() == 0 or leaf.shape[0] != rows:
        raise _not_rows(leaf, rows)
    return torch.empty(leaf.shape, dtype=leaf.dtype, pin_memory=True)


def _sizes(options: PlanOptions) -> tuple[int, ...]:
    if options.batch_sizes is not None:
        return options.batch_sizes
    sizes = [1]
    while sizes[-1] * 2 <= options.max_batch_size:
        sizes.append(sizes[-1] * 2)
    return tuple(sizes)


def _default_lengths(model: nn.Module, example: int | None, options: PlanOptions) -> tuple[int, ...]:
    if options.padding is None:
        return ()
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None) or _DEFAULT_LENGTHS[-1]
    lengths = {length for length in _DEFAULT_LENGTHS if length <= limit}
    if example:
        lengths.add(example)
    return tuple(sorted(lengths))
