"""Pack ternary codes into bytes, losslessly, and write the file that would be shipped.

Two packings of codes -1, 0, +1: `two_bit` holds four codes per byte, `five_trits` five (3^5 = 243
values; 1.6 bits per weight). The file is plain safetensors: `<module>.weight_codes` uint8,
`<module>.weight_scales` bfloat16 (rows, groups), the same for rounded embeddings and heads, every
other tensor as it is, and the shapes in the header. Reads and writes only that file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from agent_forge.checkpoint import atomic
from agent_forge.config.ternary import no_codewords, unknown_packing
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.models.storage import stored_tensors
from agent_forge.models.ternary import embedding
from agent_forge.models.ternary.codes import multiply_out

_FORMAT = "forge_ternary_packed"
# A packed layer has these two tensors instead of its weight.
CODES, SCALES = "weight_codes", "weight_scales"
_POWERS = (1, 3, 9, 27, 81)


@dataclass(frozen=True, slots=True)
class Packing:
    """One way to write codes as bytes."""

    codes_per_byte: int
    pack: Callable[[Tensor], Tensor]  # (bytes, codes_per_byte) uint8 digits 0..2 -> (bytes,) uint8
    unpack: Callable[[Tensor], Tensor]  # (bytes,) uint8 -> (bytes, codes_per_byte) digits


def _pack_two_bit(digits: Tensor) -> Tensor:
    return digits[:, 0] | digits[:, 1] << 2 | digits[:, 2] << 4 | digits[:, 3] << 6


def _unpack_two_bit(packed: Tensor) -> Tensor:
    return torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)


def _pack_five_trits(digits: Tensor) -> Tensor:
    powers = torch.tensor(_POWERS, dtype=torch.uint8, device=digits.device)
    return (digits * powers).sum(1, dtype=torch.uint8)


def _unpack_five_trits(packed: Tensor) -> Tensor:
    every_byte = torch.arange(256, device=packed.device)
    table = torch.stack([every_byte // power % 3 for power in _POWERS], dim=1).to(torch.uint8)
    return table[packed.long()]


PACKINGS: Mapping[str, Packing] = {
    "five_trits": Packing(5, _pack_five_trits, _unpack_five_trits),
    "two_bit": Packing(4, _pack_two_bit, _unpack_two_bit),
}


def packing_named(name: str) -> Packing:
    """Return a packing. Raises ConfigError with the nearest known name."""
    if name not in PACKINGS:
        raise unknown_packing(name)
    return PACKINGS[name]


def packed_length(count: int, packing: str) -> int:
    """Return how many bytes `count` codes take; the last byte may be partly empty."""
    return -(-count // packing_named(packing).codes_per_byte)


def pack(codes: Tensor, packing: str) -> Tensor:
    """Return codes -1, 0, +1 of any shape as (bytes,) uint8, in row-major order.

    Raises ConfigError when a code is not one of the three.
    """
    kind = packing_named(packing)
    flat = codes.reshape(-1)
    are_ternary = (flat == -1) | (flat == 0) | (flat == 1)
    if not bool(are_ternary.all()):
        raise ConfigError(
            f"ternary codes must be -1, 0 or 1, got values from {flat.min()} to "
            f"{flat.max()}; quantise first"
        )
    digits = torch.zeros(
        packed_length(flat.numel(), packing) * kind.codes_per_byte,
        dtype=torch.uint8,
        device=codes.device,
    )
    digits[: flat.numel()] = (flat + 1).to(torch.uint8)
    return kind.pack(digits.view(-1, kind.codes_per_byte))


def unpack(packed: Tensor, shape: torch.Size | tuple[int, ...], packing: str) -> Tensor:
    """Return the codes of `pack` as int8 of `shape`.

    Raises CheckpointError when the length does not fit or a code is 3.
    """
    count = torch.Size(shape).numel()
    if packed.numel() != packed_length(count, packing):
        raise CheckpointError(
            f"{packed.numel():,} bytes of {packing} codes do not hold a tensor of shape "
            f"{tuple(shape)}, "
            f"which takes {packed_length(count, packing):,}; the file is damaged"
        )
    digits = packing_named(packing).unpack(packed).reshape(-1)[:count]
    if count and int(digits.max()) > 2:
        raise CheckpointError(
            f"a {packing} code is {int(digits.max())}, allowed 0 to 2; the file is damaged"
        )
    return (digits.to(torch.int8) - 1).reshape(shape)


def write_packed(model: PreTrainedModel, path: Path) -> int:
    """Write the packed file of a ternary model and return its size in bytes."""
    tensors = stored_tensors(model)
    header: dict[str, dict[str, object]] = {}
    for name, module in model.named_modules():
        if callable(getattr(module, "ternary_parts", None)):
            codes, scales = module.ternary_parts()
            packed = pack(codes, module.packing)
            scales = scales[:1] if module.grouping < 0 else scales
            entry = {"group_size": module.grouping, "packing": module.packing}
        elif callable(getattr(module, "packed_parts", None)) and f"{name}.weight" in tensors:
            codes, (packed, scales) = module.weight, module.packed_parts()
            # "vector" belongs to a coding that is gone; without it, files would have other bytes
            # than before.
            entry = {"bits": module.grid.bits, "columns": module.grid.columns, "vector": 0}
        else:
            continue
        tensors.pop(f"{name}.weight")
        tensors[f"{name}.{CODES}"], tensors[f"{name}.{SCALES}"] = packed, scales
        header[name] = {"shape": list(codes.shape), **entry}
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # transformers requires the format "pt".
    content = save(
        ready,
        metadata={"format": "pt", "forge": _FORMAT, "ternary": json.dumps(header, sort_keys=True)},
    )
    atomic.write_bytes(path, content)
    return len(content)


def read_packed(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a packed file by name, with coded weights multiplied out to float32.

    Raises CheckpointError naming the file when it is missing, damaged or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("forge") != _FORMAT:
                raise CheckpointError(
                    f"{path} is not a packed ternary file (format {metadata.get('forge')!r})"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot read the packed file {path}: {error}; write it again"
        ) from None
    for name, entry in json.loads(metadata["ternary"]).items():
        packed, scales = tensors.pop(f"{name}.{CODES}"), tensors.pop(f"{name}.{SCALES}")
        if entry.get("vector"):
            raise no_codewords(str(path), entry["vector"])
        if "bits" in entry:
            codes = embedding.unpack(packed, entry["bits"], entry["shape"][1])
            tensors[f"{name}.weight"] = embedding.values(codes, scales, entry["columns"])
        else:
            codes = unpack(packed, tuple(entry["shape"]), entry["packing"])
            tensors[f"{name}.weight"] = multiply_out(codes, scales, entry["group_size"])
    return tensors
