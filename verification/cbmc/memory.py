"""Threadgroup memory of every kernel that the tuning table can choose: what the compiled kernel itself declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from steelworks import metalsim
from steelworks.kernels.metal import tuning
from steelworks.kernels.metal._launch import Variant, source_of

from .rows import every

#: Bytes that a threadgroup has (Metal feature set tables, all Apple GPUs).
LIMIT: Final = 32768
_TYPES: Final = {"half": 2, "float": 4}


@dataclass(frozen=True)
class Use:
    """A kernel and the bytes of threadgroup memory that it declares."""

    kernel: str
    bytes: int


def variants() -> Iterator[Variant]:
    """Every row of the tables whose kernels use threadgroup memory, with the narrowest and the widest float type."""
    for row in every(tuning.GEMM):
        choice = row.choice
        least, most = row.when.get("bytes", (None, None))
        for kind, size in _TYPES.items():
            if (least is not None and size < least) or (most is not None and size > most):
                continue
            for a in (False, True):
                if isinstance(choice, tuning.GemmTile):
                    sizes = (choice.bm, choice.bn, choice.bk, choice.wm, choice.wn, choice.stages)
                    for b in (False, True):
                        yield Variant("gemm", "gemm_tiled", (kind, kind, *sizes, a, b))
                elif isinstance(choice, tuning.GemvDot):
                    parts = (choice.rows, choice.columns, choice.simds_k, choice.simds_n)
                    yield Variant("gemm", "gemv_dot", (kind, kind, *parts, a), header="vector")
                else:
                    yield Variant(
                        "gemm",
                        "gemv_columns",
                        (kind, kind, choice.rows, choice.packet, choice.simds, a),
                        header="vector",
                    )
    for kind, size in _TYPES.items():
        for row in every(tuning.ATTENTION_TILES):
            most = row.when.get("element_bytes", (None, None))[1]
            if most is None or size <= most:
                t = row.choice
                tile = (t.queries, t.keys, t.head_size, t.simdgroups, t.share)
                yield Variant("attention", "attention", (kind, kind, 0, *tile))
        for row in every(tuning.ATTENTION_VECTORS):
            v = row.choice
            yield Variant(
                "attention",
                "attention_vector",
                (kind, kind, kind, 0, v.rows, v.elements, v.simdgroups, False),
                "vector",
            )
        for row in every(tuning.LORA_TILES):
            tiled = row.choice
            for rank in tuning.LORA_RANKS:
                sizes_4 = (tiled.rows, tiled.columns, tiled.depth, rank, tiled.simdgroups, True)
                yield Variant("lora", "lora", (kind, *sizes_4))
        for row in every(tuning.LORA_VECTORS):
            w = row.choice
            yield Variant(
                "lora", "lora_vector", (kind, w.rows, w.columns, w.simdgroups, True), header="vector"
            )
        for row in every(tuning.QUANTIZED_TILES):
            q = row.choice
            shape = (q.rows, q.columns, q.depth, q.simdgroups_m, q.simdgroups_n)
            yield Variant("quantized", "quantized", (kind, 8, *shape))
        for row in every(tuning.CONV2D_TILES):
            c = row.choice
            pixels = (c.pixels, c.channels, c.depth, c.simdgroups_m, c.simdgroups_n)
            for last in (False, True):
                yield Variant("conv2d", "conv2d", (kind, *pixels, last))
    for row in every(tuning.ROW_TEAMS):
        r = row.choice
        if r.looped:
            yield Variant("softmax", "softmax_row_looped", ("float", "float", False, r.elements))
            yield Variant("norms", "norm_row_looped", ("float", "float", False, r.elements))
        else:
            yield Variant("softmax", "softmax_row", ("float", "float", False, r.lanes, r.elements))
            yield Variant("norms", "norm_row", ("float", "float", False, r.lanes, r.elements))
    for row in every(tuning.SOFTMAX_COLUMNS):
        yield Variant("softmax", "softmax_column", ("float", "float", False, row.choice))
    for functor in ("ReduceSum<long>", "ReduceSum<float>"):
        for row in every(tuning.REDUCE_TEAMS):
            yield Variant(
                "reduce", "reduce_rows", (f"steel::{functor}", True, True, row.choice, tuning.REDUCE_ELEMENTS)
            )
        yield Variant("reduce", "reduce_columns", (f"steel::{functor}", True, True))
    for row in every(tuning.SCAN_TEAMS):
        yield Variant(
            "scan", "scan_rows", ("steel::ScanPlace<long, true>", False, row.choice, tuning.SCAN_ELEMENTS)
        )
    for kind in ("long", "float"):
        yield Variant("sort", "sort_block", (kind, True, True, tuning.SORT_ELEMENTS))
        yield Variant("sort", "sort_merge", (kind, True, tuning.SORT_ELEMENTS))
        for row in every(tuning.TOPK_STAGES):
            yield Variant("topk", "topk_select", (kind, True, True, tuning.TOPK_ELEMENTS, row.choice))


def uses() -> list[Use]:
    """What each of them declares.

    Raises:
        ToolchainError: There is no clang++ to compile the kernels with.
        UnknownKernelError: One declares more than a threadgroup has.
    """
    by_header: dict[str, dict[str, Variant]] = {}
    for variant in variants():
        by_header.setdefault(variant.header_path, {})[variant.name] = variant
    found: list[Use] = []
    for some in by_header.values():
        library = metalsim.compile_shader(source_of(*some.values()), name=next(iter(some)))
        found += [Use(name, int(getattr(library, name).static_thread_group_memory_length)) for name in some]
    return found
