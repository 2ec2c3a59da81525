"""Measure how fast small differences grow: through depth, into the logits, and through training.

- depth exponent: a tangent vector is carried through every block and renormalised after each
  (Benettin et al. 1980); the mean of ln(growth) in nats per block. 0 is the edge of chaos; above it
  differences grow.
- logit sensitivity: KL(p(h) || p(h + d)) / |d|^2 for a random d at the first block's input.
- weight-twin exponent: (1/t) ln(|D_t| / |D_0|) of two copies of the weights trained on the same
  batches.
Tangents are central differences: blocks run on [h, h + d, h - d] in one forward, so any block
works, looped ones too.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.anatomy.stack import (
    required_blocks,
    stream_in,
    stream_out,
    with_stream_in,
    with_stream_out,
)
from agent_forge.anatomy.watch import Call, watching
from agent_forge.config import OptimConfig
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import Batches, Optimisers, lm_loss

# Keeps logarithms and quotients finite where a difference is exactly 0.
TINY = 1e-30


@torch.no_grad()
def depth_exponent(
    model: Any, batch: Mapping[str, Tensor], *, relative_step: float, seed: int
) -> float:
    """Return the mean of ln(growth) of a random tangent per block, in nats.

    batch: {"input_ids", "labels"}, (B, T) each.
    """
    tangent = _Tangent(relative_step, torch_generator(seed, "depth exponent"))
    blocks = required_blocks(model, "the train phase")
    threefold = {key: value.repeat(3, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    hooks = [(block, tangent.carry) for block in blocks]
    with watching(before=[(blocks[0], tangent.start)], after=hooks), _probing(model):
        lm_loss(model, threefold, 0)
    return float(torch.stack(tangent.logs).mean())


class _Tangent:
    """The hooks that carry one tangent vector per sequence.

    A batch has 3 B rows: B of h, B of h + step * u, and B of h - step * u.
    """

    def __init__(self, relative_step: float, generator: torch.Generator) -> None:
        self.relative_step, self.generator = relative_step, generator
        self.logs: list[Tensor] = []
        self.step: Tensor | None = None

    def start(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Add a random direction before the first block, once."""
        if self.step is not None:
            return None
        h = stream_in(args, kwargs).chunk(3)[0]
        # Drawn on the CPU, so that every device measures along the same direction.
        direction = torch.randn(h.shape, generator=self.generator, dtype=torch.float32).to(h)
        return with_stream_in(args, kwargs, self._spread(h, direction))

    def carry(self, _: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Record how much the difference grew in this block, and renormalise it."""
        h, above, below = stream_out(output).chunk(3)
        # A central difference: the second-order terms of the two sides cancel.
        difference = (above - below) / 2
        assert self.step is not None
        self.logs.append((_norm(difference) / self.step).clamp_min(TINY).log().double())
        return with_stream_out(output, self._spread(h, difference))

    def _spread(self, h: Tensor, direction: Tensor) -> Tensor:
        # Relative to the stream, which grows with depth in a pre-norm model: a fixed step would be
        # too small to measure in late blocks.
        self.step = self.relative_step * _norm(h).clamp_min(TINY)
        scaled = direction * (self.step / _norm(direction).clamp_min(TINY)).reshape(
            -1, *[1] * (h.ndim - 1)
        )
        return torch.cat([h, h + scaled, h - scaled])


@torch.no_grad()
def logit_sensitivity(model: Any, input_ids: Tensor, *, relative_step: float, seed: int) -> float:
    """Return the mean over positions of KL(p(h) || p(h + d)) / |d|^2, in nats per squared unit.

    input_ids: (B, T).
    """
    generator = torch_generator(seed, "logit sensitivity")
    squared: list[Tensor] = []

    def disturb(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        if squared:
            return None
        # The second half of the batch is a copy of the first, and becomes the disturbed one.
        h, _copy = stream_in(args, kwargs).chunk(2)
        scale = relative_step * h.square().mean(-1, keepdim=True).sqrt()
        d = torch.randn(h.shape, generator=generator, dtype=torch.float32).to(h) * scale
        squared.append(d.square().sum(-1))
        return with_stream_in(args, kwargs, torch.cat([h, h + d]))

    first = required_blocks(model, "the train phase")[0]
    with watching(before=[(first, disturb)]), _probing(model):
        logits = model(input_ids=input_ids.repeat(2, 1), use_cache=False).logits
    # The divergence is quadratic in a small d, so it is small beside float32's rounding of p.
    p, q = logits.double().log_softmax(-1).chunk(2)
    divergence = (p.exp() * (p - q)).sum(-1)
    return float((divergence / squared[0].double().clamp_min(TINY)).mean())


def twin_exponent(
    model: nn.Module,
    batches: Batches,
    optim: OptimConfig,
    *,
    steps: int,
    relative_step: float,
    seed: int,
) -> float:
    """Return (1/t) ln(|D_t| / |D_0|) of twins trained for `steps` steps on the same batches.

    In nats per step; `model` stays as it is. A copy trains `steps` steps alone before it is
    doubled, because Adam's very first steps follow only the sign of the gradient.
    """
    first = copy.deepcopy(model).train()
    ours = Optimisers(first, optim, None)
    # Without warm-up or cool-down, so that the rate of growth is that of one learning rate.
    ours.set_scale(1.0)
    for step in range(steps):
        _train_step(first, ours, batches, step, seed)
    second = copy.deepcopy(first)
    theirs = Optimisers(second, optim, None)
    theirs.set_scale(1.0)
    # The second twin also needs the first one's moments: fresh ones would drive the two apart by
    # themselves.
    theirs.load_tensors(ours.tensors())
    generator = torch_generator(seed, "twins")
    # Only what training moves is disturbed: other weights would stay as far apart for ever.
    pairs = [
        (p, q)
        for p, q in zip(ours.parameters, theirs.parameters, strict=True)
        if p.grad is not None
    ]
    with torch.no_grad():
        for _, q in pairs:
            noise = torch.randn(q.shape, generator=generator, dtype=torch.float32).to(q)
            q.add_(noise * relative_step * q.square().mean().sqrt())
    before = _distance(pairs)
    if before == 0:
        raise PhaseError(
            "twins are equal although they were disturbed: all weights are zero; check the checkpoint"
        )
    for step in range(steps, 2 * steps):
        for twin, optimisers in ((first, ours), (second, theirs)):
            _train_step(twin, optimisers, batches, step, seed)
    return math.log(max(_distance(pairs), TINY) / before) / steps


def _train_step(
    model: nn.Module,
    optimisers: Optimisers,
    batches: Batches,
    step: int,
    seed: int,
) -> None:
    device = next(model.parameters()).device
    torch.manual_seed(seed_for(seed, "twins", step))  # both twins draw the same dropout
    batch = {key: value.to(device) for key, value in batches.batch(step).items()}
    optimisers.zero_grad()
    loss, _ = lm_loss(model, batch, step)
    loss.backward()
    if optimisers.config.clip_norm > 0:
        nn.utils.clip_grad_norm_(optimisers.parameters, optimisers.config.clip_norm)
    optimisers.step()


def _distance(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> float:
    gaps = (p.detach() - q.detach() for p, q in pairs)
    return math.sqrt(sum(float(gap.double().square().sum()) for gap in gaps))


def _norm(x: Tensor) -> Tensor:
    """Return the norm of each row over all its other axes: (rows,)."""
    return x.flatten(1).norm(dim=1)


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout and without rounding activations.

    A function with steps has no derivative to measure.
    """
    training = model.training
    rounding = [
        (module, module.activation_bits)
        for module in model.modules()
        if getattr(module, "activation_bits", 0)
    ]
    model.eval()
    try:
        for module, _ in rounding:
            module.activation_bits = 0  # type: ignore[assignment]
        yield
    finally:
        for module, bits in rounding:
            module.activation_bits = bits  # type: ignore[assignment]
        model.train(training)
