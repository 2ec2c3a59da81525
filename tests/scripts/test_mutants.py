"""The bench that counts what `scripts/mutate.py` has judged."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import mutants


def judged(room: str, line: int, fate: str, old: str = "<") -> dict[str, Any]:
    place = {"file": f"agent_forge/{room}/a.py", "line": line, "column": 4}
    return {
        "room": room,
        **place,
        "kind": "comparison",
        "old": f" {old} ",
        "new": "<=",
        "fate": fate,
    }


def counted(tmp_path: Path, fates: list[dict[str, Any]], reasons: dict[str, str]) -> Any:
    (tmp_path / "fates.json").write_text(json.dumps(fates))
    (tmp_path / "reasons.json").write_text(json.dumps(reasons))
    arguments = [str(tmp_path / "fates.json"), "--reasons", str(tmp_path / "reasons.json")]
    return mutants.run(arguments)


def test_shares_are_of_what_was_judged_and_each_room_has_its_bar(tmp_path: Path) -> None:
    fates = [judged("merge", line, "killed") for line in range(17)]
    fates += [
        judged("merge", 17, "survived", old="|"),
        judged("learn", 1, "not executed by any test"),
    ]
    fates += [judged("learn", line, "killed") for line in (2, 3)] + [judged("learn", 4, "")]
    reasons = {
        "agent_forge/merge/a.py:17:4 `|` → `<=`": "either is right",
        "agent_forge/learn/a.py:1:4 `<` → `<=`": "needs a card",
    }
    result = counted(tmp_path, fates, reasons)
    whole, merge, learn = result.figures
    assert (whole.figure, whole.n, whole.met) == (pytest.approx(19 / 21), "21 changes", True)
    assert (merge.figure, merge.met) == (pytest.approx(17 / 18), True)
    assert (learn.figure, learn.met) == (pytest.approx(2 / 3), False)
    assert (result.figure, result.met) == (2.0, False)
    assert result.note.startswith("1 further changes")
    assert "| all | 21 | 19 | 90% |" in result.tables
    line = r"| agent_forge/merge/a.py:17:4 `\|` → `<=` | comparison | either is right |"
    assert line in result.tables.splitlines()


def test_a_survivor_without_a_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no reason for the survivor agent_forge/merge/a\.py:1:4"):
        counted(tmp_path, [judged("merge", 1, "survived")], {})
