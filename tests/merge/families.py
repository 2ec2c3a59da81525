"""Tiny random models of many causal-LM families, made from transformers' own config classes."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

LAYERS = 4
# Any of these that a config class has is set to this.
SMALL = {
    "vocab_size": 96, "hidden_size": 32, "n_embd": 32, "d_model": 32, "n_embed": 32,
    "intermediate_size": 48, "ffn_dim": 48, "n_inner": 64, "d_ff": 48, "num_hidden_layers": LAYERS,
    "n_layer": LAYERS, "num_layers": LAYERS, "n_layers": LAYERS, "num_attention_heads": 4,
    "n_head": 4, "n_heads": 4, "num_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "word_embed_proj_dim": 32, "sliding_window": 8, "attention_window": 8, "rotary_dim": 8,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "moe_k": 2, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24, "n_group": 1, "topk_group": 1, "q_lora_rank": 16,
    "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "hidden_dropout": 0.0,
    "embd_dropout": 0.0, "dropout": 0.0, "activation_dropout": 0.0, "use_sliding_window": True,
    "max_window_layers": 2,
}  # fmt: skip
# family -> what must be said besides.
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaConfig": {}, "MistralConfig": {}, "Qwen2Config": {}, "Qwen3Config": {}, "GemmaConfig": {},
    "Gemma2Config": {},
    "Phi3Config": {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
        },
    },
    "GPT2Config": {}, "GPTNeoXConfig": {},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 2]]}, "OPTConfig": {},
    "BloomConfig": {}, "PhiConfig": {}, "StableLmConfig": {}, "CohereConfig": {},
    "Cohere2Config": {}, "OlmoConfig": {}, "Olmo2Config": {}, "GraniteConfig": {},
    "SmolLM3Config": {}, "Starcoder2Config": {}, "MixtralConfig": {},
    "Qwen2MoeConfig": {"mlp_only_layers": [0]}, "Qwen3MoeConfig": {"mlp_only_layers": [1]},
    "OlmoeConfig": {}, "DeepseekV3Config": {"first_k_dense_replace": 1, "num_key_value_heads": 4},
    "DiffLlamaConfig": {}, "Gemma3TextConfig": {}, "Exaone4Config": {},
    "Lfm2Config": {"layer_types": ["conv", "full_attention"] * 2},
}  # fmt: skip


def make_config(family: str) -> Any:
    """Return a tiny config of a family."""
    kind = getattr(transformers, family)
    known = vars(kind()) | dict.fromkeys(getattr(kind, "attribute_map", {}))
    return kind(**{key: value for key, value in SMALL.items() if key in known} | FAMILIES[family])


def make_model(family: str, seed: int, base: PreTrainedModel | None = None) -> PreTrainedModel:
    """Return a random model; with `base`, one that differs from it by small changes."""
    torch.manual_seed(seed)
    model = (
        AutoModelForCausalLM.from_config(make_config(family)).eval()
        if base is None
        else copy.deepcopy(base)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def layer_list(model: nn.Module) -> tuple[nn.Module, str]:
    """Return the module that holds the stack of layers, and the stack's name in it."""
    for module in model.modules():
        for name, child in module.named_children():
            if (
                isinstance(child, nn.ModuleList)
                and len(child) == LAYERS
                and len(list(child[0].parameters())) > 3
            ):
                return module, name
    raise AssertionError(f"no stack of {LAYERS} layers in {type(model).__name__}")


def stacked(
    first: PreTrainedModel, second: PreTrainedModel, path: list[tuple[int, int]]
) -> PreTrainedModel:
    """Return the truth of a frankenmerge: the modules themselves put in the path's order, ends as
    the slices say.
    """
    parts = [layer_list(first), layer_list(second)]
    layers = [copy.deepcopy(getattr(*parts[model])[layer]) for model, layer in path]
    truth = copy.deepcopy(first)
    holder, name = layer_list(truth)
    _copy_outputs(truth, second)
    setattr(holder, name, nn.ModuleList(layers))
    config = truth.config
    for key in ("layer_types", "mlp_layer_types", "no_rope_layers"):
        if isinstance(getattr(config, key, None), list):
            setattr(config, key, [getattr(config, key)[layer] for _, layer in path])
    for key in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(config.to_dict().get(key), int):
            setattr(config, key, len(path))
    return truth


def _copy_outputs(truth: PreTrainedModel, second: PreTrainedModel) -> None:
    """Give `truth` the final norm and the head of `second`: all that is neither a layer nor an
    embedding.
    """
    tied = {id(parameter) for parameter in truth.get_input_embeddings().parameters()}
    theirs = dict(second.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, parameter in truth.named_parameters(remove_duplicate=False):
            of_input = any(part in name for part in INPUTS) and "embed_out" not in name
            if (
                not of_input
                and id(parameter) not in tied
                and not any(part.isdigit() for part in name.split("."))
            ):
                parameter.copy_(theirs[name])


INPUTS = ("embed", "wte", "wpe", "project_in")


def save(model: PreTrainedModel, directory: Path) -> Path:
    """Write a model as transformers does."""
    model.save_pretrained(directory)
    return directory


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Return the logits of 24 tokens: more than the sliding window."""
    ids = torch.arange(24)[None] * 7 % 90 + 3
    with torch.no_grad():
        result: torch.Tensor = model(ids, use_cache=False).logits
    return result
