"""How fast small differences grow: through depth, into the logits, and through training. Measured, never asserted.

- depth exponent: a tangent vector is carried through every block and renormalised after each (Benettin et al. 1980);
  the mean of ln(growth) in nats a block. 0 is the edge of chaos, above it differences grow.
- logit sensitivity: KL(p(h) || p(h + d)) / |d|^2 for a random d at the first block's input.
- weight-twin exponent: (1/t) ln(|D_t| / |D_0|) of two copies of the weights trained on the same batches.
Tangents are central differences: blocks run on [h, h + d, h - d] in one forward, so any block works, looped ones too.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.config import OptimConfig
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import seed_for, torch_generator
from agent_forge.learn import Batches, Optimisers, lm_loss

TINY = 1e-30


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the stack of blocks: the list of modules that holds the most parameters. Raises PhaseError without one."""
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not found:
        raise PhaseError(
            f"{type(model).__name__} has no list of blocks to measure; the train phase needs a stacked model"
        )
    return max(found, key=lambda blocks: sum(parameter.numel() for parameter in blocks.parameters()))


@torch.no_grad()
def depth_exponent(model: Any, batch: Mapping[str, Tensor], *, relative_step: float, seed: int) -> float:
    """Return the mean ln of a random tangent's growth a block, in nats; batch: {"input_ids", "labels"}, (B, T) each."""
    tangent = _Tangent(relative_step, torch_generator(seed, "depth exponent"))
    blocks = decoder_blocks(model)
    hooks = [blocks[0].register_forward_pre_hook(tangent.start, with_kwargs=True)]
    hooks += [block.register_forward_hook(tangent.carry) for block in blocks]
    threefold = {key: value.repeat(3, *[1] * (value.ndim - 1)) for key, value in batch.items()}
    try:
        with _probing(model):
            lm_loss(model, threefold, 0)
    finally:
        for hook in hooks:
            hook.remove()
    return float(torch.stack(tangent.logs).mean())


class _Tangent:
    """The hooks that carry one tangent vector a sequence. Rows: B of h, B of h + step u, B of h - step u."""

    def __init__(self, relative_step: float, generator: torch.Generator) -> None:
        self.relative_step, self.generator = relative_step, generator
        self.logs: list[Tensor] = []
        self.step: Tensor | None = None

    def start(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Add a random direction before the first block, once."""
        if self.step is not None:
            return None
        h = _stream(args, kwargs)[: len(_stream(args, kwargs)) // 3]
        direction = torch.randn(h.shape, generator=self.generator, dtype=torch.float32).to(h)
        return _with_stream(args, kwargs, self._spread(h, direction))

    def carry(self, _: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """Note how much the difference grew in this block, and renormalise it."""
        hidden = output[0] if isinstance(output, tuple) else output
        h, above, below = hidden.chunk(3)
        difference = (above - below) / 2
        assert self.step is not None
        self.logs.append((_norm(difference) / self.step).clamp_min(TINY).log().double())
        spread = self._spread(h, difference)
        return (spread, *output[1:]) if isinstance(output, tuple) else spread

    def _spread(self, h: Tensor, direction: Tensor) -> Tensor:
        self.step = self.relative_step * _norm(h).clamp_min(TINY)
        scaled = direction * (self.step / _norm(direction).clamp_min(TINY)).reshape(-1, *[1] * (h.ndim - 1))
        return torch.cat([h, h + scaled, h - scaled])


@torch.no_grad()
def logit_sensitivity(model: Any, input_ids: Tensor, *, relative_step: float, seed: int) -> float:
    """Return the mean over positions of KL(p(h) || p(h + d)) / |d|^2, nats per squared unit. input_ids: (B, T)."""
    generator = torch_generator(seed, "logit sensitivity")
    squared: list[Tensor] = []

    def disturb(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if squared:
            return None
        h, _copy = _stream(args, kwargs).chunk(2)
        scale = relative_step * h.square().mean(-1, keepdim=True).sqrt()
        d = torch.randn(h.shape, generator=generator, dtype=torch.float32).to(h) * scale
        squared.append(d.square().sum(-1))
        return _with_stream(args, kwargs, torch.cat([h, h + d]))

    hook = decoder_blocks(model)[0].register_forward_pre_hook(disturb, with_kwargs=True)
    try:
        with _probing(model):
            logits = model(input_ids=input_ids.repeat(2, 1), use_cache=False).logits
    finally:
        hook.remove()
    p, q = logits.double().log_softmax(-1).chunk(2)
    return float(((p.exp() * (p - q)).sum(-1) / squared[0].double().clamp_min(TINY)).mean())


def twin_exponent(
    model: nn.Module, batches: Batches, optim: OptimConfig, *, steps: int, relative_step: float, seed: int
) -> float:
    """Return (1/t) ln(|D_t| / |D_0|) of twins trained for `steps` steps on the same batches, nats a step.

    Works on copies. The first trains a few steps alone: Adam's very first steps follow only the sign of the gradient.
    """
    device = next(model.parameters()).device
    first = copy.deepcopy(model).train()
    ours = Optimisers(first, optim, None)
    ours.set_scale(1.0)
    for step in range(steps):
        _train_step(first, ours, batches, step, seed, device)
    second = copy.deepcopy(first)
    theirs = Optimisers(second, optim, None)
    theirs.set_scale(1.0)
    theirs.load_tensors(ours.tensors())
    generator = torch_generator(seed, "twins")
    moved = [(p, q) for p, q in zip(ours.parameters, theirs.parameters, strict=True) if p.grad is not None]
    with torch.no_grad():
        for _, q in moved:
            noise = torch.randn(q.shape, generator=generator, dtype=torch.float32).to(q)
            q.add_(noise * relative_step * q.square().mean().sqrt())
    before = _distance(moved)
    if before == 0:
        raise PhaseError("twins are equal although they were disturbed: all weights are zero; check the checkpoint")
    for step in range(steps, 2 * steps):
        for twin, optimisers in ((first, ours), (second, theirs)):
            _train_step(twin, optimisers, batches, step, seed, device)
    return math.log(max(_distance(moved), TINY) / before) / steps


def _train_step(
    model: nn.Module, optimisers: Optimisers, batches: Batches, step: int, seed: int, device: torch.device
) -> None:
    torch.manual_seed(seed_for(seed, "twins", step))
    batch = {key: value.to(device) for key, value in batches.batch(step).items()}
    optimisers.zero_grad()
    loss, _ = lm_loss(model, batch, step)
    loss.backward()
    if optimisers.config.clip_norm > 0:
        nn.utils.clip_grad_norm_(optimisers.parameters, optimisers.config.clip_norm)
    optimisers.step()


def _distance(pairs: list[tuple[nn.Parameter, nn.Parameter]]) -> float:
    return math.sqrt(sum(float((p.detach() - q.detach()).double().square().sum()) for p, q in pairs))


def _norm(x: Tensor) -> Tensor:
    """Return the norm of each row over all its other axes: (rows,)."""
    return x.flatten(1).norm(dim=1)


def _stream(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the hidden states that a block was called with."""
    stream: Tensor = args[0] if args else kwargs["hidden_states"]
    return stream


def _with_stream(
    args: tuple[Any, ...], kwargs: dict[str, Any], stream: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args:
        return (stream, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": stream}


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """Evaluate without dropout and without rounding activations: a staircase has no derivative to measure."""
    training = model.training
    rounding = [(module, module.activation_bits) for module in model.modules() if getattr(module, "activation_bits", 0)]
    model.eval()
    try:
        for module, _ in rounding:
            module.activation_bits = 0  # type: ignore[assignment]
        yield
    finally:
        for module, bits in rounding:
            module.activation_bits = bits  # type: ignore[assignment]
        model.train(training)
