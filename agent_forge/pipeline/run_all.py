"""Run all phases in order; each reads the output of the last accepted one.

Every phase's settings are composed and typed before the first one starts. The same command goes on
with an unfinished run: the run itself keeps no state, and a finished phase is recognised by the
hash of its settings and sources.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import Checkpoint, DirectoryLock
from agent_forge.config import DataConfig, PhaseConfig, RuntimeConfig
from agent_forge.config.compose import all_overrides, compose_tree, to_typed
from agent_forge.core.errors import ConfigError, GateError, did_you_mean
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.child import Listener
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.run_phase import check_inputs, check_settings, run_phase

COMMAND = "run_all"
# The chosen experiment -> the one to choose instead on an accelerator.
SIZED_FOR_ACCELERATORS = {
    "": "experiment=cognate_25m or smollm2_gpu",
    "smollm2": "experiment=smollm2_gpu",
}


@dataclass(slots=True, kw_only=True)
class RunAll:
    """A composed run: where it writes, and the settings of each phase in order."""

    run_dir: Path
    phases: dict[str, PhaseConfig]
    goal: str = "size"


def compose_run(overrides: Sequence[str] = (), file: str | None = None) -> RunAll:
    """Compose conf/run_all.yaml with a file and overrides.

    Raises ConfigError before anything runs.
    """
    return typed_run(compose_tree(COMMAND, all_overrides(overrides, file, settings_schema())))


def settings_schema() -> type:
    """Return the dataclass of a run's settings: its own, shared ones, and each phase's by name."""
    shared = [
        ("run_dir", str),
        ("goal", str),
        ("phases", list[str]),
        ("seed", int),
        ("data", DataConfig),
        ("runtime", RuntimeConfig),
    ]
    return make_dataclass(
        "RunSettings", [*shared, *((phase.name, phase.config) for phase in phases().values())]
    )


def typed_run(tree: Any) -> RunAll:
    """Return a composed tree as a RunAll; the order gives each phase its `out` and `sources`."""
    known = phases()
    if not str(tree.run_dir).strip():
        raise ConfigError(
            "run_dir must not be empty; name the directory of the run, as in "
            "run_dir=outputs/run_all"
        )
    run_dir = Path(tree.run_dir)
    chosen: dict[str, PhaseConfig] = {}
    for position, name in enumerate(tree.phases, start=1):
        if name not in known:
            raise ConfigError(
                f"run_all: no phase '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"
            )
        if name in chosen:
            raise ConfigError(f"run_all: phases names '{name}' twice")
        tree[name].out = str(run_dir / f"{position}-{name}")
        chosen[name] = to_typed(tree[name], known[name].config, f"run_all ({name})", f"{name}.")
    if not chosen:
        raise ConfigError(f"run_all: phases is empty; known: {', '.join(known)}")
    return RunAll(run_dir=run_dir, phases=chosen, goal=str(tree.goal))


def goal_line(run: RunAll) -> str:
    """Return what the run's goal decides about ternary weights, in one line."""
    if "bitnet" in run.phases:
        packing = "two bits each" if run.goal == "speed" else "five to a byte"
        return f"goal {run.goal}: ternary weights, packed {packing}"
    return f"goal {run.goal}: no ternary weights; compress codes the dense ones by water-filling"


def larger_budget(run: RunAll, overrides: Sequence[str] = (), file: str | None = None) -> str:
    """Return a line that names a larger experiment, where a run for processors uses an accelerator.

    Otherwise return "".
    """
    chosen = next(
        (part.split("=", 1)[1] for part in overrides if part.startswith("experiment=")), file or ""
    )
    larger = SIZED_FOR_ACCELERATORS.get(chosen)
    if larger is None or all(config.runtime.device == "cpu" for config in run.phases.values()):
        return ""
    from agent_forge.core.device import pick_device

    device = pick_device(next(iter(run.phases.values())).runtime.device)
    if device.type == "cpu":
        return ""
    sized = f"experiment={chosen}" if chosen else "the default run"
    return (
        f"{sized} is sized for two processor cores; on {device.type}, {larger} does more "
        "with the hour"
    )


def run_all(
    run: RunAll,
    *,
    listener: Listener | None = None,
    resume: bool = True,
    after_phase: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run the phases; return their outcomes. Stops at the first one that failed or was interrupted.

    When its gate refuses a phase, the next one reads the parent of the refused child. Raises
    GateError when the policy of a refused phase is to stop, or when it has no parent to return to.
    """
    outcomes: list[Outcome] = []
    with DirectoryLock(run.run_dir / ".forge", wait_seconds=3.0):
        current: list[str] = []
        base = ""
        for position, (name, config) in enumerate(run.phases.items()):
            if position:
                config.sources = current
            if position == 0:
                inputs = check_inputs(name, config)
                base = str(inputs[0].stored) if inputs else ""
                check_later_phases(run, inputs)
            config.gate.base = config.gate.base or base
            outcome = run_phase(name, config, listener=listener, resume=resume)
            outcomes.append(outcome)
            if after_phase:
                after_phase(outcome)
            if outcome.status not in ("done", "rejected"):
                return outcomes
            if outcome.status == "done":
                current = outcome.outputs
                base = base or current[0]
            elif config.gate.on_failure == "stop":
                raise GateError(outcome.message)
            elif not outcome.parent:
                raise GateError(f"{outcome.message}; there is no parent to go back to")
            else:
                current = [outcome.parent]
    return outcomes


def check_later_phases(run: RunAll, sources: Sequence[Checkpoint]) -> dict[str, list[str]]:
    """Check the settings of all phases after the first; return their lines about the model.

    sources: what the first phase reads; no phase changes their architecture.
    """
    said = {}
    for name, config in list(run.phases.items())[1:]:
        check_settings(name, config)
        said[name] = fits(name, config, sources)
    return said


def final_checkpoint(outcomes: Sequence[Outcome]) -> tuple[str, str]:
    """Return the directory and id of the last accepted checkpoint, or two empty strings."""
    accepted = [outcome for outcome in outcomes if outcome.status == "done" and outcome.outputs]
    return (accepted[-1].outputs[0], accepted[-1].checkpoint_id) if accepted else ("", "")
