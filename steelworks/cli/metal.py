"""``steelworks metal``: run, check and lint Metal kernels on the CPU of any machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from steelworks.cli._options import CommandError, require_at_least, with_clear_errors

if TYPE_CHECKING:
    from steelworks.cli._metal_job import Job

metal = typer.Typer(
    help="Run, check and lint Metal kernels on the CPU of any machine; needs clang, no Mac.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

File = Annotated[Path, typer.Argument(help="The Metal source.", show_default=False)]
Kernel = Annotated[
    str, typer.Option(help="The kernel; may be left out if the file has only one.", show_default=False)
]
Threads = Annotated[
    str, typer.Option(help="The grid in threads: N, N,N or N,N,N (dispatchThreads).", show_default=False)
]
Group = Annotated[str, typer.Option(help="Threads of a threadgroup, likewise.", show_default=False)]
Arguments = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        help="The next buffer: f32\\[64,100]=randn, f16\\[4096]=empty (an output, to be written exactly "
        "once), i64=7, "
        "f32=0.5, i32=1,2,3, input.npy, @0 (the tensor of argument 0). Fills: empty, zeros, ones, arange, "
        "randn, rand, "
        "full(x), randint(a,b), FILE.npy.",
        show_default=False,
    ),
]
Define = Annotated[
    list[str] | None,
    typer.Option("--define", "-D", help="NAME or NAME=VALUE for the preprocessor.", show_default=False),
]
Seed = Annotated[int, typer.Option(help="Of random data and of shuffled schedules.")]
Timeout = Annotated[float, typer.Option(help="Seconds that one launch may take.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
List = Annotated[bool, typer.Option("--list", help="List the kernels of the file and stop.")]


@metal.command("check")
@with_clear_errors
def check(
    file: File,
    kernel: Kernel = "",
    threads: Threads = "",
    group: Group = "",
    arguments: Arguments = None,
    schedule: Annotated[
        list[str] | None,
        typer.Option(
            help="ring or run_ahead, with /forward, /reverse or /shuffled; may be repeated. By default "
            "four: ring and "
            "run_ahead, each forward and shuffled.",
            show_default=False,
        ),
    ] = None,
    define: Define = None,
    seed: Seed = 0,
    timeout: Timeout = 60.0,
    as_json: Json = False,
    list_kernels: List = False,
) -> None:
    """Launch a kernel in checking mode and report its defects.

    Data races, accesses out of bounds, reads of what nobody wrote, misaligned vectors, outputs not written
    exactly once, divergent barriers and simdgroup functions.
    Exit status: 0 clean, 1 findings, 2 not runnable.
    """
    source = _read(file, define)
    if list_kernels:
        _list(source, file, as_json)
        return
    from steelworks.cli import _metal_child, _metal_report

    job = _job(source, file, kernel, threads, group, arguments, seed, _schedules(schedule), check=True)
    require_at_least(0.1, timeout=timeout)
    outcome = _metal_child.run_job(job, timeout)
    if as_json:
        _print_json({"file": job.file, "threads": job.threads, "group": job.group, "arguments": job.arguments,
                     "seed": job.seed, **outcome.to_dict()})  # fmt: skip
    else:
        _metal_report.show_outcome(Console(), outcome, job)
    raise typer.Exit(outcome.status)


@metal.command("run")
@with_clear_errors
def run(
    file: File,
    kernel: Kernel = "",
    threads: Threads = "",
    group: Group = "",
    arguments: Arguments = None,
    schedule: Annotated[
        str, typer.Option(help="ring or run_ahead, with /forward, /reverse or /shuffled.")
    ] = "ring/forward",
    define: Define = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the written tensors, as NUMBER_NAME.npy (bf16 as f32).", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    timeout: Timeout = 60.0,
    as_json: Json = False,
    list_kernels: List = False,
) -> None:
    """Launch a kernel once, unchecked, and print what it wrote.

    Exit status: 0 it ran, 1 it crashed or a defect showed all the same, 2 not runnable.
    """
    source = _read(file, define)
    if list_kernels:
        _list(source, file, as_json)
        return
    from steelworks.cli import _metal_child, _metal_report

    if save is not None and not save.is_dir():
        raise CommandError(f"--save {save}: there is no such folder; make it first")
    job = _job(
        source, file, kernel, threads, group, arguments, seed, _schedules([schedule]), check=False, save=save
    )
    require_at_least(0.1, timeout=timeout)
    outcome = _metal_child.run_job(job, timeout)
    if as_json:
        _print_json({"file": job.file, **outcome.to_dict()})
    else:
        _metal_report.show_outcome(Console(), outcome, job)
    raise typer.Exit(outcome.status)


@metal.command("lint")
@with_clear_errors
def lint(
    files: Annotated[list[Path], typer.Argument(help="Metal sources.", show_default=False)],
    ignore: Annotated[
        list[str] | None, typer.Option(help="A rule not to apply; may be repeated.", show_default=False)
    ] = None,
    define: Define = None,
    as_json: Json = False,
) -> None:
    """Look for what compiles here and not, or not so, on a Mac.

    Address spaces, C++14, casts between vectors, double, reserved names.
    Exit status: 0 clean, 1 findings, 2 not runnable.
    """
    from steelworks.cli import _metal_report
    from steelworks.metalsim import errors
    from steelworks.metalsim import lint as rules

    for rule in ignore or ():
        if rule not in rules.RULES:
            raise CommandError(f"--ignore {rule}: there is no such rule; there are {', '.join(rules.RULES)}")
    console = Console()
    everything = []
    for file in files:
        source = _read(file, define)
        try:
            found = [f for f in rules.lint(source, str(file)) if f.rule not in (ignore or ())]
        except errors.ToolchainError as problem:
            raise CommandError(str(problem)) from None
        everything += found
        if not as_json:
            _metal_report.show_lint(console, str(file), found)
    if as_json:
        _print_json({"clean": not everything, "findings": [f.to_dict() for f in everything]})
    raise typer.Exit(1 if everything else 0)


def _read(file: Path, define: list[str] | None) -> str:
    """The source, after the definitions; its line numbers stay."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as problem:
        raise CommandError(f"{file} can't be read: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise CommandError(f"{file} is not UTF-8 text: {problem}") from None
    head = ""
    for definition in define or ():
        name, _, value = definition.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or "\n" in value:
            raise CommandError(f"--define {definition}: NAME or NAME=VALUE is needed")
        head += f"#define {name} {value or '1'}\n"
    return f'{head}#line 1 "{_quoted(file)}"\n{text}' if head else text


def _quoted(file: Path) -> str:
    return str(file).replace("\\", "\\\\").replace('"', '\\"')


def _job(
    source: str,
    file: Path,
    kernel: str,
    threads: str,
    group: str,
    arguments: list[str] | None,
    seed: int,
    schedules: tuple[str, ...],
    *,
    check: bool,
    save: Path | None = None,
) -> Job:
    from steelworks.cli._metal_job import Job
    from steelworks.cli._metal_spec import parse

    if not threads:
        raise CommandError(
            "--threads is missing: the grid in threads, such as --threads 4096 or --threads 64,64"
        )
    if seed < 0:
        raise CommandError(f"--seed {seed}: 0 or more is needed")
    for index, text in enumerate(arguments or ()):
        parse(text, index)
    grid = _sizes(threads, "--threads")
    block = _sizes(group, "--group") if group else None
    if block is not None:
        # torch wants as many dimensions in one as in the other; further ones are 1.
        most = max(len(grid), len(block))
        grid, block = ((*sizes, 1, 1)[:most] for sizes in (grid, block))
    return Job(
        str(file),
        source,
        kernel,
        grid,
        block,
        tuple(arguments or ()),
        seed,
        schedules,
        check,
        str(save) if save else "",
    )


def _sizes(text: str, option: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not 1 <= len(parts) <= 3 or not all(p.strip().isdigit() and int(p) > 0 for p in parts):
        raise CommandError(
            f"{option} {text}: one to three whole numbers above 0 are needed, such as {option} 128 or "
            f"{option} 32,8"
        )
    return tuple(int(p) for p in parts)


def _schedules(given: list[str] | None) -> tuple[str, ...]:
    from steelworks.cli._metal_job import FOUR_SCHEDULES

    if not given:
        return FOUR_SCHEDULES
    chosen = []
    for text in given:
        kind, _, order = text.partition("/")
        if kind not in ("ring", "run_ahead") or (order or "forward") not in (
            "forward",
            "reverse",
            "shuffled",
        ):
            raise CommandError(
                f"--schedule {text}: ring or run_ahead is needed, with /forward, /reverse or /shuffled"
            )
        chosen.append(f"{kind}/{order or 'forward'}")
    return tuple(dict.fromkeys(chosen))


def _list(source: str, file: Path, as_json: bool) -> None:
    """The kernels that can be launched, with their buffers."""
    from steelworks.metalsim import _compile, errors

    try:
        _, scan = _compile.translate(source, str(file))
    except errors.MetalsimError as problem:
        raise CommandError(str(problem)) from None
    kernels: list[dict[str, Any]] = [
        {
            "name": k.host_name,
            "file": k.file,
            "line": k.line,
            "buffers": [p.name for p in k.definition.parameters if p.role == "buffer"],
        }
        for k in scan.kernels
    ]
    if as_json:
        _print_json({"file": str(file), "kernels": kernels})
        return
    for kernel in kernels:
        typer.echo(f"{kernel['name']}({', '.join(kernel['buffers'])})  {kernel['file']}:{kernel['line']}")
    if not kernels:
        typer.echo(f"no kernels in {file}")


def _print_json(data: dict[str, Any]) -> None:
    typer.echo(json.dumps(data, indent=2))
