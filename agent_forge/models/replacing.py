"""What transformers must know of modules that stand in others' places while it loads: their parents start nothing anew."""

from collections.abc import Iterable
from typing import Any

from torch import nn


def keep_from_initialising(model: nn.Module, names: Iterable[str]) -> None:
    """Mark the parents of the modules named as initialised: some set their children's `weight`, which these may not have."""
    for name in names:
        parent: Any = model.get_submodule(name.rpartition(".")[0])
        parent._is_hf_initialized = True
