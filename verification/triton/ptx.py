"""PTX as far as the checks read it: its instructions, and on which bits of a thread's number a register rests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LABEL: Final = re.compile(r"(\$\w+):\s*")
_GUARD: Final = re.compile(r"@(!?)(%p\d+)\s+(.*)", re.DOTALL)
_WIDE: Final = 64
#: Instructions that set no register.
_SET_NOTHING: Final = ("st.", "stmatrix", "bra", "bar.", "barrier", "red.", "cp.", "prefetch", "griddep", "ret",
                       "fence", "membar", "wgmma", "mbarrier", "trap", "exit")  # fmt: skip
#: A warp's threads make the result together, from what all of them hold.
_BY_LANES: Final = ("mma.", "ldmatrix", "elect", "vote", "match", "activemask", "redux")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        line: Of the text, from 1.
        guard: The predicate register that it stands under, or "".
        inverted: The guard is negated.
        opcode: With its suffixes.
        operands: The rest.
        names: Of local registers that do not begin with ``%``.
    """

    line: int
    guard: str
    inverted: bool
    opcode: str
    operands: str
    names: frozenset[str]

    @property
    def registers(self) -> list[str]:
        """All registers among the operands, in order."""
        found = re.findall(r"%[a-z]+\d+|(?<![\w.$%])[a-z]\w*", self.operands)
        return [r for r in found if r.startswith("%") or r in self.names]

    @property
    def sets(self) -> list[str]:
        """Registers that it sets: those of its first operand."""
        if self.opcode.startswith(_SET_NOTHING):
            return []
        text = self.operands.strip()
        first = text[: text.index("}") + 1] if text.startswith("{") else text.split(",")[0]
        count = len(Instruction(0, "", False, "", first, self.names).registers)
        return self.registers[:count]

    @property
    def uses(self) -> list[str]:
        """Registers that it reads, its guard included."""
        return self.registers[len(self.sets) :] + ([self.guard] if self.guard else [])

    def __str__(self) -> str:
        guard = f"@{'!' if self.inverted else ''}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {' '.join(self.operands.split())}"


def parse(ptx: str) -> tuple[list[Instruction], dict[str, int]]:
    """The instructions of the one kernel of a text, and at which of them its labels stand."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    names = frozenset(re.findall(r"\.reg\s+\.\w+\s+([a-z]\w*)\s*;", ptx))
    lines = ptx.splitlines()
    begin = next(n for n, line in enumerate(lines) if ".entry" in line)
    begin = next(n for n in range(begin, len(lines)) if lines[n].strip() == "{") + 1
    for number, line in enumerate(lines[begin:], begin + 1):
        for piece in line.split("//")[0].split(";"):
            text = piece.strip()
            if text[:1] == "}" or (text[:1] == "{" and ";" in line and text.count("{") > text.count("}")):
                text = text[1:].strip()
            while match := _LABEL.match(text):
                labels[match[1]] = len(found)
                text = text[match.end() :]
            if not text or text[0] in ".{}":
                continue
            guarded = _GUARD.match(text)
            rest = guarded[3] if guarded else text
            opcode, *operands = rest.split(None, 1)
            found.append(
                Instruction(
                    number, guarded[2] if guarded else "", bool(guarded and guarded[1]), opcode,
                    operands[0] if operands else "", names,
                )
            )  # fmt: skip
    return found, labels


class Threads:
    """On which bits of its thread's number (``tid.x``) each register may rest; branches are not counted.

    A value read from memory rests on its address: threads that read one place at one point of the program read the
    same, if nothing races.
    """

    def __init__(self, code: Sequence[Instruction], threads: int) -> None:
        self.all = threads - 1
        self._setters: dict[str, list[Instruction]] = {}
        for instruction in code:
            for register in instruction.sets:
                self._setters.setdefault(register, []).append(instruction)
        self._bits: dict[str, list[int]] = {}
        changed = True
        while changed:
            changed = False
            for instruction in code:
                made = self._made(instruction)
                for register in instruction.sets:
                    old = self._bits.get(register, [0] * _WIDE)
                    new = [a | b for a, b in zip(old, made, strict=True)]
                    if new != old or register not in self._bits:
                        self._bits[register] = new
                        changed = True

    def of(self, *registers: str) -> int:
        """A mask of the bits that any of them may rest on."""
        mask = 0
        for register in registers:
            for bits in self._bits.get(register, ()):
                mask |= bits
        return mask

    def _made(self, instruction: Instruction) -> list[int]:
        name, operands = instruction.opcode, instruction.operands
        if "%tid.x" in operands:
            return [self.all & (1 << place) for place in range(_WIDE)]
        if "%laneid" in operands:
            return [self.all & (1 << place) if place < 5 else 0 for place in range(_WIDE)]
        guard = self.of(instruction.guard) if instruction.guard else 0
        uses = instruction.registers[len(instruction.sets) :]
        bits = self._moved(name.split(".")[0], name, uses, operands) if len(instruction.sets) == 1 else None
        if bits is None:
            mask = self.of(*uses)
            elsewhere = name.startswith("shfl") and not name.startswith("shfl.sync.bfly")
            if name.startswith(_BY_LANES) or (elsewhere and mask & 31):
                mask |= 31
            elif name.startswith("atom") or ".volatile" in name:
                mask = self.all
            bits = [mask & ~self._exchanged(name, uses)] * _WIDE
        return [(b | guard) & self.all for b in bits]

    def _exchanged(self, name: str, uses: list[str]) -> int:
        """The bit by which two threads exchange a value and both combine the two: then they hold the same."""
        if not name.startswith(("add.", "max.", "min.")) or len(uses) != 2:
            return 0
        for mine, theirs in (uses, uses[::-1]):
            setter = self._root(theirs)[1]
            if setter is None or not setter.opcode.startswith("shfl.sync.bfly"):
                continue
            parts = [part.strip() for part in setter.operands.split(",")]
            if parts[2].isdigit() and self._root(parts[1])[0] == self._root(mine)[0]:
                return int(parts[2])
        return 0

    def _root(self, register: str) -> tuple[str, Instruction | None]:
        """Where a value that was only moved comes from."""
        while True:
            setters = self._setters.get(register, [])
            if len(setters) != 1 or setters[0].guard:
                return register, None
            (setter,) = setters
            if not setter.opcode.startswith("mov.") or len(setter.registers) != 2:
                return register, setter
            register = setter.registers[1]

    def _moved(self, base: str, name: str, uses: list[str], operands: str) -> list[int] | None:
        """Bit by bit, where an instruction only moves or masks bits."""
        last = operands.split(",")[-1].strip()
        number = int(last, 0) if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", last) else None
        have = [self._bits.get(r, [0] * _WIDE) for r in uses]
        if base in ("mov", "cvt") and len(have) == 1 and ".f" not in name and ".s" not in name[4:]:
            return have[0]
        if base in ("and", "or", "xor") and len(have) == 2:
            return [a | b for a, b in zip(*have, strict=True)]
        if len(have) != 1 or number is None:
            return None
        one = have[0]
        if base == "and":
            return [b if number >> place & 1 else 0 for place, b in enumerate(one)]
        if base in ("or", "xor"):
            return one
        if base == "shl" and 0 <= number < _WIDE:
            return [0] * number + one[: _WIDE - number]
        if base == "shr" and ".s" not in name and 0 <= number < _WIDE:
            return one[number:] + [0] * number
        if base == "bfe":
            place, length = (int(part, 0) for part in operands.split(",")[-2:])
            kept = one[place : place + length]
            return kept + [kept[-1] if ".s" in name else 0] * (_WIDE - length)
        return None


def without_copies(ptx: str, threads: int) -> tuple[str, int]:
    """The text with a guard at each store to shared memory that several threads do alike; and how many those are.

    Where a tile has fewer elements than a program has threads, Triton lets threads that differ in some bits of their
    number hold the same elements, and store the same values to the same places with the same instruction. No branch
    may rest on those bits. Of such threads only the first stores in the returned text.
    """
    code, _ = parse(ptx)
    rests = Threads(code, threads)
    branches = rests.of(*(i.guard for i in code if i.guard and i.opcode.startswith(("bra", "ret", "exit"))))
    lines = ptx.splitlines()
    found = 0
    for i in code:
        if not (
            i.opcode.startswith(("st.shared", "stmatrix"))
            or (i.opcode.startswith("cp.async.c") and "[" in i.operands)
        ):
            continue
        if i.opcode.startswith("cp.async.commit"):
            continue
        free = rests.all & ~rests.of(*i.uses) & ~branches
        if i.opcode.startswith("stmatrix"):
            free &= ~31
        if not free:
            continue
        found += 1
        own, both = f"%first{found}", f"%alone{found}"
        with_guard = [f"setp.eq.u32 {both}, {own}, 0;"]
        if i.guard:
            old = i.guard
            if i.inverted:
                with_guard.append(f"not.pred %not{found}, {i.guard};")
                old = f"%not{found}"
            with_guard.append(f"and.pred {both}, {both}, {old};")
        text = lines[i.line - 1].strip()
        bare = text.split(None, 1)[1] if i.guard else text
        head = [f".reg .pred {both}, %not{found};", f".reg .b32 {own};", f"mov.u32 {own}, %tid.x;"]
        lines[i.line - 1] = " ".join(
            [*head, f"and.b32 {own}, {own}, {free};", *with_guard, f"@{both} {bare}"]
        )
    return "\n".join(lines) + "\n", found
