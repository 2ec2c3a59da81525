"""The baseline of equal budget: the trunk, trained as long as a specialist but on its own mix,
measured by the specialists' probes.

What a specialist gains over it is due to its data and settings, not to more steps. Gains are
in nats per trained token, paired over the same held-out items, with a bootstrap interval over them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.core.seeds import seed_for
from agent_forge.phases.cognate import Config
from agent_forge.phases.cognate.probes import OWN_PROBE, probe_rows, recall_items, row_items

NAME = "trunk, trained as long"
Losses = dict[
    str, list[float]
]  # {"losses": nats of each item, "tokens": trained tokens of each item}


def own_items(
    model: Any, tokenizer: PreTrainedTokenizerFast, config: Config, specialists: Sequence[str]
) -> dict[str, Losses]:
    """Return, by specialist, the losses of a Cognate on the items of its own probe."""
    measured = {}
    for name in specialists:
        probe = OWN_PROBE[name]
        if probe == "recall":
            items = recall_items(model, tokenizer, config, config.probe_items, write=True)
        else:
            items = row_items(model, tokenizer, probe_rows(probe, config, config.probe_items))
        measured[name] = {"losses": items.losses.tolist(), "tokens": items.tokens.tolist()}
    return measured


def gain(ours: Losses, other: Losses, seed: int) -> tuple[float, float, float]:
    """Return (nats per token that `ours` is below `other`, low, high) over the same items,
    paired.
    """
    saved, tokens = np.subtract(other["losses"], ours["losses"]), np.asarray(ours["tokens"])
    low, high = evaluate.bootstrap_interval(saved, tokens, seed=seed)
    return float(saved.sum() / tokens.sum()), low, high


def compared(
    items: Mapping[str, Mapping[str, Losses]], rival: Mapping[str, Losses], config: Config
) -> str:
    """Return the gains of the specialists over the trunk that was trained as long, or why there are
    none.
    """
    if not config.starts_from_nothing():
        return "none ran: an imported trunk has no mix of its own to be trained on"
    if not rival:
        return (
            "none ran: training the trunk as long as its specialists is off (baseline=true runs it)"
        )
    seed = seed_for(config.seed, "cognate", "longer")
    gains = []
    for name, other in rival.items():
        value, low, high = gain(items[name][name], other, seed)
        gains.append(f"{name} {value:+.3f} [{low:+.3f}, {high:+.3f}] (n={len(other['losses'])})")
    steps = config.longer_steps()
    return f"nats per token gained on their own probes over the trunk, trained {steps} steps longer: {', '.join(gains)}"
