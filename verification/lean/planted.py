"""Errors planted in the definitions and statements, which Lean must reject.

An error in a statement, or in a definition that a theorem speaks of, must make that theorem's proof fail. An error in a
definition that the theorems allow must make a case of ``vectors`` fail: there the definition and the code disagree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from . import vectors
from .run import Message, Part, source
from .vectors import Case

#: What Lean says of a text that it can't read, which is no rejection.
_UNREADABLE: Final = re.compile(
    r"unexpected|unknown|expected token|invalid field|already been declared", re.IGNORECASE
)


@dataclass(frozen=True)
class Planted:
    """One planted error.

    Attributes:
        name: what is wrong, in words.
        theory: where.
        old: what stands there; exactly once.
        new: what is planted.
        rejected_by: the first theorem whose proof must fail, or the group of cases of which one must.
        by_cases: whether it is a group of cases.
    """

    name: str
    theory: str
    old: str
    new: str
    rejected_by: str
    by_cases: bool = False


PLANTED: Final = (
    Planted(
        "the last tile of terms is forgotten",
        "Gemm",
        "(terms + tile - 1) / tile\n\n/-- `gemm_first_step`",
        "terms / tile\n\n/-- `gemm_first_step`",
        "stepBegin_steps",
    ),
    Planted(
        "the first step takes a whole tile",
        "Gemm",
        ": Nat := if step = 0 then firstStep terms tile else tile",
        ": Nat := if step = 0 then tile else tile",
        "stepBegin_succ",
    ),
    Planted(
        "the last band has all its rows",
        "Gemm",
        "  let first := group / (band * tilesN) * band\n  if tilesM - first < band then tilesM - first else band",
        "  band",
        "group_facts",
    ),
    Planted(
        "columns are stored without a guard",
        "Gemm",
        "if row + r < s.m ∧ column + c < s.n then [(row + r, column + c)] else []) s.bn) s.bm",
        "if row + r < s.m ∧ column + c = column + c then [(row + r, column + c)] else []) s.bn) s.bm",
        "count_places",
    ),
    Planted(
        "the guard of rows is off by one",
        "Gemm",
        "if row + r < s.m ∧ column + c < s.n then [(row + r, column + c)] else []) s.bn) s.bm",
        "if row + r ≤ s.m ∧ column + c < s.n then [(row + r, column + c)] else []) s.bn) s.bm",
        "count_places",
    ),
    Planted(
        "the grid has whole tiles only",
        "Gemm",
        "def Shape.tilesM (s : Shape) : Nat := (s.m + s.bm - 1) / s.bm",
        "def Shape.tilesM (s : Shape) : Nat := s.m / s.bm",
        "written_once",
    ),
    Planted(
        "one threadgroup does not run",
        "Gemm",
        "(all : groups.Perm (List.range (s.tilesM * s.tilesN))) (i j : Nat)",
        "(all : groups.Perm (List.range (s.tilesM * s.tilesN - 1))) (i j : Nat)",
        "written_once",
    ),
    Planted(
        "a column beyond the last is claimed to be written",
        "Gemm",
        "(flatOver (places s) groups).count (i, j) = if i < s.m ∧ j < s.n then 1 else 0",
        "(flatOver (places s) groups).count (i, j) = if i < s.m ∧ j ≤ s.n then 1 else 0",
        "written_once",
    ),
    Planted(
        "all splits have the same number of terms",
        "SplitK",
        "  if k < splitBegin split splitK + splitK then k else splitBegin split splitK + splitK",
        "  if k < splitBegin split splitK then k else splitBegin split splitK + splitK",
        "splitk_eq_naive",
    ),
    Planted(
        "the last split is not added",
        "SplitK",
        "combine op zero term k splitK (splits k splitK) = sum op term zero 0 k",
        "combine op zero term k splitK (splits k splitK - 1) = sum op term zero 0 k",
        "splitk_eq_naive",
    ),
    Planted(
        "any order of terms is claimed without commutativity",
        "SplitK",
        "op a (op b c)) (comm : ∀ a b, op a b = op b a)\n    {l₁",
        "op a (op b c)) (comm : ∀ a b, op a b = op a b)\n    {l₁",
        "foldl_perm",
    ),
    Planted(
        "the sum is not scaled to the new maximum",
        "Softmax",
        "(m, weighted A m (A.mul seen.2 (A.exp seen.1 m)) chunk)",
        "(m, weighted A m seen.2 chunk)",
        "online_eq",
    ),
    Planted(
        "an excluded score has weight 1",
        "Softmax",
        "  | none => A.zero\n",
        "  | none => A.one\n",
        "weight_scaled",
    ),
    Planted(
        "the guard of rows without keys is the wrong way round",
        "Softmax",
        "if total = A.zero then A.zero else A.div sum total",
        "if total = A.zero then A.div sum total else A.zero",
        "masked_row",
    ),
    Planted(
        "lanes are added without their scales",
        "Softmax",
        "scaledSum m (A.add acc (A.mul p.2 (A.exp p.1 m))) rest",
        "scaledSum m (A.add acc p.2) rest",
        "scaledSum_eq",
    ),
    Planted(
        "every request is cut from the batch's first rows",
        "Batch",
        ":: cut (output.drop r.rows.length) rest",
        ":: cut output rest",
        "cut_padded",
    ),
    Planted(
        "a batch is padded to a length that the longest request exceeds",
        "Batch",
        "  fill rows (padded (max length (longest requests)) requests)",
        "  fill rows (padded length requests)",
        "alone_eq_batched",
    ),
    Planted(
        "a model that ignores its mask is padded",
        "Batch",
        "    (model (pad length row)).take row.length = (model (pad row.length row)).take row.length",
        "    (model (pad length row)).take row.length = (model (pad length row)).take row.length",
        "cut_padded",
    ),
    Planted(
        "the rest of a bucket is looked up one row too far",
        "Chooser",
        "let candidate := fun b : Bucket => (⟨b, nth table (b.1 - 1)⟩ : Candidate)",
        "let candidate := fun b : Bucket => (⟨b, nth table b.1⟩ : Candidate)",
        "best_succ",
    ),
    Planted(
        "the slowest option is taken",
        "Chooser",
        "(if before (candidate b) found then candidate b else found) rest",
        "(if before (candidate b) found then found else candidate b) rest",
        "least_le",
    ),
    Planted(
        "buckets of no rows are allowed",
        "Chooser",
        "  sizes : ∀ b ∈ buckets, 1 ≤ b.1",
        "  sizes : ∀ b ∈ buckets, 0 ≤ b.1",
        "best_step",
    ),
    Planted(
        "the chosen runs are claimed to have a spare row",
        "Chooser",
        "    rows ≤ served (best buckets rows).runs\n      ∧ (∀ r ∈ (best buckets rows).runs, ∃ b ∈ buckets, b.1 = r)\n"
        "      ∧ (∀ r ∈ (best buckets rows).runs, r ≤ largest buckets)",
        "    rows < served (best buckets rows).runs\n      ∧ (∀ r ∈ (best buckets rows).runs, ∃ b ∈ buckets, b.1 = r)\n"
        "      ∧ (∀ r ∈ (best buckets rows).runs, r ≤ largest buckets)",
        "best_covers",
    ),
    Planted(
        "a length's bucket may be too short",
        "Chooser",
        "  | b :: rest => if length ≤ b then b else lengthBucket length rest",
        "  | b :: rest => if length ≤ b + 1 then b else lengthBucket length rest",
        "lengthBucket_covers",
    ),
    Planted(
        "a default is taken that is not possible",
        "Paths",
        "  | (p, applies) :: rest => if possible p && applies then some p else",
        "  | (p, applies) :: rest => if applies then some p else",
        "firstDefault_possible",
    ),
    Planted(
        "what is forced is taken though it is not possible",
        "Paths",
        "      if possible i p then some (p, .forced)",
        "      if possible i first then some (p, .forced)",
        "never_impossible",
    ),
    Planted(
        "a hazard gives way to the profile",
        "Paths",
        "  else if busy && possible .steel then (.steel, .hazard)\n",
        "  else if busy && possible .steel then (.vendor, .hazard)\n",
        "unforced_possible",
    ),
    Planted(
        "the choice is claimed not to depend on hazards",
        "Paths",
        "(hb : busy i = busy j)",
        "(hb : busy i = busy i)",
        "depends_only",
    ),
    Planted(
        "a thread may wait for a lock of the rank that it holds",
        "Locks",
        "∀ h, s.holds t h → rank h < rank l\n\n",
        "∀ h, s.holds t h → rank h ≤ rank l\n\n",
        "no_cycle",
    ),
    Planted(
        "of equal options the one with the smaller bucket is taken",
        "Chooser",
        "decide (b.bucket.1 < a.bucket.1)",
        "decide (a.bucket.1 < b.bucket.1)",
        "bucket chooser",
        by_cases=True,
    ),
    Planted(
        "more runs are preferred",
        "Chooser",
        "(decide (a.rest.runs.length < b.rest.runs.length) ||",
        "(decide (b.rest.runs.length < a.rest.runs.length) ||",
        "bucket chooser",
        by_cases=True,
    ),
    Planted(
        "deterministic batches may have no padding",
        "Chooser",
        "let wide := (length / multiple + 1) * multiple",
        "let wide := (length + multiple - 1) / multiple * multiple",
        "length buckets",
        by_cases=True,
    ),
    Planted(
        "what is forced for the family stands above what is forced for the operation",
        "Paths",
        "  match i.forcedOp with\n  | some p => some p\n  | none => match i.forcedFamily with",
        "  match i.forcedFamily with\n  | some p => some p\n  | none => match i.forcedOp with",
        "path selector",
        by_cases=True,
    ),
    Planted(
        "hazards are seen on every device",
        "Paths",
        "decide (i.device = .mps) && i.streams",
        "i.streams",
        "path selector",
        by_cases=True,
    ),
    Planted(
        "padding stands before the row",
        "Batch",
        "  row.map some ++ List.replicate (length - row.length) none",
        "  List.replicate (length - row.length) none ++ row.map some",
        "merge",
        by_cases=True,
    ),
    Planted(
        "tiles are visited row by row, without bands",
        "Gemm",
        "  group / (band * tilesN) * band + group % (band * tilesN) % bandRows group tilesM tilesN band",
        "  group / tilesN",
        "tile coverage",
        by_cases=True,
    ),
)


def part(planted: Planted, number: int, cases: Sequence[Case]) -> Part:
    """The text with the error, in a namespace of its own; ``cases`` are those of its group."""
    text = source(planted.theory)
    found = text.count(planted.old)
    if found != 1:
        raise ValueError(f"{planted.name!r}: {planted.theory}.lean has the text {found} times, not once")
    text = text.replace(planted.old, planted.new)
    if planted.by_cases:
        texts = [_definitions(text), vectors.part(cases, (planted.theory,)).text]
    else:
        texts = [_up_to(text, planted.theory, planted.rejected_by)]
    joined = "\n\n".join(texts)
    return Part(planted.name, re.sub(r"\bSteelworks\.", f"Planted{number}.", joined))


def control(theory: str, plants: Sequence[Planted] = PLANTED) -> Part:
    """A theory without an error, in the form in which ``plants`` have theirs: Lean must accept it."""
    wanted = {p.rejected_by for p in plants if p.theory == theory}
    blocks = [
        block
        if any(re.search(rf"^theorem {name} ", block, re.MULTILINE) for name in wanted)
        else _assumed(block)
        for block in _blocks(source(theory))
    ]
    return Part(f"control {theory}", re.sub(r"\bSteelworks\.", "Control.", "\n\n".join(blocks)))


def refusals(messages: Sequence[Message]) -> list[Message]:
    """The errors that are not a matter of style, such as a name that is not used."""
    return [m for m in messages if m.severity == "error" and "linter can be disabled" not in m.text]


def is_rejected(planted: Planted, text: str, messages: Sequence[Message]) -> bool:
    """Whether Lean refused the error where it must, and nowhere before."""
    errors = refusals(messages)
    if not errors or any(_UNREADABLE.search(m.text.split("\n")[0]) for m in errors):
        return False
    lines = text.split("\n")
    first = min(m.line for m in errors)
    if planted.by_cases:
        return all(lines[m.line - 1].startswith("example : ") for m in errors)
    begin = next(i for i, line in enumerate(lines, 1) if line.startswith(f"theorem {planted.rejected_by} "))
    return first >= begin


def _blocks(text: str) -> list[str]:
    """Declarations and comments, which blank lines part."""
    return re.split(r"\n\n+", text.strip())


def _is_theorem(block: str) -> bool:
    return re.search(r"^theorem ", block, re.MULTILINE) is not None


def _definitions(text: str) -> str:
    """A theory without its theorems."""
    *blocks, last = _blocks(text)
    return "\n\n".join([*(b for b in blocks if not _is_theorem(b)), last])


def _up_to(text: str, theory: str, theorem: str) -> str:
    """A theory up to and with one theorem. Those before it are assumed, to save time: what fails so fails anyway."""
    kept: list[str] = []
    for block in _blocks(text):
        if re.search(rf"^theorem {theorem} ", block, re.MULTILINE):
            return "\n\n".join([*kept, block, f"end\nend Steelworks.{theory}"])
        kept.append(_assumed(block))
    raise ValueError(f"{theory}.lean has no theorem {theorem}")


def _assumed(block: str) -> str:
    statement, by, _ = block.partition(" := by\n")
    if not by or not _is_theorem(block) or " where\n" in statement:
        return block
    return re.sub(r"^theorem ", "axiom ", statement, count=1, flags=re.MULTILINE)
