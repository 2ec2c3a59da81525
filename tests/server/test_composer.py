"""The composing process: the same settings and errors as the command line, and it may die."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.pipeline.catalogue import phase_named
from agent_forge.server.composer.client import Composer
from tests.server.house import house


def test_it_composes_what_the_command_line_composes_and_survives_its_death() -> None:
    async def ask() -> None:
        composer = Composer(seconds=200)
        await composer.start()
        try:
            expected: Any = compose("bitnet", phase_named("bitnet").config, ["train.steps=7"])
            composed = await composer.compose("bitnet", ["train.steps=7"])
            assert composed.config["train"]["steps"] == 7
            assert composed.config["gate"]["items"] == expected.gate.items
            with pytest.raises(ConfigError, match=r"train.steps must be at least"):
                await composer.compose("bitnet", ["train.steps=-1"])
            both = await asyncio.gather(
                composer.compose("bitnet", ["train.steps=8"]),
                composer.compose("train", ["seed=9"]),
            )
            assert (both[0].config["train"]["steps"], both[1].config["seed"]) == (8, 9)
            assert composer._child is not None
            composer._child.kill()
            await composer._child.wait()
            again = await composer.compose("bitnet", ["train.steps=9"])
            assert again.config["train"]["steps"] == 9
        finally:
            await composer.close()

    asyncio.run(ask())


def test_a_request_that_takes_too_long_is_given_up_and_the_next_one_answered() -> None:
    async def ask() -> None:
        composer = Composer(seconds=0.001)
        try:
            with pytest.raises(TimeoutError):
                await composer.compose("bitnet", [])
            composer.seconds = 200
            assert (await composer.compose("bitnet", ["seed=3"])).config["seed"] == 3
        finally:
            await composer.close()

    asyncio.run(ask())


def test_validation_tells_what_the_job_would_meet_without_a_job(tmp_path: Path) -> None:
    with house(tmp_path / "state") as server:
        wrong = {"phase_name": "bitnet", "config": {"train": {"steps": -1}}}
        answer = server.post("/v1/phases/validate", wrong, 200)
        assert not answer["valid"]
        assert "train.steps must be at least" in answer["error"]
        typo = {"phase_name": "bitnet", "config": {"train": {"stepz": 1}}}
        assert "did you mean" in server.post("/v1/phases/validate", typo, 200)["error"]
        assert server.get("/v1/jobs") == []
        assert not (tmp_path / "state" / "jobs" / "validate").exists(), "nothing was written"
