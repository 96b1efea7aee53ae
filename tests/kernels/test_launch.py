"""The launcher: sources, what is bound, what is refused, and first use by many threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from steelworks import metalsim
from steelworks.errors import InvalidInputError
from steelworks.kernels.metal import _launch
from steelworks.kernels.metal._launch import Variant, WriteOnce, launch, prepare, source_of

THREADS = 16
#: Long enough for any compile; a wait that ends by it is a failure.
PATIENCE = 60.0

SHARED = """
#pragma once
#include <metal_stdlib>
using namespace metal;
inline float scaled(float x, int factor) { return x * factor; }
"""
FAMILY = """
#pragma once
#include "toy/shared.h"
#include "shared.h"
typedef struct { int offset; int step; } ToyParams;

template <int FACTOR>
[[kernel]] void toy(device const float* x [[buffer(0)]], device float* out [[buffer(1)]],
                    constant ToyParams& p [[buffer(2)]], constant float& add [[buffer(3)]],
                    uint i [[thread_position_in_grid]]) {
  out[i] = scaled(x[i], FACTOR) + float(p.offset + p.step * int(i)) + add;
}
"""


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A family of its own, with nothing compiled yet; where its headers lie."""
    folder = tmp_path.resolve() / "toy"
    folder.mkdir()
    (folder / "shared.h").write_text(SHARED)
    (folder / "toy.h").write_text(FAMILY)
    monkeypatch.setattr(_launch, "ROOT", folder.parent)
    monkeypatch.setattr(_launch, "_KERNELS", WriteOnce(_launch._compile))
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The variants that were compiled, in order of their starts."""
    names: list[str] = []
    real = metalsim.compile_shader

    def recorded(source: str, *, name: str) -> metalsim.ShaderLibrary:
        names.append(name)
        return real(source, name=name)

    monkeypatch.setattr(metalsim, "compile_shader", recorded)
    yield names


def toy(factor: int) -> Variant:
    return Variant("toy", "toy", (factor,))


def run(factor: int, count: int = 5) -> torch.Tensor:
    x, out = torch.arange(float(count)), torch.empty(count)
    launch(toy(factor), x, out, [100, 10], 0.5, threads=(count,), group=(count,))
    return out


def expected(factor: int, count: int = 5) -> torch.Tensor:
    return torch.arange(float(count)) * (factor + 10) + 100.5


def together(work: Callable[[int], Any]) -> list[Any]:
    """``work(i)`` in 16 threads that begin at the same moment."""
    start = threading.Barrier(THREADS)

    def one(i: int) -> Any:
        start.wait(PATIENCE)
        return work(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


# --- first use by many threads ----------------------------------------------------------------------------------------


def test_sixteen_threads_at_first_use_compile_each_variant_once(family: Path, compiled: list[str]) -> None:
    results = together(lambda i: run(i % 4))
    assert sorted(compiled) == ["toy_0", "toy_1", "toy_2", "toy_3"]
    for i, result in enumerate(results):
        assert torch.equal(result, expected(i % 4))


def test_nobody_waits_for_the_compile_of_another_variant(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, began, others_done = metalsim.compile_shader, threading.Event(), threading.Event()
    in_time: list[bool] = []

    def held(source: str, *, name: str) -> metalsim.ShaderLibrary:
        if name == "toy_0":
            began.set()
            in_time.append(others_done.wait(PATIENCE))
        return real(source, name=name)

    monkeypatch.setattr(metalsim, "compile_shader", held)
    with ThreadPoolExecutor(THREADS) as pool:
        first = pool.submit(run, 0)
        assert began.wait(PATIENCE)
        others = [pool.submit(run, 1 + i % 3) for i in range(THREADS - 1)]
        for i, other in enumerate(others):
            assert torch.equal(other.result(PATIENCE), expected(1 + i % 3))
        assert not first.done(), "the first variant is still being compiled"
        others_done.set()
        assert torch.equal(first.result(PATIENCE), expected(0))
    assert in_time == [True], "the others finished while the first was being compiled"


def test_values_are_made_once_however_many_ask_while_they_are_made() -> None:
    asked, calls = threading.Semaphore(0), []

    def make(keys: Any) -> list[str]:
        calls.append(tuple(keys))
        for _ in range(THREADS):  # all have asked, or are about to
            assert asked.acquire(timeout=PATIENCE)
        return [f"value of {key}" for key in keys]

    made = WriteOnce(make)

    def ask(_: int) -> str:
        asked.release()
        return made.get("key")

    assert together(ask) == ["value of key"] * THREADS
    assert calls == [("key",)]


def test_groups_of_keys_that_overlap_are_made_once_and_without_a_deadlock() -> None:
    calls: list[str] = []
    made: WriteOnce[str, str] = WriteOnce(lambda keys: (calls.extend(keys), [k.upper() for k in keys])[1])
    groups = ["abcd", "dcba", "bd", "ca"]
    results = together(lambda i: made.get_all(list(groups[i % 4])))
    assert results == [list(groups[i % 4].upper()) for i in range(THREADS)]
    assert sorted(calls) == ["a", "b", "c", "d"]


def test_a_failure_reaches_all_that_wait_and_the_next_call_tries_again() -> None:
    asked, fails = threading.Semaphore(0), [True]

    def make(keys: Any) -> list[int]:
        if not fails:
            return [7 for _ in keys]
        for _ in range(THREADS):
            assert asked.acquire(timeout=PATIENCE)
        raise OSError("no space")

    made = WriteOnce(make)

    def ask(_: int) -> str:
        asked.release()
        try:
            return str(made.get("key"))
        except OSError as problem:
            fails.clear()
            return str(problem)

    # A thread that asks after the failure gets the value: the failure is not kept.
    assert set(together(ask)) <= {"no space", "7"}
    assert made.get("key") == 7


def test_a_failure_of_one_group_leaves_other_keys_alone() -> None:
    def make(keys: Any) -> list[int]:
        if "bad" in keys:
            raise OSError("bad")
        return [1 for _ in keys]

    made = WriteOnce(make)
    assert made.get("good") == 1
    with pytest.raises(OSError, match="bad"):
        made.get_all(["good", "bad"])
    assert made.get("good") == 1


def test_prepare_compiles_variants_of_one_header_in_one_go(family: Path, compiled: list[str]) -> None:
    prepare(toy(3), toy(4), toy(5))
    assert compiled == ["toy_3"]
    assert torch.equal(run(4), expected(4))
    assert torch.equal(run(5), expected(5))
    prepare(toy(3), toy(6))
    assert compiled == ["toy_3", "toy_6"]


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_variant_names_its_template_arguments() -> None:
    assert Variant("gemm", "gemm_tiled", ("float", 64, True)).name == "gemm_tiled_float_64_true"
    assert Variant("f", "k", ("Sum<float>", False)).name == "k_Sumfloat_false"


def test_a_source_has_each_header_once_and_the_instantiation_at_its_end(family: Path) -> None:
    source = source_of(toy(2))
    assert source.count("inline float scaled") == 1
    assert '#include "' not in source and "#pragma once" not in source
    assert source.rstrip().endswith('template [[host_name("toy_2")]] [[kernel]] decltype(toy<2>) toy<2>;')


def test_an_error_in_a_header_names_its_file_and_line(family: Path) -> None:
    (family / "shared.h").write_text(SHARED + "\nint broken() { return missing; }\n")
    with pytest.raises(SyntaxError, match="missing") as caught:
        prepare(toy(1))
    assert (caught.value.filename, caught.value.lineno) == ("toy/shared.h", SHARED.count("\n") + 2)


def test_an_include_that_is_not_there_is_named_with_its_place(family: Path) -> None:
    (family / "toy.h").write_text('#pragma once\n#include "toy/none.h"\n')
    with pytest.raises(InvalidInputError, match=r"toy/toy\.h:2 includes 'toy/none\.h'"):
        source_of(toy(1))


def test_includes_stay_within_the_kernels_folder(family: Path) -> None:
    (family.parent.parent / "outside.h").write_text("int x;")
    (family / "toy.h").write_text('#include "../../outside.h"\n')
    with pytest.raises(InvalidInputError, match="includes"):
        source_of(toy(1))


def test_a_family_without_a_header_is_named(family: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"'none/none\.h', which is not there"):
        source_of(Variant("none", "kernel"))


# --- arguments --------------------------------------------------------------------------------------------------------


def test_ints_are_bound_as_int32_and_floats_as_float32(family: Path) -> None:
    x, out = torch.arange(3.0), torch.empty(3)
    launch(toy(1), x, out, (-5, 2), 0.25, threads=(3,), group=(3,))
    assert torch.equal(out, torch.tensor([-4.75, -1.75, 1.25]))


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_int_beyond_int32_is_refused(family: Path, value: int) -> None:
    x = torch.zeros(3)
    with pytest.raises(InvalidInputError, match="value 1 of argument 2 .* does not fit int32"):
        launch(toy(1), x, x, [0, value], 0.0, threads=(3,), group=(3,))


def test_a_missing_pointer_is_bound_to_something(family: Path) -> None:
    (family / "toy.h").write_text(
        FAMILY.replace("out[i] = scaled(x[i], FACTOR) +", "out[i] = (FACTOR > 0 ? x[i] : 0.0f) +")
    )
    out = torch.empty(3)
    launch(toy(0), None, out, [1, 1], 0.0, threads=(3,), group=(3,))
    assert torch.equal(out, torch.tensor([1.0, 2.0, 3.0]))


def test_a_grid_with_a_zero_launches_and_compiles_nothing(family: Path, compiled: list[str]) -> None:
    launch(toy(1), torch.empty(0), torch.empty(0), [0, 0], 0.0, threads=(0,), group=(32,))
    assert compiled == []


def test_a_launch_without_a_tensor_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="without a tensor"):
        launch(toy(1), 1, 2.0, threads=(1,), group=(1,))


def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'cpu' and 'meta'"):
        launch(toy(1), torch.empty(1), torch.empty(1, device="meta"), threads=(1,), group=(1,))


def test_a_device_without_metal_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="run on 'mps', and on 'cpu' through metalsim"):
        prepare(toy(1), device="meta")


def test_a_dtype_that_metal_lacks_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"torch\.float64"):
        _launch.metal_type(torch.float64)


def test_tensors_on_mps_go_through_torch(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        toy_1 = "the kernel"

    sources: list[str] = []
    monkeypatch.setattr(torch.mps, "compile_shader", lambda source: (sources.append(source), Library())[1])
    prepare(toy(1), device="mps")
    assert _launch._KERNELS.get(("mps", toy(1))) == "the kernel"
    assert sources == [source_of(toy(1))]
