"""LitServe: its HTTP server on 127.0.0.1 with dynamic batching, a kept-alive connection a caller.

Token ids go as JSON; the vector comes back as base64 of its float32 bytes, which is much cheaper than
384 decimal numbers.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np
import psutil

from benchmarks._common import PROJECT
from benchmarks._minilm import Tokens
from benchmarks.peers._system import Setting, System

START_LIMIT_S = 90.0


class LitServe(System):
    """``POST /predict`` from threads."""

    name = "litserve"
    package = "litserve"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One worker process with all cores, or one a core; wait 5 or 20 ms; its ZeroMQ queue.

        Its default wait of 0 is left out: a worker then polls its queue without pause and burns a core.
        """
        one = {"workers": 1, "wait_s": 0.005, "fast_queue": False}
        found = [Setting(f"1 worker x {cores} threads, 5 ms", cores, one)]
        if cores > 1:
            name = f"{cores} workers x 1 thread"
            several = {**one, "workers": cores}
            found.append(Setting(f"{name}, 5 ms", 1, several))
            found.append(Setting(f"{name}, 20 ms", 1, {**several, "wait_s": 0.020}))
            found.append(Setting(f"{name}, 5 ms, fast queue", 1, {**several, "fast_queue": True}))
        return tuple(found)

    def start(self, setting: Setting) -> None:
        """Start the server as a process and wait until its health check says ok."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        options = {**setting.options, "port": self._port, "torch_threads": setting.torch_threads}
        command = [sys.executable, "-m", "benchmarks.peers._litserve_server", json.dumps(options)]
        self._folder = tempfile.mkdtemp(prefix="litserve")  # else its sockets' folders stay behind
        variables = {**os.environ, "TMPDIR": self._folder}
        self._server = subprocess.Popen(command, cwd=PROJECT, env=variables, stdout=subprocess.DEVNULL)
        self._tokens = Tokens()
        self._mine = threading.local()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._healthy():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError("the LitServe server did not become healthy")
            time.sleep(0.3)

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def call(self, text: str) -> Any:
        """Tokenise in the caller's thread, post the ids on the thread's own connection."""
        body = json.dumps({"ids": self._tokens(text)})
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            self._mine.connection.connect()
            self._mine.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = self._mine.connection
        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {answer[:100]!r}")
        return np.frombuffer(base64.b64decode(json.loads(answer)["vector"]), dtype=np.float32)

    def stop(self) -> None:
        """End the server and its workers: those that this object started, and no other."""
        try:
            server = psutil.Process(self._server.pid)
            family = [server, *server.children(recursive=True)]
        except psutil.Error:
            family = []
        for process in family:
            _quietly(process.terminate)
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            _quietly(process.kill)
        self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _quietly(action: Any) -> None:
    try:
        action()
    except psutil.Error:
        pass
