"""The user's own tools: traces hold what the tools really answered, and right means that they ran."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_forge.agent import Call, Turn, parse_calls
from agent_forge.agent.tool import Result, Tool
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.data.chat import encode_content
from agent_forge.data.schemas import canonical, words
from agent_forge.data.schemas.wording import compact_actions
from agent_forge.evaluate import own_traces
from agent_forge.evaluate.tasks import own_tools
from agent_forge.phases.bake import Config, OwnConfig, own, own_measure

FILE = '''
def convert_length(length: float, unit: str, target: str) -> dict:
    """Converts a length from one unit to another.

    Args:
        length: The length.
        unit: 'km' or 'miles'.
        target: 'meters' or 'feet'.
    """
    factor = {"km": 1000, "miles": 1609.344}[unit] * {"meters": 1, "feet": 3.28084}[target]
    return {"length": round(length * factor, 2), "unit": target}


def reverse(text: str) -> str:
    """Reverse a text."""
    return text[::-1]


def wipe(folder: str) -> str:
    """Delete everything in a folder."""
    raise AssertionError("a destructive tool ran")


destructive = ["wipe"]
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "mine.py"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def tools(file: Path) -> tuple[Tool, ...]:
    return own.load_tools((str(file),))


def sort(**changes: Any) -> OwnConfig:
    return OwnConfig(**{
        "count": 80, "weight": 1.0, "none_share": 0.22, "listed_share": 0.3, "errors": False,
        "filter": True, **changes,
    })  # fmt: skip


def test_traces_hold_what_the_tools_really_answered(tools: tuple[Tool, ...]) -> None:
    box = own.toolbox(tools, [])
    traces = own.make(tools, sort(), [], 80, "train", 0)
    assert len(traces) == 80
    ran = [trace for trace in traces if trace["calls"] and None not in trace["results"]]
    assert len(ran) > 20
    for trace in ran:
        calls = [call for m in trace["messages"] for call in parse_calls(m["content"])]
        assert [c.arguments for c in calls] == [one["arguments"] for one in trace["calls"]]
        assert [box.run(call).text for call in calls] == trace["results"]
        assert trace["messages"][-1]["content"] == trace["answer"]
        assert own_tools.says(trace["answer"], trace["results"])


def test_a_destructive_tool_is_called_in_traces_and_never_run(tools: tuple[Tool, ...]) -> None:
    traces = own.make(tools, sort(none_share=0.0), [], 60, "train", 0)
    deleting = [t for t in traces if "wipe" in {one["name"] for one in t["calls"]}]
    assert deleting
    for trace in deleting:
        assert set(trace["results"]) == {None}
        assert parse_calls(trace["messages"][-1]["content"])


def test_an_allowed_destructive_tool_runs(tools: tuple[Tool, ...]) -> None:
    (wipe,) = [tool for tool in tools if tool.name == "wipe"]
    with pytest.raises(PhaseError, match="'wipe' failed on 60 questions"):
        own.make([wipe], sort(none_share=0.0), ["wipe"], 5, "train", 0)


def test_a_failing_call_is_a_trace_only_when_errors_are_asked_for(tools: tuple[Tool, ...]) -> None:
    (wipe,) = [tool for tool in tools if tool.name == "wipe"]
    traces = own.make([wipe], sort(none_share=0.0, errors=True), ["wipe"], 5, "train", 0)
    assert all(trace["answer"].startswith("That failed") for trace in traces)


def test_questions_without_a_tool_are_answered_plainly_in_their_share(
    tools: tuple[Tool, ...],
) -> None:
    traces = own.make(tools, sort(), [], 400, "train", 0)
    plain = [trace for trace in traces if not trace["calls"]]
    assert 0.14 < len(plain) / 400 < 0.30  # four standard deviations
    assert not any(parse_calls(m["content"]) for t in plain for m in t["messages"])


def test_listed_traces_offer_every_tool_of_the_user(tools: tuple[Tool, ...]) -> None:
    traces = own.make(tools, sort(listed_share=1.0), [], 20, "train", 0)
    sizes = set()
    for trace in traces:
        names = [tool["function"]["name"] for tool in trace["messages"][0]["tools"]]
        assert {tool.name for tool in tools} <= set(names)
        sizes.add(len(names))
        assert not trace["filtered"]
    assert len(sizes) > 1


def test_held_out_questions_are_distinct_and_not_trained(tools: tuple[Tool, ...]) -> None:
    held = own.make(tools, sort(none_share=0.0), [], 60, "validation", 0)
    keys = [canonical.question_key(trace["messages"]) for trace in held]
    assert len(set(keys)) == 60
    trained = own.make(tools, sort(), [], 200, "train", 0, refused=keys)
    assert not set(keys) & {canonical.question_key(trace["messages"]) for trace in trained}


@pytest.mark.parametrize(("count", "warned"), [(3, False), (4, True)])
def test_fewer_distinct_questions_than_asked_for_are_said(
    count: int, warned: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traces are three: the tool is numbers for one of three cities and nothing else."""
    numbers = iter(range(10**6))

    def one_of_three(*_: Any, **__: Any) -> dict[str, Any]:
        question = f"How warm is it in {('Paris', 'Rome', 'Oslo')[next(numbers) % 3]}?"
        return {"messages": [{"role": "user", "content": question}], "calls": [], "results": []}

    monkeypatch.setattr(own_traces, "_without_tool", one_of_three)
    monkeypatch.setattr(own_traces, "_listed", lambda _generator, trace, *_: trace)
    tool = Tool("warmth", "Say how warm it is.", {"type": "object", "properties": {}})
    with caplog.at_level("WARNING", "agent_forge"):
        traces = own.make([tool], sort(none_share=1.0), [], count, "validation", 0)
    assert len(traces) == 3
    said = f"the tools have 3 distinct questions (validation), not {count}; more values"
    assert [said in one.getMessage() for one in caplog.records] == [True] * warned


def test_questions_of_a_tool_come_in_the_shares_of_their_kinds(tools: tuple[Tool, ...]) -> None:
    """A quarter asks for two things, a tenth lacks an argument that the user then names."""
    drawing = own_traces._TraceDrawing(
        np.random.default_rng(0), own.toolbox(tools, []), sort(errors=True), "train"
    )
    one = own_traces.asked_of(tools[0], ["convert"])
    traces = [own_traces._with_tool(drawing, one, [one]) for _ in range(600)]
    assert all(trace is not None for trace in traces)
    for calls, turns, share in ((1, 1, 0.65), (2, 1, 0.25), (1, 3, 0.1)):
        count = sum(
            len(trace["calls"]) == calls and trace["prompt_turns"] == turns for trace in traces
        )
        assert count / 600 == pytest.approx(share, abs=0.06)  # three standard deviations


def test_questions_of_no_tool_come_in_the_shares_of_their_kinds(tools: tuple[Tool, ...]) -> None:
    generator = np.random.default_rng(0)
    small_talk = {one[0] for one in own_traces.schemas.GENERAL}
    traces = [
        own_traces._without_tool(generator, tools, "train", small_talk=True) for _ in range(400)
    ]
    questions = [trace["messages"][0]["content"] for trace in traces]
    share = np.mean([question in small_talk for question in questions])
    assert share == pytest.approx(0.3, abs=0.09)
    for trace in traces:
        assert trace["stages"] == [trace["messages"][0]["content"]]
        assert trace["answer"] == trace["messages"][-1]["content"]
        assert (trace["calls"], trace["prompt_turns"], trace["filtered"]) == ([], 1, False)


def test_where_the_voice_is_kept_no_ready_answer_to_small_talk_is_learned(
    file: Path, tmp_path: Path
) -> None:
    small_talk = {one[0] for one in own_traces.schemas.GENERAL}
    for prompts, share in ((0, 0.3), (8, 0.0)):
        config = compose("bake", Config, [
            f"out={tmp_path}", f"tools=[{file}]", f"voice.prompts={prompts}", "measure.items=3",
            "traces.own.none_share=0.9", "traces.own.listed_share=0", "traces.own.count=200",
        ])  # fmt: skip
        out = SimpleNamespace(remember=lambda _name, compute: compute())
        traces = own.training(SimpleNamespace(config=config, out=out))  # type: ignore[arg-type]
        plain = [trace["messages"][0]["content"] for trace in traces if not trace["calls"]]
        assert len(plain) > 150
        assert np.mean([one in small_talk for one in plain]) == pytest.approx(share, abs=0.1)


def test_a_tool_that_fails_sixty_times_in_a_row_ends_the_making_of_traces() -> None:
    failures = {"broken": 0}
    for _ in range(own_traces.PATIENCE - 1):
        own_traces._count_failure(failures, "broken", None)
    own_traces._count_failure(failures, "broken", {})  # one that works starts the count anew
    for _ in range(own_traces.PATIENCE - 1):
        own_traces._count_failure(failures, "broken", None)
    with pytest.raises(PhaseError, match="tool 'broken' failed on 60 questions in a row"):
        own_traces._count_failure(failures, "broken", None)


def test_half_of_the_results_that_are_nearly_always_the_same_are_shown_as_others() -> None:
    def trace(name: str, *results: str, failed: bool = False) -> dict[str, Any]:
        return {
            "calls": [{"name": name, "arguments": {}} for _ in results], "results": list(results),
            "messages": [{"role": r, "content": ""} for r in ("user", "assistant", "tool", "end")],
            "answer": "", "failed": failed,
        }  # fmt: skip

    often = [trace("stuck", "21.5") for _ in range(200)]
    rarely = [trace("stuck", "3.25") for _ in range(100)]
    even = [trace("fair", result) for result in ("yes", "no") for _ in range(100)]
    broken = [trace("stuck", "21.5", failed=True) for _ in range(20)]
    double = [trace("stuck", "21.5", "21.5") for _ in range(20)]
    every = [*often, *rarely, *even, *broken, *double]
    shown = own_traces._with_other_results(np.random.default_rng(0), every)
    changed = [old is not new for old, new in zip(every, shown, strict=True)]
    assert not any(changed[200:])
    assert np.mean(changed[:200]) == pytest.approx(0.5, abs=0.15)
    for new in (new for old, new in zip(often, shown, strict=False) if old is not new):
        (result,) = new["results"]
        assert new["answer"] == new["messages"][-1]["content"] == own.say(result)
        assert result in new["messages"][-2]["content"]
        assert new["messages"][:2] == often[0]["messages"][:2]


def test_a_listing_offers_all_tools_and_at_most_three_others_before_the_question(
    tools: tuple[Tool, ...],
) -> None:
    generator = np.random.default_rng(0)
    plain = {"messages": [{"role": "user", "content": "Hi"}], "prompt_turns": 1, "filtered": True}
    counts = set()
    for _ in range(60):
        shown = own_traces._listed(generator, plain, tools, 1.0, "train")
        assert shown["messages"][1:] == plain["messages"]
        assert (shown["prompt_turns"], shown["filtered"]) == (2, False)
        counts.add(len(shown["messages"][0]["tools"]) - len(tools))
    assert counts == {0, 1, 2, 3}
    listed = [own_traces._listed(generator, plain, tools, 0.3, "train") for _ in range(400)]
    assert np.mean([one is not plain for one in listed]) == pytest.approx(0.3, abs=0.09)
    assert own_traces._listed(generator, plain, tools, 0.0, "train") is plain


def test_a_schema_without_code_gives_traces_that_end_with_the_call() -> None:
    tool = Tool(
        "book_table",
        "Book a table.",
        {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]},
    )
    for trace in own.make([tool], sort(none_share=0.0, listed_share=0.0), [], 10, "train", 0):
        assert parse_calls(trace["messages"][-1]["content"])
        assert trace["answer"] == ""


# measurement


def test_right_means_that_the_tool_ran_with_the_right_result_and_the_answer_says_it(
    tools: tuple[Tool, ...],
) -> None:
    box = own.toolbox(tools, [])
    call = Call("convert_length", {"length": 2, "unit": "km", "target": "meters"})
    text = box.run(call).text
    trace = {"calls": [{"name": call.name, "arguments": call.arguments}], "results": [text]}
    same = Call("convert_length", {"length": 2.0, "unit": "km", "target": "meters"})
    answer = "It is 2000.0 meters."
    right = Turn(answer, [Result(same, box.run(same).text)], [], True)
    assert own_measure.is_right(trace, right, box)
    mended = Turn(answer, [Result(call, "error: no", True), Result(call, text)], [], True)
    assert own_measure.is_right(trace, mended, box)
    assert not own_measure.is_right(trace, Turn(answer, [], [], True), box)
    assert not own_measure.is_right(trace, Turn("Done.", [Result(call, text)], [], True), box)
    assert not own_measure.is_right(trace, Turn(answer, [Result(call, text)] * 2, [], True), box)
    assert not own_measure.is_right(trace, Turn(answer, [Result(call, text)], [], False), box)
    other = Call("convert_length", {"length": 3, "unit": "km", "target": "meters"})
    wrong = Turn("It is 3000.0 meters.", [Result(other, box.run(other).text)], [], True)
    assert not own_measure.is_right(trace, wrong, box)


def test_a_call_that_cannot_run_is_compared_itself(tools: tuple[Tool, ...]) -> None:
    box = own.toolbox(tools, [])
    trace = {"calls": [{"name": "wipe", "arguments": {"folder": "a"}}], "results": [None]}
    for folder, right in (("a", True), ("b", False)):
        call = Call("wipe", {"folder": folder})
        assert own_measure.is_right(trace, Turn("", [box.run(call)], [], True), box) is right


def test_a_question_without_a_tool_is_right_without_a_call(tools: tuple[Tool, ...]) -> None:
    box = own.toolbox(tools, [])
    trace = {"calls": [], "results": []}
    assert own_measure.is_right(trace, Turn("Hello!", [], [], True), box)
    needless = Result(Call("reverse", {"text": "a"}), "a")
    assert not own_measure.is_right(trace, Turn("Hello!", [needless], [], True), box)


@pytest.mark.parametrize(
    ("result", "answer"),
    [('{"sky": "clear", "degrees": 21.5}', "The result is sky clear; degrees 21.5."),
     ("[1, 2]", "The result is 1; 2."), ("12.50", "The result is 12.50."),
     ("Sold out!", "The result is Sold out!")],
)  # fmt: skip
def test_an_answer_says_a_result(result: str, answer: str) -> None:
    assert own.say(result) == answer
    assert own_tools.says(answer, [result])


# settings


@pytest.fixture
def composed(tmp_path: Path) -> Callable[..., Config]:
    def make(*overrides: str) -> Config:
        return compose("bake", Config, [f"out={tmp_path / 'bake'}", *overrides])

    return make


@pytest.mark.parametrize(
    ("overrides", "kinds"),
    [((), ["calculator", "memory", "code", "retrieve"]), (("tools=[a.py]",), ["own"]),
     (("tools=[a.py]", "traces.builtin=on", "traces.memory.count=0"),
      ["own", "calculator", "code", "retrieve"]),
     (("traces.builtin=off",), [])],
)  # fmt: skip
def test_with_tools_of_ones_own_the_built_in_kinds_are_left_out_unless_they_are_on(
    composed: Callable[..., Config], overrides: tuple[str, ...], kinds: list[str]
) -> None:
    assert composed(*overrides).kinds() == kinds


def test_allowing_tools_that_are_not_named_is_refused(composed: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"allow=\['wipe'\]"):
        composed("allow=[wipe]")


def test_a_manifest_keeps_the_schemas_of_the_tools(
    composed: Callable[..., Config], file: Path
) -> None:
    from agent_forge.agent import AgentSettings, kept_tools
    from agent_forge.phases.bake.run import agent_settings

    entry = json.loads(json.dumps(agent_settings(composed(f"tools=[{file}]"), ["own"])))
    entries, _ = kept_tools(AgentSettings.from_manifest(entry).tools)
    assert [tool.name for tool in entries] == ["convert_length", "reverse", "wipe"]


def test_a_verb_is_followed_by_its_object_and_by_natural_details(tools: tuple[Tool, ...]) -> None:
    declaration = tools[0].schema()["function"]
    assert compact_actions(declaration) == ["convert {length} {unit} to {target}"]


def test_a_verb_alone_names_a_tool_where_no_other_tool_has_it(tools: tuple[Tool, ...]) -> None:
    compact = "convert {length} {unit} to {target}"
    alone = own_traces.asked_of(tools[0], ["convert", "reverse"])
    shared = own_traces.asked_of(tools[0], ["convert", "convert"])
    assert alone.actions.count(compact) == shared.actions.count(compact) + 2
    assert set(shared.actions) == set(alone.actions) - {compact}


def test_a_third_of_the_numbers_that_can_have_a_unit_are_said_with_one() -> None:
    generator, plain = np.random.default_rng(0), own_traces.SpokenValue(5, "5")
    name = f"the_{next(iter(words.UNITS))}"
    said = [own_traces._with_unit(generator, name, plain) for _ in range(4000)]
    assert {one.value for one in said} == {5}
    assert all(one.text.startswith("5") for one in said)
    assert np.mean([one.text != "5" for one in said]) == pytest.approx(0.35, abs=0.03)
    assert own_traces._with_unit(generator, "nameless", plain) == plain
    for name, texts in (("percent", {"5%", "5 percent"}), ("age", {"5 years"})):
        said = {own_traces._with_unit(generator, name, plain).text for _ in range(100)}
        assert said == {"5", *texts}


class Drawn:
    """What of a running phase the traces read."""

    def __init__(self, config: Config, tokenizer: Any) -> None:
        self.config, self.tokenizer, self.out = config, tokenizer, self
        self.kept: dict[str, Any] = {}

    def remember(self, name: str, compute: Callable[[], Any]) -> Any:
        if name not in self.kept:
            self.kept[name] = compute()
        return self.kept[name]


@pytest.mark.parametrize(("items", "without_tool"), [(9, 3), (2, 1)])
def test_held_out_are_questions_of_a_tool_and_a_third_as_many_of_none(
    items: int, without_tool: int, composed: Callable[..., Config], file: Path, tiny_tokenizer: Any
) -> None:
    config = composed(f"tools=[{file}]", f"measure.items={items}", "traces.own.count=40")
    phase: Any = Drawn(config, tiny_tokenizer)
    called, plain = own.heldout(phase)
    assert (len(called), len(plain)) == (items, without_tool)
    assert all(trace["calls"] for trace in called)
    assert not any(trace["calls"] for trace in plain)
    assert own.heldout(phase) == (called, plain)  # drawn once per run
    held = {canonical.question_key(trace["messages"]) for trace in [*called, *plain]}
    trained = own.training(phase)
    assert len(trained) == 40
    assert not held & {canonical.question_key(trace["messages"]) for trace in trained}


def test_a_turn_may_have_as_many_tokens_as_the_longest_one_of_the_agent_needs(
    composed: Callable[..., Config], tiny_tokenizer: Any
) -> None:
    """What the user and the tools say does not count."""
    turns = ["short", "an answer of a few more words", "a call"]

    def trace(turn: str) -> dict[str, Any]:
        question = {"role": "user", "content": "a question that is far longer than any answer " * 9}
        return {"messages": [question, {"role": "assistant", "content": turn}]}

    config = composed("measure.max_new_tokens=1")
    phase: Any = Drawn(config, tiny_tokenizer)
    phase.kept["own-heldout"] = [[trace(turns[0]), trace(turns[1])], [trace(turns[2])]]
    longest = max(len(encode_content(tiny_tokenizer, "assistant", turn)) for turn in turns)
    assert own.reply_tokens(phase) == longest + own.SPARE_TOKENS
    config.measure.max_new_tokens = 10_000
    assert own.reply_tokens(phase) == 10_000
