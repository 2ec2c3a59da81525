"""Tensors of safetensors files as memory-mapped numpy arrays, and a writer, without torch.

bfloat16 comes as its bit patterns, uint16. The writer aligns the codes to cache lines. The format
is safetensors: an 8-byte length, a JSON header, then the bytes.
"""

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import CheckpointError
from agent_forge.merge.files import weight_files

Array = NDArray[Any]
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "U16": np.uint16, "U32": np.uint32, "I8": np.int8,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {
    np.dtype(np.float32): "F32", np.dtype(np.uint16): "U16", np.dtype(np.uint8): "U8",
    np.dtype(np.int32): "I32", np.dtype(np.uint32): "U32",
}  # fmt: skip
ALIGNMENT = 64


class Tensors:
    """The tensors of the model in a directory, or of one file. Nothing is read before `get`."""

    def __init__(self, path: Path) -> None:
        files = weight_files(path) if path.is_dir() else [path]
        self._entries: dict[str, tuple[Array, int, dict[str, Any]]] = {}
        self.metadata: dict[str, str] = {}
        self.size_bytes = sum(file.stat().st_size for file in files)
        for file in files:
            self._open(file)

    def _open(self, file: Path) -> None:
        try:
            content = np.memmap(file, np.uint8, mode="r")
            header_bytes = int(content[:8].view("<u8")[0])
            header = json.loads(content[8 : 8 + header_bytes].tobytes())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {file}: {error}; restore it from a copy") from None
        self.metadata |= header.pop("__metadata__", {})
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES or 8 + header_bytes + entry["data_offsets"][1] > len(
                content
            ):
                raise CheckpointError(
                    f"{file}: tensor {name} is damaged or of type {entry['dtype']}; restore "
                    "the file"
                )
            self._entries[name] = (content, 8 + header_bytes, entry)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._entries)

    def dtype(self, name: str) -> str:
        """Return the type of a tensor as its file names it."""
        return str(self._entry(name)[2]["dtype"])

    def get(self, name: str) -> Array:
        """Return a read-only view of a tensor's bytes on disk.

        Raises CheckpointError when there is none.
        """
        content, base, entry = self._entry(name)
        first, last = entry["data_offsets"]
        return (
            content[base + first : base + last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        )

    def floats(self, name: str) -> Array:
        """Return a tensor as a float32 copy."""
        values = self.get(name)
        if self.dtype(name) == "BF16":
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(np.float32)

    def _entry(self, name: str) -> tuple[Array, int, dict[str, Any]]:
        if name not in self._entries:
            raise CheckpointError(
                f"the weights have no tensor {name}; config.json and the weights do not "
                "belong together"
            )
        return self._entries[name]


def write(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> int:
    """Write tensors atomically; return the size of the file in bytes.

    Tensors that fill whole cache lines come first, so that each begins on one.
    """
    order = sorted(
        tensors,
        key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].itemsize, name),
    )
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name in order:
        array = tensors[name]
        end = position + array.nbytes
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    temporary = path.with_name(f"{atomic.TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(np.ascontiguousarray(tensors[name]).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise atomic.storage_error(error, path, position) from error
    return 8 + len(text) + position
