"""`-m` uses or refuses every setting that it is given, and hints name the setting that helps."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from agent_forge.cli.multirun import plain_override

Cli = Callable[..., Result]


def test_out_names_the_directory_of_a_sweep_as_it_was_typed(
    cli: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The jobs fail on purpose: what they are given is what counts here.

    Warnings of ours are heard afterwards too.
    """
    here = tmp_path / "here"
    result = cli(
        "bitnet", "-m", "out=2024_01", "init.method=gptq,absmean", "gate.tasks.txt=0.5", "--json"
    )
    assert result.exit_code == 2, result.stderr
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["overrides"] for row in rows] == [["init.method=gptq"], ["init.method=absmean"]]
    assert "no task 'txt'; did you mean 'text'?" in rows[0]["summary"]
    assert sorted(path.name for path in (here / "2024_01").iterdir() if path.is_dir()) == ["0", "1"]
    assert [path.name for path in here.iterdir()] == ["2024_01"]
    logging.getLogger("agent_forge").warning("a warning after a sweep")
    assert "a warning after a sweep" in caplog.text
    again = cli("bitnet", "-m", "out=2024_01", "init.method=gptq,absmean")
    assert again.exit_code == 2
    assert "out=2024_01 is not empty; name a new directory for this sweep" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitnet", "-m", "out=a,b"], "out= names one directory for all jobs"),
        (["bitnet", "-m", "out="], "must be a plain directory name"),
        (["run-all", "-m", "run_dir=a,b"], "run_dir= names one directory for all jobs"),
        (
            ["bitnet", "-m", "train.steps=1,2", "--no-resume"],
            "every sweep has a directory of its own",
        ),
        (["bitnet", "-m", "train.steps=1,many"], "train.steps must be a whole number, got 'many'"),
        (["bitnet", "train.steps=1,2"], "several values need -m"),
        (["bitnet", "out="], "out must be text that is not empty"),
        (["run-all", "run_dir="], "run_dir must not be empty"),
        (
            ["run-all", "gate.items=3"],
            "each phase has its own: cognate.gate.items, evomerge.gate.items",
        ),
        (["run-all", "train.gate.itms=3"], "did you mean 'train.gate.items'"),
        (["bitnet", "größe=3"], "cannot read the key 'größe'"),
    ],
)
def test_what_a_command_cannot_use_is_refused_with_the_remedy(
    cli: Cli, arguments: list[str], message: str
) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_overrides_are_shown_as_they_are_typed() -> None:
    assert plain_override("init.method='gptq'") == "init.method=gptq"
    assert plain_override("out='it\\'s'") == "out=it's"
    assert plain_override("train.steps=3") == "train.steps=3"
