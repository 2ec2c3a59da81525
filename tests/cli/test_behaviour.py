"""What a user meets at the prompt: exit codes, one-line errors, suggestions, terminals, sweeps."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from typer.testing import Result

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import ForgeError
from agent_forge.pipeline.catalogue import phases

Cli = Callable[..., Result]
Forge = Callable[..., "CompletedProcess[str]"]
HEAVY = ("torch", "transformers", "hydra", "omegaconf", "numpy", "safetensors")
QUICK = [
    "linear.group_size=32", "init.rows=2", "train.rows=2", "train.length_tokens=32",
    "train.steps=1", "measure_items=4", "unseen_items=4", "domain_items=0",     "gate.items=4", "gate.looks=1",
    "gate.speed_ratio=0", "runtime.threads=1",
]  # fmt: skip


@pytest.fixture
def bitnet(tiny_checkpoint: Checkpoint, text_folder: Path, tmp_path: Path) -> list[str]:
    """Return the arguments of a bitnet phase of seconds, without `out`."""
    return [
        "bitnet", *QUICK, f"sources=[{tiny_checkpoint.path}]", f"data.text=[{text_folder}]",
        f"data.cache={tmp_path / 'cache'}",
    ]  # fmt: skip


def test_help_imports_nothing_heavy_and_is_quick(forge: Forge) -> None:
    script = (
        "import sys, time; start = time.perf_counter(); sys.argv = ['forge', '--help']\n"
        "from agent_forge.cli import main\n"
        "try: main()\n"
        "except SystemExit as leave: code = leave.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "print('REPORT', code, time.process_time(), loaded)"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    code, seconds, loaded = re.search(r"REPORT (\S+) (\S+) (.*)", process.stdout).groups()  # type: ignore[union-attr]
    assert (code, loaded) == ("0", "[]")
    assert float(seconds) < 1.0  # CPU time: 0.2 s on a quiet machine
    assert forge("--version").stdout.startswith("forge 0.")


def test_unknown_commands_and_options_suggest(cli: Cli) -> None:
    wrong = cli("bitnte")
    assert wrong.exit_code == 2
    assert "Did you mean 'bitnet'" in wrong.stderr
    wrong = cli("bitnet", "--dryrun")
    assert wrong.exit_code == 2
    assert "--dry-run" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitnet", "train.stesp=3"], "unknown key 'train.stesp'; did you mean 'train.steps'"),
        (["run-all", "bitnet.train.stesp=3"], "did you mean 'bitnet.train.steps'"),
        (["run-all", "experiment=tinny"], "did you mean 'tiny'"),
        (["run-all", "phases=[cognate,bitnte]"], "no phase 'bitnte'; did you mean 'bitnet'"),
        (["cognate", "model=25"], "did you mean '25m'"),
        (["bitnet", "experiment=tinny"], "no experiment 'tinny'; did you mean 'tiny'"),
        (["adas", "experiment=smollm2_tools"], "says nothing of adas"),
        (["bitnet", "experiment=null"], "chosen by name, GROUP=NAME"),
        (["bitnet", "--config", "tinny"], "did you mean 'tiny'"),
        (["bitnet", "--config", "none.yaml"], "No such file"),
        (["bitnet", "train.steps"], "is not KEY=VALUE"),
        (["bitnet", "train.steps=many"], "train.steps"),
        (["bitnet", "runtime.device=cuda:7", "gate.tasks.txt=1"], "did you mean 'text'"),
        (["bitnet", "-m", "--dry-run"], "leave out -m"),
        (["bitnet"], "bitnet reads a checkpoint: give sources=[DIR]"),
    ],
)
def test_a_mistake_in_settings_is_one_line_with_the_remedy_and_exit_2(
    cli: Cli, arguments: list[str], message: str, tmp_path: Path
) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("forge: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("command", [*phases(), "run-all", "eval", "compare"])
@pytest.mark.parametrize("setting", ["data._target_=builtins.exec", "+x={_target_:builtins.exec}"])
def test_code_in_settings_is_refused_at_every_door(
    cli: Cli, command: str, setting: str, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    directories = {"eval": 1, "compare": 2}.get(command, 0) * [str(tiny_checkpoint.path)]
    file = tmp_path / "evil.yaml"
    file.write_text("data:\n  _target_: builtins.exec\n")
    ways: list[list[str]] = [[setting], ["--config", str(file)]]
    if not directories:
        ways.append(["-m", setting])
        ways.append(["-m", f"hydra.searchpath=[{tmp_path}]"])
    for way in ways:
        result = cli(command, *directories, *way)
        assert result.exit_code == 2
        assert (
            "_target_ is not accepted" in result.stderr
            or "settings come from conf/" in result.stderr
        )


def test_verbose_shows_where_an_error_came_from(cli: Cli) -> None:
    assert "Traceback" not in cli("verify", "nowhere").stderr
    assert "Traceback" in cli("verify", "nowhere", "--verbose").stderr


def test_the_exit_codes_are_those_of_the_design() -> None:
    def walk(kind: type[ForgeError]) -> dict[str, int]:
        return {kind.__name__: kind.exit_code} | {
            k: v
            for sub in kind.__subclasses__()
            for k, v in walk(sub).items()
            if sub.__module__ == ForgeError.__module__
        }

    assert walk(ForgeError) == {
        "ForgeError": 1, "ConfigError": 2, "GateError": 3, "CheckpointError": 74, "LockedError": 73,
        "DataError": 74, "StorageError": 74, "PhaseError": 1, "Interrupted": 75,
    }  # fmt: skip


def test_json_is_one_value_a_line_on_stdout_and_nothing_else(
    forge: Forge, bitnet: list[str], tmp_path: Path
) -> None:
    result = forge(*bitnet, f"out={tmp_path / 'out'}", "--json")
    assert result.returncode == 0, result.stderr
    *events, outcome = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["kind"] == "start"
    assert events[-1]["kind"] == "complete"
    assert outcome["status"] == "done"
    assert outcome["checkpoint_id"] == checkpoint.open(tmp_path / "out").id
    assert result.stderr == ""
    again = forge(*bitnet, f"out={tmp_path / 'out'}", "--resume")
    shown_id = outcome["checkpoint_id"][:10]
    assert again.stdout.strip() == f"bitnet: {tmp_path / 'out'} (id {shown_id})"
    assert again.stderr == ""
    refused = forge(*bitnet, f"out={tmp_path / 'out'}", "seed=1", "--json")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "seed: 0 -> 1" in refused.stderr


def test_a_multirun_gives_each_job_a_directory_and_prints_a_table(
    forge: Forge, bitnet: list[str], tmp_path: Path
) -> None:
    result = forge(*bitnet, "-m", "train.steps=0,1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (folder,) = (tmp_path / "outputs" / "multirun" / "bitnet").iterdir()
    rows = json.loads((folder / "summary.json").read_text())
    assert [(row["job"], row["overrides"], row["status"]) for row in rows] == [
        (0, ["train.steps=0"], "done"),
        (1, ["train.steps=1"], "done"),
    ]
    ids = [checkpoint.open(folder / str(job) / "bitnet").id for job in (0, 1)]
    assert ids[0] != ids[1]
    assert "2 jobs in" in result.stdout
    assert "train.steps=1" in result.stdout


def test_a_multirun_with_a_failing_job_reports_it_and_ends_in_its_code(
    forge: Forge, bitnet: list[str], tmp_path: Path
) -> None:
    result = forge(*bitnet, "-m", "gate.tasks.txt=0.5,0.6", "--json", cwd=tmp_path)
    assert result.returncode == 2
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["status"] for row in rows] == ["ConfigError", "ConfigError"]
    assert "did you mean 'text'" in rows[0]["summary"]


@pytest.mark.parametrize(
    "environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"COLUMNS": "40", "NO_COLOR": "1"}]
)
def test_plain_terminals_get_plain_text(
    cli: Cli, tiny_run: Path, environment: dict[str, str]
) -> None:
    for arguments in (
        ["--help"],
        ["status", str(tiny_run)],
        ["report", str(tiny_run)],
        ["bitnet", "--help"],
    ):
        result = cli(*arguments, **environment)
        assert result.exit_code == 0, result.stderr
        assert "\x1b" not in result.stdout
        assert result.stdout.isprintable() or "\n" in result.stdout
    narrow = cli("--help", COLUMNS="40", NO_COLOR="1")
    assert max(len(line.rstrip()) for line in narrow.stdout.splitlines()) <= 40


def test_a_finished_run_is_found_done_and_prints_the_same_id(forge: Forge, tiny_run: Path) -> None:
    place = tiny_run.parent
    settings = [
        "experiment=tiny",
        f"run_dir={tiny_run}",
        f"data.cache={place / 'cache'}",
        "runtime.threads=1",
        "runtime.save_every_seconds=1",
    ]
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*.safetensors")}
    result = forge("run-all", *settings, "--json")
    assert result.returncode == 0, result.stderr
    (answer,) = [json.loads(line) for line in result.stdout.splitlines()]
    assert answer["id"] == checkpoint.open(tiny_run / "8-compress").id
    assert answer["final"] == str(tiny_run / "8-compress")
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*.safetensors")} == before
    shown = forge("run-all", *settings)
    assert re.search(rf"^ +agent +{re.escape(answer['final'])}$", shown.stdout, re.M)
    assert re.search(rf"^ +id +{answer['id'][:10]}$", shown.stdout, re.M)
