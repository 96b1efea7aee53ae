"""No batching: every caller runs the model itself, freely or behind one lock."""

from __future__ import annotations

import threading
from typing import Any

import torch

from benchmarks._minilm import Tokens, load_encoder
from benchmarks.peers._system import Setting, System


class Threads(System):
    """Every thread calls the model; torch's default number of intra-op threads."""

    name = "threads"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """torch as it comes."""
        return (Setting("torch default"),)

    def start(self, setting: Setting) -> None:
        """Load the model."""
        self._model = load_encoder()
        self._tokens = Tokens()

    def call(self, text: str) -> Any:
        """Run the model in the caller's thread."""
        features = self._tokens.features(text)
        with torch.inference_mode():
            return self._model(**features)


class ThreadsOne(Threads):
    """The same with ``torch.set_num_threads(1)``."""

    name = "threads_1"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """One intra-op thread a caller."""
        return (Setting("1 intra-op thread", torch_threads=1),)


class Lock(Threads):
    """One global lock around the model, the usual cure."""

    name = "lock"

    @classmethod
    def settings(cls, cores: int) -> tuple[Setting, ...]:
        """All cores for the one that holds the lock, or one."""
        one = Setting("1 intra-op thread", torch_threads=1)
        return (Setting(f"{cores} intra-op threads", torch_threads=cores), one) if cores > 1 else (one,)

    def start(self, setting: Setting) -> None:
        """Load the model."""
        super().start(setting)
        self._lock = threading.Lock()

    def call(self, text: str) -> Any:
        """Tokenise freely, run the model under the lock."""
        features = self._tokens.features(text)
        with self._lock, torch.inference_mode():
            return self._model(**features)
