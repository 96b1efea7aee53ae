"""batch_inference: the short form of a queue."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from steelworks.batching.queue import BatchQueue
from steelworks.plans.plan import join


class batch_inference:
    """Run a model over many inputs in batches; may be called from any number of threads at once.

    Example:
        >>> with steelworks.batch_inference(model, batch_size=8) as infer:
        ...     ys = infer(xs)

    ``infer(xs)`` with a list: its items are requests; returns the list of their results. With a tensor,
    tuple or mapping of any number of rows: it is run in pieces of ``batch_size`` rows; returns what the model
    would return for all of them.

    Args:
        model: as for :class:`steelworks.BatchQueue`.
        batch_size: the most rows in one batch; :class:`steelworks.BatchQueue` calls it ``max_batch_size``.
        **options: any other argument of :class:`steelworks.BatchQueue`.
    """

    def __init__(self, model: Any, batch_size: int = 32, **options: Any) -> None:
        if "max_batch_size" in options:
            raise TypeError("batch_inference calls max_batch_size batch_size; give that instead")
        self.queue = BatchQueue(model, max_batch_size=batch_size, **options)
        # Then an input that is no list is one request, however many rows its tensors seem to have.
        self._whole = bool(options.get("unbatched")) or options.get("collate") is not None

    def __call__(self, xs: Any) -> Any:
        """Run ``xs``; see the class. Raises what the model raised for the first input that failed."""
        if isinstance(xs, list):
            return list(self.queue.map(xs))
        flat, spec = pytree.tree_flatten(dict(xs) if hasattr(xs, "keys") and not isinstance(xs, dict) else xs)
        tensors = [leaf for leaf in flat if isinstance(leaf, torch.Tensor)]
        size = self.queue.options.max_batch_size
        rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 0
        if rows <= size or self._whole:
            return self.queue(xs)
        pieces = [
            pytree.tree_unflatten(
                [leaf[at : at + size] if isinstance(leaf, torch.Tensor) else leaf for leaf in flat], spec
            )
            for at in range(0, rows, size)
        ]
        return join(list(self.queue.map(pieces)))

    def close(self, cancel_pending: bool = False) -> None:
        """Close the queue behind it."""
        self.queue.close(cancel_pending)

    def __enter__(self) -> batch_inference:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.queue.__exit__(kind, error, trace)
