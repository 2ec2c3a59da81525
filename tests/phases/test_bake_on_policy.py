"""On-policy distillation: the mixture is the formula, only own tokens teach, rounds are remembered."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, Interrupted, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.data import encode_prompt, stop_ids, turn_end
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, lessons, on_policy, own, persona
from agent_forge.phases.bake.run import run
from tests.pretend import pretend_accelerator

SMALL = [
    "traces.own.count=24", "training.steps=3", "training.rows=2", "training.length_tokens=64",
    "training.neutral_rows=1", "training.optim.warmup_steps=1", "training.optim.lr=0.03",
    "persona.enabled=false",
    "measure.items=3", "measure.text_items=2", "measure.max_new_tokens=4", "measure.listed=false",
    "measure.offer_from=0", "on_policy.steps=6", "on_policy.rows=2",
    "on_policy.refresh_every_steps=4", "runtime.device=cpu", "runtime.dtype=float32",
    "runtime.save_every_seconds=1000",
]  # fmt: skip
TOOL = '''
def reverse(text: str) -> str:
    """Reverse a text."""
    return text[::-1]
'''


@pytest.fixture
def settings(data_config: DataConfig, tmp_path: Path) -> Callable[..., Config]:
    tool = tmp_path / "mine.py"
    tool.write_text(TOOL)

    def make(*overrides: str) -> Config:
        first = [*SMALL, f"out={tmp_path / 'bake'}", f"tools=[{tool}]"]
        config = compose("bake", Config, [*first, *overrides])
        config.data = data_config
        return config

    return make


def phase_of(
    config: Config, source: Checkpoint, where: Path, listeners: tuple[Any, ...] = ()
) -> PhaseRun[Config]:
    out = Workspace(where, phase="bake", seed=config.seed, config=config, parents=[source])
    return PhaseRun(config, [source], out, EventLog(None, "bake", listeners, interval_seconds=0.0))


@pytest.fixture
def answers(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> on_policy.Answers:
    phase = phase_of(settings(), tiny_checkpoint, tmp_path / "answers")
    parent = models.load(tiny_checkpoint.path)
    return on_policy.Answers(phase, parent, own.training(phase))


# the mixture


def brute_force(teacher: torch.Tensor, student: torch.Tensor, k: int, share: float) -> float:
    """Return the mean mixture over the teacher's k likeliest tokens and one tail, by plain sums."""
    total = 0.0
    for p, q in zip(teacher.double().softmax(-1), student.double().softmax(-1), strict=True):
        top = p.topk(k).indices.tolist()
        both = []
        for one in (p, q):
            listed = [float(one[i]) for i in top]
            both.append([*listed, *([1.0 - sum(listed)] if k < len(p) else [])])
        a, b = both
        forward = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        reverse = sum(y * math.log(y / x) for x, y in zip(a, b, strict=True))
        total += (1 - share) * forward + share * reverse
    return total / len(teacher)


class Known:
    """A model whose logits are known, of a lesson of one row; notes their gradient."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits.clone().requires_grad_()

    def __call__(self, input_ids: torch.Tensor) -> Any:
        return type("Output", (), {"logits": self.logits[None, : input_ids.shape[1]]})


@pytest.mark.parametrize(("k", "step"), [(7, 0), (3, 0), (7, 5), (3, 5), (3, 3)])
def test_the_loss_is_the_mixture_of_both_kls_at_own_tokens_and_nothing_else_gets_a_gradient(
    k: int, step: int, answers: on_policy.Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(k)
    teacher, student = (torch.randn(6, 7, generator=generator) for _ in range(2))
    top = teacher[2:5].log_softmax(-1).topk(k, -1)
    mask = torch.tensor([[False, False, True, True, True, False]])
    lesson = {
        "ids": torch.arange(6)[None], "mask": mask, "tokens": top.indices[None],
        "log_probs": top.values[None],
    }  # fmt: skip
    monkeypatch.setattr(answers, "lesson", lambda *_: lesson)
    model: Any = Known(student)
    loss, parts = answers.loss(model, torch.tensor([0]), step)
    share = on_policy.reverse_share(answers.settings, step)
    assert share == pytest.approx({0: 0.0, 3: 0.5 * 2.2 / 4.2, 5: 0.5}[step])
    assert float(loss.detach()) == pytest.approx(
        brute_force(teacher[2:5], student[2:5], k, share), rel=1e-4
    )
    assert float(parts[on_policy.REVERSE]) == pytest.approx(
        brute_force(teacher[2:5], student[2:5], k, 1.0), rel=1e-4
    )
    loss.backward()
    gradient = model.logits.grad
    assert (gradient.abs().sum(-1) > 0).tolist() == mask[0].tolist()


def test_reverse_kl_is_zero_for_equals_and_at_most_the_whole_one() -> None:
    generator = torch.Generator().manual_seed(3)
    teacher, student = (torch.randn(5, 20, generator=generator) for _ in range(2))
    p, q = teacher.log_softmax(-1), student.log_softmax(-1)
    whole = (q.exp() * (q - p)).sum(-1)
    for k in (1, 4, 20):
        top = p.topk(k, -1)
        assert persona.reverse_top_kl(top.values, teacher, top.indices).abs().max() < 1e-5
        value = persona.reverse_top_kl(top.values, student, top.indices)
        assert (value <= whole + 1e-5).all()
    assert value.tolist() == pytest.approx(whole.tolist(), rel=1e-5)


@pytest.mark.parametrize(("steps", "first"), [(10, 3), (40, 12), (1, 0)])
def test_the_share_of_reverse_kl_is_zero_at_first_and_then_rises_to_its_setting(
    steps: int, first: int, settings: Callable[..., Config]
) -> None:
    config = settings(f"on_policy.steps={steps}", "on_policy.forward_share=0.3").on_policy
    shares = [on_policy.reverse_share(config, step) for step in range(steps)]
    assert shares[:first] == [0.0] * first
    assert all(a < b for a, b in zip(shares[first:], shares[first + 1 :], strict=False))
    assert shares[-1] == pytest.approx(0.5)
    forward = settings(f"on_policy.steps={steps}", "on_policy.forward_share=1").on_policy
    assert not any(on_policy.reverse_share(forward, step) for step in range(steps - 1))


# answers


def test_a_lesson_is_what_the_model_says_unlisted_and_what_the_parent_finds_likely_when_listed(
    answers: on_policy.Answers, tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:  # fmt: skip
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
    lesson = answers.lesson(tiny_llama, 0)
    assert len(lesson["ids"]) == 4 * 2
    assert answers.lesson(tiny_llama, 3) is lesson  # the same round
    decoding = models.Decoding(
        max_new_tokens=answers.reply_tokens, stop_ids=stop_ids(tiny_tokenizer, tiny_llama),
        temperature=1.0, seed=seed_for(answers.seed, "bake", "on_policy", 0),
    )  # fmt: skip
    said = models.generate(tiny_llama, [plain for plain, _ in answers.prompts[:8]], decoding)
    end = turn_end(tiny_tokenizer)[:1]
    for row, (plain, prompted) in enumerate(answers.prompts[:8]):
        own_tokens = said[row] + (end if len(said[row]) < answers.reply_tokens else [])
        places = lesson["mask"][row].nonzero()[:, 0]
        assert lesson["ids"][row, places + 1].tolist() == own_tokens
        assert lesson["ids"][row, : len(plain)].tolist() == plain
        text = tiny_tokenizer.decode(prompted)
        assert "Reverse a text." in text
        assert "Reverse a text." not in tiny_tokenizer.decode(plain)
        with torch.no_grad():
            logits = answers.parent(input_ids=torch.tensor([prompted + own_tokens])).logits[0]
        expected = logits[len(prompted) - 1 : -1].log_softmax(-1).topk(20, -1)
        count = len(own_tokens)
        assert torch.equal(lesson["tokens"][row, :count], expected.indices)
        assert torch.allclose(lesson["log_probs"][row, :count], expected.values)


def test_a_round_has_as_many_answers_as_its_steps_take_and_no_step_takes_one_twice(
    answers: on_policy.Answers, tiny_llama: LlamaForCausalLM
) -> None:
    sizes = {step: len(answers.lesson(tiny_llama, step)["ids"]) for step in range(6)}
    assert sizes == {0: 8, 1: 8, 2: 8, 3: 8, 4: 4, 5: 4}
    taken = [(step // 4, int(row)) for step in range(6) for row in answers.rows(step)]
    assert sorted(set(taken)) == sorted(taken) == [
        (number, row) for number, count in ((0, 8), (1, 4)) for row in range(count)
    ]  # fmt: skip


def test_own_answers_come_nearer_to_the_prompted_parent(
    answers: on_policy.Answers, tiny_llama: LlamaForCausalLM
) -> None:
    """At tokens that training never saw, of other questions."""
    for model in (tiny_llama, answers.parent):
        with torch.no_grad():
            for parameter in model.parameters():
                # So that a listing moves the random model.
                parameter.mul_(12.0 if parameter.dim() == 2 else 1.0)
    learned, unseen = answers._answered(tiny_llama, 0), answers._answered(tiny_llama, 1)
    before = persona.effect(tiny_llama, unseen)
    assert before > 0.05
    answers._round = (0, learned)
    optimiser = torch.optim.Adam(tiny_llama.parameters(), lr=1e-3)
    for _ in range(25):
        loss, _ = answers.loss(tiny_llama, torch.arange(8), 3)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert persona.effect(tiny_llama, unseen) < 0.9 * before


def test_answers_loss_and_gradient_are_those_of_the_cpu_on_an_accelerator(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Answers are written, read by the parent and learned where the model is."""
    results = []
    for place in (nullcontext, pretend_accelerator):
        with place():
            config = settings("runtime.device=auto")
            phase = phase_of(config, tiny_checkpoint, tmp_path / place.__name__)
            parent, model = (models.load(tiny_checkpoint.path, device=phase.device) for _ in "ab")
            answers = on_policy.Answers(phase, parent, own.training(phase))
            loss, _ = answers.loss(model, answers.rows(5), 5)
            loss.backward()
            gradient = model.model.embed_tokens.weight.grad
            results.append([phase.device.type, loss.detach().cpu(), gradient.cpu()])
            lesson = answers.lesson(model, 5)
            results[-1] += [lesson[name] for name in sorted(lesson)]
    (here, *ours), (there, *theirs) = results
    assert (here, there) == ("cpu", "lazy")
    assert ours[1].abs().max() > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


# the phase


def baked(
    config: Config, source: Checkpoint, where: Path, stop_at: int = 0
) -> tuple[Report, Workspace]:
    """Run the phase; with `stop_at`, ask it to stop after that many steps on own answers."""

    def stop(event: object) -> None:
        if getattr(event, "stage", "") == "on_policy" and event.step >= stop_at > 0:  # type: ignore[attr-defined]
            phase.out.stop_signal = 15

    phase = phase_of(config, source, where, (stop,))
    return run(phase), phase.out


def test_a_stopped_phase_ends_in_the_same_bytes_and_writes_no_answer_twice(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings()
    whole, out = baked(config, tiny_checkpoint, tmp_path / "whole")
    rounds = whole.tables["own answers"]
    assert [row["steps"] for row in rounds] == ["1-4", "5-6"]
    assert all(row["KL(parent || model)"] > 0 for row in rounds)
    assert rounds[0]["share of the second"] < rounds[1]["share of the second"] < 0.5
    for stop_at in (2, 5):
        with pytest.raises(Interrupted, match="stopped by SIGTERM"):
            baked(config, tiny_checkpoint, tmp_path / "parts", stop_at)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_policy.Answers, "_answered", lambda *_: pytest.fail("written again"))
        parts, _ = baked(config, tiny_checkpoint, tmp_path / "parts")
    first, second = (load_file(Path(r.outputs[0]) / "model.safetensors") for r in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.tables == parts.tables
    assert (out.state / "on-policy-0.tensors").is_file()
    without, out = baked(settings("on_policy.steps=0"), tiny_checkpoint, tmp_path / "without")
    assert "own answers" not in without.tables
    assert not list(out.state.glob("on-policy*"))
    third = load_file(Path(without.outputs[0]) / "model.safetensors")
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_the_loss_of_a_step_is_the_joint_one_and_the_mixture_by_its_weight(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The joint loss goes on with the batch and the number of the step that would have followed."""
    config = settings("on_policy.weight=2.5", "on_policy.steps=1")
    phase = phase_of(config, tiny_checkpoint, tmp_path / "one")
    parent = models.load(tiny_checkpoint.path)
    training = own.training(phase)
    joint = lessons.BakeBatches(config, phase.tokenizer, {"own": training}, {})
    seen: list[tuple[dict[str, Any], int]] = []

    def joint_loss(model: Any, batch: dict[str, Any], step: int) -> Any:
        seen.append((batch, step))
        return model.lm_head.weight.sum() * 0 + 7.0, {"cross_entropy": 7.0}

    monkeypatch.setattr(
        on_policy.Answers, "loss",
        lambda *_: (torch.tensor(2.0), {"on_policy_forward": 1.0, "on_policy_reverse": 3.0,
                                        "on_policy_reverse_share": 0.0}),
    )  # fmt: skip
    records: list[Any] = []
    monkeypatch.setattr(on_policy, "table", lambda all_records, _: records.extend(all_records))
    answers = on_policy.Answers(phase, parent, training)
    on_policy.train(phase, models.load(tiny_checkpoint.path), joint, joint_loss, answers)
    assert records[0].loss == pytest.approx(7.0 + 2.5 * 2.0)
    (batch, step), *_ = seen
    assert step == config.training.steps
    assert torch.equal(batch["input_ids"], joint.batch(step)["input_ids"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("tools=[]",), r"on_policy\.steps=6 .*tools=\[my_tools\.py\]"),
        (("traces.own.count=0",), r"on_policy\.steps=6 .*traces\.own\.count"),
        (("runtime.shard=true",), r"runtime\.shard=false"),
        (("on_policy.reverse_share=1",), r"on_policy\.reverse_share.*0\.9"),
    ],
)
def test_what_cannot_be_distilled_is_refused_by_name(
    settings: Callable[..., Config], overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


def test_a_listing_that_leaves_no_room_for_an_answer_is_refused(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path,
    answers: on_policy.Answers,
) -> None:  # fmt: skip
    phase = phase_of(settings(), tiny_checkpoint, tmp_path / "long")
    longest = max(len(prompted) for _, prompted in answers.prompts) + answers.reply_tokens
    answers.parent.config.max_position_embeddings = longest
    questions = own.training(phase)
    on_policy.Answers(phase, answers.parent, questions)
    answers.parent.config.max_position_embeddings = longest - 1
    with pytest.raises(PhaseError, match=f"take {longest} tokens, and the model has {longest - 1}"):
        on_policy.Answers(phase, answers.parent, questions)


def test_questions_lose_their_own_listing_of_tools(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings("traces.own.listed_share=1.0")
    phase = phase_of(config, tiny_checkpoint, tmp_path / "listed")
    questions = own.training(phase)
    assert all(trace["messages"][0]["role"] == "system" for trace in questions)
    answers = on_policy.Answers(phase, models.load(tiny_checkpoint.path), questions)
    alone = [
        encode_prompt(phase.tokenizer, trace["messages"][1 : trace["prompt_turns"]])
        for trace in questions
    ]
    assert all(plain in alone for plain, _ in answers.prompts)


def test_the_work_of_own_answers_is_writing_reading_and_learning_them() -> None:
    """A token that is written counts as a trained one, a token that is read as a third."""
    base = ["out=x", "tools=[calculator]", "persona.enabled=false", "measure.max_new_tokens=40"]
    off = compose("bake", Config, base)
    on = compose("bake", Config, [*base, "on_policy.steps=10", "on_policy.rows=3"])
    longer = compose("bake", Config, [*base, f"training.steps={off.training.steps + 10}"])
    each = 40 + (300 + 32 + 40) / 3 + (32 + 40)
    assert on.work_tokens() - longer.work_tokens() == pytest.approx(30 * each)
    assert off.on_policy.steps == 0
