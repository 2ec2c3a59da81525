"""Read weights by name without loading a model: memory-mapped safetensors, or tensors in memory.

Checks of inputs live here too: equal names and shapes, nothing non-finite.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agent_forge.core.errors import CheckpointError
from agent_forge.merge.files import weight_files

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
Form = tuple[tuple[int, ...], torch.dtype]


class Weights:
    """The tensors of one model.

    `forms`: name -> (shape, dtype); `label`: what messages call the model.
    """

    def __init__(self, label: str, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.label = label
        self.forms: dict[str, Form] = {}
        self._tensors = dict(tensors or {})
        self._files: dict[str, Any] = {}
        for name, tensor in self._tensors.items():
            self.forms[name] = (tuple(tensor.shape), tensor.dtype)

    @classmethod
    def open(cls, directory: Path, label: str = "") -> "Weights":
        """Map the .safetensors files of a directory (or one such file).

        Raises CheckpointError naming the broken one.
        """
        weights = cls(label or str(directory))
        for file in [directory] if directory.is_file() else weight_files(directory):
            weights._map(file)
        return weights

    def _map(self, file: Path) -> None:
        try:
            handle = safe_open(file, framework="pt")
            for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not a mapping
                part = handle.get_slice(name)
                dtype = _DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise CheckpointError(
                        f"{file}: {name} has dtype {part.get_dtype()}, which cannot be merged"
                    )
                self.forms[name] = (tuple(part.get_shape()), dtype)
                self._files[name] = handle
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is damaged or missing ({error}); restore it from a copy"
            ) from None

    def get(self, name: str) -> Tensor:
        """Return one tensor, in the dtype it is stored in. Do not write into it."""
        if name in self._tensors:
            return self._tensors[name]
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def only(self, names: Collection[str]) -> "Weights":
        """Return a view of some of the tensors."""
        view = Weights(self.label)
        view._tensors, view._files = self._tensors, self._files
        view.forms = {name: form for name, form in self.forms.items() if name in names}
        return view


def require_same_shapes(models: list[Weights]) -> None:
    """Raise CheckpointError naming the first tensor that models do not share in name and shape."""
    first = models[0]
    for other in models[1:]:
        for name in sorted(set(first.forms) ^ set(other.forms)):
            has, lacks = (first, other) if name in first.forms else (other, first)
            raise CheckpointError(
                f"{has.label} has the tensor {name}, {lacks.label} has not: models of one "
                "architecture are needed"
            )
        for name, (shape, dtype) in first.forms.items():
            theirs, their_dtype = other.forms[name]
            if shape != theirs:
                raise CheckpointError(
                    f"{name} is {list(shape)} in {first.label} and {list(theirs)} in {other.label}"
                )
            if dtype.is_floating_point != their_dtype.is_floating_point:
                raise CheckpointError(
                    f"{name} is {dtype} in {first.label} and {their_dtype} in {other.label}"
                )


def require_finite(models: list[Weights]) -> None:
    """Raise CheckpointError naming the first tensor that holds a NaN or an infinity."""
    for weights in models:
        for name, (_, dtype) in weights.forms.items():
            if dtype.is_floating_point and not bool(torch.isfinite(weights.get(name)).all()):
                raise CheckpointError(
                    f"{weights.label}: {name} holds NaN or infinity; merge a sound checkpoint"
                )
