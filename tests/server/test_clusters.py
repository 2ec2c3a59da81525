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
from agent_forge.server.serving import ServeSettings, opened
from agent_forge.server.store import last_attempt
from agent_forge.server.supervisor import Supervisor
from tests.server import fake_cluster
from tests.server.conftest import (
    STUB,
    end_jobs,
    quick_settings,
    stub_launcher,
    until,
    until_state,
)

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


def test_what_an_attempt_has_said_is_read_whatever_ran_it(
    launcher: ClusterLauncher, tmp_path: Path
) -> None:
    launch = Launch(token="said", directory=tmp_path / "job", arguments=["train", "steps=x"])
    assert launcher.tail(launch, 5) == ""
    handle = launcher.submit(launch)
    until(lambda: not launcher.poll(launch, handle).alive)
    launcher.sweep(launch, handle)
    assert "KeyError: 'out'" in launcher.tail(launch, 1)
    assert launcher.tail(launch, 3).endswith(launcher.tail(launch, 1))


def test_what_slurm_said_stands_for_a_job_that_never_began(tmp_path: Path) -> None:
    launch = Launch(token="early", directory=tmp_path)
    for number, text in ((1, "an older start"), (2, "slurmstepd: error: no such partition")):
        file = tmp_path / "slurm" / "early" / f"{number}_0_log.err"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
        os.utime(file, (number, number))
    assert SlurmLauncher().tail(launch, 5) == "slurmstepd: error: no such partition"
    launch.log.write_text("forge: the command's own word\n")
    assert SlurmLauncher().tail(launch, 5) == "forge: the command's own word"


def test_a_server_with_another_launcher_watches_the_jobs_of_the_one_before(
    database: Database, launcher: ClusterLauncher
) -> None:
    place, settings = database.path.parent, quick_settings(cpu_jobs=2)
    first = Supervisor(database, place, stub_launcher(), settings=settings)
    first.start()
    job = first.submit("train", ["end=hang"])
    until(lambda: first.get(job.id).progress > 0)
    first.close()
    second = Supervisor(database, place, launcher, settings=settings)
    second.start()
    try:
        other = until_state(second, second.submit("train", ["steps=3"]), JobState.SUCCEEDED)
        with second.database.read() as connection:
            names = [last_attempt(connection, one.id).launcher for one in (job, other)]
        assert names == ["local", launcher.name]
        assert second.get(job.id).state is JobState.RUNNING
        second.cancel(job.id)
        assert until_state(second, job, JobState.CANCELLED).attempt == 1
    finally:
        end_jobs(second)
        second.close()


def test_a_file_describes_the_launcher_of_a_server(
    launcher: ClusterLauncher, tmp_path: Path
) -> None:
    file = tmp_path / "launcher.yaml"
    own = {"slurm": "parameters: {slurm_partition: gpu}", "skypilot": "task: {setup: pip}"}
    file.write_text(f"launcher: {launcher.name}\nmost_jobs: 7\n{own[launcher.name]}\n")
    settings = ServeSettings(state=tmp_path / "state", watch=[], launcher=file)
    settings.check()
    with opened(settings) as service:
        chosen = service.supervisor.workplace.launcher
        assert (chosen.name, chosen.most_jobs) == (launcher.name, 7)
        values = vars(chosen)
        assert values.get("parameters", {}).get("slurm_partition") == "gpu" or values["task"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no launcher"), ("[slurm]", "names no launcher"), ("launcher: 5", "names no"),
        ("launcher: slurn", "did you mean 'slurm'"), ("launcher: [", "cannot be read"),
        ("launcher: local\npartition: x", "local has no setting 'partition'"),
        ("launcher: slurm\nparameter: {}", "did you mean 'parameters'"),
        ("launcher: slurm\nmost_jobs: 0", "most_jobs must be a whole number, 1 or more, got 0"),
        ("launcher: slurm\nmost_jobs: true", "most_jobs must be"),
        ("launcher: slurm\ngpus_per_process: -1", "0 or more, got -1"),
        ("launcher: slurm\nparameters: gpu", "parameters must be a mapping"),
        ("launcher: skypilot\nallowed: [1]", "allowed must be a list of texts"),
        ("launcher: slurm\n1: 2", "slurm has no setting '1'"),
    ],
)  # fmt: skip
def test_a_file_that_describes_no_launcher_is_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    file = tmp_path / "launcher.yaml"
    file.write_text(text)
    settings = ServeSettings(state=tmp_path / "state", launcher=file)
    with pytest.raises(ConfigError) as refusal:
        settings.check()
    assert words in str(refusal.value)
    assert str(refusal.value).startswith(f"--launcher {file}: ")
    assert "\n" not in str(refusal.value)
    assert not settings.state.exists()


def test_a_missing_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="`sky` is not on the PATH"):
        SkyLauncher().submit(Launch(token="x", directory=tmp_path))
    file = tmp_path / "launcher.yaml"
    file.write_text("launcher: skypilot")
    with pytest.raises(ConfigError, match="`sky` is not on the PATH"):
        ServeSettings(launcher=file).check()
    with pytest.raises(ConfigError, match="cannot be read"):
        ServeSettings(launcher=tmp_path / "none").check()
