"""Compress a model into codes, and the quantiser with which transformers loads it again.

On disk every coded tensor is one `payload` (uint8) in model.safetensors; config.json lists them
with their sizes under `quantization_config` (method `forge_compressed`), so that plain
`from_pretrained` builds the right modules. In memory a layer keeps its payload and its codec's
compact tensors (int8 codes and scales, indices and codebook, ...), never a dense copy (layers.py).
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from agent_forge import codecs
from agent_forge.anatomy.swap import keep_from_initialising, owner_of, replace_everywhere
from agent_forge.codecs import payload as payloads
from agent_forge.codecs.payload import Payload
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.models.compressed.layers import Coded, CompressedEmbedding, CompressedLinear
from agent_forge.models.compressed.tensors import coded_modules, coded_tensors, tied_modules
from agent_forge.models.conv1d import is_transposed
from agent_forge.models.scaled_embedding import scale_of
from agent_forge.models.ternary import RoundedEmbedding, RoundedHead, TernaryLinear, refuse_norm

METHOD = "forge_compressed"


class CompressedConfig(QuantizationConfigMixin):
    """`quantization_config` of a compressed model.

    tensors: name -> [kind, bytes, activation bits, shape]; kind is linear, embedding or parameter.
    tied: module name -> name of the module that holds the weight.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any] | None = None,
        tied: Mapping[str, str] | None = None,
        version: int = 1,
        **unknown: Any,
    ) -> None:
        unknown.pop("quant_method", None)
        if unknown or version != 1:
            raise ConfigError(
                f"quantization_config of a {METHOD} model has version {version} and "
                f"unknown keys {sorted(unknown)}; "
                "this forge reads version 1, upgrade it"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.version = version
        self.tensors = {name: list(entry) for name, entry in (tensors or {}).items()}
        self.tied = dict(tied or {})


class CompressedHfQuantizer(HfQuantizer):
    """Builds the coded modules before transformers reads the payloads, and unpacks them after."""

    requires_calibration = True
    quantization_config: "CompressedConfig"

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ARG002
        _install(model, self.quantization_config)
        keep_from_initialising(model, coded_modules(model))

    def _process_model_after_weight_loading(
        self,
        model: PreTrainedModel,
        **kwargs: Any,  # noqa: ARG002 - transformers' signature
    ) -> PreTrainedModel:
        for name, (kind, *_) in self.quantization_config.tensors.items():
            if kind == "parameter":
                owner, leaf = owner_of(model, name)
                stored = owner.get_buffer(f"{leaf}_payload")
                _set_parameter(
                    owner,
                    leaf,
                    payloads.read(stored.cpu().numpy().tobytes(), name),
                    owner.get_buffer(leaf),
                )
            else:
                model.get_submodule(name).open(name)  # type: ignore[operator]
        return model

    def is_serializable(self) -> bool:
        """Return True: save_pretrained writes the payloads unchanged."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Return False: coded weights do not train, although weights that stayed float can."""
        return False


def compress(model: PreTrainedModel, coded: Mapping[str, Payload]) -> PreTrainedModel:
    """Replace the tensors in `coded` by their payloads, in place and in the config; layers that
    round their weights and are not in it by lossless ones.

    Return the model.

    Raises PhaseError when the model is compressed already or does not have a named tensor.
    """
    if any(isinstance(module, Coded) for module in model.modules()):
        raise PhaseError(
            "the model is compressed already; take the checkpoint it was compressed from "
            "as the source"
        )
    tensors = coded_tensors(model)
    unknown = sorted(set(coded) - set(tensors))
    if unknown:
        raise PhaseError(
            f"no matrix {', '.join(unknown[:3])} in this model; it has "
            f"{', '.join(list(tensors)[:5])}, ..."
        )
    coded = {**coded, **_as_they_round(model, tensors.keys() - coded.keys())}
    entries = {name: [*_kind(model, name), list(tensors[name].shape)] for name in coded}
    for name, entry in entries.items():
        entry.insert(1, len(coded[name].data))
    tied = {name: source for name, source in tied_modules(model).items() if source in coded}
    config = CompressedConfig(entries, tied)
    # Coded layers are built on the payloads' device, and keep the biases and places of the old
    # ones.
    _install(model, config)
    for name, (kind, *_) in entries.items():
        if kind == "parameter":
            owner, leaf = owner_of(model, name)
            place = owner.get_buffer(leaf)
            data = torch.frombuffer(bytearray(coded[name].data), dtype=torch.uint8)
            owner.register_buffer(f"{leaf}_payload", data.to(place.device))
            _set_parameter(owner, leaf, coded[name], place)
        else:
            model.get_submodule(name).open(name, coded[name])  # type: ignore[operator]
    model.config.quantization_config = config
    transformers_model: Any = model
    transformers_model.hf_quantizer = CompressedHfQuantizer(config)
    transformers_model.is_quantized = True
    transformers_model.quantization_method = METHOD
    return model


def _as_they_round(model: nn.Module, names: Collection[str]) -> dict[str, Payload]:
    """Return lossless payloads of those named layers that compute with a rounding of their weights.

    A compressed model has no other place for what a ternary layer or a rounded embedding does.
    """
    coded = {}
    for name, module in model.named_modules():
        if name not in names or not isinstance(
            module, (TernaryLinear, RoundedEmbedding, RoundedHead)
        ):
            continue
        weight = module.quantised_weight().float()
        if isinstance(module, TernaryLinear):
            coded[name] = codecs.encode("ternary", weight, {"group": module.group_size})
        else:
            coded[name] = codecs.encode("raw", weight, {"dtype": "float32"})
    return coded


def _kind(model: nn.Module, name: str) -> list[Any]:
    """Return [kind, activation bits] of a tensor named as in `coded_tensors`."""
    module = dict(model.named_modules()).get(name)
    if isinstance(module, nn.Linear):
        return ["linear", int(getattr(module, "activation_bits", 0))]
    return ["embedding", 0] if isinstance(module, nn.Embedding) else ["parameter", 0]


def _install(model: PreTrainedModel, config: CompressedConfig) -> None:
    """Put empty coded modules where the config names them.

    Raises CheckpointError when the model does not have such a module.
    """
    coded: dict[str, Coded] = {}
    for name, (kind, size_bytes, activation_bits, _) in config.tensors.items():
        try:
            if kind == "parameter":
                _empty_parameter(model, name, size_bytes)
                continue
            old = model.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"config.json names the coded tensor {name}, but {type(model).__name__} has none; "
                "the config and the model do not belong together"
            ) from None
        coded[name] = _coded_like(old, size_bytes=size_bytes, activation_bits=activation_bits)
        replace_everywhere(model, old, coded[name])
    for name, source in config.tied.items():
        old = model.get_submodule(name)
        replace_everywhere(
            model, old, _coded_like(old, size_bytes=0, activation_bits=0, source=coded[source])
        )
    _untie(model)


def _coded_like(
    old: nn.Module, *, size_bytes: int, activation_bits: int, source: Coded | None = None
) -> Coded:
    if isinstance(old, nn.Embedding):
        table = CompressedEmbedding(
            old.num_embeddings,
            old.embedding_dim,
            size_bytes=size_bytes,
            source=source,
            device=old.weight.device,
        )
        factor = scale_of(old)
        if factor is None:
            raise PhaseError(
                f"{type(old).__name__} does more than look rows up and scale them, and "
                "cannot be coded"
            )
        table.row_factor = factor
        return table
    if isinstance(old, Conv1D):
        layer = CompressedLinear(
            old.nx, old.nf, True, size_bytes=size_bytes, activation_bits=activation_bits,
            source=source, device=old.weight.device,
        )  # fmt: skip
        layer.bias, layer.in_place_of_conv1d = old.bias, True
        return layer
    assert isinstance(old, nn.Linear)
    refuse_norm(old, "a compressed model")
    layer = CompressedLinear(
        old.in_features,
        old.out_features,
        old.bias is not None,
        size_bytes=size_bytes,
        activation_bits=activation_bits or int(getattr(old, "activation_bits", 0)),
        source=source,
        device=old.weight.device,
    )
    layer.bias, layer.in_place_of_conv1d = old.bias, is_transposed(old)
    return layer


def _empty_parameter(model: nn.Module, name: str, size_bytes: int) -> None:
    """Replace a parameter by an unstored buffer of its name, and add a buffer for the payload."""
    owner, leaf = owner_of(model, name)
    value = getattr(owner, leaf).detach()
    delattr(owner, leaf)
    owner.register_buffer(leaf, value, persistent=False)
    owner.register_buffer(
        f"{leaf}_payload", torch.empty(size_bytes, dtype=torch.uint8, device=value.device)
    )


def _set_parameter(owner: nn.Module, leaf: str, coded: Payload, like: Tensor) -> None:
    owner.register_buffer(
        leaf, codecs.decode(coded).to(like.dtype).view(like.shape).to(like.device), persistent=False
    )


def _untie(model: PreTrainedModel) -> None:
    """Drop the ties of coded modules, because transformers would look for missing weights."""
    for module in _pretrained(model):
        for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
            ties = getattr(module, attribute, None)
            if isinstance(ties, dict):
                setattr(
                    module, attribute, {k: v for k, v in ties.items() if not _is_coded(module, k)}
                )


def _pretrained(model: nn.Module) -> Iterator[PreTrainedModel]:
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            yield module


def _is_coded(module: nn.Module, key: str) -> bool:
    try:
        return isinstance(module.get_submodule(key.rpartition(".")[0]), Coded)
    except AttributeError:
        return False


def register() -> None:
    """Register the quantiser with transformers. Calling it again changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(CompressedConfig)
        register_quantizer(METHOD)(CompressedHfQuantizer)
