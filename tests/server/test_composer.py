"""The composing process: the same settings and errors as the command line, and it may die."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.pipeline.catalogue import phase_named
from agent_forge.server.composer.client import Composed, Composer
from tests.server.house import house


def test_it_composes_what_the_command_line_composes_and_survives_its_death(tmp_path: Path) -> None:
    composer = Composer(seconds=200, early=False)

    async def two_at_once() -> list[Composed]:
        return await asyncio.gather(
            composer.compose("bitnet", ["train.steps=8"]), composer.compose("train", ["seed=9"])
        )

    with house(tmp_path / "state", composer=composer) as server:
        in_its_loop = server.client.portal.call
        expected: Any = compose("bitnet", phase_named("bitnet").config, ["train.steps=7"])
        composed = in_its_loop(composer.compose, "bitnet", ["train.steps=7"])
        assert composed.config["train"]["steps"] == 7
        assert composed.config["gate"]["items"] == expected.gate.items
        with pytest.raises(ConfigError, match=r"train.steps must be at least"):
            in_its_loop(composer.compose, "bitnet", ["train.steps=-1"])
        both = in_its_loop(two_at_once)
        assert (both[0].config["train"]["steps"], both[1].config["seed"]) == (8, 9)

        def validated(config: dict[str, Any], status: int = 200) -> Any:
            body = {"phase_name": "bitnet", "config": config}
            return server.post("/v1/phases/validate", body, status)

        answer = validated({"train": {"steps": -1}})
        assert not answer["valid"]
        assert "train.steps must be at least" in answer["error"]
        assert "did you mean" in validated({"train": {"stepz": 1}})["error"]
        assert server.get("/v1/jobs") == []
        assert not (tmp_path / "state" / "jobs" / "validate").exists(), "nothing was written"
        # A request that takes too long is given up with its process; the next one has another.
        first, composer.seconds = composer._child, 1e-6
        assert "took too long" in validated({"seed": 1}, 503)["error"]["message"]
        composer.seconds = 200
        assert in_its_loop(composer.compose, "bitnet", ["seed=3"]).config["seed"] == 3
        assert composer._child is not first
