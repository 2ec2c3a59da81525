"""The kinds of text that compress calibrates on and measures: a mix of kinds, or a data set's domains.

Reads `calibration.texts`, a data set of `forge data build`, or else `calibration.mix`.
"""

from transformers import PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.data import sets
from agent_forge.data.sources import Source
from agent_forge.phases.compress import Config


def shares(config: Config) -> dict[str, float]:
    """Return kind or domain -> share of the windows, of those above 0, in alphabetical order.

    Raises DataError for a data set that is not whole.
    """
    settings = config.calibration
    mix = sets.open_set(settings.texts).shares if settings.texts else settings.mix
    return {kind: mix[kind] for kind in sorted(mix) if mix[kind] > 0}


def sources(
    config: Config, tokenizer: PreTrainedTokenizerFast, split: str, rows: int
) -> dict[str, Source]:
    """Return kind or domain -> source of windows of a split. rows: generated rows per kind."""
    if config.calibration.texts:
        data_set = sets.open_set(config.calibration.texts)
        return sets.domain_sources(data_set, config.data, tokenizer, split)
    return {
        kind: data.source(kind, config.data, tokenizer, split, config.seed, rows=rows)
        for kind in shares(config)
    }
