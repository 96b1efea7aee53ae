"""The Steel kernels for NVIDIA GPUs, in Triton. A module a family; nothing is compiled before its first call.

The modules import without Triton; what they have then raises ``InvalidInputError``. ``available`` tells.
"""

from __future__ import annotations

from ._launch import available, interpreted

__all__ = ["available", "interpreted"]
