"""Sentences for the demo come from documentation strings."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelworks.cli._corpus import MAX_WORDS, MIN_WORDS, CorpusError, load_sentences, split_sentences


def library(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_sentences_of_the_installed_python_are_distinct_and_of_fitting_length() -> None:
    sentences = load_sentences(300)
    assert len(sentences) == len(set(sentences)) == 300
    assert all(MIN_WORDS <= len(sentence.split()) <= MAX_WORDS for sentence in sentences)


def test_the_same_seed_gives_the_same_sentences() -> None:
    assert load_sentences(50, seed=3) == load_sentences(50, seed=3)


def test_another_seed_gives_other_sentences() -> None:
    assert load_sentences(50, seed=3) != load_sentences(50, seed=4)


def test_sentences_come_from_several_modules_in_no_order(tmp_path: Path) -> None:
    files = {
        f"{name}.py": f'"""{name} has three words. {name} has four more words."""' for name in "abcdefgh"
    }
    found = load_sentences(16, library=library(tmp_path, files))
    assert len(set(found)) == 16
    assert found != sorted(found)
    assert any(one[0] != other[0] for one, other in zip(found[::2], found[1::2], strict=True))


def test_module_class_and_function_docstrings_are_used_and_other_strings_are_not(tmp_path: Path) -> None:
    source = '''"""Module has three words."""
class A:
    """A class of this module."""
    async def f(self):
        """The coroutine says so."""
        return "this string is no docstring at all"
'''
    found = load_sentences(3, library=library(tmp_path, {"a.py": source}))
    assert sorted(found) == ["A class of this module.", "Module has three words.", "The coroutine says so."]


def test_a_sentence_found_twice_counts_once(tmp_path: Path) -> None:
    files = {"a.py": '"""The same three words."""', "b.py": '"""The same three words."""\n'}
    files["c.py"] = '"""Other words are here."""'
    found = load_sentences(2, library=library(tmp_path, files))
    assert sorted(found) == ["Other words are here.", "The same three words."]


def test_more_sentences_than_there_are_start_over(tmp_path: Path) -> None:
    found = load_sentences(5, library=library(tmp_path, {"a.py": '"""One two three. Four five six."""'}))
    assert len(found) == 5
    assert found[:2] == found[2:4]


def test_tests_and_installed_packages_are_left_out(tmp_path: Path) -> None:
    files = {
        "site-packages/x.py": '"""Not from the library."""',
        "json/tests/y.py": '"""Not from the tests."""',
        "json/z.py": '"""This one it is."""',
    }
    assert set(load_sentences(3, library=library(tmp_path, files))) == {"This one it is."}


def test_a_file_that_does_not_parse_is_passed_over(tmp_path: Path) -> None:
    files = {"bad.py": '"""Three good words."""\ndef (:', "good.py": '"""Three better words."""'}
    assert set(load_sentences(3, library=library(tmp_path, files))) == {"Three better words."}


def test_a_library_without_sentences_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no sentences found"):
        load_sentences(1, library=tmp_path)


def test_text_is_cut_at_sentence_ends_and_blank_lines_and_its_white_space_made_single() -> None:
    text = "First one\n   is here. Is the second?\n\nA third without end\n\nno\n\n" + "word " * 61
    assert split_sentences(text) == ["First one is here.", "Is the second?", "A third without end"]
