"""Compressed models: linears, embeddings and other matrices kept as codes, made dense one layer at a time.

On disk every coded tensor is one `payload` (uint8) in model.safetensors; config.json lists them with their sizes under
`quantization_config` (method `forge_compressed`), so that plain `from_pretrained` builds the right modules. In memory
a layer keeps its payload and its codec's compact tensors (int8 codes and scales, indices and codebook, ...), never a
dense copy; `forward` makes the weight, uses it and drops it. Layers that were ternary go on rounding activations.
A few tokens (a step of generation) are multiplied with the codes themselves, by agent_forge.kernels: compiled C on the
CPU, Triton on CUDA.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

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

from agent_forge import codecs
from agent_forge.codecs import payload as payloads
from agent_forge.codecs.payload import Payload
from agent_forge.core.device import free_bytes
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.kernels import build
from agent_forge.kernels import matrix as packing
from agent_forge.kernels.matrix import PackedMatrix
from agent_forge.models import replacing
from agent_forge.models.conv1d import is_transposed
from agent_forge.models.scaled_embedding import scale_of, scaled

if TYPE_CHECKING:
    from agent_forge.kernels.gpu import DeviceMatrix

METHOD = "forge_compressed"
COMPACT = "compact_"  # prefix of the buffers that hold a codec's compact tensors; they are not stored
PACKABLE = ("ternary", "intk", "vptq", "waterfill")  # codecs whose codes the kernels multiply with
DENSE_SAFETY = 4  # dense weights are held for generation where this many times their bytes are free
_log = logging.getLogger("agent_forge")
PACKED_TOKENS = 32  # more are a batch, for which making the matrix once is cheap


class Coded(nn.Module):
    """A matrix held as a codec's compact tensors; `payload` is its stored form, `source` the module it is tied to."""

    payload: Tensor | None
    bias: Tensor | None
    dtype_of_output: Tensor

    def __init__(self, size_bytes: int, source: "Coded | None" = None, device: torch.device | None = None) -> None:
        super().__init__()
        self._source = [source] if source is not None else []  # a list hides it from state_dict: it is stored once
        empty = torch.empty(size_bytes, dtype=torch.uint8, device=device) if source is None else None
        self.register_buffer("payload", empty)
        self.codec: ModuleType | None = None
        self.meta: dict[str, Any] = {}
        self.shape = (0, 0)
        self._names: list[str] = []
        self._packed: dict[int, PackedMatrix] = {}
        self._on_device: DeviceMatrix | None = None
        self.decoding_weight: Tensor | None = None  # while `decoding` lasts

    def open(self, where: str, coded: Payload | None = None) -> None:
        """Unpack the payload, or take `coded`. Raises CheckpointError naming `where` when the bytes are damaged."""
        if self._source:
            return
        assert self.payload is not None
        device = self.payload.device
        if coded is None:
            coded = payloads.read(self.payload.cpu().numpy().tobytes(), where)
        else:
            self.payload = torch.frombuffer(bytearray(coded.data), dtype=torch.uint8).to(device)
        self.codec, self.meta, self.shape = codecs.load(coded.codec), coded.meta, coded.shape
        compact = codecs.unpack(coded)
        self._names = list(compact)
        for name, tensor in compact.items():
            self.register_buffer(COMPACT + name, tensor.to(device), persistent=False)

    def dense(self, rows: Tensor | None = None) -> Tensor:
        """Return the matrix, or its rows (n,): float32, made anew at every call."""
        if self._source:
            return self._source[0].dense(rows)
        assert self.codec is not None, "a compressed layer was used before its payload was unpacked"
        with torch.no_grad():
            compact = {name: getattr(self, COMPACT + name) for name in self._names}
            matrix: Tensor = self.codec.dense(compact, self.meta, self.shape, rows)
        return matrix

    def packed(self, activation_bits: int) -> PackedMatrix | None:
        """Return the matrix for the kernels, or None where its codec has no layout, or it is not on the CPU."""
        if self._source:
            return self._source[0].packed(activation_bits)
        if self.payload is None or self.payload.device.type != "cpu" or self.codec is None:
            return None
        if self.codec.__name__.rpartition(".")[2] not in PACKABLE or activation_bits not in packing.ACTIVATION_BITS:
            return None
        if activation_bits not in self._packed:
            coded = payloads.read(self.payload.numpy().tobytes(), "a compressed layer")
            self._packed[activation_bits] = packing.from_payload(coded, activation_bits)
        return self._packed[activation_bits]

    def on_device(self) -> "DeviceMatrix | None":
        """Return the matrix for the kernels of an accelerator, made where the codes lie; None where its codec has none."""
        if self._source:
            return self._source[0].on_device()
        from agent_forge.kernels import gpu

        if self.codec is None or self.payload is None:
            return None
        if self._on_device is None or self._on_device.device != self.payload.device:
            compact = {name: getattr(self, COMPACT + name) for name in self._names}
            self._on_device = gpu.from_compact(self.codec.__name__.rpartition(".")[2], compact, self.meta, self.shape)
        return self._on_device

    def compact_device(self) -> torch.device:
        """Return where the codes lie."""
        if self._source:
            return self._source[0].compact_device()
        return torch.device("cpu") if self.payload is None else self.payload.device

    @property
    def weight(self) -> Tensor:
        """The dense weight, for code that asks for it; it is not kept."""
        return self.dense()

    def packed_bytes(self) -> int:
        """Return the bytes of this matrix on disk; 0 for one that is stored with the module it is tied to."""
        return 0 if self.payload is None else self.payload.numel()

    def memory_bytes(self) -> int:
        """Return the bytes of payload and compact tensors in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


class CompressedLinear(Coded):
    """A linear layer whose weight (out, in) is coded. activation_bits: per-token rounding of the input, 0 for none."""

    in_place_of_conv1d = False  # whether a plain model holds this weight transposed

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        *,
        size_bytes: int = 0,
        activation_bits: int = 0,
        source: Coded | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(size_bytes, source, device)
        self.in_features, self.out_features, self.activation_bits = in_features, out_features, activation_bits
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_features, device=device)) if bias else None)

    def forward(self, input: Tensor) -> Tensor:
        """Return input (..., in) times the decoded weight: (..., out)."""
        packed = self._packed_for(input)
        if packed is not None:
            flat = input.reshape(-1, self.in_features).numpy()
            out = torch.from_numpy(packed.multiply(flat, torch.get_num_threads())).view(*input.shape[:-1], -1)
            return out if self.bias is None else out + self.bias
        if self.activation_bits:
            from agent_forge.models.ternary import quantise_activations

            rounded = quantise_activations(input, self.activation_bits)
            input = input + (rounded - input).detach() if torch.is_grad_enabled() and input.requires_grad else rounded
        if self.decoding_weight is not None and not torch.is_grad_enabled():
            return functional.linear(input, self.decoding_weight.to(input.dtype), self.bias)
        accelerated = self._accelerated_for(input)
        if accelerated is not None:
            out = accelerated.multiply(input.reshape(-1, self.in_features)).to(input.dtype).view(*input.shape[:-1], -1)
            return out if self.bias is None else out + self.bias
        return functional.linear(input, self.dense().to(input.dtype), self.bias)

    def _accelerated_for(self, input: Tensor) -> "DeviceMatrix | None":
        """Return the matrix for a few tokens on an accelerator that has kernels, without gradients."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not input.numel():
            return None
        from agent_forge.kernels import gpu

        few = input.numel() <= gpu.FEW_TOKENS * self.in_features
        return self.on_device() if few and gpu.usable(input.device) else None

    def _packed_for(self, input: Tensor) -> PackedMatrix | None:
        """Return the packed matrix for a few float32 tokens on the CPU without gradients, where there is compiled code."""
        few = 0 < input.numel() <= PACKED_TOKENS * self.in_features
        plain = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.is_grad_enabled()
        if not (few and plain) or torch.compiler.is_compiling() or build.library() is None:
            return None
        return self.packed(self.activation_bits)


@contextmanager
def decoding(model: nn.Module, rows: int) -> Iterator[None]:
    """Hold dense weights, while the context lasts, of the layers that multiply `rows` tokens faster by them than by codes.

    On CUDA alone, and where the memory that is free holds them several times; measured once for each kind and shape.
    """
    from agent_forge.kernels import gpu

    layers = [module for module in model.modules() if isinstance(module, CompressedLinear)]
    device = layers[0].compact_device() if layers else torch.device("cpu")
    dtype: torch.dtype = getattr(model, "dtype", torch.float32)
    needed = sum(layer.in_features * layer.out_features for layer in layers) * dtype.itemsize
    if device.type != "cuda" or free_bytes(device) < DENSE_SAFETY * needed:
        yield
        return
    dense = 0
    for layer in layers:
        matrix = layer.on_device() if rows <= gpu.FEW_TOKENS and gpu.usable(device) else None
        weight = layer.dense().to(dtype)
        if matrix is None or gpu.dense_is_faster(matrix, weight, rows):
            layer.decoding_weight, dense = weight, dense + 1
    _log.info("generation of %d row(s): %d of %d matrices are multiplied in %s, the others as codes",
              rows, dense, len(layers), str(dtype).removeprefix("torch."))  # fmt: skip
    try:
        yield
    finally:
        for layer in layers:
            layer.decoding_weight = None


class CompressedEmbedding(Coded):
    """An embedding table (tokens, width) that is coded; a lookup decodes only the rows it needs.

    row_factor: what rows are multiplied by after that.
    """

    row_factor = 1.0

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        size_bytes: int = 0,
        source: Coded | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(size_bytes, source, device)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = None
        # The dtype of what a lookup returns follows `model.to(dtype)`, as a table's would.
        self.register_buffer("dtype_of_output", torch.zeros((), device=device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of token ids (...): (..., width)."""
        rows = self.dense(input.reshape(-1))
        return scaled(rows.view(*input.shape, -1).to(self.dtype_of_output.dtype), self.row_factor)


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
                f"quantization_config of a {METHOD} model has version {version} and unknown keys {sorted(unknown)}; "
                "this forge reads version 1, upgrade it"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.version = version
        self.tensors = {name: list(entry) for name, entry in (tensors or {}).items()}
        self.tied = dict(tied or {})


class CompressedHfQuantizer(HfQuantizer):
    """Builds the coded modules before transformers fills in the payloads, and unpacks them after."""

    requires_calibration = True
    quantization_config: "CompressedConfig"

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ARG002
        _install(model, self.quantization_config)
        replacing.keep_from_initialising(model, coded_modules(model))

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:  # noqa: ARG002
        for name, (kind, *_) in self.quantization_config.tensors.items():
            if kind == "parameter":
                owner, leaf = _owner(model, name)
                stored = owner.get_buffer(f"{leaf}_payload")
                _set_parameter(owner, leaf, payloads.read(stored.cpu().numpy().tobytes(), name), owner.get_buffer(leaf))
            else:
                model.get_submodule(name).open(name)  # type: ignore[operator]
        return model

    def is_serializable(self) -> bool:
        """Say that save_pretrained writes the payloads as they are."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that coded weights do not train; what stayed float still can."""
        return False


def coded_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a codec can take, each tensor once: weights of linears and embeddings, and other float matrices.

    Names are module names for linears and embeddings and full parameter names for the rest; values are what the forward
    really multiplies with, so a ternary layer gives its ternary weight. An embedding that does more than look rows up and
    scale them is left out, with all that shares its weight.
    """
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if id(module.weight) not in taken and can_be_coded(module):
                ternary: Any = getattr(module, "quantised_weight", None)
                found[name] = ternary() if ternary else module.weight.detach()
            taken.add(id(module.weight))
    for name, parameter in model.named_parameters():
        if id(parameter) not in taken and parameter.ndim >= 2 and parameter.is_floating_point():
            found[name] = parameter.detach()
    return found


def can_be_coded(module: nn.Module) -> bool:
    """Return whether a coded layer computes what this linear or embedding does."""
    return not isinstance(module, nn.Embedding) or scale_of(module) is not None


def tied_modules(model: nn.Module) -> dict[str, str]:
    """Return, for every linear or embedding that shares its weight with an earlier one, the name of that one."""
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


def compress(model: PreTrainedModel, coded: Mapping[str, Payload]) -> PreTrainedModel:
    """Replace the tensors named in `coded` by their payloads, in place, and note it in the config; returns the model.

    Raises PhaseError when the model is compressed already or a name is none of its tensors.
    """
    if any(isinstance(module, Coded) for module in model.modules()):
        raise PhaseError("the model is compressed already; take the checkpoint it was compressed from as the source")
    tensors = coded_tensors(model)
    unknown = sorted(set(coded) - set(tensors))
    if unknown:
        raise PhaseError(
            f"no matrix {', '.join(unknown[:3])} in this model; it has {', '.join(list(tensors)[:5])}, ..."
        )
    entries = {name: [*_kind(model, name), list(tensors[name].shape)] for name in coded}
    for name, entry in entries.items():
        entry.insert(1, len(coded[name].data))
    tied = {name: source for name, source in tied_modules(model).items() if source in coded}
    config = CompressedConfig(entries, tied)
    # Coded layers go in where the payloads are, so biases and the layers' places stay as they were.
    _install(model, config)
    for name, (kind, *_) in entries.items():
        if kind == "parameter":
            owner, leaf = _owner(model, name)
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


def coded_modules(model: nn.Module) -> dict[str, Coded]:
    """Return the coded layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Coded)}


def _kind(model: nn.Module, name: str) -> list[Any]:
    """Return [kind, activation bits] of a tensor named as in `coded_tensors`."""
    module = dict(model.named_modules()).get(name)
    if isinstance(module, nn.Linear):
        return ["linear", int(getattr(module, "activation_bits", 0))]
    return ["embedding", 0] if isinstance(module, nn.Embedding) else ["parameter", 0]


def _install(model: PreTrainedModel, config: CompressedConfig) -> None:
    """Put empty coded modules where the config names them. Raises CheckpointError when the model has no such place."""
    made: dict[str, Coded] = {}
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
        made[name] = _coded_like(old, size_bytes=size_bytes, activation_bits=activation_bits)
        _replace(model, old, made[name])
    for name, source in config.tied.items():
        old = model.get_submodule(name)
        _replace(model, old, _coded_like(old, size_bytes=0, activation_bits=0, source=made[source]))
    _untie(model)


def _coded_like(old: nn.Module, *, size_bytes: int, activation_bits: int, source: Coded | None = None) -> Coded:
    if isinstance(old, nn.Embedding):
        table = CompressedEmbedding(
            old.num_embeddings, old.embedding_dim, size_bytes=size_bytes, source=source, device=old.weight.device
        )
        factor = scale_of(old)
        if factor is None:
            raise PhaseError(f"{type(old).__name__} does more than look rows up and scale them, and cannot be coded")
        table.row_factor = factor
        return table
    if isinstance(old, Conv1D):
        layer = CompressedLinear(
            old.nx, old.nf, True, size_bytes=size_bytes, activation_bits=activation_bits, source=source,
            device=old.weight.device,
        )  # fmt: skip
        layer.bias, layer.in_place_of_conv1d = old.bias, True
        return layer
    assert isinstance(old, nn.Linear)
    if getattr(old, "norm_weight", None) is not None:
        raise PhaseError(
            "a compressed layer cannot normalise its input; make the model ternary with linear.sub_norm=[]"
        )
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


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in every place where `old` stands."""
    new.train(old.training)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if module is old:
                setattr(parent, child, new)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _empty_parameter(model: nn.Module, name: str, size_bytes: int) -> None:
    """Turn a parameter into an unstored buffer of the same name with its payload beside it."""
    owner, leaf = _owner(model, name)
    value = getattr(owner, leaf).detach()
    delattr(owner, leaf)
    owner.register_buffer(leaf, value, persistent=False)
    owner.register_buffer(f"{leaf}_payload", torch.empty(size_bytes, dtype=torch.uint8, device=value.device))


def _set_parameter(owner: nn.Module, leaf: str, coded: Payload, like: Tensor) -> None:
    owner.register_buffer(leaf, codecs.decode(coded).to(like.dtype).view(like.shape).to(like.device), persistent=False)


def _untie(model: PreTrainedModel) -> None:
    """Drop the parameter ties of coded modules: transformers would look for a weight that is not there."""
    for module in _pretrained(model):
        for attribute in ("all_tied_weights_keys", "_tied_weights_keys"):
            ties = getattr(module, attribute, None)
            if isinstance(ties, dict):
                setattr(module, attribute, {k: v for k, v in ties.items() if not _is_coded(module, k)})


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
    """Tell transformers of the quantiser. Calling it again changes nothing."""
    if METHOD not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(METHOD)(CompressedConfig)
        register_quantizer(METHOD)(CompressedHfQuantizer)
