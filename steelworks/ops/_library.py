"""The plumbing that all operations share: selection, torch.library, autograd, autocast.

**Adding an operation.** A module holds a family. In it, for each operation (``softmax.py`` is the shortest example):

1. ``_vendor(*args)``: what PyTorch does, composed if it has no single operator. It is differentiable by PyTorch.
2. ``_signature(*args)``: the selector's key, ``(op, device_type(x), x.dtype, (shapes...), (flags...))``. On the hot
   path, so plain tuples and attributes only. Its flags hold all else that ``possible`` or ``_check`` need to decide:
   further dtypes, dims, activation names.
3. ``_check(*args)``: raises InvalidInputError, in full sentences, for what is not allowed. It runs once a signature,
   and again when an implementation fails.
4. ``Operator(name, schema, ...)`` registers the operation as ``torch.ops.steelworks.<name>`` with its fake kernel
   (``fake`` gives the shape and dtype of the results, which are dense) and, for what is trained, ``backward`` with
   ``saved``. The vendor path is registered with it.
5. ``.metal(possible, run)`` and ``.triton(possible, run)`` add the Steel paths. ``run`` takes the operation's
   arguments in order; it imports its kernels when it is first called. ``possible(signature)`` gives None or the reason
   why not.
6. The public function, with PyTorch's name, argument order and defaults, ends in
   ``return OPERATOR((the tensors), (all arguments in the schema's order))``.
7. Typical calls in ``steelworks/ops/_examples.py``, which ``steelworks tune`` measures; a row in
   ``steelworks/paths/defaults.py`` where another path than the vendor's should be taken by default; and the name in
   ``steelworks/ops/__init__.py``.

An operation without ``backward`` is differentiated through its vendor composition. Where the vendor path is not
differentiable either, PyTorch raises as usual.

What happens in a call: plain tensors go straight to the chosen implementation if that is PyTorch's (which knows of
gradients and modes by itself), or if no gradient is needed and no mode is on. Else, and when compiling or tracing,
the call goes through torch.library. What our kernels can't read (subclasses, sparse, vmap) is left to PyTorch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cache
from typing import Any, Final, Literal

import torch
from torch.library import Library

from steelworks import paths
from steelworks.errors import InvalidInputError
from steelworks.paths import Choice, Signature, choose
from steelworks.paths._choose import known, through_vendor
from steelworks.paths._state import CURRENT, resumed

NAMESPACE: Final = "steelworks"
FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_LIBRARY: Final[Any] = Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_C: Any = torch._C
_Tensor: Final = torch.Tensor
_PLAIN: Final = frozenset((torch.Tensor, torch.nn.Parameter, type(None)))
# Bound once: a look-up of each on the hot path costs as much as the call.
_compiling = torch.compiler.is_dynamo_compiling
_grad_enabled = torch.is_grad_enabled
_dispatch_modes: Callable[[], int] = _C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = _C._len_torch_function_stack
_any_autocast: Callable[[], bool] = _C._is_any_autocast_enabled
_tracing_state: Callable[[], Any] = _C._get_tracing_state

Tensors = Sequence[torch.Tensor | None]
Arguments = tuple[Any, ...]


def device_type(x: torch.Tensor) -> str:
    """``x.device.type``, in a third of the time."""
    if x.is_cuda:
        return "cuda"
    return "cpu" if x.is_cpu else x.device.type


def dtype_of(x: torch.Tensor | None) -> torch.dtype | None:
    """The dtype of an optional tensor."""
    return None if x is None else x.dtype


def shape_of(x: torch.Tensor | None) -> torch.Size | None:
    """The shape of an optional tensor."""
    return None if x is None else x.shape


def float_reason(dtype: torch.dtype) -> str | None:
    """Why our kernels can't take a floating-point tensor of this dtype, or None."""
    return None if dtype in FLOATS else f"{dtype} is none of float32, float16 and bfloat16"


@cache
def triton_reason() -> str | None:
    """Why Triton kernels can't run here, or None."""
    return None if importlib.util.find_spec("triton") is not None else "the package triton is not installed"


def _direct(tensors: Tensors) -> bool:
    """Whether plain tensors may go past the dispatcher to our kernels: no gradient, no mode, no negative bit.

    vmap's tensors and sparse ones are not told apart here, which would cost as much as all the rest: they have no data
    pointer, so our kernels raise on them, and the call is then repeated PyTorch's way.
    """
    if _dispatch_modes() or _function_modes() or _any_autocast() or _tracing_state() is not None:
        return False
    for x in tensors:
        if x is None:
            continue
        if (x.requires_grad and _grad_enabled()) or x.is_neg():
            return False
    return True


def eager(*tensors: torch.Tensor | None) -> bool:
    """Whether a backward may run kernels of ours: outside all modes, and not to be differentiated again."""
    plain = all(type(x) in _PLAIN for x in tensors)
    return plain and not _grad_enabled() and not _dispatch_modes() and not _compiling()


def _odd(x: torch.Tensor) -> bool:
    """Whether only PyTorch itself can read the tensor."""
    return (
        x.layout != torch.strided
        or x.is_neg()
        or x.is_conj()
        or x.is_quantized
        or x.is_nested
        or bool(_C._functorch.is_functorch_wrapped_tensor(x))
    )


def _traced(x: torch.Tensor) -> bool:
    """Whether the tensor is one of PyTorch's own tracers, which record the operation as it is."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return isinstance(x, (FakeTensor, FunctionalTensor))


class Operator:
    """An operation: a torch.library operator whose implementation the selector picks.

    Args:
        name: Its name in torch.library and in ``paths``.
        schema: Its arguments and results as torch.library writes them.
        signature: The selector's key for a call.
        check: Raises InvalidInputError for arguments that are not allowed.
        vendor: PyTorch's way.
        fake: The results, empty, for the tracers; dense.
        sizes: The sizes that its time depends on, from a signature.
        family: A name it shares with related operations.
        flags: The signature's flags of the plainest call, for ``paths.explain``.
        no_path: Why a path can't be taken, by (device, path).
        backward: From ``(context, *gradients)`` to the gradients of all arguments.
        saved: What backward needs: from ``(arguments, results)`` to (tensors to save, anything else).
        vendor_trains: In training PyTorch's own is taken unless ours is forced, or hazards or a simulation ask for it:
            for operations so short that the host time of a gradient through torch.library outweighs what ours gains.
        autocast: ``"lower"``: floating-point arguments take autocast's dtype, as those of matmul do; ``"float32"``:
            they become float32 on a GPU, as those of softmax do; None: they stay.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        signature: Callable[..., tuple[Any, ...]],
        check: Callable[..., None],
        vendor: Callable[..., Any],
        fake: Callable[..., Any],
        sizes: Callable[[Signature], Mapping[str, int]],
        family: str | None = None,
        flags: tuple[Hashable, ...] = (),
        no_path: Mapping[tuple[str, str], str] | None = None,
        backward: Callable[..., Any] | None = None,
        saved: Callable[[Arguments, Any], tuple[Tensors, Any]] | None = None,
        vendor_trains: bool = False,
        autocast: Literal["lower", "float32"] | None = None,
    ) -> None:
        self.name = name
        self.signature = signature
        self.check = check
        self.vendor = vendor
        self.trained = backward is not None
        self._vendor_trains = vendor_trains
        self._autocast = autocast
        paths.declare(
            name,
            sizes=sizes,
            family=family,
            flags=flags,
            no_path=no_path,
            signature=signature,
        )
        paths.register(name, "any", "vendor", run=vendor)
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, self._kernel, "CompositeExplicitAutograd")
        qualified = f"{NAMESPACE}::{name}"
        torch.library.register_fake(qualified, fake, lib=_LIBRARY)
        if backward is not None:
            assert saved is not None
            torch.library.register_autograd(
                qualified, _resuming(backward), setup_context=_keeping(saved), lib=_LIBRARY
            )
        self.registered: Any = getattr(getattr(torch.ops, NAMESPACE), name).default
        schema_arguments = self.registered._schema.arguments
        self._defaults: Arguments = tuple(a.default_value for a in schema_arguments)

    def metal(self, possible: Callable[[Signature], str | None], run: Callable[..., Any]) -> None:
        """Adds the Steel path in Metal: on mps, and on the CPU inside ``paths.simulate_metal()``."""
        for device in ("mps", "cpu"):
            paths.register(self.name, device, "steel", possible=possible, run=run)

    def triton(self, possible: Callable[[Signature], str | None], run: Callable[..., Any]) -> None:
        """Adds the Steel path in Triton, on cuda."""
        paths.register(self.name, "cuda", "steel", possible=lambda s: triton_reason() or possible(s), run=run)

    def graph(self, possible: Callable[[Signature], str | None], run: Callable[..., Any]) -> None:
        """Adds the path through MPSGraph."""
        paths.register(self.name, "mps", "graph", possible=possible, run=run)

    def __call__(self, tensors: Tensors, arguments: Arguments) -> Any:
        """Runs the operation.

        Args:
            tensors: The tensors among the arguments; None for those not given.
            arguments: All arguments, in the schema's order.

        Raises:
            InvalidInputError: arguments that are not allowed.
        """
        if _compiling():
            return self._slowly(tensors, arguments)
        for x in tensors:
            if type(x) not in _PLAIN:
                return self._slowly(tensors, arguments)
        signature = self.signature(*arguments)
        choice = known(signature)
        if choice is None:
            if self._autocast is not None and _C._is_any_autocast_enabled():
                # Dtypes that don't agree are allowed there: the choice is for what they become.
                before, arguments = arguments, self._cast(arguments, [x for x in tensors if x is not None])
                became = {id(old): new for old, new in zip(before, arguments, strict=True)}
                tensors = tuple(became.get(id(x), x) for x in tensors)
                signature = self.signature(*arguments)
            self.check(*arguments)
            choice = choose(signature)
        if choice.path != "vendor" and not _direct(tensors):
            if self.trains_through_vendor(choice, tensors):
                return through_vendor(choice, self.vendor, *arguments)
            return self._slowly(tensors, arguments)
        try:  # PyTorch's way knows of gradients, modes and autocast by itself
            return choice.run(*arguments)
        except InvalidInputError:
            raise
        except Exception:
            if choice.path != "vendor" and any(x is not None and _odd(x) for x in tensors):
                return self.vendor(*arguments)
            self.check(*arguments)
            raise

    def takes_ours(self, tensors: Tensors, arguments: Arguments) -> bool:
        """Whether a call with these would run a kernel of ours right away: no gradient, no mode, no tracer.

        For those who have another way to compute the same where it would not.
        """
        if _compiling() or any(type(x) not in _PLAIN for x in tensors) or not _direct(tensors):
            return False
        signature = self.signature(*arguments)
        choice = known(signature)
        if choice is None:
            try:
                self.check(*arguments)
                choice = choose(signature)
            except InvalidInputError:  # the other way has its own words for it
                return False
        return choice.path == "steel"

    def trains_through_vendor(self, choice: Choice, tensors: Tensors) -> bool:
        """Whether PyTorch's own is to be taken in place of the choice, because a gradient is needed."""
        if not self._vendor_trains or choice.rule not in ("default", "profile"):
            return False
        return _grad_enabled() and any(x is not None and x.requires_grad for x in tensors)

    def _slowly(self, tensors: Tensors, arguments: Arguments) -> Any:
        """The way past the hot path: compilers, tracers, subclasses, and our kernels with gradients or autocast."""
        given = [x for x in tensors if x is not None]
        needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in given)
        if needs_grad and not self.trained:
            return self.vendor(*arguments)
        if _compiling():
            return self.registered(*self._cast(arguments, given))
        traced = any(_traced(x) for x in given)
        if not traced and any(type(x) not in _PLAIN or _odd(x) for x in given):
            return self.vendor(*arguments)
        return self.registered(*self._cast(arguments, given))

    def _cast(self, arguments: Arguments, given: Sequence[torch.Tensor]) -> Arguments:
        """Arguments as autocast wants them."""
        device = given[0].device.type
        if self._autocast is None or not torch.is_autocast_enabled(device):
            return arguments
        if self._autocast == "float32" and device == "cpu":
            return arguments
        dtype = torch.float32 if self._autocast == "float32" else torch.get_autocast_dtype(device)

        def cast(value: Any) -> Any:
            wide = isinstance(value, _Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if wide else value

        return tuple(cast(a) for a in arguments)

    def _kernel(self, *arguments: Any) -> Any:
        """What torch.library runs on real tensors; its results are dense, as the fake kernel says."""
        arguments += self._defaults[len(arguments) :]  # torch leaves out those that are as the schema's
        signature = self.signature(*arguments)
        choice = known(signature)
        if choice is None:
            self.check(*arguments)
            choice = choose(signature)
        result = choice.run(*arguments)
        if isinstance(result, _Tensor):
            return result.contiguous()
        return tuple(r.contiguous() for r in result)


def _keeping(saved: Callable[[Arguments, Any], tuple[Tensors, Any]]) -> Callable[..., None]:
    """The ``setup_context`` that saves what ``saved`` gives, and what is forced now."""

    def setup_context(ctx: Any, inputs: Arguments, output: Any) -> None:
        tensors, rest = saved(inputs, output)
        ctx.save_for_backward(*tensors)
        ctx.rest = rest
        ctx.arguments = len(inputs)
        ctx.state = CURRENT.get()

    return setup_context


def _resuming(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward that runs under what was forced in the forward, in whatever thread autograd runs it."""

    def resume(ctx: Any, *gradients: torch.Tensor) -> Any:
        # torch leaves out arguments at the end that are as the schema's defaults, and wants no gradients for them.
        given = len(ctx.needs_input_grad)
        ctx.needs_input_grad = (*ctx.needs_input_grad, *[False] * (ctx.arguments - given))
        with resumed(ctx.state):
            return backward(ctx, *gradients)[:given]

    return resume
