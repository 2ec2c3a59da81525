"""Compute the gradient of a whole batch, in one piece, in parts one after the other, or in several
processes; clip it.

Parts are weighted by their trained tokens, so their sum is the gradient of the mean over all
trained tokens.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.core.device import exact
from agent_forge.learn import distribution, feed
from agent_forge.learn.distribution import World, whole


class Gradients:
    """Runs the objective forward and backward. Products are computed in `dtype` (autocast)."""

    def __init__(
        self,
        objective: nn.Module,
        world: World,
        parts: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.objective, self.world, self.parts = objective, world, parts
        self.device, self.dtype = device, dtype

    def backward(self, batch: dict[str, Tensor], step: int) -> tuple[Any, Mapping[str, Any]]:
        """Accumulate the gradient of the whole batch in the parameters; return its loss and
        metrics.
        """
        if self.world.size == 1 and self.parts == 1:
            loss, metrics = self._forward(batch, step)
            loss.backward()
            return loss.detach(), metrics
        mine = feed.parts_of(batch, self.world.size, "number of processes")[self.world.rank]
        parts = feed.parts_of(mine, self.parts, "runtime.accumulate")
        counts = [feed.trained_tokens(part) for part in parts]
        total = self.world.sums([float(sum(counts))])[0]
        sums: dict[str, Any] = {}
        for number, (part, count) in enumerate(zip(parts, counts, strict=True)):
            if not count:
                # Every process must take part in every exchange. So a part without labels computes
                # a loss on its own ids, with a weight of 0.
                part = {**part, "labels": part["input_ids"]}
            share = count / max(total, 1.0)
            last = number + 1 == len(parts)
            with contextlib.nullcontext() if last else distribution.unsynchronised(self.objective):
                loss, metrics = self._forward(part, step)
                # DDP and FSDP average over processes; the shares already add up to 1.
                (loss * (share * self.world.size)).backward()
            for key, value in {**metrics, "": loss.detach()}.items():
                own = exact(value) if isinstance(value, Tensor) else value
                sums[key] = sums.get(key, 0.0) + share * own if count else sums.get(key, 0.0)
        if self.world.size > 1:
            names = sorted(sums)
            read = numbers(sums)
            sums = dict(zip(names, self.world.sums([read[name] for name in names]), strict=True))
        return sums.pop(""), sums

    def _forward(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, Mapping[str, Any]]:
        with torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        ):
            loss_and_metrics: tuple[Tensor, Mapping[str, Any]] = self.objective(batch, step)
        return loss_and_metrics


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers and tensors () as floats.

    Tensors on an accelerator are read all at once, so that the host waits for it only once.
    """
    remote = {
        key: value
        for key, value in values.items()
        if isinstance(value, Tensor) and value.device.type != "cpu"
    }
    read: dict[str, float] = {}
    if remote:
        together = torch.stack([exact(whole(value)).reshape(()) for value in remote.values()])
        read = dict(zip(remote, together.tolist(), strict=True))
    return {key: read[key] if key in read else float(value) for key, value in values.items()}


def clip(parameters: Sequence[nn.Parameter], most: float) -> Tensor | None:
    """Scale all gradients so that their norm is at most `most`; a limit of 0 leaves them.

    Return their norm before that, (), or None when no parameter has a gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return None
    norm = whole(torch.nn.utils.get_total_norm(gradients))
    # Below the limit the factor is exactly 1, and multiplying by it would only cost time. On an
    # accelerator gradients are multiplied all the same, because reading the norm would wait for it.
    if most > 0 and (norm.device.type != "cpu" or not float(norm) + 1e-6 <= most):
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return norm


def add_noise(parameters: Sequence[nn.Parameter], relative: float) -> None:
    """Add Gaussian noise to each gradient, `relative` times its root mean square."""
    for parameter in parameters:
        if parameter.grad is not None:
            # Relative to each tensor's own gradient: gradients of norms and of matrices differ in
            # size by orders of magnitude.
            scale = relative * parameter.grad.float().square().mean().sqrt()
            parameter.grad.add_(torch.randn_like(parameter.grad) * scale.to(parameter.grad.dtype))
