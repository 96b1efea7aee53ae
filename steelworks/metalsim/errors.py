"""Every error that metalsim raises on its own account.

Each message names what was given, what is allowed and what to do. Where ``torch.mps`` raises a certain type
for the same mistake, the error is of that type as well.
"""

from __future__ import annotations


class MetalsimError(Exception):
    """Base class of all errors raised by metalsim itself."""


class ToolchainError(MetalsimError, RuntimeError):
    """No usable compiler, or the runtime can't be built. The message names the mend."""


class MetalSyntaxError(MetalsimError, SyntaxError):
    """The source does not compile, or leaves the supported subset: ``filename`` and ``lineno`` say where.

    ``torch.mps.compile_shader`` raises ``SyntaxError`` for the same.
    """

    def __init__(self, message: str, filename: str | None = None, lineno: int | None = None) -> None:
        super().__init__(message)
        self.msg = message
        self.filename = filename
        self.lineno = lineno

    def __str__(self) -> str:
        return str(self.msg)


class UnknownKernelError(MetalsimError, RuntimeError):
    """No kernel has this name, or the pipeline for it can't be made (``RuntimeError`` in torch)."""


class ArgumentError(MetalsimError, RuntimeError):
    """An argument of a launch can't be bound (``RuntimeError`` in torch)."""


class GroupSizeError(MetalsimError, ValueError):
    """The threadgroup has more threads than the kernel allows (``ValueError`` in torch)."""


class DispatchError(MetalsimError, RuntimeError):
    """The runtime could not run the dispatch."""


class DtypeError(MetalsimError, TypeError):
    """A tensor has a dtype that no Metal device has (``TypeError`` in torch, when it is moved to MPS)."""


class KernelReportedError(MetalsimError, RuntimeError):
    """A kernel reported an error through ``c10/metal/error.h``."""


class MetalsimWarning(RuntimeWarning):
    """A launch outside any ``metalsim.options`` found a defect."""
