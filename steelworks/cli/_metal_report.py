"""What ``steelworks metal`` prints: findings with the source lines they are about, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from steelworks.cli._metal_child import MergedFinding, Outcome
from steelworks.cli._metal_job import Job

if TYPE_CHECKING:
    from steelworks.metalsim.lint import LintFinding

MENDS: Final = {
    "race_threadgroup": "put threadgroup_barrier(mem_flags::mem_threadgroup) between the two, where all "
    "threads reach it",
    "race_device": "put threadgroup_barrier(mem_flags::mem_device) between the two, or give each thread "
    "its own elements",
    "race_between_groups": "no barrier orders threadgroups: let one group own the element, use atomics, "
    "or two launches",
    "out_of_bounds": "guard the access with the bounds of the array, or mend the index",
    "uninitialised": "write it before it is read: threadgroup memory and outputs hold anything at first",
    "misaligned": "a vector access needs an address that is a multiple of its size: use scalars or a "
    "packed type",
    "unwritten": "cover the whole output: look at the grid, the guard and the stride",
    "written_twice": "let one thread write each element: look at the guard and the stride",
    "order_dependent_atomic": "a store to and an update of one location need a barrier or a launch "
    "between them",
    "divergent_barrier": "move the barrier to where all threads of the threadgroup pass it equally often",
    "divergent_simd": "let all lanes of the simdgroup reach the same simdgroup function, and choose the "
    "operands before",
    "absent_lane": "take values from lanes that take part only: full simdgroups, or a guard on the lane's "
    "number",
    "write_to_constant": "write to a device buffer",
    "group_memory_limit": "a threadgroup has 32 KiB: use smaller tiles",
    "stack_overflow": "a thread keeps too much: smaller local arrays, no recursion",
    "crash": "an access far outside, most likely; run it with smaller sizes to see which",
}
_TITLES: Final = {"crash": "the kernel ended the process"}


def show_outcome(console: Console, outcome: Outcome, job: Job) -> None:
    """Prints the launch, what it wrote (unchecked), its findings, and the verdict."""
    _line(console, f"kernel {outcome.kernel or job.kernel or '?'} of {job.file}", "bold")
    group = _times(job.group) if job.group else "the default size"
    _line(console, f"  grid {_times(job.threads)} threads, threadgroups of {group}")
    names = {p["index"]: p["name"] for p in outcome.parameters}
    for index, text in enumerate(job.arguments):
        _line(console, f"  buffer {index}  {names.get(index, ''):<12} {text}")
    if outcome.schedules:
        _line(console, f"  schedules  {', '.join(outcome.schedules)}; seed {job.seed}")
    if not job.check:
        _outputs(console, outcome)
    for number, merged in enumerate(outcome.findings, 1):
        _finding(console, number, merged, job, len(outcome.schedules))
    for note in outcome.notes:
        _line(console, f"note: {note}", "yellow")
    if outcome.reason:
        _line(
            console,
            f"not runnable: {outcome.reason}" if not outcome.schedules else outcome.reason,
            "bold red",
        )
    count = len(outcome.findings)
    if count:
        _line(console, f"verdict: {count} {'finding' if count == 1 else 'findings'}", "bold red")
    elif outcome.reason:
        _line(console, "verdict: nothing can be said of this kernel", "bold red")
    else:
        how = (
            f"no findings under {len(outcome.schedules)} schedules"
            if job.check
            else "ran to its end (not checked)"
        )
        _line(console, f"verdict: {how}", "bold green")


def _finding(console: Console, number: int, merged: MergedFinding, job: Job, ran: int) -> None:
    from steelworks.metalsim.reports import Finding

    found = merged.finding
    fields = {**found, "first": None, "second": None}
    title = _TITLES.get(found["kind"]) or Finding(**fields).title
    subject = f" in '{found['variable']}'" if found["variable"] else ""
    times = f", {found['count']} times" if found["count"] > 1 else ""
    console.print()
    _line(console, f"{number}. {title}{subject}{times}  [{found['kind']}]", "bold")
    if found["detail"]:
        _line(console, f"   {found['detail']}")
    for access in (found["first"], found["second"]):
        if access is not None:
            _access(console, access, job)
    which = "all schedules" if len(merged.schedules) == ran else ", ".join(merged.schedules)
    _line(console, f"   seen under {which}")
    if found["kind"] in MENDS:
        _line(console, f"   mend: {MENDS[found['kind']]}", "cyan")


def _access(console: Console, access: dict[str, Any], job: Job) -> None:
    what = "waits"
    if access["bytes"]:
        atomic = "atomic " if access["is_atomic"] else ""
        what = f"{atomic}{'write' if access['is_write'] else 'read'} of {access['bytes']} bytes"
    thread, group = (tuple(access[n]) for n in ("thread", "group"))
    _line(console, f"   {what} by thread {thread} of threadgroup {group}")
    if not access["file"]:
        return
    _line(
        console,
        f"     {access['file']}:{access['line']}: {_source_line(job, access['file'], access['line'])}",
        "magenta",
    )


def _source_line(job: Job, file: str, line: int) -> str:
    text = job.source
    if file != job.file:
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    lines = text.split("\n")
    return lines[line - 1].strip() if 1 <= line <= len(lines) else ""


def _outputs(console: Console, outcome: Outcome) -> None:
    """What the kernel may have written."""
    for output in outcome.outputs:
        shape = ",".join(map(str, output["shape"]))
        count = 1
        for n in output["shape"]:
            count *= n
        more = ", ..." if count > len(output["first"]) else ""
        values = ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in output["first"])
        _line(console, f"{output['name']} {output['dtype']}[{shape}]", "bold")
        _line(console, f"  [{values}{more}]")
        if output["least"] is not None and count > 1:
            _line(
                console,
                f"  from {output['least']} to {output['most']}"
                + (f", {output['nan']} NaN" if output["nan"] else ""),
            )
        elif output["nan"]:
            _line(console, f"  {output['nan']} NaN")
        if output["saved"]:
            _line(console, f"  saved to {output['saved']}")


def show_lint(console: Console, file: str, findings: list[LintFinding]) -> None:
    """Prints lint findings, and the verdict."""
    for finding in findings:
        _line(
            console,
            f"{finding.file}:{finding.line}: {finding.severity}: {finding.message}  [{finding.rule}]",
            "bold",
        )
        _line(console, f"   mend: {finding.mend}", "cyan")
    if findings:
        count = len(findings)
        _line(console, f"verdict: {count} {'finding' if count == 1 else 'findings'} in {file}", "bold red")
    else:
        _line(console, f"verdict: no findings in {file}", "bold green")


def _times(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(Text(text, style=style), soft_wrap=True, highlight=False)
