"""Find the stack of layers in tensor names, and resize a config's per-layer lists when the stack changes."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_forge.core.errors import ConfigError

_NUMBERED = re.compile(r"^(.*?\.)?(\d+)\.(.+)$")
COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Lists that may happen to be as long as the stack without being per layer.
NOT_PER_LAYER = ("architectures",)


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
    """Return the numbered stack that holds the most tensors, or None when nothing is numbered 0, 1, 2, ..."""
    found: dict[str, list[int]] = defaultdict(list)
    for name in names:
        match = _NUMBERED.match(name)
        if match:
            found[match[1] or ""].append(int(match[2]))
    stacks = [
        (len(numbers), prefix, max(numbers) + 1)
        for prefix, numbers in found.items()
        if set(numbers) == set(range(max(numbers) + 1))
    ]
    if not stacks:
        return None
    _, prefix, count = max(stacks)
    return Layers(prefix, count)


def before_layers(name: str) -> bool:
    """Say whether a tensor outside the stack belongs to its input side (embeddings) rather than its output side."""
    return any(part in name for part in ("embed", "wte", "wpe"))


def resize_config(config: Mapping[str, Any], path: Sequence[int]) -> dict[str, Any]:
    """Return a config for a stack made of the layers `path` of the old one: the count and every per-layer list follow.

    Raises ConfigError when the config does not say how many layers there are, or the path leaves the stack.
    """
    key = next((key for key in COUNT_KEYS if isinstance(config.get(key), int)), None)
    if key is None:
        raise ConfigError(f"config.json has none of {', '.join(COUNT_KEYS)}: its layers cannot be rearranged")
    count = config[key]
    if any(not 0 <= layer < count for layer in path):
        raise ConfigError(f"the layer path {list(path)} leaves the stack of {count} layers")
    resized = dict(config)
    resized[key] = len(path)
    for name, value in config.items():
        if (
            isinstance(value, list)
            and len(value) == count
            and name not in NOT_PER_LAYER
            and not name.endswith("_token_id")
        ):
            resized[name] = [value[layer] for layer in path]
    return resized
