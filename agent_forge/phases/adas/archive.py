"""The archive of a search: what was tried, how good the best of it was, what it cost, its drift.

Made from the steps that the workspace keeps, so it goes on with an interrupted search and loses
nothing. One row for each combination of a technique and edits, the best first. Gains are those of
the screening and of a race's first round, over the incumbent of that time; they choose, and prove
nothing: that is for the fresh rows of an acceptance.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_forge.phases.adas.candidate import Candidate
from agent_forge.phases.adas.trust import Trial

Row = dict[str, Any]


def archive(trials: Sequence[Trial], log: Iterable[Mapping[str, Any]], per_trial: int) -> list[Row]:
    """Return the rows. per_trial: rows that the first round and the screening score a candidate on.

    "rows_scored" counts the later rounds and the acceptance for the race's winner, and the
    incumbent's rows with them. Drift is measured where an acceptance needs it, else it is None, as
    is the best gain where none was finite.
    """
    tried: dict[tuple[str, tuple[str, ...]], list[Trial]] = defaultdict(list)
    for trial in trials:
        tried[_key(trial.candidate)].append(trial)
    rows = {key: _row(key, some, per_trial) for key, some in tried.items()}
    for step in log:
        if "candidate" not in step:
            continue
        row = rows[_key(Candidate.from_plain(step["candidate"]))]
        row["rows_scored"] += step["rows_scored"] - per_trial * len(step["first_round"])
        row["accepted"] += step["accepted"]
        if "drift_nats" in step:
            row["drift_nats"] = max(row["drift_nats"] or 0.0, step["drift_nats"])
    return sorted(rows.values(), key=_place)


def _place(row: Row) -> tuple[bool, float, str, str]:
    gain = row["best_gain_nats"]
    return (gain is None, -(gain or 0.0), row["technique"], row["edits"])


def _key(candidate: Candidate) -> tuple[str, tuple[str, ...]]:
    return (candidate.technique if any(candidate.alpha) else "", candidate.edits)


def _row(key: tuple[str, tuple[str, ...]], trials: Sequence[Trial], per_trial: int) -> Row:
    gains = [trial.gain if math.isfinite(trial.gain) else -math.inf for trial in trials]
    best = trials[max(range(len(gains)), key=gains.__getitem__)].candidate
    return {
        "technique": key[0], "edits": " ".join(key[1]), "tried": len(trials),
        "best_gain_nats": max(gains) if max(gains) > -math.inf else None,
        "strengths": " ".join(f"{a:+.2f}" for a in best.alpha) if key[0] else "",
        "rows_scored": per_trial * len(trials), "drift_nats": None, "accepted": 0,
    }  # fmt: skip
