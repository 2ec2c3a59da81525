"""Tokenizers are compared by meaning, unions load, and no two vocabularies merge in silence however
they are stored.
"""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_forge.core.errors import CheckpointError, ConfigError

from .small import SPECIAL, change, mean, merge, notes, put, read, recipe, tokenizer, weights

Json = dict[str, Any]
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Return a folder with models a and b that have one tokenizer."""
    put(tmp_path / "a", 0)
    put(tmp_path / "b", 1)
    return tmp_path


def rewrite(directory: Path, alter: Callable[[Json], Any]) -> None:
    content = read(directory, "tokenizer.json")
    alter(content)
    (directory / "tokenizer.json").write_text(json.dumps(content))


def _strings(content: Json) -> None:
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]


def _without_defaults(content: Json) -> None:
    for name in (
        "ignore_merges",
        "byte_fallback",
        "fuse_unk",
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
    ):
        content["model"].pop(name, None)


def _other_spellings(content: Json) -> None:
    content["model"] |= {"dropout": 0.0, "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [content["pre_tokenizer"]]}
    content["added_tokens"].reverse()
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))


def _used(content: Json) -> None:
    content["padding"] = {
        "strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": SPECIAL[0],
    }  # fmt: skip
    content["truncation"] = {
        "direction": "Right",
        "max_length": 7,
        "strategy": "LongestFirst",
        "stride": 0,
    }


SAME = [_strings, _without_defaults, _other_spellings, _used]


@pytest.mark.parametrize("alter", SAME)
@pytest.mark.parametrize("source", ["", "union"])
def test_files_that_mean_the_same_merge_whatever_their_text(
    pair: Path, alter: Any, source: str
) -> None:
    rewrite(pair / "b", alter)
    result = merge(recipe(pair, "a", "b", **({"tokenizer_source": source} if source else {})))
    for name, value in mean(pair / "a", pair / "b").items():
        torch.testing.assert_close(weights(result.path)[name], value)
    text = "The law of 1789<turn>"
    ours, theirs = (
        AutoTokenizer.from_pretrained(path)(text).input_ids for path in (result.path, pair / "a")
    )
    assert ours == theirs


def _swapped(content: Json) -> None:
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def _fewer_merges(content: Json) -> None:
    content["model"]["merges"].pop()


def _plain_token(content: Json) -> None:
    content["added_tokens"].pop()


def _prefix_space(content: Json) -> None:
    content["pre_tokenizer"]["add_prefix_space"] = True


def _dropout(content: Json) -> None:
    content["model"]["dropout"] = 0.5


@pytest.mark.parametrize(
    ("alter", "where"),
    [
        (_swapped,
         r"model\.vocab\.a \("), (_fewer_merges, r"model\.merges"), (_plain_token, "added_tokens"),
        (_prefix_space, r"pre_tokenizer\.add_prefix_space"), (_dropout, r"model\.dropout"),
    ],
)  # fmt: skip
def test_files_that_mean_something_else_are_refused_at_the_place(
    pair: Path, alter: Any, where: str
) -> None:
    rewrite(pair / "b", alter)
    with pytest.raises(
        CheckpointError, match=f"a and b differ at {where}.*tokenizer_source: union"
    ):
        merge(recipe(pair, "a", "b"))


def test_what_changes_no_id_is_said_and_no_reason_to_refuse(pair: Path) -> None:
    first = {"Sequence": {"id": "A", "type_id": 0}}
    start = {"SpecialToken": {"id": "<end>", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing", "single": [start, first], "pair": [first, first],
        "special_tokens": {"<end>": {"id": "<end>", "ids": [0], "tokens": ["<end>"]}},
    }  # fmt: skip
    rewrite(pair / "b", lambda content: content.update(post_processor=processor))
    result = merge(recipe(pair, "a", "b"))
    assert "the post_processor of b's tokenizer is another; the result has a's" in notes(result)


def test_a_token_that_only_the_settings_name_counts(pair: Path) -> None:
    number = len(tokenizer())
    entry = {
        "content": "<tool>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }
    decoder = {str(number): entry}
    change(pair / "b", "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(CheckpointError, match="a and b differ at added_tokens"):
        merge(recipe(pair, "a", "b"))
    # In a's tokenizer.json it means the same as in b's settings.
    rewrite(pair / "a", lambda content: content["added_tokens"].append(entry | {"id": number}))
    merge(recipe(pair, "a", "b"))


def _grown(path: Path, seed: int, extra: list[str], special: list[str], size: int = 320) -> None:
    tokens = tokenizer(size)
    tokens.add_special_tokens(
        {"additional_special_tokens": [AddedToken(t, normalized=False) for t in special]}
    )
    tokens.add_tokens(extra)
    put(path, seed, tokens=tokens)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_a_union_loads_and_gives_every_token_of_both_its_own_row(
    tmp_path: Path, order: tuple[str, str]
) -> None:
    # a: tokens added behind a short vocabulary; b: a longer vocabulary, so its learned tokens lie
    # where a's added ones do.
    _grown(tmp_path / "a", 0, ["zebra", "1789"], ["<tool>"])
    put(tmp_path / "b", 1, tokens=tokenizer(340, special=(*SPECIAL, "<think>")))
    result = merge(recipe(tmp_path, *order, tokenizer_source="union"))
    loaded = Tokenizer.from_file(str(result.path / "tokenizer.json"))
    ids = loaded.get_vocab(with_added_tokens=True)
    parts = {
        name: Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).get_vocab()
        for name in "ab"
    }
    assert set(ids) == set(parts["a"]) | set(parts["b"])
    assert len(set(ids.values())) == len(ids)
    assert all(ids[token] == number for token, number in parts[order[0]].items())
    rows = weights(result.path)[EMBEDDING]
    own = {name: weights(tmp_path / name)[EMBEDDING] for name in "ab"}
    for token, number in ids.items():
        having = [own[name][parts[name][token]] for name in "ab" if token in parts[name]]
        truth = torch.stack(having).mean(0)
        # the first is the base: others borrow its row
        if len(having) == 1 and token in parts[order[0]]:
            truth = having[0]
        torch.testing.assert_close(rows[number], truth)
    text = "The zebra of 1789<tool> and <think> so"
    assert loaded.decode(loaded.encode(text).ids, skip_special_tokens=False) == text
    AutoModelForCausalLM.from_pretrained(result.path)


def test_a_union_with_merges_as_strings_loads(tmp_path: Path) -> None:
    put(tmp_path / "a", 0)
    _grown(tmp_path / "b", 1, ["zebra"], [])
    rewrite(tmp_path / "b", _strings)
    result = merge(recipe(tmp_path, "a", "b", tokenizer_source="union"))
    assert "zebra" in Tokenizer.from_file(str(result.path / "tokenizer.json")).get_vocab()


def test_a_token_that_is_added_in_one_and_learned_in_the_other_is_one_token(tmp_path: Path) -> None:
    put(tmp_path / "b", 1, tokens=tokenizer(330, text="zebra zebras zoo zeal " * 50))
    learned = Tokenizer.from_file(str(tmp_path / "b" / "tokenizer.json")).get_vocab()
    assert "zebra" in learned or "Ġzebra" in learned
    _grown(tmp_path / "a", 0, ["zebra", "Ġzebra"], [])
    for order in (("a", "b"), ("b", "a")):
        result = merge(recipe(tmp_path, *order, tokenizer_source="union"), f"{order[0]}_first")
        ids = Tokenizer.from_file(str(result.path / "tokenizer.json")).get_vocab()
        assert set(learned) <= set(ids)
        assert len(set(ids.values())) == len(ids)


# -- other files -----------------------------------------------------------------------------------


def _as_vocab_json(directory: Path) -> None:
    content = read(directory, "tokenizer.json")
    (directory / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in content["model"]["merges"])]
    (directory / "merges.txt").write_text("\n".join(lines))
    (directory / "tokenizer.json").unlink()


def _as_vocab_txt(directory: Path) -> None:
    vocab = read(directory, "tokenizer.json")["model"]["vocab"]
    (directory / "vocab.txt").write_text("\n".join(sorted(vocab, key=lambda token: vocab[token])))
    (directory / "tokenizer.json").unlink()


def _as_sentencepiece(directory: Path) -> None:
    """Write a SentencePiece model: protocol buffers, field 1 a piece with its text (1), score (2)
    and kind (3).
    """
    vocab = read(directory, "tokenizer.json")["model"]["vocab"]
    content = b""
    for token in sorted(vocab, key=lambda token: vocab[token]):
        text = token.encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + b"\0\0\x80\xbf" + b"\x18\x01"
        content += b"\x0a" + bytes([len(piece)]) + piece
    (directory / "tokenizer.model").write_bytes(content + b"\x12\x03\x0a\x01x")
    (directory / "tokenizer.json").unlink()


def _as_tiktoken(directory: Path) -> None:
    vocab = read(directory, "tokenizer.json")["model"]["vocab"]
    letters = Tokenizer.from_file(str(directory / "tokenizer.json")).decoder
    lines = []
    for token, number in vocab.items():
        raw = (
            token.encode()
            if token in SPECIAL
            else letters.decode([token]).encode("utf-8", "surrogateescape")
        )
        if token not in SPECIAL and "�" in letters.decode([token]):
            continue  # half a character: its bytes cannot be had from the decoder
        lines.append(base64.b64encode(raw) + b" " + str(number).encode())
    (directory / "tokenizer.model").write_bytes(b"\n".join(lines))
    (directory / "tokenizer.json").unlink()


FORMS = [_as_vocab_json, _as_vocab_txt, _as_sentencepiece]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("both", [True, False])
def test_vocabularies_in_other_files_are_compared_too(pair: Path, form: Any, both: bool) -> None:
    for name in "ab" if both else "b":
        form(pair / name)
    merge(recipe(pair, "a", "b"), "equal")
    shutil.rmtree(pair / "b")
    put(pair / "b", 1)
    rewrite(pair / "b", _swapped)
    form(pair / "b")
    with pytest.raises(CheckpointError, match=r"a and b differ at token 'a' \(id \d+ and \d+\)"):
        merge(recipe(pair, "a", "b"))


def test_tiktoken_files_that_differ_are_refused_and_equal_ones_merge(pair: Path) -> None:
    for name in "ab":
        _as_tiktoken(pair / name)
    merge(recipe(pair, "a", "b"), "equal")
    file = pair / "b" / "tokenizer.model"
    first, second, *rest = file.read_bytes().splitlines()
    a, b = first.split()[0], second.split()[0]
    file.write_bytes(b"\n".join([b + b" " + first.split()[1], a + b" " + second.split()[1], *rest]))
    with pytest.raises(CheckpointError, match="a and b differ at token"):
        merge(recipe(pair, "a", "b"))


def test_merges_in_text_are_compared_with_those_in_json(pair: Path) -> None:
    _as_vocab_json(pair / "b")
    file = pair / "b" / "merges.txt"
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(CheckpointError, match="differ at merges"):
        merge(recipe(pair, "a", "b"))


def test_a_model_without_a_tokenizer_is_named(pair: Path) -> None:
    (pair / "b" / "tokenizer.json").unlink()
    assert "b has no tokenizer; its token ids are taken to mean what a's mean" in notes(
        merge(recipe(pair, "a", "b"))
    )


def test_base_takes_any_form_and_union_says_what_it_needs(pair: Path) -> None:
    rewrite(pair / "b", _swapped)
    _as_vocab_json(pair / "b")
    result = merge(recipe(pair, "a", "b", tokenizer_source="base"))
    ids = Tokenizer.from_file(str(pair / "a" / "tokenizer.json")).get_vocab()
    theirs = read(pair / "b", "vocab.json")
    rows, a, b = (weights(path)[EMBEDDING] for path in (result.path, pair / "a", pair / "b"))
    for token in ("a", "b", "c"):
        torch.testing.assert_close(rows[ids[token]], (a[ids[token]] + b[theirs[token]]) / 2)
    with pytest.raises(
        CheckpointError, match=r"union needs a tokenizer\.json of every model, b has vocab\.json"
    ):
        merge(recipe(pair, "a", "b", tokenizer_source="union"), "other")


def test_tokenizers_of_different_kinds_and_broken_ones_are_refused_by_name(pair: Path) -> None:
    rewrite(
        pair / "b",
        lambda c: c.update(
            model={"type": "WordLevel", "vocab": c["model"]["vocab"], "unk_token": "a"}
        ),
    )
    with pytest.raises(
        ConfigError, match="no union of tokenizers of different kinds: BPE, WordLevel"
    ):
        merge(recipe(pair, "a", "b", tokenizer_source="union"))
    rewrite(
        pair / "b",
        lambda content: content.update(model={"type": "BPE", "vocab": {}, "merges": [["x", "y"]]}),
    )
    with pytest.raises(CheckpointError, match=r"b/tokenizer\.json cannot be loaded as a tokenizer"):
        merge(recipe(pair, "a", "b"))


# -- padding ---------------------------------------------------------------------------------------


def test_another_row_count_under_one_tokenizer_names_the_remedy_and_it_works(
    tmp_path: Path,
) -> None:
    put(tmp_path / "a", 0, tie_word_embeddings=True)
    put(tmp_path / "b", 1, tie_word_embeddings=True, vocab_size=len(tokenizer()) + 16)
    with pytest.raises(
        CheckpointError, match=r"336 rows in b and 320 in a.*`tokenizer_source: base`"
    ):
        merge(recipe(tmp_path, "a", "b"))
    for first, other in (("a", "b"), ("b", "a")):
        result = merge(recipe(tmp_path, first, other, tokenizer_source="base"), f"from_{first}")
        rows = weights(result.path)[EMBEDDING]
        assert len(rows) == len(weights(tmp_path / first)[EMBEDDING])
        both = (weights(tmp_path / "a")[EMBEDDING] + weights(tmp_path / "b")[EMBEDDING][:320]) / 2
        torch.testing.assert_close(rows[:320], both)


# -- special tokens --------------------------------------------------------------------------------


@pytest.fixture
def speakers(tmp_path: Path) -> Path:
    """Return a folder with a base model and a chat model whose tokenizers number their special
    tokens differently.
    """
    put(tmp_path / "base", 0)
    names = {"bos_token": "<s>", "eos_token": "</turn>", "pad_token": "<pad>"}
    other = tokenizer(special=("<pad>", "<s>", "</turn>", "<end>"), **names)
    other.chat_template = "{% for m in messages %}<turn>{{ m.content }}</turn>{% endfor %}"
    put(tmp_path / "chat", 1, tokens=other, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    change(
        tmp_path / "base",
        "generation_config.json",
        eos_token_id=[0],
        bos_token_id=0,
        temperature=0.6,
    )
    change(
        tmp_path / "chat",
        "generation_config.json",
        eos_token_id=[2, 3],
        bos_token_id=1,
        pad_token_id=0,
    )
    return tmp_path


def test_special_ids_template_and_settings_follow_another_models_tokenizer(speakers: Path) -> None:
    result = merge(recipe(speakers, "base", "chat", tokenizer_source="chat"))
    for name in ("config.json", "generation_config.json"):
        content = read(result.path, name)
        assert content["eos_token_id"] == [2, 3], name  # </turn>, and <end>, where base ends
        assert (content["bos_token_id"], content["pad_token_id"]) == (1, 0), name
    assert read(result.path, "generation_config.json")["temperature"] == 0.6
    loaded = AutoTokenizer.from_pretrained(result.path)
    assert (loaded.eos_token, loaded.pad_token) == ("</turn>", "<pad>")
    assert "<turn>" in loaded.chat_template
    assert "token ids follow the tokenizer of chat" in notes(result)
    assert AutoModelForCausalLM.from_pretrained(result.path).generation_config.eos_token_id == [
        2,
        3,
    ]


def test_under_base_and_union_the_ends_of_all_models_stop_the_result(speakers: Path) -> None:
    for source in ("base", "union"):
        result = merge(recipe(speakers, "base", "chat", tokenizer_source=source), f"by_{source}")
        ids = Tokenizer.from_file(str(result.path / "tokenizer.json")).get_vocab()
        for name in ("config.json", "generation_config.json"):
            assert read(result.path, name)["eos_token_id"] == [ids["<end>"], ids["</turn>"]], (
                source,
                name,
            )
        assert read(result.path, "config.json")["bos_token_id"] == ids["<end>"]


def test_with_one_vocabulary_every_parents_end_stops_the_result(pair: Path) -> None:
    change(pair / "b", "generation_config.json", eos_token_id=[2, 0])
    result = merge(recipe(pair, "a", "b"))
    assert read(result.path, "config.json")["eos_token_id"] == [0, 2]
    assert read(result.path, "generation_config.json")["eos_token_id"] == [0, 2]
    assert "the end tokens of all models united" in notes(result)


def test_other_ids_keep_their_token_or_are_said_to_go(speakers: Path) -> None:
    change(speakers / "base", "config.json", sep_token_id=0, image_token_id=1)
    change(speakers / "base", "generation_config.json", suppress_tokens=[1, 2])
    result = merge(recipe(speakers, "base", "chat", tokenizer_source="chat"))
    config = read(result.path, "config.json")
    assert config["sep_token_id"] == 3  # <end>
    assert config["image_token_id"] is None  # <turn>, which chat's tokenizer has not
    assert "suppress_tokens" not in read(result.path, "generation_config.json")
    assert "image_token_id 1 stands for no token" in notes(result)
    assert "suppress_tokens names tokens of another vocabulary" in notes(result)
