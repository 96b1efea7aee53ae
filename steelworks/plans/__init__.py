"""Plans: models made ready for one device and for the shapes they will see."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from steelworks.devices import resolve
from steelworks.devices.base import Device
from steelworks.plans._int8 import quantized_copy
from steelworks.plans.custom import CustomPlan
from steelworks.plans.eager import EagerOptions, EagerPlan
from steelworks.plans.inputs import Padding
from steelworks.plans.plan import Plan, Runner

__all__ = ["Padding", "Plan", "PlanOptions", "Runner", "make_plans", "plan"]

logger = logging.getLogger("steelworks.plans")


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made for; see :func:`plan` and :class:`steelworks.BatchQueue`."""

    max_batch_size: int = 32
    batch_sizes: tuple[int, ...] | None = None
    lengths: tuple[int, ...] | None = None
    padding: Padding | None = None
    deterministic: bool = False
    unbatched: bool = False
    compile: bool = False
    packing: bool | None = None
    quantize: Literal["int8"] | None = None
    collate: Callable[[list[Any]], Any] | None = None
    split: Callable[[Any, list[Any]], Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            sizes = getattr(self, name)
            if sizes is not None and (not sizes or any(not isinstance(s, int) or s < 1 for s in sizes)):
                raise ValueError(f"{name} is {sizes}; it must hold whole numbers of 1 or more")
        if self.split is not None and self.collate is None:
            raise ValueError("split was given without collate; give both, or neither")
        if self.quantize not in (None, "int8"):
            raise ValueError(f"quantize is {self.quantize!r}; it must be 'int8' or None")
        if self.quantize is not None and self.compile:
            raise ValueError(
                "quantize='int8' was given with compile=True, which can't see into its layers; leave one out"
            )
        if self.deterministic and self.collate is not None:
            raise ValueError(
                "deterministic=True was given with collate: what collate and split do can't be checked; "
                "leave one of them out"
            )


def plan(
    model: Any,
    example: Any,
    *,
    batch_sizes: Sequence[int] | None = None,
    lengths: Sequence[int] | None = None,
    device: str | torch.device | Device | None = None,
    max_batch_size: int | None = None,
    padding: Padding | Literal["auto"] | None = "auto",
    deterministic: bool = False,
    compile: bool = False,
    packing: bool | None = None,
    quantize: Literal["int8"] | None = None,
) -> Plan:
    """Make ``model`` ready for one device and for inputs like ``example``.

    On CUDA the model is captured into graphs, with the copies from and to pinned host memory inside, for
    every batch size and length given; elsewhere it is warmed up. ``plan(x)`` is ``model(x)``, with inputs and
    outputs on the CPU. A model that can't be captured runs as it is, and the reason is logged once.

    Args:
        model: a module or callable.
        example: one request as the model would be called with, of one row or a few.
        batch_sizes: row buckets; by default powers of two up to ``max_batch_size``. Which of them run for a
            number of rows follows from their measured times.
        lengths: sequence buckets, for inputs with an attention mask; by default from the example's length.
        device: where to run; by default where the model's parameters are.
        max_batch_size: the most rows in one run; by default the largest of ``batch_sizes``, or 32.
        padding: which inputs may be padded; ``"auto"`` for those of Hugging Face models.
        deterministic: results bit-identical whatever runs together (I3).
        compile: run the model through ``torch.compile`` first.
        packing: no padding inside encoders, where that is right and wins; None decides by measurement.
        quantize: ``"int8"`` runs large linear layers in int8, on the CPU: faster and less exact. The model
            itself is left alone, and later changes of those layers' weights are not seen.

    Raises:
        InvalidInputError: the example has no tensors.
        ValueError: a batch size or length is not a whole number of 1 or more, or ``quantize`` can't be done.
    """
    if max_batch_size is None:
        max_batch_size = max(batch_sizes) if batch_sizes else 32
    options = PlanOptions(
        max_batch_size=max_batch_size,
        batch_sizes=tuple(batch_sizes) if batch_sizes is not None else None,
        lengths=tuple(lengths) if lengths is not None else None,
        padding=Padding() if padding == "auto" else padding,
        deterministic=deterministic,
        compile=compile,
        packing=packing,
        quantize=quantize,
    )
    made = make_plans(model, example, device, None, options)[0]
    made.warm_up()
    return made


def make_plans(
    model: Any,
    example: Any,
    device: str | torch.device | Device | None,
    devices: Sequence[str | torch.device | Device] | str | torch.device | Device | None,
    options: PlanOptions,
) -> list[Plan]:
    """One plan a device, not warmed up yet; the model is copied to the devices it is not on."""
    if isinstance(model, Plan):
        if device is not None or devices is not None:
            raise ValueError("a plan has its device already; pass the model instead to choose another")
        if options.compile or options.quantize:
            raise ValueError(
                "compile or quantize was given with a plan, which is made already; give them to plan()"
            )
        return [model]
    if isinstance(model, type):
        raise TypeError(
            f"model is the class {model.__name__}, not one of its instances; pass {model.__name__}(...) instead"
        )
    if not callable(model):
        raise TypeError(
            f"model is {type(model).__name__}, which can't be called; pass an nn.Module, a function or a plan"
        )
    if device is not None and devices is not None:
        raise ValueError("device and devices were both given; give one of them")
    if isinstance(model, nn.Module):
        _warn_of_training(model)
    home = _home(model)
    if devices is None:
        wanted = [resolve(device if device is not None else home)]
    else:  # one alone need not be in a list
        wanted = [
            resolve(d) for d in ([devices] if isinstance(devices, str | torch.device | Device) else devices)
        ]
    if not wanted:
        raise ValueError("devices is empty; name one device or more, or leave it out")
    plans: list[Plan] = []
    for place, target in enumerate(wanted):
        here = model
        if isinstance(model, nn.Module) and target.torch_device != home:
            here = copy.deepcopy(model) if place or len(wanted) > 1 else model
            here = here.to(target.torch_device)
        plans.append(_make_plan(here, example, target, options))
    return plans


def _make_plan(model: Any, example: Any, device: Device, options: PlanOptions) -> Plan:
    if options.quantize is not None and device.torch_device.type != "cpu":
        raise ValueError(
            f"quantize={options.quantize!r} was given for {device.torch_device}; it is made for the CPU: leave it "
            "out, or give device='cpu'"
        )
    if options.collate is not None:
        model = quantized_copy(model) if options.quantize else model
        return CustomPlan(model, device, options.max_batch_size, options.collate, options.split)
    if device.capabilities.graphs and not options.deterministic and isinstance(model, nn.Module):
        from steelworks.plans.graph import GraphPlan

        return GraphPlan(model, device, options, example)
    eager = EagerOptions(
        max_batch_size=options.max_batch_size,
        padding=options.padding,
        deterministic=options.deterministic,
        unbatched=options.unbatched,
        packing=options.packing,
        compile=options.compile,
        quantize=options.quantize is not None,
    )
    return EagerPlan(model, device, eager, example)


def _home(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")


def _warn_of_training(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if module.training and _differs_in_training(module):
            where = f"{name!r}, a {type(module).__name__}," if name else f"a {type(module).__name__},"
            logger.warning(
                "the model is in training mode, in which %s answers differently (dropout at random, batch norm by its "
                "batch mates): call model.eval() before you make the queue or plan",
                where,
            )
            return


def _differs_in_training(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)
