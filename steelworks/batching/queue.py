"""BatchQueue: any number of threads and asyncio tasks call one model; it runs in batches."""

from __future__ import annotations

import _thread
import asyncio
import copy
import math
import numbers
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from types import TracebackType
from typing import Any, Literal

import torch

from steelworks.batching import _lifecycle
from steelworks.batching._express import ExpressLane
from steelworks.batching._map import run_map
from steelworks.batching._request import (
    BlockingSink,
    FutureSink,
    LoopSink,
    Request,
    RequestFuture,
)
from steelworks.batching._scheduler import FORKED, Scheduler
from steelworks.batching._tracing import Tracer
from steelworks.batching._worker import Crew, Supervisor
from steelworks.batching.options import Overflow, QueueOptions
from steelworks.batching.statistics import QueueStatistics
from steelworks.devices.base import Device
from steelworks.errors import DeadlineExceededError, QueueClosedError, SteelworksError
from steelworks.plans import PlanOptions, make_plans
from steelworks.plans.inputs import Padding
from steelworks.plans.plan import MISS, Plan

_OUTBOX = 256  # requests of one turn of an event loop after which they are submitted
_BLOCKING = BlockingSink()
_FUTURE = FutureSink()


class BatchQueue:
    """Calls one model from any number of threads and asyncio tasks, in batches.

    A request is what the model would be called with, of one row or a few: a tensor ``[rows, ...]``, a tuple
    of them (``model(*request)``), or a mapping (``model(**request)``), as Hugging Face tokenizers give. Its
    result is what the model would return for those rows. Requests of different lengths share a batch where
    they carry an ``attention_mask``; the model is probed once to see that padding does not change its
    answers.

    Promises (the ids are those of the design):

    * I2: every accepted request ends exactly once: with its result, its own exception, or a cancellation;
      also when batch mates fail, a worker dies or hangs, the queue is closed, or the interpreter exits.
    * I3: with ``deterministic=True`` the result is bit-identical whatever the request was batched with.
    * Requests run in order of arrival less ``priority * aging`` seconds; none starves.
    * A free worker never waits while requests do, unless ``max_wait`` is given.

    Results share the storage of their batch's output; call ``.clone()`` to keep one of them for long.

    Example:
        >>> with steelworks.BatchQueue(model, max_batch_size=64) as queue:
        ...     y = queue(x)                              # blocks; from any thread
        ...     future = queue.submit(x, deadline=0.050)  # concurrent.futures.Future
        ...     y = await queue.asubmit(x)                # asyncio
        ...     for y in queue.map(xs): ...               # ordered; a window in flight

    Args:
        model: a module or any callable, called with batches; or a plan made by :func:`steelworks.plan`.
        max_batch_size: the most rows in one batch.
        device: where to run; by default where the model's parameters are.
        devices: several devices of one kind, or one; the model is copied to each, and the first free one takes the
            next batch.
        example: a typical request. With it, shapes are checked, and everything is compiled, captured and
            measured before the first request; without it, at the first request.
        collate: makes one model input of a list of requests (of any type); then ``split`` makes a list of
            results of the model's output and the requests. Without ``split``, result i is ``output[i]``.
        split: see ``collate``.
        unbatched: requests are single examples without a batch dimension.
        padding: which inputs may be padded; ``"auto"`` for those of Hugging Face models; None for none.
        batch_sizes: row buckets to capture (CUDA).
        lengths: sequence lengths to capture (CUDA).
        compile: run the model through ``torch.compile`` first.
        packing: run encoders without padding in their linear layers where that is right and wins;
            None decides by measurement.
        quantize: ``"int8"`` runs large linear layers in int8, on the CPU: faster and less exact. Each row has a scale
            of its own, but where batching changes the last bit of a float32 part (padded attention), a result may
            vary by as much as int8's own error; ``deterministic=True`` prevents that. The model is left alone.
        tracing: OpenTelemetry spans; None for where they are set up.
        **options: the fields of :class:`steelworks.QueueOptions`: ``max_pending``, ``overflow``,
            ``max_wait``, ``aging``, ``batch_timeout``, ``deterministic``, ``num_workers``, ``depth``,
            ``express``, ``name``.

    Raises:
        TypeError: the model is a class, or can't be called.
        ValueError: an option is out of range, or ``quantize`` can't be done.
        InvalidInputError: the example has no tensors.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch_size: int = 32,
        device: str | torch.device | Device | None = None,
        devices: Sequence[str | torch.device | Device] | str | torch.device | Device | None = None,
        example: Any = None,
        collate: Callable[[list[Any]], Any] | None = None,
        split: Callable[[Any, list[Any]], Sequence[Any]] | None = None,
        unbatched: bool = False,
        padding: Padding | Literal["auto"] | None = "auto",
        batch_sizes: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        compile: bool = False,
        packing: bool | None = None,
        quantize: Literal["int8"] | None = None,
        tracing: bool | None = None,
        max_pending: int = 8192,
        overflow: Overflow = "block",
        max_wait: float = 0.0,
        aging: float = 1.0,
        batch_timeout: float | None = None,
        deterministic: bool = False,
        num_workers: int | None = None,
        depth: int | None = None,
        express: int = 8,
        name: str = "steelworks",
    ) -> None:
        if isinstance(model, Plan):
            max_batch_size = model.max_batch_size
            if deterministic and not getattr(getattr(model, "options", None), "deterministic", False):
                raise ValueError(
                    "deterministic=True was given with a plan that was made without it; make the plan with "
                    "deterministic=True, or pass the model"
                )
        self.options = QueueOptions(
            max_batch_size=max_batch_size,
            max_pending=max_pending,
            overflow=overflow,
            max_wait=max_wait,
            aging=aging,
            batch_timeout=batch_timeout,
            deterministic=deterministic,
            num_workers=num_workers,
            depth=depth,
            express=express,
            name=name,
        )
        plan_options = PlanOptions(
            max_batch_size=max_batch_size,
            batch_sizes=tuple(batch_sizes) if batch_sizes is not None else None,
            lengths=tuple(lengths) if lengths is not None else None,
            padding=Padding() if padding == "auto" else padding,
            deterministic=deterministic,
            unbatched=unbatched,
            compile=compile,
            packing=packing,
            quantize=quantize,
            collate=collate,
            split=split,
        )
        plans = make_plans(model, example, device, devices, plan_options)
        self._plan = plans[0]
        capabilities = self._plan.device.capabilities
        workers = num_workers or capabilities.default_workers * len(plans)
        if workers > capabilities.max_workers * len(plans):
            raise ValueError(
                f"num_workers is {workers}; {capabilities.name} allows "
                f"{capabilities.max_workers * len(plans)} here (see 'steelworks doctor'): "
                "pass that, or nothing"
            )
        self._read = self._plan.reader.read
        self._tracer = Tracer(name, tracing)
        self._aging = aging
        self._blocks = self.options.overflow == "block"
        self._scheduler = Scheduler(self._plan, self.options, workers)
        self._crew = Crew(self._scheduler, plans, depth or capabilities.default_depth, self._tracer)
        self._supervisor = Supervisor(self._scheduler, self._crew)
        self._life = _Life(
            self._scheduler, self._crew, self._supervisor, plans, owned=not isinstance(model, Plan)
        )
        self._loop_sinks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopSink] = (
            weakref.WeakKeyDictionary()
        )
        self._loop_sink: tuple[asyncio.AbstractEventLoop | None, LoopSink | None] = (None, None)
        try:
            self._crew.start()
        except BaseException:
            self._scheduler.close(cancel_pending=True)  # ends the workers that are there
            raise
        self._express: ExpressLane | None = None
        if not self._tracer.on and batch_timeout is None:
            runs = self._crew.express(self.options.express)
            self._express = self._scheduler.express = ExpressLane(runs) if runs else None
        if batch_timeout is not None:
            self._supervisor.ensure_started()
        _lifecycle.register(self._life)
        # A queue that is dropped without close() finishes its requests and ends its threads.
        self._finalizer = weakref.finalize(self, self._life.let_go)
        self._finalizer.atexit = False

    # ---------------------------------------------------------------- ways in

    def __call__(self, request: Any, *, deadline: float | None = None, priority: float = 0.0) -> Any:
        """Run one request and wait for its result; from any thread.

        Args:
            request: one row or a few; see the class.
            deadline: seconds from now after which the result is of no use.
            priority: counts as having come ``priority * aging`` seconds earlier.

        Raises:
            InvalidInputError: the request does not fit.
            DeadlineExceededError: the deadline passed.
            QueueFullError: too many wait, and ``overflow`` is not ``"block"``.
            QueueClosedError: the queue is closed, or was closed before the request ran.
            Exception: whatever the model raised for this request.
        """
        if threading.get_ident() in self._crew.idents:
            raise _own_worker("queue(x)")
        if deadline is None and self._express is not None and self._scheduler.express_may_run():
            result = self._express.run(request)
            if result is not MISS:
                return result
        now = time.perf_counter()
        gate = threading.Lock()
        gate.acquire()
        order = now if priority == 0.0 else now - _checked(priority) * self._aging
        entry = Request(self._read(request), _BLOCKING, gate, now, order)
        if self._tracer.on:
            entry.context = self._tracer.capture()
        if deadline is None:
            self._scheduler.submit(entry)
            try:
                gate.acquire()
            except BaseException:  # KeyboardInterrupt while waiting: nobody wants the result
                self._scheduler.withdraw(entry)
                raise
        else:
            self._wait_until(entry, now + _seconds(deadline), gate)
        error = entry.error
        if error is not None:
            try:
                raise error
            finally:
                del error, entry
        return entry.result

    def _wait_until(self, entry: Request, deadline: float, gate: Any) -> None:
        entry.deadline = deadline
        self._scheduler.submit(entry)
        try:
            if gate.acquire(timeout=max(0.0, min(deadline - time.perf_counter(), threading.TIMEOUT_MAX))):
                return
            withdrawn = self._scheduler.withdraw(entry)
        except BaseException:
            self._scheduler.withdraw(entry)
            raise
        if withdrawn:
            where = "was running" if entry.reading is not None else "waited for a worker"
            entry.error = DeadlineExceededError(
                f"the request's deadline of {deadline - entry.arrived:.3g} s passed while it {where}; "
                "give it longer, or send fewer at once"
            )
        else:
            gate.acquire()  # it ended in this very moment; its delivery is on the way

    def submit(self, request: Any, *, deadline: float | None = None, priority: float = 0.0) -> RequestFuture:
        """Send one request; returns a ``concurrent.futures.Future``. Arguments and errors as in the call.

        With ``overflow="block"`` this waits while ``max_pending`` requests wait. The future can be cancelled
        until its batch starts.
        """
        now = time.perf_counter()
        order = now if priority == 0.0 else now - _checked(priority) * self._aging
        future = RequestFuture(self._scheduler.cancel)
        entry = Request(self._read(request), _FUTURE, future, now, order)
        future.request = entry
        if self._tracer.on:
            entry.context = self._tracer.capture()
        if deadline is not None:
            entry.deadline = now + _seconds(deadline)
        try:
            parked = self._scheduler.submit(entry, clocked=True, waits=True)
        except BaseException:
            future.request = None  # else the two keep each other alive, and the tensors with them
            raise
        if deadline is not None:
            self._supervisor.ensure_started()
        # A worker's own thread (a callback) must not wait for room: it is the one that makes it.
        if parked and entry.admitted is not None and threading.get_ident() not in self._crew.idents:
            try:
                entry.admitted.wait()
            except BaseException:
                self._scheduler.cancel(entry)
                raise
        return future

    def asubmit(
        self, request: Any, *, deadline: float | None = None, priority: float = 0.0
    ) -> asyncio.Future[Any]:
        """Send one request from an asyncio task: ``y = await queue.asubmit(x)``.

        Never blocks the event loop. With ``overflow="block"`` a request over ``max_pending`` waits its turn,
        and so does the task that awaits it. Cancelling the task cancels the request if it has not started.
        Arguments and errors as in the call.
        """
        loop = asyncio.get_running_loop()
        cached_loop, sink = self._loop_sink
        if cached_loop is not loop or sink is None:
            sink = self._sink_of(loop)
        now = time.perf_counter()
        order = now if priority == 0.0 else now - _checked(priority) * self._aging
        future = loop.create_future()
        entry = Request(self._read(request), sink, future, now, order)
        if self._tracer.on:
            entry.context = self._tracer.capture()
        if deadline is None and self._blocks:
            if self.closed:
                raise self._scheduler.closed_error()
            # All that the tasks of this turn of the loop send is submitted at once: one lock, one wake-up.
            outbox = sink.outbox
            outbox.append(entry)
            if len(outbox) == 1:
                loop.call_soon(self._flush, sink)
            elif len(outbox) >= _OUTBOX:  # enough for a batch: let it start while the tasks go on
                self._flush(sink)
            return future
        if deadline is not None:
            entry.deadline = now + _seconds(deadline)
        self._scheduler.submit(entry, clocked=True)
        if deadline is not None:
            self._supervisor.ensure_started()
        return future

    def _flush(self, sink: LoopSink) -> None:
        entries, sink.outbox = sink.outbox, []
        if not entries:
            return
        try:
            self._scheduler.submit_many(entries)
        except SteelworksError as error:  # closed meanwhile
            for entry in entries:
                if not entry.token.done():
                    entry.token.set_exception(copy.copy(error))

    def _sink_of(self, loop: asyncio.AbstractEventLoop) -> LoopSink:
        sink = self._loop_sinks.get(loop)
        if sink is None:
            sink = self._loop_sinks.setdefault(loop, LoopSink(weakref.proxy(loop)))
        self._loop_sink = (loop, sink)
        return sink

    def map(
        self,
        requests: Iterable[Any],
        *,
        ordered: bool = True,
        window: int | None = None,
        priority: float = 0.0,
        progress: bool = False,
        return_exceptions: bool = False,
    ) -> Iterator[Any]:
        """Run many requests, a window of them in flight; yields one result a request.

        Args:
            requests: any iterable; it is read as fast as results are consumed.
            ordered: results in the order of the requests; False for as they complete.
            window: the most requests in flight; by default enough to keep every worker busy.
            priority: of all these requests.
            progress: show a progress bar.
            return_exceptions: yield a failed request's exception instead of raising it.

        Raises:
            Exception: the first failed request's, at its place; the rest are cancelled.
        """
        if threading.get_ident() in self._crew.idents:
            raise _own_worker("map()")
        least = self.options.max_batch_size
        if window is None:
            window = 2 * least * self._scheduler.workers * (self._crew.depth + 1)
        elif window < 1:
            raise ValueError(f"window is {window}; it is a number of requests and must be 1 or more")
        results = run_map(
            self,
            self._scheduler,
            self._read,
            requests,
            ordered=ordered,
            window=window,
            chunk=min(least, window),
            priority=_checked(priority),
            return_exceptions=return_exceptions,
            lead=self._plan.any_thread and self.options.batch_timeout is None,
        )
        if not progress:
            return results
        from rich.progress import track

        total = len(requests) if isinstance(requests, Sized) else None
        return iter(track(results, description=self.options.name, total=total))

    # ---------------------------------------------------------------- life

    def drain(self, timeout: float | None = None) -> bool:
        """Wait until every request accepted so far has ended; False if ``timeout`` seconds pass first.

        The queue stays open; requests that others send meanwhile are waited for as well. Futures are done
        when this returns; asyncio futures are as soon as their event loop runs.

        Raises:
            ForkedProcessError: this is a forked child.
            RuntimeError: called from one of the queue's own workers, by a callback.
        """
        if threading.get_ident() in self._crew.idents:
            raise _own_worker("drain()")
        return self._scheduler.drain(timeout)

    def close(self, cancel_pending: bool = False, timeout: float | None = None) -> bool:
        """Accept nothing more, end what is there, and end the workers. May be called again.

        Args:
            cancel_pending: cancel what has not started instead of running it.
            timeout: seconds to wait; then what is left is cancelled or, where it runs, given up.

        Returns:
            True if all workers ended; False if the timeout passed (a model that hangs).
        """
        self._finalizer.detach()
        return self._life.close(cancel_pending, timeout)

    def statistics(self) -> QueueStatistics:
        """Counters and histograms since the start; a consistent snapshot."""
        return self._scheduler.statistics()

    @property
    def closed(self) -> bool:
        """Whether the queue refuses requests."""
        return self._scheduler.state != "open"

    @property
    def plan(self) -> Plan:
        """The plan the queue runs (the first device's)."""
        return self._plan

    def __enter__(self) -> BatchQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # On an error nobody is left to take the results: do not run what has not started.
        self.close(cancel_pending=kind is not None)

    def __repr__(self) -> str:
        return (
            f"<BatchQueue {self.options.name!r} {self._scheduler.state} on {self._plan.device.torch_device}, "
            f"{self._scheduler.workers} workers, max_batch_size={self.options.max_batch_size}>"
        )


class _Life:
    """Closes a queue; separate from it so that threads and exit handlers don't keep the queue alive."""

    def __init__(
        self, scheduler: Scheduler, crew: Crew, supervisor: Supervisor, plans: Sequence[Plan], owned: bool
    ) -> None:
        self._scheduler = scheduler
        self._crew = crew
        self._supervisor = supervisor
        self._plans = plans
        self._owned = owned

    def close(self, cancel_pending: bool, timeout: float | None) -> bool:
        scheduler = self._scheduler
        if scheduler.state is FORKED:
            return True
        end = None if timeout is None else time.monotonic() + timeout
        scheduler.close(cancel_pending)
        joined = self._crew.join(timeout)
        if not joined:
            scheduler.close(cancel_pending=True)
            joined = self._crew.join(_left(end))
            if not joined:
                self._crew.give_up(QueueClosedError("the queue was closed while the request was running"))
        if threading.get_ident() in self._crew.idents:
            return joined  # a worker, by a callback: it still runs, and ends what is left when it returns
        if joined:  # no worker is left, but callers may run requests on their own threads
            joined = scheduler.drain(_left(end))
        self._supervisor.stop(_left(end))
        scheduler.finish_closing()
        if joined and scheduler.express is not None:
            joined = scheduler.express.settle(_left(end), keep=True)
        if joined and self._owned:
            for plan in self._plans:
                plan.close()
        _lifecycle.unregister(self)
        return joined

    def let_go(self) -> None:
        """The queue was dropped: let its threads end by themselves, without waiting for them."""
        # Garbage collection may call this anywhere, even in a thread that holds the scheduler's lock, and
        # threading.Thread takes locks as well: hence a thread of the plainest kind.
        if self._scheduler.state is not FORKED:
            try:
                _thread.start_new_thread(self._scheduler.close, (False,))
            except RuntimeError:  # the interpreter is going down; so are the workers
                pass

    def forked(self) -> None:
        self._scheduler.forked()
        for plan in self._plans:
            plan.reader.forked()

    def at_exit(self, seconds: float) -> None:
        self.close(cancel_pending=False, timeout=seconds)


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _own_worker(call: str) -> RuntimeError:
    return RuntimeError(
        f"{call} was called on a worker of this queue (by the model or by a callback), which would wait for "
        "itself; use submit() there, or do it on another thread"
    )


def _checked(priority: float) -> float:
    if not isinstance(priority, numbers.Real) or math.isnan(priority):
        raise ValueError(f"priority is {priority!r}; it must be a number of steps, such as 0 or 1.5")
    return priority


def _seconds(deadline: float) -> float:
    if not isinstance(deadline, numbers.Real) or not deadline > 0.0:
        raise ValueError(f"deadline is {deadline!r}; it is in seconds from now and must be more than 0")
    return deadline
