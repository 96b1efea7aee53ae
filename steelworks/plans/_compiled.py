"""A model run through ``torch.compile`` by several threads.

torch.compile is not thread-safe while it compiles. Here a shape is compiled by the first thread that brings
it, alone; others that bring new shapes wait, those with known shapes go on. A model that can't be compiled
runs as it is, and the reason is logged once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch

logger = logging.getLogger("steelworks.plans")


class Compiled:
    """Call it as the model; see the module's text.

    Args:
        model: the module or function to compile.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._compiled: Any = torch.compile(model, dynamic=True)
        self._known: set[tuple[Any, ...]] = set()
        self._lock = threading.Lock()

    def run(self, tensors: Sequence[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """``model(*args, **kwargs)``; ``tensors`` are all the tensors among the arguments."""
        from torch._dynamo.exc import TorchDynamoException

        compiled = self._compiled
        if compiled is None:
            return self._model(*args, **kwargs)
        shape = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if shape in self._known:
            return compiled(*args, **kwargs)
        with self._lock:
            try:
                output = compiled(*args, **kwargs)
            except TorchDynamoException as error:  # the compiler's, not the model's
                self._compiled = None
                first = str(error).strip().partition("\n")[0]
                logger.warning(
                    "the model can't be compiled and runs as it is: %s: %s", type(error).__name__, first
                )
                return self._model(*args, **kwargs)
            self._known.add(shape)
            return output
