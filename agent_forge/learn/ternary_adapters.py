"""Low-rank adapters of ternary layers: B A is added to the latents, which are then rounded.

peft's own layer would add B A x to what the rounded layer computes, and merging into the latents
would make another model of it. Source: LoRA, arXiv:2106.09685, with the product inside the
quantiser, as in LR-QAT, arXiv:2406.06385.
"""

from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor
from torch.func import functional_call

from agent_forge.models.ternary import TernaryLinear


class TernaryAdapter(Linear):
    """A and B of one ternary layer. The layer trained with them is, bit for bit, the merged one."""

    _kept: tuple[tuple[int, ...], Tensor] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # peft sets it for all later layers at the first Conv1D; a ternary layer has rows of outputs.
        self.fan_in_fan_out = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return x (..., in) times the ternary weight of latents plus B A, (..., out)."""
        latents = self._latents() if torch.is_grad_enabled() else self._kept_latents()
        result: Tensor = functional_call(
            self.get_base_layer(), {"weight": latents}, (x, *args), kwargs
        )
        return result

    def _layer(self) -> tuple[TernaryLinear, str]:
        """Return the layer and the name of its adapter."""
        layer = self.get_base_layer()
        assert isinstance(layer, TernaryLinear)
        return layer, self.active_adapters[0]

    def _latents(self) -> Tensor:
        """Return W + alpha / rank * B A, (out, in), computed as peft merges it."""
        layer, name = self._layer()
        with torch.autocast(layer.weight.device.type, enabled=False):
            delta: Tensor = self.get_delta_weight(name)
            return layer.weight + delta.to(layer.weight.dtype)

    def _kept_latents(self) -> Tensor:
        """Return the same without gradients, computed again only where a part has changed.

        The ternary layer recognises weights by their address, so it must not see the address of
        freed ones.
        """
        layer, name = self._layer()
        parts: Any = (layer.weight, self.lora_A[name].weight, self.lora_B[name].weight)
        key = tuple(number for part in parts for number in (part.data_ptr(), part._version))
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._latents())
            layer.train(layer.training)  # drops what it keeps
        return self._kept[1]

    def train(self, mode: bool = True) -> "TernaryAdapter":
        """Set the mode, and drop the kept latents."""
        self._kept = None
        super().train(mode)
        return self


def adapt_ternary(settings: LoraConfig) -> None:
    """Let peft put `TernaryAdapter` on ternary layers, and its own on all others."""
    settings._register_custom_module({TernaryLinear: TernaryAdapter})
