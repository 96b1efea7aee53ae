"""Which implementation of an operation runs: ``vendor`` (PyTorch's), ``steel`` (ours) or ``graph`` (MPSGraph).

:func:`use` forces one, :func:`explain` says which would run and why, :func:`tune` measures which is faster here,
:func:`simulate_metal` lets CPU tensors take the Metal kernels, :func:`record` counts. ``STEELWORKS_PATH="steel"`` or
``"softmax=steel,linear=vendor"`` forces from outside.
"""

from __future__ import annotations

from ._choose import Candidate, Choice, choose
from ._explain import Explanation, explain
from ._record import Record, record
from ._registry import Implementation, Operation, declare, register
from ._signature import PATHS, Path, Signature
from ._state import refresh, simulate_metal, use
from ._tune import Tuned, tune
from .defaults import DEFAULTS, Default

__all__ = [
    "DEFAULTS",
    "PATHS",
    "Candidate",
    "Choice",
    "Default",
    "Explanation",
    "Implementation",
    "Operation",
    "Path",
    "Record",
    "Signature",
    "Tuned",
    "choose",
    "declare",
    "explain",
    "record",
    "refresh",
    "register",
    "simulate_metal",
    "tune",
    "use",
]
