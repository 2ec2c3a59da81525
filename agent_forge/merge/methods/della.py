"""Drop by magnitude rank, then elect signs. Source: DELLA, arXiv:2406.11617."""

from torch import Tensor

from agent_forge.merge.consensus import add_elected
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.methods import della_linear

METHOD = Method(
    summary="drop by magnitude rank, then sign election",
    base="required",
    each=della_linear.METHOD.each,
    shared=della_linear.METHOD.shared,
)
check = della_linear.check


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    return add_elected(inputs.origin(), della_linear.drop(inputs), inputs.column("weight"), inputs.shared)
