"""Take one model's tensor, times `scale`; with slices this stacks layers (frankenmerge)."""

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="one model's tensor, scaled; stacks layers",
    base="unused",
    models=(1, 1),
    each={"scale": Number(1.0)},
)


def merge(inputs: Inputs) -> Array:
    """Return the scaled tensor."""
    return inputs.tensors[0] * inputs.each[0]["scale"]
