"""The way of the kernels' tests to an Apple GPU, with metalsim in the place of torch.mps."""

from __future__ import annotations

import pytest
import torch
from _cases import assert_close, embedded, padded_rows, run_poisoned
from _mps import compiler

from steelworks import metalsim
from steelworks.kernels.metal import _launch
from steelworks.kernels.metal.softmax import softmax


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launcher compiles through the copying way; the list grows with every wait for the device."""
    waits: list[str] = []
    stand_in = compiler("cpu", metalsim.compile_shader, lambda: waits.append("wait"))
    monkeypatch.setattr(_launch, "_KERNELS", _launch.WriteOnce(stand_in))
    return waits


@pytest.mark.parametrize("view", [embedded, padded_rows])
def test_views_are_bound_at_their_offsets_and_results_come_back(view: object, launches: list[str]) -> None:
    x = torch.randn(7, 33)
    given = view(x)  # type: ignore[operator]
    out = run_poisoned(lambda: softmax(given, -1))
    assert_close("softmax", out, torch.softmax(x.double(), -1), "through copies", terms=33, magnitude=1.0)
    assert launches


def test_what_lies_around_an_output_is_brought_back_as_it_was(launches: list[str]) -> None:
    x = torch.randn(3, 5)
    out = run_poisoned(lambda: softmax(x, -1))
    around = torch.empty(0).set_(out.untyped_storage())
    assert around.isnan().sum() == around.numel() - out.numel()
