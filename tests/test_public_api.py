"""What is public is there, is documented, and has the shape that the documentation promises."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LONG, Held, row, values

import steelworks as sw
from steelworks import errors

DESIGNED = {
    "BatchQueue",
    "Padding",
    "Plan",
    "QueueOptions",
    "QueueStatistics",
    "StreamPool",
    "batch_inference",
    "plan",
}


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


# ---------------------------------------------------------------- names


def test_what_the_design_names_is_exported() -> None:
    assert set(sw.__all__) >= DESIGNED


def test_every_exported_name_exists_once_and_they_are_sorted() -> None:
    assert len(set(sw.__all__)) == len(sw.__all__)
    assert sorted(sw.__all__) == list(sw.__all__)
    for name in sw.__all__:
        assert getattr(sw, name) is not None


@pytest.mark.parametrize("name", sorted(sw.__all__))
def test_every_exported_name_and_its_public_methods_have_docstrings(name: str) -> None:
    thing = getattr(sw, name)
    assert inspect.getdoc(thing), name
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            if not attribute.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute}"


def test_the_version_is_one() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|[abc]\d+)?", sw.__version__)


def test_the_package_is_typed() -> None:
    assert (Path(sw.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("package", ["batching", "plans"])
def test_every_module_says_what_it_is_for(package: str) -> None:
    folder = importlib.import_module(f"steelworks.{package}")
    for found in pkgutil.iter_modules(folder.__path__, f"steelworks.{package}."):
        assert importlib.import_module(found.name).__doc__, found.name


def test_an_import_goes_down_the_layers_and_never_up() -> None:
    layers = ["errors", "seam", "devices", "streams", "plans", "batching", "cli"]
    root = Path(sw.__file__).parent
    for place, layer in enumerate(layers):
        files = [root / f"{layer}.py"] if (root / f"{layer}.py").exists() else (root / layer).rglob("*.py")
        for file in files:
            for above in layers[place + 1 :]:
                pattern = rf"^\s*(from|import) steelworks\.{above}\b"
                assert not re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE), (file, above)


def test_the_package_lists_what_it_exports_and_has_its_subpackages_without_further_imports() -> None:
    script = (
        "import steelworks; "
        "assert set(steelworks.__all__) <= set(dir(steelworks)); "
        "print(steelworks.devices.resolve('cpu').torch_device, steelworks.plans.plan is steelworks.plan)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["cpu", "True"]


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'BatchQeue'"):
        sw.BatchQeue  # type: ignore[attr-defined]  # noqa: B018


def test_threads_that_use_the_package_first_at_once_all_get_it() -> None:
    script = (
        "import threading, steelworks\n"
        "gate, got = threading.Barrier(8), []\n"
        "def use():\n"
        "    gate.wait()\n"
        "    got.append((steelworks.BatchQueue, steelworks.plan, steelworks.StreamPool))\n"
        "threads = [threading.Thread(target=use) for _ in range(8)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print(len(got), len(set(got)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["8", "1"]


def test_importing_the_package_starts_no_thread_and_touches_no_gpu() -> None:
    script = (
        "import threading; import steelworks, torch; steelworks.BatchQueue, steelworks.StreamPool; "
        "print(threading.active_count(), torch.cuda.is_initialized())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1", "False"]


# ---------------------------------------------------------------- errors


def own_errors() -> list[type[BaseException]]:
    return [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, BaseException)]


def test_every_error_is_a_steelworks_error_and_documented() -> None:
    for error in own_errors():
        assert issubclass(error, sw.SteelworksError)
        assert inspect.getdoc(error)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("InvalidInputError", ValueError),
        ("QueueClosedError", RuntimeError),
        ("QueueFullError", RuntimeError),
        ("DeadlineExceededError", TimeoutError),
        ("WorkerDiedError", RuntimeError),
        ("WorkerHungError", TimeoutError),
        ("ForkedProcessError", RuntimeError),
    ],
)
def test_errors_are_also_what_a_stranger_would_catch(name: str, base: type[BaseException]) -> None:
    assert issubclass(getattr(errors, name), base)


def test_errors_survive_pickling() -> None:
    import pickle

    for error in own_errors():
        copy = pickle.loads(pickle.dumps(error("what, why, what to do")))
        assert type(copy) is error
        assert str(copy) == "what, why, what to do"


# ---------------------------------------------------------------- signatures


def test_every_option_of_a_queue_is_an_argument_with_the_same_default() -> None:
    arguments = parameters(sw.BatchQueue.__init__)
    for field in dataclasses.fields(sw.QueueOptions):
        assert arguments[field.name].default == field.default, field.name


def test_every_argument_of_a_queue_is_keyword_only_but_for_the_model() -> None:
    arguments = list(parameters(sw.BatchQueue.__init__).values())[2:]
    assert {a.kind for a in arguments} == {inspect.Parameter.KEYWORD_ONLY}


def test_every_argument_of_a_queue_is_documented() -> None:
    text = inspect.getdoc(sw.BatchQueue) or ""
    for name in list(parameters(sw.BatchQueue.__init__))[1:]:
        assert re.search(rf"^\s+{name}:|``{name}``", text, re.MULTILINE), name


@pytest.mark.parametrize("way", ["__call__", "submit", "asubmit"])
def test_all_ways_in_take_the_same_arguments(way: str) -> None:
    arguments = parameters(getattr(sw.BatchQueue, way))
    assert list(arguments) == ["self", "request", "deadline", "priority"]
    assert (arguments["deadline"].default, arguments["priority"].default) == (None, 0.0)


@pytest.mark.parametrize("kind", [sw.QueueOptions, sw.QueueStatistics, sw.Padding])
def test_configuration_and_statistics_are_frozen_dataclasses_whose_fields_are_documented(kind: Any) -> None:
    assert dataclasses.is_dataclass(kind)
    assert kind.__dataclass_params__.frozen
    text = inspect.getdoc(kind) or ""
    for field in dataclasses.fields(kind):
        assert re.search(rf"^\s+{field.name}:", text, re.MULTILINE), field.name


@pytest.mark.parametrize("name", sorted(sw.__all__))
def test_annotations_can_be_resolved(name: str) -> None:
    thing = getattr(sw, name)
    if inspect.isfunction(thing):
        typing.get_type_hints(thing)
    elif inspect.isclass(thing):
        for member in vars(thing).values():
            if inspect.isfunction(member) and member.__module__.startswith("steelworks"):
                typing.get_type_hints(member)


# ---------------------------------------------------------------- the design's example


def test_the_design_s_example_runs_as_it_stands() -> None:
    import asyncio

    model = torch.nn.Linear(4, 2).eval()
    x, xs = torch.randn(1, 4), [torch.randn(1, 4) for _ in range(5)]
    with sw.BatchQueue(model, max_batch_size=64) as queue:
        y = queue(x)
        future = queue.submit(x, deadline=LONG, priority=1)

        async def ask() -> Any:
            return await queue.asubmit(x)

        torch.testing.assert_close(asyncio.run(ask()), y)
        torch.testing.assert_close(future.result(LONG), y)
        assert len(list(queue.map(xs, progress=True))) == 5
    with sw.batch_inference(model, batch_size=8) as infer:
        assert len(infer(xs)) == 5
    plan = sw.plan(model, x, batch_sizes=[1, 8, 64])
    torch.testing.assert_close(plan(x), y)


def test_a_future_is_one_of_concurrent_futures(start: Any) -> None:
    model = Held()
    queue = start(model)
    future = queue.submit(row(1))
    assert isinstance(future, concurrent.futures.Future)
    model.open()
    done, waiting = concurrent.futures.wait([future], LONG)
    assert (done, waiting) == ({future}, set())
    assert next(concurrent.futures.as_completed([future], LONG)) is future
    assert values(future.result()) == [2]
    assert future.exception() is None
    assert "finished" in repr(future)


def test_a_frozen_option_can_t_be_changed() -> None:
    options = sw.QueueOptions(max_batch_size=4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_batch_size = 5  # type: ignore[misc]


def test_bad_arguments_of_a_plan_are_refused() -> None:
    for sizes in ([], [0], [1.5]):
        with pytest.raises(ValueError, match="batch_sizes|whole numbers|max"):
            sw.plan(lambda x: x, row(1), batch_sizes=sizes)
    with pytest.raises(ValueError, match="device and devices"):
        sw.BatchQueue(lambda x: x, device="cpu", devices=["cpu"])
    with pytest.raises(ValueError, match="a plan has its device"):
        sw.BatchQueue(sw.plan(lambda x: x, row(1)), device="cpu")
