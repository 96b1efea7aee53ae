"""Adapters: several LoRA adapters over one model, loaded, mixed in a batch, and exchanged while it is called."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from steelworks import ops
from steelworks.errors import InvalidInputError

from ._checks import check_model, places
from ._peft import LayerWeights, PathLike
from .adapter import Adapter, fitting


@dataclass(frozen=True)
class _Stack:
    """All adapters of one layer: those it has not are zeros in ``a`` and ``b`` and None in ``single``."""

    single: tuple[LayerWeights | None, ...]
    a: torch.Tensor
    b: torch.Tensor
    scales: torch.Tensor


@dataclass(frozen=True)
class _State:
    """What a call sees of the registry; never changed, only replaced."""

    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    stacks: Mapping[str, _Stack] = field(default_factory=dict)
    active: str | None = None

    def number(self, name: str | None) -> int:
        if name is None:
            return -1
        try:
            return list(self.adapters).index(name)
        except ValueError:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise InvalidInputError(f"Adapters: there is no adapter {name!r}; there are: {known}") from None


class _Selection:
    """A state and the adapters that a call uses of it: one number, or one for each row."""

    def __init__(self, state: _State, rows: tuple[int, ...] | None, one: int = -1) -> None:
        self.state, self.rows, self.one = state, rows, one
        self._indices: dict[tuple[torch.Size, torch.device], torch.Tensor] = {}

    def indices(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter of each row of x, int32 of shape ``x.shape[:-1]``."""
        assert self.rows is not None
        key = (x.shape[:-1], x.device)
        made = self._indices.get(key)
        if made is None:
            if x.dim() < 2 or x.shape[0] != len(self.rows):
                raise InvalidInputError(
                    f"Adapters: {len(self.rows)} names are given and a layer's input has shape {tuple(x.shape)}; one "
                    "for each index of the first dimension is needed"
                )
            numbers = torch.tensor(self.rows, dtype=torch.int32).to(x.device)
            made = numbers.view(-1, *[1] * (x.dim() - 2)).expand(x.shape[:-1]).contiguous()
            self._indices[key] = made
        return made


class AdapterLinear(nn.Linear):
    """A linear layer that adds what the registry says; with the parameters and keys of the plain one."""

    _registry: Adapters
    _place: str

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling():  # compiled code would keep the adapters of its first call
            return _uncompiled(self, input)
        return _adapted(self, input)


def _adapted(layer: AdapterLinear, x: torch.Tensor) -> torch.Tensor:
    selection = layer._registry._selection()
    stack = selection.state.stacks.get(layer._place)
    if stack is not None and selection.rows is not None:
        indices = selection.indices(x)
        return ops.multi_lora_linear(x, layer.weight, stack.a, stack.b, stack.scales, indices, layer.bias)
    single = stack.single[selection.one] if stack is not None and selection.one >= 0 else None
    if single is None:
        return ops.linear(x, layer.weight, layer.bias)
    return ops.lora_linear(x, layer.weight, single.a, single.b, single.scale, layer.bias)


_uncompiled: Final[Callable[..., torch.Tensor]] = torch.compiler.disable(_adapted)  # type: ignore[no-untyped-call]


class Adapters:
    """LoRA adapters over one model, for inference: any number loaded, one active, or one for each row of a batch.

    ``add``, ``remove`` and ``activate`` may be called while other threads call the model: a call of the model sees
    all its layers with the adapters as they were when it began, as each change makes a new immutable state and puts it
    in the place of the old one. This holds for calls of the model itself (a forward hook takes the state) and for all
    calls in a ``with adapters.use(...)`` block; a part of the model that is called alone takes the state layer by
    layer. On a GPU a change waits for the work that is under way there; calls do not wait. A CUDA graph reads the
    weights it was captured with, which are gone after a change: capture it again before it is replayed.

    The model's modules, parameters and ``state_dict`` stay; its linear layers change their class while an adapter names
    them, until :meth:`restore`. Make the registry before other threads call the model. Weights are converted to the
    layers' dtype and device when they are added: move the model before.

    Args:
        model: Its linear layers must be plain ones; it must not be compiled yet.

    Raises:
        InvalidInputError: no module, compiled or scripted, or it has a registry already.
    """

    def __init__(self, model: nn.Module) -> None:
        found = places(check_model("Adapters", model))
        if any(isinstance(hook, _Hook) for hook in model._forward_pre_hooks.values()):
            raise InvalidInputError(
                "Adapters: this model has a registry; use that one, or restore() it first"
            )
        self._model = model
        self._names = {name: module for module, names in found.items() for name in names}
        self._first = {module: names[0] for module, names in found.items()}
        self._state = _State()
        self._changing = threading.Lock()
        self._classes: dict[str, type[nn.Linear]] = {}
        #: Replaced states that a call may hold, and their weights.
        self._retired: list[tuple[weakref.ref[_State], Mapping[str, _Stack]]] = []
        #: What a call holds: its selection, and how often the model is entered in it.
        self._held: ContextVar[tuple[_Selection, int] | None] = ContextVar("adapters", default=None)
        self._hooks: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(_Hook(self._enter)),
            model.register_forward_hook(_Hook(self._leave), always_call=True),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters' names, in the order they were added."""
        return tuple(self._state.adapters)

    @property
    def active(self) -> str | None:
        """The adapter of calls outside ``use``; None: the model as it is."""
        return self._state.active

    def __getitem__(self, name: str) -> Adapter:
        state = self._state
        state.number(name)
        return state.adapters[name]

    def __contains__(self, name: object) -> bool:
        return name in self._state.adapters

    def __len__(self) -> int:
        return len(self._state.adapters)

    def add(self, name: str, adapter: Adapter | nn.Module, *, replace: bool = False) -> None:
        """Adds an adapter, or exchanges the one of this name; its weights are copied.

        Args:
            name: Any text.
            adapter: One, or a model with :class:`LoRALinear` layers of the same names.
            replace: An adapter of this name may be there, and is exchanged.

        Raises:
            InvalidInputError: the name is taken, or the model lacks a layer or has it in another size; nothing is
                changed then.
        """
        if not isinstance(name, str) or not name:
            raise InvalidInputError(f"Adapters.add: name is {name!r}; a text that is not empty is needed")
        given = adapter if isinstance(adapter, Adapter) else Adapter.of(adapter)
        with self._changing:
            self._check_open()
            if name in self._state.adapters and not replace:
                raise InvalidInputError(
                    f"Adapters.add: there is an adapter {name!r}; pass replace=True to exchange it, or remove it first"
                )
            own = self._fitted(given)
            for place in own.layers:
                self._adopt(place)
            self._become({**self._state.adapters, name: own}, self._state.active)

    def load(self, folder: PathLike, name: str, *, replace: bool = False) -> None:
        """Adds an adapter from a folder in PEFT's format.

        Raises:
            InvalidInputError: as ``Adapter.load`` and ``add`` say.
        """
        self.add(name, Adapter.load(folder), replace=replace)

    def save(self, name: str, folder: PathLike, base_model: str | None = None) -> None:
        """Writes an adapter in PEFT's format.

        Raises:
            InvalidInputError: there is none of this name.
        """
        self[name].save(folder, base_model)

    def remove(self, name: str) -> None:
        """Removes an adapter; if it was active, none is. Calls that use it end with it.

        Raises:
            InvalidInputError: there is none of this name.
        """
        with self._changing:
            self._state.number(name)
            kept = {n: a for n, a in self._state.adapters.items() if n != name}
            self._become(kept, None if self.active == name else self.active)

    def activate(self, name: str | None) -> None:
        """Makes an adapter that of all calls from now on (outside ``use``); None: the model as it is.

        Raises:
            InvalidInputError: there is none of this name.
        """
        with self._changing:
            self._state.number(name)
            self._publish(replace(self._state, active=name))

    @contextmanager
    def use(self, names: str | Sequence[str | None] | None) -> Iterator[None]:
        """In a ``with`` block, calls of this thread or task use one adapter, or one for each row of the batch.

        The adapters are those of the block's begin, whatever is added or removed meanwhile. Other threads, such as a
        queue's workers, do not see the block: there, put it into the function that the queue calls.

        Args:
            names: A name or None (no adapter); or a sequence of these, one for each index of the first dimension that
                the linear layers' inputs have. Rows that share an adapter should lie together.

        Raises:
            InvalidInputError: there is no adapter of a name; in the call, another number of rows.
        """
        state = self._state
        if names is None or isinstance(names, str):
            selection = _Selection(state, None, state.number(names))
        else:
            selection = _Selection(state, tuple(state.number(name) for name in names))
        token = self._held.set((selection, 1))
        try:
            yield
        finally:
            self._held.reset(token)

    def restore(self) -> None:
        """Gives the model its plain linear layers back and forgets the adapters.

        Call it when no thread calls the model.
        """
        with self._changing:
            for hook in self._hooks:
                hook.remove()
            for place, kind in self._classes.items():
                layer = self._names[place]
                layer.__class__ = kind
                del layer.__dict__["_registry"], layer.__dict__["_place"]
            self._classes.clear()
            self._publish(_State())
            self._hooks = ()

    def __deepcopy__(self, _: Any) -> Adapters:
        raise InvalidInputError(
            "Adapters: a registry, and a model that has one, can't be copied or pickled; restore() it first"
        )

    def __reduce__(self) -> Any:
        return self.__deepcopy__(None)

    def __repr__(self) -> str:
        return f"<Adapters {list(self.names)}, active: {self.active!r}>"

    # --- a call ---------------------------------------------------------------------------------------------------

    def _selection(self) -> _Selection:
        held = self._held.get()
        return held[0] if held is not None else self._current()

    def _current(self) -> _Selection:
        state = self._state
        return _Selection(state, None, state.number(state.active))

    def _enter(self) -> None:
        held = self._held.get()
        self._held.set((self._current(), 1) if held is None else (held[0], held[1] + 1))

    def _leave(self) -> None:
        held = self._held.get()
        if held is not None:
            self._held.set((held[0], held[1] - 1) if held[1] > 1 else None)

    # --- changes; the lock is held ----------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._hooks:
            raise InvalidInputError("Adapters: this registry was restored; make a new one")

    def _fitted(self, adapter: Adapter) -> Adapter:
        """A copy under the layers' first names, in their dtype and on their device."""
        layers = {}
        for name, layer in fitting("Adapters.add", self._model, adapter, (AdapterLinear,)).items():
            w, like = adapter.layers[name], layer.weight
            a, b = (t.detach().to(like.device, like.dtype, copy=True).contiguous() for t in (w.a, w.b))
            layers[self._first[layer]] = replace(w, a=a, b=b)
        return replace(adapter, layers=layers)

    def _adopt(self, place: str) -> None:
        layer = self._names[place]
        if isinstance(layer, AdapterLinear):
            return
        assert isinstance(layer, nn.Linear)
        self._classes[place] = type(layer)
        layer.__dict__["_registry"], layer.__dict__["_place"] = self, place
        layer.__class__ = AdapterLinear  # all that a call needs is there before

    def _become(self, adapters: dict[str, Adapter], active: str | None) -> None:
        places = {place for adapter in adapters.values() for place in adapter.layers}
        stacks = {place: _stack(place, adapters, self._names[place]) for place in places}
        if any(_asynchronous(stack.a.device) for stack in stacks.values()):
            _wait(stacks)  # callers read on streams of their own, which do not wait for this one
        self._publish(_State(adapters, stacks, active))

    def _publish(self, state: _State) -> None:
        """Puts a state in the place of the old one, whose weights stay until no call can read them any more.

        On a GPU a call ends on the host before its kernels do. So weights are given back only when no call holds
        their state (the reference is dead) and then the device has done all its work.
        """
        old = self._state
        if any(_asynchronous(stack.a.device) for stack in old.stacks.values()):
            self._retired.append((weakref.ref(old), old.stacks))
        self._state = state
        del old
        # One look decides: a state that dies during the wait is for the next change.
        held = [retired[0]() is not None for retired in self._retired]
        for stays, (_, stacks) in zip(held, self._retired, strict=True):
            if not stays:
                _wait(stacks)
        self._retired = [retired for stays, retired in zip(held, self._retired, strict=True) if stays]


def _asynchronous(device: torch.device) -> bool:
    """Whether work on the device may be unfinished when a call returns."""
    return device.type not in ("cpu", "meta")


def _wait(stacks: Mapping[str, _Stack]) -> None:
    """Waits for all work on the devices of these weights, on every stream."""
    for device in {stack.a.device for stack in stacks.values()}:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()


class _Hook:
    """A forward hook or pre-hook that changes nothing of the call."""

    def __init__(self, run: Any) -> None:
        self._run = run

    def __call__(self, *_: Any) -> None:
        self._run()


def _stack(place: str, adapters: Mapping[str, Adapter], layer: nn.Module) -> _Stack:
    assert isinstance(layer, nn.Linear)
    single = tuple(adapter.layers.get(place) for adapter in adapters.values())
    rank = max(w.rank for w in single if w is not None)
    n, k = layer.weight.shape
    a = layer.weight.new_zeros((len(single), rank, k), requires_grad=False)
    b = layer.weight.new_zeros((len(single), n, rank), requires_grad=False)
    for at, w in enumerate(single):
        if w is not None:
            a[at, : w.rank] = w.a
            b[at, :, : w.rank] = w.b
    scales = torch.tensor([0.0 if w is None else w.scale for w in single], device=a.device)
    return _Stack(single, a, b, scales)
