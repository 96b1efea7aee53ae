"""``steelworks verify``: what it makes of parts that pass, fail, lack a tool or break; and what the real ones claim."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelworks.cli import verify
from steelworks.cli.app import app
from verification import command, document, parts
from verification.parts import PARTS, ROOT, Part
from verification.results import NOT_CHECKED

DOCUMENT = ROOT / "docs" / "verification.md"

PART = """
import os
from dataclasses import replace
from verification.claims import Claim, ToolMissing, declare

NAMES = {names!r}

def declared():
    return tuple(
        declare(name.removesuffix("=full"), f"{{name}} holds", tool="a tool", bound="to 3 < 4",
                binding="the code & a test", code=("Makefile",), assumes="little | nothing", counted="2 cases",
                in_quick=not name.endswith("=full"))
        for name in NAMES
    )

def claims(quick, wanted=lambda name: True):
    known = {{claim.name: claim for claim in declared()}}
    print("what a part prints is not among its claims")
    {body}
"""
PASSING = (
    "yield from (replace(c, passed=True, seconds=0.5, counted='2 cases, 9 steps') for c in known.values())"
)
FAILING = "yield replace(known[NAMES[0]], passed=False, seconds=1.0, why='step 7 is <wrong>')"
MISSING = "raise ToolMissing('no prover here; install it with: apt install prover')\n    yield"
RAISING = "raise ZeroDivisionError('by nothing')\n    yield"
DYING = "yield replace(known[NAMES[0]], passed=True)\n    os.abort()"
SILENT = "yield replace(known[NAMES[0]], passed=True)"
OTHER = "yield replace(known[NAMES[0]], passed=True)\n    yield replace(known[NAMES[0]], name='none.knows')"

Evidence = Callable[..., Any]


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evidence:
    """Makes parts of the given bodies, the only ones that there are, and runs the command with arguments."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Part] = []

    def run(*arguments: str, tools: tuple[str, ...] = (), **bodies: tuple[str, ...]) -> Any:
        for title, (body, *names) in bodies.items():
            module = f"part_{title}_{len(made)}_{tmp_path.name}"
            (tmp_path / f"{module}.py").write_text(PART.format(names=names, body=textwrap.dedent(body)))
            made.append(Part(module, title, tools))
        monkeypatch.setattr(command, "PARTS", tuple(made))
        return CliRunner().invoke(app, ["verify", *arguments], env={"COLUMNS": "200"})

    return run


def test_it_exits_with_0_if_every_claim_holds(evidence: Evidence) -> None:
    done = evidence(good=(PASSING, "good.one", "good.two"), more=(PASSING, "more.one"))
    assert done.exit_code == 0
    assert done.output.rstrip().splitlines()[-1].startswith("verdict: 3 of 3 claims were checked and hold")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (FAILING, "bad.one: step 7 is <wrong>"),
        (RAISING, "bad.one: the check itself failed: ZeroDivisionError: by nothing"),
        (
            DYING.replace("yield replace(known[NAMES[0]], passed=True)\n    ", ""),
            "bad.one: its process ended with -6",
        ),
        ("return\n    yield", "ended without checking it"),
    ],
    ids=["fails", "raises", "dies", "says-nothing"],
)
def test_it_exits_with_1_and_says_why_if_a_claim(body: str, why: str, evidence: Evidence) -> None:
    done = evidence(good=(PASSING, "good.one"), bad=(body, "bad.one"))
    assert done.exit_code == 1
    assert f"FAILED: {why}" in done.output or why in done.output
    assert "1 of 2 claims were checked and hold, 1 FAILED" in done.output


@pytest.mark.parametrize("body", [SILENT, DYING], ids=["ends-early", "dies"])
def test_a_part_that_yields_only_some_of_its_claims_fails_for_the_others(
    body: str, evidence: Evidence
) -> None:
    done = evidence(bad=(body, "bad.one", "bad.two"))
    assert done.exit_code == 1
    assert re.search(r"^holds +bad\.one", done.output, re.MULTILINE)
    assert re.search(r"^FAILED +bad\.two", done.output, re.MULTILINE)


def test_a_claim_that_nobody_declared_fails(evidence: Evidence) -> None:
    done = evidence(bad=(OTHER, "bad.one"))
    assert done.exit_code == 1
    assert "FAILED: none.knows: it is not declared" in done.output


def test_it_exits_with_2_and_names_the_tool_that_is_missing(evidence: Evidence, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = evidence("--json", str(report), good=(PASSING, "good.one"), poor=(MISSING, "poor.one", "poor.two"))
    assert done.exit_code == 2
    assert (
        "not checked: poor.one, poor.two: no prover here; install it with: apt install prover" in done.output
    )
    written = json.loads(report.read_text())
    assert [c["state"] for c in written["claims"]] == ["holds", NOT_CHECKED, NOT_CHECKED]


def test_it_says_what_installs_the_tools_of_parts_that_were_not_checked(evidence: Evidence) -> None:
    done = evidence(
        "--no-install", good=(PASSING, "good.one"), poor=(MISSING, "poor.one"), tools=("lean", "java")
    )
    assert "sh scripts/setup.sh tools lean java" in done.output


def test_a_failure_counts_for_more_than_a_missing_tool(evidence: Evidence) -> None:
    assert evidence(poor=(MISSING, "poor.one"), bad=(FAILING, "bad.one")).exit_code == 1


def test_only_selects_claims_by_a_part_of_their_names(evidence: Evidence, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    bodies = {"good": (PASSING, "good.one", "good.two"), "bad": (FAILING, "bad.one")}
    done = evidence("--only", "d.two", "--only", "good.one", "--json", str(report), **bodies)
    assert done.exit_code == 0
    assert [c["name"] for c in json.loads(report.read_text())["claims"]] == ["good.one", "good.two"]


def test_the_quick_set_leaves_out_what_belongs_to_the_full_set_only(evidence: Evidence) -> None:
    # Nothing yields it in the quick set's run, which would fail if it were asked for.
    body = (
        "if quick: known.pop('part.large')\n    yield from (replace(c, passed=True) for c in known.values())"
    )
    done = evidence("--quick", part=(body, "part.small", "part.large=full"))
    assert "left to the full set: part.large" in done.output
    assert "1 of 1 claims were checked and hold (quick set" in done.output


def test_the_full_set_has_what_the_quick_set_leaves_out(evidence: Evidence) -> None:
    done = evidence(part=(PASSING, "part.small", "part.large=full"))
    assert "2 of 2 claims were checked and hold (full set" in done.output


def test_a_claim_of_the_full_set_only_can_not_be_asked_of_the_quick_set(evidence: Evidence) -> None:
    done = evidence("--quick", "--only", "large", part=(PASSING, "part.small", "part.large=full"))
    assert done.exit_code != 0
    assert "leave --quick out" in done.output


def test_only_with_no_match_names_the_claims_that_there_are(evidence: Evidence) -> None:
    done = evidence("--only", "nothing", good=(PASSING, "good.one"), more=(PASSING, "more.one"))
    assert done.exit_code == 2
    assert "--only nothing: no claim has that in its name; there are good.one, more.one" in done.output


def test_the_json_file_has_every_claim_with_its_result(evidence: Evidence, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    evidence("--quick", "--json", str(report), good=(PASSING, "good.one"), bad=(FAILING, "bad.one"))
    written = json.loads(report.read_text())
    assert (written["passed"], written["holds"], written["failed"], written["not_checked"]) == (
        False,
        1,
        1,
        0,
    )
    good, bad = written["claims"]
    assert good["counted"] == "2 cases, 9 steps"
    assert (good["quick"], good["code"], good["seconds"]) == (True, ["Makefile"], 0.5)
    assert (bad["passed"], bad["why"]) == (False, "step 7 is <wrong>")


def test_the_page_is_well_formed_escapes_and_refers_to_nothing_outside(
    evidence: Evidence, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    evidence("--html", str(page), good=(PASSING, "good.one"), bad=(FAILING, "bad.one"))
    text = page.read_text()
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "img", "iframe")
            assert not any(name in ("src", "href") for name, _ in attrs)
            if tag not in ("meta", "br"):
                tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert tags.pop() == tag

    Reader().feed(text)
    assert tags == []
    assert "step 7 is &lt;wrong&gt;" in text
    assert "prefers-color-scheme: dark" in text
    assert "url(" not in text


def test_the_markdown_has_a_row_for_each_claim(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template.md"
    template.write_text("${summary}\n${table}\nCounted were ${good.one}. ${times}\n")
    monkeypatch.setattr(document, "TEMPLATE", template)
    page = tmp_path / "page.md"
    evidence("--markdown", str(page), good=(PASSING, "good.one"), poor=(MISSING, "poor.one"))
    text = page.read_text()
    assert document.rows(text) == {
        "good.one": ("to 3 < 4", "2 cases, 9 steps"),
        "poor.one": ("to 3 < 4", "2 cases"),
    }
    assert "| **not checked** `poor.one`: poor.one holds |" in text
    assert "little \\| nothing" in text
    assert "Counted were 2 cases, 9 steps." in text


def test_the_markdown_of_the_quick_set_is_refused(evidence: Evidence, tmp_path: Path) -> None:
    done = evidence("--quick", "--markdown", str(tmp_path / "table.md"), good=(PASSING, "good.one"))
    assert done.exit_code != 0
    assert "leave --quick out" in done.output


def test_the_markdown_of_some_claims_only_is_refused(evidence: Evidence, tmp_path: Path) -> None:
    done = evidence("--only", "good", "--markdown", str(tmp_path / "page.md"), good=(PASSING, "good.one"))
    assert done.exit_code == 2
    assert "--markdown writes the table of all claims" in done.output


def test_results_of_an_earlier_run_are_taken_instead_of_running_again(
    evidence: Evidence, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    evidence("--only", "good", "--json", str(first), good=(PASSING, "good.one"), bad=(FAILING, "bad.one"))
    done = evidence("--from", str(first), "--json", str(second))
    assert "1 of 2 claims have ended" not in done.output
    assert not re.search(r"^holds +good\.one", done.output, re.MULTILINE)  # no line: it did not end now
    assert [c["state"] for c in json.loads(second.read_text())["claims"]] == ["holds", "FAILED"]


def test_results_about_code_that_has_changed_since_are_not_taken(evidence: Evidence, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    evidence("--json", str(report), good=(PASSING, "good.one", "good.two"))
    written = json.loads(report.read_text())
    written["claims"][0]["code_sha256"] = "0" * 64
    report.write_text(json.dumps(written))
    done = evidence("--from", str(report))
    assert "good.one is run again: its code has changed since" in done.output
    assert re.search(r"^holds +good\.one", done.output, re.MULTILINE)
    assert not re.search(r"^holds +good\.two", done.output, re.MULTILINE)


def test_a_file_that_is_no_report_is_refused(evidence: Evidence, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text("[]")
    done = evidence("--from", str(report), good=(PASSING, "good.one"))
    assert done.exit_code == 2
    assert "is no file that --json wrote" in done.output


def test_a_name_that_two_parts_claim_is_refused(evidence: Evidence) -> None:
    done = evidence(good=(PASSING, "same.name"), more=(PASSING, "same.name"))
    assert done.exit_code == 2
    assert "both claim same.name" in done.output


def test_a_part_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PARTS", (Part("verification.no_such_part", "none"),))
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 2
    assert "verification.no_such_part: ModuleNotFoundError" in done.output


def test_without_a_source_checkout_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verify, "ROOT", tmp_path)
    done = CliRunner().invoke(app, ["verify"])
    assert done.exit_code == 2
    assert "needs a source checkout" in done.output
    assert "Clone the project with git" in done.output


def test_tools_are_installed_only_if_that_is_allowed(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(command, "make_ready", lambda console, parts: asked.append([p.title for p in parts]))
    evidence("--no-install", good=(PASSING, "good.one"))
    assert asked == []
    evidence("--install")
    assert asked == [["good"]]


def test_tools_that_parts_name_are_known_to_the_set_up() -> None:
    known = re.search(r"([\w |]+)\) \"find_\$tool\"", (ROOT / "scripts" / "setup.sh").read_text())
    assert known is not None
    allowed = {name.strip() for name in known[1].split("|")}
    assert {tool for part in PARTS for tool in part.tools} <= allowed


# --- the real parts


@pytest.fixture(scope="module")
def real() -> list[parts.Declared]:
    """What the real parts claim."""
    return parts.declared(PARTS)


def test_every_claim_has_a_name_of_its_own_and_says_all_that_is_asked(real: list[parts.Declared]) -> None:
    claims = [claim for one in real for claim in one.claims]
    assert len({claim.name for claim in claims}) == len(claims) > 30
    for claim in claims:
        assert re.fullmatch(r"[a-z][a-z0-9-]*(\.[a-z0-9-]+)+", claim.name), claim.name
        assert all((claim.claim, claim.tool, claim.bound, claim.binding, claim.code, claim.assumes)), (
            claim.name
        )


def test_the_files_that_claims_speak_of_exist(real: list[parts.Declared]) -> None:
    missing = [
        (claim.name, name)
        for one in real
        for claim in one.claims
        for name in claim.code
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_the_committed_table_has_exactly_the_claims_with_their_bounds_and_pinned_figures(
    real: list[parts.Declared],
) -> None:
    written = document.rows(DOCUMENT.read_text(encoding="utf-8"))
    claims = {claim.name: document.declared_row(claim) for one in real for claim in one.claims}
    mend = "run: steelworks verify --markdown docs/verification.md"
    assert list(written) == list(claims), mend
    for name, (bound, counted) in claims.items():
        assert written[name][0] == bound, f"{name}; {mend}"
        assert written[name][1].startswith(counted.rstrip("-")), f"{name}; {mend}"


def test_the_committed_table_has_nothing_that_failed_or_was_not_checked() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert "**FAILED**" not in text
    assert f"**{NOT_CHECKED}**" not in text
    assert "(the full set;" in text


def test_the_text_around_the_committed_table_is_that_of_the_template() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    for line in document.TEMPLATE.read_text(encoding="utf-8").splitlines():
        for piece in re.split(r"\$\{[^}]*\}", line):
            assert piece in written, piece


def test_the_template_names_claims_that_there_are(real: list[parts.Declared]) -> None:
    assert document.text(document.unchecked(real), real).count("| ") > 100
