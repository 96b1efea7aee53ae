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
    collate: Callable[[list[Any]], Any] | None = None
    split: Callable[[Any, list[Any]], Sequence[Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            sizes = getattr(self, name)
            if sizes is not None and (not sizes or any(not isinstance(s, int) or s < 1 for s in sizes)):
                raise ValueError(f"{name} is {sizes}; it must hold whole numbers of 1 or more")
        if self.split is not None and self.collate is None:
            raise ValueError("split was given without collate; give both, or neither")
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

    Raises:
        InvalidInputError: the example has no tensors.
        ValueError: a batch size or length is not a whole number of 1 or more.
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
    )
    made = make_plans(model, example, device, None, options)[0]
    made.warm_up()
    return made


def make_plans(
    model: Any,
    example: Any,
    device: str | torch.device | Device | None,
    devices: Sequence[str | torch.device | Device] | None,
    options: PlanOptions,
) -> list[Plan]:
    """One plan a device, not warmed up yet; the model is copied to the devices it is not on."""
    if isinstance(model, Plan):
        if device is not None or devices is not None:
            raise ValueError("a plan has its device already; pass the model instead to choose another")
        return [model]
    if not callable(model):
        raise TypeError(
            f"model is {type(model).__name__}, which can't be called; pass an nn.Module, a function or a plan"
        )
    if device is not None and devices is not None:
        raise ValueError("device and devices were both given; give one of them")
    if isinstance(model, nn.Module) and any(m.training and _differs_in_training(m) for m in model.modules()):
        logger.warning("the model is in training mode (dropout, batch norm): call model.eval() for inference")
    home = _home(model)
    wanted = [resolve(d) for d in devices] if devices else [resolve(device if device is not None else home)]
    plans: list[Plan] = []
    for place, target in enumerate(wanted):
        here = model
        if isinstance(model, nn.Module) and target.torch_device != home:
            here = copy.deepcopy(model) if place or len(wanted) > 1 else model
            here = here.to(target.torch_device)
        plans.append(_make_plan(here, example, target, options))
    return plans


def _make_plan(model: Any, example: Any, device: Device, options: PlanOptions) -> Plan:
    if options.collate is not None:
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
    )
    return EagerPlan(model, device, eager, example)


def _home(model: Any) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")


def _differs_in_training(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    return dropout or isinstance(module, nn.modules.batchnorm._BatchNorm)
