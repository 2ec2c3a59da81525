"""Questions as people ask them: in whole forms by what a tool is for, and requests that none
answers.
"""

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_forge.agent.tool import Tool, ToolError
from agent_forge.data.schemas import asking, requests, values, wording
from agent_forge.data.schemas.values import SpokenValue
from agent_forge.evaluate import own_traces
from agent_forge.evaluate.tasks import own_tools


def declaration(name: str, description: str = "", **arguments: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in arguments.items()}
    return {
        "name": name, "description": description,
        "parameters": {"type": "object", "properties": properties, "required": list(arguments)},
    }  # fmt: skip


def said(**texts: str) -> dict[str, SpokenValue]:
    return {name: SpokenValue(text, text) for name, text in texts.items()}


def test_a_conversion_is_asked_by_both_of_its_units() -> None:
    by_name = asking.whole_forms(declaration("ounce_to_gram", ounce="number"))
    assert "How many grams are in {ounce} ounces?" in by_name.forms
    assert all({"ounces", "grams"} <= set(re.findall(r"\w+", one)) for one in by_name.forms)
    by_values = asking.whole_forms(
        declaration("swap", value="number", base_coin="string", target_coin="string")
    )
    assert "How much is {value} {base_coin} in {target_coin}?" in by_values.forms
    assert not set(by_values.forms) & set(by_values.held_forms)


@pytest.mark.parametrize(
    ("one", "nouns"),
    [
        (declaration("get_author_of_book", "Gets the author of a book.", book="string"), {"author"}),
        (declaration("lookup", "Look up the phone code of a city.", city="string"), {"phone code"}),
        (declaration("computeTax", "Computes the yearly tax (VAT) for a sum.", total="number"),
         {"VAT", "tax", "yearly tax"}),
        (declaration("send", "Send a letter.", letter="string"), set()),
    ],
)  # fmt: skip
def test_what_a_tool_returns_is_read_from_its_name_and_description(
    one: dict[str, Any], nouns: set[str]
) -> None:
    assert set(asking.whole_forms(one).nouns) == nouns


def test_a_look_up_is_asked_for_its_one_argument() -> None:
    forms = asking.whole_forms(declaration("get_author_of_book", book="string")).forms
    assert {"What is the author of {book}?", "{book}'s author?", "Author of {book}"} <= set(forms)
    place = asking.whole_forms(declaration("find_mayor_of_city", city="string")).forms
    assert "I live in {city}. What is my mayor?" in place
    # A text to work on is nothing to look up.
    assert asking.whole_forms(declaration("get_length_of_text", text="string")).forms == ()


def test_a_whole_question_holds_every_value_to_the_character() -> None:
    generator = np.random.default_rng(0)
    tools = [
        declaration("ounce_to_gram", ounce="number"),
        declaration("swap", value="number", base_coin="string", target_coin="string"),
        declaration("get_author_of_book", book="string"),
        declaration("compute_area", "Compute the area.", width="number", depth="number"),
    ]
    for one in tools:
        arguments = said(**{name: f"V{i}q" for i, name in enumerate(one["parameters"]["required"])})
        whole, phrases = asking.whole_forms(one), wording.phrases_of(one)
        for held in (False, True):
            texts = {
                whole.question(generator, arguments, phrases, "compute the area", held_out=held)
                for _ in range(60)
            }
            assert len(texts) > 2
            assert all(
                text and all(value.text in text for value in arguments.values()) for text in texts
            )
            assert not any("{" in str(text) for text in texts)


def test_no_form_is_used_for_other_arguments_than_its_own() -> None:
    whole = asking.whole_forms(declaration("ounce_to_gram", ounce="number"))
    generator = np.random.default_rng(0)
    assert whole.question(generator, {}, {}, "convert", held_out=False) is None
    more = said(ounce="3", digits="2")
    assert whole.question(generator, more, {}, "convert", held_out=False) is None


def test_a_name_that_begins_with_a_noun_is_no_verb() -> None:
    one = declaration("ounce_to_gram", "Converts ounces to grams.", ounce="number")
    assert set(wording.actions_of(one)) == {"convert ounces to grams"}
    assert wording.compact_actions(one) == []
    convert = declaration("convert_ounces", "Converts ounces to grams.", ounce="number")
    assert "convert ounces" in wording.actions_of(convert)


def test_a_request_whose_topic_the_tools_name_is_left_out() -> None:
    generator = np.random.default_rng(0)
    drawn = {requests.draw(generator, "train", {"weather", "forecasts"}) for _ in range(2000)}
    texts = [one for one in drawn if one is not None]
    assert None in drawn
    assert not any("weather" in answer or "{" in text for text, answer in texts)
    assert any(
        "weather" in answer
        for _ in range(400)
        for _, answer in [requests.draw(generator, "train", ()) or ("", "")]
    )


def test_two_splits_share_no_request() -> None:
    generator = np.random.default_rng(0)

    def templates(split: str) -> set[str]:
        drawn = [requests.draw(generator, split, ()) for _ in range(300)]
        return {_template_of(one[0]) for one in drawn if one is not None}

    trained, held = templates("train"), templates("validation")
    assert len(trained) > len(held) > 1
    assert not trained & held


def _template_of(text: str) -> str:
    """Return the request that a text is drawn from."""
    for _, template, _ in requests.REQUESTS:
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(template))
        if re.fullmatch(pattern, text):
            return template
    raise AssertionError(text)


def test_what_stands_around_a_question_leaves_its_values_as_they_are() -> None:
    generator = np.random.default_rng(0)
    texts = [
        requests.dressed(generator, "Lima's time zone?", ["Lima"], held_out=False)
        for _ in range(400)
    ]
    assert all("Lima" in text for text in texts)
    assert {"Lima's time zone?", "Lima's time zone", "Hi, Lima's time zone?"} <= set(texts)
    plain = [requests.dressed(generator, "Find the mayor.", [], held_out=False) for _ in range(400)]
    assert {"find the mayor", "Hi, find the mayor."} <= set(plain)


def test_most_numbers_without_bounds_are_short_and_some_have_commas() -> None:
    generator = np.random.default_rng(0)
    drawn = [own_traces._drawn(generator, "integer", {"type": "integer"}) for _ in range(2000)]
    assert all(int(one.text.replace(",", "")) == one.value for one in drawn)
    assert 0.6 < np.mean([abs(one.value) < 1000 for one in drawn]) < 0.95
    assert any("," in one.text for one in drawn)
    decimals = [own_traces._drawn(generator, "number", {"type": "number"}) for _ in range(2000)]
    assert all(float(one.text.replace(",", "")) == one.value for one in decimals)
    bounded = {"type": "integer", "minimum": 5, "maximum": 6}
    assert {own_traces._drawn(generator, "integer", bounded).value for _ in range(50)} == {5, 6}


def test_a_number_has_the_unit_that_its_description_names() -> None:
    generator = np.random.default_rng(0)
    plain = values.SpokenValue(5, "5")
    texts = {
        own_traces._with_unit(generator, "height", plain, "The height in centimeters.").text
        for _ in range(100)
    }
    assert texts == {"5", "5 cm"}


def test_the_stated_values_of_a_question_are_those_of_its_call() -> None:
    """A question that states its values first holds no slot of an action."""
    schema = declaration(
        "compute_share", "Compute the share of a total.", total="number", people="integer"
    )
    tool = Tool(schema["name"], schema["description"], schema["parameters"])
    sort = SimpleNamespace(none_share=0.0, listed_share=0.0, errors=False, filter=False)
    for trace in own_traces.make([tool], sort, [], 150, "train", 0):
        assert not any(
            "{" in turn["content"] for turn in trace["messages"] if turn["role"] == "user"
        )


def test_a_tool_that_always_answers_alike_shows_other_results_to_learn_from() -> None:
    def run(_arguments: Any, _context: Any) -> str:
        return '{"zipcode":"00000"}'

    schema = declaration("find_zipcode_of_city", city="string")
    tool = Tool(schema["name"], "", schema["parameters"], run)
    sort = SimpleNamespace(none_share=0.0, listed_share=0.0, errors=False, filter=False)
    trained = own_traces.make([tool], sort, [], 200, "train", 0)
    results = {trace["results"][0] for trace in trained if len(trace["calls"]) == 1}
    assert len(results) > 20
    assert all(re.fullmatch(r'\{"zipcode":"\d{5}"\}', one) for one in results)
    for trace in trained:
        assert all(
            trace["results"][i] in turn["content"]
            for i, turn in enumerate(one for one in trace["messages"] if one["role"] == "tool")
        )
        assert own_tools.says(trace["answer"], trace["results"])
    held = own_traces.make([tool], sort, [], 40, "validation", 0)
    assert {result for trace in held for result in trace["results"]} == {'{"zipcode":"00000"}'}


def test_another_result_has_the_same_form() -> None:
    generator = np.random.default_rng(0)
    assert values.like(generator, "unknown") != "unknown"
    assert re.fullmatch(r"alarm \d\d:\d\d", values.like(generator, "alarm 07:30"))
    drawn = json.loads(values.like(generator, '{"a": 3, "b": [1.5, null, true], "c": "x"}'))
    assert set(drawn) == {"a", "b", "c"}
    assert isinstance(drawn["a"], int)
    assert drawn["b"][1:] == [None, True]


def test_what_is_converted_from_never_stands_where_the_target_stands() -> None:
    one = declaration(
        "swap", "Swap coins.", value="number", base_currency="string", target_currency="string"
    )
    generator, phrases = np.random.default_rng(0), wording.phrases_of(one)
    arguments = said(value="7", base_currency="AAA", target_currency="BBB")
    texts = [wording.question(generator, ["swap coins"], phrases, arguments) for _ in range(300)]
    assert any("from AAA" in text for text in texts)
    assert any("in BBB" in text for text in texts)
    assert not any("in AAA" in text for text in texts)


def test_calls_that_fail_leave_the_share_without_a_tool_as_it_is() -> None:
    def run(arguments: Any, _context: Any) -> str:
        if arguments["ounce"] > 20:
            raise ToolError("too many")
        return "1"

    schema = declaration("ounce_to_gram", ounce="number")
    tool = Tool(schema["name"], "", schema["parameters"], run)
    sort = SimpleNamespace(none_share=0.22, listed_share=0.0, errors=False, filter=False)
    traces = own_traces.make([tool], sort, [], 400, "train", 0)
    plain = np.mean([not trace["calls"] for trace in traces])
    assert 0.14 < plain < 0.30  # four standard deviations


def test_numbers_of_every_day_have_at_most_two_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_traces, "EVERYDAY_SHARE", 1.0)
    generator = np.random.default_rng(0)
    drawn = [own_traces._drawn(generator, "number", {"type": "number"}) for _ in range(500)]
    assert {len(one.text.partition(".")[2]) for one in drawn} == {0, 1, 2}
    assert all(0 < one.value < 1000 for one in drawn)


def test_six_of_ten_questions_have_a_whole_form_where_the_tool_has_one() -> None:
    whole = SimpleNamespace(question=lambda *_, **__: "whole")
    one: Any = SimpleNamespace(actions=("add",), phrases={}, whole=whole)
    drawing = own_traces._TraceDrawing(
        np.random.default_rng(0),
        own_traces.Toolbox([]),
        None,
        "train",  # type: ignore[arg-type]
    )
    questions = [drawing.question(one, {}) for _ in range(2000)]
    assert 0.56 < questions.count("whole") / len(questions) < 0.64


def test_a_tool_that_is_not_there_is_named_by_its_first_action(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = own_traces.draw.tool(np.random.default_rng(3), "train")
    other = replace(drawn, actions=["mend the bicycle", *drawn.actions])
    monkeypatch.setattr(own_traces.draw, "tool", lambda *_: other)
    _, answer = own_traces._of_random_tool(np.random.default_rng(0), [], "train")
    assert answer == "I have no tool that can mend the bicycle."
