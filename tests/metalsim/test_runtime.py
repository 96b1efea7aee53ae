"""The simulator's runtime by itself: C++ kernels, compiled with and without instrumentation."""

from __future__ import annotations

import itertools
import math
import mmap
import platform
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from runtime_driver import (
    CONSTANT,
    FORWARD,
    OUTPUT,
    REVERSE,
    RING,
    RUN_AHEAD,
    SHUFFLED,
    WRITE_MANY,
    Given,
    Runner,
    compile_kernels,
    compiler_missing,
)

pytestmark = pytest.mark.skipif(compiler_missing(), reason="needs clang++ 17 or newer")

SCHEDULES = list(itertools.product((RING, RUN_AHEAD), (FORWARD, REVERSE, SHUFFLED)))
SELF_WORDS = 7 * 3 + 9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(Path(tmp_path_factory.mktemp("runtime")))


def floats(count: int) -> torch.Tensor:
    return torch.zeros(count)


def words(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


# ---- execution


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_thread_of_the_grid_runs_once(run: Runner, workers: int) -> None:
    source, result = torch.arange(100_003, dtype=torch.float32), floats(100_003)
    outcome = run("add_one", source, result, threads=100_003, group=256, workers=workers)
    assert torch.equal(result, source + 1)
    assert (outcome.counters.threads, outcome.counters.groups) == (100_003, 391)


def test_a_thread_knows_its_place_in_a_grid_with_ragged_edges(run: Runner) -> None:
    grid, group = (7, 5, 3), (4, 2, 2)
    result = words(math.prod(grid) * SELF_WORDS)
    run("describe", result, threads=grid, group=group)
    for place, row in zip(
        itertools.product(*(range(n) for n in reversed(grid))),
        result.view(-1, SELF_WORDS).tolist(),
        strict=True,
    ):
        at = place[::-1]
        inside = [a % g for a, g in zip(at, group, strict=True)]
        number = [a // g for a, g in zip(at, group, strict=True)]
        size = [min(g, n - k * g) for g, n, k in zip(group, grid, number, strict=True)]
        index = (inside[2] * size[1] + inside[1]) * size[0] + inside[0]
        threads = math.prod(size)
        assert row[:21] == [*at, *inside, *number, *grid, 2, 3, 2, *size, *group]
        assert row[21:] == [
            index,
            index % 32,
            index // 32,
            (threads + 31) // 32,
            1,
            32,
            index % 4,
            index // 4,
            (threads + 3) // 4,
        ]


@pytest.mark.parametrize(("schedule", "order"), SCHEDULES)
@pytest.mark.parametrize("check", [False, True])
def test_barriers_and_exchanges_keep_threads_together(
    run: Runner, schedule: int, order: int, check: bool
) -> None:
    result = floats(1000)
    outcome = run(
        "mixed", result, threads=1000, group=300, schedule=schedule, order=order, seed=3, check=check
    )
    groups = [torch.arange(n).roll(-40) for n in (300, 300, 300, 100)]
    assert torch.equal(result, torch.cat(groups).float())
    assert not outcome.findings
    assert outcome.counters.barriers == 4 * 80
    assert outcome.counters.simd_exchanges == (10 * 3 + 4) * 40


def test_a_group_of_1024_threads_runs(run: Runner) -> None:
    result = floats(2048)
    run("mixed", result, threads=2048, group=1024, schedule=RUN_AHEAD)
    assert torch.equal(result, torch.arange(1024).roll(-40).float().repeat(2))


def test_ten_thousand_groups_with_barriers_run_on_two_workers(run: Runner) -> None:
    source = torch.arange(320_000, dtype=torch.float32)
    result = floats(320_000)
    outcome = run("reversed_ok", source, result, threads=320_000, group=32, workers=2)
    assert outcome.counters.barriers == 10_000
    assert torch.equal(result, source.view(-1, 32).flip(1).reshape(-1))


@pytest.mark.parametrize("count", [1, 31, 33, 75])
def test_a_partial_simdgroup_exchanges_among_the_lanes_it_has(run: Runner, count: int) -> None:
    result = floats(count)
    assert not run("lane_sum", result, threads=count, group=count).findings
    expected = [
        sum(range(min(32, count - start)))
        for start in range(0, count, 32)
        for _ in range(min(32, count - start))
    ]
    assert result.tolist() == expected


def test_lanes_that_wait_at_a_threadgroup_barrier_are_not_missed_in_an_exchange(run: Runner) -> None:
    for schedule, order in SCHEDULES:
        result = floats(64)
        outcome = run(
            "some_lanes_sum", result, threads=64, group=64, check=True, schedule=schedule, order=order
        )
        assert outcome.findings == []
        assert result.tolist() == ([8.0] * 8 + [0.0] * 24) * 2


@pytest.mark.parametrize("check", [False, True])
def test_a_combination_is_made_once_for_all_lanes(run: Runner, check: bool) -> None:
    result = floats(40)
    outcome = run("combined_sum", result, threads=40, group=40, check=check)
    assert result.tolist() == [496.0 + i for i in range(32)] + [28.0 + i for i in range(8)]
    assert (outcome.findings, outcome.counters.simd_exchanges) == ([], 2)


def test_a_quadgroup_exchanges_among_its_four_lanes(run: Runner) -> None:
    result = floats(42)
    assert not run("quad_sum", result, threads=42, group=42).findings
    assert result.tolist() == [sum(range(i // 4 * 4, min(42, i // 4 * 4 + 4))) for i in range(42)]


def test_an_exchange_carries_64_bytes_a_lane(run: Runner) -> None:
    result = floats(64)
    run("wide_exchange", result, threads=64, group=64)
    assert result.tolist() == [(31 - i % 32) * 16 + 5 for i in range(64)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("check", [False, True])
def test_atomics_do_what_they_say(run: Runner, workers: int, check: bool) -> None:
    count = 4096
    result = words(16)
    result[5] = -1
    run("atomics", Given(result), threads=count, group=64, workers=workers, check=check)
    total = count * (count - 1) // 2
    assert result[:7].tolist() == [total, -total, 0, count - 1, -1, 0, 0]
    assert result[8] == 2 * count
    assert result[10:12].view(torch.int64).item() == count << 33
    assert result[12:14].tolist() == [1, -2]
    # Sums of integers up to 2^23 with steps below 2^12: exact up to 2^24, rounded to even above.
    assert result[7:8].view(torch.float32).item() == pytest.approx(total, rel=1e-4)


def trace(run: Runner, **options: int) -> list[int]:
    count, log = words(1), words(3 * 128)
    run("order_of_events", count, log, threads=128, group=64, **options)
    assert count.item() == 3 * 128
    return [int(x) for x in log]


def test_the_ring_takes_simdgroups_in_turn(run: Runner) -> None:
    first, second = list(range(32)), list(range(32, 64))
    assert trace(run, schedule=RING)[:192] == first + second + first + second + first + second


def test_running_ahead_stays_in_a_simdgroup_until_a_barrier_and_goes_on_with_the_last_to_come(
    run: Runner,
) -> None:
    first, second = list(range(32)), list(range(32, 64))
    assert trace(run, schedule=RUN_AHEAD)[:192] == first + first + second + second + second + first


def test_reverse_order_reverses_lanes_simdgroups_and_groups(run: Runner) -> None:
    assert trace(run, schedule=RING, order=REVERSE)[:64] == list(range(127, 63, -1))


def test_shuffled_order_depends_on_the_seed_and_on_nothing_else(run: Runner) -> None:
    same = [trace(run, order=SHUFFLED, seed=5) for _ in range(2)]
    other = trace(run, order=SHUFFLED, seed=6)
    assert same[0] == same[1] != other
    assert sorted(same[0]) == sorted(other) == sorted(list(range(128)) * 3)


def test_a_poll_lets_the_thread_run_that_it_waits_for(run: Runner) -> None:
    flag = words(1)
    assert not run("polls_in_group", flag, threads=256, group=256, schedule=RUN_AHEAD).error
    assert flag.item() == 1


def test_a_poll_for_what_never_comes_is_an_error_and_no_hang(run: Runner) -> None:
    outcome = run("polls_for_ever", words(1), threads=2, group=2)
    assert "no progress" in outcome.error
    assert run("add_one", floats(64), floats(64), threads=64, group=64).error == ""


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors divide by zero in silence"
)
def test_a_division_by_zero_is_an_error_and_no_crash(run: Runner) -> None:
    assert "division" in run("divides_by_zero", words(8), threads=8, group=8).error


@pytest.mark.parametrize(
    ("group", "message"),
    [((1025, 1, 1), "at most 1024"), ((32, 33, 1), "at most 1024"), ((32, 0, 1), "at least 1")],
)
def test_an_impossible_group_is_an_error(run: Runner, group: tuple[int, int, int], message: str) -> None:
    assert message in run("add_one", floats(1), floats(1), threads=1, group=group).error


def test_an_empty_grid_runs_nothing(run: Runner) -> None:
    outcome = run("add_one", floats(1), floats(1), threads=(0, 1, 1), group=32)
    assert (outcome.error, outcome.counters.threads) == ("", 0)


def test_several_runs_at_once_do_not_meet(run: Runner) -> None:
    problems: list[str] = []

    def work(number: int) -> None:
        for check in (False, True, False):
            result = floats(700)
            outcome = run("mixed", result, threads=700, group=100 + number, check=check, workers=2)
            if outcome.findings or outcome.counters.threads != 700 or result.sum().item() == 0:
                problems.append(f"{number}: {outcome}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_counters_count_bytes_by_memory_and_events_once_for_those_who_share_them(run: Runner) -> None:
    outcome = run(
        "counted", floats(64), floats(64), Given(floats(1), CONSTANT), threads=64, group=64, check=True
    )
    counters = outcome.counters
    assert (counters.device_read, counters.device_written, counters.constant_read) == (256, 256, 256)
    assert (counters.group_read, counters.group_written) == (256, 256)
    assert (counters.barriers, counters.simdgroup_barriers, counters.simd_exchanges) == (1, 2, 2)
    assert (counters.mmas, counters.group_memory_bytes) == (2, 256)


# ---- findings: a defect is found under every schedule, and its corrected twin is silent under every schedule


@dataclass(frozen=True)
class Case:
    """A kernel with a defect: what it gets, and what must be found. ``sizes`` are of float32 buffers."""

    kernel: str
    kind: str
    variable: str
    sizes: tuple[int, ...]
    threads: int = 64
    group: int = 64
    flags: dict[int, int] = field(default_factory=dict)

    def buffers(self) -> list[Given]:
        return [Given(floats(size), self.flags.get(i, 0), f"b{i}") for i, size in enumerate(self.sizes)]


CASES = [
    Case("reversed", "race_threadgroup", "tile", (256, 256), 256, 256),
    Case("wrong_flag", "race_threadgroup", "tile", (256,), 256, 256),
    Case("write_after_read", "race_threadgroup", "tile", (256,), 256, 256),
    Case("simdgroup_only", "race_threadgroup", "tile", (256,), 256, 256),
    Case("halves_of_words", "race_threadgroup", "tile", (64,)),
    Case("words_read_as_halves", "race_threadgroup", "tile", (64,)),
    Case("read_then_written_elsewhere", "race_between_groups", "b0", (2, 128), 128, 64),
    Case("one_writer", "race_threadgroup", "tile", (256,), 256, 256),
    Case("device_exchange", "race_device", "b0", (512, 512), 512, 256),
    Case("atomic_and_plain", "race_device", "b0", (1,)),
    Case("groups_collide", "race_between_groups", "b0", (256,), 256, 64),
    Case("reads_other_group", "race_between_groups", "b0", (256, 256), 256, 64),
    Case("last_group_sums", "race_between_groups", "b0", (8, 1, 1), 256, 32),
    Case("store_and_add", "order_dependent_atomic", "count", (64,)),
    Case("stores_by_many", "order_dependent_atomic", "b0", (1,)),
    Case("exchange_by_two", "order_dependent_atomic", "b0", (1,)),
    Case("reads_past", "out_of_bounds", "b0", (64, 64)),
    Case("writes_past", "out_of_bounds", "b0", (64,)),
    Case("writes_before", "out_of_bounds", "b0", (32,)),
    Case("strays_far", "out_of_bounds", "b0", (64,)),
    Case("null_pointer", "out_of_bounds", "", (64,)),
    Case("tile_too_small", "out_of_bounds", "tile", (64,)),
    Case("tile_negative", "out_of_bounds", "tile", (64,)),
    Case("struct_copy", "out_of_bounds", "b0", (64, 64), 4, 4),
    Case("tile_unwritten", "uninitialised", "tile", (64,)),
    Case("tile_stale", "uninitialised", "tile", (128,), 128, 64),
    Case("output_read_first", "uninitialised", "b0", (64,), flags={0: OUTPUT}),
    Case("vector_misaligned", "misaligned", "b0", (64, 16), 4, 4),
    Case("word_misaligned", "misaligned", "b0", (65, 64)),
    Case("long_misaligned", "misaligned", "b0", (130, 128)),
    Case("one_missing", "unwritten", "b0", (64,), flags={0: OUTPUT}),
    Case("one_twice", "written_twice", "b0", (64,), flags={0: OUTPUT}),
    Case("writes_constant", "write_to_constant", "b1", (64, 1), flags={1: CONSTANT}),
    Case("too_much_memory", "group_memory_limit_exceeded", "other", ()),
    Case("deep_calls", "stack_overflow", "", (64,)),
    Case("branches_differ", "divergent_barrier", "", (64,)),
    Case("returns_early", "divergent_barrier", "", (64,)),
    Case("trips_differ", "divergent_barrier", "", (64,)),
    Case("simd_branches", "divergent_simd", "", (64,)),
    Case("reads_absent_lane", "absent_lane", "", (40,), 40, 40),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_a_defect_is_found(run: Runner, case: Case) -> None:
    for schedule, order in SCHEDULES:
        outcome = run(
            case.kernel,
            *case.buffers(),
            threads=case.threads,
            group=case.group,
            check=True,
            schedule=schedule,
            order=order,
            seed=11,
        )
        assert outcome.error == ""
        # What should have been written in time is, under some schedules, not yet written at all.
        others = {"uninitialised"} if case.kind in ("race_threadgroup", "order_dependent_atomic") else set()
        assert set(outcome.kinds) - others == {case.kind}
        assert {finding.variable for finding in outcome.findings} == {case.variable}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.kernel)
def test_the_corrected_twin_is_silent(run: Runner, case: Case) -> None:
    for schedule, order in SCHEDULES:
        outcome = run(
            case.kernel + "_ok",
            *case.buffers(),
            threads=case.threads,
            group=case.group,
            check=True,
            schedule=schedule,
            order=order,
            seed=11,
        )
        assert (outcome.error, outcome.findings) == ("", [])


DIVERGENT = [
    case
    for case in CASES
    if case.kind in ("divergent_barrier", "divergent_simd", "absent_lane", "stack_overflow")
]


@pytest.mark.parametrize("case", DIVERGENT, ids=lambda case: case.kernel)
def test_divergence_and_overflow_are_found_without_instrumentation(run: Runner, case: Case) -> None:
    outcome = run(case.kernel, *case.buffers(), threads=case.threads, group=case.group)
    assert (outcome.error, outcome.kinds) == ("", [case.kind])


def test_a_race_names_both_threads(run: Runner) -> None:
    race = run("groups_collide", floats(256), threads=256, group=64, check=True).findings[0]
    assert (race.first.group.x, race.second.group.x) == (0, 1)
    assert (race.first.thread.x, race.second.thread.x) == (0, 0)
    assert race.first.is_write and race.second.is_write
    assert race.first.pc and race.second.pc
    assert race.count == 3 * 64


def test_a_divergent_barrier_names_both_places(run: Runner) -> None:
    finding = run("branches_differ", floats(64), threads=64, group=64).only("divergent_barrier")
    lines = {finding.first.site.contents.line, finding.second.site.contents.line}
    assert len(lines) == 2
    assert {finding.first.thread.x < 40, finding.second.thread.x < 40} == {True, False}


def test_out_of_bounds_tells_the_distance(run: Runner) -> None:
    past = run("writes_past", floats(64), threads=64, group=64, check=True).only("out_of_bounds")
    before = run("writes_before", floats(32), threads=64, group=64, check=True).only("out_of_bounds")
    assert (past.distance, past.first.is_write, past.first.thread.x) == (12, 1, 3)
    assert before.distance == -6


def test_unwritten_and_written_twice_tell_how_many_bytes_and_where(run: Runner) -> None:
    missing = run("one_missing", Given(floats(64), OUTPUT), threads=64, group=64, check=True).only(
        "unwritten"
    )
    twice = run("one_twice", Given(floats(64), OUTPUT), threads=64, group=64, check=True).only(
        "written_twice"
    )
    assert (missing.bytes, missing.offset, missing.count) == (8, 24, 2)
    assert (twice.bytes, twice.offset, twice.count) == (4, 20, 1)


def test_an_output_that_may_be_written_often_is_not_reported(run: Runner) -> None:
    outcome = run("one_twice", Given(floats(64), OUTPUT | WRITE_MANY), threads=64, group=64, check=True)
    assert outcome.findings == []


def test_an_output_that_no_thread_touches_is_unwritten(run: Runner) -> None:
    outcome = run(
        "add_one", floats(8), floats(8), Given(floats(3), OUTPUT, "idle"), threads=8, group=8, check=True
    )
    assert outcome.only("unwritten").bytes == 12


def test_memory_beside_a_buffer_stays_as_it_was(run: Runner) -> None:
    whole = floats(96)
    outcome = run("writes_past", Given(whole[16:80]), threads=64, group=64, check=True)
    assert outcome.kinds == ["out_of_bounds"]
    assert whole.tolist() == [0.0] * 16 + [1.0] * 64 + [0.0] * 16


def test_a_thread_that_strays_far_ends_and_the_others_go_on(run: Runner) -> None:
    result = floats(64)
    run("strays_far", result, threads=64, group=64, check=True)
    assert result.tolist() == [1.0, 0.0] + [1.0] * 62


def test_without_instrumentation_a_fault_ends_one_thread(run: Runner) -> None:
    result = floats(64)
    outcome = run("null_pointer", result, threads=64, group=64)
    assert outcome.kinds == ["out_of_bounds"]
    assert result.tolist() == [1.0, 0.0] + [1.0] * 62


def test_a_thread_out_of_stack_ends_and_the_others_go_on(run: Runner) -> None:
    for check in (False, True):
        result = words(64)
        outcome = run("deep_calls", result, threads=64, group=64, check=check)
        assert outcome.kinds == ["stack_overflow"]
        assert result.tolist() == [1] * 3 + [0] + [1] * 60


def test_a_larger_stack_is_enough_for_deep_calls(run: Runner) -> None:
    outcome = run("deep_calls", words(64), threads=64, group=64, stack_bytes=8 << 20)
    assert outcome.findings == []


def test_buffers_that_share_memory_stay_shared(run: Runner) -> None:
    data = torch.arange(64, dtype=torch.float32)
    outcome = run("in_place", Given(data), Given(data), threads=64, group=64, check=True)
    assert outcome.findings == []
    assert torch.equal(data, torch.arange(64, dtype=torch.float32) * 2)


def test_overlapping_views_are_seen_as_one_memory(run: Runner) -> None:
    data = torch.ones(65)
    outcome = run(
        "in_place",
        Given(data[1:], name="from"),
        Given(data[:64], name="to"),
        threads=64,
        group=64,
        check=True,
    )
    assert outcome.kinds == ["race_device"]


def test_ten_thousand_groups_are_checked(run: Runner) -> None:
    outcome = run("groups_collide_ok", floats(40_000), threads=40_000, group=4, check=True)
    assert (outcome.counters.groups, outcome.findings) == (10_000, [])
    assert (
        run("groups_collide", floats(40_000), threads=40_000, group=4, check=True).findings[0].count == 39_996
    )


def test_what_one_run_left_is_no_concern_of_the_next(run: Runner) -> None:
    for _ in range(3):
        outcome = run("output_read_first", Given(floats(64), OUTPUT), threads=64, group=64, check=True)
        assert outcome.only("uninitialised").count == 64
        assert (
            run("one_twice", Given(floats(64), OUTPUT), threads=64, group=64, check=True).findings[0].count
            == 1
        )


def test_what_a_run_remembers_of_one_buffer_is_not_taken_for_that_of_another(run: Runner) -> None:
    # A size of its own: its records then can't lie in memory that an earlier run has left.
    buffers = [words(5 << 12) for _ in range(6)]
    assert run("ever_finer", *buffers, threads=64, group=64, check=True).findings == []


@pytest.mark.parametrize("check", [False, True])
def test_threadgroup_memory_starts_as_nan_in_each_group(run: Runner, check: bool) -> None:
    result = floats(192)
    run("tile_stale", result, threads=192, group=64, check=check)
    assert result[:64].tolist() == [1.0] * 64
    assert result[64:].isnan().all()


def test_a_buffer_that_is_only_read_is_not_written_back(run: Runner) -> None:
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the memory can't be written: that is the point
        source = torch.frombuffer(memory, dtype=torch.float32, count=64)
    result = floats(64)
    assert not run("add_one", source, result, threads=64, group=64, check=True).findings
    assert result.tolist() == [1.0] * 64


def test_equal_findings_are_counted_and_others_limited(run: Runner) -> None:
    outcome = run("atomic_and_plain", floats(1), threads=64, group=64, check=True)
    assert len(outcome.findings) > 1
    assert (
        len(run("atomic_and_plain", floats(1), threads=64, group=64, check=True, max_findings=1).findings)
        == 1
    )


ARRAYS = """
#include "metalsim.h"
static const int table[4] = {1, 2, 3, 4};
struct alignas(16) Vector { float x, y, z, w; };
extern "C" void past_a_table(void *const *b, const ms_thread *self) {
    ((int *)b[0])[self->thread_position_in_grid.x] = table[self->thread_position_in_grid.x];
}
extern "C" void vector_at_word(void *const *b, const ms_thread *self) {
    const float *from = (const float *)b[0] + self->thread_position_in_grid.x;
    ((float *)b[1])[self->thread_position_in_grid.x] = ((const Vector *)from)->y;
}
"""


def test_clangs_own_checks_of_bounds_and_alignment_become_findings(run: Runner, tmp_path: Path) -> None:
    library = compile_kernels(tmp_path, ARRAYS, "-fsanitize=bounds,alignment")
    past = run("past_a_table", words(5), threads=5, group=5, library=library).only("out_of_bounds")
    word = run("vector_at_word", floats(16), floats(4), threads=4, group=4, library=library).only(
        "misaligned"
    )
    assert "index 4" in past.detail
    assert (word.bytes, word.count) == (16, 3)


def test_checking_leaves_results_as_they_are(run: Runner) -> None:
    source = torch.rand(1000)
    plain, checked = floats(1000), floats(1000)
    run("reversed_ok", source, plain, threads=1000, group=250)
    run("reversed_ok", source, checked, threads=1000, group=250, check=True)
    assert torch.equal(plain, checked)
