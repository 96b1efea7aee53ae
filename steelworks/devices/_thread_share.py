"""How many cores the calling thread's CPU work may use, changed without touching another thread.

``torch.set_num_threads`` is not the tool: called in one thread, it also becomes the setting of
every thread that starts later. OpenMP keeps the number per thread, so it is set there, and in
MKL where torch brought one, because a thread that torch set up from an earlier
``torch.set_num_threads`` carries an MKL number that goes before OpenMP's.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped, unused-ignore]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShareState:
    """What a thread's numbers were before a change: one per OpenMP library, and MKL's."""

    openmp: tuple[int, ...]
    mkl: int


class ThreadShare:
    """The calling thread's share of the cores.

    Args:
        openmp: one (get, set) pair for each OpenMP library; empty to fall back on torch.
        mkl_local: sets MKL's number for the calling thread, 0 for "as OpenMP", and returns the
            one before; None where torch has no MKL.
    """

    def __init__(
        self,
        openmp: tuple[tuple[Callable[[], int], Callable[[int], object]], ...],
        mkl_local: Callable[[int], int] | None = None,
    ) -> None:
        self._openmp = openmp
        self._mkl_local = mkl_local
        self._explain = threading.Lock()
        self._explained = False

    def set(self, cores: int) -> None:
        """Let the calling thread use ``cores`` cores from now on."""
        # torch sets a thread up at its first call, and would undo what was set before that.
        torch.get_num_threads()
        if not self._openmp:
            self._fall_back(cores)
            return
        for _, set_threads in self._openmp:
            set_threads(cores)
        if self._mkl_local is not None:
            self._mkl_local(cores)

    def swap(self, cores: int) -> ShareState:
        """As :meth:`set`, and return what :meth:`restore` needs to undo it."""
        before = torch.get_num_threads()
        if not self._openmp:
            self._fall_back(cores)
            return ShareState((before,), 0)
        numbers = tuple(get_threads() for get_threads, _ in self._openmp)
        for _, set_threads in self._openmp:
            set_threads(cores)
        return ShareState(numbers, self._mkl_local(cores) if self._mkl_local is not None else 0)

    def restore(self, state: ShareState) -> None:
        """Put the calling thread back to ``state``."""
        if not self._openmp:
            torch.set_num_threads(state.openmp[0])
            return
        for (_, set_threads), number in zip(self._openmp, state.openmp, strict=True):
            set_threads(number)
        if self._mkl_local is not None:
            self._mkl_local(state.mkl)

    def _fall_back(self, cores: int) -> None:
        with self._explain:
            explained, self._explained = self._explained, True
        if not explained:
            _log.warning(
                "no OpenMP library was found in this process; using torch.set_num_threads(), "
                "which also changes the number of threads of every thread started later"
            )
        torch.set_num_threads(cores)


@cache
def thread_share() -> ThreadShare:
    """Return this process's :class:`ThreadShare`; the libraries are looked up once."""
    controllers = ThreadpoolController().lib_controllers
    openmp = tuple(
        (controller.get_num_threads, controller.set_num_threads)
        for controller in controllers
        if controller.user_api == "openmp"
    )
    libraries = [c.dynlib for c in controllers if c.internal_api == "mkl"]
    return ThreadShare(openmp, _find_mkl_local([*_torch_library(), *libraries]))


def _torch_library() -> list[ctypes.CDLL]:
    """Return torch's own CPU library, which may have MKL linked into it."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    try:
        return [ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", name))]
    except OSError:
        return []


def _find_mkl_local(libraries: list[ctypes.CDLL]) -> Callable[[int], int] | None:
    for library in libraries:
        function = getattr(library, "MKL_Set_Num_Threads_Local", None)
        if function is not None:
            function.argtypes = (ctypes.c_int,)
            function.restype = ctypes.c_int
            return function  # type: ignore[no-any-return]
    return None
