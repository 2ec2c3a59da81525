"""The commands of docs/memory.md and docs/safety.md run as they are written, in their order."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent_forge.checkpoint import Checkpoint
from agent_forge.server.audit import AuditLog, FileHeads

ROOT = Path(__file__).parents[2]
COMMANDS = re.compile(r"```sh\n(.*?)```", re.DOTALL)
# What a command must print, so that a page cannot promise what does not happen.
SHOWN = {
    'forge index notes/ --out outputs/index.db --query "harbor winter"': (
        "0 files added, 0 changed, 1 unchanged",
        "[notes/harbor.md @0] # Harbor The harbor froze over in the winter of 1709.",
    ),
    "forge inspect outputs/agent": ("encrypted (age-encryption.org/v1) for age1",),
    "forge verify outputs/agent": ("1 checkpoint, 0 damaged",),
    "forge decrypt outputs/agent --out outputs/plain": ("in plain",),
    "forge audit verify state/audit.jsonl --head state/heads.txt": ("3 heads from elsewhere",),
}


def commands(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line for block in COMMANDS.findall(text) for line in block.splitlines() if line]


@pytest.fixture
def project(tmp_path: Path, tiny_checkpoint: Checkpoint) -> Path:
    """Return a folder with an agent, notes, and the state of a service."""
    shutil.copytree(tiny_checkpoint.path, tmp_path / "outputs" / "agent")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "harbor.md").write_text(
        "# Harbor\n\nThe harbor froze over in the winter of 1709."
    )
    log = AuditLog(
        tmp_path / "state" / "audit.jsonl", heads=[FileHeads(tmp_path / "state" / "heads.txt")]
    )
    for action in ("phases.start", "models.create", "keys.revoke"):
        log.append("key:1", action)
    return tmp_path


@pytest.mark.parametrize("page", ["memory.md", "safety.md"])
def test_every_command_of_the_page_runs(
    page: str, project: Path, forge: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "safety.md":
        pytest.importorskip("pyrage", reason="encryption needs agent-forge[crypto]")
    monkeypatch.delenv("FORGE_AGE_IDENTITY", raising=False)
    places = {"XDG_STATE_HOME": str(project / "home"), "XDG_CONFIG_HOME": str(project / "home")}
    lines = commands(page)
    assert len(lines) > 5
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "forge", line
        if arguments[0] == "chat":
            arguments += ["--max-new-tokens", "4"]
        done = forge(*arguments, cwd=project, **places)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        for text in SHOWN.get(line, ()):
            assert text in done.stdout, f"{line}: {done.stdout}"
    if page == "memory.md":
        assert (project / "home" / "agent-forge" / "memory" / "ada.db").is_file()
    assert not any(key for key in SHOWN if key not in commands("memory.md") + commands("safety.md"))
