"""Word problems: expressions, results, canonical forms and splits are what they say."""

import itertools
import re
from fractions import Fraction

import numpy as np
import pytest

from agent_forge.data import split_of
from agent_forge.data.synthetic import word_problems
from agent_forge.data.synthetic.word_problems import FORMS, FRAMES, HELD_OUT_FRAMES

SPLITS = ("train", "validation", "search", "test")


def value(expression: str, **letters: Fraction) -> Fraction:
    """Return what Python itself computes, exactly."""
    whole = re.sub(r"\d+", lambda number: f"Fraction({number[0]})", expression)
    return eval(whole, {"Fraction": Fraction, **letters})  # noqa: S307 - Python is the reference


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_result_is_what_python_computes_of_the_expression_and_the_answer_says_it(
    split: str,
) -> None:
    for row in word_problems.rows(300, split, 0):
        question, call, response, answer = (turn["content"] for turn in row["messages"])
        assert value(row["expression"]) == int(row["result"]) >= 2
        assert row["expression"] in call
        assert row["result"] in response
        assert answer == row["answer"]
        assert re.findall(r"\d+", answer) == [row["result"]]
        operands = re.findall(r"\d+", row["expression"])
        spoken = re.findall(r"\d+", question)
        others = [number for number in spoken if number not in operands]
        assert sorted(number for number in spoken if number in operands) == sorted(operands)
        assert len(others) == (row["kind"] == word_problems.ASIDE)
        assert row["result"] not in others


def test_each_form_computes_what_it_says_in_two_steps() -> None:
    numbers = (Fraction(7), Fraction(3), Fraction(11))
    letters = dict(zip("abc", numbers, strict=True))
    for form, definition in FORMS.items():
        first, last = definition.steps(*numbers)
        assert last == value(form, **letters)
        inner = (
            re.search(r"\((.+)\)", form) or re.search(r"\w[*/]\w", form) or re.match(r"...", form)
        )
        assert inner is not None
        assert first == value(inner[0], **letters)


def test_canonical_forms_are_equal_exactly_where_two_problems_compute_the_same() -> None:
    """Two arrangements of three numbers compute the same when they do so for numbers that have
    nothing in common.
    """
    primes = (
        (Fraction(101), Fraction(37), Fraction(59)),
        (Fraction(911), Fraction(17), Fraction(293)),
    )
    seen: dict[str, tuple[Fraction, ...]] = {}
    for form, order in itertools.product(FORMS, itertools.permutations(range(3))):
        results = tuple(
            value(form, **dict(zip("abc", (triple[i] for i in order), strict=True)))
            for triple in primes
        )
        canonical = word_problems.canonical(form, [int(primes[0][i]) for i in order])
        assert seen.setdefault(canonical, results) == results
    assert len(set(seen.values())) == len(seen)


def test_splits_share_no_problem_and_no_words() -> None:
    parts = {split: word_problems.rows(300, split, 0) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        canonicals = [{row["canonical"] for row in parts[split]} for split in (one, other)]
        assert not canonicals[0] & canonicals[1]
    for split, rows in parts.items():
        assert all(split_of(row["canonical"]) == split for row in rows)
        if split != "train":
            assert len({row["canonical"] for row in rows}) == len(rows) == 300
    for part in ("story", "question"):
        texts = [{getattr(frame, part) for frame in frames} for frames in (FRAMES, HELD_OUT_FRAMES)]
        assert not texts[0] & texts[1]
        assert len(texts[0]) == len(FRAMES)
    assert not set(word_problems.ASIDES) & set(word_problems.HELD_OUT_ASIDES)
    assert word_problems.rows(9, "train", 0) == word_problems.rows(9, "train", 0)
    assert word_problems.rows(9, "train", 0) != word_problems.rows(9, "train", 1)


def test_training_and_held_out_frames_have_every_form_and_every_kind() -> None:
    for frames in (FRAMES, HELD_OUT_FRAMES):
        assert {frame.form for frame in frames} == set(FORMS)
    kinds = [row["kind"] for row in word_problems.rows(2000, "train", 0)]
    share = np.mean([kind == word_problems.ASIDE for kind in kinds])
    assert share == pytest.approx(word_problems.ASIDE_SHARE, abs=0.04)  # four standard deviations
    assert set(kinds) == {*map(word_problems.kind_of, FORMS), word_problems.ASIDE}
