"""Random schemas: no split knows another's tools, values are copied exactly, calls fit their
schemas.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from agent_forge.agent import parse_calls
from agent_forge.config.schema import SPLITS
from agent_forge.data import encode_chat
from agent_forge.data.documents import split_of
from agent_forge.data.schemas import canonical, draw, values, wording, words
from agent_forge.data.synthetic import copying, schemas

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[Row]]:
    """Return 160 rows per split."""
    return {split: schemas.rows(160, split, 0) for split in SPLITS}


def declared(row: Row) -> list[dict[str, Any]]:
    """Return the declarations of the tools that a row offers."""
    return [tool["function"] for tool in row["messages"][0]["tools"]]


KEYS: dict[str, Callable[[dict[str, Any]], str]] = {
    "name": lambda tool: canonical.name_key(tool["name"]),
    "wording": lambda tool: canonical.text_key(tool["description"]),
    "structure": lambda tool: draw.structure_key(tool["parameters"]),
}


@pytest.mark.parametrize("key", KEYS)
def test_two_splits_share_no_tool_by_name_wording_or_structure(
    key: str, rows: dict[str, list[Row]]
) -> None:
    forms = {
        split: {KEYS[key](tool) for row in part for tool in declared(row)}
        for split, part in rows.items()
    }
    assert min(map(len, forms.values())) > 20
    for one, other in itertools.combinations(SPLITS, 2):
        assert not forms[one] & forms[other]


def test_every_split_has_objects_of_its_own() -> None:
    counts = Counter(split_of(f"schemas/object/{noun}") for noun in words.OBJECTS)
    assert min(counts[split] for split in SPLITS) >= 10
    assert len(set(words.OBJECTS)) == len(words.OBJECTS)


def test_a_structure_is_the_same_under_other_names_and_in_another_order() -> None:
    one = {
        "properties": {"a": {"type": "integer", "description": "x"}, "b": {"type": "string"}},
        "required": ["b"],
    }
    same = {"properties": {"c": {"type": "string"}, "d": {"type": "integer"}}, "required": ["c"]}
    other = {**same, "required": ["c", "d"]}
    assert draw.structure_key(one) == draw.structure_key(same) != draw.structure_key(other)


def test_the_calls_of_a_row_are_what_its_assistant_writes_and_fit_the_schemas(
    rows: dict[str, list[Row]],
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for row in itertools.chain(*rows.values()):
        turn = row["messages"][row["prompt_turns"]]
        assert turn["role"] == "assistant"
        calls = [{"name": c.name, "arguments": c.arguments} for c in parse_calls(turn["content"])]
        assert calls == row["calls"]
        by_name = {tool["name"]: tool["parameters"] for tool in declared(row)}
        for call in calls:
            jsonschema.validate(call["arguments"], by_name[call["name"]])


def test_kinds_come_in_their_shares_and_a_fifth_to_a_quarter_needs_no_tool() -> None:
    assert 0.2 <= schemas.SHARES["none"] <= 0.25
    assert sum(schemas.SHARES.values()) == pytest.approx(1.0)
    counts = Counter(row["kind"] for row in schemas.rows(600, "train", 3))
    for kind, share in schemas.SHARES.items():
        error = 4 * (share * (1 - share) * 600) ** 0.5
        assert abs(counts[kind] - 600 * share) < error


def test_a_row_of_each_kind_is_what_its_kind_says(rows: dict[str, list[Row]]) -> None:
    by_kind: dict[str, list[Row]] = {}
    for row in rows["train"]:
        by_kind.setdefault(row["kind"], []).append(row)
    assert set(by_kind) == set(schemas.SHARES)
    assert {len(row["calls"]) for row in by_kind["single"]} == {1}
    assert {len(declared(row)) for row in by_kind["single"]} == {1}
    assert min(len(declared(row)) for row in by_kind["multiple"]) >= 2
    assert min(len(row["calls"]) for row in by_kind["parallel"]) >= 2
    for row in by_kind["follow-up"]:
        first = parse_calls(row["messages"][2]["content"])[0].arguments
        (call,) = row["calls"]
        assert sum(first[name] != value for name, value in call["arguments"].items()) == 1
    for row in by_kind["missing"]:
        assert row["calls"] == []
        assert row["messages"][row["prompt_turns"]]["content"].endswith("?")
        assert parse_calls(row["messages"][-1]["content"])
    for row in by_kind["none"]:
        assert row["calls"] == []
        assert not parse_calls(row["messages"][-1]["content"])


def leaves(value: Any) -> Iterator[Any]:
    """Yield the strings and numbers inside a value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from leaves(one)
    else:
        yield value


def test_the_users_words_hold_every_value_of_a_call_to_the_character(
    rows: dict[str, list[Row]],
) -> None:
    for row in rows["train"]:
        text = " ".join(m["content"] for m in row["messages"] if m["role"] == "user")
        for call in row["calls"]:
            for value in leaves(call["arguments"]):
                assert (value if isinstance(value, str) else json.dumps(value)) in text


def test_a_row_teaches_each_turn_of_the_assistant_and_its_end_and_nothing_else(
    rows: dict[str, list[Row]], tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    row = next(row for row in rows["train"] if row["kind"] == "follow-up")
    ids, mask = encode_chat(tiny_tokenizer, row["messages"])
    learned = tiny_tokenizer.decode([i for i, part in zip(ids, mask, strict=True) if part])
    turns = [m["content"] for m in row["messages"] if m["role"] == "assistant"]
    assert learned == "".join(f"{turn}<|im_end|>" for turn in turns)
    others = tiny_tokenizer.decode([i for i, part in zip(ids, mask, strict=True) if not part])
    assert declared(row)[0]["name"] in others


def test_rows_are_the_same_for_the_same_seed_and_held_out_rows_are_distinct() -> None:
    assert schemas.rows(12, "test", 5) == schemas.rows(12, "test", 5)
    assert schemas.rows(12, "test", 5) != schemas.rows(12, "test", 6)
    held = [row["canonical"] for row in schemas.rows(200, "test", 5)]
    assert len(set(held)) == len(held)


# values


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(sorted(values.DRAWS)))
def test_a_value_is_what_its_text_says(seed: int, kind: str) -> None:
    said = values.draw(np.random.default_rng(seed), kind, {})
    if kind in ("integer", "number"):
        assert json.loads(said.text) == said.value
        assert json.dumps(said.value) == said.text
    elif kind == "quoted":
        assert said.text[0] == said.text[-1]
        assert said.text[1:-1] == said.value
    elif kind in values.ARRAYS:
        for one in said.value:
            assert str(one) in said.text
    else:
        assert said.text == said.value


def test_whole_numbers_have_every_length_from_1_to_12_and_both_signs() -> None:
    generator = np.random.default_rng(0)
    drawn = [values.integer(generator).text for _ in range(2000)]
    assert {len(text.lstrip("-")) for text in drawn} == set(range(1, 13))
    assert 0.05 < sum(text.startswith("-") for text in drawn) / 2000 < 0.2


def test_the_copying_task_has_as_many_rows_of_every_kind_of_value() -> None:
    rows = copying.rows(4 * len(copying.KINDS), "test", 0)
    assert set(Counter(row["kind"] for row in rows).values()) == {4}
    assert len({row["canonical"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("name", "schema", "kind"),
    [("a", {"type": "integer"}, "integer"), ("unit", {"type": "string", "enum": ["c"]}, "enum"),
     ("due_date", {"type": "string"}, "date"), ("x", {"type": "string", "format": "email"}, "email"),
     ("userId", {"type": "string"}, "identifier"), ("q", {"type": ["string", "null"]}, "term"),
     ("v", {"type": "array", "items": {"type": "number"}}, "numbers"),
     ("p", {"type": "string", "description": "The city to look in."}, "place")],
)  # fmt: skip
def test_the_kind_of_an_argument_follows_its_type_and_then_its_words(
    name: str, schema: dict[str, Any], kind: str
) -> None:
    assert values.kind_of(name, schema) == kind


def test_numbers_keep_to_the_bounds_of_their_schema() -> None:
    generator = np.random.default_rng(0)
    schema = {"type": "integer", "minimum": 3, "maximum": 5}
    drawn = {values.draw(generator, "integer", schema).value for _ in range(60)}
    assert drawn == {3, 4, 5}


# wording


@pytest.mark.parametrize(
    ("text", "base"),
    [("Returns the sum", "return the sum"), ("Searches the web", "search the web"),
     ("Applies a discount", "apply a discount"), ("Process orders", "process orders"),
     ("Convert money", "convert money"), ("Fixes it", "fix it")],
)  # fmt: skip
def test_a_docstrings_verb_is_brought_to_its_base_form(text: str, base: str) -> None:
    assert wording.base_form(text) == base


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("'km' or 'miles'", ["km", "miles"]),
        ("The currency. [Enum]: USD, EUR, New Taiwan", ["USD", "EUR", "New Taiwan"]),
        ("One of: low, mid, or high.", ["low", "mid", "high"]),
        ("Allowed values are: on/off", ["on", "off"]),
        ("options: a and b (in words)", ["a", "b"]),
        ("the options", []),
        ("One of: any", []),
        ("Options: see https://example.org, please", []),
        ("one of the values, as text", []),
    ],
)
def test_the_names_that_a_description_quotes_or_lists(text: str, options: list[str]) -> None:
    assert wording.named_options(text) == options


def test_the_wordings_of_a_users_tool_come_from_its_description_and_its_name() -> None:
    declaration = {
        "name": "getWeather",
        "description": "Returns the weather for a city. Uses an online service.",
        "parameters": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    }
    assert set(wording.actions_of(declaration)) == {
        "get weather", "return the weather for a city", "return the weather for {city}",
    }  # fmt: skip
    said = {"city": values.SpokenValue("Lima", "Lima"), "days": values.SpokenValue(3, "3")}
    generator = np.random.default_rng(0)
    phrases = wording.phrases_of(declaration)
    texts = [
        wording.question(generator, wording.actions_of(declaration), phrases, said)
        for _ in range(40)
    ]
    assert len(set(texts)) > 20
    assert all("Lima" in text and "3" in text for text in texts)


def test_held_out_questions_are_phrased_as_no_training_question() -> None:
    generator = np.random.default_rng(0)
    said = {"size": values.SpokenValue("big", "big")}
    texts = {
        held: {
            wording.question(generator, ["print a map"], {"size": ["size"]}, said, held_out=held)
            for _ in range(300)
        }
        for held in (False, True)
    }
    assert not texts[False] & texts[True]


def test_questions_that_are_known_are_left_out_whatever_their_signs() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Add 3 and 4!"}]},
        {"messages": [{"role": "user", "content": "Add 3 and 5."}]},
    ]
    known = canonical.question_key([{"role": "user", "content": "add 3 and 4"}])
    fresh, refused = canonical.without_known(rows, [known])
    assert refused == 1
    assert fresh == rows[1:]


@pytest.mark.parametrize(
    ("name", "description", "arguments", "action"),
    [("is_prime", "Checks whether a number is prime.", {"number": "integer"}, "is {number} prime"),
     ("convert", "", {"amount": "number", "currency": "string", "to": "string"},
      "convert {amount} {currency} to {to}"),
     ("book_table", "", {"people": "integer", "date": "string"}, "book {people} on {date}"),
     ("getWeather", "", {"city": "string"}, "get the weather in {city}"),
     ("greet", "", {"first": "string", "last": "string"}, "greet {first} {last}")],
)  # fmt: skip
def test_short_wordings_weave_the_arguments_in(
    name: str, description: str, arguments: dict[str, str], action: str
) -> None:
    parameters = {
        "properties": {key: {"type": kind} for key, kind in arguments.items()},
        "required": list(arguments),
    }
    declaration = {"name": name, "description": description, "parameters": parameters}
    assert wording.compact_actions(declaration) == [action]
