"""The attention implementation ``steelworks_packed`` of Hugging Face's attention interface.

Outside a packed call it is ``sdpa``, argument for argument. Inside one, it runs
scaled_dot_product_attention once a sequence, on views of the packed queries, keys and values.

Measured on one CPU core (12 heads of 32, sequences of 5-60 tokens, microseconds a layer): a loop over
the sequences takes 231 / 416 / 2284 at 4 / 8 / 32 sequences; sequences of equal length as one call
262 / 472 / 2153; padding inside attention 367 / 817 / 6895; one call with a block-diagonal mask
327 / 901 / 13477.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from steelworks.plans.packing._context import CannotPackError, PackedCall, current

NAME = "steelworks_packed"

# What sdpa's wrapper in transformers does something with; it ignores every other argument.
_SERVED = {"module", "query", "key", "value", "attention_mask", "dropout", "scaling", "is_causal", "kwargs"}
_REFUSED = {"position_bias", "cache", "softcap", "output_attentions"}


def register() -> None:
    """Make the implementation known to transformers; may be called again.

    Raises:
        CannotPackError: this transformers has no attention interface that fits.
    """
    try:
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

        sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
        _ = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
        # An argument of sdpa that a newer transformers adds may change the result: refuse it when used.
        _REFUSED.update(set(inspect.signature(sdpa).parameters) - _SERVED)
        AttentionInterface.register(NAME, packed_attention)
        AttentionMaskInterface.register(NAME, packed_mask)
    except (ImportError, AttributeError, KeyError, TypeError) as error:
        version = getattr(sys.modules.get("transformers"), "__version__", "?")
        raise CannotPackError(
            f"transformers {version} lacks an attention interface that fits ({error})"
        ) from error


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [batch, heads, tokens, head size]; see the module's text."""
    # torch.compile can't trace a context variable, and a compiled call is never packed.
    call = None if torch.compiler.is_compiling() else current.get()
    if call is None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        result: tuple[torch.Tensor, None] = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, attention_mask, **kwargs
        )
        return result
    return _attend(call, module, query, key, value, attention_mask, **kwargs), None


def packed_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The mask that goes with :func:`packed_attention`: none inside a packed call, else sdpa's."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, bidirectional_mask_function

    call = None if torch.compiler.is_compiling() else current.get()
    sdpa_mask = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]
    if call is None:
        mask: torch.Tensor | None = sdpa_mask(*args, **kwargs)
        return mask
    if args or kwargs.get("attention_mask") is not None or kwargs.get("use_vmap"):
        raise CannotPackError("the model makes a mask that depends on more than positions")
    # The first releases of transformers 5 give the positions of the queries, later ones their number.
    positions = kwargs.get("cache_position")
    queries = kwargs.get("q_length") if positions is None else positions.shape[0]
    if queries != call.total or kwargs.get("kv_length") != call.total:
        raise CannotPackError("the model makes a mask for other than its own tokens")
    if kwargs.get("mask_function") is bidirectional_mask_function:
        return None
    return _window(call, sdpa_mask, kwargs)


def _window(call: PackedCall, sdpa_mask: Any, kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The mask of windowed attention inside one sequence, or None where the window covers it all."""
    shape: dict[str, Any] = {"batch_size": 1, "kv_length": call.longest}
    if "q_length" in kwargs:
        shape["q_length"] = call.longest
    else:
        shape["cache_position"] = kwargs["cache_position"][: call.longest]
    no_skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: torch.Tensor | None = sdpa_mask(**{**kwargs, **shape, **no_skips})
    if mask is None or mask.dtype != torch.bool or mask.shape != (1, 1, call.longest, call.longest):
        raise CannotPackError("the model's attention window is not a plain one")
    if bool(mask.all()):
        return None
    if not bool(mask.eq(mask.transpose(2, 3)).all()):
        raise CannotPackError("the model's attention window is causal")
    if not call.prefix:
        # The window counts columns of the padded batch, and a hole shifts them.
        raise CannotPackError("the attention window is shorter than a row whose mask has holes", of_call=True)
    call.window.append(mask)
    return mask


def _attend(
    call: PackedCall,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention inside each sequence: [1, heads, tokens, size] to [1, tokens, heads, size]."""
    if query.dim() != 4 or not query.shape[0] == key.shape[0] == value.shape[0] == 1:
        raise CannotPackError("attention is not [batch, heads, tokens, head size]")
    if not query.shape[2] == key.shape[2] == value.shape[2] == call.total:
        raise CannotPackError("attention is not over the encoder's own tokens")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    if is_causal:
        raise CannotPackError("attention is causal")
    if dropout:
        raise CannotPackError("attention uses dropout")
    for name in _REFUSED:
        refused = kwargs.get(name)
        if refused is not None and refused is not False:
            raise CannotPackError(f"attention uses {name}")
    if attention_mask is not None and not any(attention_mask is mask for mask in call.window):
        raise CannotPackError("attention uses a mask that the model made by itself")
    call.attention_calls += 1
    return by_sequence(query, key, value, call.lengths, scaling, attention_mask)


def by_sequence(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int] | None,
    scaling: float | None,
    window: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention inside each sequence.

    Args:
        query: [1, heads, tokens, head size], or [rows, ...] without ``lengths``.
        key: like ``query``, maybe with fewer heads.
        value: like ``key``.
        lengths: the tokens of each sequence; None if each row is one sequence.
        scaling: what scores are multiplied by; None for 1 / sqrt(head size).
        window: bool [1, 1, longest, longest], True where a position may look at another.

    Returns:
        [1 or rows, tokens, heads, head size], contiguous.
    """
    grouped = query.shape[1] != key.shape[1]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        mask = None if window is None else window[:, :, : q.shape[2], : q.shape[2]]
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2)

    if lengths is None or len(lengths) == 1:
        return attend(query, key, value).contiguous()
    parts = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    return torch.cat([attend(*part) for part in parts], 1)
