"""Drop by magnitude rank, elect signs, and average those that agree.

Source: DELLA, arXiv:2406.11617.
"""

from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import add_elected
from agent_forge.merge.method import Flag, Inputs, Method
from agent_forge.merge.methods import della_linear

METHOD = Method(
    summary="drop by magnitude rank, then sign election",
    base="required",
    each=della_linear.METHOD.each,
    shared={**della_linear.METHOD.shared, "normalize": Flag(True)},
    rows=True,
    narrow=True,
)
check = della_linear.check
survey = della_linear.survey


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_elected(
        inputs.origin(), della_linear.drop(inputs), inputs.column("weight"), inputs.shared
    )
