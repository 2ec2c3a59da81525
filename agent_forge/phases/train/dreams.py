"""Replay of what the model itself generates, mixed into new training so that old abilities stay.

A dream begins with a few real tokens and goes on by sampling. Two guards: dreams must be nearly as
diverse as real text (distinct bigrams), and replay ends as soon as the loss on real held-out text
has risen. Source: generative replay, arXiv:1705.08690; for language models arXiv:1909.03329
(LAMOL).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agent_forge import models
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import TextSource
from agent_forge.evaluate import row_nll
from agent_forge.learn import Batches, StepRecord
from agent_forge.phases.train import DreamConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

# The label that torch leaves out of a cross-entropy.
IGNORE = -100


def dream(
    model: Any, text: TextSource, config: DreamConfig, *, length_tokens: int, seed: int, stage: str
) -> dict[str, Tensor]:
    """Return {"dreams", "real"}: (windows, length_tokens) int64 each.

    Both begin with the same real prompts.
    """
    generator = numpy_generator(seed, "train", stage, "prompts")
    real = np.stack([text.take(generator, length_tokens)[0] for _ in range(config.windows)])
    prompts = real[:, : config.prompt_tokens].tolist()
    new = models.generate(
        model,
        prompts,
        models.Decoding(
            max_new_tokens=length_tokens - config.prompt_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed_for(seed, "train", stage, "dreams"),
        ),
    )
    dreams = np.asarray(
        [prompt + tokens for prompt, tokens in zip(prompts, new, strict=True)], np.int64
    )
    return {"dreams": torch.from_numpy(dreams), "real": torch.from_numpy(real)}


def distinct_bigrams(windows: Tensor) -> float:
    """Return the share of different bigrams among all bigrams of windows (n, T).

    It is 1 when none repeats.
    """
    pairs = torch.stack([windows[:, :-1].flatten(), windows[:, 1:].flatten()], 1)
    return len(torch.unique(pairs, dim=0)) / len(pairs)


class DreamSource:
    """Dreams as a source of `data.Mixture`; the real prompt is not learned again."""

    def __init__(self, dreams: Tensor, prompt_tokens: int) -> None:
        self.ids: NDArray[np.int64] = dreams.numpy()
        self.labels = self.ids.copy()
        self.labels[:, :prompt_tokens] = IGNORE

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return ids and labels of a random dream, cut to (length,)."""
        row = int(generator.integers(len(self.ids)))
        return self.ids[row, :length], self.labels[row, :length]


def text_loss(model: Any, windows: Tensor) -> float:
    """Return the mean loss in nats per token on real windows (n, T)."""
    # The first token of a window has nothing before it to be predicted from.
    mask = [False] + [True] * (windows.shape[1] - 1)
    pairs = row_nll(model, [(row, mask) for row in windows.tolist()])
    return float(pairs[:, 0].sum() / pairs[:, 1].sum())


class ReplayGuard:
    """The batches of a dream stage, and the controller that watches them.

    Batches hold replay until the loss on real text has risen, and none after that.
    """

    def __init__(
        self,
        config: DreamConfig,
        with_dreams: Batches,
        without: Batches,
        held_out: Tensor,
        before: float,
        stage: str,
        events: EventLog,
    ) -> None:
        self.config, self.with_dreams, self.without = config, with_dreams, without
        self.held_out, self.before, self.stage, self.events = held_out, before, stage, events
        self.ended_at = -1

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step."""
        return (self.with_dreams if self.ended_at < 0 else self.without).batch(step)

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
        """Measure the loss on real held-out text every `every_steps` steps; return no controls."""
        if self.ended_at >= 0 or (record.step + 1) % self.config.every_steps:
            return {}
        # Real text, because the loss on dreams falls even while a model forgets.
        now = text_loss(model, self.held_out)
        if now > self.before + self.config.limit_nats:
            self.ended_at = record.step
            self.events.warning(
                f"{self.stage}, step {record.step}: replay ends, because the loss on real text went from "
                f"{self.before:.4f} to {now:.4f} nats per token",
                stage=self.stage,
            )
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the step at which replay ended, -1 while it goes on."""
        return {"ended_at": self.ended_at}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.ended_at = int(state["ended_at"])
