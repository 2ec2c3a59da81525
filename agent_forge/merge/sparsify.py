"""Keep part of a task vector: by magnitude, by magnitude without outliers, at random, at random by rank.

All take a tensor of any shape and return one of the same shape with zeros where entries were dropped.
Sources: TIES (arXiv:2306.01708), Model Breadcrumbs (arXiv:2312.06795), DARE (arXiv:2311.03099), DELLA
(arXiv:2406.11617).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent_forge.core.seeds import torch_generator

Rescale = Literal["density", "l1", "none"]


def top_share(delta: Tensor, density: float) -> Tensor:
    """Keep the max(1, floor(density * n)) entries of largest magnitude, exactly that many (first ones among equals)."""
    count = delta.numel()
    kept = min(count, max(1, int(density * count)))
    return torch.where(largest(delta.abs().flatten(), kept).view_as(delta), delta, 0.0)


def without_outliers(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Drop the top share `gamma` of magnitudes, then from the bottom until the share `density` is left."""
    count = delta.numel()
    kept = max(1, int(density * count))
    top = min(int(gamma * count), count - kept)
    magnitudes = delta.abs().flatten()
    mask = largest(magnitudes, kept + top)
    if top:
        mask &= ~largest(magnitudes, top)
    return torch.where(mask.view_as(delta), delta, 0.0)


def at_random(delta: Tensor, density: float, rescale: Rescale, seed: int, *names: str) -> Tensor:
    """Keep each entry with probability `density`; the mask depends on (seed, names) alone."""
    if density >= 1.0:
        return delta
    kept = torch.from_numpy(draws(seed, ("dare", *names), 0, delta.numel())).view_as(delta).to(delta.device) < density
    return _rescaled(delta, torch.where(kept, delta, 0.0), torch.tensor(density), rescale)


def draws(seed: int, names: Sequence[str], start: int, count: int) -> NDArray[np.float32]:
    """Return uniform draws in [0, 1), float32, for the entries start..start+count of what (seed, names) name."""
    found: NDArray[np.float32] = torch.rand(start + count, generator=torch_generator(seed, *names)).numpy()[start:]
    return found


def at_random_by_rank(
    delta: Tensor, density: float, epsilon: float, rescale: Rescale, seed: int, *names: str
) -> Tensor:
    """Keep entries with a probability rising with the rank of their magnitude in the row, density -/+ epsilon."""
    rows = delta if delta.dim() > 1 else delta.unsqueeze(0)
    width = rows.shape[-1]
    ranks = rows.abs().argsort(dim=-1, stable=True).argsort(dim=-1).to(torch.float32)
    keep = density - epsilon + 2 * epsilon * ranks / max(width - 1, 1)
    keep = (keep if width > 1 else torch.full_like(keep, density)).clamp(0.0, 1.0).view_as(delta)
    draws = torch.rand(delta.shape, generator=torch_generator(seed, "della", *names)).to(delta.device)
    return _rescaled(delta, torch.where(draws < keep, delta, 0.0), keep, rescale)


def restore_l1(kept: Tensor, original: Tensor) -> Tensor:
    """Scale `kept` to the L1 norm of `original`; a vector of zeros stays as it is."""
    after = kept.abs().sum(dtype=torch.float64)
    before = original.abs().sum(dtype=torch.float64)
    return kept * float(before / after) if float(after) > 0 else kept


def _rescaled(original: Tensor, kept: Tensor, probability: Tensor, rescale: Rescale) -> Tensor:
    if rescale == "l1":
        return restore_l1(kept, original)
    if rescale == "density":
        return torch.where(kept != 0, kept / probability.to(kept.device), 0.0)
    return kept


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """Return a mask of exactly `count` largest entries of a flat tensor; among equals the first ones win."""
    total = magnitudes.numel()
    if count >= total:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    threshold = magnitudes.kthvalue(total - count + 1).values
    mask = magnitudes > threshold
    missing = count - int(mask.sum())
    mask[torch.nonzero(magnitudes == threshold).flatten()[:missing]] = True
    return mask
