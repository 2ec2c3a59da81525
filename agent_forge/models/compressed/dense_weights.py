"""Dense weights during generation, for layers that multiply faster with them than with codes."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from agent_forge.core.device import free_bytes
from agent_forge.models.compressed.layers import CompressedLinear

DENSE_SAFETY = 4  # dense weights are only held where this many times their size is free
_log = logging.getLogger("agent_forge")


@contextmanager
def decoding(model: nn.Module, rows: int) -> Iterator[None]:
    """Hold dense weights in the context for layers that multiply `rows` tokens faster with them.

    This happens only on CUDA, and where free memory holds them several times. Which form is faster
    is measured once per kind and shape.
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
    _log.info("generation of %d row(s): %d of %d matrices are multiplied in %s, the others as "
        "codes",
              rows, dense, len(layers), str(dtype).removeprefix("torch."))  # fmt: skip
    try:
        yield
    finally:
        for layer in layers:
            layer.decoding_weight = None
