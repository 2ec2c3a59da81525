"""Write a checkpoint as a plain Hugging Face folder: dense weights, no quantiser, no manifest.

A Llama-family model opens there with transformers alone. A model type of our own (cognate, the
thought wrapper) still needs this package installed, and the card says so.
"""

from pathlib import Path
from typing import Any

from agent_forge.core.errors import ConfigError, did_you_mean

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
OWN_TYPES = ("cognate", "thought")


def write(source: Path, out: Path, kind: str) -> list[str]:
    """Write the folder; return lines to tell the user. Raises ConfigError for an unknown type."""
    if kind not in DTYPES:
        raise ConfigError(
            f"no type '{kind}' for hf{did_you_mean(kind, DTYPES)}; known: {', '.join(DTYPES)}"
        )
    import torch

    from agent_forge import models
    from agent_forge.checkpoint import atomic
    from agent_forge.export import source as sources

    (model, notes), tokenizer = sources.load(source, can_think=True), models.load_tokenizer(source)
    rounding = activation_bits(model)
    plain = dense(model).to(getattr(torch, DTYPES[kind]))
    atomic.write_directory(out, lambda directory: models.save(plain, tokenizer, directory))
    lines = [*notes, f"dense {DTYPES[kind]} weights, {plain.num_parameters():,} parameters"]
    if rounding:
        lines.append(
            f"activations are no longer rounded to {rounding} bits: a plain linear layer "
            "does not do that"
        )
    if plain.config.model_type in OWN_TYPES:
        lines.append(
            f"model type {plain.config.model_type} opens where agent-forge is installed "
            "(import agent_forge)"
        )
    return lines


def activation_bits(model: Any) -> int:
    """Return the bits to which layers of the model round their inputs; 0 where none does."""
    return max(
        (int(getattr(module, "activation_bits", 0) or 0) for module in model.modules()), default=0
    )


def dense(model: Any) -> Any:
    """Return a copy with plain layers that hold the weights which the model multiplies with."""
    import torch
    from transformers import AutoModelForCausalLM

    from agent_forge.export.source import plain_value

    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(
        type(model.config).from_dict(settings), dtype=torch.float32
    )
    with torch.no_grad():
        for name, value in plain.state_dict().items():
            value.copy_(plain_value(model, name))
    return plain.eval()
