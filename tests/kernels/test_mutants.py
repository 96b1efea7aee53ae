"""How mutants of the Metal kernels are found, tried and judged (``verification/mutants/metal``; ``make mutants``)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from steelworks.kernels.metal._launch import Variant
from verification.mutants.metal.cases import Case
from verification.mutants.metal.find import Header, Mutant, find, read_headers
from verification.mutants.metal.hints import read_hints, write_hints
from verification.mutants.metal.report import Result, Survivor, read_survivors
from verification.mutants.metal.run import CAUGHT, INVALID, SURVIVED, UNREACHED, Baseline, Plan, Verdict

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "steelworks" / "kernels" / "metal"
EXAMPLE = """
template <typename T, int BM> struct Loader {
  static void load(device const T* from, threadgroup T* to, int row, int rows) {
    for (int i = 0; i < BM; ++i) {  // of a register
      if (row + i >= rows) break;
      to[i] = from[row + i];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
};
[[kernel]] void run(device const float* x, device float* out, uint lane, int size) {
  const bool inside = int(lane) < size;
  const float value = lane < 32 && inside ? x[lane] : 0.0f;
  if (lane <= 7) out[lane] = value < 0.0f ? 0.0f : value;
}
"""


def found_in(source: str, file: str = "family/family.h") -> list[Mutant]:
    return find({file: Header.parse(file, source)})


def changes(mutants: list[Mutant]) -> list[tuple[str, str, str]]:
    return [(m.id.partition(":")[2], m.text, m.replacement) for m in mutants]


def test_the_finder_breaks_each_barrier_and_each_guard_of_an_address_and_nothing_else() -> None:
    barrier = "threadgroup_barrier(mem_flags::mem_threadgroup)"
    assert changes(found_in(EXAMPLE)) == [
        ("Loader.load:guard-removed:1", "row + i >= rows", "false"),
        ("Loader.load:guard-widened:1", "row + i >= rows", "row + i > rows"),
        ("Loader.load:barrier-removed:1", barrier, "((void)0)"),
        ("Loader.load:barrier-weakened:1", "mem_flags::mem_threadgroup", "mem_flags::mem_none"),
        ("run:guard-removed:1", "int(lane) < size", "true"),
        ("run:guard-widened:1", "int(lane) < size", "int(lane) <= size"),
        ("run:guard-removed:2", "lane < 32", "true"),
        ("run:guard-widened:2", "lane < 32", "lane <= 32"),
        ("run:guard-removed:3", "lane <= 7", "true"),
        ("run:guard-widened:3", "lane <= 7", "lane <= (7) + 1"),
    ]


def test_the_finder_takes_apart_the_conditions_of_an_index_header() -> None:
    source = """
    static inline long element(int row, int rows, int stride) {
      return row >= 0 && row < rows ? (long)row * stride : -1;
    }
    static inline int left(int first, int size, int tile) {
      return first >= size ? 0 : size - first < tile ? size - first : tile;
    }
    static inline int inside(int at, int size) { return at >= 0 && at < size; }
    """
    assert changes(found_in(source, "family/index.h")) == [
        ("element:guard-removed:1", "row >= 0", "true"),
        ("element:guard-removed:2", "row < rows", "true"),
        ("element:guard-widened:1", "row < rows", "row <= rows"),
        ("left:guard-removed:1", "first >= size", "false"),
        ("left:guard-widened:1", "first >= size", "first > size"),
        ("left:clamp-first:1", "size - first < tile ? size - first : tile", "size - first"),
        ("left:clamp-second:1", "size - first < tile ? size - first : tile", "tile"),
        ("inside:guard-removed:1", "at >= 0", "true"),
        ("inside:guard-removed:2", "at < size", "true"),
        ("inside:guard-widened:1", "at < size", "at <= size"),
    ]


def test_a_mutant_keeps_its_id_when_other_functions_change() -> None:
    before = {m.id: m.text for m in found_in(EXAMPLE)}
    after = {m.id: m.text for m in found_in(EXAMPLE.replace("if (row + i >= rows) break;", ""))}
    assert {name: text for name, text in before.items() if ":run:" in name}.items() <= after.items()


def test_each_mutant_changes_its_own_place_and_no_other() -> None:
    for mutant in found_in(EXAMPLE):
        changed = mutant.applied(EXAMPLE)
        assert changed != EXAMPLE, mutant.id
        assert changed[: mutant.start] == EXAMPLE[: mutant.start], mutant.id
        assert changed.endswith(EXAMPLE[mutant.end :]), mutant.id


def test_no_barrier_of_a_kernel_escapes_the_finder() -> None:
    headers = read_headers(KERNELS)
    written = sum(header.source.count("group_barrier(") for header in headers.values())
    assert written == sum(mutant.kind == "barrier-removed" for mutant in find(headers)) > 0


# --- trying

#: Tries three changes of one function, in the processes of a program of its own: they are forked.
TRIED = """
import json
from dataclasses import replace
from steelworks.kernels.metal import _launch
from verification.mutants.metal.cases import cases
from verification.mutants.metal.find import Header, find, read_headers
from verification.mutants.metal.run import PROBE, Plan, measure, run_mutants

headers = read_headers(_launch.ROOT)
barrier, *_ = (m for m in find(headers) if m.function == "group_reduce" and m.kind == "barrier-removed")
headers["probe/probe.h"] = Header.parse("probe/probe.h", PROBE.read_text(encoding="utf-8"))
probes = [case for case in cases() if case.family == "probe"]
baseline = measure(probes, 1)
source = headers[barrier.file].source
same = source.index("if (lane == 0)", source.index("group_reduce("))
changed = [
    barrier,
    replace(barrier, kind="same", start=same, end=same + len("if (lane == 0)"), replacement="if (0 == lane)"),
    replace(barrier, kind="nonsense", replacement="no such thing"),
]
outcomes = {}
run_mutants(
    changed, headers, Plan(headers, probes, baseline), 1,
    done=lambda mutant, verdict: outcomes.update({mutant.kind: [verdict.outcome, verdict.how, verdict.tried]}),
)
print(json.dumps([len(probes), baseline.faults, outcomes]))
"""


def test_a_removed_barrier_is_caught_and_a_change_of_nothing_survives_every_case() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIED],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    probes, faults, outcomes = json.loads(done.stdout)
    assert faults == {}
    assert outcomes["barrier-removed"][0] == CAUGHT
    assert outcomes["same"] == [SURVIVED, "", probes]
    assert outcomes["nonsense"][:2] == [INVALID, "does not compile"]


def _plan(hints: Mapping[str, str]) -> Plan:
    """Three cases: two of the kernel in EXAMPLE, the second of which takes longer, and one of another kernel."""
    cases = [
        Case("family", name, lambda: torch.zeros(1), lambda got: None) for name in ("slow", "quick", "other")
    ]
    run, other = Variant("family", "run"), Variant("family", "other")
    baseline = Baseline(
        variants={"family: slow": (run,), "family: quick": (run,), "family: other": (other,)},
        seconds={"family: slow": 2.0, "family: quick": 1.0, "family: other": 0.1},
        compiling={run: 1.0, other: 1.0},
    )
    return Plan({"family/family.h": Header.parse("family/family.h", EXAMPLE)}, cases, baseline, hints)


def test_a_mutant_is_tried_on_the_cases_that_launch_it_the_quickest_first() -> None:
    mutant = next(m for m in found_in(EXAMPLE) if m.function == "run")
    assert [case.name for case in _plan({}).cases(mutant)] == ["quick", "slow"]


@pytest.mark.parametrize(
    ("hint", "order"),
    [
        ("family: slow", ["slow", "quick"]),
        ("family: other", ["quick", "slow"]),
        ("family: none", ["quick", "slow"]),
    ],
)
def test_a_hint_changes_the_order_of_the_cases_and_nothing_else(hint: str, order: list[str]) -> None:
    mutant = next(m for m in found_in(EXAMPLE) if m.function == "run")
    assert [case.name for case in _plan({mutant.id: hint}).cases(mutant)] == order


def test_hints_are_read_as_they_were_written(tmp_path: Path) -> None:
    hints = {"b": "family: one", "a": "family: two", "c": "family: one"}
    write_hints(hints, tmp_path / "hints.json")
    assert read_hints(tmp_path / "hints.json") == hints
    assert read_hints(tmp_path / "none.json") == {}


# --- judging


def _result(outcomes: Mapping[str, str], listed: Mapping[str, bool], *, of: int = 1000) -> Result:
    """Of ``of`` mutants, all caught but these; ``listed``: whether as equivalent."""
    first = found_in(EXAMPLE)[0]
    mutants = [replace(first, function=str(i)) for i in range(of - len(outcomes))]
    verdicts = {mutant: Verdict(CAUGHT) for mutant in mutants}
    for name, outcome in outcomes.items():
        verdicts[replace(first, function=name)] = Verdict(outcome)
    ids = {mutant.id: mutant.text for mutant in verdicts}
    survivors = {}
    for name, equivalent in listed.items():
        mutant = replace(first, function=name)
        survivors[mutant.id] = Survivor(mutant.id, mutant.text, equivalent, "it makes no difference")
    return Result(verdicts, survivors, True, ids)


def test_a_run_passes_if_all_that_survives_is_on_the_list() -> None:
    assert _result({}, {}).passed
    assert _result({"a": SURVIVED, "b": SURVIVED}, {"a": True, "b": False}).passed
    assert _result({"a": SURVIVED}, {"a": True}).share_caught == 1.0
    assert _result({"a": SURVIVED}, {"a": False}).share_caught == 0.999


@pytest.mark.parametrize("outcome", [SURVIVED, UNREACHED])
def test_a_run_fails_for_a_single_survivor_that_is_not_on_the_list(outcome: str) -> None:
    assert _result({"a": outcome}, {}).faults == ["1 survived without a reason"]


def test_a_run_fails_for_an_entry_that_is_caught_or_that_names_nothing_or_another_place() -> None:
    assert _result({}, {"0": True}).faults == ["1 stale in survivors.toml"]
    assert _result({}, {"gone": True}).faults == ["1 stale in survivors.toml"]
    moved = _result({"a": SURVIVED}, {"a": True})
    ((name, entry),) = moved.survivors.items()
    assert replace(moved, survivors={name: replace(entry, text="another")}).faults == [
        "1 stale in survivors.toml"
    ]


def test_a_run_fails_if_too_few_are_caught_or_too_many_called_equivalent() -> None:
    names = [f"s{i}" for i in range(21)]
    missed = _result(dict.fromkeys(names, SURVIVED), dict.fromkeys(names, False))
    assert missed.faults == ["less than 98 % caught"]
    assert _result(dict.fromkeys(names[1:], SURVIVED), dict.fromkeys(names[1:], False)).passed
    equivalent = _result(dict.fromkeys(names, SURVIVED), dict.fromkeys(names, True))
    assert equivalent.faults == ["21 of 1000 listed as equivalent, which is more than 2 %"]
    assert _result(dict.fromkeys(names[1:], SURVIVED), dict.fromkeys(names[1:], True)).passed


def test_what_is_on_the_list_is_there_and_has_a_reason() -> None:
    ids = {mutant.id: mutant.text for mutant in find(read_headers(KERNELS))}
    listed = read_survivors()
    assert {name: entry.text for name, entry in listed.items()}.items() <= ids.items()
    assert all(len(entry.reason) > 40 for entry in listed.values())
