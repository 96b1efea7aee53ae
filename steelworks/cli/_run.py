"""What ``demo`` and ``bench`` have in common once they have a workload: measure, show, write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer
from rich.console import Console

from steelworks.cli._compare import Settings, compare
from steelworks.cli._options import PLOT_SUFFIXES, require_extra, require_writable
from steelworks.cli._report import judge, progress_bars, show, show_verdict, write_json
from steelworks.cli._workload import Workload


def check_outputs(plot: Path | None, json_file: Path | None) -> None:
    """Raise an error now if a file could not be written at the end."""
    require_writable(plot, "--plot", PLOT_SUFFIXES)
    require_writable(json_file, "--json")
    if plot is not None:
        require_extra("demo", "--plot", only=("matplotlib",))


def run_comparison(
    command: str,
    load: Callable[[], tuple[Workload, Settings]],
    plot: Path | None,
    json_file: Path | None,
) -> None:
    """Measure, print the table and the verdict, write the files; exit status 1 if the queue failed."""
    console = Console()
    with console.status("loading the model and the requests"):
        workload, settings = load()
    heading = f"{command}: {workload.title}, {settings.callers} threads, on {settings.device}"
    console.print(heading, highlight=False, soft_wrap=True)
    with progress_bars(console) as listener:
        comparison = compare(workload, settings, listener)
    verdict = judge(comparison, settings)
    show(console, comparison, settings)
    if json_file is not None:
        write_json(json_file, command, workload.title, comparison, settings)
        console.print(f"figures: {json_file}", highlight=False, soft_wrap=True)
    if plot is not None:
        from steelworks.cli._plot import write_plot

        write_plot(plot, workload.title, comparison, settings)
        console.print(f"plot: {plot}", highlight=False, soft_wrap=True)
    show_verdict(console, verdict)
    if not verdict.passed:
        raise typer.Exit(1)
