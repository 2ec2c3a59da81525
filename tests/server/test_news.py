"""Progress that never falls, news for coroutines, what is forgotten, and paths that become ids."""

import asyncio
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.core.events import Event
from agent_forge.server import records
from agent_forge.server.jobs import JobState
from agent_forge.server.progress import JobProgress, PhaseProgress
from agent_forge.server.retention import Retention
from agent_forge.server.stages import STAGE_SECONDS
from agent_forge.server.supervisor import Supervisor
from agent_forge.server.wakeups import Wakeups
from tests.server.conftest import until_state


def progress(stage: str, step: int, total: int, phase: str = "train") -> Event:
    return Event(seq=1, time=0.0, kind="progress", phase=phase, stage=stage, step=step, total=total)


def test_known_stages_weigh_what_they_take_and_unknown_ones_half_of_the_rest() -> None:
    known = PhaseProgress("bitnet")
    stages = STAGE_SECONDS["bitnet"]
    first, second = list(stages)[:2]
    whole = sum(stages.values())
    assert known.take(progress(first, 1, 2)) == pytest.approx(50 * stages[first] / whole)
    reached = known.take(progress(second, 1, 1))
    assert reached == pytest.approx(100 * (stages[first] + stages[second]) / whole)
    assert known.take(progress(first, 1, 2)) == reached  # never falls
    unknown = PhaseProgress("no such phase")
    assert unknown.take(progress("a", 1, 1)) == pytest.approx(49.5)
    assert unknown.take(progress("b", 1, 1)) == pytest.approx(74.25)
    end = Event(seq=2, time=0.0, kind="complete", phase="x")
    assert unknown.take(end) == 100.0


def test_a_phase_that_speaks_ends_those_before_it() -> None:
    job = JobProgress(["cognate", "bitnet", "compress"], {})
    assert job.take(progress("x", 0, 10, "bitnet")) == 0.0
    assert 40 < job.overall() < 100
    again = JobProgress(["cognate", "bitnet", "compress"], {"bitnet": 30.0})
    assert again.take(progress("x", 0, 10, "bitnet")) == 30.0


def test_coroutines_wake_for_news_and_after_the_time(supervisor: Supervisor) -> None:
    async def wait() -> tuple[int, int]:
        async with Wakeups(supervisor) as wakeups:
            before = wakeups.last_seq
            assert await wakeups.newer_than(before, 0.01) == before
            waiting = [asyncio.create_task(wakeups.newer_than(before, 30)) for _ in range(50)]
            await asyncio.to_thread(supervisor.submit, "train", ["steps=1"])
            return before, min(await asyncio.gather(*waiting))

    before, after = asyncio.run(wait())
    assert after > before


def test_old_events_of_ended_jobs_are_forgotten_and_the_gap_is_known(
    supervisor: Supervisor,
) -> None:
    assert supervisor.oldest_seq() == 1
    ended = until_state(
        supervisor, supervisor.submit("train", ["steps=9"]), JobState.SUCCEEDED
    )  # fmt: skip
    supervisor.set_queue(paused=True)
    waiting = supervisor.submit("train")
    supervisor.settings.keep_events = 4
    retention = Retention(supervisor.workplace)
    assert retention.forget() > 5
    assert retention.forget() == 0
    left = supervisor.events(0)
    assert len(left) == 4
    assert supervisor.oldest_seq() == left[0].seq
    supervisor.settings.keep_days = 0.0
    retention.forget()
    assert not supervisor.events(0, job_id=ended.id)
    assert len(supervisor.events(0, job_id=waiting.id)) == 1
    assert supervisor.last_seq() == supervisor.events(0)[-1].seq
    assert supervisor.get(ended.id).state is JobState.SUCCEEDED


def test_paths_become_ids_or_names(
    supervisor: Supervisor, tiny_checkpoint: checkpoint.Checkpoint, tmp_path: Path
) -> None:
    registry, path = supervisor.registry, tiny_checkpoint.path
    assert records.without_paths(f"wrote {path}; done", registry) == (
        f"wrote {tiny_checkpoint.id}; done"
    )
    hidden = records.without_paths(f"cannot read '{tmp_path}/secret/data.jsonl'", registry)
    assert hidden == "cannot read 'data.jsonl'"
    for text in ("text, reasoning and/or memory", "3/4", "runs/bitnet", "https://a.org/b"):
        assert records.without_paths(text, registry) == text
    assert records.plain_metrics({"path": str(path), "n": 1}, registry) == {
        "path": tiny_checkpoint.id, "checkpoint_id": tiny_checkpoint.id, "n": 1,
    }  # fmt: skip
