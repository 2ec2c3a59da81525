"""docs/service.md: every example of it is tried, against a server whose jobs are stubs."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from agent_forge.cli.app import app
from agent_forge.server.launchers.chosen import read_launcher
from agent_forge.server.launchers.slurm import SlurmLauncher
from tests.server.house import House, house

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "service.md").read_text()
SHELL = [
    line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
CURLS = [shlex.split(line.replace('"$KEY"', "KEY").replace('"$JSON"', "JSON"))
         for line in SHELL if line.startswith("curl ")]  # fmt: skip
FORGES = [shlex.split(line, comments=True) for line in SHELL if line.startswith("forge keys")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with house(tmp_path_factory.mktemp("docs") / "state") as opened:
        yield opened


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_the_page_has_examples_of_each_kind() -> None:
    assert len(CURLS) >= 4
    assert len(FORGES) >= 4


@pytest.mark.parametrize("words", CURLS, ids=lambda words: words[-1])
def test_each_request_of_the_page_is_answered(server: House, words: list[str]) -> None:
    path = words[-1].removeprefix("http://127.0.0.1:8083")
    body = option(words, "-d")
    if "-N" in words:  # a stream has no end; another test follows it with curl
        assert path in server.get("/openapi.json")["paths"]
        return
    assert "KEY" in words
    answer = server.client.post(path, json=json.loads(body)) if body else server.client.get(path)
    assert answer.status_code in (200, 202), answer.text


@pytest.mark.parametrize("words", FORGES, ids=lambda words: " ".join(words[1:4]))
def test_each_command_about_keys_runs(tmp_path: Path, words: list[str]) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, [*arguments, "--state", str(tmp_path)])

    created = run("keys", "create", "other", "--json")
    assert created.exit_code == 0, created.output
    key = json.loads(created.stdout)
    assert key["key"].startswith(f"forge_{key['id']}_")
    chosen = [key["id"] if re.fullmatch(r"[0-9a-f]{8}", word) else word for word in words[1:]]
    done = run(*chosen)
    assert done.exit_code == 0, done.output
    listed = [json.loads(line) for line in run("keys", "list", "--json").stdout.splitlines()]
    assert key["key"] not in json.dumps(listed)
    if chosen[1] == "revoke":
        assert [one["state"] for one in listed] == ["revoked"]


def test_the_launcher_of_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "slurm.yaml").write_text(text)
    monkeypatch.setattr(SlurmLauncher, "check", lambda _launcher: None)
    launcher = read_launcher(tmp_path / "slurm.yaml")
    assert (launcher.name, launcher.most_jobs) == ("slurm", 8)
    assert vars(launcher)["parameters"] == {"slurm_partition": "gpu", "timeout_min": 600}


def test_the_options_of_the_page_are_those_of_the_command() -> None:
    shown = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"}).output
    named = set(re.findall(r"`(--[\w-]+)", PAGE.partition("| option |")[2].partition("\n\n")[0]))
    assert len(named) >= 10
    assert not [one for one in named if one not in shown]


def test_every_path_of_the_page_is_served(server: House) -> None:
    paths = server.get("/openapi.json")["paths"]
    known = {re.sub(r"\{[^}]*\}", "{}", path) for path in paths}
    for path in re.findall(r"`(?:GET|POST) (/v1/[\w/{}]+)", PAGE):
        assert re.sub(r"\{[^}]*\}", "{}", path) in known, path
    for method, path in re.findall(r"`(GET|POST) (/(?:phases|models)/\w+)", PAGE):
        assert method.lower() in paths[f"/v1{path}"], "the older protocol, documented at /v1"
