"""report.html: one static file that shows the facts of a run. No script, and no request leaves it.

It opens with what was made, how good and how small it is, and how to chat with it. Then come one
chart of size and quality over the phases, the gate of the whole chain, and a section per phase.
Everything that a model, a user or a phase wrote is escaped. Exact values stand in <data> elements
behind the rounded ones.
"""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.pipeline.report import cells, charts, curves, facts, words
from agent_forge.pipeline.report.facts import PhaseFacts, RunFacts
from agent_forge.pipeline.report.style import STYLE

SAMPLES_SHOWN = 2
SAMPLES_KEPT = 6
ROWS_SHOWN = 200  # the rows of a table; only tables of single tensors are longer
BYTES_TO_MB = 1e-6
# The plots that phases name, with their axes in words and the factor of the horizontal one.
PLOT_AXES = {
    "curve: bytes, quality, speed": ("size (MB)", "quality (1 is the parent's)", BYTES_TO_MB),
    "tokens per second by bytes": ("size (MB)", "tokens per second", BYTES_TO_MB),
}
# No script, no image, no font, no request: a browser holds the page to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
Curves = Mapping[str, Sequence[curves.Curve]]


def to_html(run: RunFacts, phase_curves: Curves) -> str:
    """Return the report as one HTML page. phase_curves: phase -> curves of its training."""
    title = facts.title(run)
    parts = [
        _opening(run, title),
        _size_and_quality(run),
        _chain(run),
        _overview(run),
        *(_phase(phase, phase_curves.get(phase.name, ())) for phase in run.phases),
        _footer(run),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(POLICY, quote=True)}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _opening(run: RunFacts, title: str) -> str:
    parts = [
        f'<header><p class="eyebrow">Agent Forge report: {html.escape(run.name)}</p>'
        f"<h1>{html.escape(title)}</h1>"
    ]
    if run.stopped:
        parts.append(_stopped(run))
    parts += [f'<p class="lead">{html.escape(text)}</p>' for text in facts.lead(run)]
    parts.append("</header>")
    if run.final:
        parts += [_tiles(run), _try(run)]
    return "".join(parts)


def _stopped(run: RunFacts) -> str:
    go_on = f" To go on: <code>{html.escape(run.resume)}</code>" if run.resume else ""
    return f'<p class="banner">{html.escape(facts.stop_reason(run))}{go_on}</p>'


def _tiles(run: RunFacts) -> str:
    assert run.final is not None
    outcome, scores = run.final.outcome, run.final.scores
    ratio = run.base_bytes / outcome.deployable_bytes if outcome.deployable_bytes else 0.0
    smaller = f"{words.times(ratio)} smaller than {run.base_name}" if ratio >= 1.05 else "to ship"
    tiles = [
        (
            "Size",
            cells.data(outcome.deployable_bytes, words.size(outcome.deployable_bytes)),
            smaller,
        )
    ]
    for name in run.able():
        score = scores[name]
        big = cells.data(score["value"], cells.bare(score))
        tiles.append((cells.capital(words.task(name)), big, _score_small(score)))
    guessed = [words.task(name) for name in run.guessed()]
    if guessed:
        tiles.append((cells.capital(words.joined(guessed)), "At chance", "no better than guessing"))
    if outcome.tokens_per_second:
        speed = cells.data(outcome.tokens_per_second, words.number(outcome.tokens_per_second))
        tiles.append(("Speed on this machine", speed, "tokens per second"))
    body = "".join(
        f'<div class="tile"><dt>{html.escape(head)}</dt><dd class="big">{big}</dd>'
        f'<dd class="small">{html.escape(small)}</dd></div>'
        for head, big, small in tiles
    )
    return f'<dl class="tiles">{body}</dl>'


def _score_small(score: Mapping[str, Any]) -> str:
    metric = str(score.get("metric", ""))
    unit = metric if not words.is_share(metric) else "right"
    parts = [f"{unit}{', less is better' if metric == 'bits per byte' else ''}".strip()]
    between = words.interval(score)
    if between:
        parts.append(f"95% interval {between}")
    return "; ".join(part for part in parts if part)


def _try(run: RunFacts) -> str:
    (chat, purpose), *others = facts.commands(run)
    more = "".join(
        f"<div><span class=dim>{html.escape(cells.capital(why))}</span>"
        f"<pre><code>{html.escape(command)}</code></pre></div>"
        for command, why in others
    )
    return (
        f'<section class="try"><div><strong>{html.escape(cells.capital(purpose))}</strong>'
        f"<pre><code>{html.escape(chat)}</code></pre></div>"
        f"<details><summary>Two more commands to try</summary>{more}</details></section>"
    )


def _size_and_quality(run: RunFacts) -> str:
    steps = [_step(phase, run) for phase in run.phases if phase.outcome.deployable_bytes]
    if not steps:
        return ""
    drawn = "".join(
        f'<div class="chart-{kind}">'
        + charts.size_and_quality(f"size-quality-{kind}", steps, run.base_name, width=width)
        + "</div>"
        for kind, width in (("wide", 1000), ("narrow", 330))
    )
    scored = any(step.kept for step in steps)
    caption = (
        f"Above: how much of {run.base_name} each phase's model keeps (the dashed line is "
        f"{run.base_name} itself; thin lines are 95% bounds). Tasks on which {run.base_name} "
        "guesses are left out. Below: the size of the packed file."
        if scored
        else "The size of the packed file after each phase. No gate compared them with a base."
    )
    return (
        "<section><h2>Size and quality, phase by phase</h2>"
        f"<figure>{drawn}<figcaption>{html.escape(caption)}</figcaption></figure></section>"
    )


def _step(phase: PhaseFacts, run: RunFacts) -> charts.Step:
    refused = not phase.accepted
    points = {
        words.task(name): charts.Point(
            x=0.0, y=100 * entry["ratio"], refused=refused,
            low=None if entry.get("low") is None else 100 * entry["low"],
            high=None if entry.get("high") is None else 100 * entry["high"],
        )
        for name, entry in phase.chain.items()
        if not entry.get("at_chance") and entry.get("ratio") is not None
    }  # fmt: skip
    if phase.position == 1 and not phase.chain and not phase.outcome.parent:
        compared = facts.chain_entries(run)
        points = {
            words.task(name): charts.Point(x=0.0, y=100.0)
            for name, entry in compared.items()
            if not entry.get("at_chance")
        }
    size = phase.outcome.deployable_bytes
    return charts.Step(
        name=phase.name, size_mb=size * BYTES_TO_MB, size_text=words.size(size), kept=points
    )


def _chain(run: RunFacts) -> str:
    entries = facts.chain_entries(run)
    if not entries or run.final is None:
        return ""
    final = run.final
    rows = []
    for name, entry in entries.items():
        rows.append([
            ("Task", html.escape(cells.capital(words.task(name)))),
            (f"Base: {run.base_name}", cells.score_cell(run.base_scores.get(name))),
            (f"Agent: {final.name}", cells.score_cell(final.scores.get(name))),
            ("Kept", cells.kept_cell(entry)),
            ("Limit", cells.limit_cell(entry)),
            ("Room left", cells.room_cell(entry)),
        ])  # fmt: skip
    held = [e for e in entries.values() if not e.get("at_chance") and e.get("limit")]
    verdict = (
        f"Passed: on every task that {run.base_name} can do, the result keeps enough of it."
        if final.accepted and held
        else "No task is gated: the base is at chance on all of them."
    )
    return (
        f"<section><h2>What the whole chain kept of {html.escape(run.base_name)} "
        f"{cells.badge('passed' if held else 'not gated', 'good' if held else 'plain')}</h2>"
        f"<p>{html.escape(verdict)} Each phase may lose only what is left of the chain's limit, so "
        "that small losses cannot add up.</p>"
        f"{cells.table(rows, row_head=True)}</section>"
    )


def _overview(run: RunFacts) -> str:
    able = [
        name
        for name in dict.fromkeys(task for phase in run.phases for task in phase.scores)
        if any(
            not phase.scores.get(name, {"at_chance": True}).get("at_chance") for phase in run.phases
        )
    ]
    heads = {name: _task_head(name, run) for name in able}
    rows = []
    for phase in run.phases:
        outcome = phase.outcome
        rows.append([
            ("Phase", f'<a href="#{_anchor(phase)}">{html.escape(phase.name)}</a>'),
            ("Verdict", cells.badge(phase.verdict, phase.tone)),
            *((heads[name], cells.bare_cell(phase.scores.get(name))) for name in able),
            ("Size", cells.size_cell(outcome.deployable_bytes)),
            ("Time", cells.time_cell(outcome.seconds)),
        ])  # fmt: skip
    return f"<section><h2>The phases</h2>{cells.table(rows, row_head=True)}</section>"


def _phase(phase: PhaseFacts, lines: Sequence[curves.Curve]) -> str:
    report = phase.outcome.report
    parts = [
        f'<section class="phase" id="{_anchor(phase)}"><h2>{phase.position}. '
        f"{html.escape(phase.name)} {cells.badge(phase.verdict, phase.tone)}</h2>",
        f'<p class="lead">{html.escape(phase.purpose)}</p>' if phase.purpose else "",
        f"<p>{cells.prose(facts.finding(phase))}</p>",
        *(f'<p class="bad-text">Refused: {html.escape(reason)}</p>' for reason in phase.reasons),
        _gate(phase),
        _facts(phase),
        _charts(phase, lines, report.get("plots", {})),
        _samples(report.get("samples", [])),
        _internals(phase, report),
        "</section>",
    ]
    return "".join(parts)


def _gate(phase: PhaseFacts) -> str:
    if not phase.scores:
        return ""
    rows = []
    for name, score in phase.scores.items():
        row = [("Task", html.escape(cells.capital(words.task(name))))]
        if phase.retentions:
            row.append(("Parent", cells.score_cell(phase.parent_scores.get(name))))
        row.append(("This phase", cells.score_cell(score)))
        if phase.retentions:
            entry = phase.retentions.get(name, {"at_chance": True})
            row += [("Kept", cells.kept_cell(entry)), ("Limit", cells.limit_cell(entry))]
        rows.append(row)
    return cells.table(rows, row_head=True)


def _facts(phase: PhaseFacts) -> str:
    outcome = phase.outcome
    files = words.size(outcome.file_bytes)
    pairs = [
        ("Over its parent", html.escape(facts.gain(phase))),
        ("Over an equal budget", cells.prose(facts.baseline(phase)) if outcome.report else ""),
        ("Notes", "<br>".join(html.escape(words.sentence(note)) for note in facts.notes(phase))),
        ("Size", cells.size_cell(outcome.deployable_bytes)
         + (f" packed; the checkpoint's files have {html.escape(files)}" if files else "")),
        ("Cost", _cost(phase)),
    ]  # fmt: skip
    body = "".join(
        f"<div><dt>{head}</dt><dd>{value}</dd></div>" for head, value in pairs if value.strip()
    )
    return f'<dl class="facts">{body}</dl>' if body else ""


def _cost(phase: PhaseFacts) -> str:
    outcome = phase.outcome
    parts = []
    if outcome.seconds:
        parts.append(cells.time_cell(outcome.seconds))
    if outcome.peak_memory_bytes:
        parts.append(f"{cells.size_cell(outcome.peak_memory_bytes)} of memory at its peak")
    return ", ".join(parts)


def _charts(phase: PhaseFacts, lines: Sequence[curves.Curve], plots: Mapping[str, Any]) -> str:
    drawn = [_curve(phase, line) for line in lines]
    for index, (title, points) in enumerate(plots.items()):
        if len(points) < 2:
            continue
        x_label, y_label, factor = PLOT_AXES.get(title, ("", words.tidy(title), 1.0))
        placed = [(x * factor, y) for x, y in points]
        chart = charts.curve(
            f"{_anchor(phase)}-plot-{index}",
            charts.Labels(f"{phase.name}: {title}", x_label, y_label),
            [("", placed)],
            dots=True,
        )
        drawn.append(f"<figure>{chart}</figure>")
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _curve(phase: PhaseFacts, line: curves.Curve) -> str:
    """Return a chart of one metric over the phase's stages, with the stages' names below it."""
    names = [words.label(name)[0] for name, _ in line.stages]
    chart = charts.curve(
        f"{_anchor(phase)}-{line.metric}",
        charts.Labels(f"{phase.name}: {line.label}", "step", line.label),
        [(words.label(name)[0], points) for name, points in line.smoothed()],
        [points for _, points in line.stages],
    )  # fmt: skip
    caption = "Thick: smoothed. Thin: as measured."
    if len(names) > 1:
        caption += f" Stages in turn: {', '.join(names)}."
    return f"<figure>{chart}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _samples(samples: Sequence[str]) -> str:
    if not samples:
        return ""
    shown, more = samples[:SAMPLES_SHOWN], samples[SAMPLES_SHOWN:SAMPLES_KEPT]
    text = "".join(f"<pre>{html.escape(turns(sample))}</pre>" for sample in shown)
    rest = "".join(f"<pre>{html.escape(turns(sample))}</pre>" for sample in more)
    details = f"<details><summary>More samples</summary>{rest}</details>" if more else ""
    return f"<h3>Samples</h3>{text}{details}"


def turns(sample: str) -> str:
    """Return a conversation that a phase wrote in one line with each turn on its own."""
    return re.sub(r" \| (?=(?:system|user|assistant|tool): )", "\n", sample)


def _internals(phase: PhaseFacts, report: Mapping[str, Any]) -> str:
    metrics = [
        [("Figure", html.escape(words.heading(name))), ("Value", cells.plain_cell(name, value))]
        for name, value in report.get("metrics", {}).items()
        if words.cell(name, value)
    ]
    parts = [cells.table(metrics, scroll=True)] if metrics else []
    for title, rows in report.get("tables", {}).items():
        if rows:
            parts.append(f"<h3>{html.escape(words.tidy(title))}</h3>{_plain_table(rows)}")
    if not parts:
        return ""
    summary = f"<summary>All figures of {html.escape(phase.name)}</summary>"
    return f"<details>{summary}{''.join(parts)}</details>"


def _plain_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a phase's own table; columns in which no row has a value are left out."""
    keys = [
        key
        for key in dict.fromkeys(key for row in rows for key in row)
        if any(words.cell(key, row.get(key)) for row in rows)
    ]
    shown = [
        [(words.heading(key), cells.plain_cell(key, row.get(key))) for key in keys]
        for row in rows[:ROWS_SHOWN]
    ]
    more = len(rows) - ROWS_SHOWN
    cut = (
        f"<p class=dim>{more:,} more rows are in the phase's outcome.json.</p>" if more > 0 else ""
    )
    return cells.table(shown, scroll=True) + cut


def _footer(run: RunFacts) -> str:
    seconds = sum(phase.outcome.seconds for phase in run.phases)
    memory = max((phase.outcome.peak_memory_bytes for phase in run.phases), default=0)
    parts = []
    if seconds:
        parts.append(f"The phases took {words.duration(seconds)} together.")
    if memory:
        parts.append(f"The highest peak memory of one was {words.size(memory)}.")
    parts.append(
        "Intervals are 95%. Kept is paired on the same held-out items, with a 95% lower bound. At "
        "chance means that a model's answers are no better than guessing, so that there is nothing "
        "to keep. Bits per byte measure text: less is better, and 8 is a model that knows nothing."
    )
    return f"<footer><p>{html.escape(' '.join(parts))}</p></footer>"


def _task_head(name: str, run: RunFacts) -> str:
    """Return the head of a task's column with the unit of its scores."""
    metrics = (phase.scores.get(name, {}).get("metric", "") for phase in run.phases)
    metric = str(next(filter(None, metrics), ""))
    unit = "" if words.is_share(metric) or not metric else f" ({metric})"
    return f"{cells.capital(words.task(name))}{unit}"


def _anchor(phase: PhaseFacts) -> str:
    return f"phase-{phase.position}-{re.sub(r'[^a-z0-9]+', '-', phase.name.lower())}"
