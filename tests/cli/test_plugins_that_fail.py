"""A plug-in file that does not import is named, and everything that does not need it goes on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agent_forge

PACKAGE = Path(agent_forge.__file__).parent


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package with a phase, a task and a codec that do not import."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(
        PACKAGE,
        root / "agent_forge",
        ignore=shutil.ignore_patterns("__pycache__", "conf", "node_modules"),
    )
    shutil.copytree(PACKAGE / "conf", root / "agent_forge" / "conf")
    room = root / "agent_forge" / "phases" / "polish"
    room.mkdir()
    (room / "__init__.py").write_text("import nothing_of_this_name\n", encoding="utf-8")
    (root / "agent_forge" / "evaluate" / "tasks" / "spelling.py").write_text(
        "TASK = (\n", encoding="utf-8"
    )
    return root


def forge(tree: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "agent_forge", *arguments], cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True,
        encoding="utf-8", check=False,
    )  # fmt: skip


def test_a_phase_that_does_not_import_is_named_and_the_others_go_on(tree: Path) -> None:
    file = tree / "agent_forge" / "phases" / "polish" / "__init__.py"
    done = forge(tree, "--help")
    assert done.returncode == 0
    assert "bitnet" in done.stdout
    assert done.stderr.splitlines() == [
        f"forge: phase 'polish' does not import: {file}:1: ModuleNotFoundError: No "
        "module named 'nothing_of_this_name'"
    ]
    missing = forge(tree, "polish")
    assert missing.returncode == 2
    assert "Traceback" not in missing.stderr
    refused = forge(tree, "bitnet", "gate.tasks.spelling=0.5")
    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
