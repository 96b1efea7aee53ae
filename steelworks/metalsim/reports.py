"""What a launch found and counted, as plain data with readable text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Final

KINDS: Final = {
    1: "race_threadgroup",
    2: "race_device",
    3: "race_between_groups",
    4: "out_of_bounds",
    5: "uninitialised",
    6: "misaligned",
    7: "unwritten",
    8: "written_twice",
    9: "order_dependent_atomic",
    10: "divergent_barrier",
    11: "divergent_simd",
    12: "absent_lane",
    13: "write_to_constant",
    14: "group_memory_limit",
    15: "stack_overflow",
}
_TITLES: Final = {
    "race_threadgroup": "data race in threadgroup memory",
    "race_device": "data race in device memory within a threadgroup",
    "race_between_groups": "data race in device memory between threadgroups",
    "out_of_bounds": "access out of bounds",
    "uninitialised": "read of memory that nobody wrote",
    "misaligned": "misaligned access",
    "unwritten": "output not written",
    "written_twice": "output written more than once",
    "order_dependent_atomic": "result depends on the order of an atomic store and a read-modify-write",
    "divergent_barrier": "not all threads reach the same barrier",
    "divergent_simd": "lanes of a simdgroup wait at different simdgroup functions",
    "absent_lane": "value taken from a lane that does not take part",
    "write_to_constant": "write to a value bound as constant",
    "group_memory_limit": "more than 32 KiB of threadgroup memory",
    "stack_overflow": "a GPU thread ran out of stack",
}


@dataclass(frozen=True)
class Access:
    """One side of a finding: who did what where.

    Attributes:
        file: Source file, or "" if unknown.
        line: Line in it, or 0.
        function: The function that contains the place.
        group: threadgroup_position_in_grid.
        thread: thread_position_in_threadgroup.
        bytes: Size of the access.
        is_write: It wrote (otherwise it read, or waited).
        is_atomic: It was atomic.
    """

    file: str
    line: int
    function: str
    group: tuple[int, int, int]
    thread: tuple[int, int, int]
    bytes: int
    is_write: bool
    is_atomic: bool

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}" if self.file else "unknown place"

    def text(self) -> str:
        """One line."""
        what = ""
        if self.bytes:
            verb = "write" if self.is_write else "read"
            what = f"{'atomic ' if self.is_atomic else ''}{verb} of {self.bytes} bytes "
        return f"{self.place}: {what}by thread {_triple(self.thread)} of group {_triple(self.group)}"


@dataclass(frozen=True)
class Finding:
    """A defect that a launch showed.

    Attributes:
        kind: One of the values of ``KINDS``.
        kernel: The kernel's name.
        variable: Buffer or threadgroup variable, "" if it concerns none.
        offset: Byte in the variable at the first occurrence; out of bounds: the signed distance.
        bytes: How many bytes are concerned.
        count: How often this pair of places was seen.
        first: The access, or the earlier one.
        second: The other access of a pair.
        detail: More, in words.
    """

    kind: str
    kernel: str
    variable: str
    offset: int
    bytes: int
    count: int
    first: Access | None
    second: Access | None
    detail: str

    @property
    def title(self) -> str:
        """The kind in words."""
        return _TITLES.get(self.kind, self.kind)

    def text(self) -> str:
        """Several lines: what, where, who."""
        subject = f" in '{self.variable}'" if self.variable else ""
        at = (
            f" at byte {self.offset}"
            if self.variable and self.kind not in ("divergent_barrier", "divergent_simd")
            else ""
        )
        times = f" ({self.count} times)" if self.count > 1 else ""
        lines = [f"{self.kernel}: {self.title}{subject}{at}{times}"]
        if self.detail:
            lines.append(f"  {self.detail}")
        lines += [f"  {access.text()}" for access in (self.first, self.second) if access is not None]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text()


@dataclass(frozen=True)
class Counters:
    """What launches did. Bytes are counted in checking mode only.

    Attributes:
        device_read: Bytes read from device buffers.
        device_written: Bytes written to device buffers.
        constant_read: Bytes read from values bound as constants.
        group_read: Bytes read from threadgroup memory.
        group_written: Bytes written to threadgroup memory.
        atomics: Atomic operations.
        barriers: Threadgroup barriers, one a threadgroup.
        simdgroup_barriers: Simdgroup barriers, one a simdgroup.
        simd_exchanges: Simdgroup functions.
        mmas: 8x8x8 multiply-accumulates of a simdgroup.
        groups: Threadgroups run.
        threads: Threads run.
        group_memory_bytes: Threadgroup memory of one threadgroup; of several launches, the most.
    """

    device_read: int = 0
    device_written: int = 0
    constant_read: int = 0
    group_read: int = 0
    group_written: int = 0
    atomics: int = 0
    barriers: int = 0
    simdgroup_barriers: int = 0
    simd_exchanges: int = 0
    mmas: int = 0
    groups: int = 0
    threads: int = 0
    group_memory_bytes: int = 0

    def __add__(self, other: Counters) -> Counters:
        values = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        values["group_memory_bytes"] = max(self.group_memory_bytes, other.group_memory_bytes)
        return Counters(**values)

    @property
    def device_bytes(self) -> int:
        """Read and written."""
        return self.device_read + self.device_written

    def text(self) -> str:
        """One line a counter that is not zero."""
        return "\n".join(
            f"{f.name}: {getattr(self, f.name):,}" for f in fields(self) if getattr(self, f.name)
        )


@dataclass(frozen=True)
class Launch:
    """One launch: what ran, what it found, what it counted."""

    kernel: str
    threads: tuple[int, int, int]
    group_size: tuple[int, int, int]
    findings: tuple[Finding, ...]
    counters: Counters


@dataclass(frozen=True)
class Report:
    """Findings and counters of one or more launches."""

    findings: tuple[Finding, ...]
    counters: Counters

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def text(self) -> str:
        """All findings, readable; "no findings" if there are none."""
        if self.clean:
            return "no findings"
        return "\n".join(f.text() for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "clean": self.clean,
            "findings": [asdict(f) for f in self.findings],
            "counters": asdict(self.counters),
        }


def _triple(value: tuple[int, int, int]) -> str:
    return f"({', '.join(map(str, value))})"
