"""What compute-sanitizer prints is read, and its record is of the kernels that are there, or not believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from verification.claims import ToolMissing
from verification.triton import claims, sanitizer
from verification.triton.sanitizer import Said, read

CLEAN = """========= COMPUTE-SANITIZER
CALL softmax 3x50
CALL lora beside
END 2 ....
========= ERROR SUMMARY: 0 errors
"""
OUTSIDE = """========= COMPUTE-SANITIZER
CALL softmax 3x50
========= Invalid __global__ read of size 2 bytes
=========     at _rows_kernel+0x1e0
=========     by thread (50,0,0) in block (2,0,0)
=========     Access at 0x7f2 is out of bounds
=========
CALL lora beside
END 2 ....
========= ERROR SUMMARY: 1 error
"""
VENDOR_RACE = """CALL lora beside parts
========= Error: Race reported between Read access at nvjet_sm90_tst_64x8+0xac0
=========     and Write access at nvjet_sm90_tst_64x8+0x930 [16 hazards]
=========
END 1 ..ww
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
OUR_RACE = VENDOR_RACE.replace("nvjet_sm90_tst_64x8", "_add_kernel")


def test_a_clean_run_has_no_findings() -> None:
    assert read(CLEAN) == Said((), 2)
    assert not read(CLEAN).noticed


def test_an_access_outside_is_told_with_its_call_and_kernel() -> None:
    said = read(OUTSIDE)
    assert said.found == ("softmax 3x50, _rows_kernel: Invalid __global__ read of size 2 bytes",)
    assert said.calls == 2


def test_a_race_counts_as_ours_only_in_a_kernel_of_ours() -> None:
    assert (read(VENDOR_RACE).found, read(VENDOR_RACE).others) == ((), 1)
    assert read(OUR_RACE).others == 0
    assert read(OUR_RACE).found[0].startswith("lora beside parts, _add_kernel: Race reported")


def test_a_run_that_dies_is_noticed_and_names_the_call() -> None:
    said = read(CLEAN.replace("END 2 ....\n", ""), "RuntimeError: CUDA error")
    assert said.noticed
    assert said.calls == 1
    assert said.problem.startswith("in lora beside: ")
    assert "CUDA error" in said.problem


def _changed(tmp_path: Path, **changes: object) -> Path:
    kept = json.loads(sanitizer.RECORD.read_text(encoding="utf-8"))
    (path := tmp_path / "record.json").write_text(json.dumps({**kept, **changes}), encoding="utf-8")
    return path


def test_a_record_of_other_kernels_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match=r"have changed since .* python -m verification\.triton\.sanitizer"):
        sanitizer.record(_changed(tmp_path, code_sha256="0" * 64))


def test_without_a_record_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolMissing, match=r"no record .* python -m verification\.triton\.sanitizer"):
        sanitizer.record(tmp_path / "none.json")


def test_the_claim_fails_if_the_record_has_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {one.name: one for one in claims.declared()}["triton.device"]
    kept = json.loads(sanitizer.RECORD.read_text(encoding="utf-8"))
    monkeypatch.setattr(sanitizer, "record", lambda: kept)
    whole = claims._recorded(claim)
    assert whole.passed
    kept["tools"]["racecheck"]["findings"] = ["topk, _select_kernel: Race reported"]
    found = claims._recorded(claim)
    assert not found.passed
    assert found.why == "racecheck: topk, _select_kernel: Race reported"
    kept["tools"]["racecheck"] = {"calls": 3, "findings": [], "problem": ""}
    assert claims._recorded(claim).why == f"racecheck ran 3 of {sanitizer.how_many()} calls"


def test_the_claim_fails_if_the_tools_noticed_no_planted_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = {one.name: one for one in claims.declared()}["triton.device"]
    kept = json.loads(sanitizer.RECORD.read_text(encoding="utf-8"))
    kept["planted"]["barriers"][sanitizer.NOTICED] = []
    monkeypatch.setattr(sanitizer, "record", lambda: kept)
    assert claims._recorded(claim).why == "no planted bug of the kind barriers was noticed"


def test_a_run_that_dies_before_its_first_call_has_noticed_nothing() -> None:
    assert not read("========= COMPUTE-SANITIZER\n", "ModuleNotFoundError: No module named 'torch'").noticed
