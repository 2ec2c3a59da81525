"""Put ternary layers and rounded embeddings into a model in place, and list those in a model."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from agent_forge.anatomy.swap import put
from agent_forge.config.ternary import TernarySettings
from agent_forge.core.errors import PhaseError
from agent_forge.models.conv1d import TransposedLinear
from agent_forge.models.scaled_embedding import scale_of
from agent_forge.models.ternary.embedding import RoundedEmbedding, RoundedHead
from agent_forge.models.ternary.layer import TernaryLinear


def ternary_layers(model: nn.Module) -> dict[str, TernaryLinear]:
    """Return the ternary layers of a model by name, each once."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, TernaryLinear)
    }


def rounded_embeddings(model: nn.Module) -> dict[str, RoundedEmbedding | RoundedHead]:
    """Return the rounded embedding and head by name, each weight once."""
    rounded: dict[str, RoundedEmbedding | RoundedHead] = {}
    for name, module in model.named_modules():
        if isinstance(module, RoundedEmbedding) or (
            isinstance(module, RoundedHead) and not module.is_tied()
        ):
            rounded[name] = module
    return rounded


def set_blend(model: nn.Module, blend: float) -> None:
    """Set lambda of every ternary layer: 0 is dense, 1 is ternary."""
    for layer in ternary_layers(model).values():
        layer.blend = blend


def install_layers(model: PreTrainedModel, settings: TernarySettings) -> list[str]:
    """Replace linears by ternary layers, and embeddings by rounded ones if set; return the names.

    Only the linears are named.
    """
    new: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        inputs = input_width(module)
        if inputs is None or inputs < settings.group_size or is_skipped(name, settings.skip):
            continue
        if id(module) not in new:
            linear = TransposedLinear.of(module) if isinstance(module, Conv1D) else module
            assert isinstance(linear, nn.Linear)
            layer = TernaryLinear.from_linear(linear, settings)
            if is_skipped(name, settings.sub_norm):
                layer.add_norm()
            new[id(module)] = layer
            names.append(name)
        put(model, name, new[id(module)])
    if settings.embedding_grid():
        install_embeddings(model, settings)
    return names


def input_width(module: nn.Module) -> int | None:
    """Return the inputs of a layer that can become ternary, or None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.nx)
    return module.in_features if type(module) in (nn.Linear, TransposedLinear) else None  # type: ignore[return-value]


def install_embeddings(model: PreTrainedModel, settings: TernarySettings) -> None:
    """Replace the token embedding and the head by rounded layers."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    rounded: RoundedEmbedding | None = None
    tied = bool(getattr(model, "all_tied_weights_keys", None)) and head is not None
    factor = scale_of(table)
    if factor is None:
        raise PhaseError(
            f"{type(model).__name__}'s {type(table).__name__} does more than look rows "
            "up, so it cannot be rounded; set "
            "linear.embedding_bits=0"
        )
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is table and isinstance(module, nn.Embedding):
            if rounded is None:
                rounded = RoundedEmbedding(
                    module.num_embeddings, module.embedding_dim, device="meta"
                )
                rounded.row_factor = factor
                rounded.padding_idx, rounded.weight = module.padding_idx, module.weight
                rounded.set_grid(settings.embedding_grid())
            put(model, name, rounded)
    for name, module in list(model.named_modules()):
        if module is head and type(module) in (nn.Linear, RoundedHead):
            layer = RoundedHead(
                module.in_features, module.out_features, module.bias is not None, device="meta"
            )
            layer.weight, layer.bias = module.weight, module.bias
            layer.set_grid(settings.embedding_grid(), rounded if tied else None)
            put(model, name, layer)


def is_skipped(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern (* ? [..]) matches the whole dotted name or one of its parts."""
    return any(
        fnmatchcase(part, pattern) for pattern in patterns for part in (name, *name.split("."))
    )
