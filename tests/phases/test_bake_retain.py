"""Weights are drawn back to the parent on a straight line, as far as the limits ask and no further."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agent_forge import models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, retain
from agent_forge.phases.bake.run import run

SMALL = [
    "traces.calculator.count=20", "traces.memory.count=0", "traces.code.count=0", "traces.retrieve.count=0",
    "training.steps=6", "training.rows=4", "training.neutral_rows=0", "training.optim.warmup_steps=1",
    "training.optim.lr=0.3", "persona.enabled=false", "measure.items=2", "measure.text_items=4",
    "measure.max_new_tokens=4", "measure.offer_from=0", "runtime.device=cpu", "retain.items=4",
]  # fmt: skip
Bake = Callable[..., tuple[Report, dict[str, torch.Tensor]]]


@pytest.fixture
def bake(data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path) -> Bake:
    """Return the report and the weights of a bake with some settings."""

    def once(*overrides: str, name: str = "bake") -> tuple[Report, dict[str, torch.Tensor]]:
        config = compose("bake", Config, [*SMALL, *overrides])
        config.data = data_config
        where = tmp_path / name
        out = Workspace(where, phase="bake", seed=0, config=config, parents=[tiny_checkpoint])
        report = run(PhaseRun(config, [tiny_checkpoint], out, EventLog(None, "bake")))
        return report, models.load(Path(report.outputs[0])).state_dict()

    return once


@pytest.mark.parametrize("most", range(retain.PARTS + 1))
def test_the_largest_share_that_keeps_enough_is_found_in_six_tries(most: int) -> None:
    tries: list[int] = []

    def keeps(parts: int) -> bool:
        tries.append(parts)
        return parts <= most

    assert retain.largest(keeps) == most
    assert len(tries) <= retain.MOST_TRIES
    assert 0 not in tries


def test_the_weights_are_the_taken_share_of_the_change_and_keep_the_task(
    bake: Bake, tiny_checkpoint: Checkpoint
) -> None:
    """The trained weights lose text; those that are written lie on the line and lose less."""
    parent = models.load(tiny_checkpoint).state_dict()
    _, trained = bake(name="trained")
    report, weights = bake("retain.tasks={text: 0.98}", name="drawn")
    rows = report.tables["drawn back to the parent"]
    (taken,) = [row for row in rows if row["taken"]]
    share = taken["share of the change"]
    assert 0 < share < 1
    assert report.metrics["share of the change"] == share
    assert (
        taken["text"]
        >= 0.98
        > max(row["text"] for row in rows if row["share of the change"] > share)
    )
    for name, value in weights.items():
        expected = parent[name] + share * (trained[name] - parent[name])
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def test_where_the_limit_is_kept_the_weights_stay_as_trained(bake: Bake) -> None:
    _, trained = bake(name="trained")
    report, weights = bake("retain.tasks={text: 0.001}", name="drawn")
    assert report.tables["drawn back to the parent"][0]["taken"]
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())


def test_a_task_on_which_the_parent_is_at_chance_binds_nothing(bake: Bake) -> None:
    """A random model answers no sums, so their limit is left out, by name."""
    _, trained = bake(name="trained")
    report, weights = bake("retain.tasks={reasoning: 0.99}", name="drawn")
    (row,) = report.tables["drawn back to the parent"]
    assert set(row) == {"share of the change", "taken"}
    assert all(torch.equal(value, trained[name]) for name, value in weights.items())


def test_a_limit_that_no_share_keeps_is_an_error_with_its_remedy(bake: Bake) -> None:
    with pytest.raises(PhaseError, match="lower the shares"):
        bake("retain.tasks={text: 100}")


@pytest.mark.parametrize(
    ("setting", "words"),
    [("training.lora_rank=4", "lora_rank=0"), ("runtime.shard=true", "shard=false")],
)
def test_what_cannot_be_drawn_back_is_refused_by_name(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compose("bake", Config, [*SMALL, "retain.tasks={domains: 0.9}", setting])
