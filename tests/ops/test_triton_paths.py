"""The Triton paths of the operations, through Triton's interpreter; the kernels' own tests are in tests/triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("_triton_child.py")


def test_operations_hand_their_arguments_to_the_triton_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is not made for this platform")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(CHILD)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0 and "all compared" in done.stdout, done.stdout + done.stderr
