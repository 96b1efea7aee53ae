"""``steelworks demo``: real sentences, a real model, many threads."""

from __future__ import annotations

from typing import Annotated

import typer

from steelworks.cli._options import (
    TIME_LIMIT_HELP,
    Callers,
    Isolate,
    JsonFile,
    PlotFile,
    Repeats,
    Scenario,
    check_scenarios,
    require_at_least,
    require_extra,
    resolve_device,
    with_clear_errors,
)


@with_clear_errors
def demo(
    callers: Callers = 8,
    requests: Annotated[int, typer.Option(help="Requests a scenario answers.")] = 1000,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:N, mps, or auto: the first of cuda, mps, cpu.")
    ] = "auto",
    plot: PlotFile = None,
    json_file: JsonFile = None,
    repeats: Repeats = 1,
    time_limit: Annotated[float, typer.Option(help=TIME_LIMIT_HELP)] = 50.0,
    seed: Annotated[int, typer.Option(help="Which sentences, and in which order.")] = 0,
    scenario: Scenario = None,
    isolate: Isolate = None,
) -> None:
    """Embed real sentences with all-MiniLM-L6-v2 from many threads, in five ways side by side.

    The sentences are the documentation strings of the installed Python; nothing is downloaded.
    Plain threads, one lock, one thread, an offline oracle (sorted by length, batches of 32) and
    steelworks.BatchQueue answer the same requests. Takes about a minute or two on 2 cores.
    """
    from steelworks.cli._run import check_outputs, run_comparison

    require_at_least(1, callers=callers, requests=requests, repeats=repeats, time_limit=time_limit)
    check_outputs(plot, json_file)
    scenarios = check_scenarios(scenario)
    chosen = resolve_device(device)
    require_extra("demo", "the demo")

    from steelworks.cli._compare import Settings
    from steelworks.cli._corpus import load_sentences
    from steelworks.cli._minilm import load_minilm
    from steelworks.cli._workload import Workload

    def load() -> tuple[Workload, Settings]:
        minilm = load_minilm()
        workload = Workload(
            title=f"all-MiniLM-L6-v2, {requests} sentences from Python's documentation strings",
            model=minilm.model,
            requests=load_sentences(requests, seed),
            prepare=minilm.tokenize,
        )
        again = ["demo", "--callers", str(callers), "--requests", str(requests), "--device", str(chosen)]
        settings = Settings(
            callers=callers,
            requests=requests,
            device=chosen,
            repeats=repeats,
            time_limit=time_limit,
            scenarios=scenarios,
            isolate=chosen.type == "mps" if isolate is None else isolate,
            isolated_command=(*again, "--seed", str(seed)),
        )
        return workload, settings

    run_comparison("demo", load, plot, json_file)
