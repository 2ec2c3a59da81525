"""Tiny models with tokenizers of their own, and merges of them, for tests of whole recipes."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint
from agent_forge.merge import job as merge_job

TEXT = (
    "The law of the land is the law of all; forty and two are forty-two, and so it was in 1789. "
    "Whoever crosses the river at night carries a lantern, bread, and some patience for the "
    "ferryman's stories. "
) * 40
SPECIAL = ("<end>", "<turn>", "</turn>")
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip


def tokenizer(
    size: int = 320, special: tuple[str, ...] = SPECIAL, text: str = TEXT, **names: str
) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose special tokens have the first ids."""
    built = Tokenizer(BPE())
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    built.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=built, **{"eos_token": special[0], **names})


def put(
    path: Path,
    seed: int,
    kind: str = "llama",
    tokens: PreTrainedTokenizerFast | None = None,
    **settings: Any,
) -> Path:
    """Write a random model with its tokenizer and return its directory."""
    tokens = tokens or tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{"vocab_size": len(tokens), **SIZES, **settings})
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    return path


def recipe(folder: Path, *models: str, method: str = "linear", **changes: Any) -> Path:
    """Write a recipe of models of equal weight and return its file."""
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump({"merge_method": method, "models": entries, **changes}))
    return file


def merge(file: Path, out: str = "out") -> checkpoint.Checkpoint:
    job = merge_job.prepare(file)
    try:
        return merge_job.run(job, file.parent / out)
    finally:
        job.close()


def notes(merged: checkpoint.Checkpoint) -> str:
    return "\n".join(merged.manifest.extra["notes"])


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(directory / "model.safetensors"))


def change_weights(directory: Path, **tensors: torch.Tensor) -> None:
    """Write tensors into a model's file; names are given with __ for dots."""
    new = {name.replace("__", "."): value for name, value in tensors.items()}
    save_file(weights(directory) | new, directory / "model.safetensors", {"format": "pt"})


def read(directory: Path, name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((directory / name).read_text())
    return result


def change(directory: Path, name: str, **entries: Any) -> None:
    """Set entries of a JSON file, which need not be there yet; None takes one out."""
    content = read(directory, name) if (directory / name).exists() else {}
    content = {key: value for key, value in (content | entries).items() if value is not None}
    (directory / name).write_text(json.dumps(content))


def mean(*directories: Path) -> dict[str, torch.Tensor]:
    """Return the plain mean of models."""
    every = [weights(directory) for directory in directories]
    return {name: torch.stack([w[name] for w in every]).mean(0) for name in every[0]}
