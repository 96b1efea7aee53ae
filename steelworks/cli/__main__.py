"""``python -m steelworks.cli``: the same as the ``steelworks`` command."""

from __future__ import annotations

from steelworks.cli import main

main()
