"""What was caught and what was not, in numbers; and the list of survivors with their reasons."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from .find import Mutant
from .run import CAUGHT, INVALID, SURVIVED, UNREACHED, Verdict

SURVIVORS: Final = Path(__file__).with_name("survivors.toml")
#: Of the mutants that are not equivalent, so many must be caught.
LEAST_CAUGHT: Final = 0.98
#: Of all mutants, so many may be on the list as equivalent.
MOST_EQUIVALENT: Final = 0.02


@dataclass(frozen=True)
class Survivor:
    """An entry of survivors.toml.

    Attributes:
        id: Of the mutant.
        text: What it replaces: that the entry still means the same place.
        equivalent: Nothing could notice it. Otherwise it counts as missed.
        reason: Why it survives.
    """

    id: str
    text: str
    equivalent: bool
    reason: str


def read_survivors(path: Path = SURVIVORS) -> dict[str, Survivor]:
    """The list, by id.

    Raises:
        ValueError: an id stands twice.
    """
    groups = tomllib.loads(path.read_text(encoding="utf-8")).get("group", [])
    listed: dict[str, Survivor] = {}
    for group in groups:
        for name, text in group["mutants"].items():
            if name in listed:
                raise ValueError(f"{path.name} lists {name} twice")
            listed[name] = Survivor(name, text, group["equivalent"], " ".join(group["reason"].split()))
    return listed


@dataclass
class Result:
    """All verdicts of a run, next to the list of survivors.

    Attributes:
        verdicts: By mutant.
        survivors: The list.
        complete: Every mutant was run; otherwise entries of the list that do not appear are not looked for.
        ids: Of all mutants that there are, run or not, with what they replace.
    """

    verdicts: Mapping[Mutant, Verdict]
    survivors: Mapping[str, Survivor]
    complete: bool
    ids: Mapping[str, str]

    @property
    def unexplained(self) -> list[Mutant]:
        """Survivors that are not on the list."""
        return [
            mutant
            for mutant, verdict in self.verdicts.items()
            if verdict.outcome in (SURVIVED, UNREACHED) and mutant.id not in self.survivors
        ]

    @property
    def stale(self) -> list[str]:
        """Entries of the list that no longer hold, with what to do."""
        found = []
        for name, listed in self.survivors.items():
            if name not in self.ids:
                found.append(f"{name}: there is no such mutant any more; take it off the list")
            elif self.ids[name] != listed.text:
                found.append(
                    f"{name}: it replaces {self.ids[name]!r}, the list says {listed.text!r}; look at it again"
                )
        for mutant, verdict in self.verdicts.items():
            entry = self.survivors.get(mutant.id)
            if verdict.outcome == CAUGHT and entry is not None:
                found.append(f"{mutant.id}: it is caught ({verdict.how}); take it off the list")
        return found

    @property
    def counts(self) -> Counter[str]:
        """Of all: by outcome; survivors on the list as "equivalent" or "missed", others as "unexplained"."""
        return sum(self._by(lambda _: "all").values(), Counter())

    def _by(self, key: Any) -> dict[str, Counter[str]]:
        table: dict[str, Counter[str]] = {}
        for mutant, verdict in self.verdicts.items():
            outcome = verdict.outcome
            if outcome in (SURVIVED, UNREACHED):
                entry = self.survivors.get(mutant.id)
                outcome = "unexplained" if entry is None else "equivalent" if entry.equivalent else "missed"
            table.setdefault(key(mutant), Counter())[outcome] += 1
        return table

    @property
    def share_caught(self) -> float:
        """Of the mutants that are not equivalent."""
        counts = self.counts
        possible = counts[CAUGHT] + counts["missed"] + counts["unexplained"]
        return counts[CAUGHT] / possible if possible else 1.0

    @property
    def faults(self) -> list[str]:
        """Why the run fails; empty if enough were caught, every survivor has a reason, and the list is right."""
        faults = []
        if self.share_caught < LEAST_CAUGHT:
            faults.append(f"less than {100 * LEAST_CAUGHT:.0f} % caught")
        if self.unexplained:
            faults.append(f"{len(self.unexplained)} survived without a reason")
        if self.stale:
            faults.append(f"{len(self.stale)} stale in {SURVIVORS.name}")
        equivalent = sum(entry.equivalent for entry in self.survivors.values())
        if equivalent > MOST_EQUIVALENT * len(self.ids):
            faults.append(
                f"{equivalent} of {len(self.ids)} listed as equivalent, "
                f"which is more than {100 * MOST_EQUIVALENT:.0f} %"
            )
        return faults

    @property
    def passed(self) -> bool:
        """There is no reason why not."""
        return not self.faults

    def text(self, seconds: float) -> str:
        """Tables and lists to print."""
        lines = [
            *_table("family", self._by(family_of)),
            "",
            *_table("kind", self._by(lambda mutant: mutant.kind)),
            "",
        ]
        ways = Counter(verdict.how for verdict in self.verdicts.values() if verdict.outcome == CAUGHT)
        lines.append("caught by: " + ", ".join(f"{way} {count}" for way, count in ways.most_common()))
        for mutant, verdict in self.verdicts.items():
            if verdict.outcome == INVALID:
                lines.append(
                    f"not a mutant (does not compile): {mutant.id}: {mutant.text} -> {mutant.replacement}"
                )
        for mutant in self.unexplained:
            verdict = self.verdicts[mutant]
            lines.append(
                f"SURVIVED without a reason: {mutant.id} (line {mutant.line}): {mutant.text} -> {mutant.replacement}; "
                f"{verdict.outcome}, {verdict.tried} cases"
            )
        lines += [f"STALE in {SURVIVORS.name}: {line}" for line in self.stale]
        counts = self.counts
        possible = counts[CAUGHT] + counts["missed"] + counts["unexplained"]
        lines.append(
            f"mutants: {counts[CAUGHT]} of {possible} caught ({100 * self.share_caught:.1f} %), {counts['equivalent']} "
            f"equivalent (listed with reasons), {counts['missed']} missed with a reason, {counts['unexplained']} "
            f"unexplained, {counts[INVALID]} not mutants; {seconds:.0f} s"
        )
        return "\n".join(lines)

    def data(self, seconds: float) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "seconds": round(seconds, 1),
            "passed": self.passed,
            "share_caught": self.share_caught,
            "counts": dict(self.counts),
            "families": {name: dict(c) for name, c in self._by(family_of).items()},
            "kinds": {name: dict(c) for name, c in self._by(lambda mutant: mutant.kind).items()},
            "stale": self.stale,
            "mutants": [
                {
                    "id": mutant.id,
                    **asdict(mutant),
                    **asdict(verdict),
                    "reason": self.survivors[mutant.id].reason if mutant.id in self.survivors else "",
                }
                for mutant, verdict in self.verdicts.items()
            ],
        }


def family_of(mutant: Mutant) -> str:
    """The folder; "shared" for include/steel."""
    folder = mutant.file.partition("/")[0]
    return "shared" if folder == "include" else folder


def _table(title: str, rows: Mapping[str, Counter[str]]) -> Sequence[str]:
    columns = (CAUGHT, "equivalent", "missed", "unexplained", INVALID)
    width = max(len(name) for name in (title, *rows))
    lines = [f"{title:{width}}" + "".join(f"{column:>14}" for column in columns)]
    for name, counts in sorted(rows.items()):
        lines.append(f"{name:{width}}" + "".join(f"{counts[column]:>14}" for column in columns))
    return lines
