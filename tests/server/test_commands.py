"""What a client may ask of a job, and what its command line becomes."""

from pathlib import Path

import pytest

from agent_forge.core.errors import ConfigError
from agent_forge.server import commands
from agent_forge.server.jobs import Job


@pytest.mark.parametrize(
    "override",
    [
        "out=elsewhere", "run_dir=x", "sources=[a]", "data.text=[secret]", "data={text: [x]}",
        "bitnet.out=x", "bitnet.data.cache=x", "bitnet={out: x}", "gate.base=x", "+out=x",
        "runtime.background=false", "--config", "-m", "--config=x", "hydra.run.dir=x",
        "hydra/launcher=ray", "a._target_=os.system", "model.name=${oc.env:HOME}", "x", "",
        "model.name=/etc/passwd", "model.name='/etc/passwd'", "model.name=[../secret]",
        "model.name=~/x", "model.name=file:///etc", "model.name=C:\\x", "model.name=..",
        "model.name=a\0b",
    ],
)  # fmt: skip
def test_an_override_that_could_reach_the_disk_is_refused(override: str) -> None:
    with pytest.raises(ConfigError):
        commands.check_overrides("bitnet", [override])


@pytest.mark.parametrize(
    "override",
    [
        "train.steps=50", "optim@train.optim=muon", "gate.tasks={text: 0.9}", "+gate.tasks.x=1",
        "~gate.tasks.text", "experiment=tiny", "phases=[cognate,bitnet]", "bitnet.group_size=64",
        "persona.traits.x.system='Answer yes and/or no. 1/2 is half.'", "data.text_share=0.5",
    ],
)  # fmt: skip
def test_a_setting_of_a_phase_is_taken(override: str) -> None:
    commands.check_overrides("run-all", [override])


def test_the_server_names_every_directory(tmp_path: Path) -> None:
    out, record = commands.place(tmp_path, "7", "bitnet")
    job = Job(
        id="7", command="bitnet", overrides=["train.steps=5"], out=str(out), record=str(record),
        hidden_overrides=["data.text=['/data/it''s']"],
    )  # fmt: skip
    arguments = commands.arguments(job, tmp_path, [tmp_path / "a model"])
    assert arguments[:3] == ["bitnet", "--json", "--"]
    assert f"out='{tmp_path}/jobs/7/bitnet'" in arguments
    assert f"sources=['{tmp_path}/a model']" in arguments
    assert "runtime.background=true" in arguments


def test_the_first_phase_of_a_run_reads_the_sources(tmp_path: Path) -> None:
    job = Job(id="7", command="run-all", overrides=["phases=[bitnet,compress]"], out="/r")
    assert commands.run_phases(job) == ["bitnet", "compress"]
    assert "bitnet.sources=['/m']" in commands.arguments(job, tmp_path, [Path("/m")])
    job.overrides = ["runtime.processes=4"]
    assert commands.processes_needed(job) == 4
    assert len(commands.run_phases(job)) == 8


def test_a_tool_gets_its_output_and_no_settings(tmp_path: Path) -> None:
    job = Job(id="7", command="export", overrides=[], out="/o")
    job.hidden_overrides = ["/m", "--format", "hf"]
    arguments = commands.arguments(job, tmp_path, [])
    assert arguments == ["export", "/m", "--format", "hf", "--out", "/o", "--json"]
    job.hidden_overrides = ["/m", "--format", "gguf"]
    assert "/o.gguf" in commands.arguments(job, tmp_path, [])
    with pytest.raises(ConfigError, match="has no settings"):
        commands.check_overrides("merge", ["a=1"])
    with pytest.raises(ConfigError, match="did you mean 'bitnet'"):
        commands.check_command("bitnt")
