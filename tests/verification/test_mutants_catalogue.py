"""The catalogue of planted bugs: its entries fit the code, and its runner tells caught from broken."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from verification.mutants import planting
from verification.mutants.catalogue.entries import COMMAND, LAYERS, Mutant, load, sample
from verification.mutants.catalogue.report import Result
from verification.mutants.catalogue.workshop import CAUGHT, HUNG, STALE, SURVIVED, WRONG, Verdict

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = load()
#: So many of each layer at least; the late ones count too.
LEAST = {"streams": 6, "index": 7, "plans": 6, "devices": 7, "selector": 8}
MODULES = ("verification.tla", "verification.cbmc", "verification.mutants.catalogue.theory")


@functools.cache
def names_in(file: str) -> frozenset[str]:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    return frozenset(n.name for n in body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_an_entry_fits_the_code_and_names_a_check_that_there_is(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert mutant.planted() != source
    assert len(mutant.what) > 10
    for check in mutant.checks:
        if check.startswith(COMMAND):
            assert check.removeprefix(COMMAND).split()[0] in MODULES
            re.compile(mutant.shows)
            continue
        file, _, test = check.partition("::")
        assert (ROOT / file).is_file()
        assert not test or test.partition("[")[0] in names_in(file)


def test_there_are_enough_in_every_layer() -> None:
    counts = Counter(m.layer for m in MUTANTS)
    assert all(counts[layer] >= LEAST.get(layer, 10) for layer in LAYERS), counts
    assert sum(not m.late for m in MUTANTS) >= 60


def test_late_ones_say_what_was_chosen_and_what_became_of_it() -> None:
    late = [m for m in MUTANTS if m.late]
    assert len(late) == 20
    for mutant in late:
        assert mutant.chosen, mutant.name
        assert mutant.first_run in (CAUGHT, SURVIVED, "crashed"), mutant.name
    assert not any(m.chosen or m.first_run for m in MUTANTS if not m.late)


def test_the_sample_has_every_layer_and_is_the_same_each_time() -> None:
    chosen = sample(MUTANTS)
    assert {m.layer for m in chosen} == set(LAYERS)
    assert chosen == sample(tuple(reversed(MUTANTS)))
    assert len(LAYERS) <= len(chosen) <= 2 * len(LAYERS)


# ---------------------------------------------------------------- entries that are wrong


def entry(**changed: object) -> str:
    given = {
        "name": "one", "layer": "ops", "file": "steelworks/errors.py", "find": "a", "replace": "b", "what": "something",
        "caught_by": "tests/test_paths.py", **changed,
    }  # fmt: skip
    return "[[mutant]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (entry() + entry(), "stand twice: one"),
        (entry(layer="opps"), "no layer 'opps'"),
        (entry(caught_by=""), "names no check"),
        (entry(caught_by="python -m verification.tla"), "needs 'shows'"),
        (entry(replace="a"), "changes nothing"),
    ],
)
def test_an_entry_that_is_wrong_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_a_text_that_is_not_there_once_is_refused() -> None:
    source = "def f():\n    return 1\n\n\ndef g():\n    return 1\n"
    assert "return 2" in planting.planted(source, "x.py", "return 1", "return 2", inside="g")
    with pytest.raises(LookupError, match="2 times in x.py"):
        planting.planted(source, "x.py", "return 1", "return 2")
    with pytest.raises(LookupError, match="0 times in f"):
        planting.planted(source, "x.py", "return 3", "return 2", inside="f")
    with pytest.raises(LookupError, match="no h"):
        planting.planted(source, "x.py", "return 1", "return 2", inside="h")


# ---------------------------------------------------------------- what counts

ONE = Mutant("one", "ops", "f.py", "a", "b", "something", "t.py::test_x")


def result(outcome: str, mutant: Mutant = ONE, others: int = 99) -> Result:
    good = {
        Mutant(f"good {i}", "nn", "f.py", "a", "b", "w", "t.py"): Verdict(CAUGHT, "", 0.0)
        for i in range(others)
    }
    return Result({**good, mutant: Verdict(outcome, "told", 0.0)})


@pytest.mark.parametrize("outcome", [SURVIVED, WRONG, HUNG, STALE])
def test_a_single_one_that_is_not_caught_fails_the_run(outcome: str) -> None:
    found = result(outcome)
    assert found.faults == [f"one: {outcome}"]
    assert "99 of 100 caught" in found.text(1.0)
    assert not found.data(1.0)["passed"]


def test_a_survivor_with_a_reason_passes_and_is_shown() -> None:
    listed = Mutant(**{**ONE.__dict__, "survives": "nothing can tell"})
    found = result(SURVIVED, listed)
    assert found.faults == []
    assert "nothing can tell" in found.text(1.0)
    assert found.share_caught == 0.99
    assert result(CAUGHT, listed).faults == [
        "one is listed as a survivor and is caught; take its reason away"
    ]


def test_too_few_caught_fail_the_run_whatever_the_reasons() -> None:
    listed = Mutant(**{**ONE.__dict__, "survives": "nothing can tell"})
    assert result(SURVIVED, listed, others=9).faults == ["90.0 % caught; 95 % are needed"]


# ---------------------------------------------------------------- a few for real


@pytest.mark.timeout(240)
def test_some_are_planted_for_real_and_caught(tmp_path: Path) -> None:
    names = [
        "a-stream-starts-before-the-callers-work-is-done",
        "a-tensor-is-not-recorded-on-its-stream",
        "a-forced-path-is-ignored",
        "merging-rounds-twice",
        "the-audit-reads-past-a-comment",
    ]
    file = tmp_path / "verdicts.json"
    command = [sys.executable, "-m", "verification.mutants.catalogue", "--json", str(file)]
    for name in names:
        command += ["--only", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=220)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert {m["name"]: m["outcome"] for m in found["mutants"]} == dict.fromkeys(names, CAUGHT)
    assert "the checks pass without a mutant" in done.stdout
