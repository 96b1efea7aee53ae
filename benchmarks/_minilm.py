"""Batches of the real model of the CPU benchmarks, which is the demo's: all-MiniLM-L6-v2."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steelworks.cli._minilm import EMBEDDING_SIZE, Tokens, load_encoder

__all__ = ["EMBEDDING_SIZE", "Tokens", "corpus_record", "encode_batch", "load_encoder", "pad"]


def pad(ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` of several token lists, padded to the longest: int64 [B, L]."""
    longest = max(map(len, ids))
    tokens = np.zeros((len(ids), longest), dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for row, one in enumerate(ids):
        tokens[row, : len(one)] = one
        mask[row, : len(one)] = 1
    return {"input_ids": torch.from_numpy(tokens), "attention_mask": torch.from_numpy(mask)}


def encode_batch(model: nn.Module, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """Vectors [B, 384] of a batch of token lists, in inference mode."""
    with torch.inference_mode():
        return model(**pad(ids)).numpy()


def corpus_record(texts: Sequence[str]) -> dict[str, Any]:
    """What identifies the requests: their number, token counts and a digest."""
    lengths = [len(x) for x in map(Tokens(), texts)]
    return {
        "source": "docstring sentences of the Python standard library, 3-60 words",
        "requests": len(texts),
        "tokens_mean": round(float(np.mean(lengths)), 2),
        "tokens_max": max(lengths),
        "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
    }
