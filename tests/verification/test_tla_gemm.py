"""SteelGEMM.tla: the kernels as they run, recorded and checked by TLC under every interleaving."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from verification.tla import gemm_programs, models_gemm, tlc
from verification.tla.checks import Checks
from verification.tla.models_gemm import BARRIERS, CASES, GemmConfig

QUICK = [config for config in models_gemm.HOLDING if config.quick]
FAILING = [config for config in (*models_gemm.FAILING, *models_gemm.bugs()) if config.quick]
SITES = [(case, site) for case, edits in BARRIERS.items() for site in range(len(edits))]


def named(config: GemmConfig) -> str:
    return config.name.replace(" ", "-")


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    """All runs of TLC that this file needs."""
    if missing := tlc.missing():
        pytest.fail(f"evidence missing: no model was checked. {missing}")
    checks = Checks((*QUICK, *FAILING))
    yield checks
    checks.close()


@pytest.mark.parametrize("case", [config.case for config in QUICK])
def test_a_kernel_does_the_same_under_every_schedule(case: str) -> None:
    """What is recorded once stands for all runs."""
    usual = gemm_programs.record(CASES[case])
    for order in ("reverse", "shuffled"):
        assert gemm_programs.record(CASES[case], schedule="run_ahead", order=order, seed=5) == usual


@pytest.mark.evidence
@pytest.mark.parametrize(("case", "site"), SITES)
def test_a_barrier_left_out_of_the_model_is_one_left_out_of_the_kernel(case: str, site: int) -> None:
    usual = gemm_programs.record(CASES[case])
    assert len(usual.lines) == len(BARRIERS[case]), "the kernel has other barriers than are listed here"
    without = gemm_programs.record(CASES[case], BARRIERS[case][site])
    assert without == usual.without(sorted(usual.lines)[site]) != usual


@pytest.mark.parametrize("config", QUICK, ids=named)
def test_the_kernel_has_the_properties_under_every_interleaving(config: GemmConfig, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == tlc.HOLDS, outcome.output
    assert outcome.states == config.states, "the kernel does more or less than it did"


@pytest.mark.parametrize("config", FAILING, ids=named)
def test_a_missing_barrier_or_a_planted_bug_is_found(config: GemmConfig, checks: Checks) -> None:
    outcome = checks.outcome(config)
    assert outcome.exit_code == config.exit_code, outcome.output
    assert outcome.violated == config.violated


def test_a_bug_that_no_longer_fits_the_kernel_is_refused() -> None:
    with pytest.raises(LookupError, match="0 times"):
        gemm_programs.record(CASES["gemm-dot"], ("no such text", ""))


def test_accesses_that_the_recorder_missed_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder's count is held against the runtime's own."""
    take = gemm_programs._Launch._take

    def lose_one(launch: gemm_programs._Launch, code: object) -> None:
        take(launch, code)  # type: ignore[arg-type]
        launch.notes.remove(next(n for n in launch.notes if n.what == gemm_programs.READ and n.variable >= 0))

    monkeypatch.setattr(gemm_programs._Launch, "_take", lose_one)
    with pytest.raises(RuntimeError, match="metalsim counted"):
        gemm_programs.record(CASES["gemm-dot"], seed=99)


def test_every_configuration_has_a_pinned_count_or_must_fail() -> None:
    assert all(config.states for config in models_gemm.HOLDING)
    assert all(config.exit_code != tlc.HOLDS for config in (*models_gemm.FAILING, *models_gemm.bugs()))
