"""The scorer against closed forms and brute force, on a tiny random Llama."""

import copy
import math
import re
import resource
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from agent_forge import evaluate
from agent_forge.config import DataConfig, GateConfig
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.core.seeds import seed_for
from agent_forge.data import TextSource, train_tokenizer
from agent_forge.data.synthetic import rationales
from agent_forge.data.synthetic import reasoning as numbers
from agent_forge.evaluate import engine
from agent_forge.evaluate.tasks import (
    abstain,
    choice,
    humaneval,
    memory,
    persona,
    reasoning,
    text,
    tools,
    unseen,
)  # fmt: skip
from tests import tiny_families

WORDS = (
    "the river and the old house stand near a small garden where people met in winter and "
    "wrote letters home . "
)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    generator = np.random.default_rng(0)
    words = WORDS.split()
    for i in range(300):
        steps = np.where(generator.random(120) < 0.9, 1, generator.integers(1, len(words), 120))
        order = np.cumsum(steps) % len(words)
        (folder / f"{i:03}.txt").write_text(" ".join(words[k] for k in order))
    data = DataConfig(
        text=[str(folder)],
        max_text_bytes=0,
        cache=str(tmp_path_factory.mktemp("cache")),  # not inside: a folder of text is read whole
        rows=[],
        near_duplicates=0.0,
        sampling="random",
        encoding="utf-8",
        ignore_keys=[],
    )
    return evaluate.EvalContext(data=data, seed=7, batch_tokens=600)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(
        [WORDS * 20, "The code of the red box is 12. Which is largest: 4, 5? Answer: 5"], 400
    )


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=512,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def trained(model, tokenizer, context):
    """A copy of the model that has really learned the words' language."""
    student = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    pieces = text.items("train", 64, context)
    rows = torch.stack([torch.tensor(tokenizer.encode(piece["text"])[:48]) for piece in pieces])
    for step in range(120):
        ids = rows[step % 4 :: 4]
        loss = student(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student.eval()


def one_by_one(model, rows):
    losses = []
    for ids, mask in rows:
        log_p = functional.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].double(), -1)
        losses.append(-sum(float(log_p[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i]))
    return losses


def test_batched_log_likelihood_equals_one_row_at_a_time(model):
    generator = np.random.default_rng(3)
    rows = []
    for size in (2, 3, 9, 9, 17, 40, 41):
        ids = generator.integers(0, 300, size).tolist()
        rows.append((ids, [False, *(generator.random(size - 1) < 0.7).tolist()]))
    totals = evaluate.row_nll(model, rows, batch_tokens=100)
    with torch.no_grad():
        assert totals[:, 0] == pytest.approx(one_by_one(model, rows), rel=1e-5)
    assert totals[:, 1].tolist() == [sum(mask) for _, mask in rows]


def test_a_row_that_asks_for_its_first_token_is_refused(model):
    with pytest.raises(DataError, match="first token"):
        evaluate.row_nll(model, [([1, 2], [True, True])])


def test_batches_hold_every_row_once_within_the_limit():
    lengths = np.random.default_rng(0).integers(1, 50, 100).tolist()
    batches = evaluate.engine.batches_by_length(lengths, 120)
    assert sorted(i for batch in batches for i in batch) == list(range(100))
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 120 for batch in batches
    )


def test_a_batch_has_a_row_at_least_and_no_more_logits_than_memory_allows(monkeypatch, model):
    vocabulary = model.config.vocab_size
    for logits, limit in ((0, 1), (7 * vocabulary, 7), (100 * vocabulary, 50)):
        monkeypatch.setattr(evaluate.engine, "MAX_LOGITS", logits)
        assert evaluate.engine._token_limit(model, 50) == limit


def test_one_item_is_enough_to_score_and_none_of_weight_is_refused():
    assert (
        evaluate.engine.scores_of("reasoning", [{}], np.array([[1.0, 1.0]]), "test", 0).mean == 1.0
    )
    assert evaluate.engine.scores_of("text", [{}], np.array([[1.0, 0.5]]), "test", 0).mean == 2.0
    with pytest.raises(DataError, match="scored nothing"):
        evaluate.engine.scores_of("text", [{}], np.array([[0.0, 0.0]]), "test", 0)


def test_the_tokens_of_a_batch_follow_free_memory_the_vocabulary_and_the_setting():
    """On an accelerator half of what is free holds logits of 16 bytes; on the CPU a fixed number."""
    limit = engine._limit
    assert limit(0, 1000, 0) == (4096, "as on the CPU: its free memory cannot be asked")
    assert limit(0, 64_000, 0) == (1000, "logits of 64,000 entries per token")
    assert limit(0, 64_000, 999) == (999, "as set")
    assert limit(0, 64_000, 1000) == (1000, "as set")
    assert limit(0, 64_000, 1001)[0] == 1000
    assert limit(0, 10**9, 7)[0] == 1  # one token is read whatever its logits need
    free = 2 * 16 * 1000 * 65536
    assert limit(free, 1000, 0) == (65536, "which fills it")
    less, why = limit(free - 32_000, 1000, 0)
    assert (less, why) == (65535, "logits of 1,000 entries per token in 2.1 GB of free memory")
    assert limit(free, 1000, 100_000)[0] == 65536
    assert limit(10 * free, 1000, 100_000) == (100_000, "as set")


def test_a_reply_to_the_first_turn_is_judged_by_its_text(model, tokenizer, context, monkeypatch):
    calls = []

    def replies(_, __, questions, decoding):
        calls.append((questions, decoding.max_new_tokens))
        return [tokenizer.encode(text, add_special_tokens=False) for text in ("yes", "no")]

    monkeypatch.setattr(engine, "generate_replies", replies)
    turn = {"role": "user", "content": "Is it?"}
    items = [{"messages": [turn, {"role": "assistant", "content": "yes"}], "right": "yes"}] * 2
    scored = engine.text_match(
        model, tokenizer, items, context, max_new_tokens=9,
        is_right=lambda item, text: item["right"] == text.strip(),
    )  # fmt: skip
    assert scored.tolist() == [[1.0, 1.0], [0.0, 1.0]]
    assert calls == [([[turn], [turn]], 9)]


def test_text_is_cut_after_the_word_that_fills_a_piece_spaces_counted():
    assert text.cut("aa bb cc dd ee", 6) == ["aa bb", "cc dd"]
    assert text.cut("aa bb", 5) == ["aa bb"]
    assert text.cut("é b", 5) == ["é b"]  # 2 + 1 and 1 + 1 bytes: letters do not count
    assert text.cut("aa bb", 7) == []


@pytest.mark.parametrize("name", registry.names(engine.TASKS))
def test_every_task_leaves_room_above_chance(name):
    """Where guessing scored everything, no gate would ever ask for anything."""
    task = evaluate.load_task(name).TASK
    if task.higher_is_better and task.chance is not None:
        assert 0 <= task.chance <= 0.5


def test_calls_and_conversations_of_calls_are_never_guessed():
    guessed = {"abstain": 0.5}
    for name in registry.names("agent_forge.evaluate.tasks"):
        task = evaluate.load_task(name).TASK
        if task.calls:
            assert task.chance == guessed.get(name, 0.0)
    for name in ("bfcl_multi_turn", "tools"):
        assert evaluate.load_task(name).TASK.chance == 0.0


def test_chance_is_what_guessing_scores():
    """One of four choices.

    One of the level + 1 codes that were told, levels 1 to 5; a call is never guessed.
    """
    assert {
        len(case["choices"]) for case in choice.cases() if case["id"].startswith("hellaswag")
    } == {4}
    assert choice.TASK.chance == 1 / 4
    assert memory.TASK.chance == pytest.approx(
        np.mean([1 / (level + 1) for level in range(1, 6)]), abs=5e-4
    )
    assert tools.TASK.chance == 0.0


def test_questions_that_name_their_answer_among_others_are_right_by_chance_as_often():
    """Each level and kind is as frequent as any other; a number that is not named is not guessed."""
    generator, by_kind = np.random.default_rng(0), {}
    for maker in numbers.MAKERS:
        for level in range(1, 6):
            _, question, _, answer = maker(generator, level)
            named = set(
                re.findall(r"largest: .*|(?<!\w)[A-Z]\w+(?= is taller)|(?<=than )\w+", question)
            )
            if maker is numbers._compare:
                named = set(re.findall(r"\d+", question))
            share = 1 / len(named) if answer in named else 0.0
            by_kind.setdefault(maker.__name__, []).append(share)
    assert sorted(kind for kind, shares in by_kind.items() if any(shares)) == ["_compare", "_order"]
    assert reasoning.TASK.chance == pytest.approx(np.mean(list(by_kind.values())), abs=5e-4)


def test_chance_where_cups_are_named_and_where_each_byte_is_as_likely_as_any_other():
    cups = [rationales._cups(np.random.default_rng(seed)) for seed in range(400)]
    counts = [question.count(", ") + 1 for _, question, _, _ in cups]
    assert set(counts) == {3, 4}
    assert np.mean(counts) == pytest.approx(3.5, abs=0.1)  # both as often
    share = np.mean([1 / 3, 1 / 4]) / len(rationales.MAKERS)
    assert evaluate.load_task("rationales").TASK.chance == pytest.approx(share, abs=5e-4)
    assert unseen.TASK.chance == text.TASK.chance == math.log2(256)
    for name in evaluate.DOMAINS:
        assert evaluate.load_task(name).TASK.chance == pytest.approx(math.log(256))
    gym = evaluate.load_task("reasoning_gym")
    assert {"coin_flip", "syllogism", "calendar_arithmetic"} <= set(gym.FAMILIES)
    share = (1 / 2 + 1 / 2 + 1 / 7) / len(gym.FAMILIES)
    assert share == pytest.approx(gym.TASK.chance, abs=5e-4)
    cases = [case for case in choice.cases() if case["id"].startswith("truthfulqa")]
    right = np.mean([1 / len(case["choices"]) for case in cases])
    assert evaluate.load_task("truthfulqa").TASK.chance == pytest.approx(right, abs=5e-4)


def test_solutions_of_humaneval_are_scored_after_their_prompts(tokenizer):
    items = [
        {"prompt": "def one():\n", "solution": "    return 1"},
        {"prompt": "def longer(x):\n", "solution": "    return x + 1\n"},
    ]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    for (ids, mask), item in zip(humaneval.masked_rows(tokenizer, items), items, strict=True):
        assert ids[0] == start
        assert len(ids) == len(mask)
        assert tokenizer.decode(ids[1:]) == item["prompt"] + item["solution"]
        scored = [token for token, counts in zip(ids, mask, strict=True) if counts]
        assert tokenizer.decode(scored) == item["solution"]
        assert mask == sorted(mask)


def test_bits_per_byte_of_a_uniform_model_is_its_closed_form(model, tokenizer, context):
    uniform = copy.deepcopy(model)
    torch.nn.init.zeros_(uniform.lm_head.weight)
    items = text.items("validation", 8, context)
    scores = evaluate.score_items(uniform, tokenizer, "text", items, "validation", context)
    pieces = [item["text"] for item in items]
    tokens = sum(len(tokenizer.encode(piece, add_special_tokens=False)) for piece in pieces)
    size = sum(len(piece.encode()) for piece in pieces)
    assert scores.mean == pytest.approx(math.log2(len(tokenizer)) * tokens / size, rel=1e-6)
    assert scores.n == len(items)
    assert scores.items_hash == evaluate.split_hash(items)


def test_choice_scores_equal_brute_force(model):
    generator = np.random.default_rng(4)
    questions = [
        (
            generator.integers(0, 300, 5).tolist(),
            [generator.integers(0, 300, size).tolist() for size in (1, 4, 2)],
        )
        for _ in range(5)
    ]
    likelihoods = evaluate.choice_log_likelihood(model, questions, batch_tokens=40)
    with torch.no_grad():
        for (prompt, choices), values in zip(questions, likelihoods, strict=True):
            rows = [(prompt + c, [False] * len(prompt) + [True] * len(c)) for c in choices]
            assert values == pytest.approx([-nll for nll in one_by_one(model, rows)], rel=1e-5)


def test_bits_of_a_gemma_are_those_of_its_text_after_bos(context):
    """Scored as it was trained: BOS once in front, unscored.

    Worked out here from its logits, with it and without.
    """
    words = tiny_families.tokenizer(bos_token="<|im_start|>")
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", words.bos_token_id)]
    )
    model = tiny_families.build("gemma3_text", vocab_size=len(words))
    piece = "The state of the union is strong, what is 48 plus 77?"
    ids = words.encode(piece, add_special_tokens=False)
    assert words.encode(piece) == [words.bos_token_id, *ids]

    def bits(row: list[int], first: int) -> float:
        with torch.no_grad():
            chances = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        return -sum(float(chances[at - 1, row[at]]) for at in range(first, len(row))) / math.log(2)

    ((scored, size),) = text.score(model, words, [{"text": piece}], context)
    assert size == len(piece)
    assert scored == pytest.approx(bits([words.bos_token_id, *ids], 1), rel=1e-5)
    assert abs(scored - bits([words.eos_token_id, *ids], 1)) > 1
    windows = TextSource(context.data, words, "validation").windows(16, 2)
    assert (windows[:, 0] == words.bos_token_id).all()


def test_a_damaged_child_is_refused_and_the_same_child_passes(trained, tokenizer, context):
    gate = GateConfig(
        enabled=True, tasks={"text": 0.95}, chain={}, base="", items=24, looks=1, samples=400,
        memory_ratio=3.0, speed_ratio=0.0, on_failure="stop",
    )  # fmt: skip
    damaged = copy.deepcopy(trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in damaged.parameters():
            weight += (
                0.5 * weight.std() * torch.randn(weight.shape, generator=generator)
                if weight.dim() > 1
                else 0.0
            )
    parent = evaluate.score(trained, tokenizer, ["text"], "validation", 12, context)
    assert parent["text"].above_chance
    again = evaluate.score(copy.deepcopy(trained), tokenizer, ["text"], "validation", 12, context)
    child = evaluate.score(damaged, tokenizer, ["text"], "validation", 12, context)
    assert all(evaluate.judge(gate, parent, again, seed=seed).passed for seed in range(200))
    verdict = evaluate.judge(gate, parent, child)
    assert not verdict.passed
    assert verdict.retentions["text"].ratio < 0.95


@pytest.mark.parametrize("task", [text, reasoning, memory, tools, persona, choice])
def test_splits_share_no_item_and_the_seed_fixes_them(task, context):
    splits = ("validation", "search", "test")
    members = {split: task.items(split, 10, context) for split in splits}
    keys = {
        split: {evaluate.split_hash([item]) for item in items} for split, items in members.items()
    }
    assert all(keys[a].isdisjoint(keys[b]) for a in splits for b in splits if a < b)
    assert task.items("test", 10, context) == members["test"]


@pytest.mark.parametrize(
    ("task", "version", "items"),
    [
        (reasoning, 2, "f8f4437d7e3ef451"), (memory, 2, "82a6a2e540a0ce81"),
        (tools, 2, "4d875f970e42a93c"), (persona, 2, "f515d5cd3eb715b1"),
        (text, 2, "b8cf5c2b9860e640"), (abstain, 1, "eafd2f06bc854ffb"),
    ],
)  # fmt: skip
def test_a_task_whose_items_change_gets_a_new_version(task, version, items, context):
    """Scores of other items cannot be compared: raise the version together with the hash."""
    assert (task.TASK.version, evaluate.split_hash(task.items("test", 20, context))) == (
        version,
        items,
    )


def test_exact_match_counts_finished_replies_that_end_in_the_answer(
    monkeypatch, model, tokenizer, context
):
    rows = [
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "answer": "12",
        }
    ] * 4
    replies = ["Answer: 12", "It is 12.", "12 no", "Answer: 12"]
    ids = [tokenizer.encode(reply) for reply in replies]
    ids[3] = (ids[3] * 30)[:30]
    monkeypatch.setattr(evaluate.engine, "generate_replies", lambda *_: ids)
    pairs = evaluate.exact_match(model, tokenizer, rows, context, max_new_tokens=30)
    assert pairs[:, 0].tolist() == [1, 1, 0, 0]


def test_a_tool_answer_counts_only_when_the_tool_really_ran():
    row = {"answer": "42", "tool": "calculator"}
    request = '<tool_call>{"name": "calculator", "arguments": {"expression": "40+2"}}</tool_call>'
    call = {"role": "assistant", "content": request}
    answer = {"role": "assistant", "content": "42"}
    result = {"role": "tool", "content": "<tool_response>42</tool_response>"}
    question = {"role": "user", "content": "What is 40 plus 2?"}
    assert tools.is_right(row, [question, call, result, answer])
    assert not tools.is_right(row, [question, answer])
    assert not tools.is_right(row, [question, call, answer])
    assert not tools.is_right({**row, "tool": ""}, [question, call, result, answer])
    assert not tools.is_right({**row, "answer": "43"}, [question, call, result, answer])


def test_the_right_choice_is_not_always_in_the_same_place():
    places = [case["expected"] for case in choice.cases() if case["id"].startswith("truthfulqa")]
    assert max(places.count(0), places.count(1), places.count(2)) < 0.6 * len(places)


def test_a_missing_package_of_questions_names_the_command(monkeypatch, context):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(DataError, match="pip install"):
        choice.items("test", 3, context)


def test_persona_markers_are_what_they_say():
    assert persona.distinct_pairs(["a", "b", "a", "b"]) == pytest.approx(2 / 3)
    assert persona.markers("old river.", "old river", "old river", ended=True) == {
        "helpfulness": 1.0,
        "precision": 1.0,
    }
    assert persona.markers("x x x", "old river", "", ended=False) == {
        "helpfulness": 0.0,
        "creativity": 0.5,
    }


def test_an_unknown_task_is_answered_with_the_nearest(model, tokenizer, context):
    with pytest.raises(ConfigError, match="did you mean 'reasoning'"):
        evaluate.score(model, tokenizer, ["resoning"], "test", 3, context)


def test_scoring_leaves_training_mode_and_weights_alone(model, tokenizer, context):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate.score(model, tokenizer, ["text", "memory"], "test", 3, context)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model.eval()


def test_speed_is_positive_and_the_peak_counts_what_was_held(model, tokenizer):
    assert evaluate.measure_speed(model, tokenizer, new_tokens=4, repeats=1) > 0
    if not evaluate.reset_peak_memory():
        pytest.skip("this system cannot forget the peak")
    before = evaluate.peak_memory_bytes()
    block = np.ones(12_500_000)
    after = evaluate.peak_memory_bytes()
    assert block.nbytes * 0.9 <= after - before <= block.nbytes * 1.5


def test_speed_is_the_best_turn_without_the_first_and_models_take_turns(
    monkeypatch, model, tokenizer
):
    from agent_forge import models

    now, turns = [0.0], []
    costs = {"a": iter([100.0, 4.0, 2.0, 8.0]), "b": iter([50.0, 16.0, 1.0, 3.0])}
    twins = {"a": model, "b": copy.deepcopy(model)}

    def generate(which, _prompts, decoding):
        assert not decoding.stop_ids
        name = "a" if which is model else "b"
        turns.append((name, decoding.max_new_tokens))
        now[0] += next(costs[name])

    monkeypatch.setattr(models, "generate", generate)
    monkeypatch.setattr(engine.time, "perf_counter", lambda: now[0])
    speeds = evaluate.measure_speeds(
        [(one, tokenizer) for one in twins.values()], new_tokens=24, repeats=3
    )
    assert speeds == [24 / 2.0, 24 / 1.0]
    assert turns == [("a", 2), ("b", 2)] + 3 * [("a", 24), ("b", 24)]


def test_without_proc_the_peak_is_what_the_system_counts(monkeypatch, tmp_path):
    """ru_maxrss is in KiB, but on macOS in bytes."""
    monkeypatch.setattr(evaluate.memory, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=1000))
    for platform, size in (("linux", 1_024_000), ("darwin", 1000)):
        monkeypatch.setattr(sys, "platform", platform)
        assert evaluate.peak_memory_bytes() == size


def test_pieces_of_text_come_in_turn_from_every_document_and_know_it(tmp_path, context):
    for i in range(120):
        (tmp_path / f"{i}.txt").write_text(" ".join(f"w{i}n{j}" for j in range(40 + 400 * (i % 3))))
    folder = replace(context.data, text=[str(tmp_path)], max_text_bytes=0)
    whole = text.items("test", 10**6, replace(context, data=folder))
    documents = len({item["cluster"] for item in whole})
    first = whole[:documents]
    assert len({item["cluster"] for item in first}) == documents > 3
    assert {len({word.split("n")[0] for word in item["text"].split()}) for item in whole} == {1}
    assert text.items("test", 7, replace(context, data=folder)) == whole[:7]
    assert len({item["canonical"] for item in whole}) == len(whole)


def test_repeated_items_are_scored_once_and_a_shortage_is_said(monkeypatch, context, caplog):
    rows = [{"canonical": "a", "words": 1}, {"canonical": "b"}, {"canonical": "a", "words": 2}]
    monkeypatch.setattr(reasoning, "items", lambda *_: rows)
    assert evaluate.task_items("reasoning", "test", 3, context) == rows[:2]
    assert "task 'reasoning' has 2 distinct items in the test split, not 3" in caplog.text


def test_one_item_may_be_asked_for_and_none_may_not(context):
    assert len(evaluate.task_items("reasoning", "test", 1, context)) == 1
    with pytest.raises(ConfigError, match="items must be at least 1, got 0"):
        evaluate.task_items("reasoning", "test", 0, context)


def test_an_engine_score_resamples_the_clusters_that_items_name(
    monkeypatch, model, tokenizer, context
):
    items = [{"cluster": name, "kind": kind} for name, kind in zip("aabbcc", "xyxyxy", strict=True)]
    monkeypatch.setattr(
        reasoning, "score", lambda *_: np.array([[1, 1], [1, 1], [0, 1], [0, 1], [1, 1], [1, 1.0]])
    )
    scores = evaluate.score_items(model, tokenizer, "reasoning", items, "test", context)
    assert scores.clusters == [0, 0, 1, 1, 2, 2]
    assert scores.as_metric()["clusters"] == 3
    assert scores.as_metric()["kinds"]["x"]["n"] == 3
    assert scores.interval == evaluate.bootstrap_interval(
        np.array([2.0, 0, 2]),
        np.array([2.0, 2, 2]),
        seed=seed_for(context.seed, "evaluate", "reasoning"),
    )
