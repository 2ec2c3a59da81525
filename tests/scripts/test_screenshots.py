"""The recorded run has the figures of its result; the report is no wider than any screen."""

import json
from pathlib import Path

import pytest

from agent_forge.pipeline import report
from scripts import sample_run, screenshots


def test_the_sample_run_has_the_figures_of_the_recorded_run() -> None:
    recorded = json.loads(sample_run.RESULT.read_text(encoding="utf-8"))
    outcomes = sample_run.outcomes()
    seconds = {figure["claim"]: figure["figure"] for figure in recorded["figures"][1:]}
    assert {outcome.phase: outcome.seconds for outcome in outcomes} == seconds
    assert round(sum(outcome.seconds for outcome in outcomes)) == recorded["figure"]
    last = outcomes[-1].verdict or {}
    block = recorded["blocks"]["run-all tables"]
    for score in last["scores"].values():
        assert f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]" in block


def test_missing_tools_are_named_in_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert screenshots.pictures(tmp_path / "page.html", tmp_path) == []
    assert screenshots.captures(tmp_path, tmp_path, tmp_path) == []
    lines = capsys.readouterr().out.splitlines()
    assert ["Chromium is missing" in lines[0], "tmux is missing" in lines[1]] == [True, True]


@pytest.mark.skipif(not screenshots.chromium(), reason="needs Chromium (apt-get install chromium)")
def test_the_report_is_not_wider_than_a_phone_a_tablet_and_a_screen(tmp_path: Path) -> None:
    sample_run.write(tmp_path)
    _, page = report.write(tmp_path, report.read_run(tmp_path))
    with screenshots.browser(screenshots.chromium()) as tab:
        tab.open(page)
        assert [tab.overflow(width) for width in (360, 768, 1920, 3840)] == [0, 0, 0, 0]
        picture = tab.picture(screenshots.VIEWS[2])
    assert picture.startswith(b"\x89PNG")
