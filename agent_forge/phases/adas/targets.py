"""The matrices of a causal LM that experts and edits may change, as many as a budget holds.

These are the weights of the linear layers in its blocks (anatomy/stack.py); embeddings and the
output head are left alone.
"""

from collections import defaultdict
from collections.abc import Sequence

from torch import nn

from agent_forge.anatomy.stack import Matrix, matrices
from agent_forge.core.errors import PhaseError


def find_matrices(model: nn.Module) -> list[Matrix]:
    """Return the layer matrices in model order. Raises PhaseError when none of them writes an
    attention or an MLP out.
    """
    known = matrices(model)
    roles = {matrix.role for matrix in known}
    if not {"attention_out", "mlp_out"} <= roles:
        raise PhaseError(
            f"{type(model).__name__} has no layer matrices that expert vectors know "
            f"(found: {', '.join(sorted(roles)) or 'none'}); "
            "adas works on models whose layers hold torch.nn.Linear attention and MLP projections"
        )
    return known


def within_budget(matrices: Sequence[Matrix], max_parameters: int) -> list[Matrix]:
    """Return all matrices of as many layers as fit into the budget, spread evenly over depth (at
    least one layer).
    """
    layers: dict[int, list[Matrix]] = defaultdict(list)
    for matrix in matrices:
        layers[matrix.layer].append(matrix)
    order = sorted(layers)
    heaviest = max(sum(m.numel for m in group) for group in layers.values())
    count = min(len(order), max(1, max_parameters // heaviest))
    # Evenly spread, the first and the last among them; a single one is the last.
    last = len(order) - 1
    places = [round(i * last / (count - 1)) for i in range(count)] if count > 1 else [last]
    picks = {order[place] for place in places}
    return [matrix for matrix in matrices if matrix.layer in picks]
