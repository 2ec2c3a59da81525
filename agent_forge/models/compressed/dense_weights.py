"""Dense weights, while a model generates, for the layers that multiply faster by them than by codes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from agent_forge.core.device import free_bytes
from agent_forge.models.compressed.layers import CompressedLinear

DENSE_SAFETY = 4  # dense weights are held for generation where this many times their bytes are free
_log = logging.getLogger("agent_forge")


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
