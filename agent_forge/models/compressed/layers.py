"""Linears and embeddings kept as codes: the payload on disk, and its codec's compact tensors.

`forward` computes the dense weight, uses it and drops it. Layers that were ternary still round
activations. For a few tokens (a step of generation) agent_forge.kernels multiplies with the codes
themselves: compiled C on the CPU, Triton on CUDA.
"""

from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_forge import codecs
from agent_forge.codecs import payload as payloads
from agent_forge.codecs.payload import Payload
from agent_forge.kernels import build
from agent_forge.kernels import matrix as packing
from agent_forge.kernels.matrix import PackedMatrix
from agent_forge.models.scaled_embedding import scaled
from agent_forge.models.ternary.codes import quantise_activations

if TYPE_CHECKING:
    from agent_forge.kernels.gpu import DeviceMatrix

# Buffers with this prefix hold a codec's compact tensors; they are not stored.
COMPACT = "compact_"
PACKABLE = ("ternary", "intk", "vptq", "waterfill")  # codecs whose codes the kernels multiply with
PACKED_TOKENS = 32  # a larger batch is cheaper with the dense matrix


class Coded(nn.Module):
    """A matrix held as a codec's compact tensors.

    payload: its stored form.
    source: the module that holds the codes, for a tied module.
    """

    payload: Tensor | None
    bias: Tensor | None
    dtype_of_output: Tensor

    def __init__(
        self, size_bytes: int, source: "Coded | None" = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        # The list hides the source from state_dict, because it is stored once.
        self._source = [source] if source is not None else []
        empty = (
            torch.empty(size_bytes, dtype=torch.uint8, device=device) if source is None else None
        )
        self.register_buffer("payload", empty)
        self.codec: ModuleType | None = None
        self.meta: dict[str, Any] = {}
        self.shape = (0, 0)
        self._names: list[str] = []
        self._packed: dict[int, PackedMatrix] = {}
        self._on_device: DeviceMatrix | None = None
        self.decoding_weight: Tensor | None = None  # set in the context of `decoding`

    def open(self, where: str, coded: Payload | None = None) -> None:
        """Unpack the payload, or take `coded` instead.

        Raises CheckpointError naming `where` when the bytes are damaged.
        """
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
        """Return the matrix, or its rows (n,), in float32; it is computed at every call."""
        if self._source:
            return self._source[0].dense(rows)
        assert self.codec is not None, "a compressed layer was used before its payload was unpacked"
        with torch.no_grad():
            compact = {name: getattr(self, COMPACT + name) for name in self._names}
            matrix: Tensor = self.codec.dense(compact, self.meta, self.shape, rows)
        return matrix

    def packed(self, activation_bits: int) -> PackedMatrix | None:
        """Return the matrix for the CPU's kernels, or None without a layout or on other devices."""
        if self._source:
            return self._source[0].packed(activation_bits)
        if self.payload is None or self.payload.device.type != "cpu" or self.codec is None:
            return None
        if (
            self.codec.__name__.rpartition(".")[2] not in PACKABLE
            or activation_bits not in packing.ACTIVATION_BITS
        ):
            return None
        if activation_bits not in self._packed:
            coded = payloads.read(self.payload.numpy().tobytes(), "a compressed layer")
            self._packed[activation_bits] = packing.from_payload(coded, activation_bits)
        return self._packed[activation_bits]

    def on_device(self) -> "DeviceMatrix | None":
        """Return the matrix for an accelerator's kernels, on the codes' device, or None."""
        if self._source:
            return self._source[0].on_device()
        from agent_forge.kernels import gpu

        if self.codec is None or self.payload is None:
            return None
        if self._on_device is None or self._on_device.device != self.payload.device:
            compact = {name: getattr(self, COMPACT + name) for name in self._names}
            self._on_device = gpu.from_compact(
                self.codec.__name__.rpartition(".")[2], compact, self.meta, self.shape
            )
        return self._on_device

    def compact_device(self) -> torch.device:
        """Return the device of the codes."""
        if self._source:
            return self._source[0].compact_device()
        return torch.device("cpu") if self.payload is None else self.payload.device

    @property
    def weight(self) -> Tensor:
        """Return the dense weight, for code that reads it; it is not cached."""
        return self.dense()

    def packed_bytes(self) -> int:
        """Return the size of this matrix on disk; 0 where the module it is tied to stores it."""
        return 0 if self.payload is None else self.payload.numel()

    def memory_bytes(self) -> int:
        """Return the size of payload and compact tensors in memory."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())


class CompressedLinear(Coded):
    """A linear layer whose weight (out, in) is coded.

    activation_bits: bits to which each token's input is rounded; 0 for no rounding.
    """

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
        self.in_features, self.out_features, self.activation_bits = (
            in_features,
            out_features,
            activation_bits,
        )
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device)) if bias else None
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return input (..., in) times the decoded weight, (..., out)."""
        packed = self._packed_for(input)
        if packed is not None:
            flat = input.reshape(-1, self.in_features).numpy()
            out = torch.from_numpy(packed.multiply(flat, torch.get_num_threads())).view(
                *input.shape[:-1], -1
            )
            return out if self.bias is None else out + self.bias
        if self.activation_bits:
            rounded = quantise_activations(input, self.activation_bits)
            input = (
                input + (rounded - input).detach()
                if torch.is_grad_enabled() and input.requires_grad
                else rounded
            )
        if self.decoding_weight is not None and not torch.is_grad_enabled():
            return functional.linear(input, self.decoding_weight.to(input.dtype), self.bias)
        accelerated = self._accelerated_for(input)
        if accelerated is not None:
            out = (
                accelerated.multiply(input.reshape(-1, self.in_features))
                .to(input.dtype)
                .view(*input.shape[:-1], -1)
            )
            return out if self.bias is None else out + self.bias
        return functional.linear(input, self.dense().to(input.dtype), self.bias)

    def _accelerated_for(self, input: Tensor) -> "DeviceMatrix | None":
        """Return the matrix for a few tokens on an accelerator with kernels, without gradients."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not input.numel():
            return None
        from agent_forge.kernels import gpu

        few = input.numel() <= gpu.FEW_TOKENS * self.in_features
        return self.on_device() if few and gpu.usable(input.device) else None

    def _packed_for(self, input: Tensor) -> PackedMatrix | None:
        """Return the packed matrix for a few float32 tokens on a CPU with compiled code, else None.

        The kernels have no gradients.
        """
        few = 0 < input.numel() <= PACKED_TOKENS * self.in_features
        plain = (
            input.device.type == "cpu"
            and input.dtype == torch.float32
            and not torch.is_grad_enabled()
        )
        if not (few and plain) or torch.compiler.is_compiling() or build.library() is None:
            return None
        return self.packed(self.activation_bits)


class CompressedEmbedding(Coded):
    """An embedding table (tokens, width) that is coded; a lookup only decodes its own rows.

    row_factor: multiplies the rows after decoding.
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
        # `model.to(dtype)` changes the dtype of this buffer, which lookups return, as for a table.
        self.register_buffer("dtype_of_output", torch.zeros((), device=device), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows (..., width) of token ids (...)."""
        rows = self.dense(input.reshape(-1))
        return scaled(rows.view(*input.shape, -1).to(self.dtype_of_output.dtype), self.row_factor)
