"""A dense copy of a tensor: what stands for PyTorch's clone where that races (hazard R3 of MPS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from steelworks.paths import Signature

from ._library import Operator, device_type

#: Integers by their size in bytes: the kernel copies bits, whatever they mean.
_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _vendor(x: torch.Tensor) -> torch.Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def _signature(x: torch.Tensor) -> tuple[Any, ...]:
    return ("copy", device_type(x), x.dtype, (x.shape,), ())


def _sizes(signature: Signature) -> Mapping[str, int]:
    return {"elements": torch.Size(signature.shapes[0] or ()).numel()}


def _possible(signature: Signature) -> str | None:
    if signature.dtype.is_complex:
        return f"{signature.dtype} is no type of Metal"
    return None if len(signature.shapes[0] or ()) <= 7 else "it has more than 7 dimensions"


def _metal(x: torch.Tensor) -> torch.Tensor:
    from steelworks.kernels.metal.elementwise import unary

    # floor leaves integers as they are; of all operations it is the one that is only a copy.
    return unary("floor", x.view(_INTEGERS[x.element_size()])).view(x.dtype)


def _check(x: torch.Tensor) -> None:
    """Anything can be copied."""


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


COPY: Final = Operator(
    "copy",
    "(Tensor x) -> Tensor",
    signature=_signature,
    check=_check,
    vendor=_vendor,
    fake=_fake,
    sizes=_sizes,
    no_path={("mps", "graph"): "PyTorch copies with blits and kernels of its own"},
)
COPY.metal(_possible, _metal)
