"""The composing process: read one JSON request per line, write one JSON answer per line.

A request is {"phase", "overrides", "estimate"}; an answer has "config" (and "estimates"), or
"error" with the class and text of what was wrong. Answers go to the original stdout; whatever
libraries print there goes to stderr.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from agent_forge.config.compose import compose
from agent_forge.core.errors import ForgeError
from agent_forge.core.lifetime import die_with_parent
from agent_forge.server.client_settings import schema_of


def main(parent: int) -> None:
    """Answer requests until stdin ends."""
    die_with_parent(parent)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _warm()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(json.loads(line)), default=str) + "\n")
        answers.flush()


def _warm() -> None:
    """Pay for imports and a first composition before somebody waits for them."""
    phase, schema = schema_of("bitnet")
    compose(phase, schema)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _composed(request["phase"], request["overrides"], request["estimate"])
    except ForgeError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 - a defect in one request must not end the others
        return {"error": "defect", "message": f"{type(error).__name__}: {error}"}


def _composed(phase: str, overrides: list[str], estimate: bool) -> dict[str, Any]:
    from agent_forge.pipeline import estimate as estimates
    from agent_forge.pipeline.run_all import COMMAND, compose_run

    name, schema = schema_of(phase)
    if name == COMMAND:
        run = compose_run(overrides)
        answer: dict[str, Any] = {"config": {k: asdict(v) for k, v in run.phases.items()}}
        if estimate:
            answer["estimates"] = [asdict(one) for one in estimates.estimate_run(run)]
        return answer
    config: Any = compose(name, schema, overrides)
    answer = {"config": asdict(config)}
    if estimate:
        answer["estimates"] = [asdict(estimates.estimate_phase(name, config))]
    return answer


if __name__ == "__main__":
    main(int(sys.argv[1]))
