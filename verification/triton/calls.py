"""Calls of the host functions whose launches are checked: every kernel, in each form that it is compiled in.

``calls()`` are small, so that all threads of a launch can be looked at: ragged sizes, a few programs. ``edges()``
are more sizes, at and around the sides of tiles. Both run on whatever device the ``Make`` puts tensors on.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import torch

from steelworks.kernels.quantized_weight import QuantizedWeight, groups_of
from steelworks.kernels.triton import tuning

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
_PACKAGE: Final = "steelworks.kernels.triton"


class Make:
    """Makes the tensors of a call.

    Args:
        device: Where they lie.
        unseen: A context in which nothing is recorded.
        again: Called between two host functions of one call.
    """

    def __init__(
        self,
        device: str,
        unseen: Callable[[], Any] = contextlib.nullcontext,
        again: Callable[[], None] = lambda: None,
    ) -> None:
        self.device, self._unseen, self.again = device, unseen, again

    def __call__(self, *shape: int, dtype: torch.dtype = F16) -> torch.Tensor:
        """Dense, small numbers."""
        with self._unseen():
            return torch.ones(shape, dtype=dtype, device=self.device)

    def adapters(self, count: int) -> torch.Tensor:
        """-1 (no adapter), 0, 1, ...; int32."""
        with self._unseen():
            return torch.arange(-1, count - 1, dtype=torch.int32, device=self.device)

    def apart(self, rows: int, columns: int, more: int, dtype: torch.dtype = F16) -> torch.Tensor:
        """Rows that are ``columns + more`` elements apart."""
        return self(rows, columns + more, dtype=dtype)[:, :columns]

    def unaligned(self, *shape: int, dtype: torch.dtype = F16) -> torch.Tensor:
        """Dense, but beginning one element after an address that 16 divides."""
        return self(torch.Size(shape).numel() + 1, dtype=dtype)[1:].view(shape)

    def parameter(self, *shape: int, dtype: torch.dtype = F16) -> torch.nn.Parameter:
        """What may be read before the kernel before has ended."""
        return torch.nn.Parameter(self(*shape, dtype=dtype), requires_grad=False)


@dataclass(frozen=True)
class Call:
    """A call of host functions, by a name."""

    name: str
    run: Callable[[Make], object]


def _module(name: str) -> Any:
    return importlib.import_module(f"{_PACKAGE}.{name}")  # functions of the same name shadow some of them


@contextlib.contextmanager
def _pretend(module: str, **values: Any) -> Iterator[None]:
    """Constants or functions that choose a form, replaced: forms for large problems, on small ones."""
    with contextlib.ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(mock.patch.object(_module(module), name, value))
        yield


def calls() -> list[Call]:
    """One or more of each kernel and form."""
    made = [*_attention(), *_linear(), *_lora(), *_norms(), *_quantized(), *_softmax(), *_topk()]
    return [Call(name, run) for name, run in made]


_Made = Iterator[tuple[str, Callable[[Make], object]]]


def _attention() -> _Made:
    attention = _module("attention").attention

    def of(heads: int, queries: int, keys: int, size: int, mask: str = "", causal: bool = False) -> Any:
        def run(make: Make) -> None:
            q, k, v = make(1, heads, queries, size), make(1, 1, keys, size), make(1, 1, keys, size)
            masks = {
                "": None,
                "bool": make(1, 1, 1, keys, dtype=torch.bool),
                "float": make(heads, queries, keys),
            }
            attention(q, k, v, masks[mask], causal)

        return run

    yield "attention 2x5x7x16", of(2, 5, 7, 16)
    yield "attention 1x33x32x24 bool", of(1, 33, 32, 24, "bool")
    yield "attention 1x9x50x64 float causal", of(1, 9, 50, 64, "float", True)
    for number, row in enumerate(tuning.ATTENTION):

        def rows(make: Make, tile: Any = row.choice) -> None:
            with mock.patch.object(tuning, "pick", lambda *_, **__: tile):
                of(1, tile.rows + 1, 20, 16)(make)

        yield f"attention row {number} of the table", rows


def _linear() -> _Made:
    def of(
        m: int, sizes: tuple[int, ...], k: int, tile: Any, activation: str | None = None, residual: bool = False,
        bias: bool = True, parameters: bool = False, dtype: torch.dtype = F16, x_apart: int = 0,
    ) -> Callable[[Make], None]:  # fmt: skip
        def run(make: Make) -> None:
            linear = _module("linear")
            new = make.parameter if parameters else make
            layers = tuple(
                linear.Layer(new(n, k, dtype=dtype), new(n, dtype=dtype) if bias else None) for n in sizes
            )
            beside = make(m, sizes[0], dtype=dtype) if residual else None
            with torch.no_grad():
                linear._run(make.apart(m, k, x_apart, dtype=dtype), layers, activation, beside, tile)

        return run

    thin = [row.choice for row in tuning.LINEAR if isinstance(row.choice, tuning.ThinTile)]
    tiled = [row.choice for row in tuning.LINEAR if isinstance(row.choice, tuning.LinearTile)]
    for number, few in enumerate(dict.fromkeys(thin)):
        name = f"linear {few.rows}x{few.columns} in {few.steps}"
        yield f"{name}", of(17, (40,), 50 * few.steps, few, ("gelu", "silu")[number % 2], residual=True)
        yield f"{name} early", of(5, (32, 16, 24), 16 * few.steps, few, parameters=True, dtype=BF16)
    for number, tile in enumerate(dict.fromkeys(tiled)):
        name = f"linear {tile.rows}x{tile.columns}x{tile.depth}"
        m, n = tile.rows + 1, tile.columns
        yield f"{name}", of(m, (n,), 2 * tile.depth + 8, tile, ("gelu", "relu")[number % 2], residual=True)
        yield f"{name} even early", of(3, (n, 8, 16), 3 * tile.depth, tile, parameters=True, dtype=BF16)
        yield f"{name} no bias", of(9, (16,), tile.depth, tile, bias=False, x_apart=8)


def _lora() -> _Made:
    def of(
        m: int,
        n: int,
        k: int,
        r: int,
        tile: Any,
        keep: bool = False,
        dtype: torch.dtype = F16,
        bias: bool = True,
    ) -> Callable[[Make], None]:
        def run(make: Make) -> None:
            lora = _module("lora")
            x, w, a, b = (make(*shape, dtype=dtype) for shape in ((m, k), (n, k), (r, k), (n, r)))
            with _pretend("lora", pick_described=lambda *_: None):
                lora._forward(x, w, a, b, 0.5, make(n, dtype=dtype) if bias else None, keep, tile)

        return run

    def back(m: int, n: int, k: int, r: int, tile: Any, dtype: torch.dtype = F16) -> Callable[[Make], None]:
        def run(make: Make) -> None:
            lora = _module("lora")
            x, w, a, b = (make(*shape, dtype=dtype) for shape in ((m, k), (n, k), (r, k), (n, r)))
            grad, low = make(m, n, dtype=dtype), make(m, r, dtype=dtype)
            picked = tile if isinstance(tile, lora.Described) else None
            first = lora.BESIDE if picked else tile
            with _pretend("lora", pick_tile=lambda *_, **__: first, pick_described=lambda *_: picked):
                lora.lora_backward(grad, x, w, a, b, low, 0.5, (True, True, True, True, True))

        return run

    def mixed(m: int, n: int, k: int, r: int, tile: Any, count: int = 3, dtype: torch.dtype = F16) -> Any:
        def run(make: Make) -> None:
            lora = _module("lora")
            x, w = make(m, k, dtype=dtype), make(n, k, dtype=dtype)
            a, b = make(count, r, k, dtype=dtype), make(count, n, r, dtype=dtype)
            # Some rows have an adapter, some none, and one names an adapter that is not there.
            index = make.adapters(m)
            with _pretend("lora", pick_tile=lambda *_, **__: tile):
                lora.lora_linear_multi(x, w, a, b, make(count, dtype=F32), index, make(n, dtype=dtype))

        return run

    lora = _module("lora")
    sizes = ((16, 64, 64, 5, False), (1, 4096, 1024, 16, False), (64, 64, 64, 40, False), (64, 2048, 2048, 16, False),
             (512, 512, 512, 16, False), (512, 512, 512, 16, True), (512, 512, 512, 64, False))  # fmt: skip
    tiles = dict.fromkeys(lora.pick_tile(m, n, k, r, False, t) for m, n, k, r, t in sizes)
    for tile in tiles:
        if tile == lora.BESIDE:
            continue
        name = f"lora {tile.rows}x{tile.columns}x{tile.depth} s{tile.stages}"
        yield name, of(3, tile.columns + 8, tile.depth + 8, 5, tile)
        yield f"{name} keep", of(3, tile.columns, 2 * tile.depth, 16, tile, keep=True, dtype=BF16, bias=False)
        yield f"{name} backward", back(tile.rows, tile.columns + 8, 40, 8, tile)
        if tile.most_parts > 1:
            yield f"{name} parts", of(2, tile.columns, 8 * tile.depth, 16, tile)
            yield f"{name} mixed parts", mixed(3, tile.columns, 8 * tile.depth, 8, tile)
    for m, n in ((100, 64), (4096, 4096), (9, 64)):
        tile = lora.pick_tile(m, n, 64, 8, True)
        yield f"lora mixed {tile.rows}x{tile.columns}", mixed(5, 40, 72, 5, tile)
    yield "lora mixed none", mixed(2, 16, 16, 16, lora.pick_tile(2, 16, 16, 8, True), count=0, dtype=BF16)
    yield "lora float32", of(5, 20, 40, 3, lora.pick_tile(5, 20, 40, 3, False), dtype=F32)
    yield "lora beside", of(17, 140, 200, 5, lora.BESIDE)
    yield "lora beside parts", of(5, 64, 2048, 20, lora.BESIDE, keep=True, dtype=BF16)
    yield "lora beside backward", back(40, 136, 72, 8, lora.BESIDE)
    for m, r in ((4096, 8), (512, 8), (512, 64), (256, 8)):
        tile = lora.pick_described(m, 4096, r, 128)
        name = f"lora described {tile.rows}x{tile.columns} for a rank of {r}"
        yield name, of(9, tile.columns + 8, 1032, r, tile)
        yield (
            f"{name} keep",
            of(tile.low_rows + 1, 24, tile.depth, r, tile, keep=True, dtype=BF16, bias=False),
        )
        yield f"{name} backward", back(tile.rows + 1, 40, 72, r, tile)
    # From 1025 rows the two launches are cut otherwise.
    large = lora.pick_beside(2048, 64, 64, 8)

    def wide(make: Make) -> None:
        with _pretend("lora", pick_beside=lambda *_: large):
            of(35, 260, 128, 8, lora.BESIDE)(make)

    yield "lora beside, many rows", wide


def _norms() -> _Made:
    def of(
        rms: bool, rows: int, length: int, residual: bool = False, weight: bool = True, bias: bool = True,
        stats: bool = False, dtype: torch.dtype = F16, more: int = 0,
    ) -> Callable[[Make], None]:  # fmt: skip
        def run(make: Make) -> None:
            _module("norms")._forward(
                rms, make.apart(rows, length, more, dtype), length,
                make(length, dtype=dtype) if weight else None, make(length, dtype=dtype) if bias else None, 1e-5,
                make(rows, length, dtype=dtype) if residual else None, stats,
            )  # fmt: skip

        return run

    def back(
        rms: bool, rows: int, length: int, weight: bool = True, bias: bool = True, total: bool = False
    ) -> Any:
        def run(make: Make) -> None:
            x = make(rows, length)
            numbers = make(rows, dtype=F32)
            _module("norms").norm_backward(
                x, make(rows, length), make(length) if weight else None, None if rms else numbers,
                make(rows, dtype=F32), normalized_shape=length, bias_dtype=F16 if bias else None,
                total_grad=make(rows, length) if total else None,
            )  # fmt: skip

        return run

    for length in (50, 200, 384, 700, 2000, 3000):
        yield f"norms 3x{length}", of(False, 3, length, residual=True)
    yield "norms rms stats", of(True, 5, 64, stats=True, dtype=BF16, bias=False)
    yield "norms stats", of(False, 3, 300, stats=True, more=8)
    yield "norms exact", of(False, 4, 512, dtype=F32)
    yield "norms 1x10000", of(True, 1, 10000, residual=True, bias=False)
    yield "norms 1x20000", of(False, 1, 20000, weight=False, bias=False)
    yield "norms long", _short(of(False, 2, 9000, residual=True, stats=True))
    yield "norms long rms", _short(of(True, 1, 9000))
    # The forms that stream: for tensors that the cache does not hold, tried on small ones.
    for number, row in enumerate(tuning.NORMS):
        if row.choice.stream or row.choice.rows == 2:

            def stream(make: Make, tile: Any = row.choice, rms: bool = bool(number % 2)) -> None:
                with mock.patch.object(tuning, "pick", lambda *_, **__: tile):
                    of(rms, 4, 1024, residual=rms)(make)

            yield f"norms row {number} of the table", stream
    for length in (100, 1000, 4000, 9000):
        yield f"norms backward {length}", back(length == 1000, 6, length, total=length == 100)
    yield "norms backward, weight only", back(True, 40, 64, bias=False)
    yield "norms backward, x only", back(False, 3, 64, weight=False, bias=False)
    many = lambda make: _many_programs(back(False, 40, 60), make)  # noqa: E731
    yield "norms backward, several rows a program", many


def _short(run: Callable[[Make], None]) -> Callable[[Make], None]:
    """Rows are too long for registers from 4,097 elements on, not from 32,769."""

    def shorter(make: Make) -> None:
        with mock.patch.object(tuning, "ROW_MOST", 4096):
            run(make)

    return shorter


def _many_programs(run: Callable[[Make], None], make: Make) -> None:
    with _pretend("norms", processors=lambda index: 1):
        run(make)


def _weight(make: Make, bits: int, n: int, k: int, group: int, dtype: torch.dtype) -> Any:
    group = group if bits == 4 else 0
    groups, width = groups_of(k, group)
    return QuantizedWeight(
        packed=make(n, groups * width * bits // 8, dtype=torch.uint8),
        scales=make(n, groups, dtype=dtype), zeros=make(n, groups, dtype=dtype), bits=bits, group_size=group, columns=k,
    )  # fmt: skip


def _quantized() -> _Made:
    def of(
        bits: int, m: int, n: int, k: int, group: int = 64, bias: bool = True, dtype: torch.dtype = F16
    ) -> Callable[[Make], None]:
        def run(make: Make) -> None:
            weight, x = _weight(make, bits, n, k, group, dtype), make(m, k, dtype=dtype)
            added = make(n, dtype=dtype) if bias else None
            _module("quantized").quantized_linear(x, weight, added)
            make.again()  # and now a 4-bit weight is laid out
            _module("quantized").quantized_linear(x, weight, added)

        return run

    def numbers(bits: int, n: int, k: int, group: int) -> Callable[[Make], None]:
        return lambda make: _module("quantized").dequantize(_weight(make, bits, n, k, group, F16), BF16)

    yield "int4 1x40x520", of(4, 1, 40, 520)
    yield "int4 8x16x2048", of(4, 8, 16, 2048, bias=False, dtype=BF16)
    yield "int4 16x48x600", of(4, 16, 48, 600, group=32)
    yield "int4 20x40x1024", of(4, 20, 40, 1024, group=128)
    yield "int4 17x20x64", of(4, 17, 20, 64, group=32, dtype=BF16)
    yield "int8 1x40x130", of(8, 1, 40, 130)
    yield "int8 17x32x512", of(8, 17, 32, 512, bias=False, dtype=BF16)
    yield "int8 5x64x1024", of(8, 5, 64, 1024)
    yield "int8 float32", of(8, 3, 33, 100, dtype=F32)
    yield "dequantize 4", numbers(4, 2, 2200, 64)
    yield "dequantize 8", numbers(8, 2, 1100, 64)


def _softmax() -> _Made:
    def of(*shape: int, dim: int = -1, log: bool = False, dtype: torch.dtype = F16, more: int = 0) -> Any:
        def run(make: Make) -> None:
            softmax = _module("softmax")
            x = make.apart(*shape, more, dtype) if more else make(*shape, dtype=dtype)
            (softmax.log_softmax if log else softmax.softmax)(x, dim)

        return run

    def back(*shape: int, dim: int = -1, log: bool = False, more: int = 0) -> Any:
        def run(make: Make) -> None:
            softmax = _module("softmax")
            x = make.apart(*shape, more) if more else make(*shape)
            (softmax.log_softmax_backward if log else softmax.softmax_backward)(x, make(*shape), dim)

        return run

    for length in (50, 200, 1000, 4000):
        yield f"softmax 3x{length}", of(3, length, log=length == 200)
    yield "softmax exact", of(4, 512, dtype=F32)
    yield "softmax rows apart", of(5, 100, more=12, dtype=BF16)
    yield "softmax 1x9000", of(1, 9000)
    yield "softmax 1x20000", of(1, 20000, log=True)
    yield "softmax long", _short(of(2, 9000))
    yield "softmax long log", _short(of(1, 9000, log=True))
    yield "softmax columns", of(2, 30, 40, dim=1)
    yield "softmax long columns", of(1, 600, 40, dim=1, log=True)
    for number, row in enumerate(tuning.SOFTMAX):
        if row.choice.stream or row.choice.rows == 2:

            def stream(make: Make, tile: Any = row.choice) -> None:
                with mock.patch.object(tuning, "pick", lambda *_, **__: tile):
                    of(4, 4096)(make)

            yield f"softmax row {number} of the table", stream
    yield "softmax unaligned", lambda make: _module("softmax").softmax(make.unaligned(3, 200))
    yield "softmax backward", back(3, 100)
    yield "softmax backward log", back(5, 1000, log=True, more=8)
    yield "softmax backward long", back(1, 20000)
    yield "softmax backward columns", back(2, 300, 40, dim=1, log=True)


def _topk() -> _Made:
    def of(
        rows: int, length: int, k: int, largest: bool = True, order: bool = True, dtype: torch.dtype = F16
    ) -> Any:
        return lambda make: _module("topk").top_k(make(rows, length, dtype=dtype), k, -1, largest, order)

    yield "topk 2x100 5", of(2, 100, 5)
    yield "topk 3x50 50", of(3, 50, 50, largest=False, dtype=F32)
    yield "topk 2x1000 20", of(2, 1000, 20, order=False, dtype=BF16)
    yield "topk 1x3000 256", of(1, 3000, 256)
    yield "topk 2x5000 8", of(2, 5000, 8)
    yield "topk 1x6000 100", of(1, 6000, 100, largest=False, dtype=F32)

    def three_levels(make: Make) -> None:
        topk = _module("topk")
        topk._PLANS.clear()
        with mock.patch.object(tuning, "TOPK_TOP", 64):
            topk.top_k(make(2, 3000), 5)
        topk._PLANS.clear()

    yield "topk three levels", three_levels


def edges() -> list[Call]:
    """More sizes, at and around the sides of tiles; for the interpreter, which needs no small launches."""
    return [Call(name, run) for name, run in _edges()]


def _edges() -> _Made:
    for length in (
        1,
        2,
        15,
        16,
        17,
        31,
        33,
        63,
        64,
        65,
        127,
        129,
        255,
        257,
        511,
        513,
        1023,
        1024,
        1025,
        2049,
        4097,
    ):

        def rows(make: Make, length: int = length) -> None:
            softmax, norms = _module("softmax"), _module("norms")
            softmax.softmax(make.apart(3, length, length % 3))
            softmax.softmax_backward(make(3, length), make(3, length))
            softmax.softmax(make(2, length, 3), 1)
            softmax.log_softmax_backward(make(2, length, 3), make(2, length, 3), 1)
            norms._forward(
                False,
                make.apart(5, length, 1),
                length,
                make(length),
                make(length),
                1e-5,
                make(5, length),
                True,
            )
            norms.norm_backward(
                make(5, length), make(5, length), make(length), make(5, dtype=F32), make(5, dtype=F32),
                normalized_shape=length, bias_dtype=F16,
            )  # fmt: skip
            _module("topk").top_k(make(2, length), min(length, 7))

        yield f"rows of {length}", rows
    for k in (1, 15, 16, 17, 31, 63, 64, 65, 127, 129, 255, 257, 520):
        for m, n in ((1, 1), (16, 32), (17, 33), (65, 15)):

            def products(make: Make, m: int = m, n: int = n, k: int = k) -> None:
                lora, quantized = _module("lora"), _module("quantized")
                _module("linear").linear(make.apart(m, k, 1), make(n, k), make(n), "gelu", make(m, n))
                lora.lora_linear(make(m, k), make(n, k), make(3, k), make(n, 3), 0.5, make(n))
                lora.lora_linear_multi(
                    make(m, k), make(n, k), make(2, 3, k), make(2, n, 3), make(2, dtype=F32), make.adapters(m)
                )
                for bits in (4, 8):
                    weight = _weight(make, bits, n, k, 32, F16)
                    quantized.quantized_linear(make(m, k), weight, make(n))
                    quantized.dequantize(weight, F16)

            yield f"products of {m}x{n}x{k}", products
    for keys in (1, 2, 15, 17, 31, 33, 63, 65, 127, 128):

        def attend(make: Make, keys: int = keys) -> None:
            mask = make(2, 1, 1, keys, dtype=torch.bool)
            attention = _module("attention").attention
            attention(make(2, 4, 3, 24), make(2, 2, keys, 24), make(2, 2, keys, 40), mask)
            attention(make(1, 2, keys, 16), make(1, 1, keys, 16), make(1, 1, keys, 16), None, True)

        yield f"attention over {keys} keys", attend
