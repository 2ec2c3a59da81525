"""The tensors of a model that a codec can take, by name, and the layers that hold codes already."""

from typing import Any

from torch import Tensor, nn

from agent_forge.models.compressed.layers import Coded
from agent_forge.models.scaled_embedding import scale_of


def coded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a codec can take, each tensor once: weights of linears and embeddings, and other float matrices.

    Names are module names for linears and embeddings and full parameter names for the rest; values are what the forward
    really multiplies with, so a ternary layer gives its ternary weight. An embedding that does more than look rows up and
    scale them is left out, with all that shares its weight.
    """
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if id(module.weight) not in taken and can_be_coded(module):
                ternary: Any = getattr(module, "quantised_weight", None)
                tensors[name] = ternary() if ternary else module.weight.detach()
            taken.add(id(module.weight))
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken and parameter.ndim >= 2 and parameter.is_floating_point():
            tensors[name] = parameter.detach()
    return tensors


def can_be_coded(module: nn.Module) -> bool:
    """Return whether a coded layer computes what this linear or embedding does."""
    return not isinstance(module, nn.Embedding) or scale_of(module) is not None


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Return, for every linear or embedding that shares its weight with an earlier one, the name of that one."""
    first: dict[int, str] = {}
    tied = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            source = first.setdefault(id(module.weight), name)
            if source != name:
                tied[name] = source
    return tied


def as_matrix(tensor: Tensor) -> Tensor:
    """Return a tensor of two or more dimensions as (rows, last dimension)."""
    return tensor.reshape(-1, tensor.shape[-1])


def coded_modules(model: nn.Module) -> dict[str, Coded]:
    """Return the coded layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Coded)}
