"""`forge eval` and `forge compare` on suites: what is compared, shown, and refused."""

from dataclasses import replace

import pytest

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint
from agent_forge.cli import scoring, tables
from agent_forge.config import DataConfig, EvalSettings, suites
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError


def test_a_checkpoint_keeps_all_of_itself_and_finds_the_same_tokens(
    tiny_checkpoint: Checkpoint, data_config: DataConfig
) -> None:
    settings = replace(compose("eval", EvalSettings, []), data=data_config)
    names = ["chat", "hellaswag"]
    one, two = (
        scoring._measured(
            tiny_checkpoint.path, scoring.Scoring(settings, names, 4, "test"), with_tokens=True
        )
        for _ in range(2)
    )
    chat, choice = (
        scoring._compared(name, scoring.NO_GRAMMAR, one, two, settings) for name in names
    )
    assert (chat["kept"], chat["perplexity_ratio"], chat["same_token"]) == (1, 1, 1)
    assert chat["tokens"] > chat["n"] == 4
    assert "same_token" not in choice
    grid = tables.compare_table([chat, choice], "a against b")
    assert [column.head for column in grid.columns][-2:] == ["same token", "items"]
    assert [row[5] for row in grid.rows] == ["100%", ""]
    assert any("At chance" in note and "chat" in note for note in grid.notes)
    assert "same token" not in {
        column.head for column in tables.compare_table([choice], "").columns
    }


def test_a_suite_stands_for_its_tasks_and_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scoring._names("domains,chat") == [one.task for one in suites.read("domains")]
    absent = suites.Member("humaneval", "no_such_package", "'agent-forge[skills]'", "MIT")
    monkeypatch.setattr(suites, "read", lambda _: (absent,))
    assert scoring._names("skills,text") == ["text"]
    assert "skills without humaneval: no_such_package is not installed" in capsys.readouterr().err


def test_a_benchmark_that_was_trained_on_is_not_reported(
    tiny_checkpoint: Checkpoint,
) -> None:
    manifest = replace(tiny_checkpoint.manifest, extra={"benchmarks": ["bfcl"]})
    opened = checkpoint.Checkpoint(tiny_checkpoint.path, manifest)
    scoring._refuse_trained_on(opened, ["text"])
    with pytest.raises(ConfigError, match="was trained on data of bfcl"):
        scoring._refuse_trained_on(opened, ["text", "bfcl"])
