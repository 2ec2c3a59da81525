"""The ternary linear layer: it trains latent floats and computes with codes -1, 0, +1 times scales.

Its forward uses codes times one scale per group of inputs, and int8 activations; gradients pass
straight through to the latents. Source: BitNet b1.58, arXiv:2402.17764; gradual lambda: Hugging
Face's 1.58-bit fine-tuning.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_forge.config.ternary import TENSOR, TernarySettings
from agent_forge.core.errors import PhaseError
from agent_forge.models.conv1d import is_transposed
from agent_forge.models.ternary.codes import (
    group_blocks,
    latents_for,
    quantise_activations,
    straight_through,
    ternary_codes,
    ternary_weight,
)
from agent_forge.models.ternary.packing import packed_length

NORM_EPS = 1e-6


class _FreeScale(torch.autograd.Function):
    """Straight through to the latents; each scale gets its group's gradient times codes, summed.

    The latter is the exact derivative of scale * code. Source: LSQ, arXiv:1902.08153, without its
    term for the borders.
    """

    @staticmethod
    def forward(
        ctx: Any, latents: Tensor, scale: Tensor, weight: Tensor, group_size: int, blend: float
    ) -> Tensor:
        ctx.save_for_backward(scale, weight if blend == 1 else (weight - latents * (1 - blend)))
        ctx.group_size, ctx.blend = group_size, blend
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        scale, weight = ctx.saved_tensors
        gradients = group_blocks(gradient, ctx.group_size)
        weights = group_blocks(weight, ctx.group_size)
        sums = [
            (g * w).sum(-1, dtype=torch.float32) for g, w in zip(gradients, weights, strict=True)
        ]
        of_scale = torch.cat(sums, 1).reshape(-1) / scale.float().where(scale != 0, torch.inf)
        return gradient, of_scale.to(scale.dtype), None, None, None


class TernaryLinear(nn.Linear):
    """A linear layer that computes with ternary weights and trains its latent `weight` (out, in).

    blend: lambda in w + lambda * (ternary - w); 0 is the dense layer on the latents, 1 the ternary
    layer. It is a plain attribute that is not stored, and a loaded layer has 1.
    norm_weight: (in,) or None; the input is divided by its root mean square and multiplied by this
    before everything else.
    weight_scale: normally None, and the scale of a group is mean|latents|. Between `free_scales`
    and `tie_scales` it is a flat parameter, (out * groups,), or (1,) for one scale per tensor. The
    file format cannot hold it.

    Without gradients the ternary weight is cached until the latents change (in place, by optimiser,
    `copy_` or load) or the mode is set. Only a write through `.data` is not noticed.
    """

    norm_weight: nn.Parameter | None
    weight_scale: nn.Parameter | None
    in_place_of_conv1d = False  # whether a plain model holds this weight transposed

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        settings: TernarySettings,
        **factory: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.register_parameter("norm_weight", None)
        self.register_parameter("weight_scale", None)
        self.grouping = settings.group_size
        # Other rooms read this: how many weights of a row share a scale.
        self.group_size = settings.group_size if settings.group_size > 0 else in_features
        self.activation_bits = settings.activation_bits
        self.packing = settings.packing
        self.blend = 1.0
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, settings: TernarySettings) -> "TernaryLinear":
        """Return a ternary layer with the parameters of `linear`; the meta device will do."""
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            settings=settings,
            device="meta",
        )
        layer.weight, layer.bias = linear.weight, linear.bias
        if is_transposed(linear):
            layer.in_place_of_conv1d = True
        return layer.train(linear.training)

    def add_norm(self) -> None:
        """Normalise the input from now on, with gains that start at 1."""
        self.norm_weight = nn.Parameter(torch.ones_like(self.weight[0]))

    def forward(self, input: Tensor) -> Tensor:
        """Return input (..., in) times the ternary weight, (..., out)."""
        input = self.normed(input)
        if self.blend == 0:
            return functional.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return functional.linear(self._rounded_input(input), self._kept_weight(), self.bias)
        with torch.no_grad():
            rounded, weight = (
                self._rounded_input(input),
                self.quantised_weight(self._compute_dtype()),
            )
        rounded = straight_through(input, rounded) if self.activation_bits else input
        if self.weight_scale is None:
            trained = straight_through(self.weight, weight)
        else:
            trained = _FreeScale.apply(
                self.weight, self.weight_scale, weight, self.grouping, self.blend
            )
        return functional.linear(rounded, trained, self.bias)

    @torch.no_grad()
    def free_scales(self, scales: Tensor | None = None) -> None:
        """Turn the scales into a parameter.

        scales: (out, groups) or (1, 1); None takes the scales of the latents.
        """
        start = self.ternary_parts()[1] if scales is None else scales
        start = start[:1] if self.grouping == TENSOR else start
        self.weight_scale = nn.Parameter(start.reshape(-1).to(self.weight, copy=True))
        self._kept = None

    @torch.no_grad()
    def tie_scales(self) -> None:
        """Drop the parameter: move the latents, keeping codes, until scales are mean|latents|."""
        if self.weight_scale is None:
            return
        codes, scales = self.ternary_parts()
        self.weight_scale, self._kept = None, None
        self.weight.copy_(latents_for(codes, scales, self.grouping, near=self.weight))

    def _scales(self) -> Tensor | None:
        """Return the free scales (out, groups) or (1, 1) in bfloat16, or None."""
        if self.weight_scale is None:
            return None
        return self.weight_scale.detach().abs().to(torch.bfloat16).view(self.scales_shape)

    @property
    def scales_shape(self) -> tuple[int, int]:
        """Return the scales' shape in the packed file: (out, groups), or (1, 1) per tensor."""
        if self.grouping == TENSOR:
            return (1, 1)
        return (self.out_features, -(-self.in_features // self.group_size))

    def normed(self, x: Tensor) -> Tensor:
        """Return x (..., in), normalised if this layer has a norm."""
        if self.norm_weight is None:
            return x
        return functional.rms_norm(
            x.float(), x.shape[-1:], self.norm_weight.float(), eps=NORM_EPS
        ).to(x.dtype)

    def _rounded_input(self, x: Tensor) -> Tensor:
        if not self.activation_bits:
            return x
        rounded = quantise_activations(x, self.activation_bits)
        return rounded if self.blend == 1 else torch.lerp(x, rounded, self.blend)

    @torch.no_grad()
    def quantised_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the forward's weight w + lambda * (ternary(w) - w), (out, in).

        dtype: the dtype of the result; None takes the latents'.
        """
        if self.blend == 1:
            return ternary_weight(self.weight, self.grouping, dtype, self._scales())
        ternary = ternary_weight(self.weight, self.grouping, None, self._scales())
        return torch.lerp(self.weight, ternary, self.blend).to(dtype or self.weight.dtype)

    def _compute_dtype(self) -> torch.dtype:
        """Return the dtype of products, in which the weight is built at once.

        Ternary weights are exact in bfloat16, and autocast would convert them a second time.
        """
        device = self.weight.device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.weight.dtype

    def ternary_parts(self) -> tuple[Tensor, Tensor]:
        """Return codes (out, in) int8 and scales (out, groups) bfloat16."""
        return ternary_codes(self.weight.detach(), self.grouping, self._scales())

    def packed_bytes(self) -> int:
        """Return the size of codes, bfloat16 scales and gains in the packed file, without bias."""
        rows, groups = self.scales_shape
        norm = self.norm_weight
        gains = 0 if norm is None else norm.numel() * norm.element_size()
        return packed_length(self.weight.numel(), self.packing) + 2 * rows * groups + gains

    def _kept_weight(self) -> Tensor:
        weight = self.weight
        free = self.weight_scale._version if self.weight_scale is not None else None
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device, self.blend, free)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.quantised_weight())
        return self._kept[1]

    def train(self, mode: bool = True) -> "TernaryLinear":
        """Set the mode, and drop the cached ternary weight."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        """Add the group size and activation bits to the printed form."""
        return (
            f"{super().extra_repr()}, group_size={self.grouping}, "
            f"activation_bits={self.activation_bits}"
        )


def refuse_norm(layer: nn.Module, what: str) -> None:
    """Raise PhaseError when a layer normalises its input, which `what` cannot hold."""
    if getattr(layer, "norm_weight", None) is not None:
        raise PhaseError(
            f"{what} cannot hold layers that normalise their input; make the model "
            "ternary with linear.sub_norm=[]"
        )
