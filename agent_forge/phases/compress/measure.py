"""Quality of a compressed model against its parent on held-out windows, kind by kind of data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge.anatomy import chunks
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.sources import IGNORE
from agent_forge.phases.compress import Config, texts

# So many logits are held at once on the CPU.
CPU_LOGITS = 1 << 25
Windows = Mapping[str, tuple[Tensor, Tensor]]  # kind -> (ids, labels), each (windows, length) int64


@dataclass(frozen=True, slots=True)
class Reference:
    """Held-out windows, and the parent's losses on them (`losses`), which quality is measured by."""

    windows: Windows
    parent: Mapping[str, Tensor]

    def quality(self, child: PreTrainedModel) -> dict[str, Any]:
        """Return the figures of `quality` for a child."""
        return quality(losses(child, self.windows), self.parent)


def held_out(config: Config, tokenizer: PreTrainedTokenizerFast, split: str) -> Windows:
    """Return `measure.windows` windows of each kind of text of the calibration from `split`.

    Raises ConfigError when the windows of a kind have no scored token: its quality would be 0/0.
    """
    windows = {}
    sources = texts.sources(config, tokenizer, split, 8 * config.measure.windows)
    for kind, source in sorted(sources.items()):
        generator = numpy_generator(config.seed, "compress", "measure", split, kind)
        samples = [
            source.take(generator, config.measure.length_tokens)
            for _ in range(config.measure.windows)
        ]
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*samples, strict=True))
        if not bool((labels[:, 1:] != IGNORE).any()):
            raise ConfigError(
                f"compress: no token of '{kind}' is scored in {config.measure.windows} windows of "
                f"measure.length_tokens={config.measure.length_tokens} tokens ({split} split); "
                f"raise measure.length_tokens or leave '{kind}' out of calibration.mix"
            )
        windows[kind] = (ids, labels)
    return windows


@torch.no_grad()
def losses(model: PreTrainedModel, windows: Windows) -> dict[str, Tensor]:
    """Return for each kind (tokens, 3) float32: loss in nats of every labelled token, the top-1
    token, and its window.
    """
    model.eval()
    token_losses = {}
    for kind, (ids, labels) in windows.items():
        parts: list[Tensor] = []
        rows = _windows_at_once(model, *ids.shape)
        for index, (batch, target) in enumerate(
            zip(ids.split(rows), labels.split(rows), strict=True)
        ):
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1].float()
            target = target[:, 1:].to(logits.device)
            scored = target != IGNORE
            nll = functional.cross_entropy(logits[scored], target[scored], reduction="none")
            window = (scored.nonzero()[:, 0] + index * rows).float()
            parts.append(torch.stack([nll, logits[scored].argmax(-1).float(), window], 1).cpu())
        token_losses[kind] = torch.cat(parts)
    return token_losses


def _windows_at_once(model: PreTrainedModel, count: int, length_tokens: int) -> int:
    """Return how many of `count` windows to score at once: on an accelerator as its memory
    allows.
    """
    per_window = length_tokens * int(model.config.get_text_config().vocab_size)
    if model.device.type == "cpu":
        return max(1, CPU_LOGITS // per_window)
    return chunks.rows_at_once(count, per_window, model.device)


def quality(child: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the child's figures by kind, and `quality`: the lowest exp(-rise of the loss) over the
    kinds.

    exp(-rise) is the parent's perplexity over the child's. Every kind counts, so the allocation
    cannot trade a tool call that the parent is sure of for better text. `quality_low` and
    `quality_high` are its 95% interval. A child whose loss is not finite has quality 0. Raises
    PhaseError when the parent's loss is not finite, or when a kind has no token.
    """
    figures: dict[str, Any] = {}
    intervals = {}
    for kind, before in parent.items():
        if not len(before) or not bool(before[:, 0].isfinite().all()):
            raise PhaseError(
                f"compress: the parent's loss on '{kind}' is not a finite number for each of its "
                f"{len(before)} tokens; compress a checkpoint that passed its gate"
            )
        rises = (child[kind][:, 0] - before[:, 0]).double()
        rises = rises.nan_to_num(nan=torch.inf, posinf=torch.inf)
        rise, half = float(rises.mean()), _half_interval(rises, before[:, 2].long())
        figures[f"{kind}_kept"] = _kept(rise)
        same = child[kind][:, 1] == before[:, 1]
        figures[f"{kind}_top1_kept"] = round(float(same.double().mean()), 5)
        intervals[kind] = (_kept(rise + half), _kept(rise - half))
    worst = min(parent, key=lambda kind: figures[f"{kind}_kept"])
    figures["quality"] = figures[f"{worst}_kept"]
    figures["quality_low"], figures["quality_high"] = intervals[worst]
    return figures


def _kept(rise: float) -> float:
    if math.isnan(rise):  # an infinite loss with an infinite interval
        return 0.0
    return round(math.exp(min(-rise, 50.0)), 5)


def _half_interval(rises: Tensor, windows: Tensor) -> float:
    """Return half the 95% interval of the mean of rises (tokens,).

    Windows are the sampling unit, because the tokens of one window depend on each other. One window
    alone does not show the spread: the interval is then infinite.
    """
    counts = torch.bincount(windows).double()
    used = counts > 0
    sums = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, windows, rises)
    n = int(used.sum())
    if n < 2:
        return math.inf
    # The mean per token is a ratio of two sums over windows; these are its linearised residuals.
    residuals = (sums - rises.mean() * counts)[used]
    variance = residuals.square().sum() * n / (n - 1)
    return 1.96 * float(variance.sqrt()) / len(rises)
