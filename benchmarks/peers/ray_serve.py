"""Ray Serve: a deployment with ``@serve.batch``, called through its handle, which is faster than HTTP."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

import numpy as np
import torch

from benchmarks._minilm import Tokens, encode_batch, load_encoder
from benchmarks.peers._system import Setting, System

START_LIMIT_S = 120.0


class RayServe(System):
    """``handle.remote(ids).result()`` from threads."""

    name = "ray_serve"
    package = "ray"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One replica with all cores, or one a core; wait 10 ms (its default) or 2 ms.

        Its throughput mode (RAY_SERVE_THROUGHPUT_OPTIMIZED) refuses calls from threads, so it is left out.
        """
        one = {"replicas": 1, "wait_s": 0.010}
        found = [Setting(f"1 replica x {cores} threads, 10 ms", cores, one)]
        if cores > 1:
            name = f"{cores} replicas x 1 thread"
            several = {**one, "replicas": cores}
            found.append(Setting(f"{name}, 10 ms", 1, several))
            found.append(Setting(f"{name}, 2 ms", 1, {**several, "wait_s": 0.002}))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Start a private Ray on 127.0.0.1 without dashboard or proxy, and the deployment."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        # without it Ray replaces 127.0.0.1 by the machine's address, and listens on all addresses
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray
        from ray import serve

        self._ray, self._serve = ray, serve
        self._tokens = Tokens()
        self._folder = tempfile.mkdtemp(prefix="ray")  # else logs of every run stay behind
        ray.init(
            _temp_dir=self._folder,
            num_cpus=8,  # scheduling slots, not cores: the controller and the replicas must all fit
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            runtime_env={"worker_process_setup_hook": listen_locally},
            logging_level="error",
        )
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR"})
        deployment = serve.deployment(
            num_replicas=setting.options["replicas"],
            max_ongoing_requests=64,
            ray_actor_options={"num_cpus": 1},
        )(_make_embed(serve, setting.options["wait_s"]))
        self._handle = serve.run(
            deployment.bind(setting.torch_threads),
            name="embed",
            route_prefix=None,
            logging_config={"log_level": "ERROR"},
        )

    def call(self, text: str) -> Any:
        """Tokenise in the caller's thread, send the ids as an array, wait for the vector."""
        return self._handle.remote(np.asarray(self._tokens(text), dtype=np.int64)).result(timeout_s=60)

    def stop(self) -> None:
        """Shut the deployment and the private Ray down."""
        self._serve.shutdown()
        self._ray.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def listen_locally() -> None:
    """Run in each Ray worker: a replica's own gRPC server, unused here, would listen on all addresses."""
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: add_port(
        server, address.replace("[::]", "127.0.0.1")
    )


def _make_embed(serve: Any, wait_s: float) -> Any:
    """The deployment's class, made late so that this module imports without Ray."""

    class Embed:
        def __init__(self, torch_threads: int | None) -> None:
            if torch_threads:
                torch.set_num_threads(torch_threads)
            self._model = load_encoder()

        @serve.batch(max_batch_size=32, batch_wait_timeout_s=wait_s)  # type: ignore[untyped-decorator]
        async def embed(self, ids: list[np.ndarray]) -> list[np.ndarray]:
            return list(encode_batch(self._model, ids))

        async def __call__(self, ids: np.ndarray) -> np.ndarray:
            return await self.embed(ids)

    return Embed
