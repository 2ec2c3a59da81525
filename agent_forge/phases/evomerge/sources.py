"""Open the models to merge without loading them; before any work, refuse what does not belong
together.

Reads config.json, tokenizer.json and the headers of the weights; weights stay memory-mapped.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from agent_forge import models
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.core.events import EventLog
from agent_forge.merge import (
    Layers,
    Weights,
    find_layers,
    require_finite,
    require_same_shapes,
    tokenizer_files,
)
from agent_forge.merge.layers import resize_config
from agent_forge.models.storage import stored_tensors

# These say where a file came from and how it was made, not what the model computes.
NOT_COMPARED = (
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range",
    "attention_dropout",
)  # fmt: skip
# Settings in which Cognate specialists differ by design; the merged model keeps the trunk's.
KEPT_FROM_TRUNK = (
    "halting_threshold", "surprise_weight", "novelty_weight", "write_memory", "halting_loss_weight", "entropy_cost",
    "ponder_cost", "read_loss_weight", "write_loss_weight",
)  # fmt: skip


LayerPath = tuple[int, ...] | None  # the layers of a model whose depth is not the trunk's


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForm:
    """What it takes to build models like the trunk, in the dtype and on the device of the search."""

    kind: type[PreTrainedModel]
    config: PretrainedConfig
    generation_config: GenerationConfig | None
    dtype: torch.dtype
    device: torch.device

    def build(self, path: LayerPath, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        """Return a model with random weights, made of the layers `path` (None: all, in order).

        Every per-layer list of the config follows the path. The caller's random state is left
        alone.
        """
        content = self.config.to_dict()
        config = type(self.config).from_dict(
            resize_config(content, path) if path is not None else content
        )
        with torch.random.fork_rng(devices=[]):
            model: PreTrainedModel = self.kind(config)
        if self.generation_config is not None:
            model.generation_config = self.generation_config
        model.to(device=device, dtype=dtype)  # type: ignore[call-arg]
        return model.eval()


@dataclass(slots=True, kw_only=True)
class Sources:
    """The opened models, the trunk first.

    labels: their directories, relative to the directory that holds them all.
    """

    checkpoints: list[Checkpoint]
    labels: list[str]
    weights: dict[str, Weights]
    layers: Layers | None
    form: ModelForm

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype in which the trunk stores most of its numbers."""
        return dominant_dtype(self.weights[self.labels[0]])

    @property
    def dtype_name(self) -> str:
        """Return that dtype as recipes name it."""
        return str(self.dtype).removeprefix("torch.")


def dominant_dtype(weights: Weights) -> torch.dtype:
    """Return the floating point dtype that holds most of a model's numbers."""
    sizes: dict[torch.dtype, int] = {}
    for shape, dtype in weights.forms.values():
        if dtype.is_floating_point:
            sizes[dtype] = sizes.get(dtype, 0) + torch.Size(shape).numel()
    return max(sizes, key=lambda dtype: sizes[dtype])


def check_sources(checkpoints: list[Checkpoint], events: EventLog) -> None:
    """Refuse sources that do not belong together, before any work.

    Raises ConfigError for fewer than two or repeated sources, CheckpointError naming the first
    difference of config, tokenizer, tensor names or shapes, or the first tensor that is not finite.
    """
    paths = [checkpoint.path.resolve() for checkpoint in checkpoints]
    if len(paths) < 2:
        raise ConfigError(
            f"evomerge merges a trunk and at least one model tuned from it, got {len(paths)} source(s); "
            "give sources=[DIR] of the cognate phase, or sources=[TRUNK,MODEL,...]"
        )
    if len(set(paths)) < len(paths):
        raise ConfigError("a source is named twice; name each model once")
    for checkpoint in checkpoints[1:]:
        if checkpoint.manifest.role == "trunk" and checkpoints[0].manifest.role != "trunk":
            raise ConfigError(
                f"{checkpoint.path} is the trunk; put it first in sources, the task vectors start from it"
            )
        _compare_configs(checkpoints[0], checkpoint, events)
        _compare_tokenizers(checkpoints[0], checkpoint)
    weights = [
        Weights.open(c.path, label)
        for label, c in zip(labels_of(checkpoints), checkpoints, strict=True)
    ]
    require_same_shapes(weights)
    require_finite(weights)


def labels_of(checkpoints: list[Checkpoint]) -> list[str]:
    """Return what recipes call the sources.

    These are their directories, relative to the directory that holds them all.
    """
    paths = [checkpoint.path.resolve() for checkpoint in checkpoints]
    parent = Path(os.path.commonpath(paths))
    return [str(path.relative_to(parent)) for path in paths]


def open_sources(
    checkpoints: list[Checkpoint], scratch: Path, device: torch.device, dtype: torch.dtype
) -> Sources:
    """Return the opened models; candidates will be in `dtype` on `device`.

    `check_sources` must have accepted the checkpoints before.
    """
    labels = labels_of(checkpoints)
    trunk = models.load(checkpoints[0])
    form = ModelForm(
        kind=type(trunk),
        config=trunk.config,
        generation_config=trunk.generation_config,
        dtype=dtype,
        device=device,
    )
    weights = {
        label: _weights(c, label, trunk, scratch)
        for label, c in zip(labels, checkpoints, strict=True)
    }
    layers = find_layers(weights[labels[0]].forms)
    return Sources(
        checkpoints=checkpoints, labels=labels, weights=weights, layers=layers, form=form
    )


def _compare_configs(first: Checkpoint, other: Checkpoint, events: EventLog) -> None:
    ours, theirs = (
        json.loads((c.path / "config.json").read_text(encoding="utf-8")) for c in (first, other)
    )
    differing = []
    for name in sorted(set(ours) | set(theirs)):
        if name in NOT_COMPARED or ours.get(name) == theirs.get(name):
            continue
        if name in KEPT_FROM_TRUNK and ours.get("model_type") == "cognate":
            differing.append(name)
            continue
        raise CheckpointError(
            f"{other.path / 'config.json'}: {name} is {theirs.get(name)!r}, in {first.path} it is {ours.get(name)!r}; "
            "only models of one architecture merge"
        )
    if differing:
        events.message(
            f"{other.name} differs in {', '.join(differing)}; the merged model keeps {first.name}'s",
            "sources",
        )


def _compare_tokenizers(first: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = (_tokenizer(checkpoint) for checkpoint in (first, other))
    where = tokenizer_files.difference(ours, theirs)
    if where:
        raise CheckpointError(
            f"the tokenizers of {first.path} and {other.path} differ at {where}; their token ids mean different "
            "things, so the models do not merge"
        )


def _tokenizer(checkpoint: Checkpoint) -> tokenizer_files.TokenizerFiles:
    files = tokenizer_files.read_tokenizer(checkpoint.path)
    if files is None or files.content is None:
        raise CheckpointError(
            f"{checkpoint.path / tokenizer_files.TOKENIZER} is missing; copy the tokenizer of the model there"
        )
    return files


def _weights(checkpoint: Checkpoint, label: str, trunk: PreTrainedModel, scratch: Path) -> Weights:
    """Return a checkpoint's weights, mapped under the names that the model in memory has.

    Where the file has other names (transformers renames some on load), the loaded state is written
    to the phase's scratch and mapped from there.
    """
    names = set(stored_tensors(trunk))
    weights = Weights.open(checkpoint.path, label)
    if names <= set(weights.forms) <= set(trunk.state_dict()):
        return weights.only(names)
    file = scratch / f"source-{checkpoint.id}.safetensors"
    if not file.exists():
        state = stored_tensors(models.load(checkpoint, dtype=dominant_dtype(weights)))
        atomic.write_bytes(file, save({name: value.contiguous() for name, value in state.items()}))
    return Weights.open(file, label)
