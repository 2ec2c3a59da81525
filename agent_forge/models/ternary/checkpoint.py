"""A packed ternary model as a Hugging Face directory that `from_pretrained` opens.

model.safetensors is the packed file of codes and scales (packing.py), with `packed: true` in
quantization_config. On loading, placeholders for bytes replace the layers. When transformers has
filled them they become trainable layers again, with latents that round to exactly the stored codes
and scales. So a loaded model takes the memory of the latents; the compressed checkpoint and
agent_forge.runtime run from the bytes.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge.anatomy.swap import keep_from_initialising, put
from agent_forge.config.ternary import TENSOR
from agent_forge.models.storage import quiet_transformers, refuse_non_finite
from agent_forge.models.ternary.codes import latents_for
from agent_forge.models.ternary.embedding import (
    RoundedEmbedding,
    RoundedHead,
    codes_shape,
    scales_shape,
)
from agent_forge.models.ternary.layer import TernaryLinear
from agent_forge.models.ternary.packing import CODES, SCALES, packed_length, unpack, write_packed


def save_packed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, directory: Path
) -> int:
    """Write the packed model and return the size of model.safetensors in bytes.

    Raises PhaseError on NaN or infinite weights.
    """
    refuse_non_finite(model)
    directory.mkdir(parents=True, exist_ok=True)
    config: Any = copy.deepcopy(model.config)
    config.quantization_config.packed = True
    config.architectures = [type(model).__name__]
    with quiet_transformers():
        config.save_pretrained(directory)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)
    return write_packed(model, directory / "model.safetensors")


class PackedPlaceholder(nn.Module):
    """Holds the bytes of one layer while transformers reads them; the layer then replaces it."""

    bias: nn.Parameter | None
    norm_weight: nn.Parameter | None

    def __init__(self, layer: TernaryLinear | RoundedEmbedding | RoundedHead) -> None:
        super().__init__()
        # The list hides the layer from state_dict, because its weight is not in the file.
        self._layer = [layer]
        rows, width = layer.weight.shape
        if isinstance(layer, TernaryLinear):
            codes = torch.empty(packed_length(rows * width, layer.packing), dtype=torch.uint8)
            groups = -(-width // layer.group_size)
            scales = torch.empty(
                (1, 1) if layer.grouping == TENSOR else (rows, groups), dtype=torch.bfloat16
            )
        else:
            codes = torch.empty(codes_shape(layer.grid, rows, width), dtype=torch.uint8)
            scales = torch.empty(scales_shape(layer.grid, rows, width), dtype=torch.bfloat16)
        self.register_buffer(CODES, codes)
        self.register_buffer(SCALES, scales)
        self.bias = getattr(layer, "bias", None)
        self.norm_weight = getattr(layer, "norm_weight", None)

    def filled(self) -> nn.Module:
        """Return the layer, with latents that round to the bytes."""
        layer = self._layer[0]
        codes, scales = self.get_buffer(CODES), self.get_buffer(SCALES).to(torch.bfloat16)
        shape = (layer.weight.shape[0], layer.weight.shape[1])
        if isinstance(layer, TernaryLinear):
            unpacked = unpack(codes, shape, layer.packing)
            layer.weight = nn.Parameter(
                latents_for(unpacked, scales.expand(shape[0], -1), layer.grouping)
            )
        else:
            layer.take_packed(codes, scales)
        if isinstance(layer, (TernaryLinear, RoundedHead)):
            layer.register_parameter("bias", self.bias)
        if isinstance(layer, TernaryLinear):
            layer.norm_weight = self.norm_weight
        return layer.train(self.training)


def open_placeholders(model: PreTrainedModel) -> None:
    """Replace ternary and rounded layers by placeholders; a tied head waits for its embedding."""
    for name, module in list(model.named_modules()):
        if isinstance(module, RoundedHead) and module.is_tied():
            _forget_tie(model, name)
        elif isinstance(module, (TernaryLinear, RoundedEmbedding, RoundedHead)):
            put(model, name, PackedPlaceholder(module))
            keep_from_initialising(model, [name])


def fill_placeholders(model: PreTrainedModel) -> None:
    """Turn placeholders back into layers, and restore ties."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PackedPlaceholder):
            put(model, name, module.filled())
    for module in list(model.modules()):
        if isinstance(module, RoundedHead) and module.is_tied():
            module.weight = module.tied_to().weight
    ties: dict[str, str] = getattr(model, "_waiting_ties", {})
    model.all_tied_weights_keys = {**(model.all_tied_weights_keys or {}), **ties}


def _forget_tie(model: PreTrainedModel, head: str) -> None:
    """Keep transformers from looking for the head's weight, which is not in the file."""
    ties: dict[str, str] = dict(model.all_tied_weights_keys or {})
    waiting: Any = model
    waiting._waiting_ties = {
        key: value for key, value in ties.items() if key.startswith(f"{head}.")
    }
    model.all_tied_weights_keys = {
        key: value for key, value in ties.items() if key not in waiting._waiting_ties
    }
    layer = model.get_submodule(head)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    del layer._parameters["weight"]
    layer.register_buffer("weight", weight.detach(), persistent=False)
