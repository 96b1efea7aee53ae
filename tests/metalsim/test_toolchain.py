"""The compiler is found or its absence explained; compiled code is kept, once, under concurrency."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
import torch

from steelworks import metalsim
from steelworks.metalsim import _compile, _toolchain
from steelworks.metalsim.errors import ToolchainError

SOURCE = "kernel void set(device float* o, uint i [[thread_position_in_grid]]) {{ o[i] = {}; }}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache but for the runtime and the precompiled headers, which take long to make."""
    used = _toolchain.cache_directory()
    _toolchain.runtime_library()
    _toolchain.header(False)
    fresh = tmp_path / "cache"
    (fresh / "metalsim").mkdir(parents=True)
    for kind in ("runtime", "header", "shim"):
        (fresh / "metalsim" / kind).symlink_to(used / kind)
    header = _toolchain.header(False)
    # The key of the header contains the place of its inputs: stay with the one there is.
    monkeypatch.setattr(_toolchain, "header", lambda check, **_: header)
    monkeypatch.setenv("STEELWORKS_CACHE", str(fresh))
    return fresh / "metalsim"


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources that were really compiled, in order."""
    done: list[str] = []
    real = _compile._build

    def counted(text: str, library: Path, runtime: Path, check: bool, source: str, name: str) -> None:
        done.append(source)
        real(text, library, runtime, check, source, name)

    monkeypatch.setattr(_compile, "_build", counted)
    return done


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def value(library: metalsim.ShaderLibrary) -> float:
    out = torch.zeros(1)
    library.set(out)
    return out.item()


# the compiler


def test_a_missing_compiler_is_explained_with_the_mend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("STEELWORKS_CLANG", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match=r"clang\+\+ 17 or newer.*apt install clang-19.*xcode-select"):
        metalsim.compile_shader(SOURCE.format(1))


def test_the_environment_names_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    used = _toolchain.find_compiler()
    monkeypatch.setenv("STEELWORKS_CLANG", used.path)
    assert _toolchain.find_compiler() == used


def test_a_named_compiler_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELWORKS_CLANG", "no-such-clang")
    with pytest.raises(
        ToolchainError, match="STEELWORKS_CLANG names 'no-such-clang', but there is no such program"
    ):
        _toolchain.find_compiler()


def test_another_compiler_is_no_clang(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEELWORKS_CLANG", script(tmp_path / "gcc", "echo 'g++ 12.2.0'"))
    with pytest.raises(ToolchainError, match=r"is no clang\+\+"):
        _toolchain.find_compiler()


def test_an_old_clang_is_passed_over_and_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script(tmp_path / "clang++", "echo 'Debian clang version 14.0.6'")
    monkeypatch.delenv("STEELWORKS_CLANG", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin-that-is-not")
    with pytest.raises(ToolchainError, match="is clang 14"):
        _toolchain.find_compiler()


def test_apples_version_numbers_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = script(tmp_path / "clang++", "echo 'Apple clang version 16.0.0 (clang-1600.0.26.3)'")
    monkeypatch.setenv("STEELWORKS_CLANG", name)
    assert _toolchain.find_compiler().major == 17


# the cache


def test_a_source_is_compiled_once_and_then_taken_from_disk(cache: Path, builds: list[str]) -> None:
    assert value(metalsim.compile_shader(SOURCE.format(3))) == 3
    assert value(metalsim.compile_shader(SOURCE.format(3))) == 3
    assert len(builds) == 1


def test_another_source_or_mode_or_name_is_another_entry(
    cache: Path, builds: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []
    for source, name in ((SOURCE.format(1), "a"), (SOURCE.format(2), "a"), (SOURCE.format(2), "b")):
        kept.append(_compile.compile_source(source, name=name).path)
    assert len(set(kept)) == len(builds) == 3


def test_parts_that_are_cut_elsewhere_have_another_key() -> None:
    cuts = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), (b"ab", "d")]
    assert len({_toolchain.digest(*parts) for parts in cuts}) == len(cuts)
    assert _toolchain.digest("ab", b"c") == _toolchain.digest(b"ab", "c")


def test_an_entry_is_whole_or_absent(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_compile, "_build", fails)
    with pytest.raises(KeyboardInterrupt):
        metalsim.compile_shader(SOURCE.format(4))
    assert not (cache / "kernels").exists() or list((cache / "kernels").iterdir()) == []


def test_a_failure_is_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _compile._build
    calls: list[int] = []

    def fails_once(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ToolchainError("the disk hiccuped")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_compile, "_build", fails_once)
    with pytest.raises(ToolchainError, match="hiccuped"):
        metalsim.compile_shader(SOURCE.format(5))
    assert value(metalsim.compile_shader(SOURCE.format(5))) == 5


def test_a_cache_that_can_not_be_written_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ToolchainError, match="STEELWORKS_CACHE"):
        monkeypatch.setenv("STEELWORKS_CACHE", str(blocked))
        _toolchain.CACHE.get("kernels", "x", lambda directory: None)


def test_two_makers_of_one_entry_agree_on_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two processes would: the second finds the place taken."""
    monkeypatch.setenv("STEELWORKS_CACHE", str(tmp_path))
    first, second = _toolchain.Cache(), _toolchain.Cache()

    def slow(directory: Path) -> None:
        first.get("kind", "key", lambda d: (d / "by").write_text("first") and None)
        (directory / "by").write_text("second")

    final = second.get("kind", "key", slow)
    assert (final / "by").read_text() == "first"
    assert [p.name for p in final.parent.iterdir()] == ["key"]


# sixteen threads at once


def at_once(jobs: list[Callable[[], object]]) -> list[object]:
    gate = threading.Barrier(len(jobs))
    results: list[object] = [None] * len(jobs)

    def run(index: int) -> None:
        gate.wait(30)
        try:
            results[index] = jobs[index]()
        except BaseException as problem:
            results[index] = problem

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_sixteen_threads_compile_one_source_once(cache: Path, builds: list[str]) -> None:
    results = at_once([lambda: value(metalsim.compile_shader(SOURCE.format(6)))] * 16)
    assert results == [6.0] * 16
    assert len(builds) == 1


def test_a_thread_does_not_wait_for_another_threads_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one entry is being made, others are made and finished."""
    monkeypatch.setenv("STEELWORKS_CACHE", str(tmp_path))
    cache, began, finish = _toolchain.Cache(), threading.Event(), threading.Event()

    def long(directory: Path) -> None:
        began.set()
        assert finish.wait(60)

    slow = threading.Thread(target=cache.get, args=("kind", "slow", long))
    slow.start()
    assert began.wait(60)
    quick = at_once([lambda i=i: cache.get("kind", f"quick{i}", lambda d: None) for i in range(15)])
    assert sorted(Path(str(q)).name for q in quick) == sorted(f"quick{i}" for i in range(15))
    assert slow.is_alive()
    finish.set()
    slow.join()


def test_waiters_get_the_makers_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELWORKS_CACHE", str(tmp_path))
    cache, began, finish = _toolchain.Cache(), threading.Event(), threading.Event()

    def fails(directory: Path) -> None:
        began.set()
        assert finish.wait(60)
        raise ToolchainError("no")

    results: list[object] = []

    def ask() -> None:
        try:
            cache.get("kind", "key", fails)
        except ToolchainError as problem:
            results.append(str(problem))

    first, second = threading.Thread(target=ask), threading.Thread(target=ask)
    first.start()
    assert began.wait(60)
    second.start()
    finish.set()
    first.join()
    second.join()
    assert results == ["no", "no"]


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEELWORKS_CACHE", str(tmp_path))
    assert _toolchain.cache_directory() == tmp_path / "metalsim"
    monkeypatch.delenv("STEELWORKS_CACHE")
    assert _toolchain.cache_directory() == platformdirs.user_cache_path("steelworks") / "metalsim"
