"""The compiler, the flags, and the cache of what was compiled.

Everything compiled is kept on disk under a name that is the hash of all that went into it: source, headers,
compiler, flags. An entry is a directory, written elsewhere and put in place by one rename: it is whole or
absent, and never changes. Nothing is compiled under a lock: threads that ask for the same thing share one
compilation, threads that ask for different things don't meet.

Environment:
    STEELWORKS_CLANG: The compiler to use, a path or a name on PATH.
    STEELWORKS_CACHE: Where to keep compiled code; the user's cache directory otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs

from .errors import ToolchainError

PACKAGE: Final = Path(__file__).parent
INCLUDE: Final = PACKAGE / "include"
RUNTIME: Final = PACKAGE / "runtime"
MINIMUM_VERSION: Final = 17
MEND: Final = (
    "Install clang 17 or newer: on Debian or Ubuntu 'apt install clang-19 libclang-rt-19-dev llvm-19', "
    "on macOS the Xcode command line tools ('xcode-select --install'); or name one in STEELWORKS_CLANG."
)
_CANDIDATES: Final = ("clang++-19", "clang++", *(f"clang++-{v}" for v in (22, 21, 20, 18, 17)))
_X86_FEATURES: Final = ("avx2", "fma", "f16c", "bmi2")

#: What Metal's language is to clang: C++14 with the extensions that Apple's compiler accepts as well.
LANGUAGE: Final = (
    "-x",
    "c++",
    "-std=c++14",
    "-fdeclspec",
    "-nostdinc",
    "-fno-exceptions",
    "-fno-rtti",
    "-fsigned-char",
    "-fno-threadsafe-statics",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wno-everything",
)
PREPROCESSOR: Final = ("-D__METAL__=1", "-D__METAL_CPP__=1", "-D__METAL_MACOS__=1", "-D__METAL_VERSION__=320")


@dataclass(frozen=True)
class Compiler:
    """A usable clang++.

    Attributes:
        path: Absolute path of the program.
        version: Its first line of ``--version``.
        major: Its major version.
    """

    path: str
    version: str
    major: int

    def run(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs it to its end; never raises for a failed compilation."""
        return subprocess.run(
            [self.path, *arguments],
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            env={**os.environ, "LC_ALL": "C", "CPATH": "", "CPLUS_INCLUDE_PATH": ""},
        )


def _version_of(path: str) -> Compiler | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, encoding="utf-8", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = done.stdout.splitlines()[0] if done.stdout else ""
    if done.returncode != 0 or "clang version" not in first:
        return None
    digits = first.split("clang version", 1)[1].strip().split(".")[0]
    if not digits.isdigit():
        return None
    # Apple counts its releases otherwise: 16 is LLVM 17.
    major = int(digits) + (1 if first.startswith("Apple") else 0)
    return Compiler(path, first.strip(), major)


def find_compiler() -> Compiler:
    """The compiler that is used: ``$STEELWORKS_CLANG``, else clang++-19, else another clang++ from 17 on.

    Raises:
        ToolchainError: there is none; the message says how to get one.
    """
    return _find_compiler(os.environ.get("STEELWORKS_CLANG", ""), os.environ.get("PATH", ""))


@functools.lru_cache(maxsize=8)
def _find_compiler(named: str, search: str) -> Compiler:
    seen: list[str] = []
    for name in (named,) if named else _CANDIDATES:
        path = shutil.which(name, path=search or None)
        if path is None:
            continue
        compiler = _version_of(path)
        if compiler is None:
            seen.append(f"{path} is no clang++")
        elif compiler.major < MINIMUM_VERSION:
            seen.append(f"{path} is clang {compiler.major}")
        else:
            return compiler
    if named:
        found = "; ".join(seen) or "there is no such program"
        raise ToolchainError(
            f"STEELWORKS_CLANG names '{named}', but {found}. "
            f"It must be clang++ {MINIMUM_VERSION} or newer. {MEND}"
        )
    found = f" Found but not usable: {'; '.join(seen)}." if seen else ""
    raise ToolchainError(
        f"Metal kernels need clang++ {MINIMUM_VERSION} or newer to run on the CPU.{found} {MEND}"
    )


def cache_directory() -> Path:
    """Where compiled code is kept. Safe to delete at any time when nothing runs."""
    named = os.environ.get("STEELWORKS_CACHE")
    if named:
        return Path(named).absolute() / "metalsim"
    return platformdirs.user_cache_path("steelworks") / "metalsim"


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Flags for this CPU: the x86-64-v3 set where it is there, for half conversion and fma."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return ()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ()
    line = next((x for x in text.splitlines() if x.startswith("flags")), "")
    if set(_X86_FEATURES) <= set(line.split()):
        return ("-march=x86-64-v3",)
    return ()


def half_flags() -> tuple[str, ...]:
    """Round after every operation on half and bfloat, as a GPU does."""
    if platform.machine() in ("x86_64", "AMD64"):
        return ("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none")
    return ()


def mode_flags(check: bool, *, plain_vectors: bool = False) -> tuple[str, ...]:
    """Optimisation, and in checking mode the instrumentation.

    ``plain_vectors``: copy vectors as C++ copies plain structs. Their alignment is not checked then.
    """
    # A large frame touches its pages in turn, so that it meets the guard of its stack and not another's memory.
    stack = ("-fstack-clash-protection",) if sys.platform == "linux" else ()
    if not check:
        return ("-O2", *stack)
    instrument = ("-tsan-instrument-read-before-write=1", "-tsan-instrument-func-entry-exit=0")
    return (
        "-O1",
        *stack,
        "-gline-tables-only",
        "-fdebug-compilation-dir=.",
        "-fsanitize=thread,array-bounds,alignment",
        "-fstrict-flex-arrays=3",
        *(() if plain_vectors else ("-DMS_CHECK=1",)),
        *(x for flag in instrument for x in ("-mllvm", flag)),
    )


def library_suffix() -> str:
    """Of shared libraries."""
    return ".dylib" if sys.platform == "darwin" else ".so"


def digest(*parts: str | bytes) -> str:
    """A name for content: the hash of all parts, each with its length."""
    hasher = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:32]


@functools.cache
def _tree_digest(root: Path, pattern: str) -> str:
    parts: list[str | bytes] = []
    for path in sorted(root.rglob(pattern)):
        if path.is_file() and "__pycache__" not in path.parts:
            parts += [str(path.relative_to(root)), path.read_bytes()]
    return digest(*parts)


def shim_digest() -> str:
    """The hash of the stand-in headers."""
    return digest(_tree_digest(INCLUDE, "*"), (RUNTIME / "metalsim.h").read_bytes())


class Cache:
    """Directories by content, each made once.

    Threads of this process that ask for the same key share one call of ``make``; processes that make the same
    entry at the same time both do, and the first rename wins.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pending: dict[Path, Future[Path]] = {}

    def get(self, kind: str, key: str, make: Callable[[Path], None]) -> Path:
        """The directory ``kind/key``; ``make`` fills an empty one if it is not there.

        Raises:
            Whatever ``make`` raises; nothing is kept then, and the next call tries again.
        """
        final = cache_directory() / kind / key
        if final.is_dir():
            return final
        with self._guard:
            future = self._pending.get(final)
            mine = future is None
            if future is None:
                future = self._pending[final] = Future()
        if not mine:
            return future.result()
        try:
            future.set_result(self._make(final, make))
        except BaseException as problem:
            future.set_exception(problem)
        finally:
            with self._guard:
                self._pending.pop(final, None)
        return future.result()

    def _make(self, final: Path, make: Callable[[Path], None]) -> Path:
        if final.is_dir():
            return final
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".making-", dir=final.parent))
        except OSError as problem:
            raise ToolchainError(
                f"compiled kernels can't be kept in {final.parent}: {problem}. "
                "Name a writable directory in STEELWORKS_CACHE."
            ) from problem
        try:
            make(building)
            try:
                building.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
        finally:
            if building.is_dir():
                shutil.rmtree(building, ignore_errors=True)
        return final


CACHE: Final = Cache()


def _require(done: subprocess.CompletedProcess[str], what: str) -> None:
    if done.returncode != 0:
        raise ToolchainError(f"{what} does not compile with {done.args[0]}:\n{done.stderr[-4000:]}")


def runtime_library() -> Path:
    """The runtime as a shared library, compiled at first use."""
    compiler = find_compiler()
    sources = sorted(RUNTIME.glob("*.cpp"))
    if not sources:
        raise ToolchainError(f"the runtime's sources are missing from {RUNTIME}: the installation is broken")
    flags = ("-std=c++17", "-O2", "-g", "-fPIC", "-pthread", "-fno-omit-frame-pointer", *machine_flags())
    key = digest(_tree_digest(RUNTIME, "*"), compiler.version, *flags)
    name = f"libmetalsim{library_suffix()}"

    def make(directory: Path) -> None:
        def compile_one(source: Path) -> Path:
            made = directory / f"{source.stem}.o"
            _require(compiler.run(*flags, "-c", "-o", str(made), str(source)), "the runtime")
            return made

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            objects = list(pool.map(compile_one, sources))
        # Kernel libraries find the runtime by its place: on macOS that is what the install name says.
        place = cache_directory() / "runtime" / key / name
        link = (f"-Wl,-install_name,{place}",) if sys.platform == "darwin" else ("-ldl",)
        inputs = [str(o) for o in objects]
        done = compiler.run("-shared", "-pthread", "-o", str(directory / name), *inputs, *link)
        _require(done, "the runtime")
        for made in objects:
            made.unlink()

    return CACHE.get("runtime", key, make) / name


def shim_directory() -> Path:
    """A copy of the stand-in headers that nobody touches: clang refuses a precompiled one that is older."""

    def make(directory: Path) -> None:
        shutil.copytree(INCLUDE, directory / "include", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(RUNTIME / "metalsim.h", directory / "include" / "metalsim.h")

    return CACHE.get("shim", shim_digest(), make) / "include"


def header(check: bool, *, plain_vectors: bool = False) -> Path:
    """The precompiled stand-in headers: the path to hand to ``-include-pch``."""
    compiler = find_compiler()
    flags = compile_flags(check, plain_vectors=plain_vectors)
    shim = shim_directory()

    def make(directory: Path) -> None:
        output, source = directory / "shim.pch", shim / "ms" / "shim.h"
        paths = (f"-I{shim}", "-isystem", resource_include(compiler))
        done = compiler.run(*flags, *paths, "-x", "c++-header", "-o", str(output), str(source))
        _require(done, "the stand-in for metal_stdlib")

    return CACHE.get("header", digest(shim_digest(), str(shim), compiler.version, *flags), make) / "shim.pch"


@functools.cache
def resource_include(compiler: Compiler) -> str:
    """clang's own headers (stddef.h, stdint.h)."""
    return str(Path(compiler.run("-print-resource-dir").stdout.strip()) / "include")


def compile_flags(check: bool, *, plain_vectors: bool = False) -> tuple[str, ...]:
    """All flags that a kernel library and its precompiled header share."""
    mode = mode_flags(check, plain_vectors=plain_vectors)
    return (*LANGUAGE, *PREPROCESSOR, *machine_flags(), *half_flags(), "-fPIC", *mode)


def symbolizer() -> str | None:
    """llvm-symbolizer or addr2line; None if neither is there."""
    compiler = find_compiler()
    names = (f"llvm-symbolizer-{compiler.major}", "llvm-symbolizer", "addr2line")
    beside = str(Path(compiler.path).resolve().parent)
    return next((p for n in names for p in (shutil.which(n), shutil.which(n, path=beside)) if p), None)
