"""Matrix product: the host side of the gemm kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch

from steelworks.errors import InvalidInputError

from . import tuning
from ._launch import Variant, empty, launch, metal_type
from ._operands import BATCH_DIMS, Operand, fold, one_contiguous, operand, three
from .tuning import GemmChoice, GemmTile, GemvColumns, GemvDot

DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
_MOST: Final = 2**30  # of a size: loops add a step to an int32 index before they compare it
_COMBINE_GROUP: Final = 256


@dataclass(frozen=True)
class _Options:
    """What gemm is given besides the operands; its docstring says what each means."""

    trans_a: bool = False
    trans_b: bool = False
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    alpha: float = 1.0
    beta: float = 1.0
    activation: str | None = None
    out_dtype: torch.dtype | None = None


@dataclass(frozen=True)
class _Problem:
    """out[m, n] = activation(alpha * a[m, k] @ b[k, n] + bias + beta * residual), in the kernels' terms.

    ``a.transposed`` says that the rows of a are contiguous; ``b.transposed`` that the terms of b are.
    ``swapped``: it is the transposed product; out's rows are contiguous.
    """

    m: int
    n: int
    k: int
    batch: tuple[int, int, int]
    a: Operand
    b: Operand
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    residual_strides: tuple[int, int]
    residual_batch: tuple[int, int, int]
    alpha: float
    beta: float
    activation: int
    dtype: torch.dtype
    out: torch.Tensor
    swapped: bool = False

    @property
    def batches(self) -> int:
        """Products in all."""
        return self.batch[0] * self.batch[1] * self.batch[2]

    @property
    def transpose(self) -> _Problem:
        """The same product as b^T a^T."""
        return replace(
            self,
            m=self.n,
            n=self.m,
            a=self.b.flipped,
            b=self.a.flipped,
            residual_strides=self.residual_strides[::-1],
            swapped=not self.swapped,
        )


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``activation(alpha * op(a) @ op(b) + bias + beta * residual)``, summed in float32 and rounded once.

    A view is read where it lies if one of its last two strides is 1; otherwise it is copied.

    Args:
        a: (..., M, K), or (..., K, M) with ``trans_a``. float32, float16 or bfloat16.
        b: (..., K, N), or (..., N, K) with ``trans_b``. Same dtype and device; batch dimensions broadcast.
        trans_a: Use a transposed.
        trans_b: Use b transposed.
        bias: (N,), of the dtype of ``a`` or of the result.
        residual: Broadcastable to (..., M, N), of the dtype of ``a`` or of the result.
        alpha: Factor of the product. A product that is inf or NaN stays so with 0.
        beta: Factor of the residual.
        activation: None, ``"relu"``, ``"gelu"`` (the exact form) or ``"silu"``.
        out_dtype: The dtype of ``a`` (the default), or float32.

    Returns:
        A dense tensor (..., M, N).

    Raises:
        InvalidInputError: shapes, dtypes or devices that do not fit.
    """
    problem = _problem(a, b, _Options(trans_a, trans_b, bias, residual, alpha, beta, activation, out_dtype))
    if problem.out.numel():
        _run(problem)
    return problem.out


def _problem(a: torch.Tensor, b: torch.Tensor, options: _Options) -> _Problem:
    """Checks the arguments and lays them out for the kernels; allocates the result."""
    result = _check(a, b, options)
    bias, residual = options.bias, options.residual
    a, b = (a.mT if options.trans_a else a), (b.mT if options.trans_b else b)
    (m, k), (terms, n) = a.shape[-2:], b.shape[-2:]
    if k != terms:
        raise InvalidInputError(
            f"op(a) is {m} x {k} and op(b) is {terms} x {n}: the columns of op(a) must be as many as the rows of op(b)"
        )
    if max(m, n, k) > _MOST:
        raise InvalidInputError(
            f"sizes are {m} x {n} x {k}; at most {_MOST} each: cut the product into pieces"
        )
    try:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    except RuntimeError as problem:
        raise InvalidInputError(
            f"the batch dimensions {tuple(a.shape[:-2])} of a and {tuple(b.shape[:-2])} of b do not broadcast"
        ) from problem
    shape = (*batch, m, n)
    if bias is not None:
        if bias.shape != (n,):
            raise InvalidInputError(f"bias has shape {tuple(bias.shape)}; with {n} columns it must be ({n},)")
        bias = bias.to(result)
    if residual is not None:
        try:
            residual = residual.to(result).expand(shape)
        except RuntimeError as problem:
            raise InvalidInputError(
                f"residual has shape {tuple(residual.shape)}, which does not broadcast to the result's {shape}"
            ) from problem
    out = empty(shape, result, a.device)
    merged = _merge_rows(a, b, residual, batch)
    if merged is not None:
        a, residual = merged
        b = b.view(b.shape[-2:])
        batch, m = torch.Size(), a.shape[0]
    a, b = (one_contiguous(t).expand(*batch, *t.shape[-2:]) for t in (a, b))
    sizes, strides = fold(batch, [t.stride()[:-2] for t in (a, b, residual) if t is not None])
    if len(sizes) > BATCH_DIMS:
        a, b = a.contiguous(), b.contiguous()
        residual = None if residual is None else residual.contiguous()
        sizes, strides = fold(batch, [t.stride()[:-2] for t in (a, b, residual) if t is not None])
    return _Problem(
        m,
        n,
        k,
        three(sizes, 1),
        operand(a, three(strides[0], 0)),
        operand(b, three(strides[1], 0)),
        bias,
        residual,
        (0, 0) if residual is None else (residual.stride(-2), residual.stride(-1)),
        (0, 0, 0) if residual is None else three(strides[2], 0),
        float(options.alpha),
        float(options.beta),
        tuning.ACTIVATIONS[options.activation],
        a.dtype,
        out,
    )


def _check(a: torch.Tensor, b: torch.Tensor, options: _Options) -> torch.dtype:
    """Everything but shapes. Returns the dtype of the result."""
    allowed = ", ".join(str(d) for d in DTYPES)
    for name, tensor in (("a", a), ("b", b)):
        if tensor.dtype not in DTYPES:
            raise InvalidInputError(f"{name} is {tensor.dtype}; allowed are {allowed}")
        if tensor.dim() < 2:
            raise InvalidInputError(
                f"{name} has {tensor.dim()} dimensions; a matrix has at least 2: use unsqueeze"
            )
    if a.dtype != b.dtype:
        raise InvalidInputError(f"a is {a.dtype} and b is {b.dtype}: convert one of them, they must agree")
    result = a.dtype if options.out_dtype is None else options.out_dtype
    if result not in (a.dtype, torch.float32):
        raise InvalidInputError(
            f"out_dtype is {result}; allowed are {a.dtype}, that of the operands, and torch.float32"
        )
    for name, extra in (("b", b), ("bias", options.bias), ("residual", options.residual)):
        if extra is None:
            continue
        if extra.device != a.device:
            raise InvalidInputError(
                f"{name} is on '{extra.device}' and a on '{a.device}': move them to one device"
            )
        if extra.dtype not in (a.dtype, result):
            raise InvalidInputError(
                f"{name} is {extra.dtype}; allowed are {a.dtype} and the result's {result}"
            )
    if options.activation not in tuning.ACTIVATIONS:
        names = ", ".join(repr(n) for n in tuning.ACTIVATIONS)
        raise InvalidInputError(f"activation is {options.activation!r}; allowed are {names}")
    return result


def _merge_rows(
    a: torch.Tensor, b: torch.Tensor, residual: torch.Tensor | None, batch: torch.Size
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """a and residual with the batch dimensions as rows, where b is shared by the batch and no copy is needed."""
    if not batch or any(size != 1 for size in b.shape[:-2]) or a.shape[:-2] != batch:
        return None
    if batch.numel() * a.shape[-2] > _MOST:
        return None
    try:
        rows = a.view(-1, a.shape[-1]) if a.numel() else None
        extra = None if residual is None else residual.view(-1, residual.shape[-1])
    except RuntimeError:
        return None
    return None if rows is None else (rows, extra)


def _run(problem: _Problem, choice: GemmChoice | None = None, splits: int | None = None) -> None:
    """Runs a problem; tests name the choice and the splits, otherwise the tuning table does."""
    if choice is None:
        # With few columns the transposed product has few rows: the vector and thin forms serve both.
        if problem.n < problem.m and problem.n <= 16:
            problem = problem.transpose
        choice = _choose(problem)
    groups = _threadgroups(problem, choice)
    if splits is None:
        splits = tuning.gemm_splits(
            tuning.GEMM_SPLIT,
            groups * problem.batches,
            problem.m,
            problem.n,
            problem.k,
            problem.dtype.itemsize,
        )
    split_k = _split_terms(problem.k, splits, choice)
    splits = max(1, -(-problem.k // split_k)) if split_k else 1
    out_type = metal_type(problem.out.dtype)
    if splits == 1:
        _launch_product(problem, choice, groups, 1, split_k, problem.out, out_type)
        return
    partial = empty((problem.batches, splits, problem.m, problem.n), torch.float32, problem.out.device)
    plain = replace(
        problem, bias=None, residual=None, residual_strides=(0, 0), alpha=1.0, activation=0, swapped=False
    )
    _launch_product(plain, choice, groups, splits, split_k, partial, "float")
    launch(
        Variant("gemm", "gemm_combine", (out_type, _COMBINE_GROUP), header="split"),
        partial,
        problem.bias,
        problem.residual,
        problem.out,
        _params(problem, choice, splits, split_k),
        problem.alpha,
        problem.beta,
        threads=(-(-problem.m * problem.n // _COMBINE_GROUP) * _COMBINE_GROUP, problem.batches),
        group=(_COMBINE_GROUP, 1),
    )


def _choose(problem: _Problem) -> GemmChoice:
    tiles = -(-problem.m // 64) * -(-problem.n // 64) * problem.batches
    choice: GemmChoice = tuning.pick(
        tuning.GEMM,
        m=problem.m,
        n=problem.n,
        k=problem.k,
        tiles=tiles,
        bytes=problem.dtype.itemsize,
        terms_inner=int(problem.b.transposed),
    )
    return choice


def _tiles(problem: _Problem, choice: GemmChoice) -> tuple[int, int]:
    """Threadgroups along the rows and the columns."""
    if isinstance(choice, GemmTile):
        return -(-problem.m // choice.bm), -(-problem.n // choice.bn)
    if isinstance(choice, GemvDot):
        return 1, -(-problem.n // (choice.columns * choice.simds_n))
    return 1, -(-problem.n // (32 * choice.packet))


def _threadgroups(problem: _Problem, choice: GemmChoice) -> int:
    down, across = _tiles(problem, choice)
    return down * across


def _split_terms(k: int, splits: int, choice: GemmChoice) -> int:
    """Terms of a split: a multiple of what the kernel takes in one step, so that only the last split has a rest."""
    step = choice.bk if isinstance(choice, GemmTile) else 32
    return max(step, -(-k // (splits * step)) * step)


def _variant(problem: _Problem, choice: GemmChoice, out_type: str) -> Variant:
    kind = metal_type(problem.dtype)
    if isinstance(choice, GemmTile):
        tile = (choice.bm, choice.bn, choice.bk, choice.wm, choice.wn, choice.stages)
        return Variant(
            "gemm", "gemm_tiled", (kind, out_type, *tile, problem.a.transposed, problem.b.transposed)
        )
    if isinstance(choice, GemvDot):
        sizes = (choice.rows, choice.columns, choice.simds_k, choice.simds_n)
        return Variant("gemm", "gemv_dot", (kind, out_type, *sizes, problem.a.transposed), header="vector")
    assert isinstance(choice, GemvColumns)
    sizes_3 = (choice.rows, choice.packet, choice.simds)
    return Variant("gemm", "gemv_columns", (kind, out_type, *sizes_3, problem.a.transposed), header="vector")


def _launch_product(
    problem: _Problem,
    choice: GemmChoice,
    groups: int,
    splits: int,
    split_k: int,
    out: torch.Tensor,
    out_type: str,
) -> None:
    launch(
        _variant(problem, choice, out_type),
        problem.a.tensor,
        problem.b.tensor,
        problem.bias,
        problem.residual,
        out,
        _params(problem, choice, splits, split_k),
        problem.alpha,
        problem.beta,
        threads=(groups * choice.threads, problem.batches, splits),
        group=(choice.threads, 1, 1),
    )


def _params(problem: _Problem, choice: GemmChoice, splits: int, split_k: int) -> list[int]:
    """The fields of GemmParams, in order."""
    tiles_m, tiles_n = _tiles(problem, choice)
    bias = 0 if problem.bias is None else problem.bias.stride(0)
    return [
        problem.m,
        problem.n,
        problem.k,
        problem.a.stride,
        problem.b.stride,
        *((1, problem.m) if problem.swapped else (problem.n, 1)),
        *problem.residual_strides,
        *((bias, 0) if problem.swapped else (0, bias)),
        problem.batch[1],
        problem.batch[2],
        *problem.a.batch,
        *problem.b.batch,
        *problem.residual_batch,
        tiles_m,
        tiles_n,
        tuning.GEMM_BAND,
        splits,
        split_k,
        int(problem.bias is not None),
        int(problem.residual is not None),
        problem.activation,
    ]
