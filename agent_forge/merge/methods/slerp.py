"""Spherical interpolation from the base (t = 0) to another model (t = 1) over flattened tensors.

Source: Shoemake 1985. Directions nearer than |cos| = .9995 are interpolated linearly.
"""

from agent_forge.merge import sphere
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import weighted_sum
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="spherical interpolation of two models",
    base="required",
    models=(1, 1),
    shared={"t": Number(None, low=0.0, high=1.0)},
    narrow=True,
)


def survey(whole: Whole) -> list[float]:
    """Return the weights of base and model, from the angle between the whole tensors."""
    products = sphere.gram(whole, lambda inputs: [inputs.origin(), inputs.tensors[0]])
    cosine = sphere.cosine_of(products[0, 1], products[0, 0], products[1, 1])
    return [
        float(weight) for weight in sphere.slerp_weights(whole.shared["t"], cosine, sphere.COLINEAR)
    ]


def merge(inputs: Inputs) -> Array:
    """Return the interpolated piece."""
    return weighted_sum([inputs.origin(), inputs.tensors[0]], inputs.facts)
