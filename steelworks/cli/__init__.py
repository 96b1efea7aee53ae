"""The ``steelworks`` command: ``demo``, ``bench``, ``doctor`` and ``metal``.

One module a command; modules with a leading underscore hold what the commands share. Nothing
heavy is imported before a command needs it.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``steelworks`` command."""
    from steelworks.cli.app import app

    app()


__all__ = ["main"]
