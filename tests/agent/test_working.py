"""Turns that leave the window are summarised; the summary fits and keeps what was said most."""

from collections.abc import Callable, Sequence

import pytest

from agent_forge.agent.loop import Agent, Opening
from agent_forge.agent.working import HEAD, WorkingMemory, rolling, sum_basic
from agent_forge.checkpoint import Checkpoint

Turn = dict[str, str]


def message(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def exchange(question: str, answer: str = "Good.") -> list[Turn]:
    return [message("user", question), message("assistant", answer)]


def word_count(turn: object) -> int:
    assert isinstance(turn, dict)
    return len(turn["content"].split())


FILLER = [m for i in range(12) for m in exchange(f"and what of thing {i}, pray tell?", "fine")]


def test_what_leaves_the_window_stands_in_a_summary_that_fits() -> None:
    working = WorkingMemory(60, word_count, sum_basic)
    talk = [*exchange("The harbor opens in winter."), *FILLER,
            message("user", "the last one")]  # fmt: skip
    window = working.window(talk)
    assert window[0]["role"] == "system"
    head, *lines = window[0]["content"].splitlines()
    assert head == HEAD
    assert "User: The harbor opens in winter." in lines
    assert word_count(window[0]) <= 12
    assert sum(map(word_count, window)) <= 60
    assert window[-1] == talk[-1]
    assert working.left_out == len(talk) - (len(window) - 1)


def test_a_summary_joins_the_system_turn_because_templates_take_one() -> None:
    window = WorkingMemory(30, word_count, sum_basic).window(
        [message("system", "Be kind."), *exchange("The harbor opens in winter."), *FILLER]
    )
    assert [turn["role"] for turn in window].count("system") == 1
    assert window[0]["content"].startswith(f"Be kind.\n{HEAD}\n")


def test_nothing_is_summarised_while_everything_fits() -> None:
    working = WorkingMemory(1000, word_count, sum_basic)
    assert working.window(FILLER) == FILLER
    assert working.left_out == 0


def test_pinned_turns_stay_and_are_not_summarised() -> None:
    shots = exchange("the harbor example", "the harbor answer")
    window = WorkingMemory(40, word_count, sum_basic).window([*shots, *FILLER], pinned=2)
    assert window[1:3] == shots
    assert "harbor" not in window[0]["content"]


def test_tools_turns_leave_with_their_calls_and_are_not_quoted() -> None:
    talk = [
        message("user", "add them"),
        message("assistant", '<tool_call>{"name": "calculator"}</tool_call>'),
        message("tool", "<tool_response>144</tool_response>"),
        message("assistant", "The result is 144."),
        *FILLER,
    ]
    window = WorkingMemory(30, word_count, sum_basic).window(talk)
    assert all("tool_call" not in turn["content"] for turn in window)
    assert window[1]["role"] == "user"


def all_fit(_: str) -> bool:
    return True


def limited(most: int) -> Callable[[str], bool]:
    return lambda text: len(text.split()) <= most


def test_sum_basic_takes_the_sentence_of_the_commonest_words_first() -> None:
    gone = exchange("Harbor ships leave. A dog barked. Harbor ships return. Winter.", "")
    assert sum_basic(gone, limited(4)) == "User: Harbor ships leave."
    # Once they are covered, the same words count less than new ones.
    weights_after = sum_basic(gone, limited(8)).splitlines()
    assert weights_after[0] == "User: Harbor ships leave."
    assert sum_basic(gone, all_fit).splitlines() == [
        "User: Harbor ships leave.", "User: A dog barked.", "User: Harbor ships return.",
        "User: Winter.",
    ]  # fmt: skip


def test_sum_basic_names_who_spoke_and_skips_what_says_nothing() -> None:
    gone = [message("user", "My code is 4471."), message("assistant", "Ok. I see it."),
            message("user", "My code is 4471.")]  # fmt: skip
    assert sum_basic(gone, all_fit) == "User: My code is 4471."
    assert sum_basic([], all_fit) == ""


def test_a_models_summary_goes_on_from_the_last_one() -> None:
    shown: list[str] = []

    def write(transcript: str) -> str:
        shown.append(transcript)
        return f"Summary {len(shown)}. And more."

    summarise = rolling(write)
    first = [message("user", "one"), message("assistant", "two")]
    assert summarise(first, all_fit) == "Summary 1. And more."
    assert summarise(first, all_fit) == "Summary 1. And more."
    assert summarise([*first, message("user", "three")], all_fit) == "Summary 2. And more."
    assert shown == ["User: one\nAssistant: two", "Summary 1. And more.\nUser: three"]
    assert summarise([message("user", "other")], limited(2)) == "Summary 3."
    assert shown[-1] == "User: other"


@pytest.mark.parametrize("summary", ["sentences", "model", "none"])
def test_an_agent_goes_on_when_its_window_is_full(
    summary: str, tiny_checkpoint: Checkpoint
) -> None:
    agent = Agent.from_checkpoint(
        tiny_checkpoint.path,
        Opening(settings={"summary": summary, "working_tokens": 380, "max_new_tokens": 16}),
    )
    seen: list[list[dict[str, str]]] = []
    real = agent.working.window
    agent.working.window = lambda m, pinned=0: seen.append(real(m, pinned)) or seen[-1]  # type: ignore[method-assign,func-returns-value]
    agent.reply([*FILLER, message("user", "the last one")])
    assert agent.working.left_out > 0
    has_summary = seen[0][0]["content"].startswith(HEAD)
    assert has_summary or summary != "sentences"
    assert not (has_summary and summary == "none")
    assert seen[0][-1]["content"] == "the last one"


@pytest.mark.parametrize("budget", [1, 5, 25, 80])
def test_the_last_exchange_always_stays(budget: int) -> None:
    def nothing(_: Sequence[object], __: Callable[[str], bool]) -> str:
        return ""

    for summarise in (None, sum_basic, nothing):
        window = WorkingMemory(budget, word_count, summarise).window(FILLER)
        assert window[-2:] == FILLER[-2:]
