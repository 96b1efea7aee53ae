"""What is measured: a model, requests, and how a request becomes the model's input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Largest difference from the single-call result that counts as the same answer, relative to the
# largest element of the answer, or absolute below 1. Wider than rounding, far below a mix-up.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


@dataclass(frozen=True)
class Workload:
    """A model and the requests to send to it.

    Attributes:
        title: one line for people, such as the model's name and the number of sentences.
        model: called with one prepared request, or with a batch of them.
        requests: what callers start from; texts, or inputs that are ready.
        prepare: makes the model's input from one request, in the caller's thread: a CPU tensor,
            a tuple or a dict of them, each with a leading batch dimension of 1 or more.
    """

    title: str
    model: nn.Module
    requests: Sequence[Any]
    prepare: Callable[[Any], Any]


def as_is(request: Any) -> Any:
    """The ``prepare`` of a workload whose requests are ready."""
    return request


def call_model(model: nn.Module, x: Any, device: torch.device) -> Any:
    """Run ``model`` on ``x`` as code without Steelworks does; the result is on the CPU."""
    with torch.inference_mode():
        x = map_tensors(lambda tensor: tensor.to(device), x)
        if isinstance(x, Mapping):
            y = model(**x)
        elif isinstance(x, list | tuple):
            y = model(*x)
        else:
            y = model(x)
        return map_tensors(lambda tensor: tensor.cpu(), y)


def map_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Apply ``change`` to every tensor of a nested value; mappings become dicts."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map_tensors(change, item) for item in value)
    return value


def tolerance_for(reference: Sequence[Any]) -> float | None:
    """The absolute difference up to which outputs count as equal; None if there are no tensors."""
    from steelworks.cli._load import tensors_of

    tensors = [tensor for output in reference for tensor in tensors_of(output)]
    floats = [tensor for tensor in tensors if tensor.dtype in TOLERANCES and tensor.numel()]
    if not tensors:
        return None
    if not floats:
        return 0.0
    relative = max(TOLERANCES[tensor.dtype] for tensor in floats)
    scale = max(tensor.abs().nan_to_num(nan=0.0, posinf=0.0).max().item() for tensor in floats)
    return relative * max(1.0, scale)
