"""Data-flow space: a path through (model, layer) pairs, the input of each jump scaled.

Source: Akiba et al. 2024, arXiv:2403.13187.

The scales are folded into weights, so that the result is a plain model. With c the product of the
input scales so far, the residual stream is carried as h / c: each layer after a jump writes 1/c of
its output, and because every layer reads through a scale-free norm, and the head too, nothing else
changes (exactly so up to the norm's epsilon). That needs a pre-norm model whose layers write
through the modules that `writers` names.
"""

from collections.abc import Sequence
from typing import Any

from agent_forge.core.errors import ConfigError
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.recipe import Recipe, Slice, SliceSource

METHOD = Method(
    summary="a path through layers of several models, inputs of jumps scaled",
    base="unused",
    models=(1, 1),
    each={"scale": Number(1.0)},
)
# The last linear maps of attention and MLP in pre-norm models with Llama's names: they add to the
# residual stream.
WRITERS = ("o_proj", "down_proj")


def merge(inputs: Inputs) -> Array:
    """Return the tensor of the layer that the path visits, times its folded scale."""
    return inputs.tensors[0] * inputs.each[0]["scale"]


def jumps(path: Sequence[tuple[str, int]]) -> list[bool]:
    """Return for each position whether it breaks with the one before (the first follows the
    embeddings).
    """
    before = [*path[:1], *path[:-1]]
    return [
        i > 0 and step != (last[0], last[1] + 1)
        for i, (last, step) in enumerate(zip(before, path, strict=True))
    ]


def path_recipe(
    path: Sequence[tuple[str, int]], input_scales: Sequence[float], writers: Sequence[str] = WRITERS
) -> Recipe:
    """Return the recipe of a path; `input_scales` (one per position) count at jumps only.

    Embeddings come from the first model of the path, final norm and head from the last. Raises
    ConfigError on a scale that is not positive.
    """
    if not path or len(input_scales) != len(path):
        raise ConfigError(
            f"a layer path needs one input scale per layer, "
            f"got {len(input_scales)} for {len(path)} layers"
        )
    slices: list[Slice] = []
    product, previous = 1.0, 0.0
    for (model, layer), jump, scale in zip(path, jumps(path), input_scales, strict=True):
        if not scale > 0:
            raise ConfigError(f"input scales of a layer path must be positive, got {scale}")
        product *= scale if jump else 1.0
        last = slices[-1].sources[0] if slices else None
        if last and not jump and product == previous:
            last.layer_range = (last.layer_range[0], layer + 1)
        else:
            slices.append(
                Slice(
                    sources=[
                        SliceSource(
                            model=model,
                            layer_range=(layer, layer + 1),
                            parameters=_folded(product, writers),
                        )
                    ]
                )
            )
        previous = product
    return Recipe(method="dfs", slices=slices)


def _folded(product: float, writers: Sequence[str]) -> dict[str, Any]:
    if product == 1.0:
        return {}
    return {
        "scale": [
            *({"filter": writer, "value": 1.0 / product} for writer in writers),
            {"value": 1.0},
        ]
    }
