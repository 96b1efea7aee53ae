"""From Metal source to a shared library on disk: preprocess, rewrite, compile, keep."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from . import _toolchain
from ._emit import emit, entry_symbol
from ._found import Parameter, Scan
from ._source import scan
from ._tokens import Code, tokenize
from .errors import MetalSyntaxError

#: The name Metal's own compiler gives to source without a file.
DEFAULT_NAME: Final = "program_source"
_DIAGNOSTIC: Final = re.compile(
    r"^(?P<file>.*?):(?P<line>\d+):(?P<column>\d+): (?P<kind>fatal error|error|note): (?P<text>.*)$"
)
_MOST_ERRORS: Final = 20
#: A check of an index that may be the array's length, and the element's address behind it. (The address behind a check
#: of ``array + number`` has one index: there the length is a number like others.)
_LOOSE_BOUND: Final = re.compile(
    r"(?<= = icmp )ule"
    r"(?= i(?:32|64) \S+ \d+, [^\n]*!nosanitize[^\n]*\n"
    r"  br i1 [^\n]*\n\n"
    r"[^\n]*\n(?:  %[^\n]*\n)?  call void @__ubsan_handle_out_of_bounds[^\n]*\n"
    r"  br label [^\n]*\n\n"
    r"[^\n]*\n(?:  %\S+ = [sz]ext [^\n]*\n)?  %\S+ = getelementptr [^\n]*, i(?:32|64) 0, i(?:32|64) %)"
)


@dataclass(frozen=True)
class KernelInfo:
    """What the launcher knows of a kernel.

    Attributes:
        name: The name it is called by.
        entry: The symbol of its entry function; ``number`` is part of the others' names.
        parameters: In order of declaration.
        variables: Tags of its threadgroup variables.
        limited: It has a limit of its own on the threads of a threadgroup.
        file: Where it is defined.
        line: The line there.
    """

    name: str
    number: int
    entry: str
    parameters: tuple[Parameter, ...]
    variables: tuple[str, ...]
    limited: bool
    file: str
    line: int


@dataclass(frozen=True)
class Compiled:
    """A kernel library on disk and what is in it."""

    path: Path
    kernels: tuple[KernelInfo, ...]
    check: bool


def torch_include() -> Path:
    """The headers of the installed torch: ``#include <c10/metal/...>`` is found there."""
    return Path(torch.__file__).parent / "include"


def compile_source(source: str, *, name: str = DEFAULT_NAME, check: bool = False) -> Compiled:
    """Compiles a Metal source, or takes what an earlier call compiled.

    Args:
        source: The text.
        name: The file name for messages.
        check: With the instrumentation of checking mode.

    Raises:
        MetalSyntaxError: the source does not compile or leaves the subset.
        ToolchainError: no compiler.
    """
    compiler = _toolchain.find_compiler()
    runtime = _toolchain.runtime_library()
    flags = _toolchain.compile_flags(check)
    key = _toolchain.digest(
        source,
        name,
        torch.__version__,
        _toolchain.shim_digest(),
        _own_digest(),
        compiler.version,
        str(runtime),
        *flags,
    )

    def make(directory: Path) -> None:
        text, found = translate(source, name)
        library = directory / f"kernels{_toolchain.library_suffix()}"
        _build(text, library, runtime, check, source, name)
        infos = [asdict(info) for info in _describe(found)]
        (directory / "kernels.json").write_text(json.dumps(infos), encoding="utf-8")

    directory = _toolchain.CACHE.get("kernels", key, make)
    listed: list[dict[str, Any]] = json.loads((directory / "kernels.json").read_text(encoding="utf-8"))
    kernels = tuple(
        KernelInfo(
            **{
                **entry,
                "parameters": tuple(Parameter(**p) for p in entry["parameters"]),
                "variables": tuple(entry["variables"]),
            }
        )
        for entry in listed
    )
    return Compiled(directory / f"kernels{_toolchain.library_suffix()}", kernels, check)


def _own_digest() -> str:
    here = Path(__file__).parent
    return _toolchain.digest(
        *(
            (here / f).read_bytes()
            for f in ("_compile.py", "_emit.py", "_found.py", "_parameters.py", "_source.py", "_tokens.py")
        )
    )


def translate(source: str, name: str = DEFAULT_NAME, *, typed: bool = False) -> tuple[str, Scan]:
    """The C++ for a Metal source, and what was found in it.

    Raises:
        MetalSyntaxError: it can't be preprocessed or leaves the subset.
    """
    code = Code(tokenize(preprocess(source, name), name))
    found = scan(code)
    return emit(code, found, typed=typed), found


def preprocess(source: str, name: str = DEFAULT_NAME) -> str:
    """Expands macros and includes: ours for Metal's own headers, those of the installed torch for c10/metal.

    torch pastes its headers in before Metal's compiler sees the source; to include them gives the same text,
    with the line numbers of the user's file kept.
    """
    compiler = _toolchain.find_compiler()
    arguments = (
        *_toolchain.LANGUAGE,
        *_toolchain.PREPROCESSOR,
        f"-I{_toolchain.shim_directory()}",
        f"-I{torch_include()}",
        "-E",
        "-",
    )
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    done = compiler.run(*arguments, text=f'# 1 "{escaped}"\n{source}\n')
    if done.returncode != 0:
        raise _syntax_error(done.stderr, source, name)
    return done.stdout


def strict_bounds(ir: str) -> str:
    """The checks of array-bounds made strict, in the text form of what clang hands to its optimizer.

    Where clang does not see an element being read or written, it lets the index be the array's length, for
    ``&a[length]``. It does not see it where an element is copied as a struct, bound to a reference or asked by a
    method: those would read past the end unnoticed. So ``&a[length]`` counts as an access here, ``a + length`` not.
    """
    return _LOOSE_BOUND.sub("ult", ir)


def _build(text: str, library: Path, runtime: Path, check: bool, source: str, name: str) -> None:
    compiler = _toolchain.find_compiler()
    rewritten = library.with_name("kernels.cpp")
    rewritten.write_text(text, encoding="utf-8")
    object_file = library.with_name("kernels.o")

    def compiled(plain_vectors: bool) -> subprocess.CompletedProcess[str]:
        flags = _toolchain.compile_flags(check, plain_vectors=plain_vectors)
        reading = (
            *("-include-pch", str(_toolchain.header(check, plain_vectors=plain_vectors))),
            *("-fno-caret-diagnostics", "-fno-spell-checking", f"-ferror-limit={_MOST_ERRORS}"),
            *("-x", "c++", str(rewritten)),
        )
        writing = ("-c", "-o", str(object_file))
        if not check:
            return compiler.run(*flags, *writing, *reading)
        unoptimised = ("-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes", "-o", "-")
        done = compiler.run(*flags, *unoptimised, *reading)
        if done.returncode != 0:
            return done
        return compiler.run(*flags, *writing, "-x", "ir", "-", text=strict_bounds(done.stdout))

    done = compiled(plain_vectors=False)
    if done.returncode != 0 and check and "union" in text:
        # C++ copies no union with a member that copies itself, as vectors do in checking mode.
        done = compiled(plain_vectors=True)
    if done.returncode != 0:
        raise _syntax_error(done.stderr, source, name)
    linked = compiler.run("-shared", "-nostdlib++", "-o", str(library), str(object_file), str(runtime), "-lm")
    if linked.returncode != 0:
        raise _syntax_error(linked.stderr, source, name)
    object_file.unlink()


def _describe(found: Scan) -> list[KernelInfo]:
    return [
        KernelInfo(
            kernel.host_name,
            number,
            entry_symbol(number),
            kernel.definition.parameters,
            tuple(v.tag for v in kernel.definition.variables),
            bool(kernel.definition.limit),
            kernel.file,
            kernel.line,
        )
        for number, kernel in enumerate(found.kernels)
    ]


def _syntax_error(output: str, source: str, name: str) -> MetalSyntaxError:
    """The compiler's messages with the user's lines, as Metal's compiler prints them."""
    lines = source.split("\n")
    shim = str(_toolchain.cache_directory())
    printed: list[str] = []
    first: tuple[str, int] | None = None
    own: tuple[str, int] | None = None
    for line in output.splitlines():
        found = _DIAGNOSTIC.match(line)
        if found is None:
            if "error:" in line or "undefined" in line:
                printed.append(line)
            continue
        file, number = found["file"], int(found["line"])
        if file.startswith(shim):
            if found["kind"] == "note":
                continue
            file = f"<{Path(file).name}>"
        printed.append(f"{file}:{number}:{found['column']}: {found['kind']}: {found['text']}")
        if file == name and 1 <= number <= len(lines):
            printed.append(f"    {lines[number - 1].strip()}")
        if found["kind"] != "note":
            first = first or (file, number)
        if file == name:
            own = own or (file, number)
    body = "\n".join(printed) or output
    where = own or first or (name, 0)
    return MetalSyntaxError(f"{name} does not compile:\n{body}", where[0], where[1])
