"""What a child keeps on text that it was not calibrated on: the `unseen` task, kind by kind."""

from typing import TYPE_CHECKING, Any

from agent_forge.checkpoint import Workspace
from agent_forge.evaluate.engine import score
from agent_forge.evaluate.judge import retention_by_kind
from agent_forge.evaluate.scores import Scores
from agent_forge.evaluate.task import EvalContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASK = "unseen"
TITLE = "text that was not in the calibration"


def unseen_scores(
    name: str, model: "PreTrainedModel", items: int, context: EvalContext, out: Workspace
) -> Scores:
    """Return bits per byte on unseen text, computed once under `name`, also across restarts."""

    def measured() -> Any:
        scores = score(model, context.tokenizer, [TASK], "validation", items, context)
        return scores[TASK].to_plain()

    return Scores.from_plain(out.remember(f"unseen-{name}", measured))


def kept_elsewhere(
    parent: Scores, child: Scores, samples: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the metrics `unseen_<kind>_kept`, and a table row per kind.

    A row holds the bits per byte of both models, and the retention.
    """
    before, after = parent.by_kind(), child.by_kind()
    metrics, rows = {}, []
    for kind, retention in retention_by_kind(parent, child, samples, seed).items():
        metrics[f"unseen_{kind}_kept"] = retention.as_metric()
        rows.append({
            "kind": kind,
            "parent": round(before[kind]["value"] if before else parent.mean, 4),
            "child": round(after[kind]["value"] if after else child.mean, 4),
            "kept": round(retention.ratio, 4), "at least": round(retention.low, 4),
            "n": retention.n,
        })  # fmt: skip
    return metrics, rows


def kept_text(metrics: dict[str, Any]) -> str:
    """Return the figures of `kept_elsewhere` as one phrase."""
    parts = [
        f"{name.removeprefix('unseen_').removesuffix('_kept')} {figures['value']:.3f}"
        for name, figures in metrics.items()
        if name.startswith("unseen_")
    ]
    return ", ".join(parts)
