"""Bounds of the Metal kernels: the quick part; ``python -m verification.cbmc`` runs all of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from verification.cbmc import addresses, header, lemma, memory, planted, run, toolchain

LEMMAS = lemma.all_lemmas()
#: One or two of each family, and each kind of mistake; the whole list is run by the command.
QUICK_BUGS = tuple(b for i, b in enumerate(planted.bugs()) if i % 3 == 0)


@pytest.mark.evidence
def test_the_first_row_of_every_check_is_proven_and_none_is_vacuous() -> None:
    with run.prepared(run.families()) as made:
        wanted = run.first_rows((where, check) for where in made.values() for check in where.checks)
        results = run.run_all(wanted)
    assert len(results) >= 40
    assert [(r.check.name, r.failed, r.vacuous) for r in results if not r.holds] == []


@pytest.mark.evidence
@pytest.mark.parametrize("name", LEMMAS)
def test_z3_proves_the_lemma(name: str) -> None:
    assert lemma.prove(LEMMAS[name]).failed == ()


@pytest.mark.parametrize("bug", QUICK_BUGS, ids=lambda bug: bug.what)
def test_a_planted_bug_is_refuted(bug: planted.Bug) -> None:
    assert planted.refute(bug).refuted


def test_every_planted_bug_applies_and_names_a_check_that_there_is() -> None:
    with run.prepared(run.families()) as made:
        known = {f"{family}/{check.name}" for family, where in made.items() for check in where.checks}
    known |= {f"lemma {name}" for name in LEMMAS}
    for bug in planted.bugs():
        assert bug.caught_by in known, bug
        assert (header.ROOT / bug.file).read_text().count(bug.old) == 1, bug


def test_every_family_with_an_index_header_has_a_harness_that_includes_it() -> None:
    families = {path.parent.name for path in header.ROOT.glob("*/index.h")}
    assert families <= set(run.families())
    for family in families:
        assert f'#include "{family}/index.h"' in (run.HARNESSES / f"{family}.c").read_text()


def test_contradictory_premises_are_reported_as_proving_nothing(tmp_path: Path) -> None:
    source = '#include "common.h"\nvoid check_empty(void) { GIVEN(0, "never"); HOLDS(0, "anything"); REACHED(); }\n'
    text = (run.HARNESSES / "common.h").read_text().split("#pragma once")[1]
    path = tmp_path / "empty.i"
    lines = [x for x in (text + source.split("\n", 1)[1]).splitlines() if not x.startswith("#define")]
    body = (
        "\n".join(lines)
        .replace('GIVEN(0, "never")', "__CPROVER_assume(0)")
        .replace('HOLDS(0, "anything")', ";")
    )
    path.write_text(body.replace("REACHED()", '__CPROVER_assert(0, "REACHED")'))
    check = run.Check("empty", "empty", "nothing")
    result = run.run(run.Prepared("empty", path, (check,)), check)
    assert result.vacuous
    assert not result.holds


def test_no_kernel_computes_an_address_outside_of_the_index_headers_but_those_listed() -> None:
    found, count = addresses.outside()
    assert count > 100
    assert {(a.file, a.shown) for a in found} == {(e.file, e.address) for e in addresses.exceptions()}
    assert all(e.reason for e in addresses.exceptions())
    assert len(found) == 0


@pytest.mark.parametrize("offset", ["long(row) * p.n + column", "at + 1", "other"])
def test_an_address_that_a_kernel_makes_up_is_noticed(offset: str, tmp_path: Path) -> None:
    (tmp_path / "index.h").write_text("static inline long place(int row) { return (long)row * 2; }\n")
    body = f"long at = place(1); long other = at; other += 5; x[{offset}] = 1; x[at] = 2;"
    (tmp_path / "kernel.h").write_text(f"void kernel(device float* x [[buffer(0)]]) {{ {body} }}\n")
    found, count = addresses.outside(tmp_path)
    assert [a.offset for a in found] == [offset]
    assert count == 2


def test_a_place_that_a_loop_counts_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "index.h").write_text("static inline long place(int row) { return (long)row * 2; }\n")
    body = "for (int i = 0; i < 4; ++i) x[i] = y[place(i)];"
    (tmp_path / "kernel.h").write_text(f"void kernel(device float* x, device float* y) {{ {body} }}\n")
    found, count = addresses.outside(tmp_path)
    assert [a.shown for a in found] == ["x[i]"]
    assert count == 2


@pytest.mark.parametrize(
    ("calls", "noticed"),
    [
        ("put(x, place(1), 0);", False),
        ("const long to = place(1); put(x, to, 0); put(x, place(2) + to, 1);", False),
        ("put(x, place(1), 0); put(x, 2 * at, 1);", True),  # one of two calls makes it up
        ("put(x, place(1), 0); put<4, 2>(x, at, 1);", True),
        ("put(x, place(1), 0); put(x, pair<4, 2>(at), 1);", True),  # a call that can't be read
        ("", True),  # a kernel, which nobody calls
    ],
)
def test_a_parameter_is_an_index_only_if_every_call_gives_one(
    calls: str, noticed: bool, tmp_path: Path
) -> None:
    (tmp_path / "index.h").write_text("static inline long place(int row) { return (long)row * 2; }\n")
    put = "void put(device float* to, long at, float value) { to[at] = value; }"
    kernel = f"[[kernel]] void kernel(device float* x [[buffer(0)]], uint at [[thread_position_in_grid]]) {{ {calls} }}"
    (tmp_path / "kernel.h").write_text(f"{put}\n{kernel}\n")
    found, _ = addresses.outside(tmp_path)
    assert [a.shown for a in found] == (["to[at]"] if noticed else [])


def test_no_kernel_of_the_tuning_table_declares_more_threadgroup_memory_than_there_is() -> None:
    uses = memory.uses()
    assert len(uses) > 100
    assert max(use.bytes for use in uses) <= memory.LIMIT


def test_without_a_cbmc_the_message_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEELWORKS_CBMC_CACHE", str(tmp_path))
    monkeypatch.delenv("STEELWORKS_CBMC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(toolchain.CbmcMissing, match=r"no cbmc on PATH.*To mend it: put cbmc"):
        toolchain.find()
    monkeypatch.setenv("STEELWORKS_CBMC", "no-such-cbmc")
    with pytest.raises(toolchain.CbmcMissing, match="STEELWORKS_CBMC names 'no-such-cbmc'"):
        toolchain.find()


def test_a_package_with_another_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cbmc_1_amd64.deb").write_bytes(b"something else")
    with pytest.raises(toolchain.CbmcMissing, match="was downloaded with the SHA-256"):
        toolchain._check_hashes([tmp_path / "cbmc_1_amd64.deb"], {"cbmc=1": "0" * 64})


def test_the_command_refuses_a_family_that_there_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "verification.cbmc", "--only", "nothing"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 2
    assert "no such family" in done.stderr
