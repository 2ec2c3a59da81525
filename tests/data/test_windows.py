"""A context longer than a model's positions: cut on the left, scored in windows, or refused; never
an index out of range.
"""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from agent_forge import agent, data, evaluate, models
from agent_forge.config import DataConfig
from agent_forge.core.errors import ConfigError
from agent_forge.data import windows

POSITIONS = 32  # GPT-2 has a learned vector for each: one token more is an index out of range


@pytest.fixture(scope="module")
def short_model(tiny_tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tiny_tokenizer), n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2,
            bos_token_id=tiny_tokenizer.bos_token_id, eos_token_id=tiny_tokenizer.eos_token_id,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def short_tokenizer(
    short_model: GPT2LMHeadModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> PreTrainedTokenizerFast:
    place = tmp_path_factory.mktemp("short")
    models.save(short_model, tiny_tokenizer, place)
    return models.load_tokenizer(place)


def test_the_tokenizer_of_a_checkpoint_knows_the_models_positions(
    short_tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert windows.longest(short_tokenizer) == POSITIONS
    assert windows.stored_positions({"text_config": {"max_position_embeddings": 7}}) == 7
    assert windows.stored_positions({"model_type": "bloom"}) is None


@pytest.mark.parametrize("limit", [5, 8, 9, 40])
@pytest.mark.parametrize("scored", ["all", "end", "some"])
def test_scoring_windows_hold_every_scored_token_once_with_what_stands_before_it(
    limit: int, scored: str
) -> None:
    count = 23
    masks = {"all": [i > 0 for i in range(count)], "end": [i > count - 4 for i in range(count)],
             "some": [i in (3, 4, 17) for i in range(count)]}  # fmt: skip
    parts = windows.scoring_windows(range(100, 100 + count), masks[scored], limit)
    seen = [ids[i] - 100 for ids, mask in parts for i in range(len(ids)) if mask[i]]
    assert seen == [i for i in range(count) if masks[scored][i]]
    for ids, mask in parts:
        assert len(ids) == len(mask) <= limit
        assert list(ids) == list(range(ids[0], ids[0] + len(ids)))
        assert not mask[0]
    if limit >= count:
        assert len(parts) == 1
    if scored == "end" and limit >= 5:
        assert len(parts) == 1 and len(parts[0][0]) == min(limit, count)  # noqa: PT018


def test_long_rows_are_scored_as_windows_by_hand(short_model: GPT2LMHeadModel) -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 300, 75).tolist()
    row = (ids, [i > 0 for i in range(75)])
    scores = evaluate.row_nll(short_model, [row, (ids[:20], [i > 0 for i in range(20)])])
    half, expected, done = POSITIONS // 2, 0.0, 1
    for start in range(0, 75, half):
        end = min(start + POSITIONS, 75)
        with torch.no_grad():
            logits = short_model(input_ids=torch.tensor([ids[start:end]])).logits[0].log_softmax(-1)
        for place in range(max(done, start + 1), end):
            expected -= float(logits[place - start - 1, ids[place]])
        done = max(done, end)
        if end == 75:
            break
    assert scores[0, 0] == pytest.approx(expected, rel=1e-5)
    assert scores[:, 1].tolist() == [74, 19]


def test_prompts_are_cut_on_the_left_and_bos_stays(
    short_model: GPT2LMHeadModel, caplog: pytest.LogCaptureFixture
) -> None:
    windows._say_cut.cache_clear()
    long = [7 + i % 200 for i in range(90)]
    with caplog.at_level(logging.WARNING):
        texts = models.generate(short_model, [long, long[-22:]], models.Decoding(max_new_tokens=10))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 10
    assert caplog.text.count("cut on the left") == 1
    bos = short_model.config.bos_token_id
    prompt = windows.fitting_prompt([bos, *long], 10, POSITIONS, [bos])
    assert prompt == [bos, *long[-21:]]
    with pytest.raises(ConfigError, match="32 new tokens leave no room"):
        models.generate(short_model, [long], models.Decoding(max_new_tokens=POSITIONS))


def test_an_agent_answers_however_long_the_conversation(
    short_model: GPT2LMHeadModel, short_tokenizer: PreTrainedTokenizerFast
) -> None:
    talker = agent.Agent(
        short_model, short_tokenizer, settings={"decoder": {"max_new_tokens": 8}, "max_rounds": 1}
    )
    turn = talker.reply([{"role": "user", "content": "a very long question " * 40}])
    assert len(turn.messages) == 1


def test_windows_past_the_positions_are_refused_in_one_line(
    data_config: DataConfig, short_tokenizer: PreTrainedTokenizerFast
) -> None:
    source = data.TextSource(data_config, short_tokenizer, "train")
    rows = data.RowSource([{"messages": [{"role": "assistant", "content": "y"}]}], short_tokenizer)
    generator = np.random.default_rng(0)
    for take in (lambda n: source.take(generator, n), lambda n: source.windows(n, 2),
                 lambda n: source.take_at(0, n, 0), lambda n: rows.take(generator, n)):  # fmt: skip
        take(POSITIONS)
        with pytest.raises(
            ConfigError, match="windows of 33 tokens are longer than the model's 32 positions"
        ):
            take(POSITIONS + 1)


def test_a_row_longer_than_its_window_keeps_its_end_and_is_counted(
    tiny_tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    long = [
        {
            "messages": [
                {"role": "user", "content": "x " * 200},
                {"role": "assistant", "content": "yes"},
            ]
        }
    ]
    with caplog.at_level(logging.WARNING):
        source = data.RowSource(long, tiny_tokenizer)
        ids, labels = source.take(np.random.default_rng(0), 32)
        source.take(np.random.default_rng(1), 32)
    assert tiny_tokenizer.decode(labels[labels != -100]) == "yes<|im_end|>"
    assert tiny_tokenizer.decode(ids).endswith("yes<|im_end|>\n")
    assert [record.message for record in caplog.records if "longer" in record.message] == [
        "1 of 1 rows are longer than a window of 32 tokens: cut on the left"
    ]


def test_inspect_counts_rows_past_the_models_positions(
    short_model: GPT2LMHeadModel, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from agent_forge.cli.app import app

    models.save(short_model, tiny_tokenizer, tmp_path / "model")
    row = {
        "messages": [
            {"role": "user", "content": "long " * 60},
            {"role": "assistant", "content": "y"},
        ]
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    said = CliRunner().invoke(
        app, ["data", "inspect", str(tmp_path / "a.jsonl"), "--tokenizer", str(tmp_path / "model")]
    )
    assert said.exit_code == 0, said.output
    assert "1 rows are longer than the model's 32 positions: cut on the left" in " ".join(
        said.stdout.split()
    )
