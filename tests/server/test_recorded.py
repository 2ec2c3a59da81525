"""What a job's phases have written is told in full, and a past run keeps its curves."""

import re
from pathlib import Path

import pytest

from agent_forge.core.events import EventLog
from agent_forge.pipeline.catalogue import phases
from agent_forge.server import pages, recorded
from agent_forge.server.jobs import Job
from scripts import recorded_run
from tests.server.conftest import until
from tests.server.house import house

ROOT = Path(__file__).resolve().parents[2]
VIEWS = pages.DIST.parent / "src" / "phases"


def test_a_run_of_a_terminal_that_had_ended_has_its_tables_and_its_curves(tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    recorded_run.write(outputs / "run_all")
    with house(tmp_path / "state", watch=(outputs,)) as server:
        until(lambda: server.get("/v1/jobs"))
        (job,) = server.get("/v1/jobs")
        assert (job["command"], job["state"], job["origin"]) == ("run-all", "succeeded", "terminal")
        answer = server.get(f"/v1/jobs/{job['id']}/record?events=true")
        bare = server.get(f"/v1/jobs/{job['id']}/record")
        server.refused("/v1/jobs/none/resume", None, 404)
        assert server.client.get("/v1/jobs/none/record").status_code == 404
    assert [phase["phase"] for phase in answer["phases"]] == list(phases())
    evomerge = answer["phases"][1]
    assert any(title.startswith("Population") for title in evomerge["tables"])
    kinds = {event["type"] for event in answer["events"]}
    assert kinds >= {"progress", "gate", "metrics"}
    numbers = [event["seq"] for event in answer["events"]]
    assert numbers == sorted(set(numbers))
    assert bare["events"] == []
    assert bare["phases"] == answer["phases"]


def test_long_events_are_thinned_but_for_gaps_and_the_ends_of_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "MOST_POINTS", 10)
    log = EventLog(tmp_path / "events.jsonl", "train", interval_seconds=0.0)
    for step in range(1, 102):
        log.progress("work", step, 101, {"loss": float("nan") if step == 50 else 1.0})
    log.close()
    job = Job(id="one", command="train", overrides=[], record=str(tmp_path))
    with house(tmp_path / "state") as server:
        messages = recorded.past_messages(job, server.service.registry)
    steps = [message["step"] for message in messages]
    assert {1, 50, 101} <= set(steps)
    assert len(steps) <= 13
    assert messages[steps.index(50)]["metrics"] == {"loss": "nan"}


@pytest.mark.parametrize("phase", phases())
def test_the_dashboard_reads_tables_that_the_phase_writes(phase: str) -> None:
    view = (VIEWS / f"{phase}.tsx").read_text(encoding="utf-8")
    room = ROOT / "agent_forge" / "phases" / phase
    files = [*room.glob("*.py"), *(ROOT / "agent_forge" / "evaluate").glob("*.py")]
    sources = "".join(path.read_text(encoding="utf-8").lower() for path in files)
    titles = re.findall(r'table\(report, "([^"]+)"\)', view)
    assert titles
    assert [title for title in titles if title.lower() not in sources] == []
