"""What the kernels' tests share: the device they run on, and the totals at the end."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from _cases import TOTALS, reset_allocator, total
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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With pytest-xdist, what a worker counted goes to the process that prints."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["kernel_cases"] = {family: (t.compared, t.checked) for family, t in TOTALS.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist has ended: its counts are added."""
    for family, (compared, checked) in getattr(node, "workeroutput", {}).get("kernel_cases", {}).items():
        counts = total(family)
        counts.compared += compared
        counts.checked += checked


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
