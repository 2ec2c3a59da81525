"""Tiny random models of many families, with weights wide enough that a wrong place or sign changes
the logits.

Shared by tests and by scripts/family_table.py. Nothing is downloaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as tokenizer_models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import models

TEXT = (
    "Fellow citizens of the Senate, what is 48 plus 77? It is 125. The state of the union is strong. "
    * 60
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SIZES = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "initializer_range": 0.3,
}  # fmt: skip
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
GRANITE = {
    "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3, "logits_scaling": 2.0,
}  # fmt: skip
# Model type -> what its config has beside SIZES.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 32},
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "num_hidden_layers": 7,
    },
    "mistral": {"sliding_window": None},
    "phi3": {},
    "gpt2": {"n_inner": 64},
    "gpt_neox": {},
    "smollm3": {"num_hidden_layers": 5},
    "olmo2": {},
    "granite": GRANITE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 16, **MOE},
}
# Name -> (model type, what its config has beside SIZES).
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.5], "long_factor": [1.0, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 256,
}  # fmt: skip
ROPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3 as published": ("llama", {
        "head_dim": 64, "rope_parameters": {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192},
    }),
    "llama3 of few values": ("llama", {
        "rope_parameters": {**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 64},
    }),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "yarn": ("llama", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "yarn, own attention": ("qwen3", {
        "head_dim": 16, "rope_parameters": {**YARN, "rope_theta": 1e6, "attention_factor": 1.3},
    }),
    "longrope": ("phi3", {
        "max_position_embeddings": 512, "original_max_position_embeddings": 256, "rope_parameters": LONG,
    }),
    "part of a head": ("gpt_neox", {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    }),
}  # fmt: skip


def tokenizer(
    size: int = 400, pre: Any = None, more: Sequence[str] = (), **options: Any
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE trained on TEXT. pre: how text is cut; GPT-2's way by default. more:
    further special tokens.
    """
    whole = Tokenizer(tokenizer_models.BPE())
    whole.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*SPECIAL, *more],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=whole, **{"eos_token": SPECIAL[0], **options})


def beginning_with(words: PreTrainedTokenizerFast, token: str) -> PreTrainedTokenizerFast:
    """Let a tokenizer put a token before every text, as Gemma's and Llama's do, and return it."""
    first = words.convert_tokens_to_ids(token)
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, first)]
    )
    return words


def build(kind: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Return a random model of a model type, in eval mode."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**SIZES, **settings})
    )
    with (
        torch.no_grad()
    ):  # gains and biases begin as ones and zeros, which would hide that they are read at all
        for value in model.parameters():
            if value.ndim == 1:
                value.add_(torch.randn(value.shape) * 0.1)
    return model.eval()


def save(path: Path, model: PreTrainedModel, words: PreTrainedTokenizerFast) -> Path:
    """Write a Hugging Face directory and return it."""
    models.save(model, words, path)
    return path


@torch.no_grad()
def relative_error(model: Any, reference: Any, tokens: int = 60) -> float:
    """Return |logits - reference logits| / |reference logits| on some ids."""
    ids = torch.arange(5, 5 + tokens)[None]
    result, expected = model(input_ids=ids).logits, reference(input_ids=ids).logits
    return float((result - expected).norm() / expected.norm())
