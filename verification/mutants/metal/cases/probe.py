"""The cases of probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from steelworks.kernels.metal._launch import Variant, empty, launch

from ._case import Case, close, draw


def cases() -> Iterator[Case]:
    for group in (32, 96):
        x = draw(2, group)

        def run(x: torch.Tensor = x, group: int = group) -> torch.Tensor:
            out = empty((2, group, 2), x.dtype, x.device)
            launch(Variant("probe", "probe", ("float",)), x, out, threads=(2 * group,), group=(group,))
            return out

        def want(x: torch.Tensor = x) -> torch.Tensor:
            both = torch.stack([x.double().sum(-1), x.double().amax(-1)], -1)
            return both.unsqueeze(1).expand(2, x.shape[-1], 2)

        case = close(
            "probe",
            f"{group} threads",
            run,
            want,
            lambda x=x: x.double().abs().sum(-1)[:, None, None],  # type: ignore[misc]
            group,
        )
        yield replace(case, counters={"barriers": 0 if group == 32 else 2 * 2 * 2})
