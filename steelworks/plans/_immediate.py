"""Runners that run a batch when it is launched, on a stream of their own where the device has streams."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from steelworks.devices.base import Device
from steelworks.plans.inputs import Reading
from steelworks.plans.plan import Runner, Ticket


class _Results(Ticket):
    __slots__ = ("results",)

    def __init__(self, results: list[Any]) -> None:
        self.results = results


class ImmediateRunner(Runner):
    """Base of the runners of plans that capture nothing.

    Args:
        device: where the batches run.
    """

    def __init__(self, device: Device) -> None:
        self._stream = device.new_stream() if device.capabilities.streams else None

    def launch(self, readings: Sequence[Reading]) -> Ticket:
        """Run the batch."""
        if self._stream is None:
            return _Results(self._run(readings))
        with self._stream.use():
            return _Results(self._run(readings))

    def finish(self, ticket: Ticket) -> list[Any]:
        """The results, which are there already."""
        assert isinstance(ticket, _Results)
        return ticket.results

    @abstractmethod
    def _run(self, readings: Sequence[Reading]) -> list[Any]:
        """One result a request, in order."""
