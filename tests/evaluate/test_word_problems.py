"""A word problem is right when the calculator really computed the number that the reply says."""

from types import SimpleNamespace
from typing import Any

import pytest

from agent_forge import evaluate
from agent_forge.agent import Call, Turn
from agent_forge.agent import loop as agent_loop
from agent_forge.agent.tool import Result
from agent_forge.evaluate import EvalContext
from agent_forge.evaluate.tasks import word_problems


@pytest.mark.parametrize(
    ("calls", "text", "right"),
    [
        ([("3*12-5", "31", False)], "You have 31 apples.", True),
        ([("3*12", "36", False), ("36-5", "31", False)], "31", True),
        ([("3*12-5", "31", False)], "The calculator ran.", False),
        ([("3*12-5", "31", False)], "You have 310 apples.", False),
        ([("3*12-5", "31", False)], "You have -31 apples.", False),
        ([("12+5", "17", False)], "You have 31 apples.", False),
        ([("31", "31", False)], "You have 31 apples.", False),
        ([("3*12-5", "31", True)], "You have 31 apples.", False),
        ([], "You have 31 apples.", False),
    ],
)
def test_a_word_problem_is_right_when_the_calculator_computed_what_the_reply_says(
    calls: list[tuple[str, str, bool]], text: str, right: bool
) -> None:
    results = [
        Result(Call("calculator", {"expression": expression}), result, error)
        for expression, result, error in calls
    ]
    assert word_problems.is_right({"result": "31"}, Turn(text, results, [], True)) is right
    assert not word_problems.is_right({"result": "31"}, Turn(text, results, [], False))


def test_large_results_of_word_problems_may_be_written_in_groups() -> None:
    call = Call("calculator", {"expression": "(60 + 12) × 20"})
    turn = Turn("It is 1,440 dollars.", [Result(call, "1440")], [], True)
    assert word_problems.is_right({"result": "1440"}, turn)


def test_the_task_lets_the_model_call_the_calculator_and_scores_each_kind(
    data_config: Any, tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for generation calls in the first round and answers in the second; the tool runs."""
    context = EvalContext(data=data_config, seed=0, tokenizer=tiny_tokenizer)
    items = word_problems.items("test", 12, context)
    rounds: list[list[list[int]]] = []

    def generate(_model: Any, prompts: list[list[int]], *_: Any) -> list[list[int]]:
        rounds.append(prompts)
        place = 1 if len(rounds) == 1 else 3
        replies = [row["messages"][place]["content"] for row in items]
        if place == 3:
            replies[0] = "I cannot say."
        return [tiny_tokenizer.encode(reply) for reply in replies]

    monkeypatch.setattr(agent_loop, "models", SimpleNamespace(generate=generate))
    pairs = word_problems.score(tiny_llama, tiny_tokenizer, items, context)
    assert pairs.tolist() == [[0, 1], *[[1, 1]] * 11]
    assert len(rounds) == 2
    assert evaluate.load_task("word_problems").TASK.calls
    assert len({item["kind"] for item in items}) > 2
