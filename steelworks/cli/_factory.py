"""Loads a user's own model for ``steelworks bench --model package.module:factory``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steelworks.cli._load import tensors_of
from steelworks.cli._options import CommandError
from steelworks.cli._workload import Workload, as_is, call_model

_SHAPES_TRIED = 8
_EXPECTED = "a function without arguments that returns (model, list of requests)"


def load_factory(name: str) -> Workload:
    """Import ``package.module:factory``, call it and check what it gives.

    The current folder is searched first, as with ``python -m``.

    Raises:
        CommandError: if the name or what the factory returns does not fit.
    """
    module_name, colon, factory_name = name.partition(":")
    if not (module_name and colon and factory_name):
        raise CommandError(f"--model {name}: write package.module:factory, {_EXPECTED}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and imports something that is not: its own traceback says so
        raise CommandError(
            f"--model {name}: there is no module {error.name!r}; looked in {here} and on sys.path"
        ) from None
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise CommandError(
            f"--model {name}: {module_name} has no function {factory_name!r}; write {_EXPECTED}"
        )
    model, requests = _taken_apart(name, factory())
    return Workload(title=name, model=model, requests=requests, prepare=as_is)


def try_requests(name: str, workload: Workload, device: torch.device) -> None:
    """Call the model once with the first request of each shape, a few shapes at most.

    Raises:
        CommandError: the model refuses one.
    """
    seen: set[object] = set()
    for index, request in enumerate(workload.requests):
        shapes = tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors_of(request))
        if shapes in seen:
            continue
        seen.add(shapes)
        try:
            call_model(workload.model.to(device).eval(), request, device)
        except Exception as error:
            listed = ", ".join(str(list(shape)) for shape, _ in shapes)
            raise CommandError(
                f"--model {name}: the model refuses request {index}, of shape {listed}: "
                f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            ) from error
        if len(seen) == _SHAPES_TRIED:
            return


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters or buffers are; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _taken_apart(name: str, given: Any) -> tuple[nn.Module, Sequence[Any]]:
    if isinstance(given, tuple) and len(given) == 2:
        model, requests = given
    elif hasattr(given, "model") and hasattr(given, "requests"):
        model, requests = given.model, given.requests
    else:
        raise CommandError(
            f"--model {name}: the factory returned {type(given).__name__}; it has to be {_EXPECTED}, "
            "or an object with the attributes 'model' and 'requests'"
        )
    if not isinstance(model, nn.Module):
        raise CommandError(
            f"--model {name}: the model is a {type(model).__name__}; it has to be a torch.nn.Module"
        )
    requests = list(requests)
    if not requests:
        raise CommandError(f"--model {name}: the list of requests is empty; at least 1 is needed")
    for index, request in enumerate(requests):
        tensors = tensors_of(request)
        if not tensors or any(tensor.dim() == 0 for tensor in tensors):
            raise CommandError(
                f"--model {name}: request {index} is no tensor, tuple or dict of tensors with a leading "
                "batch dimension; give each as the model takes it, for example of shape [1, 128]"
            )
    return model, requests
