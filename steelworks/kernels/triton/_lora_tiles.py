"""How LoRA on CUDA cuts its work. Times are device times in a CUDA graph on one H200, in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ._launch import cdiv


@dataclass(frozen=True)
class Tile:
    """How the linear kernel cuts its work.

    Attributes:
        rows: Rows of x in a tile.
        columns: Columns of the result in a tile.
        depth: Columns of x in a step.
        warps: Warps of a program.
        stages: Steps whose loads are under way.
        most_parts: The sum over k is cut in at most so many parts, if that fills the GPU.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4
    most_parts: int = 1


@dataclass(frozen=True)
class Beside:
    """How the two launches after PyTorch's product cut their work.

    Attributes:
        low_rows: Rows of x in a program of the first.
        parts: Parts of its sum over k.
        rows: Rows of a tile of the second.
        columns: Columns of such a tile.
        warps: Warps of a program of the second.
    """

    low_rows: int
    parts: int
    rows: int
    columns: int
    warps: int


@dataclass(frozen=True)
class Described:
    """How x A^T is made in a small launch, and everything else in one that reads x and W through descriptors.

    Attributes:
        rows: Rows of x in a tile.
        columns: Columns of the result in a tile.
        depth: Columns of x in a step.
        warps: Warps of a program.
        stages: Steps whose loads are under way.
        low_rows: Rows of x in a program of the small launch.
        parts: Parts of its sum over k.
    """

    rows: int
    columns: int
    depth: int = 64
    warps: int = 8
    stages: int = 5
    low_rows: int = 16
    parts: int = 4


#: The share of the multiprocessors' time that tiles must fill: PyTorch's product has ways to cut uneven ones.
_EVEN: Final = 0.9


def pick_described(m: int, n: int, r: int, multiprocessors: int) -> Described | None:
    """The cut for a problem, or None where tiles leave too many multiprocessors without work at the end.

    In bfloat16 on an H200, r = 16 and 64; in brackets linear alone, and the adapter in two launches after it.
    """
    for tile in (
        # 2048x4096x4096: 99.1 and 102.2 us (88.6; 102.3 and 109.7); a training step 207 us (128x256: 214)
        Described(256, 128, stages=4, low_rows=64),
        # 512x4096x4096: 26.5 and 29.1 us (24.6; 31.3 and 33.3)
        Described(128, 128, low_rows=32, parts=8) if r <= 32 else Described(128, 128),
        # 1024x1024x1024: 7.8 and 8.6 us (5.6; 11.0 and 13.2); 256x4096x4096: 21.4 and 22.1 us (16.3; 22.6 and 26.7)
        Described(64, 128, warps=4),
    ):
        tiles = cdiv(m, tile.rows) * cdiv(n, tile.columns)
        if tiles >= _EVEN * cdiv(tiles, multiprocessors) * multiprocessors:
            return tile
    return None


def pick_beside(m: int, n: int, k: int, r: int) -> Beside:
    """The cut for a problem: 512x4096x4096 takes 31.4 us (r = 16) and 33.6 us (r = 64); linear alone 24.5 us."""
    if m <= 1024:
        return Beside(16, 4 if r > 16 else 8, 64, 128, 4)
    return Beside(32, 4, 64, 256, 8)


#: PyTorch's matrix product, and the adapter in two small launches after it; or ``Described``, where that is possible.
BESIDE: Final = Tile(0, 0, 0)


def pick_tile(m: int, n: int, k: int, r: int, mixed: bool, training: bool = False) -> Tile:
    """The tile for a problem. Figures: bf16 on an H200, time in a graph, against PyTorch's linear alone."""
    large = k * n >= 2**22  # reads of W decide
    if m <= 16:
        # 4096x4096, m = 1: 12.2 us (r = 16), 13.1 us (r = 64); linear 13.2 us.
        # 512x512, m = 1: 2.9 us and 3.3 us; linear 3.1 us.
        return Tile(16, 128, 64, stages=5, most_parts=8) if large else Tile(16, 32, 128)
    if m <= 64:
        # 4096x4096, m = 64: 13.6 us and 14.3 us; linear 12.3 us. 512x512: 2.8 us and 3.3 us; linear 3.0 us.
        return Tile(64, 64, 128, most_parts=8) if large else Tile(16, 32, 128)
    if mixed:
        return Tile(64, 64, 64) if m * n <= 132 * 64 * 64 else Tile(128, 128, 64)
    if m * n <= 132 * 64 * 64:
        # 512x512x512: 3.5 us (r = 16), 4.2 us (r = 64); linear 3.4 us.
        # A training step of 512x1024x1024 takes 16.7 us with tiles of 64x64, 26.2 us with 64x32.
        return Tile(64, 32, 128) if r <= 32 and not training else Tile(64, 64, 64)
    return BESIDE  # 512x4096x4096, r = 16: 31.4 us, these tiles 36 us; linear 24.5 us
