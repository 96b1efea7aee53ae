"""What was caught and what was not, by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from .entries import LAYERS, Mutant
from .workshop import CAUGHT, HUNG, STALE, SURVIVED, WRONG, Verdict

#: Of all mutants, so many must be caught.
LEAST_CAUGHT: Final = 0.95
_LISTED: Final = "listed"  # it survived, and the entry says why
_COLUMNS: Final = (CAUGHT, _LISTED, SURVIVED, WRONG, HUNG, STALE)


@dataclass
class Result:
    """All verdicts of a run.

    Attributes:
        verdicts: By mutant.
    """

    verdicts: Mapping[Mutant, Verdict]

    def _column(self, mutant: Mutant) -> str:
        outcome = self.verdicts[mutant].outcome
        return _LISTED if outcome != CAUGHT and mutant.survives else outcome

    @property
    def caught(self) -> int:
        """How many were."""
        return sum(v.outcome == CAUGHT for v in self.verdicts.values())

    @property
    def share_caught(self) -> float:
        """Of all that were tried, those included that are listed as survivors."""
        return self.caught / len(self.verdicts) if self.verdicts else 0.0

    @property
    def late_at_first(self) -> tuple[int, int]:
        """Of the late ones: how many the chosen tests caught when they were first run, and how many there are."""
        late = [m for m in self.verdicts if m.late]
        return sum(m.first_run == CAUGHT for m in late), len(late)

    @property
    def faults(self) -> list[str]:
        """Why the run fails; empty if enough are caught and each survivor has a reason."""
        faults = []
        if self.share_caught < LEAST_CAUGHT:
            faults.append(f"{100 * self.share_caught:.1f} % caught; {100 * LEAST_CAUGHT:.0f} % are needed")
        for mutant, verdict in self.verdicts.items():
            if mutant.survives and verdict.outcome == CAUGHT:
                faults.append(f"{mutant.name} is listed as a survivor and is caught; take its reason away")
            elif self._column(mutant) not in (CAUGHT, _LISTED):
                faults.append(f"{mutant.name}: {verdict.outcome}")
        return faults

    def text(self, seconds: float) -> str:
        """The table, and a line for each that was not caught."""
        rows = {layer: [m for m in self.verdicts if m.layer == layer] for layer in LAYERS}
        rows = {layer: mutants for layer, mutants in rows.items() if mutants}
        rows["all"] = list(self.verdicts)
        columns = [c for c in _COLUMNS if c == CAUGHT or any(self._column(m) == c for m in self.verdicts)]
        width = max(len(name) for name in (*rows, "layer"))
        lines = [f"{'layer':{width}}{'planted':>10}" + "".join(f"{c:>14}" for c in columns)]
        for layer, mutants in rows.items():
            counts = Counter(self._column(m) for m in mutants)
            lines.append(f"{layer:{width}}{len(mutants):>10}" + "".join(f"{counts[c]:>14}" for c in columns))
        lines.append("")
        for mutant, verdict in self.verdicts.items():
            column = self._column(mutant)
            if column == _LISTED:
                lines.append(f"survives, with a reason: {mutant.name}: {mutant.survives}")
            elif column != CAUGHT:
                lines.append(f"{column}: {mutant.name} ({mutant.what}) {mutant.checks}: {verdict.told}")
        score = f"{self.caught} of {len(self.verdicts)} caught ({100 * self.share_caught:.1f} %) in {seconds:.0f} s"
        first, late = self.late_at_first
        if late:
            score += f"; of {late} that were written last, {first} at the first run"
        return "\n".join([*lines, score])

    def data(self, seconds: float) -> dict[str, Any]:
        """The same as plain data."""
        layers = {
            layer: dict(Counter(self._column(m) for m in self.verdicts if m.layer == layer))
            for layer in LAYERS
        }
        first, late = self.late_at_first
        return {
            "seconds": round(seconds, 1),
            "passed": not self.faults,
            "planted": len(self.verdicts),
            "caught": self.caught,
            "share_caught": self.share_caught,
            "late": late,
            "late_caught_at_first": first,
            "faults": self.faults,
            "layers": layers,
            "mutants": [{**asdict(m), **asdict(verdict)} for m, verdict in self.verdicts.items()],
        }
