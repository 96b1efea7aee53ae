"""The forward that stands in front of an encoder's own: packs a call where that is right and pays."""

from __future__ import annotations

import functools
import inspect
import logging
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from steelworks.plans.packing._attention import NAME, register
from steelworks.plans.packing._context import CannotPackError, PackedCall, current, may_pack, record
from steelworks.plans.packing._layout import Dense, Layout, token_counts
from steelworks.plans.packing._lean import LeanLayers

logger = logging.getLogger("steelworks.plans.packing")

# The share of padding below which packing costs more than it saves, for encoders without lean layers.
# Measured on one CPU core with all-MiniLM-L6-v2: break-even at 4 % with 2-8 rows, below 1 % with 32.
MIN_PADDING = 0.04

_TOKEN_INPUTS = ("token_type_ids", "position_ids")
_EMBEDDED = ("input_ids", *_TOKEN_INPUTS)
_PASSED_ON = frozenset({"input_ids", "attention_mask", "output_hidden_states", "return_dict", *_TOKEN_INPUTS})
_FIELDS = frozenset({"last_hidden_state", "hidden_states", "pooler_output"})

PositionRule = Callable[[torch.Tensor], torch.Tensor]
PoolerRule = Callable[[nn.Module, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Traits:
    """What the trial on install found out about an encoder.

    Attributes:
        positions: the model's own position ids for input ids [rows, columns]; None where they
            are the columns.
        pooler: how pooler_output follows from the padded last_hidden_state; None without a pooler.
        tuples: whether ``return_dict=False`` gives the ModelOutput's own tuple.
        attention_calls: how often attention runs in one forward.
        lean: the layers without their module calls, for encoders whose classes are known.
        output_type: the ModelOutput that the encoder returns; known where ``lean`` is.
    """

    positions: PositionRule | None
    pooler: PoolerRule | None
    tuples: bool
    attention_calls: int = 0
    lean: LeanLayers | None = None
    output_type: type[Any] | None = None


class PackedForward:
    """Callable put in place of an encoder's ``forward``; holds nothing about any call.

    Args:
        encoder: the encoder.
        traits: what the trial found out.
    """

    def __init__(self, encoder: nn.Module, traits: Traits) -> None:
        self.encoder = encoder
        self.traits = traits
        self.users = 0
        self.broken: str | None = None
        self._previous = encoder.__dict__.get("forward")
        original = encoder.forward
        functools.update_wrapper(self, original)
        self.original = original
        self._names = parameter_names(original)
        # A layer added later may bring a config of its own, and its attention would not see the packing.
        self._stacks = [
            (parent._modules, name, child, tuple(child))
            for parent in encoder.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.ModuleList)
        ]

    def attach(self) -> None:
        """Put this in front of the encoder's forward."""
        self.encoder.forward = self

    def detach(self) -> None:
        """Put the encoder's forward back, or become inert if someone wrapped it since."""
        self.broken = "packing was removed"
        if self.encoder.__dict__.get("forward") is not self:
            logger.warning(
                "the forward of %s was replaced after packing was installed; packing is off, but stays there",
                type(self.encoder).__name__,
            )
        elif self._previous is None:
            del self.encoder.forward
        else:
            self.encoder.forward = self._previous

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        arguments = self._arguments(args, kwargs) if self._ready() else None
        layout = None if arguments is None else self._layout(arguments)
        if arguments is None or layout is None:
            return self._padded(args, kwargs)
        failure: Exception | None = None
        try:
            return self.packed(arguments, layout)
        except CannotPackError:
            pass
        except Exception as error:
            failure = error
        # If the fault is in the input, the padded run raises it as the model would.
        result = self._padded(args, kwargs)
        if failure is not None:
            self._give_up(f"{type(failure).__name__}: {failure}")
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """A copied or loaded module gets its class's forward, bound to itself: no handle could undo more."""
        return _plain_forward, (self.encoder,)

    def packed(self, arguments: Mapping[str, Any], layout: Layout | Dense) -> Any:
        """Run the encoder packed.

        Raises:
            CannotPackError: the model does something that packing can't serve.
        """
        if self._lean_fits(arguments):
            result = self._run_lean(arguments, layout)
        elif isinstance(layout, Dense):
            raise CannotPackError("there is nothing to pack")
        else:
            output, call = self.run(arguments, layout)
            expected = self.traits.attention_calls
            if call.attention_calls != expected:
                raise CannotPackError(
                    f"attention ran {call.attention_calls} times packed, expected {expected}"
                )
            result = self._unpacked(output, layout)
        if layout.lengths is not None:
            record(layout.lengths)
        return result.to_tuple() if arguments.get("return_dict") is False else result

    def run(self, arguments: Mapping[str, Any], layout: Layout) -> tuple[Any, PackedCall]:
        """Run the encoder on the packed tokens.

        Returns:
            The encoder's output in packed form, and the call with what attention noted in it.
        """
        inputs = self._inputs(arguments, layout)
        call = PackedCall(layout.lengths, layout.prefix)
        token = current.set(call)
        try:
            return self.original(**inputs), call
        finally:
            current.reset(token)

    def _lean_fits(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the call asks for nothing that only the layers' own modules can give."""
        lean = self.traits.lean
        return (
            lean is not None
            and not arguments.get("output_hidden_states")
            and not getattr(self.encoder.config, "output_hidden_states", False)
            and lean.intact()
        )

    def _run_lean(self, arguments: Mapping[str, Any], layout: Layout | Dense) -> Any:
        """Run the encoder without its layers' module calls; returns the padded form of its output."""
        lean, output_type = self.traits.lean, self.traits.output_type
        assert lean is not None and output_type is not None
        inputs = arguments if isinstance(layout, Dense) else self._inputs(arguments, layout)
        given = {name: inputs[name] for name in _EMBEDDED if inputs.get(name) is not None}
        hidden = layout.unpack(lean(given, layout.lengths))
        pooler = self.traits.pooler
        pooled = {} if pooler is None else {"pooler_output": pooler(self.encoder, hidden)}
        return output_type(last_hidden_state=hidden, **pooled)

    def _ready(self) -> bool:
        """Whether the state of the module and of the caller allows packing."""
        encoder: Any = self.encoder
        return (
            self.broken is None
            and may_pack(self)
            and not encoder.training
            and not torch.is_grad_enabled()
            and not torch._C._get_tracing_state()
            and encoder.config._attn_implementation == NAME
            and not getattr(encoder.config, "output_attentions", False)
            and all(
                modules.get(name) is stack and tuple(stack._modules.values()) == layers
                for modules, name, stack, layers in self._stacks
            )
        )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """The call's arguments by name; None if there is one that packing doesn't know."""
        if args:
            named = dict(zip(self._names, args, strict=False))
            if len(named) < len(args) or not named.keys().isdisjoint(kwargs):
                return None
            kwargs = {**named, **kwargs}
        for name, value in kwargs.items():
            if name not in _PASSED_ON and value is not None and value is not False:
                return None
        wants_tuple = kwargs.get("return_dict") is False
        if wants_tuple and not self.traits.tuples:
            return None
        if kwargs.get("return_dict") is None and not getattr(self.encoder.config, "return_dict", True):
            return None
        return kwargs

    def _layout(self, arguments: Mapping[str, Any]) -> Layout | Dense | None:
        """Where the tokens are; None if the batch can't be packed or packing it doesn't pay."""
        ids, mask = arguments.get("input_ids"), arguments.get("attention_mask")
        if not isinstance(ids, torch.Tensor) or ids.dim() != 2 or ids.device.type not in ("cpu", "mps"):
            return None
        if ids.numel() == 0:
            return None
        if mask is None:
            return self._dense()
        if not isinstance(mask, torch.Tensor) or ids.shape != mask.shape or ids.device != mask.device:
            return None
        counts = token_counts(mask)
        padding = mask.numel() - sum(counts)
        if padding == 0:
            return self._dense()
        if padding == mask.numel() or (self.traits.lean is None and padding < MIN_PADDING * mask.numel()):
            return None
        layout = Layout(mask, counts)
        # A pooler that reads column 0 of a row would read zeros: leave left-padded batches alone.
        return layout if layout.anchored else None

    def _dense(self) -> Dense | None:
        """The layout of a batch without padding; None where it takes the encoder's own forward."""
        return None if self.traits.lean is None else Dense()

    def _inputs(self, arguments: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
        """The arguments of the packed run."""
        ids = arguments["input_ids"]
        inputs = dict(arguments)
        inputs["attention_mask"] = None
        inputs["return_dict"] = True
        inputs["input_ids"] = layout.pack(ids)
        for name in _TOKEN_INPUTS:
            values = inputs.get(name)
            if values is not None:
                inputs[name] = layout.pack(values)
                if inputs[name] is None:
                    raise CannotPackError(f"{name} is not one value a token")
        if inputs.get("position_ids") is None:
            rule = self.traits.positions
            inputs["position_ids"] = layout.column.unsqueeze(0) if rule is None else layout.pack(rule(ids))
        return inputs

    def _unpacked(self, output: Any, layout: Layout) -> Any:
        """The padded form of the encoder's output."""
        done: dict[int, torch.Tensor] = {}

        def unpack(value: Any) -> Any:
            if value is None:
                return None
            if isinstance(value, tuple | list):
                return type(value)(unpack(item) for item in value)
            if not isinstance(value, torch.Tensor) or value.shape[:2] != (1, layout.index.shape[0]):
                raise CannotPackError("the encoder returns something that is not one value a token")
            # hidden_states[-1] often is last_hidden_state itself, and stays so.
            if id(value) not in done:
                done[id(value)] = layout.unpack(value)
            return done[id(value)]

        if any(value is not None and name not in _FIELDS for name, value in output.items()):
            raise CannotPackError(f"the encoder returns {sorted(output)}")
        fields = {name: unpack(value) for name, value in output.items() if name != "pooler_output"}
        if output.get("pooler_output") is not None:
            if self.traits.pooler is None:
                raise CannotPackError("the encoder has a pooler that packing doesn't know")
            fields["pooler_output"] = self.traits.pooler(self.encoder, fields["last_hidden_state"])
        return type(output)(**fields)

    def _padded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The encoder's own forward, out of any packed call that a hook may have made this from."""
        if current.get() is None:
            return self.original(*args, **kwargs)
        token = current.set(None)
        try:
            return self.original(*args, **kwargs)
        finally:
            current.reset(token)

    def _give_up(self, reason: str) -> None:
        """Stop packing this encoder: what failed once is likely to fail again, and costs a run each time."""
        if self.broken is None:
            self.broken = reason
            logger.warning(
                "%s runs padded from now on: its packed run failed where the padded one did not (%s)",
                type(self.encoder).__name__,
                reason,
            )


def parameter_names(forward: Callable[..., Any]) -> list[str]:
    """The names of the parameters that ``forward`` takes by position, in order."""
    parameters = inspect.signature(forward).parameters
    return [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]


def _plain_forward(encoder: nn.Module) -> Callable[..., Any]:
    """The forward of an encoder that was copied or pickled while packed; its config names our attention."""
    register()
    return types.MethodType(type(encoder).forward, encoder)
