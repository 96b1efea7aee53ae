"""The pictures of the operators' figures, one a family: what ``benchmarks.plot`` makes of a file of ops_h200's.

A bar is a median; the text beside it is the time. Dashed and dotted lines are what the goals in the record require and
aim at; a case that misses a requirement says so in red. An operation that no family here names is an error, so that
none is left out unseen.
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullLocator

Case = dict[str, Any]
OURS, SLOWER, PEER, MISSED = "#1f6f8b", "#d98c3f", "#b8b8b8", "#b3261e"
#: Characters of a line of a heading, and how many times the median of all bars an axis reaches.
HEADING: Final = 105
MOST_OF_MEDIAN: Final = 4.0
#: Of the implementations that have a colour of their own; another one is grey.
COLOURS: Final = {
    "steel": OURS,
    "steel, compiled": "#7db3c5",
    "liger": "#8f7fb0",
    "compile": "#c9b26b",
    "torch": PEER,
    "quack": "#7fb08a",
    "mlx": "#c98d94",
}
#: Implementations as a reader knows them; others keep the name of the record.
NAMES: Final = {
    "steel": "Steel",
    "steel, compiled": "Steel and torch.compile",
    "liger": "Liger",
    "compile": "torch.compile",
    "mlx": "MLX (a chain)",
    "peft": "PEFT as it comes",
    "peft bf16 adapters": "PEFT, bf16 adapters",
}
SHARE, MICROSECONDS = "share of the copy's bandwidth", "us in a graph"
ROW, GAP = 0.2, 0.12  # inches: of a bar, and between two cases


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        value: Its length.
        text: What stands beside it.
        name: What it shows, for the legend.
        colour: Its colour.
    """

    value: float
    text: str
    name: str
    colour: str


@dataclass(frozen=True)
class Group:
    """The bars of one case, from the top.

    Attributes:
        title: The case.
        bars: Its bars.
        must: What is required on this scale; None if nothing is.
        aim: What is aimed at.
        missed: Names of the requirements that it misses.
    """

    title: str
    bars: tuple[Bar, ...]
    must: float | None = None
    aim: float | None = None
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """Some cases on one scale.

    Attributes:
        title: Over it.
        axis: Under it: what is measured, its unit, and which direction is good.
        group: The bars of a case; None for a case that belongs to another panel of the family.
        ratio: Whether 1 is the base of the bars, and the scale logarithmic.
    """

    title: str
    axis: str
    group: Callable[[Case], Group | None]
    ratio: bool = False


@dataclass(frozen=True)
class Family:
    """One picture.

    Attributes:
        ops: The operations in it, as the record names them.
        panels: One under the other; one without a case is left out.
    """

    ops: tuple[str, ...]
    panels: tuple[Panel, ...]


# --- from a case to its bars ----------------------------------------------------------------------------------


def medians(case: Case) -> dict[str, float]:
    """Microseconds by implementation, without the copy."""
    return {name: spread["median"] for name, spread in case["device_us"].items() if name != "copy"}


def _time_of(base: str, case: Case) -> float:
    found = medians(case).get(base)
    if found is None:
        raise ValueError(f"{case['op']} {case['name']}: there is no time of {base!r} to compare with")
    return found


def _title(case: Case, several: bool) -> str:
    name = str(case["name"])
    failed = "".join(f"\n({NAMES.get(one, one)} failed)" for one in case.get("failed", ()))
    return (f"{case['op']} {name}" if several else name) + failed


def _missed(case: Case) -> tuple[str, ...]:
    return tuple(str(goal["name"]) for goal in case["goals"] if not goal["met"])


def _limits(case: Case, *names: str) -> tuple[float | None, float | None]:
    """Must and aim of the first goal that has one of the names, or of the first at all."""
    for goal in case["goals"]:
        if not names or goal["name"] in names:
            return goal["must"], goal["aim"]
    return None, None


def _us(time: float) -> str:
    return f"{time:.2f} us" if time < 10 else f"{time:.1f} us" if time < 1000 else f"{time:,.0f} us"


def _pair(ratio: float, ours: float, peer: str, theirs: float) -> str:
    return f"{ratio:.2f} x   Steel {_us(ours)}, {NAMES.get(peer, peer)} {_us(theirs)}"


def _bar(name: str, value: float, text: str) -> Bar:
    return Bar(value, text, NAMES.get(name, name), COLOURS.get(name, PEER))


def share(several: bool) -> Callable[[Case], Group | None]:
    """Every implementation's share of the bandwidth that a copy has, for cases with that goal."""

    def group(case: Case) -> Group | None:
        must, aim = _limits(case, SHARE)
        if must is None:
            return None
        copy = case["device_us"]["copy"]["median"]
        bars = tuple(_bar(n, copy / us, f"{copy / us:.3f}   {_us(us)}") for n, us in medians(case).items())
        return Group(_title(case, several), bars, must, aim, _missed(case))

    return group


def microseconds(several: bool) -> Callable[[Case], Group | None]:
    """Every implementation's time, for cases with that goal."""

    def group(case: Case) -> Group | None:
        must, aim = _limits(case, MICROSECONDS)
        if must is None:
            return None
        bars = tuple(_bar(n, us, _us(us)) for n, us in medians(case).items())
        return Group(_title(case, several), bars, must, aim, _missed(case))

    return group


def over(base: str, op: str | None = None) -> Callable[[Case], Group | None]:
    """Every implementation's time over that of ``base``."""

    def group(case: Case) -> Group | None:
        if op not in (None, case["op"]):
            return None
        times = medians(case)
        least = _time_of(base, case)
        bars = tuple(
            _bar(n, us / least, f"{us / least:.2f} x   {_us(us)}") for n, us in times.items() if n != base
        )
        return Group(_title(case, False), bars, *_limits(case), _missed(case))

    return group


def speed(base: str) -> Callable[[Case], Group | None]:
    """How many times as fast as ``base`` every implementation is."""

    def group(case: Case) -> Group | None:
        times = medians(case)
        reference = _time_of(base, case)
        bars = tuple(
            _bar(n, reference / us, f"{reference / us:.2f} x   {_us(us)}") for n, us in times.items()
        )
        return Group(_title(case, False), bars, *_limits(case), _missed(case))

    return group


def over_each(op: str) -> Callable[[Case], Group | None]:
    """Our time over that of every other."""

    def group(case: Case) -> Group | None:
        if case["op"] != op:
            return None
        times = medians(case)
        ours = times["steel"]
        bars = tuple(
            Bar(ours / us, _pair(ours / us, ours, n, us), f"over {NAMES.get(n, n)}", colour)
            for (n, us), colour in zip(_others(times), _shades(), strict=False)
        )
        return Group(_title(case, False), bars, *_limits(case), _missed(case))

    return group


def against_each(op: str | None = None, without: Sequence[str] = ()) -> Callable[[Case], Group | None]:
    """Every peer's time over ours: how much faster ours is."""

    def group(case: Case) -> Group | None:
        if op not in (None, case["op"]):
            return None
        times = medians(case)
        ours = times["steel"]
        bars = tuple(
            Bar(us / ours, _pair(us / ours, ours, n, us), f"against {NAMES.get(n, n)}", colour)
            for (n, us), colour in zip(_others(times, without), _shades(), strict=False)
        )
        return Group(_title(case, False), bars, *_limits(case), _missed(case))

    return group


def against_best(case: Case) -> Group:
    """The best peer's time over ours, the peer named: how much faster ours is, or slower."""
    times = medians(case)
    ours = times["steel"]
    peer, us = min(_others(times), key=lambda one: one[1])
    ratio = us / ours
    name = "Steel is faster" if ratio >= 1 else "the peer is faster"
    bar = Bar(ratio, _pair(ratio, ours, peer, us), name, OURS if ratio >= 1 else SLOWER)
    return Group(_title(case, False), (bar,), *_limits(case), _missed(case))


def _others(times: dict[str, float], without: Sequence[str] = ()) -> list[tuple[str, float]]:
    return [(name, us) for name, us in times.items() if not name.startswith("steel") and name not in without]


def _shades() -> Iterator[str]:
    return cycle((OURS, "#7db3c5", "#8f7fb0", "#c9b26b", PEER))  # any number: no bar is left out


_LOWER, _HIGHER = "shorter is better", "longer is better"
FAMILIES: Final[dict[str, Family]] = {
    "softmax": Family(
        ("softmax",),
        (
            Panel("large rows", f"{SHARE} ({_HIGHER})", share(False)),
            Panel("small rows", f"device time in a graph, us ({_LOWER})", microseconds(False)),
        ),
    ),
    "norms": Family(
        ("rms_norm", "layer_norm"),
        (
            Panel("large rows", f"{SHARE} ({_HIGHER})", share(True)),
            Panel("small rows", f"device time in a graph, us ({_LOWER})", microseconds(True)),
        ),
    ),
    "top_k": Family(("top_k",), (Panel("", f"torch.topk's time over ours ({_HIGHER})", against_each()),)),
    "lora": Family(
        ("lora_linear", "multi_lora_linear", "lora_training"),
        (
            Panel(
                "a linear layer with its adapter",
                f"time over that of the layer alone ({_LOWER})",
                over("linear alone", "lora_linear"),
            ),
            Panel(
                "an adapter for every row of a batch",
                f"our time over that of less work ({_LOWER})",
                over_each("multi_lora_linear"),
            ),
            Panel(
                "a training step (forward and backward)",
                f"PEFT's time over ours ({_HIGHER})",
                against_each("lora_training", without=("linear alone",)),
            ),
        ),
    ),
    "quantized": Family(
        ("quantized_linear",), (Panel("", f"the other's time over ours ({_HIGHER})", against_each()),)
    ),
    "model": Family(
        ("minilm",),
        (Panel("", f"torch.compile's time over that of each ({_HIGHER})", speed("compile")),),
    ),
    "attention": Family(
        ("attention",), (Panel("", f"PyTorch's time over ours ({_HIGHER})", against_best, ratio=True),)
    ),
    "linear": Family(
        ("linear",), (Panel("", f"the best peer's time over ours ({_HIGHER})", against_best, ratio=True),)
    ),
}


# --- drawing --------------------------------------------------------------------------------------------------


def draw(record: dict[str, Any]) -> dict[str, Figure]:
    """The pictures of a record, by the name of the family; a family without a case has none.

    Raises:
        ValueError: an operation belongs to no family, or a case to no panel of its family.
    """
    known = {op: name for name, family in FAMILIES.items() for op in family.ops}
    unknown = sorted({str(case["op"]) for case in record["cases"]} - known.keys())
    if unknown:
        raise ValueError(
            f"no picture is known for {', '.join(unknown)}; add it to FAMILIES in benchmarks/_plot_ops.py"
        )
    figures = {}
    for name, family in FAMILIES.items():
        cases = [
            case for case in record["cases"] if case["op"] in family.ops and "steel" in case["device_us"]
        ]
        if cases:
            figures[name] = _figure(name, family, cases, record)
    return figures


def _figure(name: str, family: Family, cases: Sequence[Case], record: dict[str, Any]) -> Figure:
    chosen: list[tuple[Panel, list[Group]]] = []
    placed: set[int] = set()
    for panel in family.panels:
        tried = [(number, panel.group(case)) for number, case in enumerate(cases)]
        placed |= {number for number, group in tried if group is not None}
        found = [group for _, group in tried if group is not None]
        if found:
            chosen.append((panel, found))
    lost = [f"{case['op']} {case['name']}" for number, case in enumerate(cases) if number not in placed]
    if lost:
        raise ValueError(f"no panel of {name} shows {', '.join(lost)}; add one in benchmarks/_plot_ops.py")
    heights = [_height(groups) + 1.15 for _, groups in chosen]
    figure = Figure(figsize=(9.5, sum(heights) + 0.45), layout="constrained")
    axes = figure.subplots(len(chosen), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (panel, groups) in zip(axes, chosen, strict=True):
        _draw(axis, panel, groups)
    figure.suptitle(_heading(", ".join(family.ops), record), fontsize=10)
    return figure


def _heading(name: str, record: dict[str, Any]) -> str:
    environment = record.get("environment", {})
    found = environment.get("versions", {}) | environment.get("peers", {})
    parts = [
        f"{package} {found[package]}"
        for package in ("torch", "triton", "liger-kernel", "quack-kernels", "mlx")
        if package in found
    ]
    told = ", ".join([f"{name}: {environment.get('gpu', 'a GPU')}", *parts, "medians in a CUDA graph"])
    return textwrap.fill(told, HEADING)


def _height(groups: Sequence[Group]) -> float:
    return sum(max(len(group.bars), 1) * ROW + GAP for group in groups)


def _draw(axis: Any, panel: Panel, groups: Sequence[Group]) -> None:
    base = 1.0 if panel.ratio else 0.0
    axis.set_xlabel(panel.axis, fontsize=9)
    _scale(axis, panel, groups)
    y = 0.0
    ticks, labels, legend = [], [], {}
    for group in groups:
        top = y
        for bar in group.bars:
            axis.barh(y + ROW / 2, bar.value - base, ROW * 0.9, left=base, color=bar.colour)
            # Beside the panel: within it the lines of the goals would cross the text.
            axis.annotate(
                bar.text, (1, y + ROW / 2), (6, 0), xycoords=("axes fraction", "data"),
                textcoords="offset points", va="center", fontsize=7.5, annotation_clip=False,
            )  # fmt: skip
            legend[bar.name] = bar.colour
            y += ROW
        for limit, style in ((group.must, "--"), (group.aim, ":")):
            if limit:  # a goal that only aims at something requires 0
                axis.vlines(limit, top - GAP / 2, y + GAP / 2, color="black", linestyle=style, linewidth=1)
        ticks.append((top + y) / 2)
        labels.append(group.title + _verdict(group))
        y += GAP
    axis.set_ylim(y - GAP / 2, -GAP / 2)
    axis.set_yticks(ticks, labels, fontsize=8)
    for label, group in zip(axis.get_yticklabels(), groups, strict=True):
        if group.missed:
            label.set_color(MISSED)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    _legend(axis, legend, groups)
    if panel.title:
        axis.set_title(panel.title, fontsize=9.5, loc="left", pad=20)


def _scale(axis: Any, panel: Panel, groups: Sequence[Group]) -> None:
    values = [bar.value for group in groups for bar in group.bars]
    values += [limit for group in groups for limit in (group.must, group.aim) if limit is not None]
    if not panel.ratio:
        end = min(max(values), MOST_OF_MEDIAN * statistics.median(values))
        axis.set_xlim(0, end * 1.04)
        if end < max(values):
            axis.set_xlabel(
                f"{panel.axis}; bars that reach the end are longer, as the figures tell", fontsize=9
            )
        return
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(min(0.5, *values) / 1.1, max(2.0, *values) * 1.1)
    axis.axvline(1.0, color="black", linewidth=0.8)


def _verdict(group: Group) -> str:
    if not group.missed:
        return ""
    named = len(group.bars) > 1  # with one bar it is plain which figure is meant
    return f"\nMISSED: {', '.join(group.missed)}" if named else "  MISSED"


def _legend(axis: Any, colours: dict[str, str], groups: Sequence[Group]) -> None:
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    for style, name, there in (
        ("--", "must", any(group.must for group in groups)),
        (":", "aim", any(group.aim for group in groups)),
    ):
        if there:
            handles.append(Line2D([], [], color="black", linestyle=style, linewidth=1, label=name))
    axis.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=len(handles), fontsize=7.5,
        frameon=False, borderaxespad=0.1, borderpad=0.2, columnspacing=1.2, handlelength=1.4,
    )  # fmt: skip
