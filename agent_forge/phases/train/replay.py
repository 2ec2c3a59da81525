"""Replay of real rows that the model learned before, beside those of the mix, in every stage.

Where a model is trained on little data of one kind, rows of the kinds that it came from keep what
it could do, and often make the new kind easier to learn as well. Source: arXiv:2603.04964, replay of
25 to 50% in the fine-tuning of a model of 150 M parameters. Reads data of `replay.mix`, or a data
set of `forge data build` (`replay.texts`). dreams.py puts the model's own text in the same place.
"""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.core.seeds import seed_for
from agent_forge.data import sets
from agent_forge.data.sources import Source
from agent_forge.phases.train import Config

PREFIX = "replay "  # a kind may be both in the mix and replayed


def beside(
    weights: Mapping[str, float], others: Mapping[str, float], share: float
) -> dict[str, float]:
    """Return weights of which `others` have exactly `share`, and the first the rest.

    Within each of the two the proportions stay; a share of 0 changes nothing.
    """
    if share == 0:
        return dict(weights)
    whole, part = sum(weights.values()), sum(others.values())
    rest = {name: (1 - share) * weight / whole for name, weight in weights.items()}
    return rest | {name: share * weight / part for name, weight in others.items()}


def replayed(
    config: Config, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Source], dict[str, float]]:
    """Return the sources that are replayed, and their weights; none with a share of 0."""
    settings = config.replay
    if settings.share == 0:
        return {}, {}
    if settings.texts:
        data_set = sets.open_set(settings.texts)
        sources = sets.domain_sources(data_set, config.data, tokenizer, "train")
        weights = data_set.shares
    else:
        weights = settings.mix
        sources = {
            kind: data.source(
                kind, config.data, tokenizer, "train", seed_for(config.seed, "train", "replay", kind),
                rows=config.mix_rows,
            )
            for kind, weight in weights.items()
            if weight > 0
        }  # fmt: skip
    return (
        {PREFIX + kind: source for kind, source in sources.items()},
        {PREFIX + kind: weights[kind] for kind in sources},
    )
