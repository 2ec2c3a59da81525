"""The tables of a run in README and of `python -m scripts.bench run run_all`: every score with n.

The report says the same in words and rounds; these hold three decimals, because a reader compares
them between versions. Reads outcomes, writes Markdown.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report.words import AT_CHANCE

COLUMNS = (
    "phase", "verdict", "quality", "kept of parent", "baseline of equal budget", "packed", "files",
    "tok/s", "peak memory", "time",
)  # fmt: skip


def quality_cell(outcome: Outcome) -> str:
    """Return the child's scores with their 95% intervals, in one cell."""
    scores = (outcome.verdict or {}).get("scores", {})
    return (
        "; ".join(f"{name} {metric_text(metric)}" for name, metric in scores.items())
        or "not scored"
    )


def kept_cell(outcome: Outcome) -> str:
    """Return the retention of each task: estimate and lower bound, or "at chance"."""
    retentions = (outcome.verdict or {}).get("retentions", {})
    return (
        "; ".join(f"{name} {kept_text(entry)}" for name, entry in retentions.items()) or "no parent"
    )


def kept_text(entry: Mapping[str, Any]) -> str:
    """Return one retention as text."""
    if entry.get("at_chance"):
        return AT_CHANCE
    if entry["ratio"] is None:
        return "of nothing"
    return f"{entry['ratio']:.3f} (≥ {entry['low']:.3f})"


def chain_rows(outcomes: Sequence[Outcome]) -> list[dict[str, str]]:
    """Return what the last accepted model kept of the base of its chain: one row per task, as text.

    "left" is the retention that the next phase may fall to on that task before the chain's limit
    stops it. Empty where no phase was compared with a base.
    """
    accepted = [o for o in outcomes if o.status == "done" and (o.verdict or {}).get("chain")]
    if not accepted:
        return []
    last = accepted[-1]
    verdict = last.verdict or {}
    rows = []
    for name, entry in verdict["chain"].items():
        chance = bool(entry["at_chance"])
        left = entry["limit"] / entry["ratio"] if entry["ratio"] and not chance else 0.0
        rows.append({
            "task": name,
            f"base: {verdict['base']['name']}": metric_text(verdict["base_scores"][name]),
            f"final: {last.phase}": metric_text(verdict["scores"][name]),
            "kept": kept_text(entry),
            "limit": "not gated" if chance else f"{entry['limit']:.3f}",
            "left": "" if chance else f"{left:.3f}",
        })  # fmt: skip
    return rows


def markdown_tables(outcomes: Sequence[Outcome]) -> str:
    """Return the tables of the chain and the phases, and the totals, for README and report."""
    chain = _markdown_table(chain_rows(outcomes))
    lines = [*chain, *([""] if chain else []), *_markdown_table([row(o) for o in outcomes])]
    return "\n".join([*lines, "", _totals(outcomes)])


def metric_text(metric: Any) -> str:
    """Return a number, or a number with its interval and n."""
    if isinstance(metric, dict) and "value" in metric:
        text = f"{metric['value']:.3f}"
        low, high = metric.get("low"), metric.get("high")
        if low is not None and high is not None:
            text += f" [{low:.3f}, {high:.3f}]"
        elif low is not None:
            text += f" (≥ {low:.3f})"
        text += f" n={metric['n']}" if metric.get("n") else ""
        return text + (f", {AT_CHANCE}" if metric.get("at_chance") else "")
    is_number = isinstance(metric, (int, float)) and not isinstance(metric, bool)
    return f"{metric:,.4g}" if is_number else str(metric)


def row(outcome: Outcome) -> dict[str, str]:
    """Return the row of one phase, as text under COLUMNS."""
    verdict = "passed" if outcome.status == "done" else outcome.status
    if outcome.status == "done" and outcome.verdict is None:
        verdict = "not gated"
    if outcome.status == "done" and outcome.verdict and not outcome.verdict["passed"]:
        verdict = "refused, kept by policy"
    cells = (
        outcome.phase, verdict, quality_cell(outcome), kept_cell(outcome),
        outcome.report.get("baseline") or "none ran",
        f"{outcome.deployable_bytes / 1e6:.3f} MB", f"{outcome.file_bytes / 1e6:.3f} MB",
        f"{outcome.tokens_per_second:,.0f}", f"{outcome.peak_memory_bytes / 1e6:,.0f} MB",
        f"{outcome.seconds:,.1f} s",
    )  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _totals(outcomes: Sequence[Outcome]) -> str:
    seconds = sum(o.seconds for o in outcomes)
    memory = max((o.peak_memory_bytes for o in outcomes), default=0)
    return (
        f"Phases took {seconds:,.0f} s together; the highest peak memory of a phase was "
        f"{memory / 1e6:,.0f} MB."
    )


def _markdown_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for entry in rows:
        cells = (
            metric_text(entry.get(head, "")).replace("|", "\\|").replace("\n", " ")
            for head in heads
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines
