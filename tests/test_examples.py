"""The example programs answer as they say, also what they are not made for."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/web_server.py"


@pytest.fixture(scope="module")
def server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example_web_server", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def _post(server: ModuleType, bodies: list[bytes]) -> list[tuple[int, Any]]:
    """Status and JSON of each body posted to /predict, without a socket."""
    from starlette.requests import Request

    answers = []
    async with server.lifespan(server.app):
        for body in bodies:

            async def receive(body: bytes = body) -> dict[str, Any]:
                return {"type": "http.request", "body": body, "more_body": False}

            scope = {"type": "http", "method": "POST", "headers": [], "app": server.app}
            response = await server.predict(Request(scope, receive))
            answers.append((response.status_code, json.loads(response.body)))
    return answers


def post(server: ModuleType, *bodies: bytes) -> list[tuple[int, Any]]:
    return asyncio.run(_post(server, list(bodies)))


def test_the_web_server_answers_four_numbers_with_three(server: ModuleType) -> None:
    [(status, answer)] = post(server, b"[0.1, 0.2, 0.3, 4]")
    assert status == 200
    assert len(answer) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"\xff\xfe\xfa", b"null", b'"1234"', b'{"a": 1}', b"[1, 2, 3]", b"[[1, 2, 3, 4]]",
        b"[null, 1, 2, 3]",
        b'["a", 1, 2, 3]', b"[1e999, 0, 0, 0]", b"[NaN, 0, 0, 0]", b"[1" + b"0" * 400 + b", 0, 0, 0]", b"[" * 100_000,
    ],
    ids=range(14),
)  # fmt: skip
def test_the_web_server_refuses_any_other_body_with_422_and_serves_the_next(
    server: ModuleType, body: bytes
) -> None:
    (refused, reason), (status, _) = post(server, body, b"[0, 0, 0, 0]")
    assert refused == 422
    assert "send" in reason["error"]
    assert status == 200
