"""docs/api.md is what the docstrings say, and leaves no public name out."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import steelworks

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_reference", ROOT / "scripts/api_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    written = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert written == script.reference(), "run: python scripts/api_reference.py"


def test_every_public_name_has_its_place_once(script: ModuleType) -> None:
    placed = [name for names in script.SECTIONS.values() for name in names] + list(script.MODULES)
    assert sorted(placed) == sorted(steelworks.__all__)


def test_every_name_of_the_modules_is_on_the_page(script: ModuleType) -> None:
    page = script.reference()
    for module in (steelworks, steelworks.nn, steelworks.ops, steelworks.paths):
        for name in module.__all__:
            assert re.search(rf"^### {name}$|^\| `{name}\b|^## steelworks\.{name}$", page, re.MULTILINE), name


def test_links_of_the_page_lead_to_its_headings(script: ModuleType) -> None:
    page = script.reference()
    headings = [
        re.sub(r"[^\w -]", "", title).lower() for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    ]
    anchors = {
        f"{h.replace(' ', '-')}-{headings[:i].count(h)}" if headings[:i].count(h) else h.replace(" ", "-")
        for i, h in enumerate(headings)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors


def test_sections_lists_and_roles_become_markdown(script: ModuleType) -> None:
    def example(a: int, *rest: int) -> int:
        """Adds; see :class:`steelworks.BatchQueue`.

        Args:
            a: the first, ``[rows]``
                or more.
            *rest: the others.

        Returns:
            The sum.

        More is said here.
        """
        return a + sum(rest)

    assert script.text_of(example) == (
        "Adds; see `BatchQueue`.\n\nArgs:\n\n* `a`: the first, `[rows]`\n  or more.\n* `*rest`: the others.\n\n"
        "Returns: The sum.\n\nMore is said here.\n"
    )
