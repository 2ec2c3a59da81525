"""The examples in docs/chat.md run as they stand, with a tiny model for DIR and MODEL."""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_forge.checkpoint import Checkpoint
from agent_forge.cli.app import app
from tests.server.test_openai import KEY, Service, served

PAGE = (Path(__file__).parents[2] / "docs" / "chat.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Checkpoint) -> Iterator[Service]:
    with served({"tiny": tiny_checkpoint.path}) as one:
        yield one


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_answer(command: str, tiny_checkpoint: Checkpoint) -> None:
    piped, _, after = command.rpartition(" | ")
    said = shlex.split(piped)[1] if piped else ""
    arguments = [str(tiny_checkpoint.path) if a == "DIR" else a for a in shlex.split(after)[1:]]
    done = CliRunner().invoke(app, arguments, input=said)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()
    if "--json" in arguments:
        assert json.loads(done.stdout.splitlines()[-1])["event"] == "done"


def test_the_python_of_the_page_talks_to_the_server(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for name, value in (("http://127.0.0.1:8083/v1", service.url), ("MODEL", "tiny")):
        assert name in block
        block = block.replace(name, value)
    printed = io.StringIO()
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(block, "docs/chat.md", "exec"), names)
    names["client"].close()
    assert printed.getvalue().startswith("['tiny', 'tiny:agent']\n")


def test_the_page_names_every_command_of_the_terminal() -> None:
    from agent_forge.agent.conversation import COMMANDS as KNOWN

    assert all(f"`{name}" in PAGE for name in KNOWN)
