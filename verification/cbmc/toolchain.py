"""Finds CBMC, or installs it for this user: one on PATH, or Debian's packages unpacked into the user's cache folder.

Debian's archive is reached by apt-get, the way it is configured on this machine, but with folders of our own: nothing
of the system changes, and no rights are needed. apt-get checks the archive's signature; the packages that do the
proving are checked against the hashes below besides. They run with their own
libraries, so that any Linux will do.

Environment:
    STEELWORKS_CBMC: The cbmc to use, a path or a name on PATH.
    STEELWORKS_CBMC_CACHE: Where the packages are unpacked; a folder of the user's cache otherwise.
    STEELWORKS_DEBIAN_ARCHIVE: Address of a Debian archive, for systems whose apt has none (Ubuntu).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

LOWEST: Final = (6, 4)
RELEASE: Final = "trixie"
#: Debian's name of an architecture, by Python's.
_ARCHITECTURES: Final = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
#: Package, version and SHA-256 by architecture: what proves, and the SAT solver in it.
_PINNED: Final = {
    "amd64": {
        "cbmc=6.6.0-4": "02560859a17049c976961c232c4fc58f0747b57f9b751a466b1f368a438b0e41",
        "minisat=1:2.2.1-8": "0b3a870202e022bea8b04d140ded40d9137363566706750b4540518bc0eb63d7",
    },
    "arm64": {
        "cbmc=6.6.0-4": "19f0459aa6d5433e3e607730df5eb1e9ffee75f1a749962ad4e899595de7fa10",
        "minisat=1:2.2.1-8+b2": "d098295bf369b4e971f37953093f7f4b1b94f415bfbd9a5033958d92006fbb22",
    },
}
#: Libraries; the archive's signature vouches for them, as their versions move with security updates.
_LIBRARIES: Final = ("libc6", "libstdc++6", "libgcc-s1", "zlib1g")
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT: Final = 600.0  # seconds for one step

MEND: Final = (
    f"put cbmc {LOWEST[0]}.{LOWEST[1]} or newer on PATH (Debian {RELEASE} and newer: apt install cbmc; macOS: "
    "brew install cbmc), or name one in STEELWORKS_CBMC; or let apt-get download Debian's packages (26 MB) once, for "
    f"which it needs a Debian archive that has {RELEASE}: name one in STEELWORKS_DEBIAN_ARCHIVE if apt knows none"
)


class CbmcMissing(RuntimeError):
    """There is no CBMC here, and it can't be had; the message names what is missing and what to do."""

    def __init__(self, missing: str) -> None:
        super().__init__(f"no bound of a Metal kernel was checked: {missing}. To mend it: {MEND}")


@dataclass(frozen=True)
class Cbmc:
    """A CBMC that can check files.

    Attributes:
        command: How it is started; the arguments follow.
        version: What it says of itself.
    """

    command: tuple[str, ...]
    version: str


def cache() -> Path:
    """Where Debian's packages are unpacked."""
    named = os.environ.get("STEELWORKS_CBMC_CACHE")
    return Path(named).absolute() if named else user_cache_path("steelworks") / "cbmc"


def find(install: bool = True) -> Cbmc:
    """The CBMC to use.

    Args:
        install: Unpack Debian's packages if there is no other.

    Raises:
        CbmcMissing: There is none, and it can't be installed (or must not be).
    """
    named = os.environ.get("STEELWORKS_CBMC")
    path = shutil.which(named or "cbmc")
    if named and path is None:
        raise CbmcMissing(f"STEELWORKS_CBMC names '{named}', and there is no such program")
    seen = ""
    if path is not None:
        found = _probe((path,))
        if found is not None and _numbers(found.version) >= LOWEST:
            return found
        seen = f"{path} is " + (f"version {found.version}" if found else "no working cbmc")
        if named:
            raise CbmcMissing(f"STEELWORKS_CBMC names '{named}': {seen}")
    home = cache()
    if _installed(home) != _identity():
        if not install:
            raise CbmcMissing(seen or f"there is no cbmc on PATH, and none in {home}")
        with _alone(home):
            if _installed(home) != _identity():
                _install(home, seen or "there is no cbmc on PATH")
    own = _probe(_own_command(home / "prefix"))
    if own is None:
        raise CbmcMissing(f"the cbmc in {home} does not run; delete that folder to have it made anew")
    return own


def _probe(command: tuple[str, ...]) -> Cbmc | None:
    try:
        said = subprocess.run(
            (*command, "--version"), capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.match(r"\d+\.\d+(\.\d+)?", said.stdout)
    return Cbmc(command, version[0]) if said.returncode == 0 and version else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _own_command(prefix: Path) -> tuple[str, ...]:
    """cbmc with the loader and the libraries that lie beside it."""
    loaders = sorted(prefix.glob("usr/lib/*/ld-linux-*.so.*"))
    libraries = ":".join(str(loader.parent) for loader in loaders)
    program = str(prefix / "usr/bin/cbmc")
    if not loaders:
        return (program,)
    return (str(loaders[0]), "--library-path", f"{libraries}:{prefix / 'usr/lib'}", program)


def _architecture() -> str:
    if sys.platform != "linux":
        raise CbmcMissing("there is no cbmc on PATH, and Debian's packages are for Linux")
    found = _ARCHITECTURES.get(platform.machine())
    if found is None:
        raise CbmcMissing(f"there is no cbmc on PATH, and Debian's is not pinned for {platform.machine()}")
    return found


def _identity() -> dict[str, str]:
    """What an installation is made from."""
    if sys.platform != "linux":
        return {}
    return _PINNED.get(_ARCHITECTURES.get(platform.machine(), ""), {})


def _installed(home: Path) -> dict[str, str] | None:
    try:
        made: dict[str, str] = json.loads((home / "made-from.json").read_text())
    except (OSError, ValueError):
        return None
    return made


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process installs, the others wait for it."""
    import fcntl  # only where Debian's packages run

    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _install(home: Path, why: str) -> None:
    architecture = _architecture()
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise CbmcMissing(f"{why}, and there is no {program} to get Debian's")
    pinned = _PINNED[architecture]
    with tempfile.TemporaryDirectory(dir=home, prefix="new-") as name:
        new = Path(name)
        debs = _download(new, architecture, (*pinned, *_LIBRARIES), why)
        _check_hashes(debs, pinned)
        for deb in debs:
            _run(("dpkg-deb", "-x", str(deb), str(new / "prefix")), new, why)
        (home / "made-from.json").unlink(missing_ok=True)
        shutil.rmtree(home / "prefix", ignore_errors=True)
        (new / "prefix").rename(home / "prefix")
        (home / "made-from.json").write_text(json.dumps(pinned))


def _download(new: Path, architecture: str, packages: tuple[str, ...], why: str) -> list[Path]:
    for folder in ("lists/partial", "cache/archives/partial", "debs"):
        (new / folder).mkdir(parents=True)
    (new / "status").touch()
    if not _KEYRING.is_file():
        raise CbmcMissing(f"{why}, and {_KEYRING} is not there (apt install debian-archive-keyring)")
    source = f"deb [signed-by={_KEYRING} arch={architecture}] {_archive(why)} {RELEASE} main\n"
    (new / "sources.list").write_text(source)
    options = {
        "Dir::Etc::SourceList": new / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": new,
        "Dir::State::Lists": new / "lists",
        "Dir::State::Status": new / "status",
        "Dir::Cache": new / "cache",
        "Debug::NoLocking": "1",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
    }
    apt = ("apt-get", "-q", *(part for key, value in options.items() for part in ("-o", f"{key}={value}")))
    _run((*apt, "update", "--error-on=any"), new, why)
    _run((*apt, "download", *packages), new / "debs", why)
    return sorted((new / "debs").glob("*.deb"))


def _archive(why: str) -> str:
    """The address of a Debian archive: as named, or that which apt uses for Debian itself."""
    named = os.environ.get("STEELWORKS_DEBIAN_ARCHIVE")
    if named:
        return named
    said = subprocess.run(
        ("apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(SITE)|$(REPO_URI)"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    for line in said.stdout.splitlines():
        origin, label, _, address = line.split("|", 3)
        if origin == label == "Debian":
            return address.rstrip("/")
    raise CbmcMissing(f"{why}, and apt has no archive of Debian's here (or no list of it: apt-get update)")


def _check_hashes(debs: list[Path], pinned: dict[str, str]) -> None:
    for package, wanted in pinned.items():
        name = package.split("=", 1)[0]
        found = [deb for deb in debs if deb.name.startswith(f"{name}_")]
        if len(found) != 1:
            raise CbmcMissing(f"apt-get did not download {package}")
        with found[0].open("rb") as data:
            got = hashlib.file_digest(data, "sha256").hexdigest()
        if got != wanted:
            raise CbmcMissing(f"{package} was downloaded with the SHA-256 {got}, and not with {wanted}")


def _run(command: tuple[str, ...], at: Path, why: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        said = subprocess.run(
            command, cwd=at, capture_output=True, text=True, timeout=_TIMEOUT, env=environment, check=False
        )
    except subprocess.TimeoutExpired as problem:
        raise CbmcMissing(f"{why}, and {command[0]} did not end within {_TIMEOUT:.0f} s") from problem
    if said.returncode:
        raise CbmcMissing(f"{why}, and {command[0]} failed to get Debian's: {said.stderr.strip()[-300:]}")
