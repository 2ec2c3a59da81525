"""Merge a LoRA adapter, as peft saves it, into its base model: W + scale * B A.

Reads a folder with adapter_config.json and adapter_model.safetensors. The product is computed in
float64 and added in it, so that a merged weight is the exact one, rounded once. Settings that would
change the sum are followed or refused by name. Source: LoRA, arXiv:2106.09685; rank-stabilised
scale, arXiv:2312.03732.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agent_forge.core.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B)(?:\.weight)?")
# What is read, and what says only how the adapter was trained or where it sits.
_KNOWN = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias",
    "fan_in_fan_out", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "lora_dropout", "task_type", "base_model_name_or_path", "inference_mode", "init_lora_weights",
    "auto_mapping", "revision", "peft_version", "loftq_config", "eva_config", "corda_config",
    "lora_ga_config", "runtime_config", "ensure_weight_tying", "megatron_core",
    "qalora_group_size",
}  # fmt: skip


def merge(model: PreTrainedModel, folder: Path) -> int:
    """Add the adapter of a folder to a model's weights in place; return how many it changed.

    Raises CheckpointError for an adapter that is not plain LoRA, for a tensor without its partner,
    and where shapes or layers are not the model's.
    """
    config = read_config(folder)
    pairs = read_pairs(folder)
    for name, (a, b) in pairs.items():
        weight = _weight(model, folder, name)
        delta = scale(config, name, a.shape[0]) * (b.double() @ a.double())
        if isinstance(model.get_submodule(name), Conv1D):
            delta = delta.T
        if delta.shape != weight.shape:
            raise CheckpointError(
                f"{folder}: the adapter of {name} is for {list(delta.shape)}, the model has "
                f"{list(weight.shape)}; is this its base model?"
            )
        with torch.no_grad():
            weight.copy_((weight.double() + delta).to(weight.dtype))
    return len(pairs)


def read_config(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json. Raises CheckpointError for what a merge cannot follow."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no readable {CONFIG}: {error}") from error
    if config.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{folder} is an adapter of type {config.get('peft_type')}; only LORA can be merged here"
        )
    others = sorted(key for key, value in config.items() if value and key not in _KNOWN)
    if config.get("bias", "none") != "none":
        others.append("bias")
    if others:
        raise CheckpointError(
            f"{folder}: {CONFIG} sets {', '.join(others)}, which a plain merge does not follow; "
            "merge it with peft itself (merge_and_unload) and import the result"
        )
    return config


def read_pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return layer -> (A of (rank, in), B of (out, rank)).

    Raises CheckpointError for other tensors, and for one without its partner.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} has no readable {WEIGHTS}: {error}") from error
    halves: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(
                f"{folder}: {name} is not a matrix of a plain LoRA adapter; merge it with peft "
                "itself and import the result"
            )
        halves.setdefault(match[1], {})[match[2]] = value
    lonely = sorted(name for name, pair in halves.items() if len(pair) < 2)
    if lonely or not halves:
        raise CheckpointError(f"{folder}: the adapter is not whole: {lonely[:1] or 'no tensor'}")
    return {name: (pair["lora_A"], pair["lora_B"]) for name, pair in sorted(halves.items())}


def scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Return the factor of a layer's product: alpha / rank, or alpha / sqrt(rank)."""
    alpha = float(config.get("lora_alpha", 8))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _weight(model: PreTrainedModel, folder: Path, name: str) -> nn.Parameter:
    try:
        module = model.get_submodule(name)
    except AttributeError:
        raise CheckpointError(
            f"{folder}: the model has no layer {name}; is this its base model?"
        ) from None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or isinstance(module, nn.Embedding):
        raise CheckpointError(f"{folder}: {name} is not a linear layer of the model")
    head: Any = model.get_output_embeddings()
    if module is head and head.weight is model.get_input_embeddings().weight:
        raise CheckpointError(
            f"{folder}: {name} is tied to the embedding, which an adapter of it would change too"
        )
    return weight
