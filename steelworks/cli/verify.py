"""``steelworks verify``: run the evidence, and say for each property what was checked and how far."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steelworks.cli._options import CommandError, require_writable, with_clear_errors

#: The source checkout that this package is part of, if it is one.
ROOT = Path(__file__).resolve().parents[2]
_NEEDED = ("verification/claims.py", "tests", "scripts/setup.sh")

_Files = Annotated[
    list[Path] | None,
    typer.Option("--from", help="Take what this file of --json has instead of running it (may be repeated)."),
]


@with_clear_errors
def verify(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes, models and planted bugs: a few minutes.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help="Only claims with this in their name (may be repeated)."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the results as a page that needs nothing else.")
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write the trust table, as docs/verification.md is.")
    ] = None,
    earlier: _Files = None,
    install: Annotated[
        bool, typer.Option("--install/--no-install", help="Install tools that are missing.")
    ] = True,
    list_only: Annotated[bool, typer.Option("--list", help="Name the claims, and end.")] = False,
) -> None:
    """Run the models, proofs, bounds, kernels and planted bugs that the claims about Steelworks rest on.

    Needs a source checkout. The exit status is 0 if every claim was checked and holds, 1 if one fails, 2 if a tool is
    missing.
    """
    for path, option in ((json_file, "--json"), (html, "--html"), (markdown, "--markdown")):
        require_writable(path, option)
    command = _command()
    options = command.Options(
        quick=quick,
        only=tuple(only or ()),
        install=install,
        earlier=tuple(earlier or ()),
        list_only=list_only,
        json=json_file,
        html=html,
        markdown=markdown,
    )
    try:
        status = command.main(options, Console())
    except command.Refused as problem:
        raise CommandError(str(problem)) from None
    raise typer.Exit(status)


def _command() -> Any:
    """The module that does the work; it is no part of the installed package."""
    missing = [name for name in _NEEDED if not (ROOT / name).exists()]
    if missing:
        raise CommandError(
            f"'steelworks verify' needs a source checkout: {', '.join(missing)} are no part of the installed package "
            f"(looked in {ROOT}). Clone the project with git, and run 'make verify' in it"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module("verification.command")
