"""What the kernels' tests share: the device they run on, and the totals at the end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from _cases import TOTALS, reset_allocator
from _mps import compiler

from steelworks import metalsim
from steelworks.kernels.metal import _launch


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a GPU there are no counters."""
    if config.getoption("--kernels-on") == "mps":
        for item in items:
            if isinstance(item, pytest.Function) and "counters" in inspect.getsource(item.function):
                item.add_marker(pytest.mark.skip(reason="counters are metalsim's"))


@pytest.fixture(scope="session", autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    """On an Apple GPU if asked for. Without clang there is nothing to run: the tests fail, and say what to install."""
    if request.config.getoption("--kernels-on") == "mps":
        on_mps = compiler("mps", torch.mps.compile_shader, torch.mps.synchronize)
        _launch._KERNELS = _launch.WriteOnce(on_mps)  # type: ignore[misc]
        return
    from steelworks.metalsim import _toolchain

    try:
        _toolchain.find_compiler()
    except metalsim.errors.ToolchainError as problem:
        pytest.fail(f"no kernel was executed: {problem}")


@pytest.fixture(autouse=True)
def _plain_allocator() -> Iterator[None]:
    """No test leaves its poisoning allocator behind, and torch takes one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    reset_allocator()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many kernel cases ran, by family."""
    if not TOTALS:
        return
    terminalreporter.section("kernel cases")
    for family in sorted(TOTALS):
        total = TOTALS[family]
        terminalreporter.write_line(
            f"{family}: {total.compared} compared with the reference, {total.checked} checked launches"
        )
    terminalreporter.write_line(
        f"all: {sum(t.compared for t in TOTALS.values())} compared, {sum(t.checked for t in TOTALS.values())} checked"
    )
