"""An experiment sets all phases of a run, and any phase alone takes its own part of it."""

from typing import Any

import pytest

from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.phases.bake import Config as Bake
from agent_forge.phases.compress import Config as Compress
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.run_all import compose_run


def plain(config: Any) -> dict[str, Any]:
    """Return settings that do not depend on where a run writes."""
    import dataclasses

    values = dataclasses.asdict(config)
    for name in ("out", "sources", "gate"):
        del values[name]
    return values


@pytest.mark.parametrize("phase", phases())
def test_a_phase_alone_takes_what_a_run_would_give_it(phase: str) -> None:
    """compress: its section chooses another option of a group. bitnet: it has a part whose name is
    that of a phase. evomerge: a run chooses a smaller search.
    """
    choice = ["search=nano"] if phase == "evomerge" else []
    run, schema = compose_run(["experiment=smollm2"]).phases[phase], phases()[phase].config
    alone = compose(phase, schema, [*choice, "experiment=smollm2", "sources=[x]", "out=y"])
    by_file = compose(phase, schema, [*choice, "sources=[x]", "out=y"], "smollm2")
    assert plain(alone) == plain(run) == plain(by_file)
    assert alone.gate.items == run.gate.items


def test_the_command_line_wins_over_the_experiment() -> None:
    config = compose("bake", Bake, ["training.steps=7", "experiment=smollm2", "out=y"])
    assert config.training.steps == 7
    assert config.training.rows == 4


def test_an_experiment_that_says_nothing_of_a_phase_is_refused() -> None:
    with pytest.raises(ConfigError, match="'smollm2_tools' says nothing of compress"):
        compose("compress", Compress, ["experiment=smollm2_tools", "out=y"])


@pytest.mark.parametrize(
    ("experiment", "suite"),
    [
        ("smollm2", "domains"),
        ("smollm2_gpu", "skills"),
        ("smollm2_tools", "domains"),
        ("smollm2_schemas", "domains"),
        ("smollm2_calls_gpu", "domains"),
    ],
)
def test_real_models_are_gated_on_skills_at_every_step_and_over_the_chain(
    experiment: str, suite: str
) -> None:
    configs = compose_run([f"experiment={experiment}"]).phases
    if experiment in ("smollm2_tools", "smollm2_schemas"):
        configs = {"bake": configs["bake"]}
    if experiment == "smollm2_calls_gpu":
        configs = {phase: configs[phase] for phase in ("bake", "bitnet", "compress")}
    for name, config in configs.items():
        assert config.gate.tasks[suite] >= 0.9, name
        assert config.gate.chain[suite] >= 0.85, name
        assert "text" in config.gate.tasks, name


def test_the_default_run_is_gated_on_its_four_tasks_alone() -> None:
    for config in compose_run([]).phases.values():
        assert set(config.gate.tasks) == set(config.gate.chain) == {
            "text", "reasoning", "memory", "tools",
        }  # fmt: skip
