"""Merge many candidates of one family fast: what they share is computed once and kept.

Each specialist's task vector is kept, and from its first use two classes per entry, one byte each:
the rank of its magnitude and the rank of its random draw. Three kinds of methods then cost a few
passes over memory:

- methods that treat a tensor as one vector (linear, slerp, Karcher, ...) commute with rotations, so
  their result is a combination of the base and the task vectors whose coefficients follow from the
  inner products alone: the method runs on stand-ins of a few numbers with the same inner products;
- masked sums (TIES, DARE, Breadcrumbs) compare rank classes with the density, which must lie on a
  grid of 1/GRID;
- a layer path copies.

Every other recipe runs as a one-shot merge does. Arithmetic is float32; the result is cast once
into the place given.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.apply import merge_tensor
from agent_forge.merge.plan import MergePlan, TensorPlan
from agent_forge.merge.weights import Weights

# Candidates' densities are multiples of 1 / GRID, so that one byte per entry decides a mask.
GRID = 128
CHUNK = 1 << 18  # entries that go through all steps at once, because they then stay in the cache
COMBINATIONS = (
    "linear",
    "task_arithmetic",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
)
SUMS = {
    "dare_linear": False,
    "breadcrumbs": False,
    "ties": True,
    "dare_ties": True,
    "breadcrumbs_ties": True,
}
COPIES = ("passthrough", "dfs")
# With this flag the method works row by row, and is not a combination of whole tensors.
EXCEPTIONS = {"nuslerp_flatten": False, "filter_wise": True}


@dataclass(frozen=True, slots=True)
class StandIns:
    """Vectors of a few numbers that stand for one tensor's models: they have the same inner
    products.

    back: the matrix that turns a vector in their span into its shares of the base and of each task
    vector.
    """

    models: dict[str, Weights]
    back: Tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """classes: for each entry the least d in 1..GRID with entry among the top floor(d * n / GRID)
    (at least 1), uint8.

    last: the entry of lowest magnitude in each class, -1 where a class is empty; [0] is unused.
    """

    classes: Tensor
    last: np.ndarray


class Bank:
    """What candidates merged from `models` share.

    base: label of the model that task vectors start from.
    """

    def __init__(
        self,
        models: Mapping[str, Weights],
        base: str,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.models, self.base, self.seed, self.device = models, base, seed, torch.device(device)
        self._kept: dict[tuple[str, ...], Any] = {}

    def merge_into(
        self,
        plan: MergePlan,
        target: Mapping[str, Tensor],
        between: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy every merged tensor into `target`, as `agent_forge.merge.merge_into` does; `between`
        runs before each.
        """
        with torch.no_grad():
            for tensor in plan.tensors:
                between()
                self._merge(plan, tensor, target[tensor.target])

    def _merge(self, plan: MergePlan, tensor: TensorPlan, place: Tensor) -> None:
        name, method = tensor.target, plan.recipe.method
        alike = all(
            at == name for _, at in [*tensor.sources, *([tensor.base] if tensor.base else [])]
        )
        odd = any(tensor.shared.get(key) == value for key, value in EXCEPTIONS.items())
        family = "" if tensor.copy or not alike or odd else method
        masks = (
            self._masks(method, tensor)
            if family in SUMS and tensor.base == (self.base, name)
            else []
        )
        if method in COPIES and not tensor.copy:
            self._copy(tensor, place)
        elif family in COMBINATIONS:
            self._combine(plan, tensor, place)
        elif masks:
            self._sum(tensor, masks, place, method)
        else:
            place.copy_(merge_tensor(plan, tensor, self.models, self.seed, place.device))

    def _copy(self, tensor: TensorPlan, place: Tensor) -> None:
        label, name = tensor.sources[0]
        place.copy_(self.models[label].get(name))
        scale = tensor.each[0].get("scale", 1.0)
        if scale != 1.0:
            place.mul_(scale)

    # -- combinations ------------------------------------------------------------------------------

    def _combine(self, plan: MergePlan, tensor: TensorPlan, place: Tensor) -> None:
        name = tensor.target
        labels = [self.base, *(label for label in self.models if label != self.base)]
        vectors = self._stand_ins(name, labels)
        merged = merge_tensor(plan, tensor, vectors.models, self.seed)
        shares = (merged.double() @ vectors.back).tolist()
        parts = [self._base(name), *(self._delta(label, name) for label in labels[1:])]
        result = (
            place
            if place.dtype == torch.float32 and place.is_contiguous()
            else torch.empty_like(parts[0])
        )
        torch.mul(parts[0], shares[0], out=result)
        for part, share in zip(parts[1:], shares[1:], strict=True):
            result.add_(part, alpha=share)
        if result is not place:
            place.copy_(result)

    def _stand_ins(self, name: str, labels: list[str]) -> "StandIns":
        def compute() -> StandIns:
            parts = [self._base(name), *(self._delta(label, name) for label in labels[1:])]
            rows, back = stand_ins(_products(parts))
            rows[1:] += rows[0]
            models = {
                label: Weights(label, {name: torch.from_numpy(row)})
                for label, row in zip(labels, rows, strict=True)
            }
            return StandIns(models, torch.from_numpy(back))

        return self._keep(("stand-ins", name), compute)  # type: ignore[no-any-return]

    # -- masked sums -------------------------------------------------------------------------------

    def _sum(self, tensor: TensorPlan, masks: "list[Mask]", place: Tensor, method: str) -> None:
        """Write base + lambda * (sum of w_k M_k D_k), or of those with the elected sign; M_k is a
        mask.
        """
        name = tensor.target
        base = self._base(name).view(-1)
        deltas = [self._delta(label, name).view(-1) for label, _ in tensor.sources]
        scales = [
            each["weight"] / (each["density"] if method.startswith("dare") else 1.0)
            for each in tensor.each
        ]
        result = (
            place.view(-1) if place.is_contiguous() else torch.empty_like(base, dtype=place.dtype)
        )
        for start in range(0, base.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            masked = (
                _masked(delta[part], mask, start) for delta, mask in zip(deltas, masks, strict=True)
            )
            total = _elected(masked, scales) if SUMS[method] else _added(masked, scales)
            result[part] = torch.add(base[part], total, alpha=tensor.shared["lambda"])
        if not place.is_contiguous():
            place.copy_(result.view_as(place))

    def _masks(self, method: str, tensor: TensorPlan) -> "list[Mask]":
        """Return each model's mask; empty when some parameter needs the one-shot way."""
        shared, masks = tensor.shared, []
        rescaled = shared.get("rescale", False) is not method.startswith("dare")
        if shared["normalize"] or rescaled or shared.get("rescale_l1", False):
            return []
        for source, key, each in zip(tensor.sources, tensor.keys, tensor.each, strict=True):
            density, above = each["density"] * GRID, each.get("gamma", 0.0) * GRID
            if density % 1 or above % 1 or density + above > GRID:
                return []
            mask = self._mask(method, source, key, int(density), int(above))
            if mask is None:
                return []
            masks.append(mask)
        return masks

    def _mask(
        self, method: str, source: tuple[str, str], key: str, density: int, above: int
    ) -> "Mask | None":
        """Return the mask of a density and a dropped top, both in units of 1 / GRID.

        source: (label of the model, name of the tensor).
        """
        label, name = source
        if method.startswith("dare"):
            return Mask(self._draws(label, name, key), 0, density, -1)
        ranks = self._ranks(label, name)
        count = ranks.classes.numel()
        top = above * count // GRID
        if not top:
            return Mask(ranks.classes, 0, density, -1)
        # The sum of two floors may be one less than the floor of the sum. The entry in question,
        # the smallest of its class, is left out.
        upper, own = (max(1, share * count // GRID) for share in (density + above, density))
        surplus = upper - own - top
        if surplus < 0:
            return None
        return Mask(
            ranks.classes,
            above,
            density + above,
            int(ranks.last[density + above]) if surplus else -1,
        )

    # -- what is kept ------------------------------------------------------------------------------

    def _base(self, name: str) -> Tensor:
        return self._keep(("base", name), lambda: self._float(self.base, name))

    def _delta(self, label: str, name: str) -> Tensor:
        return self._keep(
            ("delta", label, name), lambda: self._float(label, name) - self._base(name)
        )

    def _draws(self, label: str, name: str, key: str) -> Tensor:
        def draw() -> Tensor:
            count = self._delta(label, name).numel()
            draws = sparsify.draws(self.seed, ("dare", name, key), 0, count)
            return torch.from_numpy((draws * GRID).astype(np.uint8) + np.uint8(1)).to(self.device)

        return self._keep(("draws", key, name), draw)

    def _ranks(self, label: str, name: str) -> Ranks:
        return self._keep(("ranks", label, name), lambda: rank_classes(self._delta(label, name)))

    def _float(self, label: str, name: str) -> Tensor:
        return self.models[label].get(name).to(device=self.device, dtype=torch.float32)

    def _keep(self, key: tuple[str, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]


@dataclass(frozen=True, slots=True)
class Mask:
    """Entries whose class lies in (above, upto], but not entry number `without` (-1: none)."""

    classes: Tensor
    above: int
    upto: int
    without: int


def stand_ins(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors, as rows, that have the inner products (m, m), and the matrix of their shares.

    The matrix turns a vector in their span into its share of each. A vector of length 0 is zeros
    and has no share.
    """
    lengths = np.sqrt(np.maximum(np.diag(products), 0.0))
    safe = np.where(lengths > 0, lengths, 1.0)
    values, axes = np.linalg.eigh(products / np.outer(safe, safe))
    roots = np.sqrt(np.where(values > 1e-14 * max(values.max(), 1e-300), values, 0.0))
    inverse = np.where(roots > 0, 1.0 / np.where(roots > 0, roots, 1.0), 0.0)
    back = np.where(lengths > 0, inverse[:, None] * axes.T / safe, 0.0)
    return axes * roots * lengths[:, None], back


def rank_classes(delta: Tensor) -> Ranks:
    """Return the rank class of each entry by magnitude; among equals the first ranks highest."""
    bits = delta.detach().abs().flatten().cpu().numpy().view(np.int32).astype(np.int64)
    count = len(bits)
    # Magnitudes are ordered as their bits are; the low half makes the first one the greatest among
    # equals.
    keys = (bits << 32) | (count - 1 - np.arange(count, dtype=np.int64))
    keys.sort()
    falling = count - 1 - (keys[::-1] & 0xFFFFFFFF)
    ends = np.maximum(1, np.arange(GRID + 1, dtype=np.int64) * count // GRID)
    classes = np.empty(count, np.uint8)
    classes[falling] = np.searchsorted(ends[1:], np.arange(count), side="right") + 1
    last = np.where(np.diff(ends, prepend=0) > 0, falling[ends - 1], -1)
    last[1] = falling[ends[1] - 1]
    return Ranks(torch.from_numpy(classes).to(delta.device), last)


def _products(parts: list[Tensor]) -> np.ndarray:
    """Return the inner products of tensors of one shape, summed in float64: (m, m)."""
    gram = np.zeros((len(parts), len(parts)))
    flat = [part.reshape(-1) for part in parts]
    for start in range(0, flat[0].numel(), CHUNK):
        rows = torch.stack([part[start : start + CHUNK] for part in flat]).double()
        gram += (rows @ rows.T).cpu().numpy()
    return gram


def _masked(delta: Tensor, mask: Mask, start: int) -> Tensor:
    classes = mask.classes[start : start + len(delta)]
    inside = classes <= mask.upto
    if mask.above:
        inside &= classes > mask.above
    result = inside.to(torch.float32).mul_(delta)  # takes a fifth of the time of torch.where
    if start <= mask.without < start + len(delta):
        result[mask.without - start] = 0.0
    return result


def _added(parts: Iterable[Tensor], scales: Sequence[float]) -> Tensor:
    """Return the scaled sum."""
    total = torch.zeros(())
    for part, scale in zip(parts, scales, strict=True):
        total = total.add_(part, alpha=scale) if total.dim() else part.mul_(scale)
    return total


def _elected(parts: Iterable[Tensor], scales: Sequence[float]) -> Tensor:
    """Return for each entry the scaled sum of its positive or of its negative values.

    The one of greater size wins, the positive one when they are equal. With the sum S and the sum A
    of magnitudes they are (S + A) / 2 and (S - A) / 2.
    """
    total = size = torch.zeros(())
    for part, scale in zip(parts, scales, strict=True):
        total = total.add_(part, alpha=scale) if total.dim() else part * scale
        size = (
            size.add_(part.abs_(), alpha=abs(scale)) if size.dim() else part.abs_().mul_(abs(scale))
        )
    return total.add_(torch.copysign(size, total)).mul_(0.5)
