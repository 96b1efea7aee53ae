"""``steelworks bench``: the comparison of the demo, for a model of your own."""

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
    resolve_device,
    with_clear_errors,
)


@with_clear_errors
def bench(
    model: Annotated[str, typer.Option(help="package.module:factory of your model; see above.")],
    callers: Callers = 8,
    requests: Annotated[
        int | None,
        typer.Option(help="Requests a scenario answers; default: as many as the factory gives."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:N, mps or auto; default: where the model is.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(help="Largest batch of oracle and queue.")] = 32,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest accepted absolute difference from a single call; default: by dtype."),
    ] = None,
    plot: PlotFile = None,
    json_file: JsonFile = None,
    repeats: Repeats = 1,
    time_limit: Annotated[float | None, typer.Option(help=TIME_LIMIT_HELP)] = None,
    scenario: Scenario = None,
    isolate: Isolate = None,
) -> None:
    """Measure your own model from many threads: plain, with a lock, batched offline, and queued.

    --model names a function without arguments, found from the current folder or on sys.path. It
    returns (model, requests), or an object with .model and .requests: a torch.nn.Module and a
    list of inputs. Each input is a CPU tensor, a tuple or a dict of CPU tensors with a leading
    batch dimension, as the model takes it. Inputs of different lengths share a batch if they are
    dicts with an 'attention_mask'.

    For example "def factory(): return torch.nn.Linear(64, 8), 500 * [torch.randn(1, 64)]" in
    my_model.py, then: steelworks bench --model my_model:factory
    """
    from steelworks.cli._compare import Settings
    from steelworks.cli._factory import device_of, load_factory, try_requests
    from steelworks.cli._run import check_outputs, run_comparison
    from steelworks.cli._workload import Workload

    require_at_least(1, callers=callers, requests=requests, repeats=repeats, time_limit=time_limit)
    require_at_least(1, max_batch_size=max_batch_size)
    require_at_least(0, tolerance=tolerance)
    check_outputs(plot, json_file)
    scenarios = check_scenarios(scenario)
    chosen = None if device is None else resolve_device(device)

    def load() -> tuple[Workload, Settings]:
        workload = load_factory(model)
        where = device_of(workload.model) if chosen is None else chosen
        isolated = where.type == "mps" if isolate is None else isolate
        if not isolated:  # else what the model does is to happen in the child process
            try_requests(model, workload, where)
        count = len(workload.requests) if requests is None else requests
        again = ["bench", "--model", model, "--callers", str(callers), "--requests", str(count)]
        settings = Settings(
            callers=callers,
            requests=count,
            device=where,
            max_batch_size=max_batch_size,
            repeats=repeats,
            time_limit=time_limit,
            tolerance=tolerance,
            scenarios=scenarios,
            isolate=isolated,
            isolated_command=(*again, "--device", str(where), "--max-batch-size", str(max_batch_size)),
        )
        return workload, settings

    run_comparison("bench", load, plot, json_file)
