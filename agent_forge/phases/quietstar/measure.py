"""Measure on held-out tokens what thinking changes, and from that decide when the gate opens.

A record holds one entry per token: its loss in nats with and without thinking, the entropy of the
base's prediction of it, and the mixing weight. Intervals resample whole windows, because tokens of
one window are not independent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agent_forge.core.seeds import seed_for
from agent_forge.data import Mixture
from agent_forge.data.sources import IGNORE, Source
from agent_forge.evaluate import bootstrap_interval
from agent_forge.models.thought import ThoughtForCausalLM, entropy_nats
from agent_forge.phases.quietstar import Config
from agent_forge.phases.quietstar.objective import outcome

Array = NDArray[Any]
DECILES = 10


def held_out(
    config: Config, sources: Mapping[str, Source], split: str
) -> dict[str, dict[str, Tensor]]:
    """Return measure.windows windows of every kind: kind -> {"input_ids", "labels", "positions"}.

    Positions are spread evenly over the columns whose next token is trained. Where a window has too
    few of them, the other positions are -1, which do not count.
    """
    windows = {}
    for kind, source in sources.items():
        mixture = Mixture(
            {kind: source}, {kind: 1.0}, rows=config.measure.windows, length_tokens=config.length_tokens,
            seed=config.seed, name=f"quietstar-{split}-{kind}",
        )  # fmt: skip
        batch = mixture.batch(0)
        rows = [_spread(row, config.measure.positions) for row in batch["labels"]]
        windows[kind] = {**batch, "positions": torch.stack(rows)}
    return windows


def _spread(labels: Tensor, count: int) -> Tensor:
    """Return `count` columns, ascending; a row with fewer trained tokens is filled up with -1."""
    trained = (labels[1:] != IGNORE).nonzero().flatten()
    if len(trained) > count:
        # Evenly spread rather than drawn, so that a second measurement meets the same tokens.
        trained = trained[torch.linspace(0, len(trained) - 1, count).long()]
    return torch.nn.functional.pad(trained, (0, count - len(trained)), value=-1)


@torch.no_grad()
def base_losses(
    model: Any, windows: Mapping[str, Mapping[str, Tensor]], rows: int, device: torch.device
) -> dict[str, Tensor]:
    """Return kind -> losses in nats without thinking: (windows, positions).

    NaN stands where a position does not count.
    """
    losses_by_kind = {}
    for kind, batch in windows.items():
        parts = []
        for start in range(0, len(batch["input_ids"]), rows):
            ids, labels, positions = (
                batch[key][start : start + rows].to(device)
                for key in ("input_ids", "labels", "positions")
            )
            logits = model(input_ids=ids, use_cache=False).logits
            at = positions.clamp_min(0)
            chosen = logits.gather(1, at[..., None].expand(-1, -1, logits.shape[-1])).float()
            losses = -chosen.log_softmax(-1).gather(
                -1, labels.gather(1, at + 1).clamp_min(0)[..., None]
            )[..., 0]
            parts.append(losses.masked_fill(positions < 0, float("nan")).cpu())
        losses_by_kind[kind] = torch.cat(parts)
    return losses_by_kind


@torch.no_grad()
def think_over(
    model: ThoughtForCausalLM,
    windows: Mapping[str, Mapping[str, Tensor]],
    config: Config,
    split: str,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return "kind/name" -> (windows, positions), NaN where a position does not count.

    The names are base, mixed (the mean over thoughts), entropy, weight and helped. "kind/tokens"
    holds the thoughts: (windows, positions, N, L) int64.
    """
    record: dict[str, Tensor] = {}
    for kind, batch in windows.items():
        parts: dict[str, list[Tensor]] = {}
        for start in range(0, len(batch["input_ids"]), config.batch_rows):
            chosen = (
                batch[key][start : start + config.batch_rows].to(device)
                for key in ("input_ids", "labels", "positions")
            )
            ids, labels, positions = chosen
            thoughts = model.think(
                ids, positions=positions.clamp_min(0), thoughts=config.thoughts, temperature=config.temperature,
                seed=seed_for(config.seed, "quietstar", "measure", split, kind, start),
            )  # fmt: skip
            result = outcome(thoughts, labels, lookahead=1)
            values = {
                "base": result.base[..., 0],
                "mixed": result.mixed[..., 0].mean(-1),
                "entropy": entropy_nats(thoughts.base_logits[:, :, 0]),
                "weight": thoughts.weights[..., 0].mean(-1),
                "helped": (result.mixed[..., 0] < result.base).float().mean(-1),
            }
            for name, value in values.items():
                parts.setdefault(name, []).append(
                    value.float().masked_fill(positions < 0, float("nan")).cpu()
                )
            parts.setdefault("tokens", []).append(thoughts.tokens.cpu())
        record |= {f"{kind}/{name}": torch.cat(values) for name, values in parts.items()}
    return record


def interval(values: Array, chosen: Array, samples: int, seed: int) -> dict[str, Any]:
    """Return the mean of `values` (windows, positions) over the `chosen` tokens.

    Its 95% interval resamples windows.
    """
    weights = chosen.sum(1).astype(np.float64)
    sums = np.where(chosen, values, 0.0).sum(1).astype(np.float64)
    has_tokens = weights > 0
    if not has_tokens.any():
        return {"value": 0.0, "low": 0.0, "high": 0.0, "n": 0}
    low, high = bootstrap_interval(
        sums[has_tokens], weights[has_tokens], seed=seed, samples=samples
    )
    return {
        "value": float(sums.sum() / weights.sum()),
        "low": low,
        "high": high,
        "n": int(weights.sum()),
    }


def stacked(record: Mapping[str, Tensor], kinds: Sequence[str], name: str) -> Array:
    """Return one measure of all kinds: (windows of all kinds, positions)."""
    return np.concatenate([record[f"{kind}/{name}"].numpy() for kind in kinds])


def choose_gate(
    record: Mapping[str, Tensor], kinds: Sequence[str], config: Config
) -> tuple[float | None, list[dict[str, Any]]]:
    """Return the entropy in nats from which thinking pays (None: nowhere), and one table row per
    share of tokens.

    A share is eligible when the lower bound of its mean gain is above zero, and the eligible share
    with the largest total gain wins. The bounds hold for all shares together, because the level of
    each is divided by their number (Bonferroni).
    """
    base, mixed, entropy = (stacked(record, kinds, name) for name in ("base", "mixed", "entropy"))
    real = ~np.isnan(base)
    best, best_gain, rows = None, 0.0, []
    for share in sorted(config.gate_shares, reverse=True):
        threshold = 0.0 if share == 1 else float(np.quantile(entropy[real], 1 - share))
        chosen = real & (np.nan_to_num(entropy) >= threshold)
        weights = chosen.sum(1).astype(np.float64)
        gains = np.where(chosen, base - mixed, 0.0).sum(1).astype(np.float64)
        has_tokens = weights > 0
        # The error of 5% is shared by all shares of tokens that are tried.
        level = 1 - 0.05 / len(config.gate_shares)
        low, high = bootstrap_interval(
            gains[has_tokens],
            weights[has_tokens],
            seed=config.seed,
            samples=config.measure.samples,
            confidence=level,
        )
        mean = float(gains.sum() / weights.sum())
        rows.append(
            {
                "share of tokens": share,
                "entropy from (nats)": threshold,
                "gain (nats)": mean,
                "low": low,
                "high": high,
            }
        )
        # The mean gain is per thinking token; times the share it is per token of text, which is
        # what a user pays and gets.
        if low > 0 and mean * share > best_gain:
            best, best_gain = threshold, mean * share
    return best, rows


def over_plain(
    record: Mapping[str, Tensor],
    plain: Mapping[str, Tensor],
    kinds: Sequence[str],
    gate: float | None,
    config: Config,
) -> dict[str, Any]:
    """Return the gain in nats per token over plain training, of thinking where the gate opens.

    plain: kind -> losses of the plainly trained parent at the same tokens, (windows, positions).
    """
    base, mixed, entropy = (stacked(record, kinds, name) for name in ("base", "mixed", "entropy"))
    opens = np.zeros(base.shape, bool) if gate is None else np.nan_to_num(entropy) >= gate
    theirs = np.concatenate([plain[kind].numpy() for kind in kinds])
    gain = theirs - np.where(opens, mixed, base)
    return interval(gain, ~np.isnan(base), config.measure.samples, config.seed)


def over_plain_words(gain: Mapping[str, Any]) -> str:
    """Return a gain over plain training in the words of a report."""
    return (
        "gain over plain training of equal tokens, thinking where the gate opens: "
        f"{gain['value']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}] nats per token "
        f"(n={gain['n']})"
    )


def by_decile(
    record: Mapping[str, Tensor],
    kinds: Sequence[str],
    config: Config,
    plain: Mapping[str, Tensor] | None = None,
) -> list[dict[str, Any]]:
    """Return a table of the gain of thinking in each tenth of the tokens.

    Tenths go from the tokens that are easiest for the base to the hardest. plain: as `over_plain`
    takes it; then the gain of thinking everywhere over plain training stands there too.
    """
    base, mixed, weight = (stacked(record, kinds, name) for name in ("base", "mixed", "weight"))
    real = ~np.isnan(base)
    theirs = None if plain is None else np.concatenate([plain[kind].numpy() for kind in kinds])
    borders = np.quantile(base[real], np.linspace(0, 1, DECILES + 1))
    rows = []
    for tenth in range(DECILES):
        low, high = borders[tenth : tenth + 2]
        # The last tenth includes its upper border, or the hardest token would be in none.
        below = base <= high if tenth + 1 == DECILES else base < high
        chosen = real & (base >= low) & below
        gain = interval(base - mixed, chosen, config.measure.samples, config.seed)
        rows.append(
            {
                "tenth by base loss": tenth + 1, "base (nats)": interval(base, chosen, 1, 0)["value"],
                "gain (nats)": gain["value"],
                "low": gain["low"], "high": gain["high"], "tokens": gain["n"],
                "mixing weight": interval(weight, chosen, 1, 0)["value"],
            }
        )  # fmt: skip
        if theirs is not None:
            over = interval(theirs - mixed, chosen, config.measure.samples, config.seed)
            rows[-1] |= {
                "gain over plain": over["value"], "plain low": over["low"],
                "plain high": over["high"],
            }  # fmt: skip
    return rows
