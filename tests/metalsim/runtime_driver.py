"""Compiles kernels written by hand and runs them on the simulator's runtime through ctypes."""

from __future__ import annotations

import ctypes as ct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from steelworks.metalsim import _toolchain
from steelworks.metalsim.errors import ToolchainError

HERE = Path(__file__).parent


def compiler_missing() -> bool:
    """Whether there is nothing to compile kernels with."""
    try:
        _toolchain.find_compiler()
    except ToolchainError:
        return True
    return False


RING, RUN_AHEAD = 0, 1
FORWARD, REVERSE, SHUFFLED = 0, 1, 2
CONSTANT, OUTPUT, WRITE_MANY = 1, 2, 4
KINDS = (
    "",
    "race_threadgroup",
    "race_device",
    "race_between_groups",
    "out_of_bounds",
    "uninitialised",
    "misaligned",
    "unwritten",
    "written_twice",
    "order_dependent_atomic",
    "divergent_barrier",
    "divergent_simd",
    "absent_lane",
    "write_to_constant",
    "group_memory_limit_exceeded",
    "stack_overflow",
)


class UInt3(ct.Structure):
    _fields_ = [("x", ct.c_uint32), ("y", ct.c_uint32), ("z", ct.c_uint32)]


class Site(ct.Structure):
    _fields_ = [
        ("file", ct.c_char_p),
        ("line", ct.c_uint32),
        ("column", ct.c_uint32),
        ("function", ct.c_char_p),
    ]


class Buffer(ct.Structure):
    _fields_ = [("data", ct.c_void_p), ("bytes", ct.c_uint64), ("flags", ct.c_uint32), ("name", ct.c_char_p)]


class Dispatch(ct.Structure):
    _fields_ = [
        ("entry", ct.c_void_p),
        ("kernel", ct.c_char_p),
        ("buffers", ct.POINTER(Buffer)),
        ("buffer_count", ct.c_uint32),
        ("threads", UInt3),
        ("group", UInt3),
        ("schedule", ct.c_uint32),
        ("order", ct.c_uint32),
        ("seed", ct.c_uint64),
        ("workers", ct.c_uint32),
        ("check", ct.c_uint32),
        ("stack_bytes", ct.c_uint32),
        ("max_findings", ct.c_uint32),
    ]


class Access(ct.Structure):
    _fields_ = [
        ("pc", ct.c_uint64),
        ("site", ct.POINTER(Site)),
        ("group", UInt3),
        ("thread", UInt3),
        ("bytes", ct.c_uint32),
        ("is_write", ct.c_uint32),
        ("is_atomic", ct.c_uint32),
    ]


class Finding(ct.Structure):
    _fields_ = [
        ("kind_number", ct.c_uint32),
        ("count", ct.c_uint64),
        ("variable_bytes", ct.c_char * 64),
        ("offset", ct.c_uint64),
        ("bytes", ct.c_uint64),
        ("first", Access),
        ("second", Access),
        ("detail_bytes", ct.c_char * 160),
    ]

    @property
    def kind(self) -> str:
        return KINDS[self.kind_number]

    @property
    def variable(self) -> str:
        return str(self.variable_bytes.decode())

    @property
    def detail(self) -> str:
        return str(self.detail_bytes.decode())

    @property
    def distance(self) -> int:
        return int(ct.c_int64(self.offset).value)

    def __repr__(self) -> str:
        return f"{self.kind} of '{self.variable}' x{self.count} at {self.distance}: {self.detail}"


class Counters(ct.Structure):
    _fields_ = [
        (name, ct.c_uint64)
        for name in (
            "device_read",
            "device_written",
            "constant_read",
            "group_read",
            "group_written",
            "atomics",
            "barriers",
            "simdgroup_barriers",
            "simd_exchanges",
            "mmas",
            "groups",
            "threads",
            "group_memory_bytes",
        )
    ]


@dataclass(frozen=True)
class Outcome:
    """What a run left: its findings, counters, and the error if it could not be run."""

    findings: list[Finding]
    counters: Counters
    error: str

    @property
    def kinds(self) -> list[str]:
        return sorted({finding.kind for finding in self.findings})

    def only(self, kind: str) -> Finding:
        assert self.kinds == [kind], self.findings
        return self.findings[0]


@dataclass(frozen=True)
class Given:
    """A tensor as a buffer: its name in findings and its flags."""

    tensor: torch.Tensor
    flags: int = 0
    name: str = ""


def compile_kernels(folder: Path, source: str, *flags: str) -> ct.CDLL:
    """Kernels in C++, linked without any sanitizer's library: the entry points are those of our runtime."""
    compiler = _toolchain.find_compiler().path
    runtime = _toolchain.runtime_library()
    ct.CDLL(str(runtime), mode=ct.RTLD_GLOBAL)
    text, object_file, library = (folder / f"kernels{len(flags)}{end}" for end in (".cpp", ".o", ".so"))
    text.write_text(source)
    common = [compiler, "-std=c++17", "-fPIC", f"-I{_toolchain.RUNTIME}", "-O1"]
    subprocess.run([*common, *flags, "-c", str(text), "-o", str(object_file)], check=True)
    subprocess.run([compiler, "-shared", str(object_file), str(runtime), "-o", str(library)], check=True)
    return ct.CDLL(str(library))


class Runner:
    """Runs kernels by name."""

    def __init__(self, folder: Path) -> None:
        source = (HERE / "runtime_kernels.cpp").read_text()
        instrument = ("-g1", "-fsanitize=thread", "-mllvm", "-tsan-instrument-read-before-write=1")
        self._libraries = (compile_kernels(folder, source), compile_kernels(folder, source, *instrument))
        self._runtime = ct.CDLL(str(_toolchain.runtime_library()))

    def __call__(
        self,
        kernel: str,
        *buffers: Given | torch.Tensor,
        threads: Sequence[int] | int,
        group: Sequence[int] | int,
        check: bool = False,
        schedule: int = RING,
        order: int = FORWARD,
        seed: int = 0,
        workers: int = 1,
        stack_bytes: int = 0,
        max_findings: int = 0,
        library: ct.CDLL | None = None,
    ) -> Outcome:
        given = [buffer if isinstance(buffer, Given) else Given(buffer) for buffer in buffers]
        array = (Buffer * max(1, len(given)))()
        for index, buffer in enumerate(given):
            tensor = buffer.tensor
            name = (buffer.name or f"buffer{index}").encode()
            array[index] = Buffer(
                tensor.data_ptr(), tensor.numel() * tensor.element_size(), buffer.flags, name
            )
        entry = ct.cast(getattr(library or self._libraries[check], kernel), ct.c_void_p)
        dispatch = Dispatch(
            entry=entry,
            kernel=kernel.encode(),
            buffers=array,
            buffer_count=len(given),
            threads=_three(threads),
            group=_three(group),
            schedule=schedule,
            order=order,
            seed=seed,
            workers=workers,
            check=int(check),
            stack_bytes=stack_bytes,
            max_findings=max_findings,
        )
        counters, findings, found = Counters(), (Finding * 64)(), ct.c_uint32()
        error = ct.create_string_buffer(512)
        status = self._runtime.ms_run(
            ct.byref(dispatch), ct.byref(counters), findings, 64, ct.byref(found), error, len(error)
        )
        message = error.value.decode()
        assert (status != 0) == bool(message)
        return Outcome(list(findings[: min(64, found.value)]), counters, message)


def _three(size: Sequence[int] | int) -> UInt3:
    values = (size,) if isinstance(size, int) else tuple(size)
    return UInt3(*(*values, 1, 1)[:3])
