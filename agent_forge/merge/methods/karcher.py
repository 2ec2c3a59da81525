"""Riemannian (Karcher) mean of the models' directions, scaled to their mean length.

The iteration stays in the span of the models, so it runs on their inner products and ends with one
weight per model.
"""

from agent_forge.merge import sphere
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import weighted_sum
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="Riemannian mean of the directions",
    base="unused",
    shared={"max_iter": Number(10, low=1, high=10000, whole=True), "tol": Number(1e-5, low=0.0)},
    narrow=True,
)


def survey(whole: Whole) -> list[float]:
    """Return the weight of each model in the mean."""
    products = sphere.gram(whole, lambda inputs: inputs.tensors)
    return sphere.karcher_weights(products, whole.shared["max_iter"], whole.shared["tol"])


def merge(inputs: Inputs) -> Array:
    """Return the mean."""
    return weighted_sum(inputs.tensors, inputs.facts)
