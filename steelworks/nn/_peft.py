"""Adapters as files in the format of Hugging Face's PEFT: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from steelworks.errors import InvalidInputError

PathLike = str | os.PathLike[str]
WEIGHTS: Final = "adapter_model.safetensors"
CONFIG: Final = "adapter_config.json"
_PREFIX: Final = "base_model.model."
_KEY: Final = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight")
#: What PEFT can do beyond plain LoRA on linear layers, by the option that asks for it.
_BEYOND: Final = (
    "alora_invocation_tokens",
    "arrow_config",
    "exclude_modules",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
#: These leave the base weights as they are; the others of PEFT change them when an adapter is made.
_INITS: Final = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LayerWeights:
    """The adapter of one linear layer.

    Attributes:
        a: A, ``(r, k)``.
        b: B, ``(n, r)``.
        alpha: The layer adds ``scale x A^T B^T``, with ``scale = alpha / r``.
        rslora: The scale is ``alpha / sqrt(r)`` instead (Kalajdzievski 2023).
    """

    a: torch.Tensor
    b: torch.Tensor
    alpha: float
    rslora: bool = False

    @property
    def rank(self) -> int:
        """r."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """What the low-rank part is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class PeftFile:
    """What the two files hold.

    Attributes:
        layers: By the layer's name in the model.
        dropout: Of the training.
        targets: PEFT's ``target_modules``.
    """

    layers: Mapping[str, LayerWeights]
    dropout: float
    targets: str | tuple[str, ...]


def read(folder: Path) -> PeftFile:
    """Reads an adapter; its tensors are on the CPU.

    Raises:
        InvalidInputError: no such files, or what plain LoRA on linear layers does not have.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InvalidInputError(
                f"there is no {name} in {str(folder)!r}; a folder that PEFT saved is needed"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as problem:
        raise InvalidInputError(f"{str(folder / CONFIG)!r} is no JSON: {problem}") from None
    _check(config, folder)
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in _load(folder / WEIGHTS).items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidInputError(
                f"{str(folder)!r}: the tensor {key!r} is not of LoRA on a linear layer "
                f"({_PREFIX}<layer>.lora_A.weight and lora_B); only these can be loaded"
            )
        pairs.setdefault(match[1], {})[match[2]] = tensor
    patterns = config.get("alpha_pattern") or {}
    rslora = bool(config.get("use_rslora"))
    layers = {}
    for name, pair in pairs.items():
        if (
            len(pair) != 2
            or pair["A"].dim() != 2
            or pair["B"].dim() != 2
            or len(pair["A"]) != pair["B"].shape[1]
        ):
            shapes = {letter: tuple(t.shape) for letter, t in pair.items()}
            raise InvalidInputError(
                f"{str(folder)!r}: {name!r} has {shapes}; A of (r, k) and B of (n, r) are needed"
            )
        alpha = next(
            (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), config["lora_alpha"]
        )
        layers[name] = LayerWeights(pair["A"], pair["B"], float(alpha), rslora)
    if not layers:
        raise InvalidInputError(f"{str(folder)!r} has no LoRA weights")
    targets = config.get("target_modules") or list(layers)
    kept = targets if isinstance(targets, str) else tuple(sorted(targets))
    return PeftFile(layers, float(config.get("lora_dropout") or 0), kept)


def write(folder: Path, file: PeftFile, base_model: str | None = None) -> None:
    """Writes an adapter; each file appears whole or not at all.

    Ranks and alphas that differ by layer become PEFT's patterns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = file.layers
    first = next(iter(layers.values()))
    config = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": _number(first.alpha),
        "lora_dropout": file.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": first.rank,
        "rank_pattern": {_exactly(n): w.rank for n, w in layers.items() if w.rank != first.rank},
        "alpha_pattern": {_exactly(n): _number(w.alpha) for n, w in layers.items() if w.alpha != first.alpha},
        "target_modules": file.targets if isinstance(file.targets, str) else list(file.targets),
        "task_type": None,
        "use_dora": False,
        "use_rslora": first.rslora,
    }
    tensors = {}
    for name, w in layers.items():
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = w.a.detach().cpu().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = w.b.detach().cpu().contiguous()
    _whole(folder / WEIGHTS, lambda path: _save(tensors, path))
    text = json.dumps(config, indent=2, sort_keys=True)
    _whole(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))


def exact_targets(chosen: list[str], all_names: list[str]) -> str | tuple[str, ...]:
    """PEFT's ``target_modules`` for these layers and no others of the model: names, or a pattern where PEFT, which also
    takes the ends of names, would find more."""
    kept = set(chosen)
    more = any(name not in kept and any(name.endswith(f".{c}") for c in kept) for name in all_names)
    return "|".join(re.escape(name) for name in chosen) if more else tuple(chosen)


def _check(config: Any, folder: Path) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise InvalidInputError(f"{str(folder)!r}: peft_type is {kind!r}; only 'LORA' can be loaded")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise InvalidInputError(
            f"{str(folder)!r}: lora_alpha is {config.get('lora_alpha')!r}; a number is needed"
        )
    beyond = [name for name in _BEYOND if config.get(name)]
    if config.get("bias", "none") != "none":
        beyond.append("bias")
    init = config.get("init_lora_weights", True)
    if init not in _INITS:
        beyond.append(f"init_lora_weights={init!r}, which changes the base weights")
    if beyond:
        raise InvalidInputError(
            f"{str(folder)!r} uses {', '.join(beyond)}; only plain LoRA on linear layers can be loaded: merge it with "
            "PEFT (merge_and_unload) instead"
        )


def _exactly(name: str) -> str:
    return "^" + re.escape(name)


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _whole(path: Path, fill: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        fill(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise InvalidInputError(
            "adapters are kept in safetensors files, and that package is not installed: "
            "pip install 'steelworks[adapters]'"
        ) from None
    return safetensors.torch


def _load(path: Path) -> dict[str, torch.Tensor]:
    library = _safetensors()
    try:
        loaded: dict[str, torch.Tensor] = library.load_file(path)
    except Exception as problem:  # the library's own error class is not public in all versions
        raise InvalidInputError(f"{str(path)!r} can't be read: {problem}") from problem
    return loaded


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    _safetensors().save_file(tensors, path, metadata={"format": "pt"})
