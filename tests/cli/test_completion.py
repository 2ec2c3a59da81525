"""The tab key: config keys from conf/, options of groups, and nothing heavy loaded for it."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import typer
from omegaconf import OmegaConf
from typer.main import get_command

from agent_forge.cli.app import app
from agent_forge.cli.completion import complete_config, complete_override, tree
from agent_forge.config.compose import compose_tree, flatten
from agent_forge.pipeline.catalogue import phases

Forge = Callable[..., "subprocess.CompletedProcess[str]"]


def offered(command: str, incomplete: str) -> list[str]:
    context = typer.Context(get_command(app).commands[command], info_name=command)  # type: ignore[attr-defined]
    return [name for name, _ in complete_override(context, incomplete)]


@pytest.mark.parametrize("command", [*phases(), "run_all", "base"])
def test_the_keys_offered_are_those_that_compose(command: str) -> None:
    composed: Any = OmegaConf.to_container(compose_tree(command), resolve=False)
    known = {name for name, _ in flatten(composed)}
    offered = {name for name, _ in flatten(tree(command))}
    assert offered == known


def test_keys_groups_and_values_are_completed() -> None:
    assert "gate.on_failure=" in offered("bitnet", "gate.")
    assert offered("bitnet", "gate.on_failure=r") == ["gate.on_failure=rollback"]
    assert offered("bitnet", "gate.enabled=") == ["gate.enabled=true", "gate.enabled=false"]
    assert offered("cognate", "model=") == ["model=25m", "model=imported", "model=nano"]
    assert "cognate.trunk.steps=" in offered("run-all", "cognate.trunk.s")
    assert offered("run-all", "experiment=ti") == ["experiment=tiny"]
    assert offered("eval", "data.m") == ["data.max_text_bytes="]
    assert offered("bitnet", "nothing.of.that.name") == []
    assert complete_config("ti") == ["tiny"]


def test_the_shell_is_answered_without_torch_or_hydra() -> None:
    script = (
        "import os, sys\n"
        "os.environ.update(_FORGE_COMPLETE='complete_bash', COMP_WORDS='forge bitnet "
        "train.st', COMP_CWORD='2')\n"
        "from agent_forge.cli.app import app\n"
        "try: app(prog_name='forge')\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'hydra', 'transformers') if name in sys.modules])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    *names, heavy = process.stdout.split()
    assert "train.steps=" in names
    assert heavy == "[]"
