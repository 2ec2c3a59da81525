"""AgentDojo's suites: what is read of a small package written here, and of the real one."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge import agent
from agent_forge.config import DataConfig
from agent_forge.core.errors import DataError
from agent_forge.data import agentdojo as suites
from agent_forge.evaluate import EvalContext, calling
from agent_forge.evaluate.tasks import agentdojo

TOOLS = '''
from typing import Annotated

class Mode(StrEnum):
    open = "o"
    shut = "s"

class Shed(BaseModel):
    doors: int

def count(shed):
    return shed.doors

def set_door(
    shed: Annotated[Shed, Depends("shed")], door: str, mode: Mode, marks: list[str] | None = None,
    times: int = 3, width: float = 1.5, loud: bool | None = None, extra: list[dict] | None = None,
) -> None:
    """Open or shut a door.

    Nothing but None comes back.

    :param door: The door,
    by its name.
    :param mode: What to do.
    :param marks: What to write on it.
    :param times: How often.
    :param width: How wide.
    :param loud: Whether it is heard.
    :param extra: Anything else.
    """

def look(shed: Annotated[Shed, Depends("shed")]) -> str:
    """Look at the shed."""
'''
SUITE = "TOOLS = [\n    # all of them\n    set_door,\n    look,\n]\n"
TASKS = """
HELP = str(7)
PLACE = "yard"

@task_suite.register_user_task
class UserTask0(Task):
    _DOOR = "north"
    _MARKS: ClassVar[list[str]] = ["a", "b"]
    PROMPT = f"In the {PLACE}, open the {_DOOR} door" + f" and write {', '.join(_MARKS)} on it."

    def ground_truth(self, pre_environment):
        for door in pre_environment.doors:
            self.see(door)
        return [
            FunctionCall(
                function="set_door",
                args={"door": f"{self._DOOR}", "mode": "o", "marks": self._MARKS, "times": 3},
            ),
            FunctionCall(function="look", args={"at": pre_environment.doors[0]}),
        ]

@task_suite.register_user_task
class UserTask1(Task):
    PROMPT = "Look (old)."

    def ground_truth(self, pre_environment):
        return [FunctionCall(function="set_door", args={"door": "old", "mode": "s"})]

class Helper:
    PROMPT = "Not a task."

combined.create_combined_task("UserTask2", 0, 1)
"""
NEWER = """
NEW = (1, 2, 0)

@task_suite.update_user_task(NEW)
class UserTask1(Task):
    PROMPT = "Look."

    def ground_truth(self, pre_environment):
        return [FunctionCall(function="look", args={})]
"""
OLDER = NEWER.replace("(1, 2, 0)", "(1, 1, 9)").replace("Look.", "Look (between).")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for the installed package's suites; all four are alike."""
    folder = tmp_path / "agentdojo" / "default_suites"
    files = {"v1/tools/shed.py": TOOLS}
    for suite in suites.SUITES:
        files[f"v1/{suite}/task_suite.py"] = SUITE
        files[f"v1/{suite}/user_tasks.py"] = TASKS
        files[f"v1_1_9/{suite}/user_tasks.py"] = NEWER  # the folder's name does not count
        files[f"v1_2/{suite}/user_tasks.py"] = OLDER
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "agentdojo")])
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: spec)
    return folder


@pytest.fixture
def context(data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast) -> EvalContext:
    return EvalContext(data=data_config, seed=0, tokenizer=tiny_tokenizer)


@pytest.mark.usefixtures("package")
def test_a_task_is_its_request_its_suites_tools_and_the_first_call_of_its_solution() -> None:
    pytest.importorskip("docstring_parser")
    first, second = suites.entries()[:2]
    assert (first["id"], first["kind"]) == ("workspace/user_task_0", "workspace")
    assert first["messages"][1] == {
        "role": "user", "content": "In the yard, open the north door and write a, b on it.",
    }  # fmt: skip
    assert first["expected"] == [
        {"name": "set_door",
         "arguments": {"door": ["north"], "mode": ["o"], "marks": [["a", "b"]], "times": ["", 3],
                       "width": ["", 1.5], "loud": ["", None], "extra": ["", None]}}
    ]  # fmt: skip
    assert second["messages"][1]["content"] == "Look."
    assert second["expected"] == [{"name": "look", "arguments": {}}]
    assert len(suites.entries()) == 2 * len(suites.SUITES)  # without the task that joins two


@pytest.mark.usefixtures("package")
def test_a_function_becomes_a_tool_with_the_arguments_that_its_docstring_describes() -> None:
    pytest.importorskip("docstring_parser")
    door, look = (tool["function"] for tool in suites.entries()[0]["messages"][0]["tools"])
    assert door["description"] == "Open or shut a door.\nNothing but null comes back."
    words = {"type": "array", "items": {"type": "string"}}

    def maybe(schema: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [schema, {"type": "null"}], "default": None}

    expected = {
        "door": {"type": "string", "description": "The door, by its name."},
        "mode": {"type": "string", "enum": ["o", "s"], "description": "What to do."},
        "marks": {**maybe(words), "description": "What to write on it."},
        "times": {"type": "integer", "default": 3, "description": "How often."},
        "width": {"type": "number", "default": 1.5, "description": "How wide."},
        "loud": {**maybe({"type": "boolean"}), "description": "Whether it is heard."},
        "extra": {**maybe({"type": "array", "items": {"type": "object"}}),
                  "description": "Anything else."},
    }  # fmt: skip
    assert door["parameters"] == {
        "type": "object", "properties": expected, "required": ["door", "mode"],
    }  # fmt: skip
    assert look["parameters"] == {"type": "object", "properties": {}, "required": []}


@pytest.mark.usefixtures("package")
def test_the_splits_are_disjoint_and_together_whole() -> None:
    pytest.importorskip("docstring_parser")
    parts = [{row["id"] for row in suites.entries(split)} for split, _ in suites.SHARES]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(suites.entries())
    many = [suites.split_of_entry(f"travel/user_task_{i}") for i in range(2000)]
    for split, share in (("validation", 0.3), ("search", 0.2), ("test", 0.5)):
        assert abs(many.count(split) / 2000 - share) < 0.05


def said(*calls: str) -> str:
    return "".join(f"<tool_call>{call}</tool_call>" for call in calls)


def call_of(**arguments: Any) -> str:
    values = {"door": "north", "mode": "o", "marks": ["a", "b"], **arguments}
    return json.dumps({"name": "set_door", "arguments": values})


LOOK = '{"name": "look", "arguments": {}}'


@pytest.mark.usefixtures("package")
def test_a_reply_is_right_when_its_first_call_is_that_of_the_solution(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults may be said or left out; text is compared as the leaderboard does."""
    pytest.importorskip("docstring_parser")
    by_id = {one["id"]: one for one in agentdojo.items("whole", 99, context)}
    assert len(by_id) == 8
    assert len(agentdojo.items("whole", 3, context)) == 3
    item = by_id["slack/user_task_0"]
    replies = {
        said(call_of()): True,
        said(call_of(times=3, loud=None)): True,
        said(call_of(door="North")): True,
        said(call_of(), LOOK): True,
        said(LOOK, call_of()): False,
        said(call_of(times=4)): False,
        said(call_of(mode="s")): False,
        said(call_of(marks=["a"])): False,
        said(call_of(colour="red")): False,
        "I open the door.": False,
    }
    monkeypatch.setattr(
        calling, "replies_as_calls",
        lambda *_: [(text, agent.parse_calls(text)) for text in replies],
    )  # fmt: skip
    pairs = agentdojo.score(None, None, [item] * len(replies), context)  # type: ignore[arg-type]
    assert pairs[:, 0].tolist() == [float(right) for right in replies.values()]
    assert not agentdojo.is_right(item, "", None)  # a call that cannot be read


def test_without_the_package_one_line_says_what_to_install(
    context: EvalContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert not suites.installed()
    with pytest.raises(DataError, match=re.escape("pip install --no-deps agentdojo==0.1.35")):
        agentdojo.items("test", 3, context)


@pytest.mark.usefixtures("package")
def test_without_the_parser_of_docstrings_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "docstring_parser", None)
    with pytest.raises(DataError, match=re.escape("pip install 'agent-forge[agent]'")):
        suites.entries()


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("v1/slack/user_tasks.py", '"Look (old)."', "HELP", "KeyError: 'PROMPT'"),
        ("v1/slack/user_tasks.py", '"door": "old"', '"door": print(1)', "not a constant: print"),
        ("v1/slack/task_suite.py", "TOOLS", "OTHERS", "lists no tools"),
        ("v1/tools/shed.py", "times: int", "times: complex", "another form: complex"),
        ("v1/tools/shed.py", "def look(", "def look(:", "SyntaxError"),
        ("v1/banking/user_tasks.py", "FunctionCall", "Step", "ValueError"),
    ],
)
def test_a_package_that_is_written_otherwise_is_refused_in_one_line(
    package: Path, file: str, old: str, new: str, reason: str
) -> None:
    pytest.importorskip("docstring_parser")
    text = (package / file).read_text()
    (package / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        suites.entries()
    assert str(caught.value).endswith(f"pip install --force-reinstall --no-deps {suites.PIN}")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not suites.installed(), reason="needs agentdojo")
def test_the_packages_own_first_calls_fit_their_schemas_and_are_right() -> None:
    pytest.importorskip("docstring_parser")
    rows = suites.entries()
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "workspace": 33, "slack": 17, "travel": 20, "banking": 16,
    }  # fmt: skip
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        (expected,) = row["expected"]
        schema = calling.parameters_of(row["messages"])[expected["name"]]
        shortest, longest = (
            {name: options[place] for name, options in expected["arguments"].items()
             if options[place] != suites.OMITTED}
            for place in (0, -1)
        )  # fmt: skip
        for arguments in (shortest, longest):
            jsonschema.validate(arguments, schema)
            assert agentdojo.is_right(row, "", [agent.Call(expected["name"], arguments)])
        assert not agentdojo.is_right(row, "", [agent.Call(expected["name"], {"other": 1})])
