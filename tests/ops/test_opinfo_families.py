"""PyTorch's own samples for every operation that has them: the results are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steelworks import paths
from steelworks.ops import elementwise, reduce, scan
from steelworks.ops.attention import attention
from steelworks.ops.conv2d import conv2d
from steelworks.ops.embedding import embedding
from steelworks.ops.sort import sort
from steelworks.ops.topk import top_k

pytest.importorskip("expecttest", reason="torch.testing's samples need the package expecttest")
from torch.testing._internal.common_methods_invocations import op_db

SAMPLES = {(info.name, info.variant_test_name): info for info in op_db}
#: PyTorch's name where it is another.
NAMES = {"relu": "nn.functional.relu", "silu": "nn.functional.silu", "gelu": "nn.functional.gelu"}


class NotOurs(Exception):
    """The sample has an option that the operation does not take."""


def _plain(function: Callable[..., Any], *options: str) -> Callable[..., Any]:
    """Calls an operation with a sample that has no other options than these."""

    def run(input: Any, *args: Any, **kwargs: Any) -> Any:
        if set(kwargs) - set(options):
            raise NotOurs
        return function(input, *args, **kwargs)

    return run


def _sort(input: torch.Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    if not stable:
        raise NotOurs
    return sort(input, dim, descending)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> Any:
    mask, causal = options.get("attn_mask"), options.get("is_causal", False)
    if options.get("dropout_p") or query.dim() != 4 or (causal and query.shape[2] != key.shape[2]):
        raise NotOurs
    return attention(query, key, value, mask, causal)


def _conv2d(input: torch.Tensor, *args: Any, **options: Any) -> Any:
    if input.dim() != 4 or not input.is_floating_point():
        raise NotOurs
    return conv2d(input, *args, **options)


def _embedding(table: torch.Tensor, ids: torch.Tensor, **options: Any) -> Any:
    if set(options) - {"padding_idx"}:
        raise NotOurs
    return embedding(ids, table, **options)


def _gelu(input: torch.Tensor, *, approximate: str) -> Any:
    return elementwise.gelu(input) if approximate == "none" else elementwise.gelu_tanh(input)


def _any(input: torch.Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if dim == ():  # PyTorch then reduces nothing, and everywhere else all
        raise NotOurs
    return reduce.any(input, dim, keepdim)


def _all(input: torch.Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    if dim == ():
        raise NotOurs
    return reduce.all(input, dim, keepdim)


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    """torch.max and min, which have a form with two tensors too."""

    def run(input: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], torch.Tensor):
            raise NotOurs
        return function(input, *args, **kwargs)

    return run


OTHERWISE = ("gelu_tanh", "div")  # listed by hand

CASES: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (NAMES.get(name, name), ""): _plain(getattr(elementwise, name))
        for name in (*elementwise.UNARY_OPERATIONS, *elementwise.BINARY_OPERATIONS)
        if name not in OTHERWISE
    },
    ("nn.functional.gelu", ""): _gelu,
    ("div", "no_rounding_mode"): _plain(elementwise.div),
    ("sum", ""): _plain(reduce.sum, "dim", "keepdim", "dtype"),
    ("mean", ""): _plain(reduce.mean, "dim", "keepdim", "dtype"),
    ("amax", ""): _plain(reduce.amax, "dim", "keepdim"),
    ("amin", ""): _plain(reduce.amin, "dim", "keepdim"),
    ("argmax", ""): _plain(reduce.argmax, "dim", "keepdim"),
    ("argmin", ""): _plain(reduce.argmin, "dim", "keepdim"),
    ("any", ""): _any,
    ("all", ""): _all,
    ("max", "reduction_with_dim"): _extreme(reduce.max),
    ("max", "reduction_no_dim"): _extreme(reduce.max),
    ("min", "reduction_with_dim"): _extreme(reduce.min),
    ("min", "reduction_no_dim"): _extreme(reduce.min),
    ("cumsum", ""): _plain(scan.cumsum, "dtype"),
    ("cumprod", ""): _plain(scan.cumprod, "dtype"),
    ("cummax", ""): _plain(scan.cummax),
    ("cummin", ""): _plain(scan.cummin),
    ("sort", ""): _sort,
    ("topk", ""): _plain(top_k),
    ("nn.functional.embedding", ""): _embedding,
    ("nn.functional.conv2d", ""): _conv2d,
    ("nn.functional.scaled_dot_product_attention", ""): _attention,
}  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.int64)


def _compare(key: tuple[str, str], dtype: torch.dtype, most: int) -> int:
    """How many samples were compared."""
    info, compared = SAMPLES[key], 0
    for sample in info.sample_inputs("cpu", dtype):
        try:
            got = CASES[key](sample.input, *sample.args, **sample.kwargs)
        except NotOurs:
            continue
        want = info.op(sample.input, *sample.args, **sample.kwargs)
        values = want if isinstance(want, torch.Tensor) else tuple(want)
        if key[0] in ("topk", "sort"):  # PyTorch leaves open the order of equal elements, and which are taken
            got, values = got[0], values[0]
        loose = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(got, values, equal_nan=True, **loose)
        compared += 1
        if compared == most:
            break
    return compared


@pytest.mark.parametrize("key", CASES, ids=lambda key: "-".join(filter(None, key)))
def test_pytorchs_samples_have_pytorchs_results(key: tuple[str, str]) -> None:
    compared = 0
    for dtype in DTYPES:
        if dtype in SAMPLES[key].dtypes:
            compared += _compare(key, dtype, most=30)
    assert compared >= 3, f"{key}: {compared} samples were compared"


@pytest.mark.parametrize(
    "key", [("topk", ""), ("cumsum", ""), ("amax", ""), ("add", ""), ("nn.functional.embedding", "")]
)
def test_pytorchs_samples_have_the_same_results_with_the_metal_kernels(key: tuple[str, str]) -> None:
    with paths.simulate_metal(), paths.use("steel"), paths.record() as recorded:
        assert _compare(key, torch.float32, most=8) >= 3
    assert sum(n for (_, path), n in recorded.counts.items() if path == "steel") >= 3
