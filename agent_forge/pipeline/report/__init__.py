"""The report of a run: report.html and report.md, from what its phases recorded.

Reads the outcomes and events below a run's directory, writes the two files. `facts` decides what is
said, `page` and `markdown` show it in the same order, `charts` draws, `words` writes figures and
names. Only what the phases measured is shown; nothing is computed here but ratios of sizes.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from agent_forge.checkpoint import atomic, record_dir
from agent_forge.core.events import read_events
from agent_forge.pipeline.outcome import EVENTS, JOB, OUTCOME, Outcome, read_outcome
from agent_forge.pipeline.report.curves import Curve, telling_curves
from agent_forge.pipeline.report.facts import RunFacts, gather
from agent_forge.pipeline.report.markdown import to_markdown
from agent_forge.pipeline.report.page import to_html
from agent_forge.pipeline.report.tables import markdown_tables, metric_text, quality_cell

__all__ = [
    "RunFacts", "facts_of", "markdown_tables", "metric_text", "quality_cell", "read_run",
    "record_of", "to_html", "to_markdown", "write",
]  # fmt: skip


def write(run_dir: Path, outcomes: Sequence[Outcome], resume: str = "") -> tuple[Path, Path]:
    """Write report.md and report.html into `run_dir`; return their paths.

    resume: the command that goes on with the run.
    """
    markdown, page = run_dir / "report.md", run_dir / "report.html"
    run = facts_of(run_dir, outcomes, resume)
    atomic.write_bytes(markdown, to_markdown(run).encode())
    atomic.write_bytes(page, to_html(run, _curves(run_dir, outcomes)).encode())
    return markdown, page


def facts_of(run_dir: Path, outcomes: Sequence[Outcome], resume: str = "") -> RunFacts:
    """Return the facts of a run, with the size of the base that it read, if that is still there."""
    return gather(outcomes, str(run_dir), _base_bytes(outcomes), resume)


def read_run(run_dir: Path) -> list[Outcome]:
    """Return the outcomes in the records of a run directory, in order."""
    outcomes = [
        read_outcome(path.parent) for path in sorted((run_dir / ".forge").glob(f"*/{OUTCOME}"))
    ]
    return [outcome for outcome in outcomes if outcome is not None]


def record_of(checkpoint_path: Path) -> Outcome | None:
    """Return the outcome of the phase that wrote a checkpoint, if its record is still beside it."""
    for place in (checkpoint_path, checkpoint_path.parent):
        outcome = read_outcome(record_dir(place))
        if outcome is not None:
            return outcome
    return None


def _base_bytes(outcomes: Sequence[Outcome]) -> int:
    """Return the deployable size of the model that the first phase read, or 0."""
    path = Path(outcomes[0].parent) / "forge.json" if outcomes and outcomes[0].parent else None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["deployable_bytes"]) if path else 0
    except (OSError, ValueError, KeyError):
        return 0


def _curves(run_dir: Path, outcomes: Sequence[Outcome]) -> dict[str, list[Curve]]:
    """Return phase -> the curves of its training, from the events of the run that ended so."""
    records = {}
    for path in (run_dir / ".forge").glob(f"*/{JOB}"):
        try:
            records[json.loads(path.read_text(encoding="utf-8"))["input_hash"]] = path.parent
        except (OSError, ValueError, KeyError):
            continue
    return {
        outcome.phase: telling_curves(read_events(records[outcome.input_hash] / EVENTS))
        for outcome in outcomes
        if outcome.input_hash in records
    }
