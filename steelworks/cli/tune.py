"""``steelworks tune``: measure which path is faster on this machine, and keep the times for the selector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from steelworks.cli._options import CommandError, require_writable, resolve_device, with_clear_errors

if TYPE_CHECKING:
    import torch

    from steelworks.paths import Tuned

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


@with_clear_errors
def tune(
    device: Annotated[str, typer.Option(help="cuda, mps or auto (the GPU that is here).")] = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", "--op", help="Only this operation or family, for example softmax (may be repeated)."
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", help="Only f32, f16 or bf16 (may be repeated).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Two sizes an operation, one dtype (f16), at most a minute.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(help="Begin no further call after this long; by default 900, with --quick 60."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the times to this file.")
    ] = None,
    keep: Annotated[
        bool,
        typer.Option("--keep/--no-keep", help="Keep the times for the selector, in the cache directory."),
    ] = True,
) -> None:
    """Measure PyTorch's and our way of each operation that has both, for typical sizes, host time included.

    The selector then takes the faster one for the nearest sizes. The times hold for this device and these versions.
    Let nothing else use the GPU meanwhile.
    """
    require_writable(json_file, "--json")
    dtypes = _dtypes(dtype)
    where = resolve_device(device)
    from steelworks import paths

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        task = progress.add_task("starting", total=None)

        def show(title: str, number: int, count: int) -> None:
            progress.update(task, description=title, completed=number, total=count)

        tuned = paths.tune(where, only, dtypes, quick=quick, seconds=seconds, write=keep, progress=show)
        count = progress.tasks[0].total
        progress.update(task, description="measured", completed=count)
    _show(console, tuned)
    if json_file is not None:
        json_file.write_text(json.dumps(_content(tuned), indent=2) + "\n", encoding="utf-8")
        console.print(f"times: {json_file}", highlight=False, soft_wrap=True)


def _dtypes(names: list[str] | None) -> list[torch.dtype] | None:
    import torch

    for name in names or ():
        if name not in _DTYPES:
            raise CommandError(f"--dtype {name}: allowed are {', '.join(_DTYPES)}")
    return [getattr(torch, _DTYPES[name]) for name in names] if names else None


def _show(console: Console, tuned: Tuned) -> None:
    table = Table(title=f"microseconds a call on {tuned.device}, host time included")
    for heading in ("operation", "dtype", "sizes"):
        table.add_column(heading)
    for heading in ("steel", "graph", "vendor"):
        table.add_column(heading, justify="right")
    for entry in tuned.entries:
        sizes = " ".join(f"{name} {size}" for name, size in entry.sizes.items())
        best = min(entry.seconds, key=lambda p: entry.seconds[p])
        times = []
        for path in ("steel", "graph", "vendor"):
            seconds = entry.seconds.get(path)
            text = "-" if seconds is None else f"{seconds * 1e6:.1f}"
            times.append(f"[bold]{text}[/bold]" if path == best else text)
        table.add_row(entry.op, entry.dtype, sizes, *times)
    console.print(table)
    for failure in tuned.failures:
        console.print(f"not measured: {failure}", highlight=False, soft_wrap=True, style="yellow")
    if tuned.left:
        shown = f"time was up; not (wholly) measured: {', '.join(tuned.left)}"
        console.print(shown, highlight=False, soft_wrap=True, style="yellow")
    kept = "nothing was kept" if tuned.file is None else f"kept in {tuned.file}"
    console.print(kept, highlight=False, soft_wrap=True)


def _content(tuned: Tuned) -> dict[str, object]:
    from steelworks.cli._environment import describe_environment, describe_versions
    from steelworks.paths._profile import device_name

    return {
        "versions": describe_versions(),
        "environment": describe_environment(device_name(tuned.device)),
        "device": tuned.device,
        "entries": [
            {"op": e.op, "dtype": e.dtype, "sizes": dict(e.sizes), "seconds": dict(e.seconds)}
            for e in tuned.entries
        ],
        "failures": list(tuned.failures),
        "left": list(tuned.left),
    }
