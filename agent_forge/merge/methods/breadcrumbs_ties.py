"""Drop the largest and smallest entries of each task vector, then elect signs.

Source: arXiv:2312.06795.
"""

from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import add_elected, cancelled
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.methods import breadcrumbs

METHOD = Method(
    summary="task vectors without outliers and noise, sign election",
    base="required",
    each=breadcrumbs.METHOD.each,
    shared=breadcrumbs.METHOD.shared,
    narrow=True,
)
check = cancelled
survey = breadcrumbs.survey


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_elected(
        inputs.origin(), breadcrumbs.trim(inputs), inputs.column("weight"), inputs.shared
    )
