"""The Triton kernels on an NVIDIA GPU, under compute-sanitizer: what the compiled machine code really does.

The checks without a GPU stop where PTX's asynchronous products begin, which sentryward does not know, and take the
assembler on trust. Here the same calls (calls.py) run on the device with every access to memory instrumented:

* ``memcheck``: accesses outside of an allocation, or misaligned. Tensors are laid against the end of theirs;
* ``racecheck``: threads of a program that conflict in shared memory without a barrier between them;
* ``synccheck``: barriers that not all threads meet;
* ``initcheck``: reads of device memory that nobody wrote.

What that is worth is measured: each barrier of some kernels is taken out of their PTX in turn, and bugs of
planted.toml are planted in a copy; each such run must be noticed, or is counted as not noticed.

Needs a GPU of compute capability 9.0 and NVIDIA's compute-sanitizer, so its result is kept, with a hash of the kernels
that it is about::

    python -m verification.triton.sanitizer --json verification/triton/sanitizer.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from verification.claims import ToolMissing

from .planted import Bug, bugs, copy_with, without_barrier

TOOLS: Final = ("memcheck", "racecheck", "synccheck", "initcheck")
RECORD: Final = Path(__file__).with_name("sanitizer.json")
_RECORDS: Final = "python -m verification.triton.sanitizer --json verification/triton/sanitizer.json"
#: What the record is about.
CODE: Final = ("steelworks/kernels/triton", "verification/triton/calls.py")
#: Calls of which each barrier is taken out: a kernel of each kind, with products by warpgroups and without.
BARRIERS: Final = (
    "softmax 3x50", "softmax 3x1000", "softmax exact", "softmax backward", "norms 3x700", "norms backward 100",
    "topk 2x100 5", "attention 2x5x7x16", "attention row 5 of the table", "linear 16x64x256 no bias",
    "linear 64x64x64 no bias", "linear 128x128x64 no bias", "lora mixed none",
    "lora described 128x128 for a rank of 8", "int8 1x40x130", "int4 1x40x520",
)  # fmt: skip
#: The kinds of planted bugs, and what became of them.
KINDS: Final = ("barriers", "barriers beside wgmma", "bounds")
NOTICED, MISSED = "noticed", "not noticed"
#: A finding's first line, and a kernel of ours in it or in those that follow.
_FINDING: Final = re.compile(
    r"=+ (?:Error: |Warning: )?((?:Invalid|Race|Uninitialized|Barrier|Potential|Misaligned|Divergent).*)"
)
_OURS: Final = re.compile(r"\bat (_\w+_kernel)\b")
_NOTHING: Final = "no call yet"
_TOGETHER: Final = 12
_SECONDS: Final = 480.0
_SECONDS_BUG: Final = 150.0
_BOUNDARY: Final = 512  # bytes that PyTorch rounds an allocation up to
_ALIGNED: Final = 16
_FIRST: Final = 1_000_000  # so many parts that the first has one call: some names stand for several tiles


@dataclass(frozen=True)
class Said:
    """What one run under compute-sanitizer said.

    Attributes:
        found: Its findings in our kernels: the call and what.
        others: How many it has in other kernels: PyTorch's, and the vendor's products.
        calls: How many calls ran to their end.
        problem: Why the run did not come to its end; "" if it did.
    """

    found: tuple[str, ...]
    calls: int
    others: int = 0
    problem: str = ""

    @property
    def noticed(self) -> bool:
        """Whether anything is wrong in a call; a launch that fails is noticed too."""
        return bool(self.found) or (bool(self.problem) and not self.problem.startswith(f"in {_NOTHING}"))


def program() -> str:
    """The sanitizer's program.

    Raises:
        ToolMissing: It is not on PATH, nor where CUDA is installed.
    """
    known = (shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer")
    for path in known:
        if path is not None and Path(path).exists():
            return path
    raise ToolMissing("compute-sanitizer is not here; it comes with CUDA's toolkit: put it on PATH")


def how_many() -> int:
    """How many calls there are to run."""
    from . import calls

    return len(calls.calls()) + len(calls.edges())


def record(path: Path = RECORD) -> dict[str, Any]:
    """What was found on a GPU.

    Raises:
        ToolMissing: There is no record, or it is of other kernels than these.
    """
    from verification.results import digest

    how = f"on a machine with a GPU of compute capability 9.0: {_RECORDS}"
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolMissing(f"there is no record of compute-sanitizer; make one {how}") from None
    if kept["code_sha256"] != digest(CODE):
        raise ToolMissing(
            f"the Triton kernels have changed since compute-sanitizer looked at them; run it again {how}"
        )
    return kept


# The run itself, in a process of its own.


def _make() -> Any:
    import torch

    from .calls import F16, Make

    class AtEnd(Make):  # type: ignore[misc,unused-ignore]
        """Lays each tensor against the end of its allocation, as near as an alignment of 16 bytes allows."""

        def __call__(self, *shape: int, dtype: torch.dtype = F16) -> torch.Tensor:
            size, one = torch.Size(shape).numel(), dtype.itemsize
            whole = -(-max(size * one, 1) // _BOUNDARY) * _BOUNDARY
            begin = (whole - size * one) // _ALIGNED * _ALIGNED // one
            return torch.ones(whole // one, dtype=dtype, device=self.device)[begin : begin + size].view(shape)

    return AtEnd("cuda")


def run_calls(pattern: str, part: int, parts: int, without: int) -> int:
    """Runs the calls that match; says which. ``without`` takes that barrier out of the PTX, counted from 1.

    At the end it says how many calls there were, and a letter for each barrier: w in a kernel with wgmma.
    """
    import torch

    from triton.backends.nvidia.compiler import CUDABackend

    from . import calls

    barriers, real = "", CUDABackend.make_cubin

    def make_cubin(self: Any, src: str, *given: Any, **named: Any) -> Any:
        nonlocal barriers
        mutants = without_barrier(src)
        number = without - len(barriers)
        barriers += ("w" if "wgmma" in src else ".") * len(mutants)
        return real(self, mutants[number - 1] if 0 < number <= len(mutants) else src, *given, **named)

    CUDABackend.make_cubin = make_cubin
    # What the vendor's products write through the copy engine is not seen; what a copy kernel writes is.
    for module, name in ((torch, "mm"), (torch.nn.functional, "linear")):
        setattr(module, name, _cloned(getattr(module, name)))
    chosen = [call for call in (*calls.calls(), *calls.edges()) if re.search(pattern, call.name)][part::parts]
    for call in chosen:
        sys.stdout.write(f"CALL {call.name}\n")
        sys.stdout.flush()
        call.run(_make())
        torch.cuda.synchronize()
    sys.stdout.write(f"END {len(chosen)} {barriers}\n")
    sys.stdout.flush()
    return 0


def _cloned(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: function(*given, **named).clone()


# Around it.


def _command(pattern: str, part: int = 0, parts: int = 1, without: int = 0) -> list[str]:
    mine = [sys.executable, "-m", "verification.triton.sanitizer", "--run", pattern]
    return [*mine, "--part", f"{part}/{parts}", "--without", str(without)]


def _environment(cache: Path, root: Path | None = None) -> dict[str, str]:
    search = os.pathsep.join(filter(None, (str(root or Path.cwd()), os.environ.get("PYTHONPATH"))))
    return {
        **os.environ,
        "PYTHONPATH": search,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "TRITON_CACHE_DIR": str(cache),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def sanitize(
    tool: str, command: Sequence[str], environment: dict[str, str], seconds: float, root: Path | None = None
) -> Said:
    """One run under compute-sanitizer."""
    options = ["--tool", tool, "--print-limit", "100000", "--target-processes", "application-only"]
    if tool == "racecheck":
        options += ["--racecheck-report", "analysis"]
    try:
        done = subprocess.run(
            [program(), *options, *command],
            cwd=root, env=environment, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Said((), 0, problem=f"it did not end within {seconds:.0f} s")
    return read(done.stdout, done.stderr)


def read(output: str, more: str = "") -> Said:
    """What the sanitizer printed, among the names of the calls."""
    found, others, call, done, calls = list[str](), 0, "", False, 0
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("CALL "):
            call, calls = line[5:], calls + 1
        elif line.startswith("END "):
            done = True
        elif said := _FINDING.match(line):
            # The kernel stands in the same line or in one of the next; of a race, the second's in a later one.
            block = "".join(
                itertools.takewhile(lambda one: one.startswith("=========     "), lines[number + 1 :])
            )
            if where := _OURS.search(line + block):
                found.append(f"{call}, {where[1]}: {said[1][:200]}")
            else:
                others += 1
    if done:
        return Said(tuple(found), calls, others)
    last = " / ".join((output + more).splitlines()[-4:])
    return Said(tuple(found), max(calls - 1, 0), others, f"in {call or _NOTHING}: {last[-500:]}")


def _merge(some: Sequence[Said]) -> Said:
    found = tuple(one for said in some for one in said.found)
    problems = "; ".join(s.problem for s in some if s.problem)
    return Said(found, sum(s.calls for s in some), sum(s.others for s in some), problems)


def measure(pattern: str, tools: Sequence[str], plant: bool) -> dict[str, Any]:
    """Everything: the calls under each tool, then the runs that must be noticed."""
    import torch

    import triton
    from verification.results import digest

    version = subprocess.run([program(), "--version"], capture_output=True, text=True, check=False).stdout
    with tempfile.TemporaryDirectory(prefix="sanitizer-") as name:
        cache = Path(name, "cache")
        environment = _environment(cache)
        with ThreadPoolExecutor(_TOGETHER) as pool:
            compiled = list(
                pool.map(
                    lambda part: subprocess.run(
                        _command(pattern, part, _TOGETHER), env=environment, capture_output=True, text=True
                    ),
                    range(_TOGETHER),
                )
            )
            for one in compiled:
                if one.returncode:
                    raise RuntimeError(f"the calls do not run without the sanitizer: {one.stderr[-1500:]}")
            began = time.monotonic()
            parts = max(1, _TOGETHER // len(tools))
            jobs = [(tool, part) for tool in tools for part in range(parts)]
            said = list(
                pool.map(
                    lambda job: sanitize(job[0], _command(pattern, job[1], parts), environment, _SECONDS),
                    jobs,
                )
            )
            seconds = time.monotonic() - began
            per_tool = {t: _merge([s for s, j in zip(said, jobs, strict=True) if j[0] == t]) for t in tools}
            planted = _bugs(Path(name), pool) if plant else {}
    return {
        "version": re.search(r"Version ([\d.]+)", version)[1] if "Version" in version else version.strip(),  # type: ignore[index]
        "gpu": torch.cuda.get_device_name(),
        "triton": triton.__version__,
        "torch": torch.__version__,
        "code_sha256": digest(CODE),
        "seconds": round(seconds, 1),
        "tools": {
            tool: {
                "calls": s.calls,
                "in_other_kernels": s.others,
                "findings": [f"{n} x {text}" if n > 1 else text for text, n in Counter(s.found).items()],
                "problem": s.problem,
            }
            for tool, s in per_tool.items()
        },
        "planted": planted,
    }


def _bugs(place: Path, pool: ThreadPoolExecutor) -> dict[str, dict[str, list[str]]]:
    """The runs with a bug: barriers taken out, and the bounds of planted.toml; by kind, noticed and not."""
    kinds = dict(zip(BARRIERS, pool.map(lambda call: _barriers_of(call, place), BARRIERS), strict=True))
    jobs = [(call, number) for call in BARRIERS for number in range(1, len(kinds[call]) + 1)]

    def one(job: tuple[str, int]) -> bool:
        call, number = job
        with tempfile.TemporaryDirectory(dir=place) as cache:
            command = _command(f"^{re.escape(call)}$", parts=_FIRST, without=number)
            return sanitize("racecheck", command, _environment(Path(cache)), _SECONDS_BUG).noticed

    found: dict[str, dict[str, list[str]]] = {kind: {NOTICED: [], MISSED: []} for kind in KINDS}
    for (call, number), noticed in zip(jobs, pool.map(one, jobs), strict=True):
        kind = KINDS[kinds[call][number - 1] == "w"]
        found[kind][NOTICED if noticed else MISSED].append(f"{call}: {number}")
    wrong = [bug for bug in bugs() if bug.check == "bounds"]
    for bug, noticed in zip(wrong, pool.map(_planted, wrong), strict=True):
        found[KINDS[2]][NOTICED if noticed else MISSED].append(bug.what)
    return found


def _barriers_of(call: str, place: Path) -> str:
    """The letters that the run says, one for each barrier."""
    with tempfile.TemporaryDirectory(dir=place) as cache:
        done = subprocess.run(
            _command(f"^{re.escape(call)}$", parts=_FIRST),
            env=_environment(Path(cache)),
            capture_output=True,
            text=True,
            check=False,
        )
    said = re.search(r"^END (\d+) ([w.]*)$", done.stdout, re.MULTILINE)
    if said is None or said[1] != "1":
        raise RuntimeError(f"no such call as {call!r}: {done.stdout[-200:]} {done.stderr[-800:]}")
    return said[2]


def _planted(bug: Bug) -> bool:
    with copy_with(bug) as folder:
        environment = _environment(folder / "cache", folder)
        return sanitize("memcheck", _command(bug.calls), environment, _SECONDS_BUG, folder).noticed


def main() -> int:
    """The exit status: 0 if nothing was found in the kernels as they are."""
    parser = argparse.ArgumentParser(prog="python -m verification.triton.sanitizer")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--only", default="", help="calls that match this regular expression")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="this tool only (may be repeated)")
    parser.add_argument("--no-bugs", action="store_true", help="plant no bugs")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--without", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run is not None:
        part, parts = map(int, arguments.part.split("/"))
        return run_calls(arguments.run, part, parts, arguments.without)
    found = measure(arguments.only, arguments.tool or TOOLS, not arguments.no_bugs)
    text = json.dumps(found, indent=1) + "\n"
    if arguments.json is not None:
        arguments.json.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return int(any(tool["findings"] or tool["problem"] for tool in found["tools"].values()))


if __name__ == "__main__":
    sys.exit(main())
