"""What was measured on this machine: read once a device type, looked up by the nearest sizes. ``tune`` writes it.

A profile is a JSON file in the user's cache directory, named by the device and the versions that its times depend on. A
profile of another device or version is not found, and so not used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import platformdirs
import torch

from ._signature import PATHS, Signature

_log = logging.getLogger(__name__)
_FORMAT: Final = 1
#: How far each size of an entry may be from that of a call, as a factor.
NEAR: Final = 4.0


@dataclass(frozen=True)
class Entry:
    """What one kind of call took.

    Attributes:
        op: The operation.
        dtype: Of its first tensor, for example ``"float16"``.
        sizes: Its sizes by name.
        seconds: Time a call by path, host time included.
    """

    op: str
    dtype: str
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]


_Index = dict[tuple[str, str], tuple[Entry, ...]]
_loaded: dict[str, _Index] = {}


def times(signature: Signature, sizes: Mapping[str, int]) -> Mapping[str, float]:
    """Seconds by path, measured for the nearest sizes; empty if nothing near was measured."""
    index = _loaded.get(signature.device)
    if index is None:
        index = _loaded[signature.device] = _index(_read(signature.device))
    dtype = str(signature.dtype).removeprefix("torch.")
    nearest, best = None, math.inf
    for entry in index.get((signature.op, dtype), ()):
        distance = _distance(entry.sizes, sizes)
        if distance < best:  # of equals the first
            nearest, best = entry, distance
    return {} if nearest is None else nearest.seconds


def forget() -> None:
    """The files are read again when they are next needed."""
    _loaded.clear()


def _distance(a: Mapping[str, int], b: Mapping[str, int]) -> float:
    """How far apart sizes are: the sum of their logarithms' differences; infinite where one is not near."""
    if a.keys() != b.keys():
        return math.inf
    total = 0.0
    for name, size in a.items():
        if not size or not b[name]:  # a size of 0 says that something is not there: only 0 is near
            if size != b[name]:
                return math.inf
            continue
        apart = abs(math.log2(size / b[name]))
        if apart > math.log2(NEAR):
            return math.inf
        total += apart
    return total


def _index(entries: Sequence[Entry]) -> _Index:
    index: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        index.setdefault((entry.op, entry.dtype), []).append(entry)
    return {key: tuple(found) for key, found in index.items()}


# --- the file -------------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, str]:
    """What the times depend on: the device's name, and versions."""
    found = {"device": device, "name": device_name(device)}
    for package in ("steelworks", "torch", "triton"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    found["torch"] = torch.__version__
    found["cuda"] = str(torch.version.cuda)
    found["system"] = f"{platform.system()} {platform.mac_ver()[0]}".strip()
    return found


def device_name(device: str) -> str:
    """The device's own name."""
    if device == "cuda" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    if device == "mps":
        return str(torch.backends.mps.get_name()) if torch.backends.mps.is_available() else "Apple GPU"
    return device


def path_of(device: str) -> Path:
    """The file for a device type, as the machine is now."""
    text = json.dumps(machine(device), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    return directory() / f"{device}-{key}.json"


def directory() -> Path:
    """Where the profiles are."""
    return platformdirs.user_cache_path("steelworks") / "paths"


def _read(device: str) -> Sequence[Entry]:
    file = path_of(device)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT or content["machine"] != machine(device):
            return ()
        return tuple(_entry(e) for e in content["entries"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        _log.warning(
            "the profile %s can't be read (%s); run 'steelworks tune' to make it anew", file, problem
        )
        return ()


def _entry(value: Mapping[str, Any]) -> Entry:
    sizes = {str(k): int(v) for k, v in value["sizes"].items()}
    seconds = {str(k): float(v) for k, v in value["seconds"].items() if k in PATHS}
    return Entry(str(value["op"]), str(value["dtype"]), sizes, seconds)


def _kind(entry: Entry) -> tuple[Any, ...]:
    return (entry.op, entry.dtype, *sorted(entry.sizes.items()))


def write(device: str, entries: Sequence[Entry]) -> Path:
    """Writes a device's profile, with what it held of other calls; in one step, so no reader sees half.

    Raises:
        OSError: the directory can't be written.
    """
    measured = {_kind(e) for e in entries}
    kept = [e for e in _read(device) if _kind(e) not in measured]
    file = path_of(device)
    file.parent.mkdir(parents=True, exist_ok=True)
    everything = [asdict(e) for e in (*kept, *entries)]
    content = {"format": _FORMAT, "machine": machine(device), "entries": everything}
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return file
