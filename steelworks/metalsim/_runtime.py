"""The C interface of ``runtime/metalsim.h``, part 3, through ctypes."""

from __future__ import annotations

import ctypes
import functools
from ctypes import CFUNCTYPE, POINTER, Structure, c_char, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Final

from . import _toolchain

Entry = CFUNCTYPE(None, POINTER(c_void_p), c_void_p)

BUFFER_CONSTANT: Final = 1
BUFFER_OUTPUT: Final = 2
BUFFER_WRITE_MANY: Final = 4
SCHEDULES: Final = {"ring": 0, "run_ahead": 1}
ORDERS: Final = {"forward": 0, "reverse": 1, "shuffled": 2}
SIMD_WIDTH: Final = 32
GROUP_MEMORY_LIMIT: Final = 32768
MAX_THREADS: Final = 1024


class UInt3(Structure):
    """ms_uint3"""

    _fields_ = [("x", c_uint32), ("y", c_uint32), ("z", c_uint32)]


class Site(Structure):
    """ms_site"""

    _fields_ = [("file", c_char_p), ("line", c_uint32), ("column", c_uint32), ("function", c_char_p)]


class Buffer(Structure):
    """ms_buffer"""

    _fields_ = [("data", c_void_p), ("bytes", c_uint64), ("flags", c_uint32), ("name", c_char_p)]


class Dispatch(Structure):
    """ms_dispatch"""

    _fields_ = [
        ("entry", c_void_p),
        ("kernel", c_char_p),
        ("buffers", POINTER(Buffer)),
        ("buffer_count", c_uint32),
        ("threads", UInt3),
        ("group", UInt3),
        ("schedule", c_uint32),
        ("order", c_uint32),
        ("seed", c_uint64),
        ("workers", c_uint32),
        ("check", c_uint32),
        ("stack_bytes", c_uint32),
        ("max_findings", c_uint32),
    ]


class Access(Structure):
    """ms_access"""

    _fields_ = [
        ("pc", c_uint64),
        ("site", POINTER(Site)),
        ("group", UInt3),
        ("thread", UInt3),
        ("bytes", c_uint32),
        ("is_write", c_uint32),
        ("is_atomic", c_uint32),
    ]


class Finding(Structure):
    """ms_finding"""

    _fields_ = [
        ("kind", c_uint32),
        ("count", c_uint64),
        ("variable", c_char * 64),
        ("offset", c_uint64),
        ("bytes", c_uint64),
        ("first", Access),
        ("second", Access),
        ("detail", c_char * 160),
    ]


COUNTER_NAMES: Final = (
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


class Counters(Structure):
    """ms_counters"""

    _fields_ = [(name, c_uint64) for name in COUNTER_NAMES]


class _DlInfo(Structure):
    _fields_ = [("fname", c_char_p), ("fbase", c_void_p), ("sname", c_char_p), ("saddr", c_void_p)]


@functools.cache
def load(path: Path) -> ctypes.CDLL:
    """The runtime, ready to call."""
    library = ctypes.CDLL(str(path))
    library.ms_run.restype = c_int
    library.ms_run.argtypes = [
        POINTER(Dispatch),
        POINTER(Counters),
        POINTER(Finding),
        c_uint32,
        POINTER(c_uint32),
        c_char_p,
        c_uint32,
    ]
    return library


def runtime() -> ctypes.CDLL:
    """The runtime, compiled and loaded at first use."""
    return load(_toolchain.runtime_library())


def locate(address: int) -> tuple[str, int, str] | None:
    """The shared library an address lies in, the library's base, and the nearest symbol before it."""
    info = _DlInfo()
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = [c_void_p, POINTER(_DlInfo)]
    if not dladdr(address, ctypes.byref(info)) or info.fname is None:
        return None
    return (
        info.fname.decode(errors="replace"),
        int(info.fbase or 0),
        (info.sname or b"").decode(errors="replace"),
    )
