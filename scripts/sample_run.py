"""The outcomes of one default run, rebuilt from the tables that sample_run.json holds.

Screenshots and tests of the report need a run with real figures, and the default run takes a
quarter of an hour. The file is results/run_all.json of an earlier run (295263a), and stays as it is
when the run is measured again. Only what those tables hold is here: scores, retentions, sizes, times and
verdicts; a phase's own figures, samples and curves are not.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_forge.pipeline.outcome import JOB, Outcome

RESULT = Path(__file__).with_name("sample_run.json")
RUN_DIR = "outputs/run_all"
METRICS = {"text": ("bits per byte", 8.0), "tools": ("right answers by right calls", 0.0)}
OTHER_METRIC = ("exact match", 0.2)
LIMITS = {"text": 0.95, "tools": 0.9}
SCORE = re.compile(r"(\w+) ([\d.]+) \[([\d.]+), ([\d.]+)\] n=(\d+)(, at chance)?")
KEPT = re.compile(r"(\w+) (?:at chance|([\d.]+) \(≥ ([\d.]+)\))")


def outcomes() -> list[Outcome]:
    """Return the outcomes of all phases of the run, in order."""
    block = json.loads(RESULT.read_text(encoding="utf-8"))["blocks"]["run-all tables"]
    chain_lines, phase_lines, _ = block.split("\n\n")
    last_chain = {row["task"]: row for row in _rows(chain_lines)}
    rows = list(_rows(phase_lines))
    base = _scores(rows[0]["quality"])
    run: list[Outcome] = []
    for position, row in enumerate(rows, start=1):
        parent = run[-1] if run else None
        scores = _scores(row["quality"])
        chain = {} if parent is None else _chain(base, scores, last_chain)
        run.append(_outcome(position, row, parent, scores, chain, base))
    return run


def _outcome(
    position: int,
    row: dict[str, str],
    parent: Outcome | None,
    scores: dict[str, Any],
    chain: dict[str, Any],
    base: dict[str, Any],
) -> Outcome:
    name = row["phase"]
    path = f"{RUN_DIR}/{position}-{name}{'/trunk' if position == 1 else ''}"
    return Outcome(
        phase=name, status="done", input_hash=str(position), outputs=[path],
        parent=parent.outputs[0] if parent else "", checkpoint_id=f"{position:x}" * 16,
        report={"summary": "", "baseline": row["baseline of equal budget"]},
        verdict={
            "passed": True, "reasons": [], "retentions": _kept(row["kept of parent"]),
            "chain": chain, "scores": scores, "base_scores": base if chain else {},
            "parent_scores": (parent.verdict or {})["scores"] if parent else {},
            "base": {"name": "trunk"} if chain else {},
        },
        deployable_bytes=_bytes(row["packed"]), file_bytes=_bytes(row["files"]),
        peak_memory_bytes=_bytes(row["peak memory"]), seconds=_number(row["time"]),
        tokens_per_second=_number(row["tok/s"]),
    )  # fmt: skip


def _rows(text: str) -> Iterator[dict[str, str]]:
    heads, _, *lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
    ]
    for cells in lines:
        yield {
            head.partition(":")[0].strip(): cell for head, cell in zip(heads, cells, strict=True)
        }


def _scores(text: str) -> dict[str, Any]:
    scores = {}
    for task, value, low, high, n, chance in SCORE.findall(text):
        metric, guess = METRICS.get(task, OTHER_METRIC)
        scores[task] = {
            "value": float(value), "low": float(low), "high": float(high), "n": int(n),
            "metric": metric, "chance": guess, "at_chance": bool(chance),
        }  # fmt: skip
    return scores


def _kept(text: str) -> dict[str, Any]:
    if text == "no parent":
        return {}
    return {
        task: _retention(task, float(ratio or 1.0), float(low or 0.0), at_chance=not ratio)
        for task, ratio, low in KEPT.findall(text)
    }


def _retention(task: str, ratio: float, low: float, *, at_chance: bool) -> dict[str, Any]:
    """Return a retention whose upper bound, which the tables leave out, mirrors the lower one."""
    limit = LIMITS.get(task, 0.0)
    return {
        "task": task, "ratio": ratio, "low": low, "high": 2 * ratio - low, "limit": limit,
        "gated": not at_chance, "note": "", "at_chance": at_chance,
    }  # fmt: skip


def _chain(
    base: dict[str, Any], scores: dict[str, Any], last: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Return what a phase kept of the base: the ratio of the scores, with the last row's limits."""
    chain = {}
    for task, score in scores.items():
        if base[task]["at_chance"]:
            chain[task] = _retention(task, 1.0, 0.0, at_chance=True)
            continue
        pair = (base[task]["value"], score["value"])
        ratio = pair[0] / pair[1] if task == "text" else pair[1] / pair[0]
        ratio_last, low_last = map(float, re.findall(r"[\d.]+", last[task]["kept"]))
        entry = _retention(task, ratio, ratio - (ratio_last - low_last), at_chance=False)
        chain[task] = {**entry, "limit": float(last[task]["limit"])}
    return chain


def _number(text: str) -> float:
    return float(text.split()[0].replace(",", ""))


def _bytes(text: str) -> int:
    return round(_number(text) * 1e6)


def write(run_dir: Path) -> None:
    """Write the records of the run below `run_dir`, as the phases would have left them."""
    for position, outcome in enumerate(outcomes(), start=1):
        record = run_dir / ".forge" / f"{position}-{outcome.phase}"
        record.mkdir(parents=True, exist_ok=True)
        outcome.save(record)
        job = {"phase": outcome.phase, "input_hash": outcome.input_hash}
        (record / JOB).write_text(json.dumps(job), encoding="utf-8")
