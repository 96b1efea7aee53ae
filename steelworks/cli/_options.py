"""Checks of arguments, all of them before any work starts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from steelworks.cli._environment import missing_packages
from steelworks.errors import SteelworksError

if TYPE_CHECKING:  # torch takes seconds to import, and --help does not need it
    import torch

PLOT_SUFFIXES = (".png", ".pdf", ".svg")

# The options that demo and bench share.
Callers = Annotated[int, typer.Option(help="Threads that send requests.")]
PlotFile = Annotated[
    Path | None, typer.Option("--plot", help="Draw the figures into this .png, .pdf or .svg.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write versions, settings and figures to this file.")
]
Repeats = Annotated[int, typer.Option(help="Run everything so often; medians are shown.")]
Scenario = Annotated[
    list[str] | None,
    typer.Option(help="Only this one (may be repeated): threads, lock, single, oracle, queue."),
]
Isolate = Annotated[
    bool | None,
    typer.Option(
        "--isolate/--no-isolate",
        help="Run 'threads' in a process of its own, as plain threads may crash it. Default: on mps.",
    ),
]
TIME_LIMIT_HELP = "Seconds after which a scenario sends no further request."

_P = ParamSpec("_P")
_R = TypeVar("_R")


class CommandError(SteelworksError):
    """A command can't do what it was asked to; shown as one line, with exit status 2."""


def with_clear_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Show errors of our own as one line, and Ctrl-C as what it is."""

    @functools.wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("stopped by Ctrl-C; nothing was written", err=True)
            raise typer.Exit(130) from None
        except SteelworksError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None

    return wrapped


def require_extra(extra: str, purpose: str, only: tuple[str, ...] = ()) -> None:
    """Raise :class:`CommandError` with the pip command if ``extra`` is not installed.

    With ``only``, these packages of it are enough.
    """
    missing = [name for name in missing_packages(extra) if not only or name in only]
    if missing:
        raise CommandError(
            f"{purpose} needs {', '.join(missing)}; install with: python -m pip install 'steelworks[{extra}]'"
        )


def require_writable(path: Path | None, option: str, suffixes: tuple[str, ...] = ()) -> None:
    """Raise :class:`CommandError` unless the file ``path`` can be written; leaves no file behind."""
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise CommandError(f"{option} {path}: the name must end in one of {', '.join(suffixes)}")
    if path.is_dir():
        raise CommandError(f"{option} {path}: this is a folder; name a file")
    if not path.parent.is_dir():
        raise CommandError(f"{option} {path}: the folder {path.parent} does not exist; make it first")
    with _restored(path):
        try:
            path.open("ab").close()
        except OSError as error:
            raise CommandError(
                f"{option} {path}: can't be written ({error.strerror}); name another file"
            ) from None


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[None]:
    """Remove ``path`` afterwards if it was not there before."""
    existed = path.exists()
    try:
        yield
    finally:
        if not existed:
            path.unlink(missing_ok=True)


def require_at_least(smallest: float, **options: float | None) -> None:
    """Raise :class:`CommandError` for an option below ``smallest``; None counts as not given."""
    for name, value in options.items():
        if value is not None and not value >= smallest:
            raise CommandError(f"--{name.replace('_', '-')} {value}: at least {smallest:g} is needed")


def check_scenarios(names: list[str] | None) -> tuple[str, ...]:
    """The scenarios to run: all of them, or those that were named."""
    from steelworks.cli._compare import SCENARIOS

    for name in names or ():
        if name not in SCENARIOS:
            raise CommandError(f"--scenario {name}: allowed are {', '.join(SCENARIOS)}")
    return tuple(name for name in SCENARIOS if not names or name in names)


def resolve_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first of cuda, mps and cpu that is there.

    Raises:
        CommandError: if there is no such device here.
    """
    import torch

    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    count = torch.cuda.device_count() if device is not None and device.type == "cuda" else 1
    if device is None or device.type not in here or (device.index or 0) >= count:
        raise CommandError(f"--device {name}: not available here; available: auto, {', '.join(here)}")
    return device


def device_title(device: torch.device) -> str:
    """The device's own name, for people."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
