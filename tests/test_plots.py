"""The command that draws the results: what is in the pictures, and what it refuses to leave out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pyplot = pytest.importorskip("matplotlib.pyplot")

from benchmarks import _plot_ops, plot  # noqa: E402 - it needs matplotlib

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def _goal(name: str, value: float, must: float, aim: float, met: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "must": must, "aim": aim, "met": met}


def _case(op: str, name: str, goals: list[dict[str, Any]], **us: float) -> dict[str, Any]:
    times = {n.replace("_", " "): {"min": t, "median": t, "max": t} for n, t in us.items()}
    return {"op": op, "name": name, "bytes": 1, "device_us": times, "goals": goals}


def _record(*cases: dict[str, Any]) -> dict[str, Any]:
    environment = {"gpu": "a GPU of tests", "versions": {"torch": "9.9"}, "peers": {}}
    return {"environment": environment, "cases": list(cases)}


SMALL = _record(
    _case("softmax", "2x4", [_goal(_plot_ops.SHARE, 0.5, 0.95, 0.99, False)], copy=1, steel=2, torch=4),
    _case("softmax", "1x4", [_goal(_plot_ops.MICROSECONDS, 1.2, 1.5, 1.1, True)], copy=1, steel=1.2, torch=3),
    _case("attention", "1x2x3x4", [], copy=1, steel=2, torch=8, flash=5),
)


def _texts(figure: Any) -> list[str]:
    found = []
    for axis in figure.axes:
        found += [
            t.get_text() for t in (*axis.texts, *axis.get_yticklabels(), *axis.get_legend().get_texts())
        ]
    return found


def _lines(axis: Any) -> set[tuple[float, str]]:
    """Where a line of a goal is, by its place and dashes."""
    return {
        (float(path.vertices[0][0]), "dashed" if style[1][0] > 2 else "dotted")
        for lines in axis.collections
        for path, style in zip(lines.get_paths(), lines.get_linestyle(), strict=True)
    }


def test_a_bar_of_a_large_case_is_its_share_of_the_bandwidth_that_a_copy_has() -> None:
    large: Any = _plot_ops.draw(SMALL)["softmax"].axes[0]
    assert [bar.get_width() for bar in large.patches] == [0.5, 0.25]
    assert [text.get_text() for text in large.texts] == ["0.500   2.00 us", "0.250   4.00 us"]


def test_a_bar_of_a_small_case_is_its_time() -> None:
    small: Any = _plot_ops.draw(SMALL)["softmax"].axes[1]
    assert [bar.get_width() for bar in small.patches] == [1.2, 3.0]


def test_what_is_required_and_aimed_at_comes_from_the_record() -> None:
    large, small = _plot_ops.draw(SMALL)["softmax"].axes
    assert _lines(large) == {(0.95, "dashed"), (0.99, "dotted")}
    assert _lines(small) == {(1.5, "dashed"), (1.1, "dotted")}


def test_a_missed_requirement_is_marked_and_a_met_one_is_not() -> None:
    large, small = _plot_ops.draw(SMALL)["softmax"].axes
    assert large.get_yticklabels()[0].get_text() == f"2x4\nMISSED: {_plot_ops.SHARE}"
    assert large.get_yticklabels()[0].get_color() == _plot_ops.MISSED
    assert small.get_yticklabels()[0].get_text() == "1x4"


def test_the_best_peer_is_compared_with_and_named() -> None:
    figure: Any = _plot_ops.draw(SMALL)["attention"]
    assert "2.50 x   Steel 2.00 us, flash 5.00 us" in _texts(figure)
    (bar,) = figure.axes[0].patches
    assert (bar.get_x(), bar.get_width()) == (1.0, 1.5)


def test_a_bar_is_drawn_for_every_peer_however_many_there_are() -> None:
    peers = {f"peer{n}": float(n + 1) for n in range(12)}
    for op in ("top_k", "quantized_linear"):
        (figure,) = _plot_ops.draw(_record(_case(op, "1x2", [], copy=1, steel=2, **peers))).values()
        assert len(figure.axes[0].patches) == 12


def test_a_case_where_the_peer_is_faster_says_so() -> None:
    slow = _record(_case("attention", "1x2", [], copy=1, steel=4, torch=2))
    figure: Any = _plot_ops.draw(slow)["attention"]
    assert "the peer is faster" in _texts(figure)
    (bar,) = figure.axes[0].patches
    assert (bar.get_x(), bar.get_width()) == (1.0, -0.5)


def test_an_implementation_that_failed_is_named() -> None:
    record = copy.deepcopy(SMALL)
    record["cases"][1]["failed"] = {"liger": "no"}
    assert "1x4\n(Liger failed)" in _texts(_plot_ops.draw(record)["softmax"])


def test_the_heading_says_on_what_it_was_measured() -> None:
    heading = _plot_ops.draw(SMALL)["softmax"].get_suptitle()
    assert heading == "softmax: a GPU of tests, torch 9.9, medians in a CUDA graph"


def test_an_operation_of_no_family_is_an_error_and_not_left_out() -> None:
    record = _record(*SMALL["cases"], _case("warp_drive", "1x1", [], steel=1))
    with pytest.raises(ValueError, match="no picture is known for warp_drive; add it to FAMILIES"):
        _plot_ops.draw(record)


def test_a_case_that_no_panel_of_its_family_takes_is_an_error() -> None:
    record = _record(_case("softmax", "3x3", [], copy=1, steel=1))
    with pytest.raises(ValueError, match="no panel of softmax shows softmax 3x3"):
        _plot_ops.draw(record)


def test_a_peer_that_a_family_compares_with_must_be_there() -> None:
    record = _record(_case("lora_linear", "1x1", [], copy=1, steel=1))
    with pytest.raises(ValueError, match="no time of 'linear alone'"):
        _plot_ops.draw(record)


def test_every_operation_of_the_benchmark_has_a_family() -> None:
    import re

    sources = [path.read_text() for path in (RESULTS.parent / "ops").glob("*.py")]
    named = {op for text in sources for op in re.findall(r'\bop="(\w+)"', text)}
    assert len(named) >= 8
    assert named <= {op for family in _plot_ops.FAMILIES.values() for op in family.ops}


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_draws_every_case_of_the_kept_results(tmp_path: Path) -> None:
    file = RESULTS / "ops_h200.json"
    assert plot.main([str(file), "--out", str(tmp_path)]) == 0
    drawn = {path.name: path for path in tmp_path.iterdir()}
    assert set(drawn) == {f"ops_h200_{name}.png" for name in _plot_ops.FAMILIES}
    for path in drawn.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size < 150 * 1024
    record = json.loads(file.read_text())
    shown = "\n".join(text for figure in _plot_ops.draw(record).values() for text in _texts(figure))
    assert not [case["name"] for case in record["cases"] if case["name"] not in shown]
    missed = sum(any(not goal["met"] for goal in case["goals"]) for case in record["cases"])
    assert shown.count("MISSED") == missed > 0


def test_the_pictures_in_the_documents_are_those_of_the_kept_results() -> None:
    images = RESULTS.parents[1] / "docs" / "images"
    assert {path.name for path in images.glob("ops_h200_*")} == {
        f"ops_h200_{name}.png" for name in _plot_ops.draw(json.loads((RESULTS / "ops_h200.json").read_text()))
    }


def test_the_command_draws_a_small_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(SMALL))
    assert plot.main([str(file), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["mine_attention.png", "mine_softmax.png"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (_record(_case("warp_drive", "1x1", [], steel=1)), "no picture is known for warp_drive"),
        ({"benchmark": "unheard of"}, "no drawing is known for it"),
    ],
)
def test_the_command_fails_for_what_it_can_not_draw(
    record: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(record))
    assert plot.main([str(file), "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("name", ["cpu_peers", "latency", "soak"])
def test_the_other_kept_results_have_drawings_too(name: str) -> None:
    record = json.loads((RESULTS / f"{name}.json").read_text())
    kind = plot.kind(record)
    assert kind == name
    assert plot.DRAW[kind](record)
    pyplot.close("all")
