"""Text of an answer in pieces: the pieces are the whole, and none has to be taken back."""

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from agent_forge.agent.calls import text_without_calls
from agent_forge.agent.text_stream import Detokeniser, SpeechSplitter, StopStrings
from agent_forge.agent.turn import decode_reply
from agent_forge.data import call_dialects
from tests import tiny_families

TEXTS = (
    "Grüße, 東京! 👩‍👩‍👧‍👦 🇪🇺 naïve",
    "  leading and trailing  ",
    "a <|im_end|> control token <tool_call>{}</tool_call>",
    "",
)


def streamed(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int]) -> list[str]:
    words = Detokeniser(tokenizer)
    return [*map(words.push, tokens), words.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_a_byte_level_tokenizer_are_its_whole_text(
    text: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokens = tiny_tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tiny_tokenizer, tokens)
    assert "".join(pieces).strip() == decode_reply(tiny_tokenizer, tokens)
    assert not any("\ufffd" in piece for piece in pieces)
    assert sum(bool(piece) for piece in pieces) >= len(text.split()) / 2  # not all at the end


def test_bytes_that_never_become_a_character_come_as_the_tokenizer_decodes_them(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tokens = tiny_tokenizer.encode("東a京", add_special_tokens=False)
    for part in (tokens[:1], tokens[:2], tokens[1:], [tokens[0], *tokens[3:], tokens[0]]):
        assert "".join(streamed(tiny_tokenizer, part)) == tiny_tokenizer.decode(part)


def test_bytes_of_a_sentence_piece_tokenizer_wait_for_their_character() -> None:
    vocabulary = {
        "<unk>": 0,
        "▁a": 1,
        "b": 2,
        **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)},
    }
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    tokens = [1, *(3 + byte for byte in "é€".encode()), 2, 1]
    assert streamed(tokenizer, tokens) == ["a", "", "é", "", "", "€", "b", " a", ""]
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_a_decoder_that_mends_spaces_is_given_time_to(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    cleaning = copy.deepcopy(tiny_tokenizer)
    cleaning.clean_up_tokenization_spaces = True
    tokens = cleaning.encode("we do n't , you ' re . it 's so ! x" * 3, add_special_tokens=False)
    assert "".join(streamed(cleaning, tokens)) == cleaning.decode(tokens)


@given(
    st.text(alphabet="abc", max_size=12),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=3), max_size=3),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_cuts_the_same_place_in_any_pieces_and_leaks_no_beginning(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    whole = text[: min(ends)[1]] if ends else text
    stream, pieces, place = StopStrings(stops), [], 0
    while place < len(text):
        size = data.draw(st.integers(1, len(text) - place))
        pieces.append(stream.push(text[place : place + size]))
        place += size
        assert whole.startswith("".join(pieces))
    assert "".join(pieces) + stream.end() == whole
    assert bool(stream.matched) == bool(ends)


def split(texts: Sequence[str], *, thinking: bool = False) -> tuple[str, str]:
    """Return the text and the thoughts of a message that comes in pieces."""
    splitter = SpeechSplitter(thinking=thinking)
    events = [event for text in texts for event in splitter.push(text)] + splitter.end()
    said, thought = (
        "".join(text for kind, text in events if kind == which) for which in ("text", "thought")
    )
    return said, thought


CALL = '<tool_call>{"name": "f", "arguments": {"x": "a</tool_call>"}}</tool_call>'


@pytest.mark.parametrize(
    ("text", "said", "thought"),
    [
        ("Hello there.", "Hello there.", ""),
        (" \n Hello \n", "Hello", ""),
        ("<think>\nlet me see\n</think>\n\nIt is 2.", "It is 2.", "let me see"),
        ("<think>cut off", "", "cut off"),
        (f"I look it up. {CALL}", "I look it up.", ""),
        (f"{CALL}\n{CALL} and more", "and more", ""),
        (f"say `{CALL}` or not", f"say `{CALL}` or not", ""),
        (f"<think>maybe {CALL}?</think>{CALL}", "", f"maybe {CALL}?"),
        ("a < b and <tool_ is no tag", "a < b and <tool_ is no tag", ""),
        ("write `<think>` in ticks", "write `<think>` in ticks", ""),
        ("<tool_call>{broken", "", ""),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_message_in_pieces_is_split_into_text_and_thoughts(
    text: str, said: str, thought: str, size: int
) -> None:
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert split(pieces) == (said, thought)
    if "<think>" not in text:
        assert said == text_without_calls(text)


def test_thoughts_that_the_prompt_opened_end_at_their_closing_tag() -> None:
    assert split(["so ", "2</th", "ink>\n\nIt is 2."], thinking=True) == ("It is 2.", "so 2")


DIALECTS = {
    "qwen_coder": "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
    "mistral": '[TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]',
    "functiongemma": "<start_function_call>call:f{x:1}<end_function_call>",
    "llama": "[f(x=1)]",
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_calls_of_every_dialect_are_left_out(dialect: str, size: int) -> None:
    assert all(call_dialects.dialect(name).OPENINGS for name in call_dialects.names())
    for text in (f"I look.\n{DIALECTS[dialect]}", "see [1] and {x}, a < b", "<think>so</think>[2]"):
        splitter = SpeechSplitter(dialect=dialect)
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        events = [event for piece in pieces for event in splitter.push(piece)] + splitter.end()
        said = "".join(words for kind, words in events if kind == "text")
        words = call_dialects.dialect(dialect).scan(text).words
        assert said == words.removeprefix("<think>so</think>")


PARTS = (
    "<think>",
    "</think>",
    "`",
    "```",
    CALL,
    "<tool_call>",
    "</tool_call>",
    " ",
    "\n",
    "ab",
    "<",
)


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_any_message_is_split_alike_in_any_pieces(text: str, size: int) -> None:
    assert split([text[i : i + size] for i in range(0, len(text), size)]) == split([text])


def test_other_families_tokenizers_stream_their_own_text() -> None:
    tokenizer = tiny_families.tokenizer()
    tokens = tokenizer.encode("The state of the union — é!", add_special_tokens=False)
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)
