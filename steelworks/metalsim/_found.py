"""What a Metal source contains, as data: kernels, parameters, threadgroup variables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

#: What a kernel parameter may ask for besides a buffer; the names are those of ``ms_thread``.
BUILTINS: Final = frozenset(
    {
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
        "threadgroup_position_in_grid",
        "threads_per_grid",
        "threadgroups_per_grid",
        "threads_per_threadgroup",
        "dispatch_threads_per_threadgroup",
        "thread_index_in_threadgroup",
        "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup",
        "simdgroups_per_threadgroup",
        "dispatch_simdgroups_per_threadgroup",
        "threads_per_simdgroup",
        "thread_index_in_quadgroup",
        "quadgroup_index_in_threadgroup",
        "quadgroups_per_threadgroup",
    }
)
MAX_BUFFERS: Final = 31


@dataclass(frozen=True)
class Parameter:
    """A parameter of a kernel.

    Attributes:
        name: As declared; empty if it has none.
        role: ``"buffer"`` or one of ``BUILTINS``.
        index: The buffer index; -1 while only the compiler knows it, and for what is no buffer.
        index_text: The expression given for it.
        constant: Declared in the constant address space, or const: the kernel can't write it.
    """

    name: str
    role: str
    index: int = -1
    index_text: str = ""
    constant: bool = False


@dataclass(frozen=True)
class Variable:
    """A threadgroup variable: ``tag`` is its name in the generated code."""

    name: str
    tag: str


@dataclass
class Definition:
    """A kernel function with a body, or a template of one.

    ``limit`` is the expression of max_total_threads_per_threadgroup, or empty.
    """

    name: str
    scope: tuple[str, ...]
    template: bool
    parameters: tuple[Parameter, ...]
    limit: str
    body: tuple[int, int]
    file: str
    line: int
    variables: list[Variable] = field(default_factory=list)


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be launched: a function, or an instance of a template."""

    host_name: str
    function: str
    definition: Definition
    after: int
    file: str
    line: int


@dataclass(frozen=True)
class Function:
    """A function or class with a body: its start, its braces, and the namespaces and classes around it."""

    start: int
    opening: int
    closing: int
    scope: tuple[str, ...]


@dataclass
class Scan:
    """All that was found."""

    definitions: list[Definition] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    classes: list[Function] = field(default_factory=list)
