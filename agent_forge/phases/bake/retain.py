"""Draw the trained weights back to the parent, as far as the parent's skills need it.

The weights become parent + share · (trained − parent). A share below 1 keeps much of what was
learned and loses less of what was there (Wortsman et al., "Robust fine-tuning of zero-shot models",
arXiv:2109.01903). The largest share is taken that is shown to keep what `retain.tasks` asks for on
held-out items: by the lower bound of what is kept, as a gate judges a child that lost something. The
items are of the split `search`, and the gate's are others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from agent_forge import evaluate
from agent_forge.config import suites
from agent_forge.core.errors import PhaseError
from agent_forge.evaluate import Scores
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPLIT = "search"
PARTS = 20  # shares are whole numbers of twentieths
MOST_TRIES = 6  # A search by halves among them takes as many at most.
SHARE = "share of the change"  # the column of the table that `draw_back` returns


def draw_back(
    phase: PhaseRun[Config], parent: "PreTrainedModel", model: "PreTrainedModel"
) -> list[dict[str, Any]]:
    """Set the weights of `model` to the largest share of their change that keeps the tasks.

    Returns a row per share that was tried, with what each task keeps and its lower bound; none where
    `retain.tasks` is empty. A task on which the parent is at chance has nothing to keep and is left
    out. Raises PhaseError where the smallest share keeps too little.
    """
    settings = phase.config.retain
    limits = suites.limits(settings.tasks)
    if not limits:
        return []
    before = [weight.detach() for weight in parent.parameters()]
    trained = [weight.detach().clone() for weight in model.parameters()]

    def scores(of: "PreTrainedModel") -> dict[str, Scores]:
        return evaluate.score(
            of, phase.tokenizer, list(limits), SPLIT, settings.items, phase.eval_context
        )

    def apply(parts: int) -> None:
        with torch.no_grad():
            for weight, old, new in zip(model.parameters(), before, trained, strict=True):
                weight.copy_(torch.lerp(old, new, parts / PARTS))

    def search() -> dict[str, Any]:
        of_parent = scores(parent)
        for name in [name for name, one in of_parent.items() if not one.above_chance]:
            phase.events.message(f"retain.tasks leaves out {name}: the parent is at chance")
            del of_parent[name]
        rows: dict[int, dict[str, tuple[float, float]]] = {}

        def keeps(parts: int) -> bool:
            apply(parts)
            rows[parts] = _retained(of_parent, scores(model), phase.config)
            shares = {task: share for task, (share, _) in rows[parts].items()}
            phase.events.progress("retain", len(rows), MOST_TRIES, shares)
            return all(low >= limits[task] for task, (_, low) in rows[parts].items())

        return {"parts": largest(keeps), "rows": sorted(rows.items())}

    outcome = phase.out.remember("retain", search)
    parts = outcome["parts"]
    if parts == 0:
        raise PhaseError(
            f"retain.tasks={settings.tasks}: a twentieth of what was learned loses more than that; "
            "lower the shares, or learn at a smaller training.optim.lr"
        )
    apply(parts)
    return [
        {SHARE: tried / PARTS, "taken": tried == parts}
        | {
            name: round(figure, 3)
            for task, pair in shares.items()
            for name, figure in zip((task, f"{task}, low"), pair, strict=True)
        }
        for tried, shares in outcome["rows"]
    ]


def share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of the change that was taken, above 0 to 1, of the rows of `draw_back`."""
    return next(float(row[SHARE]) for row in rows if row["taken"])


def largest(keeps: Callable[[int], bool]) -> int:
    """Return the most parts, 0 to PARTS, that keep enough, where more parts never keep more.

    No part at all, the parent itself, is not asked about.
    """
    if keeps(PARTS):
        return PARTS
    low, high = 0, PARTS
    while high - low > 1:
        middle = (low + high) // 2
        if keeps(middle):
            low = middle
        else:
            high = middle
    return low


def _retained(
    parent: Mapping[str, Scores], child: Mapping[str, Scores], config: Config
) -> dict[str, tuple[float, float]]:
    """Return by task the share of the parent's score that is left, and its one-sided lower bound."""
    shares = {}
    for task, scores in parent.items():
        left = evaluate.retention(task, scores, child[task], config.gate.samples, config.seed)
        shares[task] = (left.ratio, left.low)
    return shares
