"""The ``steelworks`` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from steelworks.cli import bench, demo, doctor, metal, tune, verify
from steelworks.cli._environment import steelworks_version

app = typer.Typer(
    name="steelworks",
    help="Call a PyTorch model from many threads: safe on every device, as fast as the device allows.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("tune")(tune.tune)
app.command("verify")(verify.verify)
app.add_typer(metal.metal, name="metal")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steelworks {steelworks_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options that come before the subcommand."""
