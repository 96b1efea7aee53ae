"""The plot of a comparison: throughput and latency, a bar a scenario."""

from __future__ import annotations

from pathlib import Path

from steelworks.cli._compare import Comparison, Settings

_COLOURS = {
    "threads": "#9aa5b1",
    "lock": "#9aa5b1",
    "single": "#9aa5b1",
    "oracle": "#d9a441",
    "queue": "#2f6f9f",
}


def write_plot(path: Path, title: str, comparison: Comparison, settings: Settings) -> None:
    """Draw ``comparison`` into ``path``; needs matplotlib, no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = comparison.results
    names = [row.name for row in rows]
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)

    colours = [_COLOURS.get(name, "#9aa5b1") for name in names]
    bars = left.bar(names, [row.throughput_rps for row in rows], color=colours)
    left.bar_label(bars, labels=[_bar_label(comparison, name) for name in names], fontsize=9, padding=2)
    left.set_ylabel("requests a second")
    left.set_title("throughput (share of the offline oracle)")
    left.margins(y=0.15)

    # Offline nobody waits: the oracle has no latency to compare.
    waiting = [row for row in rows if row.name != "oracle" and row.p50_ms is not None]
    places = range(len(waiting))
    right.bar(
        [x - 0.2 for x in places], [row.p50_ms or 0 for row in waiting], 0.4, label="p50", color="#2f6f9f"
    )
    right.bar(
        [x + 0.2 for x in places], [row.p99_ms or 0 for row in waiting], 0.4, label="p99", color="#b5523b"
    )
    right.set_xticks(list(places), [row.name for row in waiting])
    right.set_ylabel("milliseconds")
    right.set_title("latency of a request")
    if waiting:
        right.legend()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)

    figure.suptitle(f"{title}; {settings.callers} threads, {settings.device}", fontsize=11)
    figure.savefig(path, dpi=150)


def _bar_label(comparison: Comparison, name: str) -> str:
    row, efficiency = comparison.find(name), comparison.efficiency(name)
    text = f"{row.throughput_rps:.0f}" if row is not None else ""
    if row is not None and row.errors:
        text += f"\n{row.errors} errors"
    return text if efficiency is None or name == "oracle" else f"{text} ({efficiency:.0%})"
