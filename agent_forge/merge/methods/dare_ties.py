"""Drop entries of each task vector at random and rescale, then elect signs.

Source: DARE, arXiv:2311.03099.
"""

from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import add_elected, cancelled
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.methods import dare_linear

METHOD = Method(
    summary="random drop and rescale, then sign election",
    base="required",
    each=dare_linear.METHOD.each,
    shared=dare_linear.METHOD.shared,
    narrow=True,
)
check = cancelled
survey = dare_linear.survey


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_elected(
        inputs.origin(), dare_linear.drop(inputs), inputs.column("weight"), inputs.shared
    )
