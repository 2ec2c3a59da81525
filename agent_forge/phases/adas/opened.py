"""Open the test split, once: what each search gained over the input, and what ours gained over the
others.

All comparisons of our search are one family: with the input and with every baseline, on all kinds
of rows together and on each kind alone. Looking for the best of them finds one by chance, so every
p is corrected by Holm's method, which keeps the chance of any false claim below its level whatever
the comparisons share. Source: Holm 1979, Scandinavian Journal of Statistics 6.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_forge import evaluate
from agent_forge.phases.adas.objective import Losses, Objective, Picks

OURS, INPUT, TOGETHER = "adas", "the input", "all kinds"


@dataclass(frozen=True, slots=True)
class Opened:
    """The losses of the input and of each search's winner on the same rows of the test split."""

    objective: Objective
    picks: Picks
    before: Losses
    after: Mapping[str, Losses]

    def gains(self) -> dict[str, dict[str, Any]]:
        """Return each search's gain over the input in nats per token, with one-sided bounds."""
        return {
            label: self._compared(self.before, losses, label)
            for label, losses in self.after.items()
        }

    def family(self) -> list[dict[str, Any]]:
        """Return every comparison of our search: gain, bounds, p and p by Holm."""
        others = {INPUT: self.before} | {k: v for k, v in self.after.items() if k != OURS}
        parts = {TOGETHER: self.objective} | {
            kind: self.objective.only(kind) for kind in self.objective.weights
        }
        rows = []
        for kind, objective in parts.items():
            for name, losses in others.items():
                part = Opened(objective, self.picks, self.before, self.after)
                compared = part._compared(losses, self.after[OURS], kind, name)
                chance = objective.chance(losses, self.after[OURS], self.picks, "test", kind, name)
                rows.append({"rows": kind, "over": name, **compared, "p": chance})
        corrected = evaluate.holm([row["p"] for row in rows])
        return [{**row, "p by Holm": p} for row, p in zip(rows, corrected, strict=True)]

    def _compared(self, before: Losses, after: Losses, *names: str) -> dict[str, Any]:
        low, high = self.objective.bounds(before, after, self.picks, "test", *names)
        count = sum(len(self.picks[kind]) for kind in self.objective.weights)
        gain = self.objective.gain(before, after)
        return {"gain_nats": gain, "low": low, "high": high, "n": count}


def beyond_doubt(family: list[dict[str, Any]], confidence: float) -> list[str]:
    """Return the comparisons in which our search gained, as phrases."""
    return [
        f"{row['rows']} over {row['over']}"
        for row in family
        if row["p by Holm"] <= 1 - confidence and row["gain_nats"] > 0
    ]
