"""Takes the programs of SteelGEMM.tla from the running kernels: who reads and writes what, between which barriers.

A kernel of the gemm family is compiled as metalsim compiles it in checking mode, but with ``gemm_recorder.cpp`` between
it and the runtime. A launch then notes each access of each GPU thread to threadgroup memory and to tensors, and each
barrier. What a thread does between two barriers is taken as a set (a *part*): the order in it is no matter, as no other
thread can tell. Nothing is left out but reads of tensors that no thread writes.

The parts become constants of the module ``GemmPrograms``, which TLC reads in place of the small one beside this file.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import gcd
from pathlib import Path
from typing import Any, Final

import torch

from steelworks import metalsim
from steelworks.kernels.metal import _launch
from steelworks.kernels.metal import gemm as host
from steelworks.kernels.metal.tuning import GemmChoice
from steelworks.metalsim import _compile, _library, _toolchain

RECORDER: Final = Path(__file__).with_name("gemm_recorder.cpp")
READ, WRITE, BARRIER, END = 1, 2, 4, 8
THREADGROUP = 2  # the flag of mem_flags

Edit = tuple[str, str]


class _Note(ctypes.Structure):
    _fields_ = [
        ("group", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("what", ctypes.c_uint32),
        ("variable", ctypes.c_int32),
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("line", ctypes.c_uint32),
        ("fence", ctypes.c_uint32),
        ("file", ctypes.c_char_p),
    ]


@dataclass(frozen=True)
class Case:
    """A product that is recorded.

    Attributes:
        choice: the form of the kernel.
        m: rows of the result.
        n: columns.
        k: terms.
        trans_a: whether a is stored transposed.
        trans_b: whether b is.
        batch: products.
        splits: threadgroups that share the terms of a sum; above 1 only the first of the two kernels is taken.
    """

    choice: GemmChoice
    m: int
    n: int
    k: int
    trans_a: bool = False
    trans_b: bool = False
    batch: int = 1
    splits: int = 1


@dataclass
class Part:
    """What a thread does between two barriers; locations are numbers.

    Attributes:
        reads: of threadgroup memory.
        writes: the same.
        gets: reads of tensors that are written.
        puts: writes to tensors.
        line: of the barrier behind it; 0 at the thread's end.
        fenced: whether that barrier orders threadgroup memory.
    """

    reads: set[int] = field(default_factory=set)
    writes: set[int] = field(default_factory=set)
    gets: set[int] = field(default_factory=set)
    puts: set[int] = field(default_factory=set)
    line: int = 0
    fenced: bool = False


@dataclass(frozen=True)
class Programs:
    """All threads of a launch.

    Attributes:
        groups: the threadgroup of each thread.
        threads: the parts of each thread, in order.
        twice: what each thread writes twice to tensors.
        outputs: what must be written.
        places: where each location of threadgroup memory is: variable and element.
    """

    groups: tuple[int, ...]
    threads: tuple[tuple[Part, ...], ...]
    twice: tuple[frozenset[int], ...]
    outputs: frozenset[int]
    places: tuple[tuple[str, int], ...]

    @property
    def barriers(self) -> int:
        """The most that a thread passes."""
        return max(len(parts) for parts in self.threads) - 1

    @property
    def lines(self) -> tuple[int, ...]:
        """The lines of the barriers in the kernel's source, in order of their last use."""
        return tuple(dict.fromkeys(part.line for parts in self.threads for part in parts if part.line))

    def numbers(self, line: int) -> tuple[int, ...]:
        """Which of a thread's barriers stand in ``line``: 1 for the first."""
        return tuple(
            sorted({i for parts in self.threads for i, part in enumerate(parts, 1) if part.line == line})
        )

    def without(self, line: int) -> Programs:
        """The same with the barriers of a line left out."""

        def joined(parts: tuple[Part, ...]) -> tuple[Part, ...]:
            kept: list[Part] = []
            for part in parts:
                if kept and kept[-1].line == line:
                    last = kept.pop()
                    sets = (getattr(last, name) | getattr(part, name) for name in _SETS)
                    kept.append(Part(*sets, line=part.line, fenced=part.fenced))
                else:
                    kept.append(part)
            return tuple(kept)

        return Programs(self.groups, tuple(map(joined, self.threads)), self.twice, self.outputs, self.places)


_SETS: Final = ("reads", "writes", "gets", "puts")
#: On a Mac names are looked up by library, so there is nothing to ask for.
_SYMBOLIC: Final = () if sys.platform == "darwin" else ("-Wl,-Bsymbolic",)
_GUARD: Final = threading.Lock()  # one launch is recorded at a time


class _Recording(_library.ShaderLibrary):
    """A kernel library whose kernels are recorded."""

    def _load(self, check: bool) -> _library._Loaded:
        del check
        loaded = self._loaded.get(True)
        if loaded is None:
            loaded = self._loaded[True] = _library._Loaded(_build(self._source, self._name))
        return loaded


def _build(source: str, name: str) -> _compile.Compiled:
    """As metalsim compiles a source in checking mode, with the recorder linked in."""
    compiler, runtime = _toolchain.find_compiler(), _toolchain.runtime_library()
    flags = _toolchain.compile_flags(True)
    text, found = _compile.translate(source, name)
    file = f"kernels{_toolchain.library_suffix()}"
    key = _toolchain.digest(
        text,
        RECORDER.read_bytes(),
        _toolchain.shim_digest(),
        compiler.version,
        str(runtime),
        *flags,
        *_SYMBOLIC,
    )

    def make(directory: Path) -> None:
        (directory / "kernels.cpp").write_text(text, encoding="utf-8")
        header = str(_toolchain.header(True))
        kernel, recorder = str(directory / "kernels.o"), str(directory / "recorder.o")
        for arguments in (
            (*flags, "-include-pch", header, "-c", "-x", "c++", "-o", kernel, str(directory / "kernels.cpp")),
            ("-std=c++17", "-O1", "-fPIC", f"-I{_toolchain.RUNTIME}", "-c", "-o", recorder, str(RECORDER)),
            # The kernel calls the recorder also where another library has put the runtime's names in front of all.
            (
                "-shared",
                "-nostdlib++",
                *_SYMBOLIC,
                "-o",
                str(directory / file),
                kernel,
                recorder,
                str(runtime),
                "-lm",
            ),
        ):
            done = compiler.run(*arguments)
            if done.returncode:
                raise RuntimeError(f"{name} can't be recorded, it does not compile:\n{done.stderr}")

    directory = _toolchain.CACHE.get("recorded", key, make)
    return _compile.Compiled(directory / file, tuple(_compile._describe(found)), True)


def _edited(source: str, edit: Edit | None) -> str:
    if edit is None:
        return source
    find, replace = edit
    if source.count(find) != 1:
        raise LookupError(f"{find!r} stands {source.count(find)} times in the kernel's source, not once")
    return source.replace(find, replace)


class _Launch:
    """Stands for ``launch``: records the first launch, ends the others."""

    def __init__(self, edit: Edit | None) -> None:
        self._edit = edit
        self.notes: list[_Note] = []
        self.names: list[str] = []
        self.out = torch.empty(0)

    def __call__(
        self, variant: _launch.Variant, *args: Any, threads: Sequence[int], group: Sequence[int]
    ) -> None:
        if self.notes:
            return
        source = _edited(_launch.source_of(variant), self._edit)
        library = _Recording(source, name=variant.name)
        kernel, loaded = getattr(library, variant.name), library._any()
        first = next(a for a in args if isinstance(a, torch.Tensor))
        given = [first if a is None else a for a in args]
        sizes = [a.untyped_storage().nbytes() if isinstance(a, torch.Tensor) else 0 for a in given]
        start = loaded.code.recorder_start
        start.restype = ctypes.c_void_p
        entry = start(
            str(_toolchain.runtime_library()).encode(),
            ctypes.c_void_p(loaded.entries[variant.name]),
            (ctypes.c_uint64 * len(sizes))(*sizes),
            ctypes.c_uint32(len(sizes)),
        )
        loaded.entries[variant.name] = entry
        casts = {i: "int32" for i, a in enumerate(args) if isinstance(a, (list, int))}
        kernel(*given, threads=tuple(threads), group_size=tuple(group), arg_casts=casts)
        self._take(loaded.code)
        self.out = next(a for a in reversed(given) if isinstance(a, torch.Tensor))

    def _take(self, code: ctypes.CDLL) -> None:
        how_many = ctypes.c_uint64(0)
        ask = code.recorder_notes
        ask.restype = ctypes.POINTER(_Note)
        notes = ask(ctypes.byref(how_many))
        if how_many.value == 2**64 - 1:
            raise RuntimeError("the recorder lost accesses")
        for at in range(how_many.value):
            note = _Note()
            ctypes.pointer(note)[0] = notes[at]
            self.notes.append(note)
        name = code.recorder_variable
        name.restype = ctypes.c_char_p
        number = 0
        while (called := name(ctypes.c_uint32(number))) is not None:
            self.names.append(called.decode())
            number += 1


@contextmanager
def _recorded(edit: Edit | None) -> Iterator[_Launch]:
    module: Any = host
    before, module.launch = module.launch, _Launch(edit)
    try:
        yield module.launch
    finally:
        module.launch = before


@functools.cache
def record(
    case: Case, edit: Edit | None = None, *, schedule: str = "ring", order: str = "forward", seed: int = 0
) -> Programs:
    """Run a case and take its programs.

    Args:
        case: what is run.
        edit: a text that stands once in the kernel's source, and what to put there instead.
        schedule: of metalsim.
        order: of metalsim.
        seed: of metalsim.

    Raises:
        LookupError: the text of ``edit`` does not stand there once.
        RuntimeError: what was noted is not what metalsim counted.
    """
    batch = (case.batch,) if case.batch > 1 else ()
    a = torch.ones(*batch, *((case.k, case.m) if case.trans_a else (case.m, case.k)))
    b = torch.ones(*batch, *((case.n, case.k) if case.trans_b else (case.k, case.n)))
    problem = host._problem(a, b, host._Options(case.trans_a, case.trans_b))
    with (
        _GUARD,
        metalsim.options(check=True, schedule=schedule, order=order, seed=seed) as session,
        _recorded(edit) as launch,
    ):
        host._run(problem, case.choice, case.splits)
    counters = session.launches[0].counters
    _compare(launch.notes, counters)
    return _programs(launch, launch.out.numel() * launch.out.element_size())


def _compare(notes: list[_Note], counters: metalsim.Counters) -> None:
    """What was noted is all there was: by byte, in each kind of memory."""

    def of(what: int, group: bool) -> int:
        return sum(n.bytes for n in notes if n.what & what and (n.variable >= 0) == group)

    noted = (of(READ, True), of(WRITE, True), of(READ, False), of(WRITE, False))
    counted = (
        counters.group_read, counters.group_written, counters.device_read, counters.device_written
    )  # fmt: skip
    if noted != counted or counters.atomics or counters.simdgroup_barriers:
        raise RuntimeError(f"bytes noted are {noted}, and metalsim counted {counted}: {counters}")


def _programs(launch: _Launch, out_bytes: int) -> Programs:
    notes = launch.notes
    touching = [n for n in notes if n.what & (READ | WRITE)]
    unit = functools.reduce(gcd, (v for n in touching for v in (n.offset, n.bytes)), 0) or 1
    written = {n.variable for n in touching if n.what & WRITE and n.variable < 0}
    numbers: dict[tuple[int, int], int] = {}
    parts: dict[tuple[int, int], list[Part]] = defaultdict(lambda: [Part()])
    twice: dict[tuple[int, int], set[int]] = defaultdict(set)
    for note in notes:
        thread = (note.group, note.thread)
        part = parts[thread][-1]
        if note.what == BARRIER:
            part.line, part.fenced = note.line, bool(note.fence & THREADGROUP)
            parts[thread].append(Part())
        if not note.what & (READ | WRITE) or (note.variable < 0 and note.variable not in written):
            continue
        first = note.offset // unit
        places = [(note.variable, at) for at in range(first, first + note.bytes // unit)]
        touched = {numbers.setdefault(place, len(numbers)) for place in places}
        if note.what & WRITE and note.variable < 0:
            twice[thread] |= touched & set().union(*(p.puts for p in parts[thread]))
        if note.what & READ:
            (part.reads if note.variable >= 0 else part.gets).update(touched)
        if note.what & WRITE:
            (part.writes if note.variable >= 0 else part.puts).update(touched)
    # Numbers by place, not by who came first: the same under every schedule.
    order = {numbers[place]: at for at, place in enumerate(sorted(numbers))}
    for all_parts in parts.values():
        for part in all_parts:
            for name in _SETS:
                setattr(part, name, {order[at] for at in getattr(part, name)})
    outputs = _outputs(numbers, order, out_bytes // unit, max(written, default=-1))
    threads = sorted(parts)
    named = tuple((launch.names[v] if v >= 0 else f"buffer {-1 - v}", at) for v, at in sorted(numbers))
    return Programs(
        tuple(group for group, _ in threads),
        tuple(tuple(parts[t]) for t in threads),
        tuple(frozenset(order[at] for at in twice[t]) for t in threads),
        outputs,
        named,
    )


def _outputs(
    numbers: dict[tuple[int, int], int], order: dict[int, int], elements: int, variable: int
) -> frozenset[int]:
    """The numbers of the result's elements; one that nobody writes has a number of its own."""
    found = set()
    for at in range(elements):
        number = numbers.get((variable, at))
        found.add(order[number] if number is not None else len(order) + at)
    return frozenset(found)


def module(programs: Programs, crews: int = 2) -> str:
    """The text of the TLA+ module.

    Args:
        programs: what was recorded.
        crews: how many threads of a threadgroup are taken together: 2 for every pair; above that, a sample.
    """
    lines = ["---- MODULE GemmPrograms ----", "EXTENDS Integers"]
    count = len(programs.threads)
    groups = sorted(set(programs.groups))
    members = {g: [t for t in range(count) if programs.groups[t] == g] for g in groups}
    texts = [_text(parts) for parts in programs.threads]
    # A threadgroup as a whole: against another, nothing orders what its threads do.
    for g in groups:
        whole = Part(
            gets=set().union(*(p.gets for t in members[g] for p in programs.threads[t])),
            puts=set().union(*(p.puts for t in members[g] for p in programs.threads[t])),
        )
        texts.append(_text((whole,)))
    lines += ["Programs == <<", ",\n".join(texts), ">>"]
    lines.append(f"GroupOf == <<{', '.join(map(str, (*programs.groups, *groups)))}>>")
    lines.append(f"Twice == UNION {{{', '.join(_set(t) for t in sorted(set(programs.twice), key=sorted))}}}")
    lines.append(f"Outputs == {_set(programs.outputs)}")
    chosen = [
        f"<<{', '.join(str(t + 1) for t in crew)}>>" for g in groups for crew in _crews(members[g], crews)
    ]
    if crews == 2:
        chosen += [f"<<{count + i + 1}, {count + j + 1}>>" for i in range(len(groups)) for j in range(i)]
    lines += [f"Crews == {{{', '.join(chosen)}}}", f"Seats == 1..{crews}", "===="]
    return "\n".join(lines) + "\n"


def _crews(threads: list[int], size: int) -> Iterator[tuple[int, ...]]:
    if size == 2:
        yield from ((t, u) for i, t in enumerate(threads) for u in threads[:i])
        return
    # Neighbours, and threads far apart, from every start.
    for start in range(len(threads)):
        for step in (1, max(1, len(threads) // size)):
            crew = tuple(threads[(start + i * step) % len(threads)] for i in range(size))
            if len(set(crew)) == size:
                yield crew


def _text(parts: Sequence[Part]) -> str:
    shown = []
    for part in parts:
        values = asdict(part)
        sets = ", ".join(f"{name} |-> {_set(values[name])}" for name in _SETS)
        shown.append(f"[{sets}, line |-> {part.line}, fenced |-> {str(part.fenced).upper()}]")
    return f"<<{', '.join(shown)}>>"


def _set(values: set[int] | frozenset[int]) -> str:
    return "{" + ", ".join(map(str, sorted(values))) + "}"
