"""A network that predicts itself: L = CE + w * MSE(head(last block), activations of other blocks).

The activations are detached, and scaled to RMS 1 because the stream of a pre-norm model grows with
depth. Too large a weight collapses the activations towards what is easy to predict. Source:
arXiv:2407.10188 (networks that learn to self-model become simpler).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.anatomy.stack import required_blocks, stream_out
from agent_forge.anatomy.watch import watching
from agent_forge.core.seeds import seed_for
from agent_forge.learn import lm_loss

# The epsilon of common RMS norms; a stream of zeros stays zeros.
EPSILON = 1e-6


class SelfModel:
    """The head and the loss function of the self-modelling stage.

    `weight` must be positive; with a weight of 0 the loss would be plain `lm_loss`.
    """

    def __init__(self, model: Any, *, weight: float, targets: int, seed: int) -> None:
        first = next(required_blocks(model, "self-modelling")[0].parameters())
        width = int(model.config.hidden_size)
        self.weight, self.targets = weight, targets
        # The head is drawn from a stream of its own, so that switching it on changes no other draw.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "train", "self model"))
            self.head = nn.Linear(width, width * targets).to(first.device)

    def parameters(self, model: nn.Module) -> list[nn.Parameter]:
        """Return what the stage trains: the model and the head."""
        return [*(p for p in model.parameters() if p.requires_grad), *self.head.parameters()]

    def loss(
        self, model: Any, batch: Mapping[str, Tensor], step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return cross-entropy plus the weighted error of the self-model."""
        streams: list[Tensor] = []

        def note(_: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            streams.append(stream_out(output))

        blocks = required_blocks(model, "self-modelling")
        with watching(after=[(block, note) for block in blocks]):
            loss, metrics = lm_loss(model, batch, step)
        error = self.error(streams)
        return loss + self.weight * error, {**metrics, "self_model_error": error.detach()}

    def error(self, streams: list[Tensor]) -> Tensor:
        """Return the mean squared error of predicting earlier streams from the last one.

        The earlier streams are evenly spread; each stream is (B, T, d).
        """
        # Evenly spread from the first block on; the last block is what predicts.
        last = len(streams) - 1
        chosen = [streams[i * last // self.targets] for i in range(self.targets)]
        target = torch.cat([rms_normalised(stream.detach().float()) for stream in chosen], -1)
        predicted = self.head(rms_normalised(streams[-1].float()))
        return (predicted - target).square().mean()


def rms_normalised(x: Tensor) -> Tensor:
    """Return x (..., d) with root mean square 1 along its last axis."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON)
