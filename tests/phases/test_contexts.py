"""What a model reads begins as its tokenizer says: with BOS exactly once, or without it.

Every context that a tiny model is given while it is calibrated, made ternary, scored and talked with
is recorded where the model is called. Three families: Gemma 3, whose template writes BOS and whose
tokenizer adds it too; Llama, whose tokenizer alone adds it; and Qwen, which has none.
"""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import agent, checkpoint, data, evaluate, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.events import EventLog
from agent_forge.data import windows
from agent_forge.phases import PhaseRun
from agent_forge.runtime import talker
from tests import tiny_families

BOS, END = "<bos>", "<|endoftext|>"
GEMMA = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FAMILIES = {"gemma3_text": GEMMA, "llama": None, "qwen2": None}
QUESTION = {"role": "user", "content": "what is 48 plus 77?"}


class Contexts:
    """Records every context that any model of transformers is given from its beginning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[int]] = []
        contexts = self

        def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            ids = kwargs.get("input_ids", args[0] if args else None)
            past = kwargs.get("past_key_values")
            if isinstance(ids, torch.Tensor) and (past is None or not past.get_seq_length()):
                contexts._note(ids, kwargs.get("attention_mask"))
            return nn.Module.__call__(model, *args, **kwargs)

        monkeypatch.setattr(PreTrainedModel, "__call__", call, raising=False)

    def _note(self, ids: torch.Tensor, mask: torch.Tensor | None) -> None:
        for number, row in enumerate(ids.tolist()):
            shown = mask is None or mask.ndim != 2
            first = 0 if shown else mask[number].tolist().index(1)  # type: ignore[index]
            self.rows.append(row[first:])

    def taken(self) -> list[list[int]]:
        """Return the contexts of more than one token since the last call. There must be some."""
        taken, self.rows = [row for row in self.rows if len(row) > 1], []
        assert taken
        return taken


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> Contexts:
    return Contexts(monkeypatch)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Checkpoint:
    """Return a checkpoint of a tiny model of the family, with a tokenizer that begins as its does."""
    kind = request.param
    names = {"eos_token": END, "pad_token": END}
    if kind == "qwen2":
        words = tiny_families.tokenizer(**names)
    else:
        words = tiny_families.tokenizer(more=[BOS], bos_token=BOS, **names)
        tiny_families.beginning_with(words, BOS)
    words.chat_template = FAMILIES[kind]
    settings = {**tiny_families.FAMILIES[kind], "bos_token_id": words.bos_token_id}
    model = tiny_families.build(kind, vocab_size=len(words), **settings)
    return checkpoint.write(
        tmp_path_factory.mktemp("family") / kind,
        lambda place: models.save(model, words, place),
        phase="import", seed=0, config={}, name=kind,
    )  # fmt: skip


@pytest.fixture
def words(family: Checkpoint) -> PreTrainedTokenizerFast:
    return models.load_tokenizer(family)


def begins_once(rows: list[list[int]], words: PreTrainedTokenizerFast) -> None:
    """Check that each context begins with BOS exactly once, or that there is none to begin with."""
    if words.bos_token_id is None:
        assert not data.window_prefix(words)
        assert all(row[:2] != [words.eos_token_id] * 2 for row in rows)
        return
    for row in rows:
        assert row[0] == words.bos_token_id, words.decode(row)
        doubled = [words.bos_token_id] * 2
        assert all(row[place : place + 2] != doubled for place in range(len(row))), words.decode(
            row
        )


def run_phase(name: str, family: Checkpoint, data_config: DataConfig, settings: list[str]) -> Any:
    """Run a phase in this process and return its report."""
    room = import_module(f"agent_forge.phases.{name}")
    out = family.path.parent / name
    config = compose(name, room.Config, [f"out={out}", "runtime.device=cpu", *settings])
    config.data = data_config
    space = Workspace(out, phase=name, seed=0, config=config, parents=[family])
    phase = PhaseRun(config, [family], space, EventLog(None, name))
    return import_module(f"agent_forge.phases.{name}.run").run(phase)


def test_calibration_and_measuring_of_compress(
    family: Checkpoint, words: PreTrainedTokenizerFast, data_config: DataConfig, contexts: Contexts
) -> None:
    run_phase("compress", family, data_config, [
        "calibration.windows=5", "calibration.length_tokens=40", "calibration.count_windows=0",
        "measure.windows=2", "measure.length_tokens=40", "measure.unseen_items=4",
        "measure.domain_items=2", "codec.min_weights=64", "codec.candidates=[{codec: intk, bits: 8}]",
        "budget.quality_floor=0", "budget.bytes_ratio=0.9", "recover.steps=1", "recover.rows=2",
        "recover.length_tokens=40",
    ])  # fmt: skip
    begins_once(contexts.taken(), words)


def test_training_and_own_text_of_bitnet(
    family: Checkpoint, words: PreTrainedTokenizerFast, data_config: DataConfig, contexts: Contexts
) -> None:
    run_phase("bitnet", family, data_config, [
        "linear.group_size=16", "init.rows=2", "train.steps=2", "train.rows=2",
        "train.length_tokens=40", "own.windows=2", "train.mix={text: 0.5, tools: 0.3, own: 0.2}",
        "measure_items=3", "unseen_items=3", "domain_items=2",
    ])  # fmt: skip
    begins_once(contexts.taken(), words)


def test_evaluation_short_and_in_windows(
    family: Checkpoint, words: PreTrainedTokenizerFast, data_config: DataConfig, contexts: Contexts
) -> None:
    model = models.load(family)
    context = evaluate.EvalContext(data=data_config, tokenizer=words, seed=0)
    names = ["text", "unseen", "reasoning", "tools", "memory", "hellaswag", *evaluate.DOMAINS]
    for name in names:
        evaluate.score(model, words, [name], "validation", 2, context)
        begins_once(contexts.taken(), words)
    ids = words.encode(tiny_families.TEXT)[:200]  # far longer than the model's 256 positions
    row = [data.text_start(words), *words.encode(tiny_families.TEXT, add_special_tokens=False)]
    assert len(row) > 2 * model.config.max_position_embeddings > 2 * len(ids)
    for first in (1, len(row) - 3):
        evaluate.row_nll(model, [(row, [place >= first for place in range(len(row))])])
        long = contexts.taken()
        begins_once(long, words)
        assert max(map(len, long)) == model.config.max_position_embeddings


def test_chat_of_any_length(
    family: Checkpoint, words: PreTrainedTokenizerFast, contexts: Contexts
) -> None:
    model = models.load(family)
    settings = {"decoder": {"max_new_tokens": 4}, "max_rounds": 1}
    speaker = agent.Agent(model, words, settings=settings)
    for times in (1, 90):
        speaker.reply([{**QUESTION, "content": QUESTION["content"] * times}])
        begins_once(contexts.taken(), words)
    if words.chat_template:
        speaker.reply([QUESTION])
        assert contexts.taken()[0] == words.apply_chat_template(
            [QUESTION], tokenize=True, add_generation_prompt=True, return_dict=True
        )["input_ids"]  # fmt: skip


def test_a_long_prompt_of_the_packed_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"bos_token_id": 7}', encoding="utf-8")
    shape = SimpleNamespace(longest=16, vocabulary=400)
    packed: Any = SimpleNamespace(shape=shape)
    opened = talker.PackedTalker(packed, None, talker.stored_begin(tmp_path))
    seen: list[list[int]] = []
    monkeypatch.setattr(opened, "_keep_common", lambda ids: seen.append(list(ids)) or 0)
    monkeypatch.setattr(opened, "_logits", lambda _: torch.zeros(400).numpy())
    next(opened.stream([7, *range(100, 140)], models.Decoding(max_new_tokens=4)))
    assert seen == [[7, *range(129, 140)]]


def test_a_first_token_without_a_name_begins_texts_as_it_begins_windows() -> None:
    """Some tokenizers put a token before every text and name no bos_token."""
    tok = tiny_families.beginning_with(tiny_families.tokenizer(more=[BOS], eos_token=END), BOS)
    assert tok.bos_token_id is None
    assert [data.text_start(tok)] == data.window_prefix(tok) == [tok.convert_tokens_to_ids(BOS)]


@pytest.mark.parametrize("limit", [2, 3, 8, 9])
@pytest.mark.parametrize("scored", ["all", "end"])
def test_every_window_of_a_long_row_begins_with_its_bos(limit: int, scored: str) -> None:
    ids = [7, *range(100, 122)]
    mask = [i > (0 if scored == "all" else 21) for i in range(23)]
    parts = windows.scoring_windows(ids, mask, limit, [7])
    seen = [place for row, part in parts for place, yes in zip(row, part, strict=True) if yes]
    assert seen == [one for one, yes in zip(ids, mask, strict=True) if yes]
    for row, part in parts:
        assert row[0] == 7
        assert row.count(7) == 1
        assert not part[0]
        assert len(row) == len(part) <= limit
        assert row[1:] == list(range(row[1], row[1] + len(row) - 1))
    assert len(windows.scoring_windows(ids[1:], mask[1:], limit, [7])[-1][0]) <= limit


def test_the_check_can_fail() -> None:
    words = tiny_families.tokenizer(more=[BOS], bos_token=BOS)
    bos = words.bos_token_id
    for wrong in ([5, 6], [bos, bos, 5], [bos, 5, bos, bos]):
        with pytest.raises(AssertionError):
            begins_once([wrong], words)
