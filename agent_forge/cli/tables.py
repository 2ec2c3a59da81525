"""The tables of the terminal, and the last screen of a run: what have I got?"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from agent_forge.cli.layout import (
    Column,
    Grid,
    command,
    pairs,
    shared_folder,
    short_id,
)
from agent_forge.pipeline.estimate import Estimate
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report import facts, words
from agent_forge.pipeline.report.facts import RunFacts

COLOURS = {"good": "green", "bad": "red", "plain": ""}


def gate_table(outcomes: Sequence[Outcome]) -> Grid:
    """Return the phases of a run: verdict, score on each task that some model can do, size, time.

    Intervals are in the report; a task on which every model guesses is named below the table.
    """
    run = facts.gather(outcomes)
    tasks = list(dict.fromkeys(name for phase in run.phases for name in phase.scores))
    able = [name for name in tasks if any(_can(phase.scores.get(name)) for phase in run.phases)]
    guessed = [words.task(name) for name in tasks if name not in able]
    columns = [
        Column(head="phase"),
        Column(head="verdict"),
        *(Column(head=words.task(name), right=True) for name in able),
        Column(head="size", right=True),
        Column(head="files", right=True, spare=3),
        Column(head="memory", right=True, spare=2),
        Column(head="time", right=True, spare=1),
    ]
    rows: list[list[str | Text]] = [
        [
            phase.name,
            Text(phase.verdict, COLOURS[phase.tone]),
            *(_score(phase.scores.get(name)) for name in able),
            words.size(phase.outcome.deployable_bytes),
            words.size(phase.outcome.file_bytes),
            words.size(phase.outcome.peak_memory_bytes),
            words.duration(phase.outcome.seconds),
        ]
        for phase in run.phases
    ]
    notes = [f"At chance, so not gated: {', '.join(guessed)}."] if guessed else []
    return Grid(columns=columns, rows=rows, notes=notes)


def _can(score: Mapping[str, Any] | None) -> bool:
    return score is not None and not score.get("at_chance")


def _score(metric: Mapping[str, Any] | None) -> str:
    """Return the score of one task as a cell."""
    if metric is None:
        return ""
    return "chance" if metric.get("at_chance") else words.short(metric["value"])


def answer(run: RunFacts, report_path: Path | None, width: int) -> list[Text]:
    """Return the last screen of a run: what there is, how good, what it can do, what to try."""
    if run.final is None:
        return [Text("Nothing to show: no phase was accepted.", "bold")]
    entries: list[tuple[str, str | Text]] = [
        ("agent", run.path),
        ("id", short_id(run.final.outcome.checkpoint_id)),
        ("size", _size(run)),
        ("chain", _chain(run)),
        ("can do", _able(run)),
        ("cannot", _guessed(run)),
        ("report", str(report_path or "")),
    ]
    lines = [Text(""), Text("What you have", "bold")]
    lines += pairs([(label, text) for label, text in entries if str(text)], width)
    lines += [Text(""), Text("Try", "bold")]
    for line, _ in facts.commands(run):
        lines += [Text(part, "cyan") for part in command(line, width)]
    return lines


def _size(run: RunFacts) -> str:
    assert run.final is not None
    size = run.final.outcome.deployable_bytes
    ratio = run.base_bytes / size if size else 0.0
    if ratio < 1.05:
        return words.size(size)
    base = f"{run.base_name} ({words.size(run.base_bytes)})"
    return f"{words.size(size)}, {words.times(ratio)} smaller than {base}"


def _chain(run: RunFacts) -> str:
    entries = facts.chain_entries(run)
    parts = [
        f"{words.task(name)} {facts.kept_short(entry, with_limit=True)}"
        for name, entry in entries.items()
        if not entry.get("at_chance")
    ]
    return f"passed; of {run.base_name} it kept {', '.join(parts)}" if parts else ""


def _able(run: RunFacts) -> str:
    assert run.final is not None
    scores = run.final.scores
    parts = [
        f"{words.task(name)}: {words.score(scores[name])}"
        + (" right" if words.is_share(str(scores[name].get("metric", ""))) else "")
        for name in run.able()
    ]
    if not scores:
        return "not scored"
    if not [name for name in run.able() if name != facts.TEXT]:
        return "; ".join(["no task above chance yet", *parts])
    return "; ".join(parts)


def _guessed(run: RunFacts) -> str:
    names = ", ".join(words.task(name) for name in run.guessed())
    return f"{names}: at chance, no better than guessing" if names else ""


def estimate_table(estimates: Sequence[Estimate]) -> Grid:
    """Return the estimates of a dry run, with a total where there are several phases.

    The folder that all paths lie in, and a device that all phases use, are said once.
    """
    paths = [path for estimate in estimates for path in (*estimate.sources, estimate.out)]
    folder = shared_folder(paths)
    devices = {estimate.device for estimate in estimates}
    columns = [
        Column(head="phase"),
        Column(head="time", right=True),
        Column(head="memory", right=True),
        Column(head="disk", right=True),
        Column(head="device", spare=1),
        Column(head="reads", spare=3),
        Column(head="writes", spare=2),
    ]
    rows = [
        [
            estimate.phase,
            f"~{words.duration(estimate.seconds)}",
            f"~{words.size(estimate.memory_bytes)}",
            f"~{words.size(estimate.disk_bytes)}",
            estimate.device if len(devices) > 1 else "",
            ", ".join(path.removeprefix(folder) for path in estimate.sources) or "nothing",
            estimate.out.removeprefix(folder),
        ]
        for estimate in estimates
    ]
    if len(estimates) > 1:
        rows.append(_total(estimates))
    notes = [f"Paths are below {folder}."] if folder else []
    notes += [f"All phases run on {devices.pop()}."] if len(devices) == 1 else []
    return Grid(columns=columns, rows=rows, notes=notes)


def _total(estimates: Sequence[Estimate]) -> list[str]:
    seconds, disk = sum(e.seconds for e in estimates), sum(e.disk_bytes for e in estimates)
    memory = max(e.memory_bytes for e in estimates)
    sizes = [f"~{words.size(memory)}", f"~{words.size(disk)}"]
    return ["total", f"~{words.duration(seconds)}", *sizes, "", "", ""]


def checkpoint_table(rows: Sequence[Mapping[str, Any]], root: str) -> Grid:
    """Return the rows of `forge list`: the root is said once, ids are short, sizes are in MB."""
    columns = [
        Column(head="path"),
        Column(head="id", spare=1),
        Column(head="size", right=True),
        Column(head="files", right=True, spare=3),
        Column(head="phase", spare=2),
        Column(head="parents", is_text=True, spare=4),
    ]
    start = f"{root.rstrip('/')}/"
    cells = [
        [
            row["path"].removeprefix(start),
            short_id(row["id"]),
            words.size(row["deployable_bytes"]),
            words.size(row["file_bytes"]),
            f"{row['phase']}, encrypted" if row.get("encrypted") else row["phase"],
            " ".join(map(short_id, row["parents"])),
        ]
        for row in rows
    ]
    count = f"{len(rows)} checkpoint{'s' * (len(rows) != 1)} below {root}"
    return Grid(columns=columns, rows=cells, title=count)


def status_table(rows: Sequence[Mapping[str, Any]], run_dir: str) -> Grid:
    """Return the rows of `forge status`: verdict and why, or how far an unfinished phase is."""
    columns = [
        Column(head="phase"),
        Column(head="verdict"),
        Column(head="time", right=True, spare=1),
        Column(head="reason", is_text=True),
    ]
    cells: list[list[str | Text]] = [
        [
            row["phase"],
            Text(row["verdict"], COLOURS.get(row["tone"], "")),
            words.duration(row["seconds"]),
            row["reason"] or (f"at {row['at'].replace('_', ' ')}" if row["at"] else ""),
        ]
        for row in rows
    ]
    return Grid(columns=columns, rows=cells, title=f"Run {run_dir}")


def score_table(rows: Sequence[Mapping[str, Any]], title: str) -> Grid:
    """Return the rows of `forge eval`: score, interval, and what guessing gives.

    Where a task mixes kinds of items, each has a line below it.
    """
    columns = [
        Column(head="task"),
        Column(head="score", right=True),
        Column(head="95% interval", right=True, spare=1),
        Column(head="guessing", right=True, spare=3),
        Column(head="items", right=True, spare=2),
    ]
    cells: list[list[str]] = []
    for row in rows:
        guess = "" if row["chance"] is None else words.score({**row, "value": row["chance"]})
        cells.append(
            [_scored(row), words.score(row), words.interval(row), guess, words.number(row["n"])]
        )
        for kind, part in row.get("kinds", {}).items():
            part = {"metric": row["metric"], **part}
            cells.append(
                [f"  {kind}", words.score(part), words.interval(part), "", words.number(part["n"])]
            )
    return Grid(columns=columns, rows=cells, title=title, notes=_chance_notes(rows))


def _scored(row: Mapping[str, Any]) -> str:
    """Return the name of a task in words, and the grammar under which it was scored."""
    under = row.get("grammar", "none")
    return words.task(row["task"]) + ("" if under == "none" else f", grammar {under}")


def _chance_notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line that names the tasks on which a model is at chance, if there are any."""
    names = [words.task(row["task"]) for row in rows if row.get("at_chance")]
    return [f"At chance, so nothing can be lost there: {', '.join(names)}."] if names else []


def compare_table(rows: Sequence[Mapping[str, Any]], title: str) -> Grid:
    """Return the rows of `forge compare`: both scores, what the second keeps of the first, and of
    domains of text the share of places where both find the same token likeliest.
    """
    with_tokens = any("same_token" in row for row in rows)
    columns = [
        Column(head="task"),
        Column(head="first", right=True, spare=2),
        Column(head="second", right=True, spare=2),
        Column(head="kept", right=True),
        Column(head="at least", right=True),
        *([Column(head="same token", right=True, spare=1)] if with_tokens else []),
        Column(head="items", right=True, spare=3),
    ]
    cells = [_compared_cells(row, with_tokens) for row in rows]
    notes = _chance_notes(rows)
    if with_tokens:
        notes = ["Kept of a domain: the first's perplexity over the second's.", *notes]
    return Grid(columns=columns, rows=cells, title=title, notes=notes)


def _compared_cells(row: Mapping[str, Any], with_tokens: bool) -> list[str]:
    same = [words.percent(row["same_token"]) if "same_token" in row else ""] if with_tokens else []
    return [
        _scored(row),
        words.score({**row, "value": row["first"]}),
        words.score({**row, "value": row["second"]}),
        "" if row["kept"] is None else words.percent(row["kept"]),
        "" if row["low"] is None else words.percent(row["low"]),
        *same,
        words.number(row["n"]),
    ]


def plain_table(rows: Sequence[Mapping[str, Any]], title: str = "") -> Grid:
    """Return rows of plain values as a table whose columns are the keys of the rows."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = [
        Column(
            head=words.heading(str(key)),
            right=all(isinstance(row.get(key), (int, float)) for row in rows),
            is_text=any(isinstance(row.get(key), (str, list)) for row in rows),
        )
        for key in keys
    ]
    cells = [[words.cell(str(key), row.get(key)) for key in keys] for row in rows]
    return Grid(columns=columns, rows=cells, title=title)
