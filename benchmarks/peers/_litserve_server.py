"""The LitServe server process: ``python -m benchmarks.peers._litserve_server OPTIONS_JSON``."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any

import litserve
import numpy as np
import torch

from benchmarks._minilm import encode_batch, load_encoder


class Embed(litserve.LitAPI):  # type: ignore[misc]
    """Token ids in, base64 of a float32 vector out."""

    def __init__(self, torch_threads: int | None, **settings: Any) -> None:
        super().__init__(**settings)
        self._torch_threads = torch_threads

    def setup(self, device: str) -> None:
        """Load the model in the worker process."""
        if self._torch_threads:
            torch.set_num_threads(self._torch_threads)
        self._model = load_encoder()

    def decode_request(self, request):  # type: ignore[no-untyped-def] # LitServe would read an annotation
        """The ids of one request."""
        return request["ids"]

    def batch(self, inputs: list[list[int]]) -> list[list[int]]:
        """Padding is left to ``encode_batch``."""
        return inputs

    def predict(self, batch: list[list[int]]) -> np.ndarray:
        """Vectors of the batch."""
        return encode_batch(self._model, batch)

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """One row a request."""
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, str]:
        """One vector as text."""
        return {"vector": base64.b64encode(output.tobytes()).decode()}


def main() -> None:
    """Serve until the process is ended."""
    options = json.loads(sys.argv[1])
    api = Embed(options["torch_threads"], max_batch_size=32, batch_timeout=options["wait_s"])
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options["workers"], fast_queue=options["fast_queue"]
    )
    server.run(
        host="127.0.0.1",
        port=options["port"],
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
