"""Linear layers with trainable ternary weights (1.58 bit), and the quantiser that lets transformers load them.

A `TernaryLinear` keeps a latent float `weight`. Its forward uses codes -1, 0, +1 times one scale a group of 128
inputs, and int8 activations; gradients pass straight through to the latents. `ternarise` puts them into any causal LM
and notes that in config.json (`quantization_config`), so `AutoModelForCausalLM.from_pretrained` builds the same layers
again. Source: BitNet b1.58, arXiv:2402.17764; gradual lambda: Hugging Face's 1.58-bit fine-tuning.

Departures: one scale a group instead of a tensor (outliers stay local); scales are rounded to bfloat16 in the forward
too, so that the packed file computes exactly what was trained. SubLN is a
setting, and off: the parent was trained without it.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.models.conv1d import TransposedLinear, is_transposed
from agent_forge.models.scaled_embedding import scale_of
from agent_forge.models.ternary.embedding import Grid, RoundedEmbedding, RoundedHead
from agent_forge.models.ternary.packing import multiply_out, packed_length, packing_named
from agent_forge.models.ternary.straight import straight_through

METHOD = "forge_ternary"
ROW, TENSOR = 0, -1  # group sizes that stand for one scale a row and one a tensor
NORM_EPS = 1e-6
# Latents made for given codes keep this distance from the rounding border, in units of the scale.
_MARGIN = 0.02


@dataclass(slots=True, kw_only=True)
class TernarySettings:
    """How linears become ternary. skip: patterns of module names, or of one part of a dotted name, that stay float."""

    group_size: int  # inputs that share one scale, the last group may be smaller; 0: a whole row, -1: the whole tensor
    activation_bits: int  # of activations, per token by absmax; 0 leaves them float
    packing: str  # five_trits or two_bit
    skip: list[str]
    embedding_bits: int = 0  # of embeddings and head: 8, 4, or 0 for float
    embedding_group: int = 0  # columns of an embedding row that share one step; 0: the whole row
    embedding_vector: int = 0  # columns of an embedding row that one of 256 codewords stands for; 0: integers, or float
    sub_norm: list[str] = field(default_factory=list)  # patterns of layers that normalise their input first (SubLN)

    def __post_init__(self) -> None:
        if not isinstance(self.group_size, int) or self.group_size < TENSOR:
            raise ConfigError(
                f"group_size must be a whole number from 1, 0 (a row) or -1 (a tensor), got {self.group_size}; "
                "try group_size=128"
            )
        self.embedding_grid()
        if self.activation_bits != 0 and not 2 <= self.activation_bits <= 16:
            raise ConfigError(f"activation_bits must be 0 (off) or 2 to 16, got {self.activation_bits}; try 8")
        packing_named(self.packing)

    def embedding_grid(self) -> Grid:
        """Return where the weights of embedding and head may lie."""
        return Grid(self.embedding_bits, self.embedding_group, self.embedding_vector)


def _blocks(weight: Tensor, group_size: int) -> Iterator[Tensor]:
    """Yield (out, groups, size) views of weight (out, in): whole groups first, then the ragged last one.

    With one scale a tensor there is one block (1, 1, out * in).
    """
    if group_size == TENSOR:
        yield weight.reshape(1, 1, -1)
        return
    group_size = group_size or weight.shape[1]
    whole = weight.shape[1] // group_size * group_size
    if whole:
        yield weight[:, :whole].view(weight.shape[0], -1, group_size)
    if whole < weight.shape[1]:
        yield weight[:, whole:].unsqueeze(1)


def _scale_blocks(scales: Tensor | None, weight: Tensor, group_size: int) -> Iterator[Tensor | None]:
    """Yield (out, groups, 1) float32 of given scales (out, groups) for each of `_blocks`, or None for each."""
    if scales is None or group_size == TENSOR:
        yield from [None if scales is None else scales[:1, :1].float().unsqueeze(-1)] * 2
        return
    whole = weight.shape[1] // (group_size or weight.shape[1])
    for part in (scales[:, :whole], scales[:, whole:]):
        if part.numel():
            yield part.float().unsqueeze(-1)


def ternary_weight(
    weight: Tensor, group_size: int, dtype: torch.dtype | None = None, scales: Tensor | None = None
) -> Tensor:
    """Return the ternary weight of latents (out, in): sign * scale, or 0 where |w| is at most half of it.

    scales: (out, groups) bfloat16, or (1, 1) for one a tensor; None is mean|W| of the group, rounded to bfloat16. dtype: of
    the result; None takes that of the latents. Training does this at every step: every pass but one is in place.
    """
    parts = []
    for block, given in zip(_blocks(weight, group_size), _scale_blocks(scales, weight, group_size), strict=False):
        result = block.abs()
        scale = result.mean(-1, keepdim=True, dtype=torch.float32) if given is None else given
        result.gt_(scale * 0.5).mul_(scale.to(torch.bfloat16).to(weight.dtype)).copysign_(block)
        parts.append(result.view(len(weight), -1).to(dtype or weight.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def ternary_codes(weight: Tensor, group_size: int, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return codes (out, in) int8 and scales (out, groups) bfloat16 of latents; their product is `ternary_weight`.

    scales: as there. The one scale of a tensor stands in every row.
    """
    codes, found = [], []
    for block, given in zip(_blocks(weight, group_size), _scale_blocks(scales, weight, group_size), strict=False):
        magnitude = block.abs()
        scale = magnitude.mean(-1, keepdim=True, dtype=torch.float32) if given is None else given
        codes.append((block.sign() * (magnitude > scale * 0.5)).to(torch.int8).view(len(weight), -1))
        found.append(scale.squeeze(-1).to(torch.bfloat16).expand(len(weight), -1).contiguous())
    return torch.cat(codes, dim=1), torch.cat(found, dim=1)


def cells_for(codes: Tensor, scales: Tensor, group_size: int, near: Tensor) -> Tensor:
    """Return float32 latents (out, in) that round to these codes with these scales, as near to `near` as that allows.

    For layers whose scales are parameters. scales: (out, groups), or (1, 1) for one a tensor.
    """
    scale = multiply_out(torch.ones_like(codes), scales, group_size)
    border, margin = scale * 0.5, scale * _MARGIN
    size, kept = near.float().abs(), codes != 0
    beyond = codes * size.masked_fill(near.sign() != codes, 0.0).maximum(border + margin)
    return torch.where(kept, beyond, torch.copysign(size.minimum(border - margin), near))


def latents_for(codes: Tensor, scales: Tensor, group_size: int, near: Tensor | None = None) -> Tensor:
    """Return float32 latents (out, in) whose codes and scales are exactly these, near to `near`.

    Within a group the values keep their order: what stands beyond the border s / 2 is stretched until mean|W| is s.
    """
    near = multiply_out(codes, scales, group_size) if near is None else near.float()
    parts = []
    scales = scales[:1] if group_size == TENSOR else scales
    for i, (block, code) in enumerate(zip(_blocks(near, group_size), _blocks(codes, group_size), strict=True)):
        # A second block is the ragged last group, after all whole ones.
        first = near.shape[1] // group_size if i else 0
        scale = scales[:, first : first + block.shape[1]].float().unsqueeze(-1)
        border, margin = scale * 0.5, scale * _MARGIN
        kept = code != 0
        zeros = torch.minimum(block.abs(), border - margin) * ~kept
        beyond = (block.abs() - border).clamp_min(0).maximum(margin) * kept
        wanted = scale * block.shape[-1] - border * kept.sum(-1, keepdim=True) - zeros.sum(-1, keepdim=True)
        stretched = beyond * (wanted / beyond.sum(-1, keepdim=True).clamp_min(1e-30))
        # A group without any code but 0 can only have the scale 0.
        latents = torch.where(kept, code * (border + stretched), torch.copysign(zeros, block))
        parts.append(torch.where(kept.any(-1, keepdim=True), latents, 0.0).view(len(near), -1))
    return torch.cat(parts, dim=1)


def quantise_activations(x: Tensor, bits: int) -> Tensor:
    """Round x (..., in) to the integers of `bits` bits times absmax / (2^(bits-1) - 1) of each token."""
    top = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-5) / top
    return (x / step).round_().mul_(step)


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
                zip(_blocks(gradient, ctx.group_size), _blocks(weight, ctx.group_size), strict=True)]  # fmt: skip
        of_scale = torch.cat(sums, 1).reshape(-1) / scale.float().where(scale != 0, torch.inf)
        return gradient, of_scale.to(scale.dtype), None, None, None


class TernaryLinear(nn.Linear):
    """A linear layer that computes with ternary weights and trains its latent `weight` (out, in).

    blend (lambda): 0 is the dense layer on the latents, 1 the ternary layer, between them w + lambda * (ternary - w).
    A plain attribute: it is not stored, and a loaded layer has 1. norm_weight (in,), where there is one: the input is
    divided by its root mean square and multiplied by it before all else. Without gradients the ternary weight is kept until
    the latents change (in place, by optimiser, `copy_` or load) or the mode is set; only a write through `.data` goes
    unseen.

    weight_scale: normally None, and the scale of a group is mean|latents|. While `free_scales` holds it is a parameter of
    its own, flat: (out * groups,), or (1,) for one a tensor; the file format has no place for it, `tie_scales` ends it.
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
        # Whoever wants to know which weights of a row share a scale.
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
        """Make the scales parameters. scales: (out, groups) or (1, 1); None takes those of the latents."""
        found = self.ternary_parts()[1] if scales is None else scales
        found = found[:1] if self.grouping == TENSOR else found
        self.weight_scale = nn.Parameter(found.reshape(-1).to(self.weight, copy=True))
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
        """Return the shape of scales as the packed file has them: (out, groups), or (1, 1) for one a tensor."""
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


def ternarise(model: PreTrainedModel, settings: TernarySettings) -> list[str]:
    """Replace the linears of a causal LM by ternary ones in place and note it in its config; return their names.

    The output embedding stays float, and so does everything tied to it. Raises PhaseError when the model is ternary
    already or has nothing to replace.
    """
    already = sum(isinstance(module, TernaryLinear) for module in model.modules())
    if already:
        raise PhaseError(f"the model is ternary already ({already} layers); take a float model as the source")
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if module is head and head is not None]
    settings = replace(
        settings, skip=[*settings.skip, *(name for name in heads if not is_skipped(name, settings.skip))]
    )
    names = _replace(model, settings)
    if not names:
        sizes = sorted({size for module in model.modules() if (size := _inputs(module)) is not None})
        raise PhaseError(
            f"{type(model).__name__} has nothing to make ternary: looked for linear layers with at least group_size="
            f"{settings.group_size} inputs outside skip={settings.skip}; its linear layers have {sizes or 'no'} "
            "inputs. Lower the group size or shorten skip"
        )
    quantizer = TernaryHfQuantizer(TernaryConfig(**asdict(settings)))
    _own_config(model).quantization_config = quantizer.quantization_config
    # What from_pretrained leaves on a quantised model; save_pretrained and the Trainer look for it.
    noted: Any = model
    noted.hf_quantizer, noted.is_quantized, noted.quantization_method = quantizer, True, METHOD
    return names


def round_embeddings(model: PreTrainedModel, grid: Grid) -> None:
    """Put embedding and head of a ternary model on a grid, in place, and note it in its config.

    Raises PhaseError when the model is not ternary.
    """
    config: Any = getattr(model.config, "quantization_config", None)
    if not isinstance(config, TernaryConfig):
        raise PhaseError(f"{type(model).__name__} is not ternary; make it so first, with `forge bitnet`")
    config.embedding_bits, config.embedding_group, config.embedding_vector = grid.bits, grid.columns, grid.vector
    _replace_embeddings(model, config.settings())


def ternary_layers(model: nn.Module) -> dict[str, TernaryLinear]:
    """Return the ternary layers of a model by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TernaryLinear)}


def rounded_embeddings(model: nn.Module) -> dict[str, RoundedEmbedding | RoundedHead]:
    """Return the embedding and head that are on a grid, by name, each weight once."""
    found: dict[str, RoundedEmbedding | RoundedHead] = {}
    for name, module in model.named_modules():
        if isinstance(module, RoundedEmbedding) or (isinstance(module, RoundedHead) and not module.is_tied()):
            found[name] = module
    return found


def set_blend(model: nn.Module, blend: float) -> None:
    """Set lambda of every ternary layer: 0 dense, 1 ternary."""
    for layer in ternary_layers(model).values():
        layer.blend = blend


def _replace(model: PreTrainedModel, settings: TernarySettings) -> list[str]:
    made: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        inputs = _inputs(module)
        if inputs is None or inputs < settings.group_size or is_skipped(name, settings.skip):
            continue
        if id(module) not in made:
            linear = TransposedLinear.of(module) if isinstance(module, Conv1D) else module
            assert isinstance(linear, nn.Linear)
            layer = TernaryLinear.from_linear(linear, settings)
            if is_skipped(name, settings.sub_norm):
                layer.add_norm()
            made[id(module)] = layer
            names.append(name)
        _put(model, name, made[id(module)])
    if settings.embedding_grid():
        _replace_embeddings(model, settings)
    return names


def _inputs(module: nn.Module) -> int | None:
    """Return the inputs of a layer that can become ternary, or None for any other module."""
    if isinstance(module, Conv1D):
        return int(module.nx)
    return module.in_features if type(module) in (nn.Linear, TransposedLinear) else None  # type: ignore[return-value]


def _replace_embeddings(model: PreTrainedModel, settings: TernarySettings) -> None:
    """Put rounded layers in the place of the token embedding and the head."""
    found, head = model.get_input_embeddings(), model.get_output_embeddings()
    rounded: RoundedEmbedding | None = None
    tied = bool(getattr(model, "all_tied_weights_keys", None)) and head is not None
    factor = scale_of(found)
    if factor is None:
        raise PhaseError(
            f"{type(model).__name__}'s {type(found).__name__} does more than look rows up, so it cannot be rounded; set "
            "linear.embedding_bits=0 and linear.embedding_vector=0"
        )
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is found and isinstance(module, nn.Embedding):
            if rounded is None:
                rounded = RoundedEmbedding(module.num_embeddings, module.embedding_dim, device="meta")
                rounded.row_factor = factor
                rounded.padding_idx, rounded.weight = module.padding_idx, module.weight
                rounded.set_grid(settings.embedding_grid())
            _put(model, name, rounded)
    for name, module in list(model.named_modules()):
        if module is head and type(module) in (nn.Linear, RoundedHead):
            layer = RoundedHead(module.in_features, module.out_features, module.bias is not None, device="meta")
            layer.weight, layer.bias = module.weight, module.bias
            layer.set_grid(settings.embedding_grid(), rounded if tied else None)
            _put(model, name, layer)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _own_config(model: PreTrainedModel) -> Any:
    """Give the model a config object of its own: the one it has may belong to other models that stay float."""
    shared, own = model.config, copy.deepcopy(model.config)
    for module in model.modules():
        if getattr(module, "config", None) is shared:
            module.config = own  # type: ignore[assignment]
    return own


def refuse_norm(layer: nn.Module, what: str) -> None:
    """Raise PhaseError when a layer normalises its input and `what` has no place for that."""
    if getattr(layer, "norm_weight", None) is not None:
        raise PhaseError(
            f"{what} cannot hold layers that normalise their input; make the model ternary with linear.sub_norm=[]"
        )


def is_skipped(name: str, patterns: Sequence[str]) -> bool:
    """Say whether a pattern (* ? [..]) fits the whole dotted name or one of its parts."""
    return any(fnmatchcase(part, pattern) for pattern in patterns for part in (name, *name.split(".")))


class TernaryConfig(QuantizationConfigMixin):
    """`quantization_config` of a ternary model: the settings, under the method name `forge_ternary`."""

    def __init__(
        self,
        group_size: int = 128,
        activation_bits: int = 8,
        packing: str = "five_trits",
        skip: Sequence[str] = ("lm_head",),
        embedding_bits: int = 0,
        embedding_group: int = 0,
        embedding_vector: int = 0,
        sub_norm: Sequence[str] = (),
        packed: bool = False,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown:
            raise ConfigError(
                f"quantization_config of a {METHOD} model has unknown keys {sorted(unknown)}; remove them"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.group_size = group_size
        self.activation_bits = activation_bits
        self.packing = packing
        self.skip = list(skip)
        self.embedding_bits = embedding_bits
        self.embedding_group = embedding_group
        self.embedding_vector = embedding_vector
        self.sub_norm = list(sub_norm)
        self.packed = packed  # the file holds codes and scales instead of latents

    def settings(self) -> TernarySettings:
        """Return the settings, checked."""
        return TernarySettings(
            group_size=self.group_size, activation_bits=self.activation_bits, packing=self.packing, skip=self.skip,
            embedding_bits=self.embedding_bits, embedding_group=self.embedding_group,
            embedding_vector=self.embedding_vector, sub_norm=self.sub_norm,
        )  # fmt: skip


class TernaryHfQuantizer(HfQuantizer):
    """Builds the ternary layers before transformers fills in the weights."""

    requires_calibration = False
    quantization_config: TernaryConfig

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ARG002
        if not _replace(model, self.quantization_config.settings()):
            raise PhaseError(
                f"config.json says {METHOD}, but no layer of {type(model).__name__} fits "
                f"{self.quantization_config.to_dict()}; the config and the model do not belong together"
            )
        if self.quantization_config.packed:
            from agent_forge.models.ternary import checkpoint

            checkpoint.open_places(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:  # noqa: ARG002
        if self.quantization_config.packed:
            from agent_forge.models.ternary import checkpoint

            checkpoint.fill_places(model)
            # From here on the model holds latents, and that is how it would be saved.
            self.quantization_config.packed = False
        return model

    def is_serializable(self) -> bool:
        """Say that save_pretrained keeps what this quantiser made: latents are plain float tensors."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that the layers train: gradients reach the latents."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Say that training goes through the rounding."""
        return True


def register() -> None:
    """Tell transformers of the quantiser. Calling it again changes nothing."""
    registered: Mapping[str, Any] = AUTO_QUANTIZATION_CONFIG_MAPPING
    if METHOD not in registered:
        register_quantization_config(METHOD)(TernaryConfig)
        register_quantizer(METHOD)(TernaryHfQuantizer)
