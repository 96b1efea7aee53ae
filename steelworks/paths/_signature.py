"""What a choice depends on: the operation, where and of what type its tensors are, and how large."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Literal, NamedTuple

import torch

from steelworks.errors import InvalidInputError

Path = Literal["vendor", "steel", "graph"]
#: All paths, in the order in which they are shown and compared.
PATHS: Final[tuple[Path, ...]] = ("steel", "graph", "vendor")
DEVICES: Final = ("cpu", "cuda", "mps")


class Signature(NamedTuple):
    """One kind of call. Equal to the plain tuple of its fields, which a hot path may use in its place.

    Attributes:
        op: The operation's name, for example ``"softmax"``.
        device: The device's type: ``"cpu"``, ``"cuda"`` or ``"mps"``.
        dtype: Of the operation's first tensor.
        shapes: Of its tensors in order; None for one that was not given.
        flags: What else the choice depends on; its meaning is the operation's own.
    """

    op: str
    device: str
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...] | None, ...]
    flags: tuple[Hashable, ...] = ()


def check_path(path: str, source: str, others: tuple[str, ...] = ()) -> Path:
    """``path`` if there is such a path.

    Raises:
        InvalidInputError: there is none; ``source`` says where it was given.
    """
    for known in PATHS:
        if path == known:
            return known
    allowed = ", ".join(repr(p) for p in (*PATHS, *others))
    raise InvalidInputError(f"{source} names the path {path!r}; allowed are {allowed}")
