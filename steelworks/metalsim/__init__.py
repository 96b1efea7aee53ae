"""Metal compute on the CPU: run, race-check and bounds-check Metal kernels on any machine.

What it promises
    ``compile_shader(source)`` has the interface of ``torch.mps.compile_shader``, with CPU tensors in place of
    MPS ones: the launcher above it is the same code on a Mac. What torch's function rejects is rejected here too.

How it works
    1. *Source* (``_source``): C++14 with Metal's qualifiers. torch's ``c10/metal`` headers are pasted in, the
       text is preprocessed by clang with our ``include/metal_stdlib``, then scanned for kernels (parameters
       with their attributes, ``[[host_name]]`` instantiations) and threadgroup variables. These become
       ordinary C++ with one entry function a kernel (``_emit``). Line numbers stay those of the user's file.
    2. *Compiler* (``_toolchain``): stock clang makes a shared library, kept on disk by content. Checking mode
       adds ``-fsanitize=thread,array-bounds,alignment`` when compiling, makes the checks of bounds strict on
       the way from clang's front end to its optimizer (``_compile``), and links against our runtime in place
       of clang's.
    3. *Runtime* (``runtime/``, C++; interface in ``runtime/metalsim.h``): a fiber a GPU thread, threadgroups
       over the cores, barriers and simdgroup collectives as rendezvous, schedules by choice, checks,
       counters.
    4. *Launch* (``_library``, ``_arguments``): binds arguments as torch does and calls the runtime through
       ctypes.

Not modelled: fast-math, flushing of denormals, the summation order inside a simdgroup multiply-accumulate,
the accuracy of transcendental functions. Nothing here replaces a run on a Mac.
"""

from __future__ import annotations

from . import errors
from ._library import MetalKernel, ShaderLibrary, compile_shader
from ._options import Options, Session, options
from .reports import Access, Counters, Finding, Launch, Report

__all__ = [
    "Access",
    "Counters",
    "Finding",
    "Launch",
    "MetalKernel",
    "Options",
    "Report",
    "Session",
    "ShaderLibrary",
    "compile_shader",
    "errors",
    "options",
]
