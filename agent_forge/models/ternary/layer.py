"""The ternary linear layer: a latent float weight that computes as codes -1, 0, +1 times scales.

Its forward uses the codes times one scale per group of inputs, and int8 activations; gradients pass straight through to
the latents. Source: BitNet b1.58, arXiv:2402.17764; gradual lambda: Hugging Face's 1.58-bit fine-tuning.
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
    """Straight through to the latents, and to each scale what its group's gradient sums to against the codes.

    The second is the exact derivative of scale * code. Source: LSQ, arXiv:1902.08153, without its part for the borders.
    """

    @staticmethod
    def forward(ctx: Any, latents: Tensor, scale: Tensor, weight: Tensor, group_size: int, blend: float) -> Tensor:
        ctx.save_for_backward(scale, weight if blend == 1 else (weight - latents * (1 - blend)))
        ctx.group_size, ctx.blend = group_size, blend
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        scale, weight = ctx.saved_tensors
        sums = [(g * w).sum(-1, dtype=torch.float32) for g, w in
                zip(group_blocks(gradient, ctx.group_size), group_blocks(weight, ctx.group_size), strict=True)]  # fmt: skip
        of_scale = torch.cat(sums, 1).reshape(-1) / scale.float().where(scale != 0, torch.inf)
        return gradient, of_scale.to(scale.dtype), None, None, None


class TernaryLinear(nn.Linear):
    """A linear layer that computes with ternary weights and trains its latent `weight` (out, in).

    blend (lambda): 0 is the dense layer on the latents, 1 the ternary layer, between them w + lambda * (ternary - w).
    A plain attribute: it is not stored, and a loaded layer has 1. norm_weight (in,), where there is one: the input is
    divided by its root mean square and multiplied by it before all else. Without gradients the ternary weight is cached
    until the latents change (in place, by optimiser, `copy_` or load) or the mode is set; only a write through `.data`
    goes unseen.

    weight_scale: normally None, and the scale of a group is mean|latents|. While `free_scales` holds it is a parameter of
    its own, flat: (out * groups,), or (1,) for one per tensor; the file format has no place for it, `tie_scales` ends it.
    """

    norm_weight: nn.Parameter | None
    weight_scale: nn.Parameter | None
    in_place_of_conv1d = False  # whether a plain model holds this weight transposed

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, settings: TernarySettings, **factory: Any
    ) -> None:
        super().__init__(in_features, out_features, bias, **factory)
        self.register_parameter("norm_weight", None)
        self.register_parameter("weight_scale", None)
        self.grouping = settings.group_size
        # How many weights of a row share a scale, for other rooms.
        self.group_size = settings.group_size if settings.group_size > 0 else in_features
        self.activation_bits = settings.activation_bits
        self.packing = settings.packing
        self.blend = 1.0
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, settings: TernarySettings) -> "TernaryLinear":
        """Return a ternary layer that shares the parameters of `linear` (which may be on the meta device)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, settings=settings, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        if is_transposed(linear):
            layer.in_place_of_conv1d = True
        return layer.train(linear.training)

    def add_norm(self) -> None:
        """Normalise the input from now on, with gains of 1."""
        self.norm_weight = nn.Parameter(torch.ones_like(self.weight[0]))

    def forward(self, input: Tensor) -> Tensor:
        """Return input (..., in) times the ternary weight: (..., out)."""
        input = self.normed(input)
        if self.blend == 0:
            return functional.linear(input, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return functional.linear(self._rounded_input(input), self._kept_weight(), self.bias)
        with torch.no_grad():
            rounded, weight = self._rounded_input(input), self.quantised_weight(self._compute_dtype())
        rounded = straight_through(input, rounded) if self.activation_bits else input
        if self.weight_scale is None:
            trained = straight_through(self.weight, weight)
        else:
            trained = _FreeScale.apply(self.weight, self.weight_scale, weight, self.grouping, self.blend)
        return functional.linear(rounded, trained, self.bias)

    @torch.no_grad()
    def free_scales(self, scales: Tensor | None = None) -> None:
        """Make the scales parameters. scales: (out, groups) or (1, 1); None takes the scales of the latents."""
        start = self.ternary_parts()[1] if scales is None else scales
        start = start[:1] if self.grouping == TENSOR else start
        self.weight_scale = nn.Parameter(start.reshape(-1).to(self.weight, copy=True))
        self._kept = None

    @torch.no_grad()
    def tie_scales(self) -> None:
        """Move the latents until mean|latents| is each scale, keeping every code, and have no parameter for it any more."""
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
        """Return the shape of scales as the packed file has them: (out, groups), or (1, 1) for one per tensor."""
        return (1, 1) if self.grouping == TENSOR else (self.out_features, -(-self.in_features // self.group_size))

    def normed(self, x: Tensor) -> Tensor:
        """Return x (..., in) normalised, where this layer does so."""
        if self.norm_weight is None:
            return x
        return functional.rms_norm(x.float(), x.shape[-1:], self.norm_weight.float(), eps=NORM_EPS).to(x.dtype)

    def _rounded_input(self, x: Tensor) -> Tensor:
        if not self.activation_bits:
            return x
        rounded = quantise_activations(x, self.activation_bits)
        return rounded if self.blend == 1 else torch.lerp(x, rounded, self.blend)

    @torch.no_grad()
    def quantised_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return what the forward multiplies with: w + lambda * (ternary(w) - w), (out, in), in `dtype` or the latents'."""
        if self.blend == 1:
            return ternary_weight(self.weight, self.grouping, dtype, self._scales())
        ternary = ternary_weight(self.weight, self.grouping, None, self._scales())
        return torch.lerp(self.weight, ternary, self.blend).to(dtype or self.weight.dtype)

    def _compute_dtype(self) -> torch.dtype:
        """Return the dtype of products. Ternary weights are exact in bfloat16; autocast would convert them twice."""
        device = self.weight.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.weight.dtype

    def ternary_parts(self) -> tuple[Tensor, Tensor]:
        """Return codes (out, in) int8 and scales (out, groups) bfloat16."""
        return ternary_codes(self.weight.detach(), self.grouping, self._scales())

    def packed_bytes(self) -> int:
        """Return the bytes of codes, bfloat16 scales and gains in the packed file; the bias is not among them."""
        scales = 1 if self.grouping == TENSOR else self.out_features * -(-self.in_features // self.group_size)
        gains = 0 if self.norm_weight is None else self.norm_weight.numel() * self.norm_weight.element_size()
        return packed_length(self.weight.numel(), self.packing) + 2 * scales + gains

    def _kept_weight(self) -> Tensor:
        weight = self.weight
        free = self.weight_scale._version if self.weight_scale is not None else None
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device, self.blend, free)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self.quantised_weight())
        return self._kept[1]

    def train(self, mode: bool = True) -> "TernaryLinear":
        """Set the mode, and forget the kept ternary weight."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def extra_repr(self) -> str:
        """Add the group size and activation bits to the printed form."""
        return f"{super().extra_repr()}, group_size={self.grouping}, activation_bits={self.activation_bits}"


def refuse_norm(layer: nn.Module, what: str) -> None:
    """Raise PhaseError when a layer normalises its input and `what` has no place for that."""
    if getattr(layer, "norm_weight", None) is not None:
        raise PhaseError(
            f"{what} cannot hold layers that normalise their input; make the model ternary with linear.sub_norm=[]"
        )
