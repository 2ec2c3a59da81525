"""Read a checkpoint directory, or a packed file, into a PackedModel.

The codes of a compressed checkpoint are unpacked from the entropy coder and laid out, without being
expanded to floats. Ternary latents become the codes that their layer computes; float weights are
memory-mapped and used in place. A packed file (written by `save`) holds the layout itself: it is
memory-mapped as a whole and checked by CRC-32.
"""

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.checkpoint import Checkpoint, readable
from agent_forge.codecs import payload as payloads
from agent_forge.core.errors import CheckpointError
from agent_forge.kernels import matrix as packing
from agent_forge.kernels.matrix import Layout, PackedMatrix
from agent_forge.runtime.model import PackedModel
from agent_forge.runtime.shape import Shape, UnsupportedModelError, shape_of, unwrapped
from agent_forge.runtime.tensors import Tensors, write

Array = NDArray[Any]
FORMAT, VERSION = "forge_packed", 1
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MODULES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
    "o": "self_attn.o_proj", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}  # fmt: skip
LAYER_NORMS = {
    "norm_before": "input_layernorm", "norm_after": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
}  # fmt: skip


def load(source: Checkpoint | Path | str, *, threads: int = 0) -> PackedModel:
    """Return the packed model of a checkpoint directory or of a packed file.

    Raises UnsupportedModelError when the engine does not compute the model (torch does),
    CheckpointError naming what is missing or damaged.
    """
    path = source.path if isinstance(source, Checkpoint) else readable(Path(source))
    if path.is_file():
        return _open_packed(path, threads)
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} holds no model: config.json cannot be read ({error})"
        ) from None
    inner, prefix = unwrapped(config)
    shape = shape_of(inner)
    reader = _Reader(Tensors(path), config)
    tied = reader.is_tied(f"{prefix}lm_head", shape)
    modules = {"embedding": f"{prefix}model.embed_tokens"}
    modules |= {} if tied else {"head": f"{prefix}lm_head"}
    norms = {"final_norm": reader.tensors.floats(f"{prefix}model.norm.weight")}
    for index in range(shape.layers):
        layer = f"{prefix}model.layers.{index}"
        modules |= {f"{index}.{name}": f"{layer}.{module}" for name, module in MODULES.items()}
        for name, module in LAYER_NORMS.items():
            stored = f"{layer}.{module}.weight"
            if stored in reader.tensors:
                norms[f"{index}.{name}"] = reader.tensors.floats(stored)
    # Unpacking and laying out take most of the time, and leave Python's lock free.
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        matrices = dict(zip(modules, pool.map(reader.matrix, modules.values()), strict=True))
    matrices.setdefault("head", matrices["embedding"])
    _check_sizes(shape, matrices)
    notes = [reader.notes[module] for module in modules.values() if module in reader.notes]
    return PackedModel(shape, _sharing_columns(matrices), norms, threads, notes)


class _Reader:
    """Packed matrices and notes by module name, from the tensors of a checkpoint."""

    def __init__(self, tensors: Tensors, config: Mapping[str, Any]) -> None:
        self.tensors = tensors
        self.quantization: dict[str, Any] = dict(config.get("quantization_config") or {})
        self.method = self.quantization.get("quant_method")
        self.notes: dict[str, str] = {}
        if self.method not in (None, "forge_compressed", "forge_ternary"):
            raise UnsupportedModelError(
                f"the packed engine does not read weights of {self.method}; use engine=torch"
            )
        if self.quantization.get("sub_norm") or self.quantization.get("packed"):
            raise UnsupportedModelError(
                "the packed engine reads ternary latents without SubLN only; use engine=torch"
            )

    def is_tied(self, module: str, shape: Shape) -> bool:
        """Return whether a head is the embedding: noted in the config, or tied and not stored."""
        if module in (self.quantization.get("tied") or {}):
            return True
        return shape.tied and module not in (self.quantization.get("tensors") or {})

    def matrix(self, module: str) -> PackedMatrix:
        entry = (self.quantization.get("tensors") or {}).get(module)
        if entry is not None:
            packed = self._from_payload(module, int(entry[2]))
        elif module.endswith(("embed_tokens", "lm_head")) and self.quantization.get(
            "embedding_bits"
        ):
            packed = self._from_rounded(module)
        elif self.method == "forge_ternary" and not _is_skipped(
            module, self.quantization.get("skip", ["lm_head"])
        ):
            packed = self._from_latents(module)
        else:
            packed = self._from_floats(module)
        bias = f"{module}.bias"
        return packed.with_bias(self.tensors.floats(bias)) if bias in self.tensors else packed

    def _from_payload(self, module: str, activation_bits: int) -> PackedMatrix:
        coded = payloads.read(self.tensors.get(f"{module}.payload").tobytes(), module)
        if not packing.has_layout(coded):
            apart = " with outlier columns" if coded.codec == "vptq" else ""
            self.notes[module] = (
                f"{module}: {coded.codec}{apart} has no packed layout, kept as float16 "
                "with one scale per row"
            )
        return packing.from_payload(coded, activation_bits)

    def _from_latents(self, module: str) -> PackedMatrix:
        import torch

        from agent_forge.models.ternary import ternary_codes

        latents = torch.from_numpy(self.tensors.floats(f"{module}.weight"))
        group = int(self.quantization.get("group_size", 128))
        if module.endswith("embed_tokens") or latents.shape[1] < group:
            return self._from_floats(module)
        codes, scales = ternary_codes(latents, group)
        # One scale per row or per tensor is the same in every group.
        group = group if group > 0 else latents.shape[1]
        return packing.from_codes(
            (codes + 1).to(torch.uint8).numpy(), scales.view(torch.int16).numpy().view(np.uint16),
            "bfloat16", group=group, zero=1,
            activation_bits=int(self.quantization.get("activation_bits", 8)),
        )  # fmt: skip

    def _from_rounded(self, module: str) -> PackedMatrix:
        """Return an embedding or head as its layer rounds it: 8, 4 or 2 bits."""
        import torch

        from agent_forge.models.ternary import grid

        latents = torch.from_numpy(self.tensors.floats(f"{module}.weight"))
        bits = int(self.quantization["embedding_bits"])
        group = int(self.quantization.get("embedding_group", 0))
        codes, steps = grid(latents, bits, group)
        zero = 2 ** (bits - 1)
        return packing.from_codes(
            (codes.to(torch.int16) + zero).to(torch.uint8).numpy(),
            steps.view(torch.int16).numpy().view(np.uint16),
            "bfloat16", group=group or latents.shape[1], zero=zero,
        )  # fmt: skip

    def _from_floats(self, module: str) -> PackedMatrix:
        name = f"{module}.weight"
        values, dtype = self.tensors.get(name), self.tensors.dtype(name)
        if dtype not in FLOATS:
            raise CheckpointError(f"{name} is of type {dtype}, expected one of {', '.join(FLOATS)}")
        return packing.from_floats(
            values.view(np.uint16) if dtype == "F16" else values, FLOATS[dtype]
        )


def _is_skipped(name: str, patterns: list[str]) -> bool:
    from agent_forge.models.ternary import is_skipped

    return is_skipped(name, patterns)


def _check_sizes(shape: Shape, matrices: Mapping[str, PackedMatrix]) -> None:
    """Raise CheckpointError for a matrix of another shape than the config's.

    The engine goes by the config and would read beyond the matrix.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    expected = {
        "q": (queries, shape.hidden), "k": (keys, shape.hidden), "v": (keys, shape.hidden),
        "o": (shape.hidden, queries), "gate": (shape.inner, shape.hidden),
        "up": (shape.inner, shape.hidden), "down": (shape.hidden, shape.inner),
        "embedding": (shape.vocabulary, shape.hidden), "head": (shape.vocabulary, shape.hidden),
    }  # fmt: skip
    for name, matrix in matrices.items():
        size = expected[name.rpartition(".")[2]]
        if (matrix.layout.rows, matrix.layout.columns) != size:
            raise CheckpointError(
                f"matrix {name} is {matrix.layout.rows} x {matrix.layout.columns}, "
                f"config.json says {size[0]} x {size[1]}"
            )


def _sharing_columns(matrices: Mapping[str, PackedMatrix]) -> dict[str, PackedMatrix]:
    """Let matrices of mixed widths with equal column scales hold the same arrays.

    The engine rounds activations once per address of those scales: queries, keys and values then
    share the rounded activations, as gate and up do. A tied head stays the same object as the
    embedding.
    """
    known: dict[bytes, dict[str, Array]] = {}
    replacements: dict[int, PackedMatrix] = {}
    for matrix in matrices.values():
        if matrix.layout.kind == "mixed" and id(matrix) not in replacements:
            own = {
                name: np.ascontiguousarray(matrix.arrays[name])
                for name in ("order", "column_scales")
            }
            shared = known.setdefault(own["order"].tobytes() + own["column_scales"].tobytes(), own)
            replacements[id(matrix)] = replace(matrix, arrays={**matrix.arrays, **shared})
    return {name: replacements.get(id(matrix), matrix) for name, matrix in matrices.items()}


def save(model: PackedModel, path: Path) -> int:
    """Write a packed file, which `load` memory-maps; return its size in bytes."""
    tensors: dict[str, Array] = {f"norm/{name}": array for name, array in model.norms.items()}
    layouts = {}
    for name, matrix in model.matrices.items():
        if name == "head" and matrix is model.matrices["embedding"]:
            continue
        layouts[name] = asdict(matrix.layout)
        arrays = {**matrix.arrays, **({} if matrix.bias is None else {"bias": matrix.bias})}
        tensors |= {f"{name}/{part}": array for part, array in arrays.items()}
    checks = {name: zlib.crc32(np.ascontiguousarray(array).data) for name, array in tensors.items()}
    metadata = {
        "format": FORMAT, "version": str(VERSION), "shape": json.dumps(asdict(model.shape)),
        "layouts": json.dumps(layouts), "crc32": json.dumps(checks),
        "notes": json.dumps(list(model.notes)),
    }  # fmt: skip
    return write(path, tensors, metadata)


def _open_packed(path: Path, threads: int) -> PackedModel:
    tensors = Tensors(path)
    if tensors.metadata.get("format") != FORMAT or tensors.metadata.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} is not a packed file of version {VERSION}; write one with `forge "
            "export DIR --format packed --out FILE`"
        )
    arrays = {name: tensors.get(name) for name in tensors.names()}
    for name, expected in json.loads(tensors.metadata["crc32"]).items():
        if zlib.crc32(arrays[name].data) != expected:
            raise CheckpointError(
                f"{path}: the checksum of {name} differs, the file is damaged; export it again"
            )
    fields = json.loads(tensors.metadata["shape"])
    shape = Shape(**{**fields, "frequencies": tuple(fields["frequencies"])})
    matrices = {}
    for name, layout in json.loads(tensors.metadata["layouts"]).items():
        own = {
            key.partition("/")[2]: array
            for key, array in arrays.items()
            if key.startswith(f"{name}/")
        }
        bias = own.pop("bias", None)
        matrices[name] = replace(PackedMatrix(Layout(**layout), own), bias=bias)
    matrices.setdefault("head", matrices["embedding"])
    matrices = _sharing_columns(matrices)
    norms = {
        name.partition("/")[2]: array for name, array in arrays.items() if name.startswith("norm/")
    }
    return PackedModel(shape, matrices, norms, threads, json.loads(tensors.metadata["notes"]))
