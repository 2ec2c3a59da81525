"""The bench of somebody else's tools: what it says of a bake, and of one that the gate refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scripts.bench import own_tools
from scripts.bench.result import Figure

METRICS = {
    "tools/own": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 60},
    "tools/own: no tool fits": {"value": 1.0, "low": 0.8, "high": 1.0, "n": 20},
    "tools before/own": {"value": 0.0},
    "voice change (nats per token)": 0.2,
}
SCORE = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 60}


def figures_of(
    place: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> tuple[dict[str, Figure], list[Sequence[str]]]:
    """Return the figures by claim, and the commands that ran."""
    commands: list[Sequence[str]] = []

    def forge(*words: str, allowed: Sequence[int] = (0,)) -> tuple[str, float]:
        commands.append(words)
        if words[0] == "bake":
            assert own_tools.GATE_REFUSED in allowed
            written = place / ("baked.rejected" if refused else "baked")
            written.mkdir()
            (written / "forge.json").write_text(json.dumps({"metrics": METRICS}))
            return "", 20.0
        assert allowed == (0,)
        return f"a line before\n{json.dumps(SCORE)}\n", 1.0

    monkeypatch.setattr(own_tools, "forge", forge)
    result: Any = own_tools.run(["parent", "--work", str(place)])
    return {figure.claim: figure for figure in result.figures}, commands


def test_a_refused_model_is_asked_and_named_as_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures, (bake, evaluate) = figures_of(tmp_path, monkeypatch, refused=True)
    assert f"out={tmp_path / 'baked'}" in bake
    assert str(tmp_path / "baked.rejected") in evaluate
    assert figures["the gate on text and skills passed (1: yes)"].met is False
    assert figures["right, written by hand"].met is False
    assert figures["right, made from the schemas"].met is True


def test_a_changed_voice_misses_its_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, (_, evaluate) = figures_of(tmp_path, monkeypatch, refused=False)
    assert str(tmp_path / "baked") in evaluate
    assert figures["the gate on text and skills passed (1: yes)"].met is True
    assert figures["KL to the parent on plain questions"].met is False
