"""Plants bugs into the running code: what a replay is worth is what it notices.

A bug is a piece of a function's text and what stands there instead. The function is made anew from the changed text
for the length of a ``with`` block; no file is touched.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any


@dataclass(frozen=True)
class Bug:
    """A bug.

    Attributes:
        name: what goes wrong.
        place: the function, ``module:Class.name``.
        find: a text that stands there exactly once.
        replace: what stands there instead.
        config: the configuration whose replay must notice.
    """

    name: str
    place: str
    find: str
    replace: str
    config: str


def load(path: Path) -> list[Bug]:
    """The bugs of a file."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["bug"]
    return [Bug(e["name"], e["in"], e["find"], e["replace"], e["config"]) for e in entries]


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """Plant ``bug`` for a ``with`` block.

    Raises:
        LookupError: the text is not there exactly once, so the entry no longer fits the code.
    """
    module, _, path = bug.place.partition(":")
    holder: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for part in classes:
        holder = getattr(holder, part)
    before = holder.__dict__[name]
    function = inspect.unwrap(before)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(bug.find) != 1:
        raise LookupError(f"{bug.find!r} stands {source.count(bug.find)} times in {bug.place}, not once")
    made: dict[str, Any] = {}
    assert isinstance(function, FunctionType)
    text = "from __future__ import annotations\n" + source.replace(bug.find, bug.replace)
    exec(compile(text, f"<{bug.name}>", "exec"), function.__globals__, made)
    setattr(holder, name, made[name])
    try:
        yield
    finally:
        setattr(holder, name, before)
