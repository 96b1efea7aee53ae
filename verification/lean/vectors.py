"""What the running code answers, written as Lean statements that the kernel of Lean decides from the definitions.

Each case is one statement ``definition(inputs) = what the code answered``; it holds only if the code and the
definition agree. The Metal kernels run in metalsim, on whole numbers small enough that float32 adds them exactly.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final
from unittest import mock

from .run import THEORIES, Part, source


@dataclass(frozen=True)
class Case:
    """One statement.

    Attributes:
        group: what it binds, for example ``"tiled gemm"``.
        name: the inputs, in words.
        statement: a Lean proposition that Lean decides.
    """

    group: str
    name: str
    statement: str


def part(cases: Sequence[Case], theories: Sequence[str] = THEORIES) -> Part:
    """The cases as a piece of a Lean file, one a line, in order; only with the notation for these theories."""
    lines = [f"example : {case.statement} := by decide +kernel" for case in cases]
    assert not any("\n" in line for line in lines)
    return Part("Vectors", "\n".join([*_before(theories), *lines, "end Steelworks.Vectors"]))


def _before(theories: Sequence[str]) -> list[str]:
    head, *sections = re.split(r"^/-! ## (\w+) -/\n", source("Vectors").strip(), flags=re.MULTILINE)
    kept = [
        text for name, text in zip(sections[::2], sections[1::2], strict=True) if name in (*theories, "End")
    ]
    return "".join([head, *kept, "\nnamespace Steelworks.Vectors"]).split("\n")


def disagreeing(cases: Sequence[Case], lines: Iterable[int]) -> list[Case]:
    """The cases at these lines of the text that :func:`part` makes of all theories."""
    first = len(_before(THEORIES)) + 1
    return [cases[line - first] for line in sorted(set(lines))]


def lean(value: Any) -> str:
    """A value in Lean's notation: whole numbers, fractions, booleans, None, tuples, lists."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Fraction):
        return f"({value.numerator}, {value.denominator})"
    if isinstance(value, int):
        return str(value) if value >= 0 else f"({value})"
    if isinstance(value, _Some):
        return f"(some {lean(value.value)})"
    if isinstance(value, tuple):
        return f"({', '.join(map(lean, value))})"
    return f"[{', '.join(map(lean, value))}]"


# ---------------------------------------------------------------- gemm

_PROBE: Final = """
kernel void tile(device int* out [[buffer(0)]], constant int* p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  out[2 * i] = gemm_tile_row(int(i), p[0], p[1], p[2]);
  out[2 * i + 1] = gemm_tile_column(int(i), p[0], p[1], p[2]);
}
kernel void terms(device int* out [[buffer(0)]], constant int* p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  out[0] = gemm_steps(p[0], p[1]);
  out[1] = gemm_first_step(p[0], p[1]);
  for (int step = 1; step < gemm_steps(p[0], p[1]); ++step) out[1 + step] = gemm_step_begin(step, p[0], p[1]);
}
kernel void splits(device int* out [[buffer(0)]], constant int* p [[buffer(1)]], uint i [[thread_position_in_grid]]) {
  out[2 * i] = gemm_split_begin(int(i), p[1]);
  out[2 * i + 1] = gemm_split_end(int(i), p[1], p[0]);
}
"""
GRIDS: Final = ((1, 1, 8), (3, 5, 1), (3, 5, 2), (7, 3, 8), (9, 4, 8), (16, 2, 8), (17, 3, 8), (5, 7, 3))
TERMS: Final = tuple((k, tile) for tile in (2, 16, 32) for k in (0, 1, 2, 15, 16, 17, 31, 32, 33, 64, 100))
SPLITS: Final = ((1, 16), (40, 16), (48, 16), (100, 32), (257, 64))


def index_cases() -> list[Case]:
    """gemm/index.h, compiled and run by metalsim, against the definitions of ``Gemm`` and ``SplitK``."""
    import torch

    from steelworks import metalsim
    from steelworks.kernels.metal import _launch

    header = (_launch.ROOT / "gemm" / "index.h").read_text().replace("#pragma once", "")
    library = metalsim.compile_shader(f"#include <metal_stdlib>\nusing namespace metal;\n{header}\n{_PROBE}")

    def ask(kernel: str, parameters: Sequence[int], threads: int, answers: int) -> list[int]:
        out = torch.full((max(answers, 1),), -7, dtype=torch.int32)
        getattr(library, kernel)(out, torch.tensor(parameters, dtype=torch.int32), threads=threads)
        answer: list[int] = out.tolist()[:answers]
        return answer

    cases = []
    for tiles_m, tiles_n, band in GRIDS:
        groups = tiles_m * tiles_n
        got = ask("tile", (tiles_m, tiles_n, band), groups, 2 * groups)
        pairs = list(zip(got[::2], got[1::2], strict=True))
        cases.append(
            Case(
                "tile coverage",
                f"{tiles_m} x {tiles_n} tiles in bands of {band}",
                f"(List.range {groups}).map (fun g => (Gemm.tileRow g {tiles_m} {tiles_n} {band}, "
                f"Gemm.tileColumn g {tiles_m} {tiles_n} {band})) = {lean(pairs)}",
            )
        )
    for k, tile in TERMS:
        steps = -(-k // tile)
        got = ask("terms", (k, tile), 1, 2 + max(steps - 1, 0))
        cases.append(
            Case(
                "steps of terms",
                f"{k} terms by {tile}",
                f"[Gemm.steps {k} {tile}, Gemm.firstStep {k} {tile}] ++ (List.range {max(got[0] - 1, 0)}).map "
                f"(fun s => Gemm.stepBegin (s + 1) {k} {tile}) = {lean(got)}",
            )
        )
    for k, split_k in SPLITS:
        splits = -(-k // split_k)
        got = ask("splits", (k, split_k), splits, 2 * splits)
        pairs = list(zip(got[::2], got[1::2], strict=True))
        cases.append(
            Case(
                "splits of terms",
                f"{k} terms in splits of {split_k}",
                f"(List.range (SplitK.splits {k} {split_k})).map (fun s => (SplitK.splitBegin s {split_k}, "
                f"SplitK.splitEnd s {split_k} {k})) = {lean(pairs)}",
            )
        )
    return cases


#: m, n, k: ragged in every direction for the tiles they are run with, and small, for Lean's kernel counts slowly.
PRODUCTS: Final = (
    ("32 x 32 tile", (33, 3, 5)),
    ("32 x 32 tile", (2, 34, 17)),
    ("32 x 32 tile", (5, 3, 33)),
    ("8 x 64 tile", (9, 2, 33)),
    ("8 x 64 tile", (10, 66, 1)),
    ("8 x 64 tile", (3, 65, 0)),
)


def _operands(m: int, n: int, k: int) -> tuple[Any, Any]:
    import torch

    left = [[(i * 7 + t * 3 + 1) % 9 - 4 for t in range(k)] for i in range(m)]
    right = [[(t * 5 + j * 2 + 3) % 7 - 3 for j in range(n)] for t in range(k)]
    a = torch.tensor(left, dtype=torch.float32).reshape(m, k)
    return a, torch.tensor(right, dtype=torch.float32).reshape(k, n)


def gemm_cases() -> list[Case]:
    """The gemm kernels on whole numbers: tiled by threadgroup, in the order of the stores; split sums; vectors."""
    import torch

    from steelworks.kernels.metal import gemm as host
    from steelworks.kernels.metal import tuning
    from steelworks.kernels.metal.tuning import GemmTile, GemvColumns, GemvDot

    choices: list[Any] = [row.choice for row in tuning.GEMM]
    tiles = {f"{c.bm} x {c.bn} tile": c for c in choices if isinstance(c, GemmTile)}

    def product(m: int, n: int, k: int, choice: Any, splits: int, transposed: bool = False) -> list[int]:
        a, b = _operands(m, n, k)
        b = b.T.contiguous().T if transposed else b
        problem = host._problem(a, b, host._Options())
        problem.out.fill_(float("nan"))
        host._run(problem, choice, splits)
        values = problem.out.flatten().tolist()
        assert all(v == int(v) for v in values), "a sum of whole numbers is not whole"
        return [int(v) for v in values]

    cases = []
    for tile, (m, n, k) in PRODUCTS:
        choice = tiles[tile]
        out = product(m, n, k, choice, 1)
        tiles_m, tiles_n = -(-m // choice.bm), -(-n // choice.bn)
        shape = f"⟨{m}, {n}, {choice.bm}, {choice.bn}, {tuning.GEMM_BAND}⟩"
        for group in range(tiles_m * tiles_n):
            row, column = _tile(group, tiles_m, tiles_n, tuning.GEMM_BAND)
            stores = [
                out[i * n + j]
                for i in range(row * choice.bm, min(m, (row + 1) * choice.bm))
                for j in range(column * choice.bn, min(n, (column + 1) * choice.bn))
            ]
            cases.append(
                Case(
                    "tiled gemm",
                    f"{m} x {n} x {k}, {tile}, threadgroup {group}",
                    f"tiled {shape} {k} {choice.bk} {group} = {lean(stores)}",
                )
            )
    for m, n, k, splits in ((3, 4, 40, 3), (2, 1, 100, 7), (2, 3, 16, 4)):
        choice = tiles["32 x 32 tile"]
        split_k = host._split_terms(k, splits, choice)
        out = product(m, n, k, choice, splits)
        cases.append(
            Case("split-K gemm", f"{m} x {n} x {k} in {splits}", f"split {m} {n} {k} {split_k} = {lean(out)}")
        )
    for vector in (c for c in choices if isinstance(c, (GemvDot, GemvColumns))):
        m, n, k = vector.rows, 5, 37
        out = product(m, n, k, vector, 1, isinstance(vector, GemvDot))
        cases.append(Case("vector gemm", f"{vector}", f"naive {m} {n} {k} = {lean(out)}"))
    assert torch.get_default_dtype() == torch.float32
    return cases


def _tile(group: int, tiles_m: int, tiles_n: int, band: int) -> tuple[int, int]:
    """The tile of a threadgroup, only to say which values belong to it; Lean has its own, bound by ``index_cases``."""
    first = group // (band * tiles_n) * band
    rows = min(tiles_m - first, band)
    inside = group % (band * tiles_n)
    return first + inside % rows, inside // rows


# ---------------------------------------------------------------- softmax

#: Scores of which all that count are equal (None is -inf): their weights are 1 in any base.
ROWS: Final[tuple[tuple[int | None, ...], ...]] = (
    (0,),
    (5, 5),
    (-3, None, -3, -3),
    (None, 7, None, None, 7, 7, 7),
    (2, 2, 2, 2, 2, 2, 2),
    (None, None, 1000, None),
    (4,) * 33,
    (None,) * 40 + (1,) * 3,
)


def softmax_cases() -> list[Case]:
    """softmax and attention where they are exact: Lean has the fraction, whose float32 the kernel must have given."""
    import torch

    from steelworks.kernels.metal.attention import attention
    from steelworks.kernels.metal.softmax import softmax

    cases = []
    for scores in ROWS:
        x = torch.tensor([float("-inf") if s is None else float(s) for s in scores])
        got = softmax(x.unsqueeze(0))[0].tolist()
        columns = softmax(x.unsqueeze(1).expand(-1, 3).contiguous(), 0)[:, 1].tolist()
        seen = sum(s is not None for s in scores)
        exact = [Fraction(int(s is not None), seen) for s in scores]
        for form, values in (("rows", got), ("columns", columns)):
            assert values == [_as_float32(f) for f in exact], f"softmax of {form} {scores}: {values}"
        for size in (1, 4):
            options = lean([None if s is None else _Some(s) for s in scores])
            cases.append(
                Case("softmax", f"{scores} in chunks of {size}", f"softmax {size} {options} = {lean(exact)}")
            )
    for scores in (*ROWS, (None,), (None,) * 9):
        values = [(3 * i * i + i) % 11 - 5 for i in range(len(scores))]
        # Equal scores: all keys are the same; the mask excludes.
        q = torch.ones(1, 1, 1, 8)
        k = torch.ones(1, 1, len(scores), 8)
        v = torch.tensor([float(x) for x in values]).reshape(1, 1, -1, 1).expand(-1, -1, -1, 8).contiguous()
        mask = torch.tensor([s is not None for s in scores]).reshape(1, 1, 1, -1)
        got = attention(q, k, v, mask)[0, 0, 0].tolist()
        kept = [value for value, score in zip(values, scores, strict=True) if score is not None]
        answer = Fraction(sum(kept), len(kept)) if kept else Fraction(0)
        assert got == [_as_float32(answer)] * 8, f"attention of {scores}: {got} is not {answer}"
        options = lean([None if s is None else _Some(0) for s in scores])
        numbers = lean([Fraction(x) for x in values])
        cases.append(
            Case(
                "attention",
                f"{len(kept)} of {len(scores)} keys",
                f"attention 3 {options} {numbers} = {lean(answer)}",
            )
        )
    return cases


@dataclass(frozen=True)
class _Some:
    """A score that is not -inf."""

    value: int


def _as_float32(value: Fraction) -> float:
    single: float = struct.unpack("f", struct.pack("f", float(value)))[0]
    return single


# ---------------------------------------------------------------- batches


def batch_cases(count: int = 40, seed: int = 5) -> list[Case]:
    """merge and cut on requests of random lengths and rows, with a model that sums what its mask lets through."""
    import torch

    from steelworks import Padding
    from steelworks.plans.batches import OutputLayout, cut, merge
    from steelworks.plans.inputs import InputReader

    chance = random.Random(seed)
    cases = []
    for number in range(count):
        requests = [
            [[chance.randrange(1, 9) for _ in range(length)] for _ in range(chance.randint(1, 3))]
            for length in [chance.randint(1, 5) for _ in range(chance.randint(1, 4))]
        ]
        length, rows = chance.choice((0, 0, 6, 8)), chance.choice((0, 0, 5, 16))
        reader = InputReader(Padding(inputs=("x",), mask="mask"))
        ids = [torch.tensor(r) for r in requests]
        readings = [reader.read({"x": t, "mask": torch.ones_like(t)}) for t in ids]
        x, mask = merge(readings, length, rows)
        coded = torch.where(mask > 0, x + 1, 0).tolist()
        padded = int(x.shape[1])
        layout = OutputLayout(((1,),), padding=True)
        results = cut((x * mask).cumsum(1), readings, layout, padded, rows=int(x.shape[0]))
        answers = [result.tolist() for result in results]
        what = f"case {number}: {[len(r) for r in requests]} rows, length {length}, {rows} rows at least"
        given = f"{lean(requests)} {length} {rows}"
        cases.append(Case("merge", what, f"merged {given} = {lean(coded)}"))
        cases.append(Case("cut", what, f"answered {given} = {lean(answers)}"))
    return cases


# ---------------------------------------------------------------- bucket chooser


#: Tables in which several choices take the least time.
TIES: Final = ({1: 1, 2: 2, 4: 4}, {2: 3, 3: 3, 5: 3}, {1: 2, 3: 4, 4: 4})


def chooser_cases(tables: int = 80, seed: int = 3) -> list[Case]:
    """BucketTable.best for random tables and all row counts up to some; the buckets of lengths."""
    from steelworks.plans.cost import BucketTable
    from steelworks.plans.eager import EagerOptions, _deterministic_bucket
    from steelworks.plans.graph import GraphPlan
    from steelworks.plans.inputs import InputReader, Padding

    chance = random.Random(seed)
    cases = []
    for number in range(tables):
        sizes = sorted(chance.sample(range(1, 17), chance.randint(1, 5)))
        seconds = {size: chance.randint(1, 12) for size in sizes}
        if number < len(TIES):
            seconds = TIES[number]
        table = BucketTable({size: float(time) for size, time in seconds.items()})
        buckets = lean(list(seconds.items()))
        most = chance.randint(1, 24)
        # Asked for in any order: the table grows to the largest at once.
        asked = chance.sample(range(most + 1), min(6, most + 1))
        chosen = [table.best(rows) for rows in asked]
        assert all(best.seconds == int(best.seconds) for best in chosen)
        cases.append(
            Case(
                "bucket chooser",
                f"table {number}: {seconds}, {asked} rows",
                f"{lean(asked)}.map (fun n => ((Chooser.best {buckets} n).runs, (Chooser.best {buckets} n).seconds)) "
                f"= {lean([(list(best.runs), int(best.seconds)) for best in chosen])}",
            )
        )
    for number in range(tables // 2):
        lengths = sorted(chance.sample(range(1, 40), chance.randint(0, 5)))
        plan = GraphPlan.__new__(GraphPlan)
        plan.lengths = tuple(lengths)
        asked = [chance.randint(1, 45) for _ in range(6)]
        got = [plan._bucket(length) for length in asked]
        cases.append(
            Case(
                "length buckets",
                f"{number}: {lengths}",
                f"{lean(asked)}.map (fun l => Chooser.lengthBucket l {lean(lengths)}) = {lean(got)}",
            )
        )
    for multiple in (1, 3, 8, 16):
        padding = Padding(multiple=multiple)
        reader = InputReader(padding)
        asked = list(range(1, 40))
        got = [reader._bucket_of(length) for length in asked]
        cases.append(
            Case(
                "length buckets",
                f"multiples of {multiple}",
                f"{lean(asked)}.map (fun l => Chooser.multipleBucket l {multiple}) = {lean(got)}",
            )
        )
        for limit in (None, 7, 24):
            bucket = _deterministic_bucket(_Limited(limit), EagerOptions(8, padding))
            got = [bucket(length) for length in asked]
            stated = "none" if limit is None else f"(some {limit})"
            cases.append(
                Case(
                    "length buckets",
                    f"deterministic, multiples of {multiple}, limit {limit}",
                    f"{lean(asked)}.map (fun l => Chooser.deterministicBucket l {multiple} {stated}) = {lean(got)}",
                )
            )
    return cases


class _Limited:
    """A model with a configuration."""

    def __init__(self, limit: int | None) -> None:
        self.config = self
        self.max_position_embeddings = limit


# ---------------------------------------------------------------- paths

_RULES: Final = ("forced", "only", "simulated", "hazard", "profile", "default")


def path_cases(count: int = 400, seed: int = 11) -> list[Case]:
    """``choose`` of the path selector on random inputs, all of them made up: registry, state, profile, defaults."""
    import torch

    from steelworks.errors import InvalidInputError
    from steelworks.paths import _choose, _registry, _state
    from steelworks.paths import _signature as signatures
    from steelworks.paths.defaults import Default

    chance = random.Random(seed)
    order = signatures.PATHS
    assert order == ("steel", "graph", "vendor")
    devices = ("cpu", "cuda", "mps")
    cases = []
    for number in range(count):
        device = chance.randrange(3)
        refused, registered, able = _bits(chance, 0.2), _bits(chance, 0.85), _bits(chance, 0.85)
        simulate, streams = chance.random() < 0.4, chance.random() < 0.4
        op, family, all_, alias = (chance.choice((0, 1, 2, *[3] * 9)) for _ in range(4))
        times = [chance.choice((0, 1, 2, 3)) if number % 2 else chance.randint(1, 4) for _ in range(3)]
        rows = [(chance.randrange(3), chance.random() < 0.6) for _ in range(chance.randint(0, 4))]

        registry = _registry._Registry()
        registry.declare(
            _registry.Operation(
                "made",
                "kind",
                lambda _: {"rows": 1},
                no_path={(devices[device], p): "no" for i, p in enumerate(order) if refused >> i & 1},
            )
        )
        for i in range(len(order)):
            if registered >> i & 1:
                where = chance.choice((devices[device], "any"))
                reason = None if able >> i & 1 else "unable"
                registry.register(
                    _registry.Implementation("made", where, order[i], _always(reason), lambda *_: None)
                )
        made: dict[str, Any] = {
            "operation_of": _lookup(registry),
            "implementation_of": _implementation(registry),
            "_profile": _Profile({p: float(t) for p, t in zip(order, times, strict=True) if t}),
            "DEFAULTS": tuple(
                Default(devices[device] if applies else "elsewhere", ("made",), order[path], "a reason")
                for path, applies in rows
            ),
        }
        wanted = {"made": op, "kind": family, None: all_}
        forced = {name: _state.Forced(order[p], "here") for name, p in wanted.items() if p < 3}
        state = _state.State(
            forced, None if alias == 3 else _state.Forced(order[alias], "an alias"), simulate
        )
        signature = signatures.Signature("made", devices[device], torch.float32, ((1,),))
        try:
            with (
                mock.patch.multiple(_choose, **made),
                mock.patch.object(_choose._hazards, "several_streams", _answer(streams)),
                mock.patch.object(_choose, "_log_once"),
                _state.resumed(state),
            ):
                choice = _choose.choose(signature)
            outcome = order.index(choice.path) * 10 + _RULES.index(choice.rule)
        except InvalidInputError:
            outcome = 99
        cases.append(
            Case(
                "path selector",
                f"case {number}",
                f"outcome (input {device} {refused} {registered} {able} {lean(simulate)} {op} {family} {all_} "
                f"{alias} {lean(streams)} {times[0]} {times[1]} {times[2]} {lean(rows)}) = {outcome}",
            )
        )
    return cases


def _bits(chance: random.Random, share: float) -> int:
    return sum((chance.random() < share) << i for i in range(3))


def _always(reason: str | None) -> Callable[[Any], str | None]:
    return lambda _: reason


def _answer(value: bool) -> Callable[[], bool]:
    return lambda: value


def _lookup(registry: Any) -> Callable[[str], Any]:
    return lambda op: registry.operations[op]


def _implementation(registry: Any) -> Callable[[str, str, str], Any]:
    def find(op: str, device: str, path: str) -> Any:
        found = registry.implementations
        return found.get((op, device, path)) or found.get((op, "any", path))

    return find


class _Profile:
    """In place of the profile module: these times, whatever the signature."""

    def __init__(self, times: dict[str, float]) -> None:
        self._times = times

    def times(self, signature: Any, sizes: Any) -> dict[str, float]:
        """Seconds by path."""
        return self._times


# ---------------------------------------------------------------- locks


def lock_cases(order: Sequence[tuple[str, str]], rank: dict[str, int]) -> list[Case]:
    """The order in which a run of the code took its locks: each below the next in rank."""
    pairs = [(rank[held], rank[taken]) for held, taken in order]
    return [
        Case("lock order", f"{len(pairs)} pairs", f"{lean(pairs)}.all (fun e => decide (e.1 < e.2)) = true")
    ]
