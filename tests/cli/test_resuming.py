"""`forge status` shows verdict and reason of each phase, and the command that goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from agent_forge.cli.resuming import NotedCommand, command_line
from agent_forge.core.errors import StorageError
from agent_forge.core.events import Event, EventLog
from agent_forge.pipeline.outcome import COMMAND, EVENTS, JOB, OUTCOME, read_command
from scripts import sample_run

Cli = Callable[..., Result]
LINE = "forge run-all experiment=tiny 'data.text=[my folder]' seed=1"


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """Return a run whose fourth phase was refused and whose fifth was killed in its second stage."""
    run_dir = tmp_path / "here" / "run"
    sample_run.write(run_dir)
    for name in ("6-bake", "7-adas", "8-compress"):
        shutil.rmtree(run_dir / ".forge" / name)
    record = run_dir / ".forge" / "4-bitnet"
    outcome = json.loads((record / OUTCOME).read_text())
    outcome |= {"status": "rejected", "message": "bitnet: the gate refused the result: x"}
    outcome["verdict"] |= {"passed": False, "reasons": ["text keeps 0.93123 of the parent"]}
    (record / OUTCOME).write_text(json.dumps(outcome))
    last = run_dir / ".forge" / "5-train"
    (last / OUTCOME).unlink()
    log = EventLog(last / EVENTS, "train")
    log.progress("chaos_2", 14, 40)
    log.close()
    (run_dir / ".forge" / COMMAND).write_text(json.dumps({"command": LINE}))
    return run_dir


@pytest.mark.parametrize("columns", ["80", "40"])
def test_status_says_verdict_reason_place_and_how_to_go_on(
    cli: Cli, stopped: Path, columns: str
) -> None:
    result = cli("status", "run", COLUMNS=columns)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= int(columns)
    text = " ".join(result.stdout.replace("\\\n", " ").split())
    assert "text keeps 0.931" in text
    assert "interrupted" in text
    assert "at chaos 2 14/40" in text
    assert LINE in text
    assert stopped.is_dir()


def test_status_of_a_finished_run_names_no_command(cli: Cli, tmp_path: Path) -> None:
    sample_run.write(tmp_path / "here" / "run")
    result = cli("status", "run")
    assert result.exit_code == 0, result.stderr
    assert "Go on" not in result.stdout
    rows = [json.loads(line) for line in cli("status", "run", "--json").stdout.splitlines()]
    assert [row["status"] for row in rows] == ["done"] * 8
    assert {row["verdict"] for row in rows} == {"passed"}


def test_a_run_without_a_noted_command_still_says_how_to_go_on(cli: Cli, stopped: Path) -> None:
    (stopped / ".forge" / COMMAND).unlink()
    assert "Go on: the same command as before." in cli("status", "run").stdout


def test_the_report_of_a_stopped_run_is_written_with_the_command(cli: Cli, stopped: Path) -> None:
    outcome = json.loads((stopped / ".forge" / "3-quietstar" / OUTCOME).read_text())
    outcome |= {"phase": "train", "status": "interrupted", "message": "train stopped by SIGTERM"}
    outcome |= {
        "input_hash": json.loads((stopped / ".forge" / "5-train" / JOB).read_text())["input_hash"]
    }
    (stopped / ".forge" / "5-train" / OUTCOME).write_text(json.dumps(outcome))
    assert cli("report", "run").exit_code == 0
    page = (stopped / "report.html").read_text()
    assert "The run ended in train: stopped by SIGTERM." in page
    assert "forge run-all experiment=tiny &#x27;data.text=[my folder]&#x27; seed=1" in page


def test_the_command_is_noted_at_the_first_event_and_once(tmp_path: Path) -> None:
    seen: list[Event] = []
    listen = NotedCommand(tmp_path, LINE).before(seen.append)
    assert read_command(tmp_path) == ""
    events = [Event(seq=n, time=0, kind="message", phase="a") for n in (1, 2)]
    listen(events[0])
    assert read_command(tmp_path) == LINE
    (tmp_path / COMMAND).unlink()
    listen(events[1])
    assert read_command(tmp_path) == ""
    assert seen == events


def test_a_disk_that_cannot_hold_the_note_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr("agent_forge.checkpoint.atomic.write_json", full)
    seen: list[Event] = []
    NotedCommand(tmp_path, LINE).before(seen.append)(Event(seq=1, time=0, kind="start", phase="a"))
    assert len(seen) == 1


def test_a_command_is_what_a_shell_needs_and_leaves_flags_of_one_run_out() -> None:
    overrides = ["experiment=tiny", "data.text=[my folder]", "seed=1"]
    assert command_line("run-all", overrides, None) == LINE
    assert command_line("bitnet", [], "my.yaml") == "forge bitnet --config my.yaml"
