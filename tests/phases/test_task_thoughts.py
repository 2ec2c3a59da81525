"""Objective task_thoughts: verified rationales, exact policy gradients, and the phase end to end."""

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.data.synthetic import rationales
from agent_forge.evaluate.engine import last_word
from agent_forge.phases import PhaseRun
from agent_forge.phases.quietstar import Config, task_thoughts
from agent_forge.phases.quietstar.run import run

TINY = [
    "objective=task_thoughts", "batch_rows=2", "length_tokens=96", "task.rows=40", "task.steps=2",
    "task.reinforce_steps=2", "task.items=2", "task.samples=3", "task.max_new_tokens=6",
    "task.measure_items=4", "measure.shown=1", "measure.samples=50", "runtime.device=cpu",
    "optim.warmup_steps=0",
]  # fmt: skip


def config_for(data_config: DataConfig, out: Path, parent: Checkpoint, *more: str) -> Config:
    config = compose("quietstar", Config, [*TINY, f"out={out}", f"sources=[{parent.path}]", *more])
    return dataclasses.replace(config, data=data_config)


def forge(config: Config, parent: Checkpoint) -> Any:
    out = Workspace(
        config.out, phase="quietstar", seed=config.seed, config=config, parents=[parent]
    )
    return run(PhaseRun(config, [parent], out, EventLog(None, "quietstar")))


def test_every_thought_is_right_step_by_step_and_ends_in_the_answer() -> None:
    rows = rationales.rows(300, "train", 3)
    assert {row["kind"] for row in rows} == {"sums", "products", "cups", "stories"}
    for row in rows:
        question, steps = row["messages"][0]["content"], row["thought"].split("; ")
        reply = row["messages"][1]["content"]
        assert reply == f"<think>{row['thought']}</think> {row['answer']}"
        assert last_word(reply) == row["answer"]
        if row["kind"] == "cups":
            state = dict(re.findall(r"([A-E]) (\w+)(?:,|\. Swap)", question))
            swaps = re.findall(r"Swap ([A-E]) and ([A-E])\.", question)
            for (one, other), step in zip(swaps, steps, strict=True):
                state[one], state[other] = state[other], state[one]
                assert step == " ".join(f"{cup} {ball}" for cup, ball in state.items())
            assert state[question.split("under ")[1].strip("?")] == row["answer"]
            continue
        for step in steps:
            one, sign, other, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", step).groups()  # type: ignore[union-attr]
            value = {"+": int(one) + int(other), "-": int(one) - int(other),
                     "*": int(one) * int(other)}[sign]  # fmt: skip
            assert value == int(result)
        assert steps[-1].endswith(f"={row['answer']}")
    alone = rationales.plain(rows[0])
    assert alone["messages"][1]["content"] == rows[0]["answer"]
    assert alone["messages"][0] == rows[0]["messages"][0]


def test_splits_share_no_question() -> None:
    questions = [
        {row["messages"][0]["content"] for row in rationales.rows(150, split, 0)}
        for split in ("train", "validation", "test")
    ]
    assert len(set.union(*questions)) == sum(map(len, questions))


def test_the_phase_compares_with_answers_alone_and_writes_a_plain_model(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Four steps teach nothing, so the parent's weights go on and the summary says so."""
    config = config_for(data_config, tmp_path / "out", tiny_checkpoint)
    report = forge(config, tiny_checkpoint)
    assert {"right_parent", "right_answers_alone", "right_rationales", "right_reinforced"} <= set(
        report.metrics
    )
    assert "the parent's weights go on" in report.summary
    assert "at equal training tokens" in report.baseline
    assert len(report.samples) == 1
    written = checkpoint.open(config.out)
    one, two = (models.load(path).state_dict() for path in (written.path, tiny_checkpoint.path))
    assert all(torch.equal(one[name], two[name]) for name in two)
    again = config_for(data_config, tmp_path / "again", tiny_checkpoint)
    assert forge(again, tiny_checkpoint).metrics == report.metrics


@pytest.mark.parametrize(("over_control", "goes_on"), [(0.1, True), (0.0, False)])
def test_the_result_goes_on_where_it_beats_the_parent_and_answers_alone(
    over_control: float,
    goes_on: bool,
    data_config: DataConfig,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gains = iter([(0.2, 0.1), (0.2, over_control)])  # over the parent, then over the control
    monkeypatch.setattr(task_thoughts.evaluate, "paired_gain", lambda *_, **__: next(gains))
    config = config_for(data_config, tmp_path / "out", tiny_checkpoint)
    report = forge(config, tiny_checkpoint)
    parent, child = (models.load(path).state_dict() for path in (tiny_checkpoint.path, config.out))
    assert any(not torch.equal(parent[name], child[name]) for name in parent) is goes_on
    verdict = "The result goes on" if goes_on else "No gain over answers alone at equal training"
    assert verdict in report.summary


def test_shares_that_exclude_every_group_are_refused(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"task\.low=0\.9 is above task\.high=0\.1"):
        config_for(data_config, tmp_path, tiny_checkpoint, "task.low=0.9", "task.high=0.1")


def test_what_a_report_shows_was_asked_without_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = {**rationales.rows(1, "test", 0)[0]}
    prompts: list[Any] = []

    def replies(_model: Any, _tokenizer: Any, questions: Any, _decoding: Any) -> list[list[int]]:
        prompts.extend(questions)
        return [[7]]

    monkeypatch.setattr(task_thoughts.evaluate, "task_items", lambda *_: [item])
    monkeypatch.setattr(task_thoughts.evaluate, "generate_replies", replies)
    phase: Any = SimpleNamespace(
        config=SimpleNamespace(
            measure=SimpleNamespace(shown=1), task=SimpleNamespace(max_new_tokens=6)
        ),
        eval_context=SimpleNamespace(decoding=lambda _: None),
        tokenizer=SimpleNamespace(decode=lambda reply: f"token {reply[0]}"),
    )
    question = item["messages"][0]["content"]
    shown = task_thoughts._samples(phase, None)  # type: ignore[arg-type]
    assert shown == [f"{question} 'token 7' (right: {item['answer']})"]
    assert prompts == [[{"role": "user", "content": question}]]
