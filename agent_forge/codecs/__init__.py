"""Weight codecs: a matrix to bytes and back, with the bits it takes and the error it leaves.

One file per codec, found by its name: `Settings` (a dataclass), `encode(weight, settings, hessian)
-> (parts, meta)`, `unpack(parts, meta, shape) -> compact tensors`, `dense(tensors, meta, shape,
rows) -> Tensor`. The compact tensors are what a compressed layer keeps in memory; `decode` is
`dense` of `unpack`. Numbers in and out are float32. Matrices are coded on the device where they
lie; entropy coding, and what `unpack` reads from bytes, is work of the CPU.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, PhaseError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from agent_forge.codecs.payload import Payload

# Modules of this folder that serve the codecs and are not codecs themselves.
SERVICES = ("allocate", "compensate", "entropy", "host", "payload", "range_decoder")


def names() -> list[str]:
    """Return the names of all codecs, sorted."""
    return [name for name in registry.names(__name__) if name not in SERVICES]


def load(name: str) -> ModuleType:
    """Return the codec called `name`.

    Raises ConfigError naming the nearest one when there is none.
    """
    if name not in names():
        raise ConfigError(
            f"no codec '{name}'{did_you_mean(name, names())}; known: {', '.join(names())}"
        )
    return registry.load(__name__, name, "codec")


def settings(name: str, overrides: Mapping[str, Any]) -> Any:
    """Return the codec's typed settings.

    Raises ConfigError on an unknown name or a value out of range.
    """
    module = load(name)
    known = [field.name for field in fields(module.Settings)]
    for key in overrides:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"codec {name}: no setting '{key}'{hint}; known: {', '.join(known)}")
    return module.Settings(**overrides)


def encode(
    name: str,
    weight: "Tensor",
    overrides: Mapping[str, Any],
    hessian: "Tensor | None" = None,
    importance: "Tensor | None" = None,
) -> "Payload":
    """Code `weight` (rows, columns), and measure the relative error on the payload's own bytes,
    read back.

    The work is done on the weight's device, to which the other tensors are moved.
    hessian: E[x xᵀ] of the layer's inputs, (columns, columns), for codecs that compensate errors.
    importance: (rows,) with mean 1, for codecs that spend bits where a row matters (`weighs_rows`
    in their module).
    Raises PhaseError when the weight is not a matrix or not finite.
    """
    return encode_and_decode(name, weight, overrides, hessian, importance)[0]


def encode_and_decode(
    name: str,
    weight: "Tensor",
    overrides: Mapping[str, Any],
    hessian: "Tensor | None" = None,
    importance: "Tensor | None" = None,
) -> "tuple[Payload, Tensor]":
    """Return what `encode` returns, and `decode` of it: the bytes are read back once for both."""
    from agent_forge.codecs import payload

    if weight.ndim != 2 or not weight.numel():
        raise PhaseError(
            f"codec {name}: a matrix with at least one weight is needed, got shape "
            f"{tuple(weight.shape)}"
        )
    if not bool(weight.isfinite().all()):
        raise PhaseError(
            f"codec {name}: the weight holds NaN or infinity; compress a checkpoint that passed "
            "its gate"
        )
    module = load(name)
    weight = weight.detach().float()
    hessian = None if hessian is None else hessian.to(weight.device)
    importance = None if importance is None else importance.to(weight.device)
    weights = {"importance": importance} if getattr(module, "weighs_rows", False) else {}
    parts, meta = module.encode(weight, settings(name, overrides), hessian, **weights)
    shape = (weight.shape[0], weight.shape[1])
    coded = payload.read(payload.write(name, shape, meta, parts), "a fresh encoding")
    decoded = decode(coded, weight.device)
    error = float((decoded - weight).square().sum() / weight.square().sum().clamp_min(1e-30))
    return payload.Payload(name, shape, coded.meta, coded.parts, coded.data, error), decoded


def unpack(coded: "Payload") -> "dict[str, Tensor]":
    """Return the compact tensors of a payload, as a compressed layer keeps them in memory."""
    return dict(load(coded.codec).unpack(coded.parts, coded.meta, coded.shape))


def decode(coded: "Payload", device: "torch.device | str" = "cpu") -> "Tensor":
    """Return the matrix: (rows, columns) float32 on `device`."""
    compact = {name: tensor.to(device) for name, tensor in unpack(coded).items()}
    result: Tensor = load(coded.codec).dense(compact, coded.meta, coded.shape, None)
    return result


def scaled(coded: "Payload", gains: "Tensor") -> "Payload | None":
    """Return the payload of the same codes with each row times its gain (rows,).

    None when the payload holds no float16 scales.

    Scales are rounded to float16 as stored, and kept within its range.
    """
    import numpy as np

    from agent_forge.codecs import payload

    scales = coded.parts.get("s")
    if scales is None or scales.dtype != np.float16 or len(scales) != coded.shape[0]:
        return None
    factors = gains.numpy().reshape(-1, *[1] * (scales.ndim - 1))
    changed = np.clip(scales.astype(np.float32) * factors, 6.2e-5, 6.5e4).astype(np.float16)
    data = payload.write(coded.codec, coded.shape, coded.meta, {**coded.parts, "s": changed})
    return payload.read(data, "a rescaled encoding")
