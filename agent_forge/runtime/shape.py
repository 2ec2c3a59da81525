"""The shape of a Llama-family model from its config.json; whatever computes otherwise is refused.

Reads a config as a dictionary. The families are llama, mistral, qwen2 and qwen3, without windows
narrower than the context, and with rotary positions of type default, linear, llama3, or longrope
with the same factors at every length (formulas: Hugging Face transformers' modeling_rope_utils).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROTARY = ("default", "linear", "llama3", "longrope")


class UnsupportedModelError(ConfigError):
    """The packed engine does not compute this model; torch does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a Llama-family model, in values.

    inner: the width of the SwiGLU.
    frequencies: (head_size / 2,), radians per token.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    vocabulary: int
    epsilon: float
    longest: int  # tokens of context
    frequencies: tuple[float, ...]
    tied: bool


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Return the shape. Raises UnsupportedModelError naming what the engine does not compute."""
    _refuse_others(config)
    heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if head_size % 2 or heads % kv_heads:
        raise UnsupportedModelError(
            "the packed engine needs even heads in whole groups, got head size "
            f"{head_size} and {heads} heads on "
            f"{kv_heads}; use engine=torch"
        )
    return Shape(
        hidden=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        inner=int(config["intermediate_size"]),
        vocabulary=int(config["vocab_size"]),
        epsilon=float(config.get("rms_norm_eps", 1e-6)),
        longest=int(config.get("max_position_embeddings") or 2048),
        frequencies=tuple(float(f) for f in _frequencies(config, head_size)),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def unwrapped(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the config of the model that computes, and the prefix of its tensors' names.

    A thought model whose gate is shut computes as its base. Raises UnsupportedModelError when the
    gate can open.
    """
    if config.get("model_type") != "thought":
        return config, ""
    gate = config.get("gate_entropy_nats")
    if gate is not None:
        raise UnsupportedModelError(
            "the packed engine does not compute thoughts, and this model thinks from "
            f"{gate} nats on; use engine=torch"
        )
    return {**config.get("base_config", {})}, "base."


def _refuse_others(config: Mapping[str, Any]) -> None:
    family = config.get("model_type")
    rope = _rope(config)
    window = _window(config)
    longest = int(config.get("max_position_embeddings") or 2048)
    activation = config.get("hidden_act", "silu")
    problems = {
        f"model type '{family}' (it computes {', '.join(FAMILIES)})": family not in FAMILIES,
        f"activation {activation}": activation not in ("silu", "swish"),
        f"rotary positions of type {rope['rope_type']}": rope["rope_type"] not in ROTARY,
        "longrope whose factors change with the length, or that scales attention": (
            not _is_constant(rope)
        ),
        "rotary positions on part of a head": _turning_share(config, rope) != 1,
        f"sliding windows of {window} tokens in a context of {longest}": (
            window is not None and window < longest
        ),
    }  # fmt: skip
    refused = [what for what, wrong in problems.items() if wrong]
    if refused:
        raise UnsupportedModelError(
            f"the packed engine does not compute {refused[0]}; use engine=torch"
        )


def _window(config: Mapping[str, Any]) -> int | None:
    """Return the width of the narrowest attention window in tokens, or None where there is none."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if kinds:
        return int(window or 0) if any(kind != "full_attention" for kind in kinds) else None
    slides = config.get("model_type") == "mistral" or config.get("use_sliding_window")
    return int(window) if slides and window else None


def _turning_share(config: Mapping[str, Any], rope: Mapping[str, Any]) -> float:
    return float(config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1)


def _is_constant(rope: Mapping[str, Any]) -> bool:
    """Return whether a longrope only divides the frequencies, by the same factors at any length."""
    if rope["rope_type"] != "longrope":
        return True
    return bool(
        rope["short_factor"] == rope["long_factor"]
        and float(rope.get("attention_factor") or 0) == 1
    )


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return rope_type, rope_theta and the factors, from either form of the config."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    return rope


def _frequencies(config: Mapping[str, Any], head_size: int) -> NDArray[np.float32]:
    rope = _rope(config)
    steps = np.arange(0, head_size, 2, dtype=np.float32) / np.float32(head_size)
    frequencies = (1.0 / np.float32(rope["rope_theta"]) ** steps).astype(np.float32)
    if rope["rope_type"] == "default":
        return frequencies
    if rope["rope_type"] == "longrope":
        return (frequencies / np.asarray(rope["long_factor"], np.float32)).astype(np.float32)
    if rope["rope_type"] == "linear":
        return (frequencies / np.float32(rope["factor"])).astype(np.float32)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - share) * frequencies / float(rope["factor"]) + share * frequencies).astype(
        np.float32
    )
