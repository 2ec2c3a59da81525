"""Pairs of answers in the forms that people publish them."""

import json
from pathlib import Path
from typing import Any

import pytest

from agent_forge.core.errors import DataError
from agent_forge.data.preferences import pair_of, read
from agent_forge.data.rows import last_turn_alone

ASK = {"role": "user", "content": "Hi?"}
GOOD = {"role": "assistant", "content": "Hello."}
BAD = {"role": "assistant", "content": "What."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."},
        {"question": "Hi?", "chosen": "Hello.", "rejected": "What."},
        {"instruction": "Hi?", "input": "", "chosen": "Hello.", "rejected": "What."},
        {"prompt": [ASK], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"prompt": "Hi?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {
            "conversations": [{"from": "human", "value": "Hi?"}],
            "chosen": {"from": "gpt", "value": "Hello."},
            "rejected": {"from": "gpt", "value": "What."},
        },
        {"messages": [ASK], "chosen": "Hello.", "rejected": "What."},
    ],
)
def test_every_form_gives_the_same_two_conversations(row: dict[str, Any]) -> None:
    pair = pair_of(row)
    assert (pair.chosen, pair.rejected, pair.prompt_turns) == ([ASK, GOOD], [ASK, BAD], 1)


def test_tools_and_system_texts_stand_before_both_answers() -> None:
    tool = {"name": "now", "description": "Time.", "parameters": {}}
    row = {"messages": [ASK], "chosen": "Hello.", "rejected": "What.", "system": "Be kind.",
           "tools": [tool]}  # fmt: skip
    pair = pair_of(row)
    assert pair.prompt_turns == 2
    for turns in (pair.chosen, pair.rejected):
        assert turns[0]["content"] == "Be kind."
        assert turns[0]["tools"][0]["function"]["name"] == "now"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi?", "chosen": "a"}, "rejected is missing"),
        ({"prompt": "Hi?", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "Hi?", "chosen": "a", "rejected": "b", "margin": 2}, "unknown key 'margin'"),
        ({"chosen": [ASK, GOOD], "rejected": [BAD]}, "same turns"),
        ({"chosen": "a", "rejected": "b"}, "has a question beside it"),
    ],
)
def test_what_is_not_a_pair_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        pair_of(row)


def test_pairs_of_one_prompt_are_in_one_split_and_a_fault_names_its_row(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Question {i}?", "chosen": f"yes {k}", "rejected": "no"}
        for i in range(60)
        for k in range(2)
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    splits = [read([str(file)], split) for split in ("train", "validation", "search", "test")]
    assert sum(map(len, splits)) == len(rows)
    prompts = [{pair.chosen[0]["content"] for pair in part} for part in splits]
    assert sum(map(len, prompts)) == 60
    file.write_text(json.dumps({"prompt": "a", "chosen": "b"}))
    with pytest.raises(DataError, match=r"preferences.rows: .*pairs.jsonl.*rejected is missing"):
        read([str(file)], "train")


def test_of_rows_only_the_last_learned_turn_is_learned() -> None:
    turns = [ASK, GOOD, ASK, {**BAD, "learn": False}]
    assert [turn["learn"] for turn in last_turn_alone(turns, ("assistant",))] == [
        False, True, False, False,
    ]  # fmt: skip
    assert [turn["learn"] for turn in last_turn_alone([ASK, GOOD, ASK, BAD], ("assistant",))] == [
        False, False, False, True,
    ]  # fmt: skip
