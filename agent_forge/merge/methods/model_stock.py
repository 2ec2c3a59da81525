"""Interpolate between the base and the mean of the models by the angle of the task vectors. Source: arXiv:2403.19522.

t = N c / (1 + (N - 1) c), c the mean pairwise cosine; per tensor, or per row with `filter_wise`.
"""

from itertools import combinations

import torch
from torch import Tensor

from agent_forge.merge import sphere
from agent_forge.merge.method import Flag, Inputs, Method

METHOD = Method(
    summary="geometry-weighted mean of models and base",
    base="required",
    models=(2, None),
    shared={"filter_wise": Flag(False)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor, float32. A task vector of zeros has cosine 0 with every other."""
    base = inputs.origin()
    per_row = inputs.shared["filter_wise"] and base.dim() > 1
    rows = [delta.flatten(1) if per_row else delta.flatten() for delta in inputs.deltas()]
    lengths = [sphere.norms(row) for row in rows]
    count = len(rows)
    cosines = [
        sphere.dots(rows[i], rows[j]) / (lengths[i] * lengths[j]).clamp_min(1e-300)
        for i, j in combinations(range(count), 2)
    ]
    c = torch.stack(cosines).mean(0)
    t = count * c / (1 + (count - 1) * c)
    mean_delta = torch.stack(rows).double().mean(0)
    return (base.double() + (mean_delta * t).view_as(base)).to(base.dtype)
