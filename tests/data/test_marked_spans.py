"""Marked characters of a turn: which tokens are learned, in ChatML and in other families' templates,
and which marks are refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.core.errors import DataError
from agent_forge.data import rows
from agent_forge.data.chat import encode_chats
from agent_forge.data.dialects import messages
from agent_forge.data.documents import row_text
from agent_forge.data.inspection import inspect_rows
from tests.data.test_chat_formats import gemma, llama2, qwen3

ASKED = {"role": "user", "content": "Why?"}
TEXT = "I'm doing very well, thank you!"


def detail(*spans: tuple[int, int], train: bool = True) -> list[dict[str, Any]]:
    return [{"begin_offset": a, "end_offset": b, "train": train} for a, b in spans]


def learned(tokenizer: PreTrainedTokenizerFast, turns: list[dict[str, Any]]) -> list[str]:
    """Return the pieces of text that are learned."""
    ids, mask = data.encode_chat(tokenizer, turns)
    pieces: list[list[int]] = [[]]
    for token, trained in zip(ids, mask, strict=True):
        if trained:
            pieces[-1].append(token)
        elif pieces[-1]:
            pieces.append([])
    return [tokenizer.decode(piece) for piece in pieces if piece]


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that every span of characters is one of tokens."""
    return data.train_tokenizer([], 264)


def test_the_row_of_axolotls_manual_is_learned_as_it_says(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    marks = [
        *detail((0, 8), train=False), *detail((9, 18)), *detail((19, 30), train=False),
    ]  # fmt: skip
    row = {"conversations": [
        {"from": "system", "value": "You are an AI assistant.", "train": False},
        {"from": "human", "value": "How are you?", "train": True},
        {"from": "assistant", "value": TEXT, "train_detail": marks},
        {"from": "assistant", "value": "Hi there!", "train": True},
    ]}  # fmt: skip
    assert learned(byte_tokenizer, messages(row)) == [
        "How are you?<|im_end|>", TEXT[9:19], "Hi there!<|im_end|>",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [gemma, llama2, qwen3, None])
@pytest.mark.parametrize(
    ("spans", "pieces"),
    [
        ([(0, 3)], ["I'm "]),
        ([(20, 30)], [" thank you!END"]),
        ([(0, 2), (20, 25)], ["I'm", " thank"]),
        ([(0, 30)], ["I'm doing very well, thank you!END"]),
    ],
)
def test_the_end_of_a_turn_is_learned_with_its_last_character(
    make: Callable[[], PreTrainedTokenizerFast] | None,
    byte_tokenizer: PreTrainedTokenizerFast,
    spans: list[tuple[int, int]],
    pieces: list[str],
) -> None:
    tokenizer = make() if make else byte_tokenizer
    turn = {"role": "assistant", "content": TEXT, "train_detail": detail(*spans)}
    ends = {gemma: "<end_of_turn>", llama2: " </s>"}.get(make, "<|im_end|>")
    expected = [piece.replace("END", ends) for piece in pieces]
    assert learned(tokenizer, messages({"messages": [ASKED, turn]})) == expected


@pytest.mark.parametrize("make", [gemma, qwen3, None])
def test_marks_change_no_token_and_a_token_that_reaches_into_a_span_is_learned(
    make: Callable[[], PreTrainedTokenizerFast] | None, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = make() if make else tiny_tokenizer
    text = "It is 2. More?\n\n😀 It is more, more."
    for start in range(len(text)):
        for end in range(start, len(text)):
            plain = [ASKED, {"role": "assistant", "content": text}]
            marked = messages(
                {"messages": [ASKED, {**plain[1], "train_detail": detail((start, end))}]}
            )
            (ids, whole), (same, mask) = encode_chats(tokenizer, [plain, marked])
            assert same == ids
            assert not any(part and not full for part, full in zip(mask, whole, strict=True))
            said = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
            # A character of several tokens is learned whole, and no other is lost.
            assert text[start : end + 1].strip() in said


def test_white_space_belongs_to_a_token_whose_offsets_leave_it_out() -> None:
    inner = Tokenizer(models.BPE(vocab={"a": 0, "Ġ": 1, "b": 2, "Ġb": 3}, merges=[("Ġ", "b")]))
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trimmed: Any = processors.ByteLevel(trim_offsets=True)
    inner.pre_tokenizer, inner.post_processor = split, trimmed
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    offsets = inner.encode("a b", add_special_tokens=False).offsets
    assert offsets == [(0, 1), (2, 3)]  # the space is in no token
    from agent_forge.data.marks import reaching

    assert reaching(offsets, [[1, 2]]) == [False, True]
    assert reaching(offsets, [[0, 1]]) == [True, False]
    assert reaching(offsets, [[0, 1]], shift=1) == [False, False]


def test_parts_of_content_are_learned_as_they_are_marked(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    def said(role: str, *parts: dict[str, Any], **marks: Any) -> list[str]:
        content = [{"type": "text", **part} for part in parts]
        turn = {"role": role, "content": content, **marks}
        answer = {"role": "assistant", "content": "ok"}
        return learned(byte_tokenizer, messages({"messages": [turn, answer]}))[:-1]

    wrong, right = {"text": "46? ", "train": False}, {"text": "48."}
    assert said("assistant", wrong, right) == ["48.<|im_end|>"]
    assert said("assistant", right, wrong) == ["48."]
    assert said("assistant", {"text": "a", "weight": 0}, {"text": "b", "weight": 1}) == [
        "b<|im_end|>"
    ]
    assert said("assistant", wrong, right, train=False) == []
    assert said("assistant", wrong, {"text": "x", "mask": True}) == []
    assert said("user", {"text": "a", "train": True}, {"text": "b"}) == ["a"]
    assert said("user", {"text": "a", "train": False}, {"text": "b"}) == []
    assert said("user", wrong, right, train=True) == ["48.<|im_end|>"]


def test_thoughts_and_calls_beside_marked_text_follow_the_kind_of_mark(
    byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    beside = {
        "role": "assistant", "reasoning_content": "I add.",
        "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}],
    }  # fmt: skip
    call = '\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>'
    offsets = {**beside, "content": "Hm. Now:", "train_detail": detail((4, 7))}
    assert learned(byte_tokenizer, messages({"messages": [ASKED, offsets]})) == ["Now:"]
    parts = {**beside, "content": [{"text": "Hm. ", "train": 0}, {"text": "Now:"}]}
    assert learned(byte_tokenizer, messages({"messages": [ASKED, parts]})) == [
        "<think>\nI add.\n</think>\n\n", f"Now:{call}",
    ]  # fmt: skip


def test_a_tools_result_is_marked_inside_its_tags(byte_tokenizer: PreTrainedTokenizerFast) -> None:
    for content, place in (("sum: 48", 5), (" <tool_response>48</tool_response>", 16)):
        turn = {"role": "tool", "content": content, "train_detail": detail((place, place + 1))}
        answer = {"role": "assistant", "content": "48", "train": False}
        assert learned(byte_tokenizer, messages({"messages": [turn, answer]})) == ["48"]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"train_detail": {"begin_offset": 0}}, "turn 2, 'train_detail' is a list, got a dict"),
        ({"train_detail": detail((0, 31))}, "end_offset 31 do not lie in a text of 31 characters"),
        ({"train_detail": detail((5, 4))}, "begin_offset 5 and end_offset 4"),
        ({"train_detail": detail((-1, 4))}, "begin_offset -1"),
        ({"train_detail": [{"begin_offset": 0.5, "end_offset": 2, "train": True}]}, "0.5"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 2}]}, "entry 1: an entry has"),
        ({"train_detail": [{**detail((0, 1))[0], "train": 2}]}, "'train' is 2"),
        ({"train_detail": [*detail((0, 4)), *detail((4, 9), train=False)]},
         "entry 2 contradicts an entry before it"),
        ({"train_detail": [], "training_detail": []}, "train_detail and training_detail; keep one"),
        ({"train_detail": detail((0, 1)), "content": [{"text": "ab", "train": True}]},
         "train_detail and the parts of its content"),
        ({"content": [{"text": "ab", "train": 0.5}]}, "'train' is 0.5"),
        ({"from": "function_call", "content": '{"name": "f", "arguments": {"a":1}}',
          "train_detail": detail((0, 1))}, "its text is written anew"),
    ],
)  # fmt: skip
def test_marks_that_cannot_be_followed_are_refused(turn: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        messages({"messages": [ASKED, {"role": "assistant", "content": TEXT, **turn}]})


def test_marked_thoughts_are_followed_where_the_template_keeps_them() -> None:
    """The template drops the thoughts of earlier turns, and then what is marked in them alone."""
    text = "<think>\nIt is 2.\n</think>\n\nMore. Two."
    place = text.index("Two")
    for spans, expected, later in (
        ([(place, place + 3)], ["Two.<|im_end|>"], "Two.<|im_end|>"),
        ([(8, 9)], ["It"], None),
        ([(8, 9), (place, place + 3)], ["It", "Two.<|im_end|>"], None),
        ([(0, 9)], ["<think>\nIt"], None),
        ([(8, len(text) - 1)], [f"{text[8:]}<|im_end|>"], "More. Two.<|im_end|>"),
        ([(0, len(text) - 1)], [f"{text}<|im_end|>"], "More. Two.<|im_end|>"),
    ):
        turn = {"role": "assistant", "content": text, "train_detail": detail(*spans)}
        pieces = learned(qwen3(), messages({"messages": [ASKED, turn]}))
        assert [piece.strip() for piece in pieces] == expected
        again = messages({"messages": [ASKED, turn, ASKED, {"role": "assistant", "content": "2"}]})
        if later is None:
            with pytest.raises(DataError, match=r"template (drops|leaves out)"):
                data.encode_chat(qwen3(), again)
        else:
            assert learned(qwen3(), again)[0].strip() == later


def test_only_the_last_turn_is_counted_and_only_where_it_is_marked(
    tmp_path: Path, byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    answer = {"role": "assistant", "content": TEXT}
    last = {**answer, "train_detail": detail((0, 2))}
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [ASKED, answer, ASKED, last]}))
    trained = [
        inspect_rows([str(tmp_path / "a.jsonl")], byte_tokenizer, 1, last_turn=last_turn)
        for last_turn in (False, True)
    ]
    assert [one["trained_tokens"] for one in trained] == [len(TEXT) + 1 + 3, 3]
    assert [part["text"] for part in trained[1]["masks"][0] if part["trained"]] == ["I'm"]
    with pytest.raises(DataError, match=r"use data\.rows"):
        row_text({"messages": [ASKED, last]})
    assert rows.is_learned(messages({"messages": [last]}), ("assistant",))
