"""Spherical interpolation from the base (t = 0) to one other model (t = 1), over the flattened tensor.

Source: Shoemake 1985. Directions nearer than |cos| = .9995 are interpolated linearly.
"""

from torch import Tensor

from agent_forge.merge import sphere
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="spherical interpolation of two models",
    base="required",
    models=(1, 1),
    shared={"t": Number(None, low=0.0, high=1.0)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the interpolated tensor."""
    base = inputs.origin()
    return sphere.slerp(inputs.shared["t"], base.flatten(), inputs.tensors[0].flatten()).view_as(base)
