"""Draws the results: ``python -m benchmarks.plot [RESULTS ...] [--out DIR]``, PNG files into docs/images.

    python -m benchmarks.plot benchmarks/results/ops_h200.json

Without a file it draws all of benchmarks/results that have a drawing. A picture is named by its file and what it shows.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks import _plot_ops
from benchmarks._common import PROJECT

OURS, PEER, ORACLE = "#1f6f8b", "#b8b8b8", "#d98c3f"
Figure = Any


def cpu_peers(record: dict[str, Any]) -> dict[str, Figure]:
    """Throughput and p99 of all systems, one panel for each number of callers."""
    return {
        "throughput": _panels(
            record, "throughput_rps", "requests a second (bar: median, line: min to max)", oracle_line=True
        ),
        "p99": _panels(record, "p99_ms", "p99 latency, ms (bar: median, line: min to max)"),
    }


def _panels(record: dict[str, Any], key: str, label: str, oracle_line: bool = False) -> Figure:
    summary = record["summary"]
    callers = sorted({e["callers"] for e in summary if e["system"] != "oracle"})
    oracle = next((e for e in summary if e["system"] == "oracle"), None)
    figure, axes = plt.subplots(1, len(callers), figsize=(5.2 * len(callers), 4.2), squeeze=False)
    for axis, n in zip(axes[0], callers, strict=True):
        entries = [e for e in summary if e["callers"] == n and e["system"] != "oracle" and e[key]["median"]]
        entries.sort(key=lambda e: e["throughput_rps"]["median"])
        values = [e[key]["median"] for e in entries]
        below = [e[key]["median"] - e[key]["min"] for e in entries]
        above = [e[key]["max"] - e[key]["median"] for e in entries]
        colors = [OURS if e["system"].startswith("steelworks") else PEER for e in entries]
        names = [e["system"].replace("_", " ") for e in entries]
        bars = axis.barh(names, values, xerr=[below, above], color=colors, error_kw={"elinewidth": 1})
        axis.bar_label(bars, labels=[f"{v:.0f}" for v in values], padding=6, fontsize=8)
        axis.margins(x=0.15)
        if oracle_line and oracle:
            value = oracle[key]["median"]
            axis.axvline(value, color=ORACLE, linestyle="--", label=f"offline oracle, {value:.0f}")
            axis.legend(loc="lower right", fontsize=8)
        axis.set_title(f"{n} callers")
        axis.set_xlabel(label, fontsize=9)
    environment = record["environment"]
    figure.suptitle(
        f"all-MiniLM-L6-v2, real sentences, {environment['cores']}-core {environment['cpu']}, "
        f"torch {environment['versions'].get('torch')}",
        fontsize=10,
    )
    return figure


def latency(record: dict[str, Any]) -> dict[str, Figure]:
    """Added time of one unloaded call, logarithmic, one panel a model."""
    entries = [e for e in record["measurements"] if "failed" not in e and not e["direct_threads"]]
    models = list(dict.fromkeys(e["model"] for e in entries))
    figure, axes = plt.subplots(1, len(models), figsize=(5.2 * len(models), 3.8), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        chosen = sorted((e for e in entries if e["model"] == model), key=lambda e: -e["added_median_us"])
        values = [max(e["added_median_us"], 0.1) for e in chosen]  # a logarithmic axis has no zero
        colors = [OURS if e["system"].startswith("steelworks") else PEER for e in chosen]
        bars = axis.barh([e["system"].replace("_", " ") for e in chosen], values, color=colors)
        axis.bar_label(bars, labels=[f"{e['added_median_us']:.0f}" for e in chosen], padding=3, fontsize=8)
        axis.set_xscale("log")
        axis.margins(x=0.15)
        axis.set_title({"noop": "model that does nothing", "minilm": "all-MiniLM-L6-v2"}.get(model, model))
        axis.set_xlabel("added to one call, us (median)", fontsize=9)
    return {"added": figure}


def soak(record: dict[str, Any]) -> dict[str, Figure]:
    """Memory over the long run, and over the overload of each policy."""
    runs = [("soak", record["soak"])] if "soak" in record else []
    runs += [(f"overload, {one['policy']}", one) for one in record.get("overload", [])]
    figures = {}
    for kind in ("soak", "overload"):
        chosen = [(name, run) for name, run in runs if name.startswith(kind) and run["memory"]]
        if not chosen:
            continue
        figure, axis = plt.subplots(figsize=(6.4, 3.4))
        for name, run in chosen:
            axis.plot([s["s"] for s in run["memory"]], [s["rss_mib"] for s in run["memory"]], label=name)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("seconds")
        axis.set_ylabel("resident memory, MiB")
        axis.legend()
        figures[f"{kind}_memory"] = figure
    return figures


DRAW: dict[str, Callable[[dict[str, Any]], dict[str, Figure]]] = {
    "cpu_peers": cpu_peers,
    "latency": latency,
    "ops": _plot_ops.draw,
    "soak": soak,
}


def kind(record: dict[str, Any]) -> str | None:
    """Which benchmark a record is of; None if no drawing is known for it."""
    name = "ops" if "cases" in record else record.get("benchmark")
    return name if name in DRAW else None


def save(figure: Figure, target: Path) -> None:
    """Writes a PNG of few colours, a third of the size that it has with all of them."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    with Image.open(buffer) as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(target, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw every result that has a drawing; 1 if one that was named has none or can't be drawn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="*", type=Path, help="JSON files (benchmarks/results/*.json)")
    parser.add_argument(
        "--out", type=Path, default=PROJECT / "docs" / "images", help="folder of the pictures"
    )
    arguments = parser.parse_args(argv)
    files = arguments.results or sorted((PROJECT / "benchmarks" / "results").glob("*.json"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for file in files:
        record = json.loads(file.read_text())
        which = kind(record)
        if which is None:
            print(f"{file}: no drawing is known for it", file=sys.stderr)
            failed = failed or bool(arguments.results)
            continue
        try:
            figures = DRAW[which](record)
        except ValueError as problem:
            print(f"{file}: {problem}", file=sys.stderr)
            failed = True
            continue
        for name, figure in figures.items():
            target = arguments.out / f"{file.stem}_{name}.png"
            save(figure, target)
            plt.close(figure)
            print(f"{file.name}: {target.name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
