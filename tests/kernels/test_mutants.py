"""How the mutants of the Metal kernels are found (``verification/mutants/metal``; ``make mutants`` runs them)."""

from __future__ import annotations

from pathlib import Path

from verification.mutants.metal.find import Header, Mutant, find, read_headers

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
