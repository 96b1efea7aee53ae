"""Which path a call would take, and why, for people."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from steelworks.errors import InvalidInputError

from . import _hazards
from ._choose import Candidate, Choice, decide
from ._registry import declared, operation_of
from ._signature import DEVICES, Path, Signature
from ._state import current


@dataclass(frozen=True)
class Explanation:
    """Which path a call takes in the present state. ``str()`` shows it as a few lines.

    Attributes:
        signature: The call.
        path: The path it takes.
        rule: What decided: ``"forced"``, ``"simulated"``, ``"hazard"``, ``"profile"``, ``"default"`` or ``"only"``.
        reason: Why.
        candidates: All paths; each with the reason why it is not possible, or None, and its time if measured.
        fallback: What was forced and why it is not possible, or None.
    """

    signature: Signature
    path: Path
    rule: str
    reason: str
    candidates: tuple[Candidate, ...]
    fallback: str | None

    def __str__(self) -> str:
        shapes = ", ".join("-" if s is None else str(tuple(s)) for s in self.signature.shapes)
        dtype = str(self.signature.dtype).removeprefix("torch.")
        lines = [f"{self.signature.op} of {shapes} in {dtype} on {self.signature.device}: {self.path}"]
        lines.append(f"  why: {self.reason} ({self.rule})")
        if self.fallback is not None:
            lines.append(f"  not as forced: {self.fallback}")
        for candidate in self.candidates:
            if candidate.refusal is not None:
                state = f"not possible: {candidate.refusal}"
            elif candidate.seconds is None:
                state = "possible, not measured here"
            else:
                state = f"possible, {candidate.seconds * 1e6:.1f} us when measured here"
            lines.append(f"  {candidate.path:<6} {state}")
        return "\n".join(lines)


def explain(
    op: str,
    shapes: Sequence[Sequence[int] | None],
    dtype: torch.dtype,
    device: str | torch.device | None = None,
    *,
    flags: tuple[Hashable, ...] | None = None,
) -> Explanation:
    """Which path a call would take in the present state, with the candidates and the reason.

    Args:
        op: The operation, for example ``"softmax"``.
        shapes: Of its tensors in order; None for an optional one that is not given, those at the end may be left
            out.
        dtype: Of the first tensor.
        device: By default the accelerator that is here, else the CPU.
        flags: The signature's flags; by default those of the operation's plainest call.

    Raises:
        InvalidInputError: no such operation or device type, or no path is possible.
    """
    declared()
    operation = operation_of(op)
    kind = _accelerator() if device is None else torch.device(device).type
    if kind not in DEVICES:
        raise InvalidInputError(f"explain: device is {kind!r}; allowed are {', '.join(map(repr, DEVICES))}")
    given = tuple(None if s is None else tuple(int(n) for n in s) for s in shapes)
    signature = Signature(op, kind, dtype, given, operation.flags if flags is None else flags)
    busy = kind == "mps" and torch.backends.mps.is_available() and _hazards.several_streams()
    return explained(decide(signature, current(), busy))


def explained(choice: Choice) -> Explanation:
    """A choice without what runs it."""
    return Explanation(
        choice.signature, choice.path, choice.rule, choice.reason, choice.candidates, choice.fallback
    )


def _accelerator() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
