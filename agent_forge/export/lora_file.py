"""Write the LoRA adapter that a checkpoint was trained with as a GGUF file for llama.cpp.

Reads adapter/ of the checkpoint, as peft saves it, and its config.json; llama.cpp adds the file to
the GGUF of the base model (`--lora`). Where a family's weights have another row order in
GGUF, B's rows have it too. Source: the adapter entries of llama.cpp's GGUF.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from agent_forge.core.errors import CheckpointError, ConfigError

FOLDER = "adapter"
TYPES = ("F32", "F16")
CLOSE = 1e-5  # rounding of a product of matrices, relative to its largest entry


def write(source: Path, path: Path, kind: str) -> list[str]:
    """Write the file; return lines for the user.

    Raises CheckpointError for a checkpoint without an adapter, ConfigError for another type, for a
    ternary model, and for a layer whose place in GGUF changes more than the order of rows.
    """
    from agent_forge.export import gguf_file
    from agent_forge.models import adapter_files
    from agent_forge.models.gguf_format import families
    from agent_forge.models.skeleton import skeleton

    gguf_file.gguf_writer()  # a missing package is named before anything else
    if kind not in TYPES:
        raise ConfigError(f"an adapter is written as {' or '.join(TYPES)}, got {kind}")
    folder = source / FOLDER
    if not (folder / adapter_files.CONFIG).is_file():
        raise CheckpointError(
            f"{source} has no {FOLDER}/: it was not trained with adapters; bake it with "
            "training.lora_rank=16"
        )
    config = adapter_files.read_config(folder)
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if content.get("quantization_config"):
        raise ConfigError(
            f"{source} is ternary: its adapter is added before weights are rounded, llama.cpp adds "
            "it after; export the merged model instead (--format gguf)"
        )
    family = gguf_file.family_of(content, source)
    places = {
        place.parameter: (name, place)
        for name, place in families.places(skeleton(content), family).items()
    }
    pairs = adapter_files.read_pairs(folder)
    # llama.cpp scales by one alpha / rank of the file.
    ranks = {name: a.shape[0] for name, (a, _) in pairs.items()}
    alpha = _one_alpha(
        [adapter_files.scale(config, name, rank) * rank for name, rank in ranks.items()], folder
    )
    dtype = np.float32 if kind == "F32" else np.float16
    with gguf_file.whole_file(path, family.architecture) as writer:
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", float(alpha))
        for layer, (a, b) in pairs.items():
            name, place = _place(places, f"{layer}.weight", folder)
            first, second = a.float().numpy(), _rows(place, a, b, layer)
            writer.add_tensor(f"{name}.lora_a", first.astype(dtype))
            writer.add_tensor(f"{name}.lora_b", second.astype(dtype))
    return [
        f"an adapter of {len(pairs)} matrices; add it to the base: llama-cli --lora {path.name}"
    ]


def _one_alpha(alphas: list[float], folder: Path) -> float:
    """Return the alpha of all layers. Raises ConfigError where they differ."""
    if any(abs(one - alphas[0]) > CLOSE * alphas[0] for one in alphas):
        raise ConfigError(f"{folder}: layers differ in alpha, and a GGUF adapter has one")
    return alphas[0]


def _place(places: dict[str, Any], parameter: str, folder: Path) -> tuple[str, Any]:
    if parameter not in places:
        raise CheckpointError(f"{folder}: {parameter} has no place in this family's GGUF")
    name, place = places[parameter]
    return name, place


def _rows(place: Any, a: Any, b: Any, layer: str) -> Any:
    """Return B with its rows in the order of the file: (out, rank) float32."""
    first, second = a.float().numpy(), b.float().numpy()
    ordered = place.to_file(second)
    product = place.to_file(second @ first)
    largest = max(float(np.abs(product).max()), 1e-30)
    if (
        place.half is not None
        or ordered.shape != second.shape
        or float(np.abs(ordered @ first - product).max()) > CLOSE * largest
    ):
        raise ConfigError(
            f"{layer}: GGUF stores this layer in another form than an adapter's product; export "
            "the merged model instead (--format gguf)"
        )
    return np.ascontiguousarray(ordered)
