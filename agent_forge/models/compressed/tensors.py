"""The tensors of a model that a codec accepts, by name, and the layers that hold codes already."""

from typing import Any

from torch import Tensor, nn

from agent_forge.models.compressed.layers import Coded
from agent_forge.models.scaled_embedding import scale_of


def coded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that a codec accepts, each once: linears, embeddings, other float
    matrices.

    Linears and embeddings have the names of their modules, and the rest full names of parameters.
    Values are the weights that the forward multiplies with, so a ternary layer gives its ternary
    weight. An embedding that does more than look rows up and scale them is left out, together with
    modules that share its weight.
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
    """Return whether a coded layer can replace this linear or embedding."""
    return not isinstance(module, nn.Embedding) or scale_of(module) is not None


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Return name -> earlier name for linears and embeddings that share an earlier one's weight."""
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
