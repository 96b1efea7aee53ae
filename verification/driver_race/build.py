"""Compiles the guard, the stand-in and the scenes with clang and GCC's Objective-C runtime."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steelworks.metalsim._toolchain import Compiler, find_compiler, resource_include
from steelworks.metalsim.errors import ToolchainError
from verification.claims import ToolMissing
from verification.parts import ROOT

OBJC: Final = Path(__file__).parent / "objc"
#: What is shipped; steelworks.devices.driver_guard compiles the same file, but importing that takes torch.
GUARD: Final = ROOT / "steelworks" / "devices" / "_driver_guard" / "guard.m"
MEND: Final = (
    "the driver's race is reproduced with clang and GCC's Objective-C runtime, on Linux: apt install gobjc clang-19 "
    "libclang-rt-19-dev"
)
_PARTS: Final = ("standin.m", "scenes.m", "events.c")
#: What a build is for, and its flags.
KINDS: Final = {"plain": (), "tsan": ("-fsanitize=thread",)}


class BuildError(RuntimeError):
    """Something does not compile; the message is the compiler's."""


@dataclass(frozen=True)
class Tools:
    """What is needed to build.

    Attributes:
        compiler: clang.
        headers: the folder that holds the runtime's ``objc/runtime.h``.
    """

    compiler: Compiler
    headers: Path


def find() -> Tools:
    """The compiler and the runtime.

    Raises:
        ToolMissing: one of them is not here; the message says how to get it.
    """
    if sys.platform != "linux":
        raise ToolMissing(f"not reproduced here, as this is no Linux: {MEND}")
    try:
        compiler = find_compiler()
    except ToolchainError as problem:
        raise ToolMissing(str(problem)) from problem
    library = Path(compiler.run("-print-file-name=libobjc.so").stdout.strip())
    headers = library.parent / "include"
    if not library.is_absolute() or not (headers / "objc" / "runtime.h").is_file():
        raise ToolMissing(f"{compiler.path} finds no Objective-C runtime: {MEND}")
    runtimes = Path(resource_include(compiler)).parent / "lib"
    if not any(runtimes.rglob("libclang_rt.tsan*.a")):
        raise ToolMissing(f"{compiler.path} has no runtime of ThreadSanitizer: {MEND}")
    return Tools(compiler, headers)


def missing() -> str:
    """What has to be installed before the race can be reproduced, "" for nothing."""
    try:
        find()
    except ToolMissing as problem:
        return str(problem)
    return ""


class Workshop:
    """Builds programs out of the scenes and one version of the guard; the scenes are compiled once.

    Args:
        tools: as :func:`find` gives them.
        place: a folder for what is built.
    """

    def __init__(self, tools: Tools, place: Path) -> None:
        self.tools = tools
        self._place = place
        (place / "include").mkdir()
        # The runtime's headers lie among GCC's own, which clang must not see.
        (place / "include" / "objc").symlink_to(tools.headers / "objc")
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="objc")
        self._objects: dict[tuple[str, str], Future[Path]] = {}
        self._programs: dict[tuple[str, str], Future[Path]] = {}
        self._count = 0

    def program(self, guard: str, kind: str) -> Future[Path]:
        """The program with the guard whose text is ``guard``, built for ``kind``; the same for the same."""
        # What a link waits for is begun before it, so that it never waits for what is behind it in the queue.
        for part in _PARTS:
            if (part, kind) not in self._objects:
                self._objects[part, kind] = self._pool.submit(
                    self._compile, OBJC / part, f"{part}.{kind}.o", kind
                )
        key = (guard, kind)
        if key not in self._programs:
            self._count += 1
            self._programs[key] = self._pool.submit(self._link, guard, kind, f"scenes{self._count}")
        return self._programs[key]

    def close(self) -> None:
        """Wait for what is being built; start no more."""
        self._pool.shutdown(cancel_futures=True)

    def _compile(self, source: Path, name: str, kind: str) -> Path:
        target = self._place / name
        flags = (
            "-fobjc-runtime=gcc",
            "-fexceptions",
            "-g",
            "-O1",
            "-Wall",
            "-Werror=incompatible-pointer-types",
        )
        language = ("-x", "objective-c") if source.suffix == ".m" else ("-x", "c")
        events = ("-include", str(OBJC / "events.h")) if name.startswith("guard") else ()
        self._run(
            *language, *flags, *KINDS[kind], f"-I{self._place / 'include'}", f"-I{OBJC}", *events,
            "-c", str(source), "-o", str(target),
        )  # fmt: skip
        return target

    def _link(self, guard: str, kind: str, name: str) -> Path:
        source = self._place / f"{name}.m"
        source.write_text(guard, encoding="utf-8")
        made = self._compile(source, f"guard.{name}.{kind}.o", kind)
        objects = [str(self._objects[part, kind].result()) for part in _PARTS]
        self._run(*KINDS[kind], str(made), *objects, "-lobjc", "-pthread", "-o", str(self._place / name))
        return self._place / name

    def _run(self, *arguments: str) -> None:
        done: subprocess.CompletedProcess[str] = self.tools.compiler.run(*arguments)
        if done.returncode:
            raise BuildError(done.stderr[-3000:])


@contextmanager
def workshop() -> Iterator[Workshop]:
    """A workshop in a folder that is removed at the end.

    Raises:
        ToolMissing: the compiler or the runtime is not here.
    """
    tools = find()
    with tempfile.TemporaryDirectory(prefix="driver-race-") as name:
        shop = Workshop(tools, Path(name))
        try:
            yield shop
        finally:
            shop.close()


def shipped() -> str:
    """The text of the guard as it is shipped."""
    return GUARD.read_text(encoding="utf-8")
