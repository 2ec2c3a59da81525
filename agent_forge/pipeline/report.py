"""The report of a run, report.md and report.html with its plots inside, from outcomes and events.

It begins with what the last model kept of the base of its chain. One row per phase follows: quality
with intervals, what the phase kept of its parent, bytes of the packed model and of the files,
speed, memory, time and verdict. Then come the metrics, tables, samples and curves of each phase.
Only what the phases measured is shown; nothing is computed here.
"""

import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import atomic, record_dir
from agent_forge.core.events import Event, read_events
from agent_forge.pipeline.outcome import EVENTS, OUTCOME, Outcome, read_outcome

COLUMNS = (
    "phase", "verdict", "quality", "kept of parent", "baseline of equal budget", "packed", "files",
    "tok/s", "peak memory", "time",
)  # fmt: skip
AT_CHANCE = "at chance"


def write(run_dir: Path, outcomes: Sequence[Outcome]) -> tuple[Path, Path]:
    """Write report.md and report.html into `run_dir`; return their paths."""
    markdown, page = run_dir / "report.md", run_dir / "report.html"
    atomic.write_bytes(markdown, to_markdown(outcomes).encode())
    atomic.write_bytes(
        page, to_html(outcomes, {o.phase: _curves(_events(run_dir, o)) for o in outcomes}).encode()
    )
    return markdown, page


def read_run(run_dir: Path) -> list[Outcome]:
    """Return the outcomes in the records of a run directory, in order."""
    outcomes = [
        read_outcome(path.parent) for path in sorted((run_dir / ".forge").glob(f"*/{OUTCOME}"))
    ]
    return [outcome for outcome in outcomes if outcome is not None]


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


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the report as Markdown."""
    lines = ["# Run report", "", markdown_tables(outcomes)]
    for outcome in outcomes:
        lines += [
            "",
            f"## {outcome.phase}",
            "",
            outcome.report.get("summary", "") or outcome.message,
        ]
        lines += [f"\n*{hint}*" for hint in [gain_hint(outcome)] if hint]
        lines += [f"- refused: {reason}" for reason in (outcome.verdict or {}).get("reasons", [])]
        lines += [f"- {note}" for note in notes(outcome)]
        lines += [
            f"- {name}: {metric_text(value)}"
            for name, value in outcome.report.get("metrics", {}).items()
        ]
        for title, rows in outcome.report.get("tables", {}).items():
            lines += ["", f"### {title}", "", *_markdown_table(rows)]
        for sample in outcome.report.get("samples", [])[:5]:
            lines += ["", "```", sample.replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def to_html(
    outcomes: Sequence[Outcome], curves: dict[str, dict[str, list[tuple[int, float]]]]
) -> str:
    """Return the report as one HTML page; curves: phase -> stage/metric -> [(step, value)]."""
    parts = [
        "<h1>Run report</h1>",
        _html_table(chain_rows(outcomes)),
        _html_table([row(o) for o in outcomes]),
        f"<p>{html.escape(_totals(outcomes))}</p>",
    ]
    for outcome in outcomes:
        report = outcome.report
        summary = html.escape(report.get("summary", "") or outcome.message)
        parts.append(f"<h2>{html.escape(outcome.phase)}</h2><p>{summary}</p>")
        parts += [f"<p class=hint>{html.escape(hint)}</p>" for hint in [gain_hint(outcome)] if hint]
        parts += [
            f"<p class=bad>refused: {html.escape(r)}</p>"
            for r in (outcome.verdict or {}).get("reasons", [])
        ]
        parts += [f"<p class=hint>{html.escape(note)}</p>" for note in notes(outcome)]
        metrics = [
            {"metric": name, "value": metric_text(value)}
            for name, value in report.get("metrics", {}).items()
        ]
        parts.append(_html_table(metrics))
        parts += [
            svg_plot(points, title)
            for title, points in curves.get(outcome.phase, {}).items()
            if len(points) > 2
        ]
        parts += [
            svg_plot(points, title)
            for title, points in report.get("plots", {}).items()
            if len(points) > 1
        ]
        for title, rows in report.get("tables", {}).items():
            parts.append(f"<h3>{html.escape(title)}</h3>{_html_table(rows)}")
        parts += [f"<pre>{html.escape(sample)}</pre>" for sample in report.get("samples", [])[:5]]
    head = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>Run report</title><style>{STYLE}</style>"
    )
    return f"{head}{''.join(parts)}</html>\n"


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem "
    "auto;max-width:76rem;padding:0 1rem;color:#1c1c1c}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:13px}"
    "td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left}"
    "th{background:#f3f3f3}pre{background:#f6f6f6;padding:.6rem;overflow:auto;white-space:pre-wrap}"
    ".hint{color:#555;font-style:italic}.bad{color:#a11}svg{margin:.4rem 1rem .4rem 0}"
)


def gain_hint(outcome: Outcome) -> str:
    """Return what the phase gained or lost over its parent, from the paired retentions."""
    parts = []
    for name, entry in (outcome.verdict or {}).get("retentions", {}).items():
        if entry.get("at_chance"):
            parts.append(f"parent at chance on {name}")
        elif entry["low"] > 1:
            parts.append(f"better on {name} ({entry['ratio']:.3f} × the parent)")
        elif entry["high"] < 1:
            parts.append(f"worse on {name} ({entry['ratio']:.3f} × the parent)")
        else:
            parts.append(f"no clear change on {name}")
    return f"Over its parent: {'; '.join(parts)}." if parts else ""


def notes(outcome: Outcome) -> list[str]:
    """Return the gate's notes on single tasks: at chance, or too few items to decide."""
    verdict = outcome.verdict or {}
    return [
        f"{against}, {name}: {entry['note']}"
        for against, key in (
            ("against the parent", "retentions"),
            ("against the chain's base", "chain"),
        )
        for name, entry in verdict.get(key, {}).items()
        if entry.get("note")
    ]


def svg_plot(
    points: Sequence[tuple[float, float]], title: str, width: int = 360, height: int = 160
) -> str:
    """Return a line plot of (x, value) points as inline SVG with its range written on it."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    x_low, x_span = min(xs), (max(xs) - min(xs)) or 1
    y_low, y_span = min(ys), (max(ys) - min(ys)) or 1.0

    def place(x: float, y: float) -> str:
        right = 40 + (x - x_low) / x_span * (width - 50)
        down = height - 25 - (y - y_low) / y_span * (height - 50)
        return f"{right:.1f},{down:.1f}"

    path = " ".join(place(x, y) for x, y in points)
    return (
        f'<svg width="{width}" height="{height}" role="img" '
        f'aria-label="{html.escape(title, quote=True)}">'
        f'<text x="40" y="14" font-size="12">{html.escape(title)}</text>'
        f'<text x="2" y="32" font-size="10">{max(ys):.3g}</text>'
        f'<text x="2" y="{height - 25}" font-size="10">{min(ys):.3g}</text>'
        f'<text x="40" y="{height - 8}" font-size="10">{min(xs):,}</text>'
        f'<text x="{width - 10}" y="{height - 8}" font-size="10" '
        f'text-anchor="end">{max(xs):,}</text>'
        f'<polyline points="{path}" fill="none" stroke="#2563eb" stroke-width="1.5"/></svg>'
    )


def _events(run_dir: Path, outcome: Outcome) -> Iterable[Event]:
    for record in (run_dir / ".forge").glob(f"*-{outcome.phase}"):
        yield from read_events(record / EVENTS)


def _curves(events: Iterable[Event]) -> dict[str, list[tuple[int, float]]]:
    """Return the curves of a phase, one per stage and metric, as (step, value) points.

    A resumed phase may report a step twice; the later value counts.
    """
    curves: dict[str, dict[int, float]] = defaultdict(dict)
    for event in events:
        for name in ("loss", "fitness", "gain"):
            value = event.metrics.get(name)
            if event.kind == "progress" and isinstance(value, (int, float)):
                curves[f"{event.stage}: {name}"][event.step] = float(value)
    return {title: sorted(points.items()) for title, points in curves.items()}


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


def _html_table(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    heads = list(rows[0])
    head = "".join(f"<th>{html.escape(str(h))}" for h in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(metric_text(entry.get(h, '')))}" for h in heads)
        for entry in rows
    )
    return f"<table><tr>{head}{body}</table>"


def record_of(checkpoint_path: Path) -> Outcome | None:
    """Return the outcome of the phase that wrote a checkpoint, if its record is still beside it."""
    for place in (checkpoint_path, checkpoint_path.parent):
        outcome = read_outcome(record_dir(place))
        if outcome is not None:
            return outcome
    return None
