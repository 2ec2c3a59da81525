"""Chats in the formats of other families: their own template, their BOS, their ends of turn, and no
markers as text.
"""

import logging
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.core.errors import DataError
from agent_forge.data.chat import chat_format, encode_chats
from agent_forge.data.chat_template import CHAT_TEMPLATE, with_tools

GEMMA = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not "
    "supported') }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must "
    "alternate') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{%- "
    "endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"
)
LLAMA2 = (
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{%- "
    "endif %}{%- endfor %}"
)
# Drops thoughts of all turns but the last, lists tools and asks for calls between our tags, as Qwen
# 3 does.
QWEN3 = (
    "{%- if tools %}{{ '<|im_start|>system\n' }}{%- if messages[0].role == 'system' %}{{ "
    "messages[0].content + '\n\n' }}"
    "{%- endif %}{{ '# Tools\n<tools>' }}{%- for tool in tools %}{{ '\n' + (tool | tojson) }}{%- "
    "endfor %}"
    "{{ '\n</tools>\nAnswer with <tool_call></tool_call>.<|im_end|>\n' }}{%- elif messages[0].role "
    "== 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}{%- set content = message.content %}{%- if message.role == "
    "'assistant' %}"
    "{%- if '</think>' in content %}"
    "{%- set thoughts = content.split('</think>')[0].rstrip('\n').split('<think>')[-1]"
    ".lstrip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- if loop.last %}"
    "{%- set content = '<think>\n' + thoughts.strip('\n') + '\n</think>\n\n' + content %}{%- endif "
    "%}{%- endif %}"
    "{{ '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}"
    "{%- elif message.role != 'system' %}{{ '<|im_start|>' + message.role + '\n' + content + "
    "'<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
TURNS = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "It is 2."}]
LONG = [{"role": "system", "content": "Be brief."}, *TURNS, {"role": "user", "content": " More?\n"},
        {"role": "assistant", "content": "<tool_call>{}</tool_call>"},
        {"role": "tool", "content": "<tool_response>3</tool_response>"},
        {"role": "assistant", "content": "3"}]  # fmt: skip


def tokenizer(
    template: str | None, special: tuple[str, ...], *, adds_bos: bool = False, **names: Any
) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = split
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = "Two? It is 2. More? User: Assistant: Be brief. model user assistant " * 9
    inner.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    if adds_bos:
        bos = names["bos_token"]
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    wrapped.chat_template = template
    return wrapped


def gemma() -> PreTrainedTokenizerFast:
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    return tokenizer(
        GEMMA, special, adds_bos=True, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )


def qwen3() -> PreTrainedTokenizerFast:
    return tokenizer(QWEN3, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")


def llama2() -> PreTrainedTokenizerFast:
    return tokenizer(LLAMA2, ("<s>", "</s>"), adds_bos=True, bos_token="<s>", eos_token="</s>")


def learned_text(tok: PreTrainedTokenizerFast, messages: list[dict[str, Any]]) -> str:
    ids, mask = data.encode_chat(tok, messages)
    return str(tok.decode([i for i, m in zip(ids, mask, strict=True) if m]))


@pytest.mark.parametrize("make", [gemma, llama2, qwen3])
def test_turns_are_those_of_the_models_own_template(make: Any) -> None:
    tok = make()
    for messages in (TURNS, [*TURNS, *TURNS]):
        ids, mask = data.encode_chat(tok, messages)
        assert (
            ids == tok.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        )
        assert 0 < sum(mask) < len(mask)
        prompt = data.encode_prompt(tok, messages[:-1])
        assert (
            prompt
            == tok.apply_chat_template(
                messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=True
            )["input_ids"]
        )
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)]  # learned from the very first token that the model is to say
        assert not mask[len(prompt) - 1]


@pytest.mark.parametrize(
    ("make", "learned"),
    [(gemma, "It is 2.<end_of_turn>"), (llama2, " It is 2. </s>"), (qwen3, "It is 2.<|im_end|>")],
)
def test_the_templates_own_end_of_turn_is_trained_and_stops(make: Any, learned: str) -> None:
    tok = make()
    assert learned_text(tok, TURNS).strip() == learned.strip()
    end = tok.convert_tokens_to_ids(learned.rpartition("<")[1] + learned.rpartition("<")[2])
    assert end in data.stop_ids(tok)
    assert data.turn_end(tok) == [end]

    class Model:
        generation_config = GenerationConfig(eos_token_id=[3, 5])
        config = None

    assert {3, 5, end} <= set(data.stop_ids(tok, Model()))


def test_a_template_without_system_and_tool_turns_gets_them_as_the_users() -> None:
    tok = gemma()
    ids, _ = data.encode_chat(tok, LONG)
    assert tok.decode(ids) == (
        "<bos><start_of_turn>user\nBe brief.\n\nTwo?<end_of_turn>\n<start_of_turn>model\nIt is "
        "2.<end_of_turn>\n"
        "<start_of_turn>user\nMore?<end_of_turn>\n<start_of_turn>model\n"
        "<tool_call>{}</tool_call><end_of_turn>\n"
        "<start_of_turn>user\n<tool_response>3</tool_response><end_of_turn>\n"
        "<start_of_turn>model\n3<end_of_turn>\n"
    )
    assert (
        learned_text(tok, LONG)
        == "It is 2.<end_of_turn><tool_call>{}</tool_call><end_of_turn>3<end_of_turn>"
    )
    # one that would drop them in silence
    assert "Be brief." in tok.decode(data.encode_chat(llama2(), LONG)[0])


@pytest.mark.parametrize("make", [gemma, llama2, qwen3])
def test_nobody_forges_a_control_token(make: Any) -> None:
    tok = make()
    control = {token for token, added in tok.added_tokens_decoder.items() if added.special}
    forged = " ".join(tok.convert_ids_to_tokens(sorted(control)))
    plain, _ = data.encode_chat(tok, [{"role": "user", "content": "x"}, TURNS[1]])
    ids, _ = data.encode_chat(tok, [{"role": "user", "content": forged}, TURNS[1]])
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert forged in tok.decode(ids)


def test_a_tokenizer_without_turns_gets_words_and_never_markers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tok = tokenizer(None, ("<|endoftext|>",), bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    with caplog.at_level(logging.WARNING):
        ids, _ = data.encode_chat(tok, TURNS)
        data.encode_chat(tok, TURNS)
    assert [record.message.count("no chat template") for record in caplog.records] == [1]
    assert tok.decode(ids) == "User: Two?\nAssistant: It is 2.<|endoftext|>\n"
    assert learned_text(tok, TURNS) == " It is 2.<|endoftext|>"
    assert ids[: len(data.encode_prompt(tok, TURNS[:1]))] == data.encode_prompt(tok, TURNS[:1])
    assert data.stop_ids(tok) == data.turn_end(tok) == [tok.eos_token_id]
    with pytest.raises(DataError, match="no turn could end"):
        data.encode_chat(tokenizer(None, ("<x>",)), TURNS)


def test_chatml_tokens_without_a_template_are_used_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tok = tokenizer(None, ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    with caplog.at_level(logging.WARNING):
        ids, _ = data.encode_chat(tok, TURNS)
    assert "no chat template" in caplog.text
    tok.chat_template = CHAT_TEMPLATE
    assert tok.apply_chat_template(TURNS, return_dict=True)["input_ids"] == ids
    assert not chat_format(tok).note


def test_a_template_that_ends_no_answer_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    endless = (
        "{%- for message in messages %}{{ message.role + ': ' + message.content + '\n' }}"
        "{%- endfor %}"
    )
    tok = tokenizer(endless, ("</s>",), eos_token="</s>")
    with caplog.at_level(logging.WARNING):
        assert learned_text(tok, TURNS).strip() == "It is 2."
        data.encode_chat(tok, TURNS)
    assert [record.message for record in caplog.records] == [
        "the model's chat template writes no special token after an answer, so no end is trained: "
        "an answer ends with </s>"
    ]
    assert chat_format(llama2()).note == ""


@pytest.mark.parametrize("template", [None, CHAT_TEMPLATE])
def test_bos_stands_before_a_chat_where_the_tokenizer_puts_it(template: str | None) -> None:
    special = ("<s>", "<|im_start|>", "<|im_end|>")
    tok = tokenizer(template, special, adds_bos=True, bos_token="<s>", eos_token="<|im_end|>")
    for ids in (data.encode_chat(tok, TURNS)[0], data.encode_prompt(tok, TURNS[:1])):
        assert ids[0] == tok.bos_token_id
        assert ids.count(tok.bos_token_id) == 1
    (ids, mask), _ = encode_chats(tok, [TURNS, TURNS])
    assert len(ids) == len(mask)
    assert not mask[0]


def test_thoughts_are_learned_where_the_template_keeps_them() -> None:
    tok = qwen3()
    thinking = {"role": "assistant", "content": "<think>\nTwo.\n</think>\n\n2"}
    assert learned_text(tok, [TURNS[0], thinking]) == "<think>\nTwo.\n</think>\n\n2<|im_end|>"
    twice = [TURNS[0], thinking, TURNS[0], thinking]
    assert learned_text(tok, twice) == "2<|im_end|><think>\nTwo.\n</think>\n\n2<|im_end|>"
    assert (
        data.encode_chat(tok, twice)[0]
        == tok.apply_chat_template(twice, return_dict=True)["input_ids"]
    )


def test_tools_are_listed_as_the_template_lists_them_when_it_asks_for_our_calls() -> None:
    tool = {
        "type": "function",
        "function": {"name": "add", "description": "Adds.", "parameters": {}},
    }
    messages = [{"role": "system", "content": "", "tools": [tool]}, *TURNS]
    tok = qwen3()
    ids, _ = data.encode_chat(tok, messages)
    assert ids == tok.apply_chat_template(TURNS, tools=[tool], return_dict=True)["input_ids"]
    assert "You may call these tools" in tok.decode(data.encode_chat(gemma(), messages)[0])
    ours = tokenizer(CHAT_TEMPLATE, ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>")
    for system in ("", "Be brief."):
        listed = [{"role": "system", "content": system, "tools": [tool]}, *TURNS]
        plain = [{"role": "system", "content": system}, *TURNS] if system else TURNS
        assert (
            data.encode_chat(ours, listed)[0]
            == ours.apply_chat_template(plain, tools=[tool], return_dict=True)["input_ids"]
        )
        assert with_tools(listed)[0]["content"].startswith(system)


def test_our_template_keeps_line_ends_and_takes_calls_without_content(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tiny_tokenizer = tokenizer(
        CHAT_TEMPLATE, ("<|im_start|>", "<|im_end|>"), eos_token="<|im_end|>"
    )
    call = {
        "id": "1",
        "type": "function",
        "function": {"name": "add", "arguments": {"a": "</tool_call>é"}},
    }
    written = '<tool_call>{"name": "add", "arguments": {"a": "\\u003c/tool_call>é"}}</tool_call>'
    second = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    for content in ({}, {"content": None}, {"content": ""}):
        messages = [
            TURNS[0],
            {"role": "assistant", **content, "tool_calls": [call, second]},
            {"role": "tool", "content": "3"},
        ]
        text = tiny_tokenizer.apply_chat_template(messages, tools=[{"name": "add"}], tokenize=False)
        assert text == (
            '<|im_start|>system\nYou may call these tools: <tools>[{"name": "add"}]</tools>'
            "<|im_end|>\n"
            f"<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n{written}\n"
            '<tool_call>{"name": "now", "arguments": {}}</tool_call><|im_end|>\n'
            "<|im_start|>tool\n<tool_response>3</tool_response><|im_end|>\n"
        )
    said = tiny_tokenizer.apply_chat_template(
        [{"role": "assistant", "content": "Let me see.", "tool_calls": [call]}], tokenize=False
    )
    assert said == f"<|im_start|>assistant\nLet me see.\n{written}<|im_end|>\n"


def test_windows_begin_with_bos_once_where_the_tokenizer_puts_it(
    tmp_path: Any, data_config: Any
) -> None:
    from dataclasses import replace

    import numpy as np

    tok = gemma()
    source = data.TextSource(replace(data_config, cache=str(tmp_path)), tok, "train")
    generator = np.random.default_rng(0)
    drawn = [source.take(generator, 24)[0] for _ in range(50)] + list(source.windows(24, 40))
    drawn += [
        source.take_at(position, 24, 0)[0] for position in range(len(source.tokens) // 23 - 1)
    ]
    for ids in drawn:
        assert len(ids) == 24
        assert ids[0] == tok.bos_token_id
        assert ids[1] != tok.bos_token_id
    for number, ids in enumerate(source.windows(24, 10**6)):
        text = source.tokens[number * 23 : number * 23 + 24].tolist()
        assert ids.tolist() == (
            text if text[0] == tok.bos_token_id else [tok.bos_token_id, *text[:23]]
        )


def test_a_packed_model_stops_where_its_files_say(tmp_path: Any) -> None:
    from types import SimpleNamespace

    from agent_forge.runtime import causal, talker

    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert talker.stored_ends(tmp_path) == 7
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [8, 9]}')
    packed = SimpleNamespace(shape=SimpleNamespace(longest=64, vocabulary=400))
    model = causal.PackedCausalLM(packed, talker.stored_ends(tmp_path))  # type: ignore[arg-type]
    assert {8, 9} <= set(data.stop_ids(qwen3(), model))


@pytest.mark.parametrize("end", [False, True])
def test_a_first_token_that_is_not_named_bos_begins_windows_and_chats_too(end: bool) -> None:
    """Some tokenizers put the end of text before every text and name no bos_token."""
    tok = gemma()
    first = tok.convert_tokens_to_ids("<bos>")
    pieces = "<bos> $A <eos>" if end else "<bos> $A"
    tok.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=pieces, special_tokens=[(name, tok.convert_tokens_to_ids(name)) for name in
                                       ("<bos>", "<eos>")],
    )  # fmt: skip
    tok.bos_token, tok.chat_template = None, None
    assert tok.bos_token_id is None
    assert data.window_prefix(tok) == [first]
    ids, mask = data.encode_chat(tok, TURNS)
    assert ids[0] == first
    assert ids.count(first) == 1
    assert not mask[0]
