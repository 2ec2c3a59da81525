"""Put a module in another's place, and tell transformers what it must know of that.

Used while a model is built, loaded or changed; reads and writes modules in memory.
"""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds what a dotted name names, and the last part of the name."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place that a dotted name names."""
    owner, leaf = owner_of(model, name)
    setattr(owner, leaf, module)


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new`, in the mode of `old`, in every place where `old` stands."""
    new.train(old.training)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, new)


def own_config(model: PreTrainedModel) -> Any:
    """Give the model a config of its own and return it; the one it has may belong to others too."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own  # type: ignore[assignment]
    return own


def keep_from_initialising(model: nn.Module, names: Iterable[str]) -> None:
    """Mark the parents of the modules named as initialised.

    Some parents set the `weight` of their children, which a module in another's place may lack.
    """
    for name in names:
        parent: Any = owner_of(model, name)[0]
        parent._is_hf_initialized = True
