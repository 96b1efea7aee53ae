"""Stand-ins for tests: yours, and Steelworks' own.

:class:`FakeMPS` stands in for torch on an Apple GPU, on any machine: it runs the arithmetic on
the CPU, keeps the rules about threads that the real one has, and fails where the real one is
said to crash.
"""

from __future__ import annotations

from steelworks.testing._fake_tensor import FakeMPSTensor
from steelworks.testing._metal import FakeMPSAbort, Hold
from steelworks.testing.fake_mps import FakeMPS

__all__ = ["FakeMPS", "FakeMPSAbort", "FakeMPSTensor", "Hold"]
