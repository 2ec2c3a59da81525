"""The simulated services of the Berkeley leaderboard's multi-turn set: files, trading, travel, …

Reads the wheel of bfcl-eval, whose plain Python classes hold the state; each conversation has
instances of its own. A call is a method called with keyword arguments, never text that is
evaluated. A turn of a conversation is right when something ran, every public attribute of every
service equals that after the expected calls, and all that the expected calls answered was answered
so far, in any order. This is the leaderboard's rule, except that a call has to fit its schema before
it runs. Source: Apache-2.0, gorilla.cs.berkeley.edu.
"""

import ast
import copy
import importlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.agent import Tool, Toolbox
from agent_forge.core.errors import DataError
from agent_forge.data import bfcl

_CODE = "bfcl_eval.eval_checker.multi_turn_eval.func_source_code"
# Class -> the module of its code, which is also the name of its schemas' file.
SERVICES = {
    "GorillaFileSystem": "gorilla_file_system", "MathAPI": "math_api", "MessageAPI": "message_api",
    "TwitterAPI": "posting_api", "TicketAPI": "ticket_api", "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking", "VehicleControlAPI": "vehicle_control",
}  # fmt: skip
STATELESS = ("MathAPI",)
SET = "BFCL_v4_multi_turn_base"


class Environment:
    """The services of one conversation, and what their tools answered so far."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.services: dict[str, Any] = {}
        self.answers: list[str] = []
        for name in entry["classes"]:
            try:
                module = importlib.import_module(f"{_CODE}.{SERVICES[name]}")
            except ImportError as error:
                raise DataError(
                    f"the multi-turn set runs {name} of bfcl-eval, which needs another package: "
                    f"{error}; install it"
                ) from error
            service = getattr(module, name)()
            if name not in STATELESS:
                service._load_scenario(
                    copy.deepcopy(entry["config"].get(name, {})), long_context=False
                )
            self.services[name] = service
        self._methods = {
            method: bound
            for service in self.services.values()
            for method, bound in inspect.getmembers(service, inspect.ismethod)
            if not method.startswith("_")
        }

    def run(self, name: str, values: Sequence[Any], arguments: Mapping[str, Any]) -> str:
        """Call a tool and return its answer as text, as the leaderboard writes it."""
        try:
            result = self._methods[name](*values, **arguments)
        except Exception as error:  # noqa: BLE001 - what a simulated service raises is its answer
            answer = f"Error during execution: {error}"
        else:
            answer = _text(result)
        self.answers.append(answer)
        return answer

    def toolbox(self, tools: Sequence[Mapping[str, Any]]) -> Toolbox:
        """Return the tools of a conversation, which run here. tools: as a system turn lists them."""

        def tool(function: Mapping[str, Any]) -> Tool:
            name = function["name"]
            return Tool(
                name,
                function["description"],
                function["parameters"],
                lambda arguments, _: self.run(name, (), arguments),
            )

        return Toolbox([tool(one["function"]) for one in tools])

    def equals(self, other: "Environment") -> bool:
        """Return whether every public attribute of every service is the same."""
        return all(
            getattr(self.services[name], key) == value
            for name, service in other.services.items()
            for key, value in vars(service).items()
            if not key.startswith("_")
        )


class Expected:
    """The environment that the expected calls of a conversation lead to, turn by turn."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.environment, self._turns = Environment(entry), entry["expected"]

    def is_right(self, turn: int, environment: Environment, ran: int) -> bool:
        """Run the expected calls of a turn, and return whether `environment` is right after it.

        ran: how many calls ran in this turn. Turns are asked for in order.
        """
        calls = [parsed(text) for text in self._turns[turn]]
        due = [self.environment.run(*call) for call in calls]
        if not calls:
            return True
        missing = Counter(due) - Counter(environment.answers)
        return ran > 0 and not missing and environment.equals(self.environment)


def entries() -> list[dict[str, Any]]:
    """Return the conversations of the set.

    Each is {"id", "classes", "config", "tools", "turns": lists of the user's messages,
    "expected": lists of calls as text}. Raises DataError without the package.
    """
    folder = bfcl.folder()
    answers = {
        row["id"]: row["ground_truth"]
        for row in bfcl.lines(folder / "possible_answer" / f"{SET}.json")
    }
    docs = {
        name: bfcl.lines(folder / "multi_turn_func_doc" / f"{file}.json")
        for name, file in SERVICES.items()
    }
    return [
        {
            "id": row["id"], "classes": row["involved_classes"], "config": row["initial_config"],
            "tools": [bfcl.tool(one) for name in row["involved_classes"] for one in docs[name]],
            "turns": row["question"], "expected": answers[row["id"]],
        }
        for row in bfcl.lines(folder / f"{SET}.json")
    ]  # fmt: skip


def parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return name, values and arguments of a call written as Python, whose values are literals."""
    call = ast.parse(text, mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise DataError(f"{SET}: '{text}' is not a call")
    arguments = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords}
    return call.func.id, [ast.literal_eval(one) for one in call.args], arguments


def _text(result: Any) -> str:
    if isinstance(result, str):
        return result
    if isinstance(result, dict):
        try:
            return json.dumps(result)
        except TypeError:
            return str(result)
    return str(result)
