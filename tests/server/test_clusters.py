"""Jobs under Slurm, by submitit itself, and under SkyPilot: against stand-ins for their commands."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_forge.core.errors import ConfigError
from agent_forge.server.database import Database
from agent_forge.server.jobs import JobState
from agent_forge.server.launchers import Launch, cluster, node
from agent_forge.server.launchers.cluster import ClusterLauncher
from agent_forge.server.launchers.skypilot import SkyLauncher
from agent_forge.server.launchers.slurm import SlurmLauncher
from agent_forge.server.supervisor import Supervisor
from tests.server import fake_cluster
from tests.server.conftest import STUB, end_jobs, quick_settings, until, until_state

LAUNCHERS: dict[str, Callable[..., ClusterLauncher]] = {
    "slurm": SlurmLauncher, "skypilot": SkyLauncher,
}  # fmt: skip


@pytest.fixture(params=list(LAUNCHERS))
def launcher(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ClusterLauncher:
    """Return a launcher whose cluster is this machine."""
    if request.param == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed (extra: dist)")
    commands = fake_cluster.install(tmp_path / "cluster")
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SECRET_KEY", "of the server")
    monkeypatch.setattr(cluster, "FRESH_SECONDS", 0.5)
    return LAUNCHERS[request.param]([sys.executable, str(STUB)], ask_seconds=0.2, most_jobs=2)


@pytest.fixture
def service(database: Database, launcher: ClusterLauncher) -> Iterator[Supervisor]:
    running = Supervisor(database, database.path.parent, launcher, settings=quick_settings())
    running.start()
    yield running
    end_jobs(running)
    running.close()


def test_a_job_runs_on_the_cluster_and_is_followed_on_the_shared_disk(service: Supervisor) -> None:
    job = until_state(service, service.submit("train", ["steps=4"]), JobState.SUCCEEDED)
    events = service.events(0, job_id=job.id)
    assert [event.step for event in events if event.kind == "progress"] == [1, 2, 3, 4]
    assert job.error_code == 0


def test_a_paused_job_saves_and_goes_on_in_another_job_of_the_cluster(service: Supervisor) -> None:
    job = service.submit("train", ["steps=4", "end=hang"])
    until(lambda: service.get(job.id).progress > 20)
    service.pause(job.id)
    assert until_state(service, job, JobState.PAUSED).error_code == 75
    service.resume(job.id)
    until(lambda: service.get(job.id).attempt == 2 and service.get(job.id).progress >= 0)
    service.cancel(job.id)
    until_state(service, job, JobState.CANCELLED)


def test_a_job_that_the_cluster_ended_is_interrupted(
    service: Supervisor, launcher: ClusterLauncher
) -> None:
    job = service.submit("train", ["end=hang"])
    until(lambda: service.get(job.id).progress > 0)
    with service.database.read() as connection:
        row = connection.execute("SELECT id FROM attempt WHERE job_id = ?", [job.id]).fetchone()
    tool = "sky" if launcher.name == "skypilot" else "scancel"
    name = f"forge-{row['id']}"
    cluster.answer([tool, *(["down", "--yes"] if tool == "sky" else []), name])
    assert until_state(service, job, JobState.INTERRUPTED).message


def test_a_submission_that_was_cut_off_is_found_by_its_name(
    launcher: ClusterLauncher, tmp_path: Path
) -> None:
    arguments = ["train", f"out={tmp_path / 'out'}", "end=hang"]
    launch = Launch(token="abc", directory=tmp_path / "job", arguments=arguments)
    assert launcher.find(launch) is None
    handle = launcher.submit(launch)
    until(lambda: node.alive_file(launch).exists())
    assert launcher.find(launch) == handle
    launcher.cancel(launch, handle, force=True)
    until(lambda: not launcher.poll(launch, handle).alive)


def test_a_missing_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="`sky` is not on the PATH"):
        SkyLauncher().submit(Launch(token="x", directory=tmp_path))
