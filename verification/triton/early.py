"""Programmatic dependent launch: what a kernel touches before ``griddepcontrol.wait``, and whether it may.

A kernel that starts early runs beside the kernel before it. From the PTX of each launch, on every path from its entry
(branches that only depend on the launch's scalars are decided, others go both ways):

* nothing is written before the wait, and every path to the end passes the wait;
* which operands are read before it;
* whether the kernel lets the next one start before it has itself waited.

From the recorded order of launches: which kernels may still be running when a launch starts, and that what it reads
early is none of what they write. A launch waits for what is before it; a kernel of PyTorch is launched without this
attribute, so that it starts when all before it is done; before a call of a host function there may be any kernel, which
may be writing to anything, but for parameters that ``settled`` vouches for, and for what the host code made itself and
waited for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .ptx import Instruction, parse
from .record import Began, Event, Launched, Operator, Waited

_BRACKETS: Final = re.compile(r"\[([^\]]*)\]")
_PARAMETER: Final = re.compile(r"_param_(\d+)")
_MASK: Final = 2**32 - 1
#: The kernel before a call, of which nothing is known.
_ANYBODY: Final = -1
_WRITES: Final = ("st.global", "red.", "atom.", "cp.reduce", "cp.async.bulk.global", "cp.async.bulk.tensor.1d.global",
                  "cp.async.bulk.tensor.2d.global", "st.async")  # fmt: skip


@dataclass(frozen=True)
class Early:
    """What a launch does before its wait, and what it writes at all.

    Attributes:
        reads: Places of the operands that are read before the wait.
        writes: Instructions that write to global memory before it.
        unknown: Reads before it whose operand could not be told.
        lets_next: It lets the next kernel start before it has waited.
        skips: There is a path to the end that never waits.
        written: Places of the operands that are written, early or late.
    """

    reads: frozenset[int]
    writes: tuple[str, ...]
    unknown: tuple[str, ...]
    lets_next: bool
    skips: bool
    written: frozenset[int]


class _Values:
    """What registers hold, as far as the launch's scalars decide it; only registers that are set once."""

    def __init__(self, code: Sequence[Instruction], parameters: Mapping[int, int]) -> None:
        self._parameters = parameters
        self._setters: dict[str, list[Instruction]] = {}
        for instruction in code:
            for register in instruction.sets:
                self._setters.setdefault(register, []).append(instruction)

    def of(self, operand: str) -> int | None:
        operand = operand.strip()
        if re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+", operand):
            return int(operand, 0) & _MASK
        setters = self._setters.get(operand, [])
        if len(setters) != 1 or setters[0].guard:
            return None
        return self._result(setters[0])

    def _result(self, instruction: Instruction) -> int | None:
        name, _, rest = instruction.opcode.partition(".")
        if instruction.opcode.startswith("ld.param"):
            number = re.search(r"_param_(\d+)", instruction.operands)
            value = self._parameters.get(int(number[1])) if number else None
            return None if value is None else value & _MASK
        sources = [self.of(source) for source in instruction.operands.split(",")[1:]]
        if any(s is None for s in sources) or rest.endswith("64"):
            return None
        known = [s for s in sources if s is not None]
        signed = [s - 2**32 if s >= 2**31 else s for s in known]
        if name == "setp":
            relation, _, kind = rest.partition(".")
            a, b = signed if kind.startswith("s") else known
            relations = {"lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "eq": a == b, "ne": a != b}
            return int(relations[relation]) if relation in relations else None
        if name == "shr":
            return ((signed if rest.startswith("s") else known)[0] >> known[1]) & _MASK
        simple = {
            "mov": lambda: known[0], "add": lambda: known[0] + known[1], "sub": lambda: known[0] - known[1],
            "shl": lambda: known[0] << known[1], "and": lambda: known[0] & known[1], "or": lambda: known[0] | known[1],
            "not": lambda: 1 - known[0], "mul": lambda: known[0] * known[1], "min": lambda: min(signed),
            "max": lambda: max(signed),
        }  # fmt: skip
        if (
            name not in simple
            or (name == "mul" and not rest.startswith("lo"))
            or (name == "not" and rest != "pred")
        ):
            return None
        return simple[name]() & _MASK


def _pointers(code: Sequence[Instruction], operands: Mapping[int, int]) -> dict[str, frozenset[int]]:
    """Which operands the value of a register comes from, not through memory; ``operands``: by parameter of the PTX."""
    found: dict[str, frozenset[int]] = {}
    changed = True
    while changed:
        changed = False
        for instruction in code:
            parameter = _PARAMETER.search(instruction.operands)
            if parameter:
                sources = frozenset({operands[int(parameter[1])]} if int(parameter[1]) in operands else ())
            elif instruction.opcode.startswith(("ld.", "atom.")):
                continue
            else:
                sources = frozenset[int]().union(*(found.get(r, frozenset()) for r in instruction.uses))
            for target in instruction.sets:
                if not sources <= found.get(target, frozenset()):
                    found[target] = found.get(target, frozenset()) | sources
                    changed = True
    return found


def before_wait(launched: Launched, ptx: str) -> Early:
    """What a launch does before it waits.

    Raises:
        NotImplementedError: There is a branch that is not understood.
    """
    code, labels = parse(ptx)
    places = launched.parameters
    last = places[len(launched.operands) :]
    values = _Values(code, {p: s for p, s in zip(last, launched.scalars, strict=True) if isinstance(s, int)})
    come_from = _pointers(
        code, {place: number for number, place in enumerate(places[: len(launched.operands)])}
    )
    unknown = dict[str, None]()

    def operand(instruction: Instruction) -> frozenset[int]:
        address = _BRACKETS.findall(instruction.operands)[1 if instruction.opcode.startswith("cp.") else 0]
        registers = re.findall(r"%[a-z]+\d+", address)
        origin = frozenset[int]().union(*(come_from.get(r, frozenset()) for r in registers))
        return origin

    everything = frozenset(
        range(len(launched.operands))
    )  # where an address came through memory, it may be any
    written = frozenset[int]().union(
        *(operand(i) or everything for i in code if i.opcode.startswith(_WRITES))
    )
    reads, writes = frozenset[int](), dict[str, None]()
    lets_next = skips = False
    seen, todo = set[int](), [0]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        if at >= len(code):
            skips = True
            continue
        instruction, name = code[at], code[at].opcode
        if name.startswith("griddepcontrol.wait"):
            if instruction.guard:
                raise NotImplementedError(f"a wait under a condition: {instruction}")
            continue
        if name.startswith("griddepcontrol.launch_dependents"):
            lets_next = True
        elif name.startswith(_WRITES):
            writes[str(instruction)] = None
        elif (name.startswith("ld.") and ".global" in name) or (
            name.startswith("cp.async") and ".global" in name
        ):
            origin = operand(instruction)
            reads |= origin
            if not origin:
                unknown[str(instruction)] = None
        elif name in ("ret", "exit"):
            skips = True
            if not instruction.guard:
                continue
        elif name.startswith(("brx", "call")):
            raise NotImplementedError(f"a jump that is not looked at: {instruction}")
        if not name.startswith("bra"):
            todo.append(at + 1)
            continue
        value = values.of(instruction.guard) if instruction.guard else 1
        taken = None if value is None else bool(value) != instruction.inverted
        if taken is not False:
            todo.append(labels[instruction.operands.strip()])
        if taken is not True:
            todo.append(at + 1)
    return Early(reads, tuple(writes), tuple(unknown), lets_next, skips, written)


def check(events: Sequence[Event], found: Mapping[int, Early]) -> list[str]:
    """What is wrong in a recorded order; ``found``: what each launch does, by the place of its event."""
    wrong: list[str] = []
    written: dict[int, int] = {}  # memory to the last event that wrote it
    made = set[int]()  # memory that the host code let PyTorch fill: nobody else writes there
    running = frozenset([_ANYBODY])  # what may not have ended when the next kernel starts
    for place, event in enumerate(events):
        if isinstance(event, Began):
            running = frozenset([_ANYBODY])
        elif isinstance(event, Waited):
            written = dict.fromkeys(written, place)
        elif isinstance(event, Operator):
            made |= event.written
            written.update(dict.fromkeys(event.written, place))
            running = frozenset([place])
        else:
            early = found[place]
            wrong += [f"{event.name} writes before its wait: {text}" for text in early.writes]
            wrong += [f"{event.name}: whose memory is it? {text}" for text in early.unknown]
            if not event.variant.options.pdl:
                running = frozenset()
            elif early.skips:
                wrong.append(f"{event.name} may end without having waited")
            for operand in sorted(early.reads):
                memory, name = event.operands[operand].memory, event.kernel.function.arg_names[operand]
                if written.get(memory) in running:
                    wrong.append(f"{event.name} reads {name} early, and the kernel before may still write it")
                elif _ANYBODY in running and memory not in event.settled and memory not in made:
                    wrong.append(f"{event.name} reads {name} early, and nobody vouches for it")
            written.update((event.operands[operand].memory, place) for operand in early.written)
            running = (running if early.lets_next else frozenset()) | {place}
    return wrong
