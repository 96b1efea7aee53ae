"""Attention of transformers models through :func:`steelworks.ops.attention`, by the interface that transformers has.

transformers looks the attention function up by ``config._attn_implementation`` at every call, and lets others register
functions of their own. Ours takes a call over where it computes the same; all else goes on to transformers' own.
"""

from __future__ import annotations

import sys
from typing import Any, Final

import torch
from torch import nn

from steelworks import ops
from steelworks.ops.attention import ATTENTION

from ._shared import has_projections

#: Our name among transformers' attention implementations, and the one it stands for.
NAME: Final = "steelworks_sdpa"
_THEIRS: Final = "sdpa"
#: What changes the result of transformers' function; other keywords are for other implementations.
_OTHERS: Final = ("position_bias", "cache", "softcap", "output_attentions")


def redirect(module: nn.Module, configurations: list[Any]) -> str | None:
    """Lets an attention module of transformers that uses sdpa use ours; its configuration is added to the list.

    Returns:
        "" if it does now, why it can't, or None if it is no such module.
    """
    transformers = sys.modules.get("transformers")
    config = getattr(module, "config", None)
    if transformers is None or not has_projections(module):
        return None
    if not isinstance(config, transformers.PretrainedConfig):
        return None
    if any(config is known for known in configurations):
        return ""
    if getattr(config, "_attn_implementation", None) != _THEIRS:
        return None
    reason = _register()
    if reason is None:
        config._attn_implementation = NAME
        configurations.append(config)
    return reason or ""


def restore(config: Any) -> None:
    """Undoes :func:`redirect`; does nothing to a configuration that others have changed since."""
    if config._attn_implementation == NAME:
        config._attn_implementation = _THEIRS


def _register() -> str | None:
    """Makes ours known to transformers; why it can't be, or None."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        return f"this version of transformers has no interface for attention of others ({error})"

    def forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        # What is causal without a mask depends on rules of transformers that change; dropout is not ours.
        plain = dropout == 0.0 and not (causal and attention_mask is None and query.shape[2] > 1)
        plain = plain and not any(kwargs.get(name) is not None for name in _OTHERS)
        given = (query, key, value, attention_mask)
        if not plain or not ATTENTION.takes_ours(given, (*given, False, scaling)):
            result: tuple[torch.Tensor, None] = sdpa_attention_forward(
                module,
                query,
                key,
                value,
                attention_mask,
                dropout=dropout,
                scaling=scaling,
                is_causal=is_causal,
                **kwargs,
            )
            return result
        y = ops.attention(query, key, value, attention_mask, scale=scaling)
        return y.transpose(1, 2).contiguous(), None

    AttentionInterface.register(NAME, forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return None
