"""Our checker against the leaderboard's own, on the packaged answers and on changed ones.

Needs bfcl-eval (`pip install --no-deps bfcl-eval==2026.3.23`); of it, the checker alone is
imported, with a stand-in for its list of models, which would import every provider's client.
"""

import copy
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent_forge.agent import Call, Turn
from agent_forge.data import bfcl as sets
from agent_forge.data.synthetic import bfcl as trained
from agent_forge.evaluate import bfcl_environment
from agent_forge.evaluate.tasks import bfcl, bfcl_multi_turn

pytestmark = pytest.mark.skipif(not sets.installed(), reason="needs bfcl-eval")
MODELS = "bfcl_eval.constants.model_config"
PER_KIND = 150  # entries per set; each gives its answer and up to five changed ones


@pytest.fixture(scope="module")
def official() -> Iterator[Any]:
    """Return the leaderboard's function for calls."""
    known = sys.modules.get(MODELS)
    stub = ModuleType(MODELS)
    stub.MODEL_CONFIG_MAPPING = {"model": SimpleNamespace(underscore_to_dot=True)}  # type: ignore[attr-defined]
    sys.modules[MODELS] = stub
    try:
        checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
        enums = importlib.import_module("bfcl_eval.constants.enums")
        yield lambda *parts: checker.ast_checker(
            *parts[:3], enums.Language.PYTHON, parts[3], "model"
        )
    finally:
        if known is None:
            del sys.modules[MODELS]
        else:
            sys.modules[MODELS] = known


def raw(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return id -> functions and id -> answers, as the package has them."""
    folder = sets.folder()
    answers = sets.lines(folder / "possible_answer" / f"{name}.json")
    return (
        {row["id"]: row["function"] for row in sets.lines(folder / f"{name}.json")},
        {row["id"]: row["ground_truth"] for row in answers},
    )


def changed(calls: list[dict[str, Any]], draws: np.random.Generator) -> Iterator[Any]:
    """Yield the calls in other forms: some right, most wrong."""
    yield calls[::-1]
    yield calls[:-1]
    for change in (_other_value, _other_spelling, _without_one, _with_one_more):
        result = copy.deepcopy(calls)
        call = result[int(draws.integers(len(result)))]
        if call["arguments"]:
            change(call["arguments"], list(call["arguments"])[-1])
            yield result


def _other_value(arguments: dict[str, Any], name: str) -> None:
    value = arguments[name]
    arguments[name] = value + 1 if type(value) in (int, float) else f"{value} more"


def _other_spelling(arguments: dict[str, Any], name: str) -> None:
    value = arguments[name]
    arguments[name] = f" {value.upper()}." if isinstance(value, str) else value


def _without_one(arguments: dict[str, Any], name: str) -> None:
    del arguments[name]


def _with_one_more(arguments: dict[str, Any], name: str) -> None:
    arguments[f"{name}_more"] = arguments[name]


@pytest.mark.parametrize("kind", ["simple", "multiple", "parallel", "parallel_multiple"])
def test_our_checker_agrees_with_the_leaderboards(kind: str, official: Any) -> None:
    functions, answers = raw(sets.SETS[kind])
    entries = [entry for entry in sets.entries() if entry["kind"] == kind][:PER_KIND]
    draws = np.random.default_rng(0)
    differing, count, right = list[Any](), 0, 0
    for entry in entries:
        row = trained._row(entry)
        for calls in (row["calls"], *changed(row["calls"], draws)):
            ours = bfcl.is_right(
                entry, [Call(one["name"], one["arguments"]) for one in calls], strict=False
            )
            shaped = [{one["name"].replace(".", "_"): one["arguments"]} for one in calls]
            theirs = official(functions[entry["id"]], shaped, answers[entry["id"]], kind)["valid"]
            count, right = count + 1, right + theirs
            if ours != theirs:
                differing.append((entry["id"], calls, ours, theirs))
    assert differing == [], f"{count - len(differing)} of {count} alike"
    assert 0.15 < right / count < 0.85


def test_the_expected_calls_of_every_conversation_are_right_and_fewer_are_not() -> None:
    """All 200 conversations, whose calls run in the simulated services as a model's would.

    The expected call of one gives a text where its schema wants a whole number.
    """
    items = bfcl_environment.entries()
    assert len(items) == 200

    def replying(skipped: int) -> Any:
        """Return what makes the expected calls, without the first `skipped` of the whole talk."""

        def reply(talks: list[Any], boxes: list[Any]) -> list[Turn]:
            turns = []
            for talk, box in zip(talks, boxes, strict=True):
                entry = next(one for one in items if one["tools"] is talk[0]["tools"])
                number = sum(message["role"] == "user" for message in talk) - 1
                calls = [bfcl_environment.parsed(text) for text in entry["expected"][number]]
                for name, values, arguments in calls[skipped if number == 0 else 0 :]:
                    names = box.parameters()[name]["properties"]
                    box.run(Call(name, {**dict(zip(names, values, strict=False)), **arguments}))
                turns.append(Turn())
            return turns

        return reply

    right = bfcl_multi_turn.played(items, replying(0))
    wrong = [i["id"] for i, ok in zip(items, right, strict=True) if not ok]
    assert wrong == ["multi_turn_base_173"]
    assert sum(bfcl_multi_turn.played(items, replying(1))) < 0.2 * len(items)
