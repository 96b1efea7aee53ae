"""Run in a process of its own by test_paths_tune.py, with TRITON_INTERPRET=1: CPU tensors then take Triton's kernels.

Each operation's Triton path is put in the place of the one for the CPU; all are measured as on a GPU, with small sizes.
"""

from __future__ import annotations

import operator
import sys
from dataclasses import replace
from pathlib import Path

import torch

from steelworks import ops, paths
from steelworks.paths import _tune
from steelworks.paths._registry import REGISTRY

sys.path.insert(0, str(Path(__file__).parents[1]))
from ops_helpers import shrink_examples


def main() -> None:
    """Measures all."""
    assert ops
    torch.set_num_threads(1)
    there = [
        (op, made)
        for (op, device, path), made in REGISTRY.implementations.items()
        if (device, path) == ("cuda", "steel")
    ]
    for op, made in there:
        paths.register(op, "cpu", "steel", run=made.run, possible=made.possible)

    shrink_examples(operator.setitem)
    _tune._ROUND_SECONDS = 1e-5
    _tune._WARM_UPS = 1
    _tune._QUICK = replace(_tune._QUICK, rounds=1, calls=1)  # the interpreter is slow
    names = [op for op, _ in there]
    with paths.simulate_metal():
        tuned = paths.tune("cpu", names, [torch.float16], quick=True, seconds=100.0, write=False)
    assert not tuned.failures, tuned.failures
    assert not tuned.left, tuned.left
    missing = set(names) - {entry.op for entry in tuned.entries}
    assert not missing, missing
    assert all(set(entry.seconds) == {"steel", "vendor"} for entry in tuned.entries)
    print(f"{sorted(names)}: all measured")  # what the test waits for


if __name__ == "__main__":
    sys.exit(main())
