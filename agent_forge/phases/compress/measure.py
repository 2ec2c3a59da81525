"""Quality of a compressed model against its parent on held-out windows, kind by kind of data."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.core.seeds import numpy_generator
from agent_forge.phases.compress import Config

MAX_LOGITS = 1 << 25  # numbers of logits held at once
Windows = Mapping[str, tuple[Tensor, Tensor]]  # kind -> (ids, labels), each (windows, length) int64


def held_out(config: Config, tokenizer: PreTrainedTokenizerFast, split: str) -> Windows:
    """Return `measure.windows` windows of each kind of `calibration.mix` from `split`."""
    found = {}
    for kind in sorted(kind for kind, weight in config.calibration.mix.items() if weight > 0):
        source = data.source(kind, config.data, tokenizer, split, config.seed, rows=8 * config.measure.windows)
        generator = numpy_generator(config.seed, "compress", "measure", split, kind)
        taken = [source.take(generator, config.measure.length_tokens) for _ in range(config.measure.windows)]
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*taken, strict=True))
        found[kind] = (ids, labels)
    return found


@torch.no_grad()
def losses(model: PreTrainedModel, windows: Windows) -> dict[str, Tensor]:
    """Return for each kind (tokens, 2) float32: loss in nats of every labelled token, and the top-1 token."""
    model.eval()
    found = {}
    for kind, (ids, labels) in windows.items():
        parts = []
        rows = max(1, MAX_LOGITS // (ids.shape[1] * int(model.config.get_text_config().vocab_size)))
        for batch, target in zip(ids.split(rows), labels.split(rows), strict=True):
            logits = model(input_ids=batch.to(model.device), use_cache=False).logits[:, :-1].float().cpu()
            scored = target[:, 1:] != -100
            nll = functional.cross_entropy(logits[scored], target[:, 1:][scored], reduction="none")
            parts.append(torch.stack([nll, logits[scored].argmax(-1).float()], 1))
        found[kind] = torch.cat(parts)
    return found


def quality(child: Mapping[str, Tensor], parent: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the child's figures by kind, and `quality`: the lowest exp(-rise of the loss) over the kinds.

    exp(-rise) is the parent's perplexity over the child's. It is asked of every kind, so a tool call that
    the parent is sure of is not traded for text.
    """
    figures: dict[str, Any] = {}
    for kind in parent:
        rise = float((child[kind][:, 0] - parent[kind][:, 0]).double().mean())
        figures[f"{kind}_kept"] = round(math.exp(min(-rise, 50.0)), 5)
        figures[f"{kind}_top1_kept"] = round(float((child[kind][:, 1] == parent[kind][:, 1]).double().mean()), 5)
    figures["quality"] = min(figures[f"{kind}_kept"] for kind in parent)
    return figures
