"""Every defect planted in the corpus is found, with its kind and line; the corrected twins are silent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from metal_corpus import Case, Expected, joined, read_corpus

from steelworks import metalsim

CORPUS = read_corpus()
SCHEDULES = [(schedule, order) for schedule in ("ring", "run_ahead") for order in ("forward", "shuffled")]
LAUNCHABLE = [case for case in CORPUS if not case.refused]


def _missed() -> str:
    names = [case.name for case in CORPUS if case.missed]
    return f" (missed so far: {', '.join(names)})" if names else ""


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[dict[str, int]]:
    """How many defects were found and how many twins were silent; printed at the end."""
    counted = {"found": 0, "silent": 0, "launches": 0}
    yield counted
    found = f"{counted['found']} of {len(CORPUS)} defects found{_missed()}"
    silent = f"{counted['silent']} of {len(CORPUS)} corrected twins silent"
    plugins = request.config.pluginmanager
    with plugins.getplugin("capturemanager").global_and_fixture_disabled():
        plugins.getplugin("terminalreporter").write_line(
            f"\nplanted-defect corpus: {found}; {silent}; {counted['launches']} launches"
        )


def compiled(defect: bool) -> metalsim.ShaderLibrary:
    with metalsim.options(check=True):
        return metalsim.compile_shader(joined(CORPUS, defect=defect), name="corpus")


@pytest.fixture(scope="module")
def defective() -> metalsim.ShaderLibrary:
    return compiled(defect=True)


@pytest.fixture(scope="module")
def corrected() -> metalsim.ShaderLibrary:
    return compiled(defect=False)


def launched(
    library: metalsim.ShaderLibrary, case: Case, schedule: str, order: str
) -> tuple[metalsim.Finding, ...]:
    arguments = case.arguments()
    outputs = [a for a, spec in zip(arguments, case.specs, strict=True) if spec.is_output]
    with metalsim.options(check=True, schedule=schedule, order=order, seed=1, outputs=outputs) as session:
        kernel = getattr(library, case.name)
        kernel(*arguments, threads=case.threads, group_size=case.group, arg_casts=case.casts() or None)
    return session.findings


def matches(finding: metalsim.Finding, expected: Expected, case: Case) -> bool:
    places = {(a.file, a.line) for a in (finding.first, finding.second) if a is not None}
    return finding.kind == expected.kind and {(case.file, line) for line in expected.lines} <= places


def told(findings: tuple[metalsim.Finding, ...]) -> str:
    return "\n".join(f.text() for f in findings) or "nothing"


def test_the_corpus_is_as_large_as_it_says() -> None:
    assert len(CORPUS) >= 60
    assert all(case.expected for case in CORPUS)
    assert {e.kind for case in CORPUS for e in case.expected} >= set(metalsim.reports.KINDS.values()) - {
        "group_memory_limit"  # the pipeline is refused before it could be found
    }


@pytest.mark.parametrize("case", LAUNCHABLE, ids=lambda case: case.name)
def test_the_planted_defect_is_found_under_every_schedule(
    case: Case, defective: metalsim.ShaderLibrary, counts: dict[str, int], request: pytest.FixtureRequest
) -> None:
    if case.missed:
        request.applymarker(pytest.mark.xfail(reason=case.missed, raises=AssertionError, strict=True))
    allowed = {e.kind for e in case.expected} | case.also
    for schedule, order in SCHEDULES:
        findings = launched(defective, case, schedule, order)
        counts["launches"] += 1
        for expected in case.expected:
            assert any(matches(f, expected, case) for f in findings), (
                f"{schedule}/{order}: {expected} is missing; found was {told(findings)}"
            )
        assert {f.kind for f in findings} <= allowed, (
            f"{schedule}/{order}: more than was planted: {told(findings)}"
        )
    counts["found"] += 1


@pytest.mark.parametrize("case", [c for c in CORPUS if c.refused], ids=lambda case: case.name)
def test_a_kernel_that_can_not_be_made_is_refused(
    case: Case, defective: metalsim.ShaderLibrary, counts: dict[str, int]
) -> None:
    with pytest.raises(RuntimeError, match=case.expected[0].text):
        getattr(defective, case.name)
    counts["found"] += 1


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_the_corrected_twin_is_silent_under_every_schedule(
    case: Case, corrected: metalsim.ShaderLibrary, counts: dict[str, int]
) -> None:
    for schedule, order in SCHEDULES:
        findings = launched(corrected, case, schedule, order)
        counts["launches"] += 1
        assert not findings, f"{schedule}/{order}: {told(findings)}"
    counts["silent"] += 1
