"""Real sentences for the demo: the documentation strings of the installed Python's library.

They are on every machine, need no download, and their lengths vary as those of real requests do.
"""

from __future__ import annotations

import ast
import itertools
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from steelworks.errors import SteelworksError

MIN_WORDS = 3
MAX_WORDS = 60

# Sentences are drawn from a pool this many times larger, so that they come from many modules;
# reading the whole library would take seconds for no gain.
_POOL_FACTOR = 4

# The standard library without its tests, demonstrations and whatever is installed beside it.
_SKIPPED_DIRECTORIES = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n\s*\n")


class CorpusError(SteelworksError):
    """The sources of the Python library are not there, or hold too few sentences."""


def load_sentences(count: int, seed: int = 0, library: Path | None = None) -> list[str]:
    """Return ``count`` sentences from documentation strings, in an order fixed by ``seed``.

    All sentences are distinct as long as there are enough of them; past that the list starts over.

    Args:
        count: how many sentences.
        seed: the same seed gives the same order on the same Python.
        library: folder of Python sources; the running interpreter's library by default.

    Raises:
        CorpusError: if no sentence is found.
    """
    library = Path(sysconfig.get_path("stdlib")) if library is None else library
    shuffled = random.Random(seed)
    found = list(itertools.islice(_distinct_sentences(library, shuffled), _POOL_FACTOR * count))
    if not found:
        raise CorpusError(
            f"no sentences found: {library} holds no Python sources with documentation strings; "
            "use a Python whose standard library is installed as .py files"
        )
    shuffled.shuffle(found)
    return [found[i % len(found)] for i in range(count)]


def split_sentences(text: str) -> list[str]:
    """Cut ``text`` into sentences of 3 to 60 words, white space made single."""
    pieces = (" ".join(piece.split()) for piece in _SENTENCE_END.split(text))
    return [piece for piece in pieces if MIN_WORDS <= len(piece.split()) <= MAX_WORDS]


def _distinct_sentences(library: Path, order: random.Random) -> Iterator[str]:
    paths = [
        path
        for path in sorted(library.rglob("*.py"))
        if _SKIPPED_DIRECTORIES.isdisjoint(path.relative_to(library).parts)
    ]
    order.shuffle(paths)
    seen: set[str] = set()
    for path in paths:
        for text in _docstrings(path):
            for sentence in split_sentences(text):
                if sentence not in seen:
                    seen.add(sentence)
                    yield sentence


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in docstrings are not our concern
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text
