"""The baseline of equal budget: the same stages trained plainly, from where the first mechanism
acts.

Until then the phase is plain training, so those stages are shared. Batches, steps and schedule are
the same; rollback guards both runs. Without a mechanism there is nothing to compare: the phase
itself is plain training.
"""

from dataclasses import replace
from typing import Any

from agent_forge import evaluate
from agent_forge.core.seeds import seed_for
from agent_forge.data.sources import Source
from agent_forge.learn import TrainRequest, lm_loss, train
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import Config
from agent_forge.phases.train.control import CombinedController, Rollback
from agent_forge.phases.train.measure import scores_of
from agent_forge.phases.train.stages import mixture, stage_optim

SAMPLES = 1000  # bootstrap resamples of a gain
ONE_SIDED = 0.975  # two bounds of this confidence make an interval of 95%
SAME = "the same run: no mechanism is on, so this phase is plain training"
SAME_AS_LAST = (
    "the same run: the average was not better than the last step, so this phase is plain training"
)
SKIPPED = (
    "skipped, because no run has shown a gain of theirs over plain training of equal tokens "
    "(their settings switch them on)"
)
NOT_RUN = "none ran: plain training from the same parent is off (baseline=true runs it)"


def train_plainly(phase: PhaseRun[Config], model: Any, sources: dict[str, Source]) -> None:
    """Train `model` plainly through the first steered stage and all after it.

    model: as it was before the first steered stage.
    """
    config = phase.config
    stages, steered = config.taken_stages(), config.steered_stages()
    previous = ["", *stages][stages.index(steered[0])]
    for stage in steered:
        guard = (
            {"rollback": Rollback(config.rollback, f"plain_{stage}", phase.events)}
            if config.rollback.enabled
            else {}
        )
        train(
            model,
            TrainRequest(
                batches=mixture(config, sources, config.mix, stage),
                loss_fn=lm_loss,
                stage=f"plain_{stage}",
                steps=getattr(config.steps, stage),
                optim=stage_optim(replace(config, average="none"), stage, stages),
                out=phase.out,
                events=phase.events,
                seed=seed_for(config.seed, "train"),
                on_step=CombinedController(guard),
                device=phase.device,
                dtype=phase.dtype,
                settings={"mix": dict(config.mix)},
                optimiser_from=previous,
                keep_optimiser=stage != stages[-1],
            ),
        )
        previous = f"plain_{stage}"


def compared(ours: dict[str, Any], plain: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return one row per task: both scores, and the paired gain over plain training with its
    interval.

    ours, plain: what `TrainBench.scores` returned for the model of the phase and for the plain one.
    Positive is better.
    """
    rows = []
    for task in ours:
        one, other = scores_of({"scores": ours}, task), scores_of({"scores": plain}, task)
        gain, low = evaluate.paired_gain(
            other, one, samples=SAMPLES, seed=seed, confidence=ONE_SIDED
        )
        _, loss = evaluate.paired_gain(one, other, samples=SAMPLES, seed=seed, confidence=ONE_SIDED)
        rows.append(
            {
                "task": task, "metric": one.metric, "this phase": one.mean, "plain": other.mean,
                "gain": gain, "low": low, "high": -loss, "n": one.n,
            }
        )  # fmt: skip
    return rows


def phrase(rows: list[dict[str, Any]]) -> str:
    """Return the gains over plain training in one line."""
    return f"gain over plain training of equal tokens: {gains(rows)}"


def gains(rows: list[dict[str, Any]]) -> str:
    """Return the gain of each task with its interval."""
    parts = [
        f"{row['task']} {row['gain']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}] {row['metric']} (n={row['n']})"
        for row in rows
    ]
    return "; ".join(parts)
