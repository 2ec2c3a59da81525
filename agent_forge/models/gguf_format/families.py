"""Which tensor of a GGUF file is which parameter of a transformers model, and in which layout.

The names are the gguf package's (`get_tensor_name_map`), which leaves out the layouts. llama.cpp's
llama-like architectures rotate neighbouring pairs of a head where transformers rotates halves;
Gemma's files hold 1 + gain; GPT-2's Conv1D is transposed; GPT-NeoX keeps query, key and value of a
head together; experts have one tensor each for gate, up and down.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Array = NDArray[Any]
Change = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class Family:
    """One model type and the architecture that llama.cpp computes it with."""

    model_type: str
    architecture: str
    # Rows of queries and keys rotate in neighbouring pairs in the file, in halves in transformers.
    paired: bool = False
    norm_shift: float = 0.0  # the file adds this to the gains of norms


FAMILIES = (
    Family("llama", "llama", paired=True),
    Family("mistral", "llama", paired=True),
    Family("mixtral", "llama", paired=True),
    Family("qwen2", "qwen2"),
    Family("qwen3", "qwen3"),
    Family("qwen3_moe", "qwen3moe"),
    Family("gemma2", "gemma2", norm_shift=1.0),
    Family("gemma3_text", "gemma3", norm_shift=1.0),
    Family("phi3", "phi3"),
    Family("smollm3", "smollm3", paired=True),
    Family("olmo2", "olmo2"),
    Family("granite", "granite", paired=True),
    Family("gpt2", "gpt2"),
    Family("gpt_neox", "gptneox"),
)
BY_TYPE: Mapping[str, Family] = {family.model_type: family for family in FAMILIES}


def of_architecture(architecture: str, *, experts: int) -> Family | None:
    """Return the family that a file's architecture is imported as; Mistral's files are Llama's."""
    if architecture == "llama" and experts:
        return BY_TYPE["mixtral"]
    return next((family for family in FAMILIES if family.architecture == architecture), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a file belongs.

    half: which half of the parameter's second dimension it fills; None for the whole.
    """

    parameter: str
    to_file: Change
    from_file: Change
    half: int | None = None


def places(model: "PreTrainedModel", family: Family) -> dict[str, Place]:
    """Return the tensors of a file of this model, by name, in the model's order.

    model: may be on the meta device.

    Raises ConfigError when a parameter has no name in the architecture.
    """
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == family.architecture)
    assert isinstance(arch, MODEL_ARCH)
    config: Any = model.config
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    tensors: dict[str, Place] = {}
    for parameter, value in model.named_parameters():
        experts = re.fullmatch(
            r"model\.layers\.(\d+)\.mlp\.experts\.(gate_up|down)_proj", parameter
        )
        if experts:
            tensors |= _experts(parameter, *experts.groups())
            continue
        name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError(
                f"llama.cpp's architecture {family.architecture} has no place for {parameter} "
                f"{list(value.shape)} of this {family.model_type} model; use --format hf"
            )
        tensors[name] = Place(parameter, *_changes(model, family, parameter, name))
    return tensors


def _experts(parameter: str, layer: str, kind: str) -> dict[str, Place]:
    if kind == "down":
        return {f"blk.{layer}.ffn_down_exps.weight": Place(parameter, _same, _same)}
    halves = {"gate": 0, "up": 1}
    return {
        f"blk.{layer}.ffn_{n}_exps.weight": Place(parameter, _same, _same, half)
        for n, half in halves.items()
    }


def _changes(
    model: "PreTrainedModel", family: Family, parameter: str, name: str
) -> tuple[Change, Change]:
    """Return the functions that turn a parameter's values into the file's, and back."""
    config: Any = model.config
    heads = {
        "attn_q": config.num_attention_heads,
        "attn_k": getattr(config, "num_key_value_heads", 0),
    }
    leaf = name.split(".")[-2]
    if family.paired and leaf in heads:
        count = heads[leaf] or config.num_attention_heads
        return (lambda rows: paired(rows, count)), (lambda rows: halves(rows, count))
    if family.norm_shift and name.endswith("norm.weight"):
        shift = np.float32(family.norm_shift)
        return (lambda gains: gains + shift), (lambda gains: gains - shift)
    if family.model_type == "gpt_neox" and leaf == "attn_qkv":
        count = config.num_attention_heads
        return (lambda rows: _regrouped(rows, count, 3)), (lambda rows: _regrouped(rows, 3, count))
    owner = model.get_submodule(parameter.rpartition(".")[0])
    if type(owner).__name__ == "Conv1D" and parameter.endswith(".weight"):
        return _transposed, _transposed
    return _same, _same


def _same(values: Array) -> Array:
    return values


def _transposed(values: Array) -> Array:
    return np.ascontiguousarray(values.T)


def _regrouped(rows: Array, outer: int, inner: int) -> Array:
    """Return rows (outer * inner * size, ...) with the two outer groupings exchanged."""
    split = rows.reshape(outer, inner, len(rows) // outer // inner, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1).reshape(rows.shape))


def paired(rows: Array, heads: int) -> Array:
    """Interleave the halves of each head's rows (heads * size, ...): 0, size/2, 1, size/2 + 1..."""
    split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def halves(rows: Array, heads: int) -> Array:
    """Undo `paired`."""
    split = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))
