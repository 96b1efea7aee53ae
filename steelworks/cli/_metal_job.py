"""A launch of a Metal kernel in a process of its own: what it is told, and what it tells.

A defect in a kernel may end the process, or never end. So the command starts this module as a child, which
writes one line of JSON an event; the parent reads them (``_metal_child``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from steelworks.cli._metal_spec import build, name_of, parse
from steelworks.cli._options import CommandError

PREFIX: Final = "steelworks-metal:"
FOUR_SCHEDULES: Final = ("ring/forward", "ring/shuffled", "run_ahead/forward", "run_ahead/shuffled")
_SHOWN_VALUES: Final = 8
Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """What the child is to do.

    Attributes:
        file: Name of the source for messages.
        source: Its text.
        kernel: The kernel; "" if there is only one.
        threads: The grid, in threads.
        group: Threads of a threadgroup; None for the default.
        arguments: As written: see ``_metal_spec``.
        seed: Of random data and of shuffled schedules.
        schedules: Each ``SCHEDULE/ORDER``.
        check: Checking mode.
        save: A folder for the tensors that the kernel may have written; "" for none.
    """

    file: str
    source: str
    kernel: str
    threads: tuple[int, ...]
    group: tuple[int, ...] | None
    arguments: tuple[str, ...]
    seed: int
    schedules: tuple[str, ...]
    check: bool
    save: str = ""

    def to_json(self) -> str:
        """For the child."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Job:
        """What ``to_json`` made."""
        data = json.loads(text)
        for name in ("threads", "group", "arguments", "schedules"):
            data[name] = tuple(data[name]) if data[name] is not None else None
        return Job(**data)


class NotRunnableError(Exception):
    """The job can't be run; the text says why."""


def run(job: Job, tell: Tell) -> None:
    """Compiles and launches.

    Raises:
        NotRunnableError: no compiler, an error in the source, arguments that do not fit.
    """
    import torch

    from steelworks import metalsim

    torch.set_num_threads(1)
    try:
        specs = tuple(parse(text, index) for index, text in enumerate(job.arguments))
        with metalsim.options(check=job.check):
            library = metalsim.compile_shader(job.source, name=job.file)
        kernel = _kernel(library, job.kernel)
        tell({"event": "compiled", "kernel": kernel._info.name, "parameters": _parameters(kernel)})
        for schedule in job.schedules:
            tell({"event": "launch", "schedule": schedule})
            _launch(job, kernel, specs, schedule, tell)
    except (metalsim.errors.MetalsimError, CommandError) as problem:
        raise NotRunnableError(str(problem)) from None
    tell({"event": "done"})


def _kernel(library: Any, name: str) -> Any:
    known = dir(library)
    if not name and len(known) == 1:
        return getattr(library, known[0])
    if not name or name not in known:
        listed = ", ".join(known) or "none"
        told = (
            f"there is no kernel '{name}'"
            if name
            else "the file has several kernels, or none: name one with --kernel"
        )
        raise NotRunnableError(f"{told}; the file has: {listed}")
    return getattr(library, name)


def _parameters(kernel: Any) -> list[dict[str, Any]]:
    found = [
        {"index": i, "name": name, "constant": constant} for i, (name, constant) in kernel._buffers.items()
    ]
    return sorted(found, key=lambda p: int(p["index"]))


def _launch(job: Job, kernel: Any, specs: tuple[Any, ...], schedule: str, tell: Tell) -> None:
    from steelworks import metalsim

    arguments = build(specs, job.seed)
    outputs = [a for a, spec in zip(arguments, specs, strict=True) if spec.is_output and a.numel()]
    casts = {index: spec.cast for index, spec in enumerate(specs) if spec.cast is not None}
    kind, order = schedule.split("/")
    with metalsim.options(
        check=job.check, schedule=kind, order=order, seed=job.seed, outputs=outputs if job.check else ()
    ) as session:
        kernel(*arguments, threads=job.threads, group_size=job.group, arg_casts=casts or None)
    report = session.report().to_dict()
    written = [p for p in _parameters(kernel) if not p["constant"] and p["index"] < len(specs)]
    tell(
        {
            "event": "launched",
            "schedule": schedule,
            "findings": report["findings"],
            "counters": report["counters"],
            "outputs": [
                _described(p, arguments[p["index"]], job.save) for p in written if specs[p["index"]].is_tensor
            ],
        }
    )


def _described(parameter: dict[str, Any], tensor: Any, save: str) -> dict[str, Any]:
    import hashlib

    import numpy
    import torch

    flat = tensor.reshape(-1)
    wide = flat.double() if flat.is_floating_point() else flat.to(torch.int64)
    known = wide[~wide.isnan()] if flat.is_floating_point() else wide
    saved = ""
    if save:
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        path = Path(save) / f"{parameter['index']}_{parameter['name']}.npy"
        numpy.save(path, array)
        saved = str(path)
    return {
        "argument": parameter["index"],
        "name": parameter["name"],
        "dtype": name_of(tensor.dtype),
        "shape": list(tensor.shape),
        "first": [_finite(v) for v in wide[:_SHOWN_VALUES].tolist()],
        "least": _finite(known.min().item()) if known.numel() else None,
        "most": _finite(known.max().item()) if known.numel() else None,
        "nan": wide.numel() - known.numel(),
        "digest": hashlib.sha256(flat.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
        "saved": saved,
    }


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return value if isinstance(value, int) or value - value == 0 else str(value)


def main() -> None:
    """The child: the job comes in through stdin."""
    out = sys.stdout

    def tell(event: dict[str, Any]) -> None:
        out.write(f"{PREFIX}{json.dumps(event)}\n")
        out.flush()

    try:
        run(Job.from_json(sys.stdin.read()), tell)
    except NotRunnableError as problem:
        tell({"event": "refused", "reason": str(problem)})


if __name__ == "__main__":
    main()
