"""SubLN: normalise the input of some layers (usually output projections), and still start close to
the parent.

Source: BitNet, arXiv:2310.11453 and BitDistill, arXiv:2510.13998. A parent that was trained without
it has layers whose inputs differ in size from token to token, which the normalisation takes away.
The gains begin as the mean size seen on calibration windows, so a typical token passes unchanged
and training has only the rest to make up for.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.anatomy.watch import watching
from agent_forge.models.ternary import ternary_layers


@torch.no_grad()
def mean_sizes(model: nn.Module, windows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the mean root mean square of the inputs of each layer that normalises: name -> (1,)
    float32.

    Measured with dense weights and without normalisation. Layers that the windows never reach are
    left out.
    """
    normed = {
        name: layer
        for name, layer in ternary_layers(model).items()
        if layer.norm_weight is not None
    }
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(normed, 0)

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], __: Any) -> None:
            sizes = inputs[0].float().square().mean(-1).sqrt()
            sums[name] = sums.get(name, torch.zeros(1, device=sizes.device)) + sizes.sum()
            counts[name] += sizes.numel()

        return note

    gains = {name: layer.norm_weight for name, layer in normed.items()}
    blends = {name: layer.blend for name, layer in ternary_layers(model).items()}
    try:
        for layer in ternary_layers(model).values():
            layer.norm_weight, layer.blend = None, 0.0
        with watching(after=[(layer, hook(name)) for name, layer in normed.items()]):
            for ids in windows:
                model(input_ids=ids, use_cache=False)
    finally:
        for name, layer in ternary_layers(model).items():
            layer.norm_weight, layer.blend = gains.get(name), blends[name]
    return {name: total / counts[name] for name, total in sums.items()}


@torch.no_grad()
def set_gains(model: nn.Module, sizes: dict[str, Tensor]) -> None:
    """Give every gain of a layer the size measured for it."""
    layers = ternary_layers(model)
    for name, size in sizes.items():
        gains = layers[name].norm_weight
        assert gains is not None
        gains.fill_(float(size))
