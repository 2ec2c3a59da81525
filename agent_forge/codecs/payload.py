"""One coded tensor as bytes: magic, CRC-32, a short header, then entropy-coded byte planes.

The bits that a codec states are these bytes. A payload whose checksum does not fit is named and
never decoded.
"""

import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.codecs import entropy, host
from agent_forge.core.errors import CheckpointError

MAGIC = b"FP"
PREFIX = struct.Struct("<2sIH")  # magic, CRC-32 of all that follows it, header length

Parts = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Payload:
    """A coded matrix.

    data: the bytes on disk.  shape: (rows, columns).  relative_error: |W - decoded|² / |W|², None
    when read from disk.
    """

    codec: str
    shape: tuple[int, int]
    meta: dict[str, Any]
    parts: Parts
    data: bytes
    relative_error: float | None = None

    @property
    def bits(self) -> float:
        """Return bits per weight, side information, header and checksum included."""
        return 8 * len(self.data) / (self.shape[0] * self.shape[1])


def write(codec: str, shape: tuple[int, int], meta: dict[str, Any], parts: Parts) -> bytes:
    """Return the bytes of a payload."""
    streams: list[bytes] = []
    layout: dict[str, list[Any]] = {}
    for name, array in parts.items():
        planes = [
            host.call(entropy.compress, plane, entries=plane.size) for plane in _planes(array)
        ]
        layout[name] = [array.dtype.str[1:], list(array.shape), [len(plane) for plane in planes]]
        streams += planes
    header = json.dumps([codec, list(shape), meta, layout], separators=(",", ":")).encode()
    body = struct.pack("<H", len(header)) + header + b"".join(streams)
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def read(data: bytes, where: str) -> Payload:
    """Return the payload in `data`.

    Raises CheckpointError naming `where` when the bytes are damaged.
    """
    damaged = f"the payload of {where} is damaged"
    remedy = "restore the checkpoint from a copy or run `forge compress` again"
    if len(data) < PREFIX.size or data[:2] != MAGIC:
        raise CheckpointError(f"{damaged}: it does not start as a payload; {remedy}")
    _, checksum, header_bytes = PREFIX.unpack_from(data)
    if zlib.crc32(memoryview(data)[6:]) != checksum:
        raise CheckpointError(f"{damaged}: its checksum differs; {remedy}")
    codec, shape, meta, layout = json.loads(data[PREFIX.size : PREFIX.size + header_bytes])
    position = PREFIX.size + header_bytes
    parts: Parts = {}
    for name, (dtype, part_shape, lengths) in layout.items():
        count = int(np.prod(part_shape))
        planes = []
        for length in lengths:
            stream = data[position : position + length]
            planes.append(host.call(entropy.expand, stream, count, entries=count))
            position += length
        together = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1).reshape(-1)
        parts[name] = together.view(f"<{dtype}").reshape(part_shape)
    return Payload(codec, (shape[0], shape[1]), meta, parts, data)


def _planes(array: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """Return the byte planes of an array, least significant first.

    So exponents are compressed apart from mantissas.
    """
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).reshape(-1)
    table = little.view(np.uint8).reshape(len(little), array.dtype.itemsize)
    return [np.ascontiguousarray(table[:, i]) for i in range(array.dtype.itemsize)]
