"""The walk-through of docs/tools.md: its file and its commands are copied out and run."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent_forge.agent import load_tools
from agent_forge.cli.app import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tools.md"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_walk_through_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_tools.py").write_text(blocks("python")[0], "utf-8")
    said = []
    for line in blocks("sh")[0].splitlines():
        words = shlex.split(line)
        assert words[0] == "forge"
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (line, result.output)
        said.append(result.stdout)
    assert "when allowed" in said[0]
    assert "price: good" in said[1]
    assert said[2:] == ["6.0\n", "sold 2\n"]
    wrong = CliRunner().invoke(app, [*shlex.split("tools call my_tools.py sell item=cup count=9"),
                                     "--allow", "--yes"])  # fmt: skip
    assert (wrong.exit_code, "sell failed: ValueError: only 3 left" in wrong.stderr) == (1, True)


def test_the_schema_file_of_the_page_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(blocks("json")[0], "utf-8")
    (tool,) = load_tools([str(path)])
    assert tool.name == "weight"
    assert tool.run is not None
    assert json.loads(blocks("json")[0])["headers"] == {"X-Key": "${SHOP_KEY}"}
