"""report.md: the facts of a run in the order of the page, for terminals and code hosts.

Text of models and of phases cannot leave its place: pipes and line ends are escaped in cells, and
samples stand between fences that are longer than any in them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.pipeline.report import facts, words
from agent_forge.pipeline.report.facts import PhaseFacts, RunFacts

SAMPLES_SHOWN = 5
ROWS_SHOWN = 40


def to_markdown(run: RunFacts) -> str:
    """Return the report as Markdown."""
    lines = [f"# {_escaped(facts.title(run))}", ""]
    if run.stopped:
        lines += [_stopped(run), ""]
    lines += [_escaped(text) + "\n" for text in facts.lead(run)]
    if run.final:
        lines += ["## Chat with it", "", "```sh"]
        lines += [f"{command}   # {why}" for command, why in facts.commands(run)]
        lines += ["```", ""]
    lines += ["## Size and quality, phase by phase", "", *_overview(run), "", _totals(run), ""]
    lines += _chain(run)
    for phase in run.phases:
        lines += _phase(phase)
    return "\n".join(lines).rstrip() + "\n"


def _stopped(run: RunFacts) -> str:
    go_on = f" To go on: `{_escaped(run.resume)}`" if run.resume else ""
    return f"**{_escaped(facts.stop_reason(run))}**{go_on}"


def _overview(run: RunFacts) -> list[str]:
    tasks = list(dict.fromkeys(task for phase in run.phases for task in phase.scores))
    rows = []
    for phase in run.phases:
        outcome = phase.outcome
        rows.append({
            "phase": phase.name,
            "verdict": phase.verdict,
            **{words.task(task): score_text(phase.scores.get(task)) for task in tasks},
            "size": words.size(outcome.deployable_bytes),
            "time": words.duration(outcome.seconds),
        })  # fmt: skip
    return table(rows)


def _totals(run: RunFacts) -> str:
    seconds = sum(phase.outcome.seconds for phase in run.phases)
    memory = max((phase.outcome.peak_memory_bytes for phase in run.phases), default=0)
    return (
        f"The phases took {words.duration(seconds) or 'no time'} together; the highest peak memory "
        f"was {words.size(memory) or 'not measured'}. Brackets are 95% intervals."
    )


def _chain(run: RunFacts) -> list[str]:
    entries = facts.chain_entries(run)
    if not entries or run.final is None:
        return []
    rows = [
        {
            "task": words.task(name),
            f"base: {run.base_name}": score_text(run.base_scores.get(name)),
            f"agent: {run.final.name}": score_text(run.final.scores.get(name)),
            "kept": kept_text(entry),
            "limit": _limit(entry),
        }
        for name, entry in entries.items()
    ]
    return [f"## What the whole chain kept of {_escaped(run.base_name)}", "", *table(rows), ""]


def _phase(phase: PhaseFacts) -> list[str]:
    report = phase.outcome.report
    lines = [f"## {phase.position}. {_escaped(phase.name)}: {phase.verdict}", ""]
    lines += [_escaped(text) + "\n" for text in (phase.purpose, facts.finding(phase)) if text]
    lines += [f"- **Refused:** {_escaped(reason)}" for reason in phase.reasons]
    said = [("Over its parent", facts.gain(phase))]
    said += [("Over an equal budget", facts.baseline(phase))] if report else []
    said += [("Note", words.sentence(note)) for note in facts.notes(phase)]
    lines += [f"- **{head}:** {_escaped(text)}" for head, text in said if text]
    gate = [
        {"task": words.task(name), "this phase": score_text(score),
         **({"kept of its parent": kept_text(phase.retentions[name])}
            if name in phase.retentions else {})}
        for name, score in phase.scores.items()
    ]  # fmt: skip
    lines += ["", *table(gate), ""]
    for sample in report.get("samples", [])[:SAMPLES_SHOWN]:
        fence = fence_for(sample)
        lines += [fence, sample, fence, ""]
    return [*lines, *_internals(phase, report)]


def _internals(phase: PhaseFacts, report: Mapping[str, Any]) -> list[str]:
    metrics = [
        {"figure": words.heading(name), "value": words.cell(name, value)}
        for name, value in report.get("metrics", {}).items()
        if words.cell(name, value)
    ]
    lines = table(metrics)
    for title, rows in report.get("tables", {}).items():
        shown = [
            {words.heading(key): words.cell(key, value) for key, value in row.items()}
            for row in rows[:ROWS_SHOWN]
        ]
        lines += ["", f"**{_escaped(words.tidy(title))}**", "", *table(shown)]
    if not lines:
        return []
    summary = f"<details><summary>All figures of {_escaped(phase.name)}</summary>"
    return [summary, "", *lines, "", "</details>", ""]


def score_text(score: Mapping[str, Any] | None) -> str:
    """Return a score with its interval; "" where it was not measured."""
    if not score or score.get("value") is None:
        return ""
    if score.get("at_chance"):
        return f"{words.score(score)}, {words.AT_CHANCE}"
    between = words.interval(score)
    return words.score(score) + (f" [{between}]" if between else "")


def kept_text(entry: Mapping[str, Any]) -> str:
    """Return a retention with its lower bound, or "at chance"."""
    if entry.get("at_chance"):
        return words.AT_CHANCE
    if entry.get("ratio") is None:
        return "the parent scored nothing"
    low = entry.get("low")
    bound = f" (at least {words.percent(low)})" if low is not None else ""
    return words.percent(entry["ratio"]) + bound


def _limit(entry: Mapping[str, Any]) -> str:
    gated = entry.get("limit") and not entry.get("at_chance")
    return words.percent(entry["limit"]) if gated else "not gated"


def fence_for(text: str) -> str:
    """Return a fence of backticks that is longer than any run of them in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return rows of text as a Markdown table whose columns are the keys of all rows."""
    if not rows:
        return []
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(map(_escaped, heads))} |", "|" + "---|" * len(heads)]
    lines += [
        "| " + " | ".join(_escaped(row.get(head, "")) for head in heads) + " |" for row in rows
    ]
    return lines


def _escaped(text: str) -> str:
    """Return text that is neither markup nor the end of its cell or line."""
    plain = " ".join(text.split())
    return plain.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")
