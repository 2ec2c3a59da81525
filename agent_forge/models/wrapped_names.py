"""Explain unexpected names in a file of weights: most often a wrapper around the model was saved.

Reads names, returns words; used where weights are loaded strictly.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

WRAPPERS = {
    "_orig_mod.": "torch.compile", "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "base_model.model.": "PEFT (an adapter around a model)",
}  # fmt: skip
_PREFIX = re.compile("^(?:" + "|".join(re.escape(prefix) for prefix in WRAPPERS) + ")+")
_ADAPTER = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|modules_to_save)\b"
)
SHOWN = 3


def explained(names: Iterable[str]) -> str:
    """Return the names, shortened, with an explanation and a remedy where they are known."""
    names = sorted(names)
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    if any(_ADAPTER.search(name) for name in names):
        return f"{shown}: these are weights of a LoRA adapter; {MERGE}"
    prefixes = {match.group() for name in names if (match := _PREFIX.match(name))}
    if not prefixes:
        return shown
    prefix = min(prefixes, key=lambda one: (-len(one), one))
    whose = [who for part, who in WRAPPERS.items() if part in prefix]
    return (
        f"{shown}: the prefix '{prefix}' is put there by {' and '.join(whose)}; save "
        "the model inside the wrapper, or take "
        f"'{prefix}' off the names"
    )


MERGE = "name the model that it is for, which it is merged into: forge import ADAPTER --base DIR"


def adapter_in(directory: Path) -> str:
    """Return a message for a directory that holds a LoRA adapter and no model, or ""."""
    adapter = directory / "adapter_config.json"
    weights = [file for file in directory.iterdir() if file.suffix in (".safetensors", ".bin")]
    if not adapter.is_file() or any(not file.name.startswith("adapter_") for file in weights):
        return ""
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path", "")
    except (ValueError, OSError, AttributeError):
        base = ""
    of = f" of '{base}'" if base else ""
    return f"{directory} is an adapter{of} (adapter_config.json), not a model; {MERGE}"
