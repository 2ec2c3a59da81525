"""Read a model's safetensors piece by piece: headers first, then numbers at their offsets.

Files are not mapped, because a mapped file's pages count as this process's memory. Torch is not
needed.
"""

import json
import math
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent_forge.core.errors import CheckpointError, did_you_mean
from agent_forge.merge.arrays import BY_CODE, Array, DType, all_finite
from agent_forge.merge.pieces import Stored

WEIGHTS = "model.safetensors"
IMPORTANCE = "fisher"  # subdirectory of a model with the measured importance of its weights
INDEX = "model.safetensors.index.json"
# how the text begins that Git keeps in the place of a large file
POINTER = b"version https://git-lfs"
# Buffers that older versions of transformers stored; they follow from the config. A bias is one
# where it is a mask, of four dimensions.
OLD_BUFFERS = (
    ".rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias", ".attn.bias",
    ".attention.bias",
)  # fmt: skip
MOST_HEADER_BYTES = 100_000_000  # the format's own limit
Form = tuple[tuple[int, ...], DType]


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A safetensors file that is being read. origin: where its tensors begin, in bytes."""

    path: Path
    descriptor: int
    origin: int
    size: int


class ModelFiles:
    """The tensors of one model directory.

    `forms`: name -> (shape, dtype); `label`: what the recipe calls the model.
    """

    def __init__(self, directory: Path, label: str) -> None:
        self.directory, self.label = directory, label
        self.files = weight_files(directory)
        self.forms: dict[str, Form] = {}
        self._stored: dict[str, Stored] = {}
        self._open: list[int] = []
        for file in self.files:
            self._read_header(file)
        self.importance = (
            ModelFiles(directory / IMPORTANCE, label) if (directory / IMPORTANCE).is_dir() else None
        )

    @property
    def others(self) -> list[str]:
        """Return the names of safetensors files beside the model's that are not part of it."""
        return sorted(
            {path.name for path in self.directory.glob("*.safetensors")}
            - {path.name for path in self.files}
        )

    def rated(self, name: str) -> Stored:
        """Return the measured importance of a tensor; the plan has checked that there is one."""
        assert self.importance is not None
        return self.importance.stored(name)

    def stored(self, name: str) -> Stored:
        """Return a tensor where it lies.

        Reading it raises CheckpointError when it holds a NaN or an infinity.
        """
        return self._stored[name]

    def put(self, name: str, stored: Stored) -> None:
        """Let `name` mean another tensor: a tied one, or one with its rows rearranged."""
        self.forms[name] = (stored.shape, stored.dtype)
        self._stored[name] = stored

    def drop(self, name: str) -> None:
        """Take a tensor out of the model: one that only repeats another."""
        del self.forms[name], self._stored[name]

    def drop_old_buffers(self) -> list[str]:
        """Take out the buffers that follow from the model's config; return their names."""
        names = [
            name
            for name, (shape, _) in self.forms.items()
            if name.endswith(OLD_BUFFERS) and (len(shape) == 4 or not name.endswith(".bias"))
        ]
        for name in names:
            self.drop(name)
        return names

    def close(self) -> None:
        """Close the files."""
        if self.importance is not None:
            self.importance.close()
        while self._open:
            os.close(self._open.pop())

    def _read_header(self, file: Path) -> None:
        try:
            descriptor = os.open(file, os.O_RDONLY)
            self._open.append(descriptor)
            size = os.fstat(descriptor).st_size
            length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
            if os.pread(descriptor, len(POINTER), 0) == POINTER:
                raise CheckpointError(
                    f"{file} only points to the weights; fetch them with `git lfs pull`"
                )
            if size < 8 or length > min(size - 8, MOST_HEADER_BYTES):
                raise CheckpointError(
                    f"{file} is damaged: its header does not fit into the file; restore it from a "
                    "copy"
                )
            header = json.loads(os.pread(descriptor, length, 8), object_pairs_hook=_unique)
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be read: {error.strerror}; restore it from a copy"
            ) from None
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, _TwiceError) else "its header is not JSON"
            raise CheckpointError(f"{file} is damaged: {reason}; restore it from a copy") from None
        if not isinstance(header, dict):
            raise CheckpointError(
                f"{file} is damaged: its header is a list or a number, not tensors by name; restore "
                "it from a copy"
            )
        opened = OpenFile(file, descriptor, 8 + length, size)
        for name, entry in header.items():
            if name != "__metadata__":
                self._add(opened, name, entry)

    def _add(self, opened: OpenFile, name: str, entry: Mapping[str, Any]) -> None:
        file, origin = opened.path, opened.origin
        try:
            code, shape = entry["dtype"], tuple(map(operator.index, entry["shape"]))
            begin, end = map(operator.index, entry["data_offsets"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(
                f"{file} is damaged: its header does not say type, shape and place of {name}; "
                "restore it from a copy"
            ) from None
        dtype = BY_CODE.get(code)
        if dtype is None:
            raise CheckpointError(
                f"{file}: {name} has dtype {code}, which is not read here; convert it to "
                "bfloat16 first"
            )
        if (
            any(side < 0 for side in shape)
            or end - begin != math.prod(shape) * dtype.itemsize
            or not 0 <= begin <= end <= opened.size - origin
        ):
            raise CheckpointError(
                f"{file} is damaged: {name} does not lie where its header says; restore it from a "
                "copy"
            )
        if name in self.forms:
            raise CheckpointError(
                f"{file}: {name} is also in another file of {self.directory}; remove one of them"
            )
        where = f"{self.label}: {name}"

        def read(start: int, stop: int) -> Array:
            count = (stop - start) * dtype.itemsize
            raw = os.pread(opened.descriptor, count, origin + begin + start * dtype.itemsize)
            if len(raw) != count:
                raise CheckpointError(
                    f"{file} became shorter while it was read; restore it from a copy"
                )
            values = np.frombuffer(raw, dtype.stored)
            if not all_finite(values, dtype):
                raise CheckpointError(f"{where} holds NaN or infinity; merge a sound checkpoint")
            return values

        self.put(name, Stored(shape, dtype, read))


class _TwiceError(ValueError):
    """A header that names a tensor twice: one of the two would be dropped."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the entries of a JSON object. Raises _TwiceError for a key that stands twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"its header names '{twice}' twice")
    return entries


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a directory that hold its model, as transformers chooses
    them.

    model.safetensors comes before the files that an index lists; other files beside them (a second
    copy in another format or precision, an adapter) are not part of the model. A lone file may have
    any name.
    Raises CheckpointError when there are none, one is missing, or it cannot be said which ones
    belong to the model.
    """
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if (directory / INDEX).is_file():
        return _listed(directory)
    files = sorted(directory.glob("*.safetensors"))
    if len(files) == 1 and not files[0].name.startswith("adapter_"):
        return files
    if any(file.name.startswith("adapter_") for file in files):
        raise CheckpointError(
            f"{directory} holds an adapter, not a model; merge it into its base model first (peft: "
            "merge_and_unload)"
        )
    if files:
        raise CheckpointError(
            f"{directory} has {len(files)} .safetensors files, but neither {WEIGHTS} nor {INDEX}, "
            "which says which of "
            "them hold the model; restore one of the two"
        )
    raise CheckpointError(
        f"{directory} has no .safetensors weights; run `forge import {directory}` to convert it"
    )


def _listed(directory: Path) -> list[Path]:
    """Return the files that the index lists.

    Raises CheckpointError when it is damaged, or one is missing.
    """
    index = directory / INDEX
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{index} is damaged; restore it from a copy") from None
    if not names:
        raise CheckpointError(f"{index} lists no file; restore it from a copy")
    here = [path.name for path in directory.iterdir()]
    for name in names:
        if name not in here:
            raise CheckpointError(f"{directory / name} is missing{did_you_mean(name, here)}")
    return [directory / name for name in names]
