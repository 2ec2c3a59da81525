"""The benches of thoughts: controls that differ in the thought alone, and peers that think alike."""

from collections import Counter

from transformers import PreTrainedTokenizerFast

from agent_forge.data.synthetic import rationales
from scripts.bench import thinking, thought_proof


def test_every_way_teaches_the_same_questions_and_answers(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = rationales.rows(60, "train", 1)
    for way in thought_proof.WAYS:
        lesson = thought_proof.taught(way, rows, tiny_tokenizer, 0)
        for row, shown in zip(rows, lesson, strict=True):
            assert shown["messages"][0] == row["messages"][0]
            assert shown["messages"][1]["content"].split()[-1] == row["answer"]
            assert shown["answer"] == row["answer"]


def test_pause_tokens_are_as_many_as_the_thoughts_tokens(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = rationales.rows(40, "train", 1)
    paused = thought_proof.taught(thought_proof.PAUSED, rows, tiny_tokenizer, 0)
    for row, shown in zip(rows, paused, strict=True):
        tokens = tiny_tokenizer.encode(row["thought"], add_special_tokens=False)
        assert shown["thought"] == thought_proof.PAUSE * len(tokens)


def test_shuffled_thoughts_are_those_of_other_questions_of_the_kind() -> None:
    rows = rationales.rows(120, "train", 1)
    thoughts = thought_proof.shuffled(rows, 0)
    assert thoughts == thought_proof.shuffled(rows, 0)
    for kind in {row["kind"] for row in rows}:
        places = [i for i, row in enumerate(rows) if row["kind"] == kind]
        own = Counter(rows[i]["thought"] for i in places)
        assert Counter(thoughts[i] for i in places) == own
        assert all(thoughts[i] != rows[i]["thought"] or own[thoughts[i]] > 1 for i in places)


def test_the_majority_answers_and_of_equals_the_first() -> None:
    assert thought_proof.majority(["4", "5", "5"]) == "5"
    assert thought_proof.majority(["7", "4", "4", "7"]) == "7"


def test_both_ways_of_thinking_give_the_same_tokens_and_losses() -> None:
    """The bench itself refuses sides that differ; the ratio of a smoke run says nothing."""
    result = thinking.run(["--smoke"])
    assert [figure.claim.split(" against")[0] for figure in result.figures] == [
        "generation", "a training step",
    ]  # fmt: skip
    assert all((figure.figure or 0) > 0 for figure in result.figures)
