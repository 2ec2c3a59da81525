"""Bake: traces come from real tools, the filter and the KL are the formulas, and the phase really
teaches.
"""

import copy
import hashlib
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, learn, models
from agent_forge.agent import Call, Turn, parse_calls
from agent_forge.agent.calls import BrokenCall
from agent_forge.agent.tools import Result
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, DataError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.data import RowSource, encode_chat
from agent_forge.data.synthetic import copying, reasoning
from agent_forge.models import adapter_files
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import (
    Config,
    baseline,
    lessons,
    measure,
    persona,
    preferences,
    toolformer,
    traces,
    voice,
)
from agent_forge.phases.bake.run import _measure, agent_settings, heldout_traces, offered_kinds, run

SMALL = [
    "traces.calculator.count=40", "traces.memory.count=20", "traces.code.count=4", "traces.retrieve.count=4",
    "training.steps=6", "training.rows=4", "training.neutral_rows=2", "training.optim.warmup_steps=1",
    "persona.prompts=4", "persona.heldout=3", "persona.reply_tokens=6", "persona.rows=2", "persona.check_every_steps=2",
    "persona.min_effect_nats=0", "measure.offer_from=0", "measure.items=6", "measure.text_items=6",
    "measure.max_new_tokens=8",
    "runtime.device=cpu", "runtime.save_every_seconds=1000",
]  # fmt: skip


@pytest.fixture
def settings(data_config: DataConfig, tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        config = compose("bake", Config, [*SMALL, f"out={tmp_path / 'bake'}", *overrides])
        config.data = data_config
        return config

    return make


def forge(
    config: Config, source: Checkpoint, where: Path, stop_at: int = 0, stage: str = "bake"
) -> tuple[Report, Workspace]:
    """Run the phase; with `stop_at`, ask it to stop once that training has taken that many
    steps.
    """
    out = Workspace(where, phase="bake", seed=config.seed, config=config, parents=[source])

    def stop(event: object) -> None:
        if getattr(event, "stage", "") == stage and getattr(event, "step", 0) >= stop_at > 0:
            out.stop_signal = 15

    events = EventLog(None, "bake", (stop,), interval_seconds=0.0)
    return run(PhaseRun(config, [source], out, events)), out


# traces


@pytest.mark.parametrize("kind", ["calculator", "memory", "code", "retrieve"])
def test_traces_hold_what_the_real_tool_answered(kind: str, data_config: DataConfig) -> None:
    rows = traces.make(kind, 12, "train", 0, data_config)
    make_box = traces.toolbox(kind, "train", data_config)
    assert rows
    for trace in rows:
        if kind == "memory" or measure.wanted_call(trace) is None:
            continue
        (call,) = parse_calls(trace["messages"][1]["content"])
        assert make_box().run(call).text == trace["answer"] == trace["messages"][-1]["content"]


def test_word_problems_are_answered_by_the_number_that_the_calculator_gave(
    data_config: DataConfig,
) -> None:
    held = traces.make("word_problems", 30, "validation", 0, data_config)
    box = traces.toolbox("word_problems", "validation", data_config)()
    for trace in held:
        call = measure.wanted_call(trace)
        assert call is not None
        result = box.run(call)
        assert result.text == trace["result"]
        assert trace["result"] in trace["answer"].rstrip(".").split()
        assert trace["messages"][-1]["content"] == trace["answer"]
        assert (trace["kind"], trace["filtered"]) == ("word_problems", True)
        right = Turn(f"So it is {trace['result']}.", [result], [], True)
        assert measure.is_right(trace, right, box)
        assert not measure.is_right(trace, Turn(right.text, [], [], True), box)
    trained = traces.make("word_problems", 400, "train", 0, data_config)
    calls = [
        {measure.wanted_call(trace).arguments["expression"] for trace in part}  # type: ignore[union-attr]
        for part in (held, trained)
    ]
    assert len(calls[0]) == 30
    assert not calls[0] & calls[1]


def test_calculator_traces_carry_the_right_expression(data_config: DataConfig) -> None:
    for trace in traces.make("calculator", 60, "train", 0, data_config):
        target = measure.wanted_call(trace)
        if target is not None:
            numbers = eval(target.arguments["expression"])  # noqa: S307 - Python itself is the reference here
            assert str(numbers) == trace["answer"]


def test_traces_of_two_splits_share_no_question(data_config: DataConfig) -> None:
    for kind in ("calculator", "code"):
        expressions = [
            {
                measure.wanted_call(t).arguments.popitem()[1]
                for t in traces.make(kind, 200, split, 0, data_config)
                if measure.wanted_call(t)
            }  # type: ignore[union-attr]
            for split in ("train", "validation")
        ]
        assert not expressions[0] & expressions[1]


def test_passages_to_retrieve_are_sentences_of_at_most_twelve_words(
    data_config: DataConfig,
) -> None:
    """Short enough to stand in a tool's answer beside the question; longer sentences are cut."""
    store = traces.passage_store(data_config, "train")
    sizes = [
        len(content.split()) for (content,) in store.store.rows("SELECT content FROM passages")
    ]
    assert max(sizes) == 12
    assert (
        len({document for (document,) in store.store.rows("SELECT document FROM passages")}) == 24
    )


def test_a_recalled_fact_is_the_newest_one(data_config: DataConfig) -> None:
    recalls = [t for t in traces.make("memory", 60, "train", 1, data_config) if t["filtered"]]
    assert {len(trace["stages"]) for trace in recalls} == {2, 3}
    for trace in recalls:
        assert trace["answer"] in trace["stages"][-2]


def test_a_tool_that_answers_wrongly_stops_the_phase(
    data_config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_forge.agent.tools.calculator.run", lambda *_: "0")
    with pytest.raises(PhaseError, match="the calculator says"):
        traces.make("calculator", 20, "train", 0, data_config)


# the filter


def test_answer_weights_are_toolformers() -> None:
    assert toolformer.answer_weights(3).tolist() == pytest.approx([1 / 2.4, 0.8 / 2.4, 0.6 / 2.4])
    assert toolformer.answer_weights(9)[5:].tolist() == [0.0] * 4


def test_answer_loss_is_the_weighted_loss_of_the_assistants_turn(
    tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    questions = [
        [{"role": "user", "content": text}]
        for text in ("What is 3 plus 4?", "Hi", "Add 100 and 200 now, please.")
    ]
    answers = ["7", "hello there", "300"]
    result = toolformer.answer_losses(tiny_llama, tiny_tokenizer, questions, answers, batch_rows=2)
    for messages, answer, loss in zip(questions, answers, result, strict=True):
        ids, mask = encode_chat(
            tiny_tokenizer, [*messages, {"role": "assistant", "content": answer}]
        )
        with torch.no_grad():
            log_probs = torch.log_softmax(
                tiny_llama(input_ids=torch.tensor([ids])).logits[0].double(), -1
            )
        losses = [-float(log_probs[i - 1, ids[i]]) for i in range(len(ids)) if mask[i]]
        weights = [max(0.0, 1 - 0.2 * t) for t in range(len(losses))]
        expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
        assert loss == pytest.approx(expected, abs=1e-4)


def test_keep_takes_what_passes_and_else_the_best() -> None:
    assert toolformer.keep([0.6, 0.1, 0.5, -1.0], 0.5, 0.25) == [0, 2]
    assert toolformer.keep([0.1, 0.4, -1.0, 0.2], 0.5, 0.5) == [1, 3]
    assert toolformer.keep([], 0.5, 0.5) == []


@pytest.mark.parametrize(
    ("without", "empty", "gain"), [(3.0, 5.0, 2.0), (6.0, 2.5, 1.5), (0.5, 4.0, -0.5)]
)
def test_the_baseline_of_a_call_is_the_better_of_doing_without_and_of_getting_nothing(
    without: float,
    empty: float,
    gain: float,
    monkeypatch: pytest.MonkeyPatch,
    data_config: DataConfig,
) -> None:
    (trace,) = traces.make("code", 1, "train", 0, data_config)

    def known(
        _model: object, _tokenizer: object, conversations: list, answers: list, _rows: int
    ) -> list[float]:
        assert answers == [trace["answer"]] * 3
        assert [len(turns) for turns in conversations] == [3, 1, 3]
        assert trace["answer"] in conversations[0][2]["content"]
        assert trace["answer"] not in conversations[2][2]["content"]
        return [1.0, without, empty]

    monkeypatch.setattr(toolformer, "answer_losses", known)
    (losses,) = toolformer.trace_losses(None, None, [trace])  # type: ignore[arg-type]
    assert losses == (1.0, without, empty)
    assert toolformer.gain(losses) == pytest.approx(gain)


# the loss


def test_the_loss_of_a_step_holds_the_neutral_kl_by_its_weight(
    tiny_llama: LlamaForCausalLM, settings: Callable[..., Config]
) -> None:
    parent = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        for number, weight in enumerate(tiny_llama.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight += 0.05 * noise if weight.dim() == 2 else 0.0
    ids = torch.arange(24).reshape(2, 12) + 20
    counted = torch.arange(24).reshape(2, 12) % 3 > 0
    batch = {"input_ids": ids, "labels": ids, "neutral_ids": ids + 3, "neutral_mask": counted}
    nobody = SimpleNamespace(trait=lambda _step: "", pairs=None)
    with torch.no_grad():
        teacher, student = (
            m(input_ids=ids + 3).logits.double().log_softmax(-1) for m in (parent, tiny_llama)
        )
        kl = float((teacher.exp() * (teacher - student)).sum(-1)[counted].mean())
        plain = float(tiny_llama(input_ids=ids, labels=ids).loss)
    assert kl > 1e-3
    for weight in (0.0, 1.0, 2.5):
        config = settings(f"training.neutral_weight={weight}")
        loss, metrics = lessons.joint_loss(config, parent, nobody, lambda *_: {})(
            tiny_llama, batch, 0
        )
        assert float(loss.detach()) == pytest.approx(plain + weight * kl, rel=1e-4)
        assert float(metrics["neutral_kl"]) == pytest.approx(kl, rel=1e-3)


def test_a_persona_that_one_process_of_a_sharded_model_would_measure_is_refused(
    settings: Callable[..., Config],
) -> None:
    """The others would wait for the weights that it asks them for, and it for them."""
    sharded = ("runtime.shard=true", "runtime.processes=2", "persona.enabled=true")
    with pytest.raises(
        ConfigError, match=r"check_every_steps=5 .* set it to 6 \(training\.steps\)"
    ):
        settings(*sharded, "persona.check_every_steps=5", "training.steps=6")
    settings(*sharded, "persona.check_every_steps=6", "training.steps=6")
    settings("runtime.shard=true", "persona.check_every_steps=5", "training.steps=6")


def test_neutral_data_are_text_and_answers_in_the_shares_of_the_mix(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint
) -> None:
    """All of a text is kept; of a conversation what its assistant says, and no padding."""
    config = settings("training.neutral_mix={text: 0.5, reasoning: 0.5}", "training.neutral_rows=2")
    tokenizer = models.load_tokenizer(tiny_checkpoint.path)
    rows = [
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    ]
    batches = lessons.BakeBatches(config, tokenizer, {"calculator": rows}, {})
    assert batches.neutral is not None
    conversations, texts = 0, 0
    for step in range(4):
        batch = batches.batch(step)
        for ids, counted in zip(batch["neutral_ids"], batch["neutral_mask"], strict=True):
            said = tokenizer.decode(ids)
            conversations += "assistant" in said
            texts += "assistant" not in said
            assert bool(counted.all()) == ("assistant" not in said)
            assert "user" not in tokenizer.decode(ids[counted]) or "assistant" not in said
    assert (conversations, texts) == (4, 4)
    assert set(batches.mixture.names) == {
        "traces calculator",
        *(k for k, v in config.training.mix.items() if v),
    }


def test_the_loss_of_a_step_holds_its_traits_kl_per_token_by_its_weight(
    tiny_llama: LlamaForCausalLM, settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(24).reshape(2, 12) + 20
    batch = {"input_ids": ids, "labels": ids, "persona_rows": torch.tensor([0])}
    somebody = SimpleNamespace(trait=lambda _step: "calm", lessons={"calm": {}}, pairs=None)
    plain = float(tiny_llama(input_ids=ids, labels=ids).loss.detach())
    for weight, tokens in itertools.product((0.0, 1.0, 2.5), (1, 4)):
        monkeypatch.setattr(persona, "lesson_kl", lambda *_, n=tokens: (torch.tensor(1.5 * n), n))
        loss_of = lessons.joint_loss(
            settings(), tiny_llama, somebody, lambda *_, w=weight: {"calm": w}
        )
        loss, metrics = loss_of(tiny_llama, batch, 0)
        assert float(loss.detach()) == pytest.approx(plain + weight * 1.5, rel=1e-4)
        assert ("persona_kl" in metrics) == (weight > 0)
        assert not weight or float(metrics["persona_kl"]) == pytest.approx(1.5)
    # A trait without a weight has reached its target.
    loss, metrics = lessons.joint_loss(settings(), tiny_llama, somebody, lambda *_: {"other": 1.0})(
        tiny_llama, batch, 0
    )
    assert float(loss.detach()) == pytest.approx(plain, rel=1e-4)
    assert "persona_kl" not in metrics


def test_the_loss_of_the_parents_voice_is_its_kl_per_token(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = torch.tensor([0])
    assert float(voice.lesson_loss(tiny_llama, None, rows)) == 0
    for tokens in (1, 3):
        monkeypatch.setattr(persona, "lesson_kl", lambda *_, n=tokens: (torch.tensor(6.0), n))
        assert float(voice.lesson_loss(tiny_llama, {}, rows)) == pytest.approx(6 / tokens)


# preferences


def test_pairs_that_fit_just_so_stay_and_longer_ones_are_left_out_and_counted(
    tiny_tokenizer: PreTrainedTokenizerFast, settings: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Rows 2i and 2i + 1 are one pair; only its answers have labels."""

    def pair(chosen: str, rejected: str) -> SimpleNamespace:
        turns = [
            [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": answer}]
            for answer in (chosen, rejected)
        ]
        return SimpleNamespace(chosen=turns[0], rejected=turns[1], prompt_turns=1)

    pairs = [pair("yes", "no no no"), pair("a long answer of many words", "no"), pair("ah", "oh")]
    monkeypatch.setattr(preferences.preferences, "read", lambda *_, **__: pairs)
    lengths = [
        max(len(encode_chat(tiny_tokenizer, turns)[0]) for turns in (one.chosen, one.rejected))
        for one in pairs
    ]
    assert lengths[1] > lengths[0] > lengths[2]
    warnings: list[str] = []
    phase: Any = SimpleNamespace(
        config=settings("preferences.length_tokens=1000"), tokenizer=tiny_tokenizer,
        events=SimpleNamespace(warning=warnings.append),
    )  # fmt: skip
    for limit, members in ((lengths[0], (0, 2)), (lengths[0] - 1, (2,)), (None, (0, 1, 2))):
        warnings.clear()
        tensors = preferences.encoded(phase, "train", limit)
        talks = [turns for i in members for turns in (pairs[i].chosen, pairs[i].rejected)]
        assert tensors["ids"].shape == (len(talks), max(lengths[i] for i in members))
        for ids, labels, turns in zip(tensors["ids"], tensors["labels"], talks, strict=True):
            expected, _ = encode_chat(tiny_tokenizer, turns)
            assert ids[: len(expected)].tolist() == expected
            assert not ids[len(expected) :].any()
            learned = labels[labels != -100].tolist()
            assert turns[1]["content"] in tiny_tokenizer.decode(learned)
            assert "Hm" not in tiny_tokenizer.decode(learned)
        assert warnings == (
            [
                f"preferences: {3 - len(members)} of 3 pairs (train) are longer than {limit} tokens "
                "and are left out (preferences.length_tokens)"
            ]
            if len(members) < 3
            else []
        )
    with pytest.raises(DataError, match="no pair of the train split fits 3 tokens"):
        preferences.encoded(phase, "train", 3)


def test_a_pair_is_right_where_the_chosen_answer_is_the_likelier_one(
    tiny_llama: LlamaForCausalLM, settings: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    phase: Any = SimpleNamespace(config=settings())
    measured = preferences.Preferences(phase, tiny_llama)
    assert measured.measure(tiny_llama) is None  # there are no pairs
    before = torch.tensor([-1.0, -2.0, -3.0, -2.0, -1.0, -1.0, -5.0, -1.0])  # gaps 1, -1, 0, -4
    after = torch.tensor([-1.0, -4.0, -1.0, -2.0, -2.0, -1.0, -1.0, -3.0])  # gaps 3, 1, -1, 2
    measured.heldout = {"ids": before, "labels": before, "reference": before}
    monkeypatch.setattr(preferences.preference, "reference_log_probs", lambda *_: after)
    figures = measured.measure(tiny_llama)
    assert figures is not None
    assert (figures["value"], figures["before"], figures["n"]) == (3 / 4, 1 / 4, 4)
    assert figures["margin"] == pytest.approx((2 + 2 - 1 + 6) / 4)
    assert (figures["low"], figures["high"]) == measure.wilson(3, 4)


# persona


def brute_kl(teacher: torch.Tensor, student: torch.Tensor) -> list[float]:
    p, q = torch.softmax(teacher.double(), -1), torch.softmax(student.double(), -1)
    return [
        sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(x, y, strict=True))
        for x, y in zip(p, q, strict=True)
    ]


def test_top_kl_with_every_token_is_the_brute_force_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        torch.randn(5, 7, generator=generator),
        torch.randn(5, 7, generator=generator),
    )
    top = torch.log_softmax(teacher, -1).topk(7, -1)
    assert persona.top_kl(top.values, student, top.indices).tolist() == pytest.approx(
        brute_kl(teacher, student), rel=1e-5
    )
    assert brute_kl(teacher, student) != pytest.approx(brute_kl(student, teacher), rel=1e-2)


def test_top_kl_grows_with_k_up_to_the_full_kl_and_is_zero_for_equals() -> None:
    generator = torch.Generator().manual_seed(1)
    teacher, student = (
        torch.randn(6, 20, generator=generator),
        torch.randn(6, 20, generator=generator),
    )
    last = torch.zeros(6)
    for k in (1, 4, 19, 20):
        top = torch.log_softmax(teacher, -1).topk(k, -1)
        value = persona.top_kl(top.values, student, top.indices)
        assert (value >= last - 1e-5).all()
        assert persona.top_kl(top.values, teacher, top.indices).abs().max() < 1e-5
        last = value


def lesson_of(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: Config, count: int = 5
) -> dict:
    trait = config.persona.traits["helpfulness"]
    questions = persona.questions(trait, count, "train", 0, "helpfulness")
    return persona.teach(model, tokenizer, trait, questions, config.persona, 0)


def test_effect_is_the_kl_over_answer_tokens_whatever_the_batch(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    settings: Callable[..., Config],
) -> None:
    config = settings("persona.top_k=100000")
    lesson = lesson_of(tiny_llama, tiny_tokenizer, config)
    assert persona.effect(tiny_llama, lesson, 1) == pytest.approx(
        persona.effect(tiny_llama, lesson, 5), rel=1e-4
    )
    trait = config.persona.traits["helpfulness"]
    total, count = 0.0, 0
    for row, mask in zip(lesson["ids"], lesson["mask"], strict=True):
        first, length = int(mask.nonzero()[0]), int(mask.sum())
        question, answer = row[: first + 1], row[first + 1 : first + 1 + length]
        system, _ = encode_chat(tiny_tokenizer, [{"role": "system", "content": trait.system}])
        prompted = torch.cat([torch.tensor(system), question, answer])[None]
        with torch.no_grad():
            teacher = tiny_llama(input_ids=prompted).logits[0, -length - 1 : -1]
            student = tiny_llama(input_ids=row[None]).logits[0, first : first + length]
        total, count = total + sum(brute_kl(teacher, student)), count + length
    assert persona.effect(tiny_llama, lesson) == pytest.approx(total / count, rel=1e-3)


def test_strength_is_zero_for_the_parent_and_one_for_the_prompted() -> None:
    assert persona.strength(0.4, 0.4) == 0.0
    assert persona.strength(0.0, 0.4) == 1.0


def test_persona_training_raises_the_strength_on_unseen_topics(
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    settings: Callable[..., Config],
) -> None:
    config = settings("persona.reply_tokens=8")
    # A larger embedding scale makes the system prompt move the random model, so that there is a
    # trait to bake.
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.mul_(12.0 if parameter.dim() == 2 else 1.0)
    trait = config.persona.traits["helpfulness"]
    seen, unseen = (
        persona.teach(
            tiny_llama,
            tiny_tokenizer,
            trait,
            persona.questions(trait, 24, split, 0, "h"),
            config.persona,
            0,
        )
        for split in ("train", "validation")
    )
    base = persona.effect(tiny_llama, unseen)
    assert base > 0.05
    optimiser = torch.optim.Adam(tiny_llama.parameters(), lr=1e-3)
    for _ in range(25):
        total, count = persona.lesson_kl(tiny_llama, seen, range(24))
        optimiser.zero_grad()
        (total / count).backward()
        optimiser.step()
    assert persona.strength(persona.effect(tiny_llama, unseen), base) > 0.1


def test_questions_of_two_splits_share_no_topic(settings: Callable[..., Config]) -> None:
    trait = settings().persona.traits["precision"]
    train, held = (
        set(persona.questions(trait, 9999, split, 0, "p")) for split in ("train", "validation")
    )
    assert train
    assert held
    assert not train & held


# measurement


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_wilson_intervals_are_the_published_ones(
    right: int, n: int, low: float, high: float
) -> None:
    assert measure.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_an_answer_counts_only_with_the_right_call(data_config: DataConfig) -> None:
    trace = next(
        t for t in traces.make("calculator", 9, "train", 0, data_config) if measure.wanted_call(t)
    )
    box = traces.toolbox("calculator", "train", data_config)()
    target = measure.wanted_call(trace)
    assert target is not None
    right = Result(target, trace["answer"])
    wrong = Result(Call("calculator", {"expression": f"0+{trace['answer']}"}), trace["answer"])
    assert measure.is_right(trace, Turn(trace["answer"], [right], [], True), box)
    assert not measure.is_right(trace, Turn(trace["answer"], [wrong], [], True), box)
    assert not measure.is_right(trace, Turn(trace["answer"], [], [], True), box)
    assert not measure.is_right(trace, Turn("nope", [right], [], True), box)
    assert not measure.is_right(trace, Turn(trace["answer"], [right], [], False), box)


def test_a_wrong_answer_says_how_it_went_wrong(data_config: DataConfig) -> None:
    rows = traces.make("calculator", 80, "train", 0, data_config)
    trace = next(t for t in rows if measure.wanted_call(t))
    plain = next(t for t in rows if measure.wanted_call(t) is None)
    target = measure.wanted_call(trace)
    assert target is not None
    spaced = Call(target.name, {"expression": " ".join(target.arguments["expression"])})
    cases = [
        (trace, [target], True, "right"),
        (trace, [spaced], False, "wrong answer"),
        (trace, [Call(target.name, {"expression": "0+0"})], False, "wrong arguments"),
        (trace, [Call("recall", {"query": "sea"})], False, "another tool"),
        (trace, [BrokenCall("{", "no JSON")], False, "unreadable call"),
        (trace, [], False, "no call"),
        (plain, [target], False, "call that was not needed"),
        (plain, [], False, "wrong answer"),
    ]
    for one, calls, right, name in cases:
        turn = Turn("x", [Result(call, "1") for call in calls], [], True)
        assert measure.ending(one, turn, right) == name
    assert {name for *_, name in cases} == set(measure.ENDINGS)


def test_a_question_that_needs_no_tool_is_wrong_when_one_is_called(data_config: DataConfig) -> None:
    rows = traces.make("calculator", 80, "train", 0, data_config)
    trace = next(t for t in rows if measure.wanted_call(t) is None)
    box = traces.toolbox("calculator", "train", data_config)()
    needless = Result(Call("calculator", {"expression": "1+1"}), "2")
    assert measure.is_right(trace, Turn(trace["answer"], [], [], True), box)
    assert not measure.is_right(trace, Turn(trace["answer"], [needless], [], True), box)


@pytest.mark.parametrize("kind", ["calculator", "memory", "code"])
def test_held_out_traces_are_distinct_and_ask_nothing_that_is_trained(
    kind: str, settings: Callable[..., Config]
) -> None:
    def asked(trace: traces.Trace) -> tuple[object, ...]:
        numbers = sorted(int(n) for n in re.findall(r"\d+", trace["stages"][0]))
        if kind == "calculator":
            return tuple(numbers) or (trace["stages"][0],)
        if kind == "memory":
            return (re.findall(r"code of the (\w+ \w+)", trace["stages"][-1])[0], trace["answer"])
        words = trace["stages"][0].split()
        return tuple(words[3:]) if words[3] == "write" else (words[3], *numbers)

    config = settings("measure.items=40")
    trained = {
        asked(t) for t in traces.make(kind, 400, "train", config.seed, config.data) if t["filtered"]
    }
    held = [asked(trace) for trace in heldout_traces(config, kind)]
    assert len(held) == 40
    if kind != "calculator":  # there two operations may share their numbers
        assert len(set(held)) == len(held)
        assert not trained & set(held)
    expressions = [
        {
            target.arguments["expression"]
            for t in result
            if (target := measure.wanted_call(t)) is not None
        }
        for result in (
            heldout_traces(config, kind),
            traces.make(kind, 400, "train", config.seed, config.data),
        )
        if kind == "calculator"
    ]
    assert not expressions or not expressions[0] & expressions[1]


def test_only_tools_that_the_model_can_use_are_offered(settings: Callable[..., Config]) -> None:
    config = settings("measure.offer_from=0.05")
    measured = {
        kind: dict(zip(("low", "high"), measure.wilson(right, 60), strict=True))
        for kind, right in (("calculator", 52), ("memory", 9), ("code", 0), ("retrieve", 2))
    }
    assert offered_kinds(config, measured) == ["calculator", "memory"]
    assert agent_settings(config, ["calculator", "memory"])["tools"] == [
        "calculator",
        "remember",
        "recall",
    ]
    assert len(offered_kinds(settings("measure.offer_from=0"), measured)) == 4
    # One tool, two kinds of question: it is offered where the model can use it for one of them.
    both = settings("measure.offer_from=0.05", "traces.word_problems.count=9")
    for able, unable in (("calculator", "word_problems"), ("word_problems", "calculator")):
        one = measured | {able: measured["calculator"], unable: {"low": 0.0, "high": 0.1}}
        assert offered_kinds(both, one) == ["calculator", "word_problems", "memory"]
    offered = ["calculator", "word_problems", "memory"]
    assert agent_settings(both, offered)["tools"] == ["calculator", "remember", "recall"]
    exactly = settings(f"measure.offer_from={measured['memory']['low']!r}")
    assert offered_kinds(exactly, measured) == ["calculator", "memory"]


# the phase


def test_the_work_of_training_is_rows_and_answers_and_what_the_parent_reads() -> None:
    """A parent's pass costs a third of a trained token; each answer stands after a question of
    about 32 tokens.
    """
    overrides = [
        "out=x", "training.steps=10", "training.rows=3", "training.length_tokens=20",
        "training.neutral_rows=2", "persona.rows=5", "persona.reply_tokens=8", "voice.rows=7",
        "persona.check_every_steps=100", "voice.reply_tokens=4", "preferences.pairs=2",
        "preferences.length_tokens=50",
    ]  # fmt: skip
    rows, neutral, answers = 3 * 20, 2 * 20 * 4 / 3, 5 * (8 + 32) * 3
    for more, extra in (
        (["persona.enabled=false"], 0),
        (["persona.enabled=true"], answers),
        (["persona.enabled=false", "baseline=true"], rows),
        (["persona.enabled=false", "voice.prompts=1"], 7 * (4 + 32)),
        (["persona.enabled=false", "preferences.rows=[pairs.jsonl]"], 2 * 50),
    ):
        config = compose("bake", Config, [*overrides, *more])
        untrained = compose("bake", Config, [*overrides, *more, "training.steps=0"])
        trained = config.work_tokens() - untrained.work_tokens()
        assert trained == pytest.approx(10 * (rows + neutral + extra))


def test_the_tokens_of_a_step_are_rows_neutral_text_and_answers_after_their_questions() -> None:
    overrides = [
        "out=x", "training.rows=3", "training.neutral_rows=2", "training.length_tokens=20",
        "persona.rows=5", "persona.reply_tokens=8",
    ]  # fmt: skip
    for enabled, answers in (("true", 5 * (8 + 32)), ("false", 0)):
        config = compose("bake", Config, [*overrides, f"persona.enabled={enabled}"])
        assert config.step_tokens() == (3 + 2) * 20 + answers


def test_a_filter_that_is_overridden_and_tools_that_are_not_offered_are_reported(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        "traces.tau_nats=50", "traces.code.count=0", "traces.retrieve.count=0", "persona.enabled=false",
        "training.steps=1", "measure.offer_from=0.05", "traces.word_problems.count=8",
    )  # fmt: skip
    report, _ = forge(config, tiny_checkpoint, tmp_path / "overridden")
    for row in report.tables["traces"]:
        assert row["pass tau"] == 0
        assert row["taken below tau (filter overridden)"] == round(0.5 * row["made"])
        gain = (
            min(row["without a call"], row["after an empty result"])
            - row["answer after the result"]
        )
        assert row["mean gain (nats)"] == round(row["mean gain (nats)"], 3) != 0
        assert (
            row["mean gain (nats)"] <= gain + 2e-3
        )  # the mean of minima is at most the minimum of means
    held_out = {row["kind"]: row for row in report.tables["held-out tools"]}
    # The dashboard reads this table by its name.
    ends = {row.pop("kind"): row for row in report.tables["how held-out answers ended"]}
    assert set(ends) == {"calculator", "word_problems", "memory"}
    parts = [row for row in held_out.values() if row["kind"].startswith("word_problems, ")]
    assert sum(row["n"] for row in parts) == held_out["word_problems"]["n"] == 6
    for kind, counts in ends.items():
        assert sum(counts.values()) == held_out[kind]["n"]
        assert counts["right"] == pytest.approx(held_out[kind]["after"] * held_out[kind]["n"])
    assert "filter overridden for calculator, word_problems, memory" in report.summary
    assert "offered: no tool" in report.summary
    assert checkpoint.open(report.outputs[0]).manifest.agent["tools"] == []


def test_the_phase_writes_an_agent_with_its_tools_and_measures(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tiny_checkpoint.path.iterdir()}
    report, _ = forge(settings(), tiny_checkpoint, tmp_path / "baked")
    written = checkpoint.open(report.outputs[0])
    assert written.manifest.agent["tools"] == [
        "calculator",
        "remember",
        "recall",
        "code",
        "retrieve",
    ]
    assert written.metrics["tools/calculator"]["n"] == 6
    assert {row["trait"] for row in report.tables["persona"]} == {
        "helpfulness",
        "creativity",
        "precision",
    }
    assert [row["kind"] for row in report.tables["traces"]] == [
        "calculator",
        "memory",
        "code",
        "retrieve",
    ]
    assert (
        models.load(written.path).config.vocab_size
        == models.load(tiny_checkpoint.path).config.vocab_size
    )
    assert before == {
        p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tiny_checkpoint.path.iterdir()
    }


def test_a_stopped_phase_ends_in_the_same_bytes(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings("traces.code.count=0", "traces.retrieve.count=0", "baseline=true")
    whole, _ = forge(config, tiny_checkpoint, tmp_path / "whole")
    for stop_at, stage in ((3, "bake"), (5, "bake"), (2, "plain")):
        with pytest.raises(Exception, match="stopped by SIGTERM"):
            forge(config, tiny_checkpoint, tmp_path / "parts", stop_at, stage)
    parts, _ = forge(config, tiny_checkpoint, tmp_path / "parts")
    first, second = (load_file(Path(r.outputs[0]) / "model.safetensors") for r in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert checkpoint.open(whole.outputs[0]).id == checkpoint.open(parts.outputs[0]).id
    assert whole.metrics == parts.metrics
    assert whole.baseline == parts.baseline
    assert "calculator" in whole.baseline


def test_the_baseline_is_plain_training_on_the_same_rows_for_as_many_steps(
    settings: Callable[..., Config],
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Bit for bit what learn.train gives with cross-entropy alone; and the baked model is the same
    with and without.
    """
    config = settings("baseline=true", "traces.code.count=0", "traces.retrieve.count=0")
    trained, original = [], baseline.fine_tuned
    monkeypatch.setattr(
        baseline, "fine_tuned", lambda *a: trained.append(original(*a)) or trained[-1]
    )
    report, _ = forge(config, tiny_checkpoint, tmp_path / "beside")

    events = EventLog(None, "bake")
    out = Workspace(
        tmp_path / "hand", phase="bake", seed=config.seed, config=config, parents=[tiny_checkpoint]
    )
    phase = PhaseRun(config, [tiny_checkpoint], out, events)
    traces_by_kind, _ = lessons.collect(phase, models.load(tiny_checkpoint.path))
    rows = lessons.BakeBatches(
        settings("training.neutral_rows=0"), phase.tokenizer, traces_by_kind, {}
    )
    model = models.load(tiny_checkpoint.path)

    def cross_entropy(model: LlamaForCausalLM, batch: dict, step: int) -> tuple:
        assert set(batch) == {"input_ids", "labels"}
        return learn.lm_loss(model, batch, step)

    learn.train(
        model,
        learn.TrainRequest(
            batches=rows,
            loss_fn=cross_entropy,
            stage="hand",
            steps=6,
            optim=config.training.optim,
            out=out,
            events=events,
            seed=seed_for(config.seed, "bake", "train"),
        ),
    )
    expected = model.state_dict()
    assert all(
        torch.equal(value, expected[name]) for name, value in trained[0].state_dict().items()
    )
    figures = _measure(phase, model)
    # Rows of a part of a kind ("calculator, 2 digits") have the baked model's figures alone.
    for row in (one for one in report.tables["held-out tools"] if "," not in one["kind"]):
        one = figures["tools"][row["kind"]]
        assert (row["plain"], row["plain low"], row["plain high"], row["n"]) == tuple(
            one[key] for key in ("value", "low", "high", "n")
        )
    text = figures["text"]
    assert f"against {text['value']:.3f} [{text['low']:.3f}, {text['high']:.3f}]" in report.baseline
    alone, _ = forge(
        settings("traces.code.count=0", "traces.retrieve.count=0"),
        tiny_checkpoint,
        tmp_path / "alone",
    )
    baked, again = (
        load_file(Path(one.outputs[0]) / "model.safetensors") for one in (report, alone)
    )
    assert all(torch.equal(baked[name], again[name]) for name in baked)
    assert any(not torch.equal(baked[name], expected[name]) for name in baked)
    assert alone.baseline == baseline.NOT_RUN


def test_a_bake_without_kl_is_its_own_baseline(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        "baseline=true", "persona.enabled=false", "training.neutral_weight=0", "training.steps=1"
    )
    report, out = forge(config, tiny_checkpoint, tmp_path / "plain")
    assert report.baseline == baseline.SAME
    assert not list(out.resume_dir(baseline.STAGE).glob("*"))


def test_training_teaches_the_call(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        "persona.enabled=false", "traces.memory.count=0", "traces.code.count=0", "traces.retrieve.count=0",
        "training.neutral_weight=0", "training.steps=60", "training.rows=8",
        "training.optim.lr=1e-2", "measure.items=8",
    )  # fmt: skip
    report, _ = forge(config, tiny_checkpoint, tmp_path / "taught")
    model, tokenizer = models.load(report.outputs[0]), models.load_tokenizer(report.outputs[0])
    held = [
        t
        for t in traces.make("calculator", 20, "validation", 0, config.data)
        if measure.wanted_call(t)
    ]
    calls = [[t["messages"][0]] for t in held]
    answers = [t["messages"][1]["content"] for t in held]
    parent = models.load(tiny_checkpoint.path)
    taught, untaught = (
        sum(toolformer.answer_losses(m, tokenizer, calls, answers)) for m in (model, parent)
    )
    assert taught < 0.2 * untaught


def test_a_trait_that_the_prompt_does_not_show_is_not_baked(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    report, _ = forge(
        settings("persona.min_effect_nats=100", "training.steps=1"),
        tiny_checkpoint,
        tmp_path / "plain",
    )
    assert {row["strength"] for row in report.tables["persona"]} == {"not baked"}


def test_a_trait_that_is_strong_enough_pauses(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        *(
            f"persona.traits.{name}.strength=0.9"
            for name in ("helpfulness", "creativity", "precision")
        )
    )
    seen: list[dict] = []
    original = lessons.joint_loss

    def spy(*arguments: object) -> object:
        inner = original(*arguments)  # type: ignore[arg-type]

        def loss_fn(model: object, batch: dict, step: int) -> object:
            loss, metrics = inner(model, batch, step)
            seen.append(metrics)
            return loss, metrics

        return loss_fn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent_forge.phases.bake.run.lessons.joint_loss", spy)
        patch.setattr(persona, "strength", lambda *_: 0.9)
        forge(config, tiny_checkpoint, tmp_path / "paused")
    assert ["persona_kl" in metrics for metrics in seen] == [True, True, False, False, False, False]


def test_nothing_to_bake_is_an_error(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = settings(
        *(f"traces.{kind}.count=0" for kind in ("calculator", "memory", "code", "retrieve"))
    )
    with pytest.raises(PhaseError, match="nothing to bake"):
        forge(config, tiny_checkpoint, tmp_path / "none")


@pytest.mark.parametrize("kind", ["rows", "schemas", "copying", "bfcl"])
def test_calls_in_the_mix_can_be_all_that_a_bake_teaches(
    settings: Callable[..., Config], kind: str
) -> None:
    none = [f"traces.{name}.count=0" for name in ("calculator", "memory", "code", "retrieve")]
    rows = ["data.rows=[rows.jsonl]"] if kind == "rows" else []
    assert lessons.enabled_kinds(settings(*none, f"+training.mix.{kind}=1", *rows)) == []
    with pytest.raises(PhaseError, match="nothing to bake"):
        lessons.enabled_kinds(settings(*none, f"+training.mix.{kind}=0", *rows))


def test_a_phase_without_a_source_is_an_error(
    settings: Callable[..., Config], tmp_path: Path
) -> None:
    config = settings()
    out = Workspace(tmp_path / "x", phase="bake", seed=0, config=config)
    with pytest.raises(PhaseError, match="needs a checkpoint"):
        run(PhaseRun(config, [], out, EventLog(None, "bake")))


def test_own_rows_and_pairs_alone_are_learned_by_adapters_that_are_kept(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """No tool is named: rows by cross-entropy, pairs by DPO, and the adapter beside the model."""
    pytest.importorskip("peft")
    rows, pairs = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    rows.write_text("\n".join(f'{{"prompt": "Say {i}.", "completion": "{i}"}}' for i in range(60)))
    pairs.write_text("\n".join(
        f'{{"prompt": "Is {i} big?", "chosen": "yes", "rejected": "river"}}' for i in range(60)
    ))  # fmt: skip
    config = settings(
        "traces.builtin=off", "training.mix={rows: 1.0, text: 0, reasoning: 0, memory: 0}",
        "training.neutral_rows=0", "training.lora_rank=4", "training.steps=30",
        "training.optim.lr=0.02", "persona.enabled=false", f"preferences.rows=[{pairs}]",
        "preferences.pairs=6",
    )  # fmt: skip
    config.data.rows = [str(rows)]
    try:
        report, _ = forge(config, tiny_checkpoint, tmp_path / "work")
    finally:
        config.data.rows = []
    preferred = report.metrics["chosen answer likelier"]
    assert preferred["value"] == 1.0
    assert preferred["margin"] > 1
    assert "none made" in report.summary
    baked = Path(report.outputs[0])
    assert {file.name for file in (baked / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    checkpoint.open(baked)
    merged = models.load(tiny_checkpoint)
    adapter_files.merge(merged, baked / "adapter")
    for name, value in models.load(baked).state_dict().items():
        assert torch.allclose(value, merged.state_dict()[name], atol=1e-6), name


def test_the_work_of_the_phase_counts_traces_lessons_and_measuring(
    settings: Callable[..., Config],
) -> None:
    """A token that is written is a trained one, a token that is read a third of one."""
    overrides = [
        "traces.calculator.count=100", "traces.memory.count=30", "traces.code.count=0",
        "traces.retrieve.count=0", "training.steps=0", "measure.items=9", "measure.text_items=12",
        "measure.max_new_tokens=40", "persona.enabled=false", "voice.prompts=0",
    ]  # fmt: skip
    talks, questions = 9 * (1 + 3), 32  # a question of memory has three conversations
    measured = talks * (40 + questions / 3) + 12 * 100 / 3
    filtered = 130 * 60  # each trace is read three times
    config = settings(*overrides)
    assert config.work_tokens() == pytest.approx(filtered + 2 * measured)
    assert settings(*overrides, "baseline=true").work_tokens() == pytest.approx(
        filtered + 3 * measured
    )
    own = settings(*overrides, "tools=[calculator]", "traces.own.count=20")
    listed, bare = 4 * 9, 2 * 9
    expected = (listed + bare) * (40 + questions / 3) + listed * 100 + 2 * 12 * 100 / 3
    assert own.work_tokens() == pytest.approx(20 * 60 + expected)
    spoken = settings(*overrides, "voice.prompts=5", "voice.heldout=3", "voice.reply_tokens=10")
    assert spoken.work_tokens() - config.work_tokens() == pytest.approx(8 * (10 + (32 + 10) / 3))
    # Three traits: 7 answers are written and read for each; 3 of them are read at each of two checks.
    baked = ["persona.prompts=4", "persona.heldout=3", "persona.reply_tokens=6", "persona.rows=2"]
    steps = ["training.steps=10", "persona.check_every_steps=5"]
    shown = settings(*overrides, *baked, *steps, "persona.enabled=true")
    read = (questions + 6) / 3
    lessons = 3 * 7 * (6 + read) + 2 * 3 * 3 * read
    without = settings(*overrides, *baked, *steps).work_tokens()
    trained = 10 * 2 * (6 + 32) * 3
    assert shown.work_tokens() - without == pytest.approx(lessons + trained)


def test_a_filter_that_is_overridden_is_counted_and_said(
    settings: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six traces five are filtered; one passes, and the best three are taken all the same."""
    config = settings(
        *(f"traces.{kind}.count=0" for kind in ("memory", "code", "retrieve")),
        "traces.tau_nats=0.5", "traces.min_kept_share=0.6",
    )  # fmt: skip
    candidates = [{"number": i, "filtered": i != 5} for i in range(6)]
    gains = [0.7, 0.4, -1.0, 0.3, -0.4]
    monkeypatch.setattr(lessons, "make", lambda *_: candidates)
    monkeypatch.setattr(
        lessons.toolformer, "trace_losses", lambda *_: [(1.0, 1.0 + gain, 2.0) for gain in gains]
    )
    monkeypatch.setattr(lessons.toolformer, "gain", lambda one: one[1] - one[0])
    out = Workspace(tmp_path / "x", phase="bake", seed=0, config=config)
    said: list[str] = []
    events = SimpleNamespace(warning=said.append, progress=lambda *_: None)
    phase: Any = SimpleNamespace(config=config, out=out, events=events, tokenizer=None)
    helpful, (row,) = lessons.collect(phase, None)  # type: ignore[arg-type]
    assert [trace["number"] for trace in helpful["calculator"]] == [0, 1, 3, 5]
    assert (row["made"], row["pass tau"], row["trained"]) == (5, 1, 4)
    assert row["taken below tau (filter overridden)"] == 2
    assert (row["mean gain (nats)"], row["without a call"]) == (0.0, 1.0)
    assert (row["answer after the result"], row["after an empty result"]) == (1.0, 2.0)
    assert said
    assert "only 1 of 5 traces" in said[0]
    assert "the best 3 are taken" in said[0]


@pytest.mark.parametrize(("chosen", "count"), [([], 1500), (["training.generated_rows=7"], 7)])
def test_generated_kinds_have_as_many_rows_as_the_setting_says(
    settings: Callable[..., Config],
    tiny_checkpoint: Checkpoint,
    chosen: list[str],
    count: int,
) -> None:
    config = settings(
        "training.mix={text: 0.0, reasoning: 0.0, memory: 0.0, copying: 1.0}",
        "training.neutral_mix={text: 0.0, reasoning: 1.0}", "training.length_tokens=256", *chosen,
    )  # fmt: skip
    tokenizer = models.load_tokenizer(tiny_checkpoint.path)
    batches = lessons.BakeBatches(config, tokenizer, {}, {})
    assert batches.neutral is not None
    for mixture, task in ((batches.mixture, copying), (batches.neutral, reasoning)):
        rows = task.rows(count, "train", config.seed)
        (source,) = mixture.sources
        assert isinstance(source, RowSource)
        assert source.fingerprint() == RowSource(rows, tokenizer).fingerprint()


def test_kinds_of_weight_nothing_are_not_read(
    settings: Callable[..., Config], tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(
        "training.mix={text: 0.5, reasoning: 0.0, memory: 0.0}",
        "training.neutral_mix={text: 1.0, code: 0.0}",
    )
    tokenizer = models.load_tokenizer(tiny_checkpoint.path)
    read: list[str] = []
    source = lessons.data.source

    def noted(kind: str, *arguments: Any, **more: Any) -> Any:
        read.append(kind)
        return source(kind, *arguments, **more)

    monkeypatch.setattr(lessons.data, "source", noted)
    rows = [
        {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    ]
    lessons.BakeBatches(config, tokenizer, {"calculator": rows}, {})
    assert read == ["text"]
