"""A plan around a user's own collate and split functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from steelworks.devices.base import Device
from steelworks.errors import ModelOutputError
from steelworks.plans._immediate import ImmediateRunner
from steelworks.plans.inputs import Group, InputReader, Lane, Reading
from steelworks.plans.plan import Plan, Runner

Collate = Callable[[list[Any]], Any]
Split = Callable[[Any, list[Any]], Sequence[Any]]


class _AnyReader(InputReader):
    """Takes any object as one request of one row."""

    def __init__(self) -> None:
        super().__init__()
        self._lane = Lane(Group(("request",), (), _no_rebuild), 0)

    def read(self, request: object) -> Reading:
        """One row, in the one lane there is."""
        return Reading((request,), 1, self._lane, 0)  # type: ignore[arg-type]


class CustomPlan(Plan):
    """Calls ``model(collate(requests))`` and cuts the output with ``split``.

    Promises nothing about padding or determinism: both are the functions' business.
    """

    def __init__(
        self, model: Any, device: Device, max_batch_size: int, collate: Collate, split: Split | None
    ) -> None:
        super().__init__(device, _AnyReader(), max_batch_size)
        self.model = model
        self.collate = collate
        self.split = split or _rows

    def runner(self, depth: int = 1) -> Runner:
        """Make a runner."""
        return _CustomRunner(self)

    def predict(self, group: Group, rows: int, length: int) -> float:
        """In arbitrary units: one row as much as another."""
        del group, length
        return float(rows)


class _CustomRunner(ImmediateRunner):
    def __init__(self, plan: CustomPlan) -> None:
        super().__init__(plan.device)
        self._plan = plan

    def _run(self, readings: Sequence[Reading]) -> list[Any]:
        plan = self._plan
        requests: list[Any] = [reading.leaves[0] for reading in readings]
        inputs = plan.collate(requests)
        away = plan.device.torch_device.type != "cpu"
        if away:
            inputs = pytree.tree_map_only(torch.Tensor, plan.device.copy_in, inputs)
        with torch.no_grad():
            if isinstance(inputs, Mapping):
                output = plan.model(**inputs)
            elif isinstance(inputs, tuple):
                output = plan.model(*inputs)
            else:
                output = plan.model(inputs)
        if away:
            output = pytree.tree_map_only(torch.Tensor, plan.device.copy_out, output)
        results = list(plan.split(output, requests))
        if len(results) != len(requests):
            raise ModelOutputError(
                f"split returned {len(results)} results for {len(requests)} requests; return one a "
                "request, in order"
            )
        return results


def _rows(output: Any, requests: list[Any]) -> list[Any]:
    """Result i is row i of every tensor of the output, or item i of a list."""
    if type(output) is list:
        return output
    flat, spec = pytree.tree_flatten(output)
    for leaf in flat:
        if isinstance(leaf, torch.Tensor) and (leaf.dim() == 0 or leaf.shape[0] != len(requests)):
            raise ModelOutputError(
                f"the model returned a tensor of shape {list(leaf.shape)} for {len(requests)} requests; dim "
                "0 must be the requests, or give the queue a split function"
            )
    return [
        pytree.tree_unflatten([leaf[i] if isinstance(leaf, torch.Tensor) else leaf for leaf in flat], spec)
        for i in range(len(requests))
    ]


def _no_rebuild(tensors: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    raise AssertionError("a custom plan collates by itself")
