"""Settings of a model in both forms: config.json of transformers and the metadata of a GGUF file.

Each direction checks the other: `read` reads back what `write` puts, and a setting that comes back
with another value is refused by name, so a file never loses a setting that changes a logit. Keys:
the GGUF specification and llama.cpp.
"""

import math
from collections.abc import Callable, Collection, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError
from agent_forge.models.gguf_format import rope
from agent_forge.models.gguf_format.families import Family
from agent_forge.models.gguf_format.metadata import Metadata

Put = Callable[[str, Any], None]
WINDOWED = ("gemma2", "gemma3_text")  # llama.cpp computes the windows of these
LAYER_NORM = ("gpt2", "gpt_neox")  # the others have RMS norms
BIASED = ("llama",)  # these have biases when a setting turns them on
GEMMA3_PATTERN, GEMMA3_LOCAL_BASE = 6, 10000.0  # llama.cpp's defaults
# Models with these numbers of layers scale their queries by hidden / heads.
BIG_GEMMA = {"gemma2": 46, "gemma3_text": 62}
# Settings that change no logit outside training, or that are written and compared in another way.
NOT_COMPARED = (
    "*dropout*", "*_pdrop", "*_token_id", "output_*", "router_*", "summary_*", "rope_*", "id2label",
    "label2id", "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "head_dim",
    "initializer_range", "is_encoder_decoder", "layer_types", "max_position_embeddings",
    "max_window_layers", "model_type", "n_ctx", "n_positions", "num_key_value_heads",
    "original_max_position_embeddings", "pretraining_tp", "problem_type", "reorder_and_upcast_attn",
    "return_dict", "sliding_window", "transformers_version", "use_cache", "use_sliding_window",
    "_sliding_window_pattern", "_attn_implementation*", "partial_rotary_factor", "rotary_*",
    "max_batch_size", "tokenizer_class", "vocab_size", "n_inner", "intermediate_size",
)  # fmt: skip


def window_of(config: Any) -> int | None:
    """Return the width of the narrowest attention window in tokens, or None where there is none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    sliding = "sliding_attention" in kinds if kinds else bool(window)
    return int(window) if window and sliding else None


def context_of(config: Any, family: Family) -> tuple[int, list[str]]:
    """Return the context length to write, and lines for the user.

    Where llama.cpp does not compute a model's windows, the context ends where they would begin.
    """
    longest, window = int(config.max_position_embeddings), window_of(config)
    if window is None or family.model_type in WINDOWED or window >= longest:
        return longest, []
    line = (
        f"llama.cpp's {family.architecture} has no sliding windows: the context length "
        f"is written as {window:,} of "
        f"{longest:,} tokens, up to which the window of {window:,} changes nothing"
    )
    return window, [line]


def write(put: Put, config: Any, family: Family) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Put a config's metadata; return tensors of rotary factors and lines for the user.

    Raises ConfigError naming a setting that the architecture cannot have.
    """
    context, lines = context_of(config, family)
    heads = int(config.num_attention_heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    put("context_length", context)
    put("embedding_length", int(config.hidden_size))
    put("block_count", int(config.num_hidden_layers))
    put("feed_forward_length", inner_of(config))
    put("attention.head_count", heads)
    grouped = (
        None if family.model_type in LAYER_NORM else getattr(config, "num_key_value_heads", None)
    )
    put("attention.head_count_kv", int(grouped or heads))
    put("vocab_size", int(config.vocab_size))
    if family.model_type != "gpt2":
        put("attention.key_length", size)
        put("attention.value_length", size)
    _write_norm(put, config, family)
    _WRITERS.get(family.model_type, _nothing)(put, config)
    tensors = {} if family.model_type == "gpt2" else rope.write(put, config)
    return tensors, lines


def inner_of(config: Any) -> int:
    """Return the inner width of the dense feed-forward layers."""
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return int(inner or 4 * config.hidden_size)


def _write_norm(put: Put, config: Any, family: Family) -> None:
    if family.model_type == "gpt2":
        put("attention.layer_norm_epsilon", float(config.layer_norm_epsilon))
    elif family.model_type == "gpt_neox":
        put("attention.layer_norm_epsilon", float(config.layer_norm_eps))
    else:
        put("attention.layer_norm_rms_epsilon", float(config.rms_norm_eps))


def _nothing(put: Put, config: Any) -> None:
    del put, config


def _write_gemma(put: Put, config: Any) -> None:
    put("attention.sliding_window", int(config.sliding_window))
    for ours, theirs in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
        value = getattr(config, f"{ours}_logit_softcapping", None)
        if value is not None:
            put(theirs, float(value))


def _write_gemma3(put: Put, config: Any) -> None:
    _write_gemma(put, config)
    local = (config.rope_parameters or {}).get("sliding_attention", {})
    if local.get("rope_type", "default") != "default":
        raise ConfigError(
            f"llama.cpp turns Gemma 3's windowed layers plainly, and config.json says {local}"
        )
    if float(local.get("rope_theta", GEMMA3_LOCAL_BASE)) != GEMMA3_LOCAL_BASE:
        put("rope.freq_base_swa", float(local["rope_theta"]))
    pattern = _pattern(config)
    if pattern != GEMMA3_PATTERN:
        put("attention.sliding_window_pattern", pattern)


def _pattern(config: Any) -> int:
    """Return n, where every nth layer has full attention.

    Raises ConfigError when the layers do not follow such a rule.
    """
    kinds = list(config.layer_types)
    first = next((i for i, kind in enumerate(kinds) if kind != "sliding_attention"), None)
    # Without a layer with full attention, any pattern longer than the model fits; llama.cpp's
    # default is taken where it is longer.
    pattern = first + 1 if first is not None else max(GEMMA3_PATTERN, len(kinds) + 1)
    if kinds != layer_kinds(len(kinds), pattern):
        raise ConfigError(
            f"llama.cpp's windows come in a pattern, and layer_types is {kinds}; use --format hf"
        )
    return pattern


def layer_kinds(layers: int, pattern: int) -> list[str]:
    """Return layer_types in which every `pattern`th layer has full attention."""
    return [
        "full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(layers)
    ]


def _write_granite(put: Put, config: Any) -> None:
    put("embedding_scale", float(config.embedding_multiplier))
    put("residual_scale", float(config.residual_multiplier))
    put("attention.scale", float(config.attention_multiplier))
    put("logit_scale", float(config.logits_scaling))


def _write_mixtral(put: Put, config: Any) -> None:
    put("expert_count", int(config.num_local_experts))
    put("expert_used_count", int(config.num_experts_per_tok))


def _write_qwen_moe(put: Put, config: Any) -> None:
    put("expert_count", int(config.num_experts))
    put("expert_used_count", int(config.num_experts_per_tok))
    put("expert_feed_forward_length", int(config.moe_intermediate_size))


def _write_neox(put: Put, config: Any) -> None:
    put("use_parallel_residual", bool(config.use_parallel_residual))


_WRITERS: Mapping[str, Callable[[Put, Any], None]] = {
    "gemma2": _write_gemma, "gemma3_text": _write_gemma3, "granite": _write_granite,
    "mixtral": _write_mixtral, "qwen3_moe": _write_qwen_moe, "gpt_neox": _write_neox,
}  # fmt: skip


def read(
    meta: Metadata,
    family: Family,
    tensors: Collection[str],
    factors: Mapping[str, NDArray[Any]],
    vocabulary: int,
) -> dict[str, Any]:
    """Return the settings of config.json, without token ids.

    tensors: the names of the file's tensors.
    factors: the factors of its rotary positions.

    Raises CheckpointError naming a key that is missing, or whose value the model type does not
    compute.
    """
    hidden, heads = meta.number("embedding_length"), meta.number("attention.head_count")
    context = meta.number("context_length")
    size = int(meta.get("attention.key_length") or hidden // heads)
    meta.expect("attention.value_length", (size,), f"its keys have {size} values per head")
    meta.expect("attention.causal", (True,), "it looks back only")
    kv_heads = (
        meta.number("attention.head_count_kv")
        if meta.get("attention.head_count_kv") is not None
        else heads
    )
    settings: dict[str, Any] = {
        "hidden_size": hidden, "num_hidden_layers": meta.number("block_count"),
        "num_attention_heads": heads, "max_position_embeddings": context,
        "vocab_size": int(meta.get("vocab_size", vocabulary)),
        "tie_word_embeddings": "output.weight" not in tensors,
    }  # fmt: skip
    inner = meta.number("feed_forward_length")
    settings["n_inner" if family.model_type == "gpt2" else "intermediate_size"] = inner
    if family.model_type not in LAYER_NORM:
        settings |= {"num_key_value_heads": kv_heads, "head_dim": size}
        settings["rms_norm_eps"] = _shortest(meta.get("attention.layer_norm_rms_epsilon", 1e-6))
    else:
        name = "layer_norm_epsilon" if family.model_type == "gpt2" else "layer_norm_eps"
        settings[name] = _shortest(meta.get("attention.layer_norm_epsilon", 1e-5))
    if family.model_type in BIASED:
        settings |= {
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        }
    if family.model_type not in WINDOWED:
        settings |= _unwindowed(meta, family, context)
    if family.model_type != "gpt2":
        settings |= _read_rope(meta, family, factors, size, context)
    return settings | _READERS.get(family.model_type, _read_nothing)(meta, settings)


def _unwindowed(meta: Metadata, family: Family, context: int) -> dict[str, Any]:
    """Return the window setting of models whose windows llama.cpp does not compute.

    A context that fits into the window does without one.
    """
    window = meta.get("attention.sliding_window")
    if window and int(window) < context:
        return (
            {"sliding_window": int(window)}
            if family.model_type in ("phi3", "mistral", "mixtral")
            else {}
        )
    return (
        {"sliding_window": None}
        if family.model_type in ("phi3", "mistral", "mixtral", "qwen2", "qwen3")
        else {}
    )


def _read_rope(
    meta: Metadata, family: Family, factors: Mapping[str, NDArray[Any]], size: int, context: int
) -> dict[str, Any]:
    turning = int(meta.get("rope.dimension_count", size))
    if family.model_type not in ("phi3", "gpt_neox"):
        meta.expect("rope.dimension_count", (size,), "it turns whole heads")
    parameters = rope.read(meta, factors, turning, context)
    if turning != size:
        parameters["partial_rotary_factor"] = turning / size
    if parameters["rope_type"] == "longrope" and family.model_type == "phi3":
        # Phi-3's config also requires this key outside the scaling.
        return {
            "rope_parameters": parameters,
            "original_max_position_embeddings": parameters["original_max_position_embeddings"],
        }
    return {"rope_parameters": parameters}


def _read_nothing(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del meta, settings
    return {}


def _read_gemma(meta: Metadata, settings: dict[str, Any], kind: str) -> dict[str, Any]:
    size, hidden, heads = (
        settings["head_dim"],
        settings["hidden_size"],
        settings["num_attention_heads"],
    )
    is_big = settings["num_hidden_layers"] == BIG_GEMMA[kind]
    return {
        "sliding_window": int(meta.get("attention.sliding_window", 4096)),
        "query_pre_attn_scalar": hidden // heads if is_big else size,
        "attn_logit_softcapping": meta.get("attn_logit_softcapping"),
        "final_logit_softcapping": meta.get("final_logit_softcapping"),
        "hidden_activation": "gelu_pytorch_tanh",
    }


def _read_gemma2(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    gemma = _read_gemma(meta, settings, "gemma2")
    for key, usual in (("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)):
        gemma[key] = usual if gemma[key] is None else gemma[key]
    return gemma


def _read_gemma3(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    pattern = int(meta.get("attention.sliding_window_pattern", GEMMA3_PATTERN))
    base = float(meta.get("rope.freq_base_swa", GEMMA3_LOCAL_BASE))
    full = settings["rope_parameters"]
    if meta.get("rope.freq_base") is None:
        full = {**full, "rope_theta": 1e6}
    return _read_gemma(meta, settings, "gemma3_text") | {
        "layer_types": layer_kinds(settings["num_hidden_layers"], pattern),
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
        },
    }


def _read_granite(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del settings
    keys = {
        "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
        "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale",
    }  # fmt: skip
    return {ours: _shortest(meta.get(theirs, 1.0)) for ours, theirs in keys.items()}


def _read_mixtral(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del settings
    return {
        "num_local_experts": meta.number("expert_count"),
        "num_experts_per_tok": meta.number("expert_used_count"),
    }


def _read_qwen_moe(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del settings
    return {
        "num_experts": meta.number("expert_count"),
        "num_experts_per_tok": meta.number("expert_used_count"),
        "moe_intermediate_size": meta.number("expert_feed_forward_length"), "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _read_neox(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del settings
    return {
        "use_parallel_residual": bool(meta.get("use_parallel_residual", True)),
        "hidden_act": "gelu",
    }


def _read_smollm3(meta: Metadata, settings: dict[str, Any]) -> dict[str, Any]:
    del meta
    # In llama.cpp every fourth layer has no positions.
    return {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(settings["num_hidden_layers"])]}


_READERS: Mapping[str, Callable[[Metadata, dict[str, Any]], dict[str, Any]]] = {
    "gemma2": _read_gemma2, "gemma3_text": _read_gemma3, "granite": _read_granite,
    "mixtral": _read_mixtral, "qwen3_moe": _read_qwen_moe, "gpt_neox": _read_neox,
    "smollm3": _read_smollm3,
}  # fmt: skip


def _shortest(value: Any) -> float:
    """Return a float32 as the shortest decimal that rounds to it: 1e-05, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def refuse_lost(config: Any, again: Any, family: Family) -> None:
    """Raise ConfigError naming the settings of `config` that a file loses.

    again: the config that the file's metadata gives.
    """
    before, after = config.to_dict(), again.to_dict()
    lost = []
    for key, value in before.items():
        if any(fnmatchcase(key, pattern) for pattern in NOT_COMPARED) or _equal(
            value, after.get(key)
        ):
            continue
        lost.append(f"{key}={value} (llama.cpp: {after.get(key)})")
    if lost:
        raise ConfigError(
            f"llama.cpp's architecture {family.architecture} computes another model "
            "than config.json describes: "
            f"{'; '.join(lost[:4])}; use --format hf"
        )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
