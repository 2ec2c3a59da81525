"""Find the stack of layers in tensor names, and fit a config's per-layer lists to another stack."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_forge.core.errors import ConfigError

_NUMBERED = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")
COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
NESTED = ("text_config", "llm_config", "language_config")
# Lists that may happen to be as long as the stack without being per layer.
NOT_PER_LAYER = (
    "architectures", "attn_config", "mrope_section", "rope_scaling", "short_factor", "long_factor",
    "time_step_limit", "time_step_range", "keys_to_ignore_at_inference",
)  # fmt: skip
OUTPUT_EMBEDDINGS = ("embed_out", "unembed")  # GPT-NeoX's name for the head
PATTERNS = ("hybrid_override_pattern",)  # text with one letter per layer
# Settings because of which a layer computes something else at another place in the stack.
BY_PLACE = ("scale_attn_by_inverse_layer_idx", "num_kv_shared_layers", "attn_type_list_offset")
# Model types whose code reads a layer's number: residual scale of Beam, lambda of differential
# attention.
NUMBERED_TYPES = ("beam", "diffllama")
BY_COUNT = ("scale_depth", "use_mup_depth")
# "every n-th layer is another": setting -> the setting that shifts the count.
PERIODS = {
    "attn_layer_period": "attn_layer_offset", "expert_layer_period": "expert_layer_offset",
    "decoder_sparse_step": "", "moe_layer_interval": "moe_layer_start_index",
    "interleave_moe_layer_step": "", "moe_layer_freq": "", "full_attention_interval": "",
    "global_attn_every_n_layers": "", "sliding_window_pattern": "", "_sliding_window_pattern": "",
    "no_rope_layer_interval": "", "nope_layer_interval": "",
}  # fmt: skip
# Where there is also a list with one entry per layer, the list decides, and the period only tells
# how it was written.
SPELLED_OUT = {
    "sliding_window_pattern": "layer_types", "_sliding_window_pattern": "layer_types",
    "full_attention_interval": "layer_types", "global_attn_every_n_layers": "layer_types",
    "no_rope_layer_interval": "no_rope_layers",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layers:
    """The stack of layers: tensors are named `{prefix}{layer}.{rest}`."""

    prefix: str
    count: int

    def split(self, name: str) -> tuple[int, str] | None:
        """Return (layer, rest) of a tensor in the stack, None for any other."""
        match = _NUMBERED.match(name)
        if match is None or (match[1] or "") != self.prefix:
            return None
        return int(match[2]), match[3]

    def name(self, layer: int, rest: str) -> str:
        """Return the tensor name of `rest` in `layer`."""
        return f"{self.prefix}{layer}.{rest}"


def find_layers(names: Iterable[str]) -> Layers | None:
    """Return the numbered stack with the most tensors, None without numbers 0, 1, 2, ..."""
    by_prefix: dict[str, list[int]] = defaultdict(list)
    for name in names:
        match = _NUMBERED.match(name)
        if match:
            by_prefix[match[1] or ""].append(int(match[2]))
    stacks = [
        (len(numbers), prefix, max(numbers) + 1)
        for prefix, numbers in by_prefix.items()
        if set(numbers) == set(range(max(numbers) + 1))
    ]
    if not stacks:
        return None
    _, prefix, count = max(stacks)
    return Layers(prefix, count)


def before_layers(name: str) -> bool:
    """Return whether a tensor outside the stack belongs to its input side (embeddings) rather than
    its output side.
    """
    return any(part in name for part in ("embed", "wte", "wpe")) and not any(
        part in name for part in OUTPUT_EMBEDDINGS
    )


def resize_config(config: Mapping[str, Any], path: Sequence[int]) -> dict[str, Any]:
    """Return a config for a stack of the layers `path` of the old one, its per-layer settings
    included.

    Raises ConfigError when the config does not say how many layers there are, the path leaves the
    stack, or a setting depends on the layer's place in a way that the new stack cannot have.
    """
    return stack_config(config, [(config, layer) for layer in path])


def stack_config(
    donor: Mapping[str, Any], path: Sequence[tuple[Mapping[str, Any], int]]
) -> dict[str, Any]:
    """Return the donor's config for a stack of layers that come from (config, layer) pairs.

    Raises as resize_config.
    """
    inner = next((key for key in NESTED if isinstance(donor.get(key), dict)), None)
    if inner is not None and _count_key(donor) is None:
        nested = stack_config(
            donor[inner], [(config.get(inner) or {}, layer) for config, layer in path]
        )
        return {**donor, inner: nested}
    key = _count_key(donor)
    if key is None:
        raise ConfigError(
            f"config.json has none of {', '.join(COUNT_KEYS)}: its layers cannot be rearranged"
        )
    for config, layer in path:
        count = config.get(key)
        if not isinstance(count, int) or not 0 <= layer < count:
            raise ConfigError(f"the layer path leaves the stack: layer {layer} of {count}")
    resized = dict(donor)
    for name, value in donor.items():
        if is_per_layer(name, value, donor[key]):
            entries = [_entry(config, name, layer, key) for config, layer in path]
            resized[name] = "".join(entries) if isinstance(value, str) else entries
    for name in set(donor) & set(_FOLLOW):
        if resized[name] is not None:
            resized[name] = _FOLLOW[name](name, path)
    _refuse_places(donor, path, donor[key])
    resized[key] = len(path)
    return resized


def is_per_layer(name: str, value: Any, count: int) -> bool:
    """Return whether a setting holds one entry for each of `count` layers."""
    if name in _FOLLOW or name in NOT_PER_LAYER or name.endswith("_token_id"):
        return False
    return isinstance(value, (list, str) if name in PATTERNS else list) and len(value) == count


def _count_key(config: Mapping[str, Any]) -> str | None:
    return next((key for key in COUNT_KEYS if isinstance(config.get(key), int)), None)


def _entry(config: Mapping[str, Any], name: str, layer: int, key: str) -> Any:
    value = config.get(name)
    if not isinstance(value, (list, str)) or len(value) != config[key]:
        raise ConfigError(
            f"config.json: {name} has an entry for each layer in one model and none in another"
        )
    return value[layer]


def _chosen(name: str, path: Sequence[tuple[Mapping[str, Any], int]]) -> list[int]:
    """Return the places, in the new stack, of the layers whose numbers a list holds."""
    return [i for i, (config, layer) in enumerate(path) if layer in (config.get(name) or [])]


def _leading(name: str, path: Sequence[tuple[Mapping[str, Any], int]]) -> int:
    """Return how many leading layers of the new stack are of the kind that a setting counts."""
    flags = [layer < (config.get(name) or 0) for config, layer in path]
    if flags != sorted(flags, reverse=True):
        raise ConfigError(
            f"config.json: {name} counts layers from the bottom, and this path puts one of them "
            "above another kind; "
            "no config can say that, choose other layers"
        )
    return sum(flags)


def _expanded(name: str, path: Sequence[tuple[Mapping[str, Any], int]]) -> list[Any]:
    """Return GPT-Neo's [[kinds, repeats], ...] with one entry per layer."""
    kinds = []
    for config, layer in path:
        expanded = [
            kind for kinds_, repeats in config[name] for _ in range(repeats) for kind in kinds_
        ]
        kinds.append([[expanded[layer]], 1])
    return kinds


# Settings that depend on the layer without being a list of one entry per layer.
_FOLLOW: dict[str, Callable[[str, Sequence[tuple[Mapping[str, Any], int]]], Any]] = {
    "mlp_only_layers": _chosen,
    "moe_layers": _chosen,
    "cross_attention_layers": _chosen,
    "attn_layer_indices": _chosen,
    "full_attn_idxs": _chosen,
    "first_k_dense_replace": _leading,
    "num_dense_layers": _leading,
    "attention_types": _expanded,
}


def _refuse_places(
    donor: Mapping[str, Any], path: Sequence[tuple[Mapping[str, Any], int]], count: int
) -> None:
    """Refuse a path whose new layer numbers would change what a layer computes."""
    moved = any(i != layer for i, (_, layer) in enumerate(path))
    if donor.get("model_type") in NUMBERED_TYPES and moved:
        raise ConfigError(
            f"config.json: model_type {donor['model_type']} computes by a layer's number; keep the "
            "layers' order"
        )
    for name in BY_PLACE:
        if donor.get(name) and moved:
            raise ConfigError(
                f"config.json: {name} makes a layer depend on its number; its layers cannot be "
                "rearranged"
            )
    if len(path) != count and any(donor.get(name) for name in BY_COUNT):
        name = next(name for name in BY_COUNT if donor.get(name))
        raise ConfigError(
            f"config.json: {name} makes a layer depend on their number; keep {count} layers"
        )
    for period, offset in PERIODS.items():
        every = donor.get(period)
        if isinstance(every, int) and every > 1 and not donor.get(SPELLED_OUT.get(period, "")):
            shift = donor.get(offset) or 0
            if any(
                (i - shift) % every != (layer - shift) % every for i, (_, layer) in enumerate(path)
            ):
                raise ConfigError(
                    f"config.json: {period} gives every {every}th layer another kind, which this "
                    "path would change; "
                    f"move layers by multiples of {every}"
                )
