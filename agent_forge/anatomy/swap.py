"""Replace a module by another, and keep transformers from initialising it again.

Used while a model is built, loaded or changed; reads and writes modules in memory.
"""

import copy
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel


def owner_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Return the module that holds the attribute of a dotted name, and the attribute's name."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Set `module` as the submodule with a dotted name."""
    owner, leaf = owner_of(model, name)
    setattr(owner, leaf, module)


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace `old` by `new`, in the mode of `old`, wherever it is a child."""
    new.train(old.training)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, new)


def own_config(model: PreTrainedModel) -> Any:
    """Give the model a copy of its config and return it; the old one may belong to others too."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own  # type: ignore[assignment]
    return own


def keep_from_initialising(model: nn.Module, names: Iterable[str]) -> None:
    """Mark the parents of the named modules as initialised.

    Some parents set the `weight` of their children, which a replacement may not have.
    """
    for name in names:
        parent: Any = owner_of(model, name)[0]
        parent._is_hf_initialized = True
