"""Whether an encoder may be packed: what its class and config say, and a trial that must agree.

The trial runs small ragged batches through the encoder, padded and packed. Leaks between sequences
(convolutions, pooling over tokens, positions counted along the packed sequence) show as differences
far above the tolerance. What such short rows can't show, such as attention windows, is checked in
every packed call instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from steelworks.plans.packing._attention import NAME
from steelworks.plans.packing._context import CannotPackError
from steelworks.plans.packing._forward import PackedForward, PoolerRule, PositionRule, Traits, parameter_names
from steelworks.plans.packing._layout import Dense, Layout, token_counts
from steelworks.plans.packing._lean import LeanLayers, has_user_hooks
from steelworks.plans.packing._tolerance import difference

_COLUMNS = 12
_ROWS_WITHOUT_HOLES = ("111111111111", "111111100000", "100000000000", "111000000000")
_ROWS_WITHOUT_PADDING = ("111111111111", "111111111111", "111111111111")
_ROWS_WITH_HOLES = ("111111111111", "110101110000", "100000000001", "101010101010")


def check_structure(encoder: nn.Module) -> None:
    """Refuse an encoder whose class, config or state rules packing out.

    Raises:
        CannotPackError: with the reason.
    """
    config: Any = encoder.config
    names = parameter_names(encoder.forward)
    devices = {tensor.device.type for tensor in (*encoder.parameters(), *encoder.buffers())}
    attention = config._attn_implementation
    refusals = {
        "it is a decoder or an encoder-decoder": any(
            getattr(config, flag, False)
            for flag in ("is_decoder", "is_encoder_decoder", "add_cross_attention")
        ),
        "its forward does not take input_ids, attention_mask and position_ids": not (
            {"input_ids", "attention_mask", "position_ids"} <= set(names)
        ),
        f"its attention is {attention!r}; load it with attn_implementation='sdpa'": attention
        not in ("sdpa", NAME),
        "its attention does not go through transformers' attention interface": not _uses_interface(encoder),
        "its config has sub-configs": bool(getattr(config, "sub_configs", None)),
        "its attention is causal": any(getattr(sub, "is_causal", False) is True for sub in encoder.modules()),
        "it holds other models": any(
            hasattr(sub, "config") and hasattr(sub, "base_model")
            for sub in encoder.modules()
            if sub is not encoder
        ),
        "it is in training mode; call .eval() first": any(sub.training for sub in encoder.modules()),
        f"it is on {' and '.join(sorted(devices))}; packing is for cpu and mps": devices
        not in ({"cpu"}, {"mps"}),
        "its rotary positions depend on the length of the batch": _rotary_varies(config),
        "it runs its feed-forward layers in chunks": bool(getattr(config, "chunk_size_feed_forward", 0)),
        "its submodules have forward hooks, which would see packed tensors": any(
            has_user_hooks(sub) for sub in encoder.modules() if sub is not encoder
        ),
    }
    for reason, applies in refusals.items():
        if applies:
            raise CannotPackError(reason)


def trial(encoder: nn.Module) -> PackedForward:
    """Check that packed and padded agree, and find the encoder's traits on the way.

    The encoder's config names our attention afterwards, whether the trial succeeds or not.

    Returns:
        The forward to install, not yet attached.

    Raises:
        CannotPackError: packed and padded differ, or one of them fails.
    """
    # no_grad, not inference_mode: a buffer that a model makes on its first call must stay trainable.
    with torch.no_grad():
        try:
            return _trial(encoder)
        except CannotPackError:
            raise
        except Exception as error:
            raise CannotPackError(f"the trial failed ({type(error).__name__}: {error})") from error


def _trial(encoder: nn.Module) -> PackedForward:
    config: Any = encoder.config
    holes, plain = _batch(encoder, _ROWS_WITH_HOLES), _batch(encoder, _ROWS_WITHOUT_HOLES)
    before = encoder.forward(**holes, return_dict=True)
    config._attn_implementation = NAME
    if not _equal(before, encoder.forward(**holes, return_dict=True)):
        raise CannotPackError("its sdpa attention is not the one of transformers' attention interface")
    traits = Traits(
        positions=_position_rule(encoder, holes, before),
        pooler=_pooler_rule(encoder, before),
        tuples=_equal(before.to_tuple(), encoder.forward(**holes, return_dict=False)),
    )
    forward = PackedForward(encoder, traits)
    _, call = forward.run(plain, _layout(plain))
    if call.attention_calls == 0:
        raise CannotPackError("its attention does not go through transformers' attention interface")
    forward.traits = replace(traits, attention_calls=call.attention_calls)
    _compare(encoder, forward, plain, _layout(plain))
    try:
        _compare(encoder, forward, holes, _layout(holes))
    except CannotPackError as reason:
        # An attention window shorter than the trial's rows: such calls run padded.
        if not reason.of_call:
            raise
    lean = LeanLayers.of(encoder)
    if lean is not None:
        dense = _batch(encoder, _ROWS_WITHOUT_PADDING)
        forward.traits = replace(forward.traits, lean=lean, output_type=type(before))
        _compare(encoder, forward, plain, _layout(plain))
        _compare(encoder, forward, holes, _layout(holes))
        _compare(encoder, forward, dense, Dense())
    return forward


def _compare(
    encoder: nn.Module,
    forward: PackedForward,
    batch: dict[str, torch.Tensor],
    layout: Layout | Dense,
) -> None:
    """Raise unless packed and padded agree on every real token of ``batch``."""
    # Hidden states are not asked for: transformers would leave hooks on the user's layers for good.
    padded = encoder.forward(**batch, return_dict=True)
    packed = forward.packed({**batch, "return_dict": True}, layout)
    real = batch["attention_mask"].bool()
    if padded.keys() != packed.keys():
        raise CannotPackError(f"packed it returns {list(packed)}, padded {list(padded)}")
    for name in padded:
        pair = padded[name], packed[name]
        gap, agrees = difference(*pair if name == "pooler_output" else (tensor[real] for tensor in pair))
        if not agrees:
            raise CannotPackError(f"packed and padded differ: {name} by up to {gap:.3g}")


def _batch(encoder: nn.Module, rows: Iterable[str]) -> dict[str, torch.Tensor]:
    """A batch whose real tokens include the padding id and whose padding holds other ids."""
    config: Any = encoder.config
    device = next(encoder.parameters()).device
    pad = getattr(config, "pad_token_id", None) or 0
    room = getattr(config, "max_position_embeddings", None)
    columns = _COLUMNS if room is None else min(_COLUMNS, room - pad - 1)
    if columns < 4:
        raise CannotPackError(f"it takes at most {room} positions, too few for a trial")
    mask = torch.tensor([[int(c) for c in row[:columns]] for row in rows])
    # A generator of its own: the user's random state stays as it was.
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, mask.shape, generator=generator)
    ids[:, 2::5] = pad
    batch = {"input_ids": ids, "attention_mask": mask}
    types = getattr(config, "type_vocab_size", None)
    if types and "token_type_ids" in parameter_names(encoder.forward):
        batch["token_type_ids"] = torch.randint(0, types, mask.shape, generator=generator)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _layout(batch: dict[str, torch.Tensor]) -> Layout:
    return Layout(batch["attention_mask"], token_counts(batch["attention_mask"]))


def _position_rule(encoder: nn.Module, batch: dict[str, torch.Tensor], reference: Any) -> PositionRule | None:
    """The rule by which the model makes position ids: the columns (None), or a count of non-padding ids."""
    ids = batch["input_ids"]
    pad: Any = getattr(encoder.config, "pad_token_id", None)

    def columns(ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)

    def counted(ids: torch.Tensor) -> torch.Tensor:
        real = ids.ne(int(pad)).long()
        return real.cumsum(1) * real + int(pad)

    def explains(rule: PositionRule) -> bool:
        try:
            return _equal(reference, encoder.forward(**batch, position_ids=rule(ids), return_dict=True))
        except IndexError:  # beyond the position table
            return False

    if explains(columns):
        return None
    if isinstance(pad, int) and explains(counted):
        return counted
    raise CannotPackError("it makes its position ids by a rule that packing doesn't know")


def _pooler_rule(encoder: nn.Module, reference: Any) -> PoolerRule | None:
    """How the model makes pooler_output from last_hidden_state; None if it has none."""
    if reference.get("pooler_output") is None:
        return None

    def module(encoder: Any, hidden: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = encoder.pooler(hidden)
        return pooled

    def first_token(encoder: Any, hidden: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = encoder.pooler_activation(encoder.pooler(hidden[:, 0]))
        return pooled

    for rule in (module, first_token):
        try:
            pooled = rule(encoder, reference.last_hidden_state)
        except (AttributeError, TypeError, RuntimeError):
            continue
        if difference(reference.pooler_output, pooled)[1]:
            return rule
    raise CannotPackError("it has a pooler that packing doesn't know")


def _uses_interface(encoder: Any) -> bool:
    check = getattr(encoder, "_can_set_attn_implementation", None)
    return (
        bool(check()) if check is not None else bool(getattr(encoder, "_supports_attention_backend", False))
    )


def _rotary_varies(config: Any) -> bool:
    """Whether a rotary embedding looks at the length of the whole batch."""
    found = []
    todo = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            found += [item.get("rope_type"), item.get("type")]
            todo += item.values()
    return any(kind in ("dynamic", "longrope") for kind in found)


def _equal(a: Any, b: Any) -> bool:
    """Whether two outputs have the same structure and the same values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return isinstance(b, tuple | list) and len(a) == len(b) and all(map(_equal, a, b))
    return a is b is None
