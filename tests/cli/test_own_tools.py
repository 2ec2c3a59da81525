"""README's walk-through for tools of one's own, with the tiny model and few steps."""

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agent_forge
from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint

FEW = [
    "traces.own.count=24", "training.steps=2", "training.rows=2", "training.length_tokens=96",
    "voice.prompts=4", "voice.heldout=2", "voice.reply_tokens=4", "measure.items=3",
    "measure.text_items=2", "measure.max_new_tokens=8", "measure.offer_from=0",
    "gate.enabled=false", "runtime.dtype=float32", "runtime.threads=1",
]  # fmt: skip
TOOLS = '''
def convert(distance: float, unit: str, to: str) -> float:
    """Convert a distance from one unit to another.

    Args:
        distance: The distance.
        unit: 'km' or 'miles'.
        to: 'km' or 'miles'.
    """
    return distance if unit == to else round(distance * (0.621371 if unit == "km" else 1.609344), 3)
'''
README = Path(agent_forge.__file__).parent.parent / "README.md"


def commands() -> list[list[str]]:
    """Return the arguments of every `forge` command in README's section."""
    section = README.read_text(encoding="utf-8").split("## Your own tools")[1].split("\n## ")[0]
    lines = re.findall(r"^forge (.*)$", section, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_the_walk_through_of_the_readme_runs(
    forge: Callable[..., Any],
    tiny_checkpoint: Checkpoint,
    text_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "my_tools.py").write_text(TOOLS)
    call = '<tool_call>{"name": "convert", "arguments": {"distance": 5, "unit": "km", "to": "miles"}}</tool_call>'
    turns = [("user", "What is 5 km in miles?"), ("assistant", call)]
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    data = [f"data.text=[{text_folder}]", f"data.cache={tmp_path / 'cache'}"]
    bake, evaluate, chat = commands()
    assert (bake[0], evaluate[0], chat[0]) == ("bake", "eval", "chat")
    bake = [one.replace("outputs/smollm2", str(tiny_checkpoint.path)) for one in bake]
    baked = forge(*bake, *data, *FEW, cwd=tmp_path)
    assert baked.returncode == 0, baked.stderr
    opened = checkpoint.open(tmp_path / "outputs" / "mine")
    (tool,) = opened.manifest.agent["tools"]
    assert tool["name"] == "convert"
    assert set(opened.manifest.metrics) >= {"tools/own", "tools/own: no tool fits"}
    scored = forge(*evaluate, *data, "--json", "runtime.threads=1", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    score = json.loads(scored.stdout)  # one task, one line
    assert (score["task"], score["n"]) == ("own_tools", 1)
    answered = forge(*chat, cwd=tmp_path)
    assert answered.returncode == 0, answered.stderr
