"""PTX of recorded launches for sm_90a, made without a GPU; what an assembler would do is not needed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend

from .record import Launched

TARGET = GPUTarget("cuda", 90, 32)


@dataclass(frozen=True)
class Compiled:
    """A variant as PTX.

    Attributes:
        ptx: The text.
        shared: Bytes of shared memory that it is launched with.
        threads: Of a program.
    """

    ptx: str
    shared: int
    threads: int


@contextlib.contextmanager
def no_assembler() -> Iterator[None]:
    """Triton stops at PTX, and keeps nothing in the user's cache."""
    with (
        tempfile.TemporaryDirectory(prefix="steelworks-triton-") as folder,
        mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": folder}),
        mock.patch.object(CUDABackend, "make_cubin", lambda *given, **named: b""),
    ):
        yield


def to_ptx(launched: Launched) -> Compiled:
    """Compiles the variant of a launch, by ``Kernel.source``, as ``Kernel`` itself would."""
    options = launched.variant.options
    return source_to_ptx(launched.kernel.source(launched.variant), options.as_triton())


def source_to_ptx(source: Any, options: dict[str, Any]) -> Compiled:
    """Compiles what ``triton.compile`` takes."""
    made = triton.compile(source, target=TARGET, options=options)
    if made.metadata.num_ctas != 1 or made.metadata.global_scratch_size:
        raise NotImplementedError("clusters and scratch memory of a kernel are not looked at")
    return Compiled(made.asm["ptx"], made.metadata.shared, 32 * made.metadata.num_warps)
