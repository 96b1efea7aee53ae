"""Which operations there are, and their implementations by device and path."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError

from ._signature import DEVICES, Path, Signature, check_path

#: The device of an implementation that runs wherever PyTorch does.
ANY: Final = "any"


#: From a device and dtype to the arguments of one typical call after the other.
Examples = Callable[[torch.device, torch.dtype], Iterator[tuple[Any, ...]]]


@dataclass(frozen=True)
class Operation:
    """What the selector knows of an operation, whatever its implementations.

    Attributes:
        name: Its name.
        family: Another name by which ``use`` and the environment reach it; several may share one.
        sizes: The sizes that its time depends on, by name, from a signature: ``{"rows": 64, "columns": 512}``.
        flags: The flags of its plainest call, for ``explain``.
        no_path: Why a path can't be taken on a device, where that is known: ``{("mps", "graph"): "..."}``.
        signature: The signature of a call, from its arguments; None if it can't be measured.
        examples: The arguments of typical calls, made one after the other, for a device and dtype.
    """

    name: str
    family: str
    sizes: Callable[[Signature], Mapping[str, int]]
    flags: tuple[Hashable, ...] = ()
    no_path: Mapping[tuple[str, str], str] = field(default_factory=dict)
    signature: Callable[..., tuple[Any, ...]] | None = None
    examples: Examples | None = None


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation on one type of device.

    Attributes:
        op: The operation's name.
        device: The device type, or ``"any"``.
        path: Its path.
        possible: None if it can run such a call; else why not, as a clause ("float64 is not supported").
        run: Runs it; takes the operation's arguments in order.
    """

    op: str
    device: str
    path: Path
    possible: Callable[[Signature], str | None]
    run: Callable[..., Any]


def always(_: Signature) -> str | None:
    """The ``possible`` of what can always run."""
    return None


class _Registry:
    """Replaced as a whole when something is added, so that readers need no lock."""

    def __init__(self) -> None:
        self.operations: Mapping[str, Operation] = {}
        self.implementations: Mapping[tuple[str, str, str], Implementation] = {}
        self.listeners: list[Callable[[], None]] = []
        self._guard = threading.Lock()

    def declare(self, operation: Operation) -> None:
        with self._guard:
            self.operations = {**self.operations, operation.name: operation}
        self._changed()

    def register(self, implementation: Implementation) -> None:
        key = (implementation.op, implementation.device, implementation.path)
        with self._guard:
            self.implementations = {**self.implementations, key: implementation}
        self._changed()

    def _changed(self) -> None:
        for listener in self.listeners:
            listener()


REGISTRY: Final = _Registry()


def declare(
    op: str,
    *,
    sizes: Callable[[Signature], Mapping[str, int]],
    family: str | None = None,
    flags: tuple[Hashable, ...] = (),
    no_path: Mapping[tuple[str, str], str] | None = None,
    signature: Callable[..., tuple[Any, ...]] | None = None,
    examples: Examples | None = None,
) -> Operation:
    """Makes an operation known; its implementations are registered apart (:func:`register`).

    Args:
        op: Its name.
        sizes: The sizes that its time depends on, by name, from a signature.
        family: A name that it shares with related operations, for forcing a path; by default ``op``.
        flags: The flags of its plainest call.
        no_path: Why a path can't be taken, by (device, path).
        signature: The signature of a call, from its arguments.
        examples: The arguments of typical calls, which ``tune`` measures.
    """
    name = op if family is None else family
    operation = Operation(op, name, sizes, flags, dict(no_path or {}), signature, examples)
    REGISTRY.declare(operation)
    return operation


def register(
    op: str,
    device: str,
    path: str,
    *,
    run: Callable[..., Any],
    possible: Callable[[Signature], str | None] = always,
) -> Implementation:
    """Registers an implementation, in place of an earlier one for the same operation, device and path.

    Args:
        op: A declared operation.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"any"``.
        path: ``"vendor"``, ``"steel"`` or ``"graph"``.
        run: Runs it; takes the operation's arguments in order.
        possible: None if it can run a call of this signature; else why not. It decides from the signature alone.

    Raises:
        InvalidInputError: no such operation, device or path.
    """
    operation_of(op)
    if device not in (*DEVICES, ANY):
        allowed = ", ".join(repr(d) for d in (*DEVICES, ANY))
        raise InvalidInputError(f"register({op!r}) names the device {device!r}; allowed are {allowed}")
    implementation = Implementation(op, device, check_path(path, f"register({op!r})"), possible, run)
    REGISTRY.register(implementation)
    return implementation


def declared() -> Mapping[str, Operation]:
    """All operations. They are declared by the layer above, which is loaded if it was not yet."""
    importlib.import_module("steelworks.ops")
    return REGISTRY.operations


def operation_of(op: str) -> Operation:
    """The operation of this name.

    Raises:
        InvalidInputError: there is none.
    """
    found = REGISTRY.operations.get(op)
    if found is None:
        raise InvalidInputError(
            f"there is no operation {op!r}; there are {', '.join(sorted(REGISTRY.operations)) or 'none yet'}"
        )
    return found


def implementation_of(op: str, device: str, path: str) -> Implementation | None:
    """The implementation for a device and path, or None."""
    found = REGISTRY.implementations
    return found.get((op, device, path)) or found.get((op, ANY, path))
