"""Replies that vote: the most frequent words or results win, and nothing is changed twice."""

from collections.abc import Callable, Iterator

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge.agent import Agent, AgentSettings, Call, Tool, Turn, format_call, scaffolds
from agent_forge.agent.tool import Result

Speaks = Callable[[Callable[[str], str]], list[str]]
Ask = Callable[..., Agent]


def said(text: str) -> Turn:
    return Turn(text=text, finished=True)


def ran(*results: str, error: bool = False, finished: bool = True) -> Turn:
    call = Call("tool", {})
    results_of = [Result(call, text, error=error) for text in results]
    return Turn(text="so", results=results_of, finished=finished)


EXECUTED = AgentSettings(scaffold="best_by_execution")


@pytest.mark.parametrize(
    ("turns", "place"),
    [
        ((ran("2"), ran("4"), ran("4")), 1),
        ((ran("2"), ran("4"), ran("3")), 0),  # no majority: the first
        ((ran("x", error=True), ran("x", error=True), ran("4")), 2),
        ((ran("4", finished=False), ran("4", finished=False), ran("2")), 2),
        ((said("4"), ran("4"), ran("4")), 1),  # words are not a result
        ((said("a"), said("b"), said("b")), 1),
        ((ran("1", "2"), ran("2", "1"), ran("2", "1")), 1),
        ((ran("x", error=True), ran("y", error=True)), 0),  # none votes
    ],
)
def test_the_most_frequent_results_of_calls_that_ran_win(
    turns: tuple[Turn, ...], place: int
) -> None:
    assert scaffolds.winner([scaffolds.ballot(EXECUTED, turn) for turn in turns]) == place


def test_replies_vote_with_their_words_otherwise() -> None:
    settings = AgentSettings(scaffold="self_consistency")
    turns = (ran("4"), said("4"), ran("x", error=True), said("so"))
    ballots = [scaffolds.ballot(settings, turn) for turn in turns]
    assert ballots == ["so", "4", "so", "so"]


@pytest.mark.parametrize(
    ("ballots", "stop_after", "place"),
    [
        (["a", "b", "b"], 2, 1),
        ([None, None, "a"], 2, None),  # what has no vote decides nothing
        (["a", "a"], 0, None),
        ([None, "a"], 1, 1),
    ],
)
def test_so_many_equal_ballots_end_the_vote(
    ballots: list[str | None], stop_after: int, place: int | None
) -> None:
    assert scaffolds.decided(ballots, stop_after) == place


@pytest.fixture
def sold() -> list[str]:
    return []


@pytest.fixture
def ask(
    speaks: Speaks,
    sold: list[str],
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> Iterator[Ask]:
    """Return an agent whose replies are dictated, one per generation; it may sell and add."""
    agents: list[Agent] = []

    def build(*replies: str, scaffold: str = "best_by_execution") -> Agent:
        line = iter(replies)
        speaks(lambda _: next(line))
        text = {"type": "object", "properties": {"it": {"type": "string"}}, "required": ["it"]}

        def sell(arguments: dict[str, str], _: object) -> str:
            sold.append(arguments["it"])
            return f"sold {arguments['it']}"

        selling = Tool(
            name="sell", description="Sell.", parameters=text, run=sell, destructive=True
        )
        echo = Tool(
            name="echo", description="Echo.", parameters=text,
            run=lambda arguments, _: arguments["it"],
        )  # fmt: skip
        agent = Agent(
            tiny_llama, tiny_tokenizer, [selling, echo],
            settings={"scaffold": {"name": scaffold, "samples": 3}, "allow": ["sell"]},
        )  # fmt: skip
        agent.confirm = lambda _: True
        agents.append(agent)
        return agent

    yield build
    for agent in agents:
        agent.memory.close()


def call(name: str, it: str) -> str:
    return format_call(Call(name, {"it": it}))


QUESTION = [{"role": "user", "content": "?"}]


def test_the_reply_whose_results_most_have_is_given_though_its_words_differ(ask: Ask) -> None:
    agent = ask(
        call("echo", "2"), "two", call("echo", "4"), "four", call("echo", "4"), "it is four"
    )
    assert agent.reply(QUESTION).text == "four"


def test_a_call_that_fails_has_no_vote(ask: Ask) -> None:
    wrong = format_call(Call("echo", {"that": 1}))
    agent = ask(wrong, "oh", call("echo", "4"), "four", wrong, "oh")
    assert agent.reply(QUESTION).text == "four"


@pytest.mark.parametrize("scaffold", scaffolds.VOTED)
def test_a_first_reply_that_changed_something_stands_and_is_the_only_one(
    ask: Ask, sold: list[str], scaffold: str
) -> None:
    """Only two replies are dictated: a second sample would end the test."""
    agent = ask(call("sell", "car"), "done", scaffold=scaffold)
    assert agent.reply(QUESTION).text == "done"
    assert sold == ["car"]


@pytest.mark.parametrize("scaffold", scaffolds.VOTED)
def test_further_votes_change_nothing(ask: Ask, sold: list[str], scaffold: str) -> None:
    agent = ask(
        call("echo", "no"), "no", call("sell", "car"), "denied", call("echo", "no"), "no",
        scaffold=scaffold,
    )  # fmt: skip
    assert agent.reply(QUESTION).text == "no"
    assert sold == []
