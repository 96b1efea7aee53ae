"""top_k against torch.topk."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.ops._cases import Case, Goal, Make, random
from steelworks.kernels.triton.topk import top_k

SHAPES = ((1, 65536), (64, 32000))
K = 50


def cases() -> Iterator[Case]:
    """The 50 largest of a row, sorted; one long row, and as many rows as a batch of requests has."""
    goals = (Goal("torch.topk / ours", lambda us: us["torch"] / us["steel"], 3.0, 8.0),)
    implementations: dict[str, Make] = {
        "steel": lambda x: lambda: top_k(x, K),
        "torch": lambda x: lambda: torch.topk(x, K),
    }
    for shape in SHAPES:
        for dtype, short in ((torch.float32, "f32"), (torch.bfloat16, "bf16")):
            yield Case(
                op="top_k",
                name=f"{shape[0]}x{shape[1]} k={K} {short}",
                bytes=shape[0] * (shape[1] * dtype.itemsize + K * (dtype.itemsize + 8)),
                inputs=lambda shape=shape, dtype=dtype: random(*shape, dtype=dtype),
                implementations=implementations,
                launches=20,
                goals=goals,
                check=lambda x: x.double().sort(dim=-1, descending=True)[0][:, :K],
                host=shape == (1, 65536),
            )
