"""``steelworks doctor``: what applies on this machine, and what the library will do about it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from steelworks.cli._options import require_writable, with_clear_errors


@with_clear_errors
def doctor(
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the findings to this file; '-' prints only them.")
    ] = None,
) -> None:
    """Say what devices, torch, streams and hazards apply here, and what Steelworks does about them."""
    to_stdout = json_file is not None and str(json_file) == "-"
    if not to_stdout:
        require_writable(json_file, "--json")
    findings = examine()
    text = json.dumps(findings, indent=2)
    if to_stdout:
        typer.echo(text)
        return
    _show(Console(), findings)
    if json_file is not None:
        json_file.write_text(text + "\n", encoding="utf-8")


def examine() -> dict[str, Any]:
    """Collect everything that ``doctor`` shows."""
    from steelworks.cli import _environment as environment
    from steelworks.cli._tools import describe_tools

    return {
        "steelworks": environment.steelworks_version(),
        "machine": environment.describe_machine(),
        "python": environment.describe_python(),
        "torch": environment.describe_torch(),
        "thread_pools": environment.describe_thread_pools(),
        "extras": {
            extra: {"installed": not (missing := environment.missing_packages(extra)), "missing": missing}
            for extra in environment.EXTRAS
        },
        "tools": describe_tools(),
        "devices": [_examine_device(name) for name in _device_names()],
        "advice": _advice(environment.describe_thread_pools()),
    }


def _device_names() -> list[str]:
    import torch

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def _examine_device(name: str) -> dict[str, Any]:
    """Capabilities, hazards and measures of one device; a device that can't be opened says why."""
    from steelworks.devices import resolve

    try:
        device = resolve(name)
        capabilities = device.capabilities
        hazards = device.hazards()
    except Exception as error:  # doctor reports what is broken instead of breaking
        return {"device": name, "error": f"{type(error).__name__}: {error}"}
    return {
        "device": name,
        "capabilities": dataclasses.asdict(capabilities),
        "hazards": [dataclasses.asdict(hazard) for hazard in hazards],
        "what_happens": _what_happens(capabilities),
    }


def _what_happens(capabilities: Any) -> list[str]:
    """What the library does by default, in sentences."""
    workers, depth = capabilities.default_workers, capabilities.default_depth
    sentences = [
        f"BatchQueue starts {_plural(workers, 'worker')} (at most {capabilities.max_workers}), each with "
        f"{_plural(depth, 'batch', 'batches')} in flight"
    ]
    if capabilities.owner_thread:
        sentences.append("all device work comes from one owner thread; callers never touch the device")
    if capabilities.device_type == "cpu":
        sentences.append("workers share the cores; callers never oversubscribe them")
    elif capabilities.streams:
        sentences.append(f"every worker has a stream of its own (up to {capabilities.max_streams})")
    else:
        sentences.append("all work goes to one stream")
    if capabilities.device_type == "mps":
        from steelworks.devices.driver_guard import ENVIRONMENT, driver_guard_installed

        state = "installed" if driver_guard_installed() else f"not installed ({ENVIRONMENT}=1 installs it)"
        sentences.append(
            f"the guard of Apple's GPU driver, for programs with other Metal threads, is {state}"
        )
    sentences.append(
        "plans are captured graphs, copies included" if capabilities.graphs else "plans are warmed callables"
    )
    return sentences


def _advice(pools: list[dict[str, Any]]) -> list[str]:
    """What the user may want to change."""
    advice = []
    runtimes = sorted({str(pool["library"]) for pool in pools if pool["api"] == "openmp"})
    if len(runtimes) > 1:
        advice.append(
            f"{len(runtimes)} OpenMP runtimes are loaded ({', '.join(runtimes)}); each has its own "
            "threads and they compete for the cores: install torch and numpy from one source"
        )
    if "OMP_NUM_THREADS" in os.environ:
        advice.append(
            f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} is set; it bounds what torch uses for one call"
        )
    return advice


def _show(console: Console, findings: dict[str, Any]) -> None:
    def line(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    machine, python, torch_ = findings["machine"], findings["python"], findings["torch"]
    gil = "on" if python["gil_enabled"] else "off"
    build = ", free-threaded build" if python["free_threaded_build"] else ""
    cuda = f", CUDA {torch_['cuda']}" if torch_["cuda"] else ", no CUDA"
    line(f"steelworks {findings['steelworks']}", "bold")
    line(f"  machine   {machine['system']}, {machine['architecture']}, {machine['processor']}")
    line(f"  cores     {machine['cores']} usable")
    line(f"  Python    {python['version']} ({python['implementation']}{build}), GIL {gil}")
    line(
        f"  torch     {torch_['version']}{cuda}, {torch_['cpu_capability']}, "
        f"{torch_['intra_op_threads']} intra-op threads a call"
    )
    for pool in findings["thread_pools"]:
        line(
            f"  pool      {pool['api']}: {pool['library']} {pool['version'] or ''}, {pool['threads']} threads"
        )
    for extra, state in findings["extras"].items():
        missing = ", ".join(state["missing"])
        fix = f"missing {missing}: python -m pip install 'steelworks[{extra}]'"
        line(f"  extra     {extra}: {'installed' if state['installed'] else fix}")
    for tool in findings["tools"]:
        state = tool["found"] or f"missing: {tool['missing']}"
        line(f"  tool      {tool['name']} (for {tool['for']}): {state}")
    for device in findings["devices"]:
        _show_device(line, device)
    for advice in findings["advice"]:
        line(f"advice: {advice}")
    first = findings["devices"][0]
    hazards = len(first.get("hazards", ()))
    state = "can't be opened" if "error" in first else f"{_plural(hazards, 'hazard')} known and handled"
    line(f"verdict: {first['device']} is the best device here; {state}", "bold")


def _show_device(line: Any, device: dict[str, Any]) -> None:
    if "error" in device:
        line(f"device {device['device']}: can't be opened: {device['error']}", "bold red")
        return
    line(f"device {device['device']}: {device['capabilities']['name']}", "bold")
    for sentence in device["what_happens"]:
        line(f"  - {sentence}")
    for hazard in device["hazards"]:
        line(f"  hazard {hazard['id']}: {hazard['summary']}")
        line(f"    measure: {hazard['measure']}")


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"
