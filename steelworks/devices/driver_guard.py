"""A guard that lets one thread at a time into Apple's GPU driver. Opt-in, macOS only.

**It has not run on a Mac.** What it does was run on Linux over a stand-in of the driver, with the Objective-C source
that Macs compile; ``verification/driver_race`` and ``verification/tla/DriverRace.tla`` say what was checked.

Public crash reports say that Apple's driver keeps books of the process without a lock: an encoder that one thread
ends, while another makes or uses one, leaves a null pointer or another encoder's memory behind. The guard replaces the
methods of the concrete command buffer and encoder classes by versions that hold one recursive lock for the call.
Steelworks' own use of the GPU needs no guard: one thread owns it, or encoding takes turns
(:mod:`steelworks.devices.mps`). It is for programs in which other code encodes from other threads at the same time.

What it does not do: a method that is not on its list, as Apple's frameworks may call among themselves, is not guarded;
an encoder that a thread goes on using after another has ended it is not mended. Such a call is dropped and counted, and
:func:`check_driver_guard` raises an error, for what the GPU computes without it is wrong.

Install it before the first use of the GPU: by a call of :func:`install_driver_guard`, or by
``STEELWORKS_DRIVER_GUARD=1`` in the environment, which the first :class:`~steelworks.devices.MPSDevice` honours.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs

from steelworks.errors import DeviceRuleError, ForkedProcessError, InvalidInputError

#: What is compiled.
SOURCE: Final = Path(__file__).parent / "_driver_guard" / "guard.m"
ENVIRONMENT: Final = "STEELWORKS_DRIVER_GUARD"
_FLAGS: Final = (
    "-x",
    "objective-c",
    "-O2",
    "-fno-objc-arc",
    "-fobjc-exceptions",
    "-fexceptions",
    "-Wno-cast-function-type-mismatch",
    "-dynamiclib",
    "-framework",
    "Metal",
    "-lobjc",
)
_SECONDS: Final = 120.0  # for a compiler that compiles one file
_WHY_BYTES: Final = 512

_lock = threading.Lock()
_library: ctypes.CDLL | None = None
_dropped = 0  # calls that an error has been raised for
_pid = os.getpid()


class DriverGuardError(DeviceRuleError):
    """The guard can't be installed or taken out here, or it had to drop a call."""


@dataclass(frozen=True)
class DriverGuardStatistics:
    """What the guard has seen since the process began.

    Attributes:
        calls: Calls into the driver that held the lock.
        dropped: Calls on an encoder that another thread had ended; what the GPU computed without them is wrong.
        open_encoders: Encoders that were made under the guard and have not ended.
    """

    calls: int
    dropped: int
    open_encoders: int


def install_driver_guard() -> None:
    """Let one thread at a time into the GPU driver, from now on and in the whole process.

    Compiles the guard at its first use on this machine (about a second) and keeps it in the user's cache folder.
    Does nothing if it is installed.

    Raises:
        DriverGuardError: This is no Mac, there is no clang, it does not compile, the driver lacks a method, or other
            threads may be inside the driver at this moment.
        ForkedProcessError: The process is a forked child.
    """
    global _library
    with _lock:
        if sys.platform != "darwin":
            raise DriverGuardError(
                f"the driver's guard was asked for on {sys.platform}; it is for Apple's GPU driver, on macOS only: "
                f"leave install_driver_guard() out, and {ENVIRONMENT} unset"
            )
        _refuse_in_a_child("install_driver_guard()")
        if _library is not None and _library.steel_guard_installed():
            return
        _refuse_beside_other_threads()
        library = _library if _library is not None else _load(_built())
        _call(library.steel_guard_install, "installed", "report this with your macOS version and chip")
        _library = library


def uninstall_driver_guard() -> None:
    """Put the driver's own methods back. Does nothing if the guard is not installed.

    The compiled code stays loaded: a thread may be on its way into it. What threads do in the driver from now on is
    not guarded, so let them end first.

    Raises:
        DriverGuardError: Encoders are open, or something else has replaced the same methods since.
        ForkedProcessError: The process is a forked child.
    """
    with _lock:
        if _library is None:
            return
        _refuse_in_a_child("uninstall_driver_guard()")
        _call(
            _library.steel_guard_uninstall,
            "taken out",
            "end what uses the GPU, call torch.mps.synchronize(), and undo other replacements first",
        )


def driver_guard_installed() -> bool:
    """Whether the guard is installed in this process."""
    return _library is not None and bool(_library.steel_guard_installed())


def driver_guard_statistics() -> DriverGuardStatistics:
    """What the guard has seen; all zero if it was never installed."""
    found = (ctypes.c_long * 3)()
    if _library is not None:
        _library.steel_guard_statistics(found)
    return DriverGuardStatistics(*found)


def check_driver_guard() -> None:
    """Raise an error if the guard has dropped calls since the last check; cheap where it is not installed.

    Raises:
        DriverGuardError: It has. Results that were computed since are not to be trusted.
    """
    global _dropped
    if _library is None:
        return
    dropped = driver_guard_statistics().dropped
    with _lock:
        new, _dropped = dropped - _dropped, dropped
    if new > 0:
        raise DriverGuardError(
            f"{new} calls were made on an encoder that another thread had ended, and were dropped: results since the "
            "last check are wrong. Two threads use one Metal command buffer: let one thread use the GPU, through a "
            "BatchQueue, or give each thread a stream of its own (torch 2.15)"
        )


def install_if_asked() -> None:
    """Install the guard if ``STEELWORKS_DRIVER_GUARD`` says so.

    Raises:
        InvalidInputError: The variable is neither yes nor no.
        DriverGuardError: as :func:`install_driver_guard`.
    """
    value = os.environ.get(ENVIRONMENT, "").strip().lower()
    if value in ("", "0", "false", "no", "off"):
        return
    if value not in ("1", "true", "yes", "on"):
        raise InvalidInputError(f"{ENVIRONMENT}={value!r} was set; use 1 to install the driver's guard, or 0")
    install_driver_guard()


def _refuse_in_a_child(what: str) -> None:
    if os.getpid() != _pid:
        raise ForkedProcessError(
            f"{what} was called in a forked child; the Apple GPU can't be used after fork(): "
            "start the process with multiprocessing's 'spawn' method"
        )


def _refuse_beside_other_threads() -> None:
    """A thread that is inside the driver without the lock excludes nobody."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.backends.mps.is_available() or not torch.mps.current_allocated_memory():
        return
    me = threading.current_thread()
    others = [thread.name for thread in threading.enumerate() if thread is not me]
    if others:
        raise DriverGuardError(
            f"tensors are on the GPU already, and other threads run ({', '.join(others[:4])}): one may be inside the "
            f"driver without the guard. Install it before the first use of the GPU, or set {ENVIRONMENT}=1"
        )
    torch.mps.synchronize()  # ends the encoder that was made without the guard


def _call(function: Callable[[Any, int], int], done: str, mend: str) -> None:
    why = ctypes.create_string_buffer(_WHY_BYTES)
    if function(why, _WHY_BYTES) < 0:
        raise DriverGuardError(
            f"the driver's guard can't be {done}: {why.value.decode(errors='replace')}; nothing was changed: {mend}"
        )


def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as problem:
        raise DriverGuardError(
            f"the compiled guard can't be loaded: {problem}; delete {path.parent} to have it compiled anew"
        ) from problem
    for function in (library.steel_guard_install, library.steel_guard_uninstall):
        function.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        function.restype = ctypes.c_int
    library.steel_guard_installed.restype = ctypes.c_int
    library.steel_guard_statistics.argtypes = [ctypes.POINTER(ctypes.c_long)]
    library.steel_guard_statistics.restype = None
    return library


def _clang() -> tuple[str, str]:
    """The compiler and what it says of itself."""
    named = os.environ.get("STEELWORKS_CLANG", "")
    path = shutil.which(named or "clang")
    if path is not None:
        # Without the command line tools, macOS has a clang that only says where to get one.
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        if said.returncode == 0 and "clang" in said.stdout:
            return path, said.stdout
    given = f"STEELWORKS_CLANG names {named!r}, which is no clang" if named else "there is no clang here"
    raise DriverGuardError(
        f"the driver's guard is compiled on this machine, and {given}; install Xcode's command line tools: "
        "xcode-select --install"
    )


def _cache() -> Path:
    named = os.environ.get("STEELWORKS_CACHE")
    place = Path(named).absolute() if named else platformdirs.user_cache_path("steelworks")
    return place / "driver_guard"


def _built() -> Path:
    """The compiled guard, in the cache under the hash of all that went into it."""
    clang, version = _clang()
    flags = (*_FLAGS, "-arch", platform.machine())
    parts = (SOURCE.read_text(encoding="utf-8"), version, *flags)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    path = _cache() / key / "libsteelguard.dylib"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as name:
            made = Path(name) / path.name
            done = subprocess.run(
                [clang, *flags, "-o", str(made), str(SOURCE)],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
            if done.returncode:
                raise DriverGuardError(
                    f"the driver's guard does not compile with {clang}: {done.stderr.strip()[-2000:]}"
                )
            made.replace(path)  # whole or absent, whoever else makes it at this moment
    except OSError as problem:
        raise DriverGuardError(
            f"the compiled guard can't be kept in {path.parent}: {problem}; name a writable folder in STEELWORKS_CACHE"
        ) from problem
    return path
