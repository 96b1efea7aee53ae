"""The machine code of the kernels that read through descriptors, as an assembler for sm_90a makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
_CLEAN = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
#: Two products into one accumulator; where the second one's operand lies in shared memory, each step waits.
_SMALL_OPERAND_IN_SHARED_MEMORY = """
import sys
from pathlib import Path
from unittest import mock
from verification.triton import machine_code
from steelworks.kernels.triton import lora

described = lora._make_described

def rounded(x, weight, a, b, *rest):
    # The kernel is given x A^T in its own dtype, so that nothing has to be converted.
    counters = machine_code.torch.empty(16, dtype=machine_code.torch.int32, device="cuda")
    with mock.patch.object(lora, "_nothing", lambda device: (x, counters)):
        return described(x, weight, a, b, *rest)

with mock.patch.object(lora, "_make_described", rounded):
    machine_code.CALLS = {name: call for name, call in machine_code.CALLS.items() if name == "lora 512x4096x4096 r=16"}
    machine_code.main()
"""


def told(*command: str) -> dict[str, list[int]]:
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=_CLEAN,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: dict[str, list[int]] = json.loads(ran.stdout)
    return found


@pytest.mark.timeout(300)
def test_steps_of_large_products_do_not_wait_for_each_other() -> None:
    found = told("-m", "verification.triton.machine_code")
    assert len(found) == 11 and "lora 512x4096x4096 r=64, transposed" in found
    for name, (instructions, waited, groups) in found.items():
        assert instructions > waited, name
        assert waited == groups, f"{name}: {waited} of {instructions} instructions wait, {groups} are needed"


@pytest.mark.timeout(300)
def test_an_operand_that_makes_them_wait_is_noticed() -> None:
    found = told("-c", _SMALL_OPERAND_IN_SHARED_MEMORY)
    instructions, waited, groups = found["lora 512x4096x4096 r=16"]
    assert waited == instructions > groups
