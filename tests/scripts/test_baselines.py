"""The script that runs finished phases again with their baselines of equal budget."""

import runpy
import sys
from pathlib import Path

import pytest

import agent_forge

SCRIPT = Path(agent_forge.__file__).parent.parent / "scripts" / "baselines.py"


def test_a_finished_phase_is_run_again_beside_its_baseline(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(SCRIPT), str(tiny_run), "--out", str(tmp_path), "--phases", "train", "bake"]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    train, bake = capsys.readouterr().out.splitlines()
    assert train.startswith("train: gain over plain training of equal tokens: text ")
    assert bake.startswith(
        "bake: against plain training on the same rows for as many steps: calculator "
    )
