"""Machine code of recorded launches: large matrix products must not be made to wait for each other.

On Hopper a step of a matrix product is a group of asynchronous instructions (``HGMMA`` in machine code), and the loop
waits for the group before the last. Where the assembler can't see that nothing else touches the accumulators, it lets
every single instruction wait for the one before, without a word: the result is the same and takes a third longer. It
depends on details of a kernel, such as where an operand of another, smaller product comes from, so it is looked at.

Runs in a process of its own, without TRITON_INTERPRET=1: ``python -m verification.triton.machine_code``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

import triton

from .compile import to_ptx
from .record import Launched, Recorder

_TOOLS: Final = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_DTYPE: Final = torch.bfloat16


def _lora(m: int, n: int, k: int, r: int) -> None:
    from steelworks.kernels.triton import lora

    x, w, a, b = (torch.empty(s, dtype=_DTYPE, device="cuda") for s in ((m, k), (n, k), (r, k), (n, r)))
    _out, low = lora.lora_forward(x, w, a, b, 0.5, torch.empty(n, dtype=_DTYPE, device="cuda"))
    grad = torch.empty(m, n, dtype=_DTYPE, device="cuda")
    lora.lora_backward(grad, x, w, a, b, low, 0.5, (True, False, False, False, False))


def _linear(m: int, n: int, k: int, activation: str | None, residual: bool) -> None:
    from steelworks.kernels.triton import linear

    x, w, b = (torch.empty(s, dtype=_DTYPE, device="cuda") for s in ((m, k), (n, k), (n,)))
    beside = torch.empty(m, n, dtype=_DTYPE, device="cuda") if residual else None
    linear.linear(x, w, b, activation, beside)


#: Calls whose products are large, by name.
CALLS: Final[dict[str, Callable[[], None]]] = {
    "lora 512x4096x4096 r=16": lambda: _lora(512, 4096, 4096, 16),
    "lora 512x4096x4096 r=64": lambda: _lora(512, 4096, 4096, 64),
    "lora 1024x1024x1024 r=16": lambda: _lora(1024, 1024, 1024, 16),
    "lora 2048x4096x4096 r=64": lambda: _lora(2048, 4096, 4096, 64),
    "linear 512x768x3072 and a residual": lambda: _linear(512, 768, 3072, None, True),
    "linear 4096x1536x384 with gelu": lambda: _linear(4096, 1536, 384, "gelu", False),
    "linear 4096x384x1536 and a residual": lambda: _linear(4096, 384, 1536, None, True),
}


def recorded() -> dict[str, Launched]:
    """The launches of each call that read through descriptors, once for each variant."""
    found: dict[str, Launched] = {}
    seen = set()
    recorder = Recorder()
    with recorder.during():
        for name, call in CALLS.items():
            before = len(recorder.events)
            recorder.begin_call()
            call()
            for event in recorder.events[before:]:
                if isinstance(event, Launched) and event.kernel.described and event.key not in seen:
                    seen.add(event.key)
                    turned = dict(event.variant.constants).get("TRANSPOSED", False)
                    found[name + (", transposed" if turned else "")] = event
    return found


def waits(ptx: str) -> tuple[int, int]:
    """Of the machine code: instructions of matrix products by warpgroups, and those that are waited for."""
    with tempfile.TemporaryDirectory(prefix="steelworks-sass-") as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx, encoding="utf-8")
        _ran(str(_TOOLS / "ptxas"), "-arch=sm_90a", str(source), "-o", str(binary))
        listing = _ran(str(_TOOLS / "cuobjdump"), "-sass", str(binary))
    products = re.findall(r"HGMMA\.[^;]*;", listing)
    return len(products), sum("gsb0" in product for product in products)


def _ran(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def groups(ptx: str) -> int:
    """How many groups of products the PTX makes: one a loop, and one for each product after it."""
    return ptx.count("wgmma.commit_group")


def main() -> None:
    """Prints, as JSON, for each launch: instructions, those waited for, and groups."""
    told: dict[str, Any] = {}
    for name, launched in recorded().items():
        ptx = to_ptx(launched).ptx
        told[name] = [*waits(ptx), groups(ptx)]
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
