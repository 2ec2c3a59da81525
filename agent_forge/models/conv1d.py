"""Turn GPT-2's Conv1D, whose weight is stored as (in, out), into an ordinary linear layer.

Quantisers only know `nn.Linear`. A layer that replaces a Conv1D is marked (`in_place_of_conv1d`),
so that an export can transpose its weight again.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from agent_forge.anatomy.swap import put

MARK = "in_place_of_conv1d"


class TransposedLinear(nn.Linear):
    """A linear layer that replaces a Conv1D. weight: (out, in)."""

    in_place_of_conv1d = True

    @classmethod
    def of(cls, layer: Conv1D) -> "TransposedLinear":
        """Return a linear layer that computes the same.

        The weight is a copy, the bias is shared.
        """
        linear = cls(layer.nx, layer.nf, device="meta")
        linear.weight = nn.Parameter(
            layer.weight.detach().T.contiguous(), requires_grad=layer.weight.requires_grad
        )
        linear.bias = layer.bias
        return linear.train(layer.training)

    def back(self) -> Conv1D:
        """Return a Conv1D that computes the same as this layer."""
        with torch.device("meta"):
            layer = Conv1D(self.out_features, self.in_features)
        layer.weight = nn.Parameter(
            self.weight.detach().T.contiguous(), requires_grad=self.weight.requires_grad
        )
        layer.bias = self.bias
        return layer.train(self.training)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a layer replaces a Conv1D, whose weight is stored the other way round."""
    return bool(getattr(module, MARK, False))


def unfold(model: nn.Module) -> list[str]:
    """Replace every Conv1D of a model by a linear layer, in place; return their names."""
    return _exchange(model, Conv1D, TransposedLinear.of)


def fold(model: nn.Module) -> list[str]:
    """Turn the remaining linear layers of `unfold` back into Conv1D in place.

    Return their names.
    """
    return _exchange(model, TransposedLinear, lambda layer: layer.back())


def _exchange(model: nn.Module, kind: type[nn.Module], change: Any) -> list[str]:
    names = [name for name, module in model.named_modules() if type(module) is kind]
    for name in names:
        put(model, name, change(model.get_submodule(name)))
    return names
