"""Pre-compiled launches: a Triton kernel with its grid and constants bound, ready to be called with tensors.

How a family uses it::

    from ._launch import Arg, Kernel, Options, cdiv, constexpr, jit, tl

    @jit                                      # triton.jit, or nothing where there is no Triton
    def _scale_kernel(x: Arg, y: Arg, n: Arg, factor: Arg, BLOCK: constexpr) -> None: ...

    _SCALE = Kernel(_scale_kernel, pointers=2, plain=("n",))      # at import; compiles nothing

    launch = _SCALE.bind(                     # once for each shape: keep what it returns (``Plans`` does)
        (x, y),                               # the tensors of a call: their dtypes and device count
        scalars=(x.numel(), 0.5),             # bound to the launch
        constants={"BLOCK": 1024},
        grid=(cdiv(x.numel(), 1024),),
        options=Options(num_warps=4),
    )
    launch(x, y)                              # tensors only; 2-3 us of host time on the current stream

Rules for a kernel's parameters: first the pointers (always tensors, never None: pass any tensor for one that a
constant switches off), then the scalars, then the constants, annotated ``constexpr``. Every pointer is taken to be
16-byte aligned; a call with a tensor that is not uses a twin, compiled at the first such call. That an int scalar is
divisible by 16, or by 8, is told to the compiler, unless its name is in ``plain`` (for sizes that vary from call to
call, so that they do not compile further variants). A float scalar is float32. Tensors on another device than the
current one are launched there.

The first ``described`` pointers of a kernel may be tensor descriptors, through which a block of a matrix comes by one
instruction (TMA; sm_90 and sm_100). ``bind`` takes the shapes of their blocks, and a call the tensors, which must be
16-byte aligned, with rows that are a multiple of 16 bytes apart (``describable``); there is no twin for others.

``Options(pdl=True)`` lets a kernel start while the one before it ends (programmatic dependent launch; sm_90 and
later, ignored elsewhere). Such a kernel must call ``wait_for_previous(PDL)`` before its first access to memory, in
every program, and takes ``PDL`` as a constant; ``supports_pdl(device)`` says whether to ask for it.

What is compiled is kept for ever, by kernel, types, hints, constants, options and device. Threads that need the same
variant wait for the one that compiles it; nobody waits for another variant (I4). A call that finds its variant takes
no lock. Once a variant was launched, it may be captured in a CUDA graph; compile before capture begins.

Where the launcher's form is not the known one (another version of Triton) or needs scratch memory, calls go through
Triton's own launch, slower and otherwise the same; so they do under the interpreter (TRITON_INTERPRET=1, CPU tensors).
Launch hooks of profilers that live in Triton are not called.
"""

from __future__ import annotations

import functools
import importlib
import operator
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar

import torch

from steelworks.errors import InvalidInputError

triton: Any
tl: Any
try:
    triton = importlib.import_module("triton")
    tl = importlib.import_module("triton.language")
except ImportError:  # no Triton for this platform: the modules import, nothing launches
    triton = tl = None

if TYPE_CHECKING:
    Arg: TypeAlias = Any
    constexpr: TypeAlias = Any
else:  # Triton looks annotations up, and accepts only names of its own
    Arg = tl.tensor if tl is not None else object
    constexpr = tl.constexpr if tl is not None else object

_ALIGNMENT: Final = 16
_INT32_MOST: Final = 2**31 - 1
_TYPES: Final = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
#: The first arguments of the launcher that Triton 3.6 makes, in the notation of PyArg_ParseTuple.
_KNOWN_LAUNCHER: Final = "iiiKKppOOOOOO"

_data_ptr: Callable[[torch.Tensor], int] = torch.Tensor.data_ptr


def available() -> bool:
    """Whether Triton is installed."""
    return triton is not None


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit`` where there is Triton; the function itself otherwise."""
    return function if triton is None else triton.jit(function)


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_of_two(n: int) -> int:
    """The least power of two that is not below ``n``; 1 for 0."""
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def processors(index: int) -> int:
    """Streaming multiprocessors of a CUDA device; a small number under the interpreter (index -1)."""
    return 4 if index < 0 else torch.cuda.get_device_properties(index).multi_processor_count


@functools.cache
def supports_pdl(index: int) -> bool:
    """Whether the CUDA device ``index`` has programmatic dependent launch; False under the interpreter (-1)."""
    return index >= 0 and torch.cuda.get_device_capability(index) >= (9, 0)


@functools.cache
def supports_descriptors(index: int) -> bool:
    """Whether the CUDA device ``index`` reads matrices through descriptors; True under the interpreter (-1)."""
    return index < 0 or torch.cuda.get_device_capability(index)[0] in (9, 10)


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether all begin where a descriptor may begin."""
    return functools.reduce(operator.or_, map(_data_ptr, tensors)) % _ALIGNMENT == 0


def describable(matrix: torch.Tensor) -> bool:
    """Whether a kernel may read ``(rows, columns)`` through a descriptor."""
    row, column = matrix.stride()
    return (
        column == 1
        and row * matrix.element_size() % _ALIGNMENT == 0
        and _data_ptr(matrix) % _ALIGNMENT == 0
        and matrix.numel() > 0
    )


@jit
def wait_for_previous(PDL: constexpr) -> None:
    """Waits until the kernels before this one are done and their writes visible; then lets the next one start.

    The next one waits in the same way before it touches memory, so that only its start is early.
    """
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@dataclass(frozen=True)
class Options:
    """Compile options of a variant, by Triton's names.

    Attributes:
        num_warps: Warps of a program.
        num_stages: Depth of software pipelines.
        num_ctas: Blocks of a cluster.
        maxnreg: Most registers of a thread; None leaves it to the compiler.
        pdl: Programmatic dependent launch (see the module's docstring).
    """

    num_warps: int = 4
    num_stages: int = 3
    num_ctas: int = 1
    maxnreg: int | None = None
    pdl: bool = False

    def as_triton(self) -> dict[str, Any]:
        """For ``triton.compile``."""
        given = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "num_ctas": self.num_ctas,
            "maxnreg": self.maxnreg,
            "launch_pdl": self.pdl,
        }
        return {name: value for name, value in given.items() if value is not None}


Made = TypeVar("Made")


class OnceEach(Generic[Made]):
    """Values made once for each key; making one keeps nobody waiting who needs another."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Made] = {}
        self._locks: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value of ``key``; what ``make`` raises is raised here, and the next caller tries again."""
        try:
            return self._made[key]
        except KeyError:
            pass
        with self._locks.setdefault(
            key, threading.Lock()
        ):  # setdefault is atomic; the lock is this key's own
            if key not in self._made:
                self._made[key] = make()
        return self._made[key]


class Plans(dict[Hashable, Made]):
    """A bounded cache of what a family has prepared for a signature. Full, it is emptied: plans are quick to remake.

    Reads take no lock; two threads that miss at once both prepare, and either result is right.
    """

    MOST: Final = 4096

    def keep(self, key: Hashable, plan: Made) -> Made:
        """Stores and returns ``plan``."""
        if len(self) >= self.MOST:
            self.clear()
        self[key] = plan
        return plan


@dataclass(frozen=True)
class _Variant:
    """What decides the machine code of a kernel."""

    types: tuple[str, ...]
    divisors: tuple[int, ...]
    constants: tuple[tuple[str, Any], ...]
    options: Options
    device: int


class Kernel:
    """A Triton kernel and its compiled variants.

    Args:
        function: What ``jit`` returned.
        pointers: How many of the first parameters are tensors.
        plain: Names of int scalars whose divisibility must not be told to the compiler.
        described: How many of the tensors, the first ones, it reads through descriptors.
    """

    def __init__(
        self, function: Any, *, pointers: int, plain: Sequence[str] = (), described: int = 0
    ) -> None:
        self.function = function
        self.pointers = pointers
        self.described = described
        self.plain = frozenset(plain)
        self._compiled: OnceEach[Any] = OnceEach()

    @property
    def variants(self) -> int:
        """How many variants were compiled."""
        return len(self._compiled._made)

    def bind(
        self,
        tensors: Sequence[torch.Tensor],
        *,
        scalars: Sequence[int | float] = (),
        constants: Mapping[str, Any] | None = None,
        grid: Sequence[int],
        options: Options = Options(),
        blocks: Sequence[Sequence[int]] = (),
    ) -> Launch:
        """A launch over ``grid`` for tensors of these dtypes on this device; compiles if the variant is new.

        Args:
            tensors: Of a call.
            scalars: What follows them.
            constants: By name.
            grid: Programs in up to three dimensions.
            options: For the compiler.
            blocks: The shapes of the blocks of the tensors that are read through descriptors.

        Raises:
            InvalidInputError: Triton is missing, or there are more or fewer arguments than the kernel takes.
        """
        if triton is None:
            raise InvalidInputError(
                "a Triton kernel was asked for, and Triton is not installed: use the vendor path"
            )
        constants = dict(constants or {})
        names = list(self.function.arg_names)
        wanted = len(names) - len(constants)
        if len(tensors) != self.pointers or len(tensors) + len(scalars) != wanted:
            raise InvalidInputError(
                f"{self.function.__name__} takes {self.pointers} tensors and {wanted - self.pointers} scalars; "
                f"{len(tensors)} and {len(scalars)} were given"
            )
        if len(blocks) != self.described:
            raise InvalidInputError(
                f"{self.function.__name__} reads {self.described} tensors through descriptors; the shapes of "
                f"{len(blocks)} blocks were given"
            )
        if set(names[wanted:]) != set(constants):
            raise InvalidInputError(
                f"{self.function.__name__} has the constants {names[wanted:]}; {sorted(constants)} were given"
            )
        three = (*grid, 1, 1)[:3]
        if interpreted():
            return _Interpreted(self.function, three, tuple(scalars), constants, options, tuple(blocks))
        types = [
            *(f"tensordesc<{_TYPES[t.dtype]}{[*b]}>" for t, b in zip(tensors, blocks, strict=False)),
            *(f"*{_TYPES[t.dtype]}" for t in tensors[self.described :]),
            *(_scalar_type(s) for s in scalars),
        ]
        divisors = [
            *(1 for _ in blocks),
            *(_ALIGNMENT for _ in tensors[self.described :]),
            *(
                1 if name in self.plain else _divisor(s)
                for s, name in zip(scalars, names[self.pointers :], strict=False)
            ),
        ]
        ordered = tuple((name, constants[name]) for name in names[wanted:])
        variant = _Variant(tuple(types), tuple(divisors), ordered, options, tensors[0].get_device())
        return _Direct(self, variant, three, tuple(scalars))

    def compiled(self, variant: _Variant) -> Any:
        """The loaded ``CompiledKernel`` of a variant."""
        return self._compiled.get(variant, lambda: self._compile(variant))

    def _compile(self, variant: _Variant) -> Any:
        with torch.cuda.device(variant.device):
            target = triton.runtime.driver.active.get_current_target()
            made = triton.compile(self.source(variant), target=target, options=variant.options.as_triton())
            made.run  # noqa: B018  (loads the binary on this device, and makes the launcher)
        return made

    def source(self, variant: _Variant) -> Any:
        """What ``triton.compile`` takes, for any target."""
        names = self.function.arg_names
        signature = dict(zip(names, variant.types, strict=False))
        signature.update((name, "constexpr") for name, _ in variant.constants)
        attributes = {
            (place,): [["tt.divisibility", divisor]]
            for place, divisor in enumerate(variant.divisors)
            if divisor > 1
        }
        return triton.compiler.ASTSource(self.function, signature, dict(variant.constants), attributes)


def _scalar_type(value: int | float) -> str:
    if isinstance(value, float):
        return "fp32"
    return "i32" if -_INT32_MOST <= value <= _INT32_MOST else "i64"


def _divisor(value: int | float) -> int:
    """What the compiler is told to divide ``value``: 16, 8 (which 16-byte loads of two-byte elements need) or 1."""
    if isinstance(value, int):
        for divisor in (_ALIGNMENT, _ALIGNMENT // 2):
            if value % divisor == 0:
                return divisor
    return 1


class Launch:
    """A kernel with its grid, scalars and constants; call it with the tensors. Immutable, for any thread."""

    __slots__ = ()

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Launches on the current stream of the tensors' device."""
        raise NotImplementedError


class _Described:
    """What Triton wants to know of a tensor that it makes a descriptor of."""

    __slots__ = ("base", "shape", "strides")
    padding: Final = "zero"

    def __init__(self, base: torch.Tensor) -> None:
        self.base, self.shape, self.strides = base, base.shape, base.stride()


class _Interpreted(Launch):
    __slots__ = ("_blocks", "_constants", "_function", "_grid", "_options", "_scalars")

    def __init__(
        self,
        function: Any,
        grid: tuple[int, ...],
        scalars: tuple[int | float, ...],
        constants: dict[str, Any],
        options: Options,
        blocks: tuple[Sequence[int], ...],
    ) -> None:
        self._function, self._grid, self._scalars = function, grid, scalars
        self._constants = constants
        self._options = options
        self._blocks = blocks

    def __call__(self, *tensors: torch.Tensor) -> None:
        _mend_interpreter()
        if 0 not in self._grid:
            described = [_described(t, b) for t, b in zip(tensors, self._blocks, strict=False)]
            given = (*described, *tensors[len(described) :])
            self._function[self._grid](*given, *self._scalars, **self._constants)


def _described(tensor: torch.Tensor, block: Sequence[int]) -> Any:
    """For the interpreter, Triton's own descriptor, which checks what a GPU would refuse."""
    module: Any = importlib.import_module("triton.tools.tensor_descriptor")
    return module.TensorDescriptor.from_tensor(tensor, [*block])


@functools.cache
def _mend_interpreter() -> None:
    """Lets a scalar be the bound of a range: NumPy 2.4 refuses int() of an array of one element, as 3.6 does it."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    patch = getattr(interpreter, "_patch_lang_tensor", None)
    if patch is None:
        return

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


class _Direct(Launch):
    """Calls the launcher that Triton compiled, with addresses instead of tensors."""

    __slots__ = (
        "_aligned", "_described", "_device", "_grid", "_head", "_kernel", "_launcher", "_scalars", "_stream", "_tail",
        "_twin", "_variant",
    )  # fmt: skip

    def __init__(
        self, kernel: Kernel, variant: _Variant, grid: tuple[int, ...], scalars: tuple[int | float, ...]
    ) -> None:
        self._kernel, self._variant, self._grid = kernel, variant, grid
        self._device = variant.device
        self._described = kernel.described
        self._aligned = variant.divisors[kernel.pointers - 1] > 1  # its last tensor is no described one
        self._stream: Callable[[int], int] = torch._C._cuda_getCurrentRawStream
        self._twin: _Direct | None = None
        compiled = kernel.compiled(variant)
        self._scalars = scalars
        self._tail = (
            *scalars,
            *(None for _ in variant.constants),
        )  # the launcher wants a place for constants
        self._launcher, self._head = _launcher(compiled)

    def __call__(self, *tensors: torch.Tensor) -> None:
        pointers: list[Any] = [*map(_data_ptr, tensors)]
        if functools.reduce(operator.or_, pointers) % _ALIGNMENT and self._aligned:
            self._unaligned()(*tensors)
            return
        for place in range(self._described):
            pointers[place] = _Described(tensors[place])
        device = self._device
        if torch._C._cuda_getDevice() != device:
            with torch.cuda.device(device):
                self(*tensors)
            return
        self._launcher(*self._grid, self._stream(device), *self._head, *pointers, *self._tail)

    def _unaligned(self) -> _Direct:
        if self._twin is None:
            count = self._kernel.pointers
            divisors = (1,) * count + self._variant.divisors[count:]
            variant = _Variant(
                self._variant.types, divisors, self._variant.constants, self._variant.options, self._device
            )
            self._twin = _Direct(self._kernel, variant, self._grid, self._scalars)
        return self._twin


def _launcher(compiled: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The function to call with grid, stream, these values, and the arguments."""
    run = compiled.run
    rest = (compiled.packed_metadata, None, None, None)  # no launch metadata, no hooks
    driver = importlib.import_module("triton.backends.nvidia.driver")
    scratch = getattr(run, "global_scratch_size", 1) or getattr(run, "profile_scratch_size", 1)
    if getattr(driver, "_BASE_ARGS_FORMAT", None) != _KNOWN_LAUNCHER or scratch:
        return run, (compiled.function, *rest)
    flags = (run.launch_cooperative_grid, run.launch_pdl, None, None)  # no scratch memory
    return run.launch, (compiled.function, *flags, *rest)
