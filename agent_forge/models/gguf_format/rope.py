"""Rotary positions in GGUF files and config.json: types default, linear, llama3, yarn, longrope.

A file names `rope.scaling.type` (linear, yarn, longrope) in its metadata. llama3's scaling is a
tensor, `rope_freqs.weight`, of factors that divide the plain frequencies; longrope's two tensors
are `rope_factors_short` and `_long`. Formulas: transformers' modeling_rope_utils and llama.cpp's
ggml_rope_ext. Factors that are not a llama3 scaling are read as a longrope with these factors for
short and long contexts, which is the same computation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.models.gguf_format.metadata import Metadata

Array = NDArray[Any]
FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
WRITTEN = ("default", "linear", "llama3", "yarn", "longrope")
LLAMA3_CONTEXT = 8192  # the context of the Llama 3 models before it was extended
_TOLERANCE = 1e-4  # files hold factors in float32
_LLAMA_CPP_BETAS = {"beta_fast": 32.0, "beta_slow": 1.0}


def parameters_of(config: Any) -> dict[str, Any]:
    """Return the rope_parameters of layers with full attention, with rope_theta and rope_type."""
    rope = dict(getattr(config, "rope_parameters", None) or {})
    rope = dict(rope.get("full_attention", rope))
    rope.setdefault("rope_type", rope.get("type") or "default")
    rope.setdefault("rope_theta", getattr(config, "rope_theta", None) or 10000.0)
    return rope


def rotated_size(config: Any) -> int:
    """Return how many values of a head are rotated."""
    size = int(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    return int(size * float(parameters_of(config).get("partial_rotary_factor") or 1))


def write(put: Callable[[str, Any], None], config: Any) -> dict[str, Array]:
    """Put the metadata of a config's rotary positions; return the tensors for it (float32).

    Raises ConfigError for a type that llama.cpp does not compute.
    """
    rope = parameters_of(config)
    kind, size = str(rope["rope_type"]), rotated_size(config)
    if kind not in WRITTEN:
        raise ConfigError(
            f"rotary positions of type '{kind}' cannot be said in GGUF; known: "
            f"{', '.join(WRITTEN)}; use --format hf"
        )
    put("rope.freq_base", float(rope["rope_theta"]))
    put("rope.dimension_count", size)
    if kind == "llama3":
        return {FACTORS: llama3_factors(rope, size)}
    if kind in ("linear", "yarn"):
        put("rope.scaling.type", kind)
        put("rope.scaling.factor", float(rope["factor"]))
    if kind == "yarn":
        _write_yarn(put, rope, config)
    if kind == "longrope":
        return _write_longrope(put, rope, config)
    return {}


def _write_yarn(put: Callable[[str, Any], None], rope: Mapping[str, Any], config: Any) -> None:
    if rope.get("truncate") is False:
        raise ConfigError(
            "llama.cpp rounds the borders of yarn to whole dimensions, and config.json "
            "says truncate=false"
        )
    put("rope.scaling.original_context_length", _original(rope, config))
    for key, usual in _LLAMA_CPP_BETAS.items():
        if float(rope.get(key) or usual) != usual:
            put(f"rope.scaling.yarn_{key}", float(rope[key]))
    usual = yarn_attention(float(rope["factor"]))
    attention = rope.get("attention_factor")
    if attention is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        scales = [
            yarn_attention(float(rope["factor"]), float(rope[key]))
            for key in ("mscale", "mscale_all_dim")
        ]
        attention = scales[0] / scales[1]
    if attention is not None and not math.isclose(float(attention), usual, rel_tol=1e-6):
        put("rope.scaling.attn_factor", float(attention) / usual)


def yarn_attention(factor: float, scale: float = 1.0) -> float:
    """Return the factor of cosines and sines in yarn, unless a file gives another."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _write_longrope(
    put: Callable[[str, Any], None], rope: Mapping[str, Any], config: Any
) -> dict[str, Array]:
    original = _original(rope, config)
    put("rope.scaling.type", "longrope")
    put("rope.scaling.original_context_length", original)
    attention = rope.get("attention_factor")
    if attention is None:
        factor = float(rope.get("factor") or config.max_position_embeddings / original)
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    put("rope.scaling.attn_factor", float(attention))
    names = {SHORT: "short_factor", LONG: "long_factor"}
    return {name: np.asarray(rope[key], np.float32) for name, key in names.items()}


def _original(rope: Mapping[str, Any], config: Any) -> int:
    original = rope.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    return int(original or config.max_position_embeddings)


def llama3_factors(rope: Mapping[str, Any], size: int) -> Array:
    """Return the factors by which a llama3 scaling divides the frequencies, (size / 2,) float32.

    size: how many values of a head are rotated.
    """
    plain = _plain(float(rope["rope_theta"]), size)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    turns = float(rope["original_max_position_embeddings"]) * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - share) / float(rope["factor"]) + share)).astype(np.float32)


def _plain(theta: float, size: int) -> NDArray[np.float64]:
    return np.asarray(theta ** -(np.arange(0, size, 2, dtype=np.float64) / size))


def read(meta: Metadata, tensors: Mapping[str, Array], size: int, context: int) -> dict[str, Any]:
    """Return the rope_parameters of a file.

    tensors: its factors, by name.
    size: how many values of a head are rotated.

    Raises CheckpointError for a scaling type that transformers does not compute.
    """
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": float(meta.get("rope.freq_base", 10000.0)),
    }
    factor = float(
        meta.get("rope.scaling.factor", 0.0) or meta.get("rope.scale_linear", 0.0) or 1.0
    )
    kind = str(meta.get("rope.scaling.type", "linear" if factor != 1 else "none"))
    original = meta.get("rope.scaling.original_context_length")
    attention = meta.get("rope.scaling.attn_factor")
    if FACTORS in tensors:
        if factor != 1:
            raise CheckpointError(
                f"{meta.path} has both {FACTORS} and rope.scaling.factor={factor}; one was expected"
            )
        return rope | _from_factors(tensors[FACTORS], rope["rope_theta"], size, context)
    if kind in ("none", "linear"):
        return rope | (
            {"rope_type": "linear", "factor": factor} if factor != 1 and kind == "linear" else {}
        )
    if kind == "yarn":
        betas = {
            key: float(meta.get(f"rope.scaling.yarn_{key}", usual))
            for key, usual in _LLAMA_CPP_BETAS.items()
        }
        times = float(attention or 1) * float(meta.get("rope.scaling.yarn_attn_factor", 1.0))
        return {
            **rope, **betas, "rope_type": "yarn", "factor": factor,
            "original_max_position_embeddings": int(original or context),
            "attention_factor": yarn_attention(factor) * times,
        }  # fmt: skip
    if kind == "longrope" and SHORT in tensors and LONG in tensors:
        scale = float(attention) if attention else 1.0
        return rope | _longrope(tensors[SHORT], tensors[LONG], int(original or context), scale)
    raise CheckpointError(
        f"{meta.path}: rope.scaling.type is '{kind}'; known: none, linear, yarn, "
        "longrope with its factors"
    )


def _longrope(short: Array, long: Array, original: int, attention: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope", "short_factor": [float(x) for x in short],
        "long_factor": [float(x) for x in long], "original_max_position_embeddings": original,
        "attention_factor": attention,
    }  # fmt: skip


def _from_factors(factors: Array, theta: float, size: int, context: int) -> dict[str, Any]:
    """Return the scaling that has these factors: none, linear, llama3, or else longrope."""
    factors = np.asarray(factors, np.float64).reshape(-1)
    if len(factors) != size // 2:
        raise CheckpointError(
            f"{FACTORS} has {len(factors)} factors for {size} turning values; expected {size // 2}"
        )
    if np.allclose(factors, 1, rtol=_TOLERANCE):
        return {}
    if np.allclose(factors, factors[0], rtol=_TOLERANCE):
        return {"rope_type": "linear", "factor": float(factors[0])}
    for candidate in _llama3_candidates(factors, theta, size):
        if np.allclose(
            llama3_factors({**candidate, "rope_theta": theta}, size), factors, rtol=_TOLERANCE
        ):
            return candidate
    return _longrope(factors, factors, context, 1.0)


def _llama3_candidates(
    factors: NDArray[np.float64], theta: float, size: int
) -> list[dict[str, Any]]:
    """Return llama3 scalings that may have given these factors: published ones, then a fit."""
    factor = float(np.float32(factors.max()))
    if factor <= 1:
        return []
    base = {
        "rope_type": "llama3",
        "factor": round(factor, 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    contexts = [LLAMA3_CONTEXT, *(1 << power for power in range(6, 21))]
    candidates = [{**base, "original_max_position_embeddings": context} for context in contexts]
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    middle = (share > 1e-3) & (share < 1 - 1e-3)
    if middle.sum() >= 2:  # share = (turns - low) / (high - low), and turns grow with the frequency
        slope, start = np.polyfit(_plain(theta, size)[middle], share[middle], 1)
        if slope > 0 > start:
            high = 1 - 1 / start
            original = 2 * math.pi * slope * (high - 1)
            fitted = {**base, "high_freq_factor": round(float(high), 4)}
            candidates.append(
                {**fitted, "original_max_position_embeddings": round(float(original))}
            )
    return candidates
