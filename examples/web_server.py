"""A web server around one model: every request its own coroutine, all of them one queue.

pip install "steelworks[serve]"
python examples/web_server.py
curl -s 127.0.0.1:8000/predict -d '[0.1, 0.2, 0.3, 0.4]'
curl -s 127.0.0.1:8000/metrics
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator

import prometheus_client
import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import steelworks

model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the queue with the server, and end what is left when the server stops."""
    with steelworks.BatchQueue(model, example=torch.zeros(1, 4), overflow="reject", name="predict") as queue:
        steelworks.metrics.register(queue)
        app.state.queue = queue
        yield


def numbers_of(body: bytes) -> torch.Tensor:
    """The request's numbers, [1, 4]; ValueError for any other body."""
    try:
        given = json.loads(body)
        if not isinstance(given, list) or any(type(number) not in (int, float) for number in given):
            raise ValueError("not a list of numbers")
        x = torch.tensor([given], dtype=torch.float32)  # an OverflowError where one is too large
    except (ValueError, RuntimeError, OverflowError, RecursionError) as error:
        raise ValueError(f"send a JSON list of four numbers ({error})") from None
    if x.shape != (1, 4) or not bool(x.isfinite().all()):
        raise ValueError(f"send four finite numbers; there were {x.shape[1]}")
    return x


async def predict(request: Request) -> JSONResponse:
    """Four numbers in, three out; 422 for anything else, 503 when too many wait, 504 after 200 ms."""
    try:
        x = numbers_of(await request.body())
    except ValueError as error:
        return JSONResponse({"error": str(error)}, status_code=422)
    try:
        y = await request.app.state.queue.asubmit(x, deadline=0.2)
    except (steelworks.QueueFullError, steelworks.QueueClosedError):
        return JSONResponse({"error": "too many requests wait, or the server stops"}, status_code=503)
    except steelworks.DeadlineExceededError:
        return JSONResponse({"error": "took too long"}, status_code=504)
    return JSONResponse(y[0].tolist())


async def metrics(_: Request) -> Response:
    """What Prometheus scrapes."""
    return Response(prometheus_client.generate_latest(), media_type="text/plain")


app = Starlette(
    routes=[Route("/predict", predict, methods=["POST"]), Route("/metrics", metrics)], lifespan=lifespan
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=8000)
