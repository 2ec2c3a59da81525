"""The baseline of equal budget: plain supervised fine-tuning of the same parent on the same rows.

The loss is the cross-entropy of the assistant's turns alone, without the KL on neutral text and
without the KL of the persona. Rows, steps, optimiser and schedule equal the bake's, so the two
models differ only by the two KL terms.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agent_forge import learn, models
from agent_forge.core.seeds import seed_for
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config
from agent_forge.phases.bake.lessons import BakeBatches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "plain"
NOT_RUN = "none ran: plain training on the same rows is off (baseline=true runs it)"
SAME = (
    "the same run: without neutral text, own answers, voice, pairs, persona and retain.tasks, this "
    "bake is plain training on its rows"
)


def fine_tuned(phase: PhaseRun[Config], batches: BakeBatches) -> "PreTrainedModel":
    """Return the parent after plain training on the rows of `batches`, for as many steps as the
    bake, those on its own answers included.
    """
    config = phase.config
    model = models.load(phase.sources[0].path, device=phase.device)
    learn.train(
        model,
        learn.TrainRequest(
            batches=batches.mixture,
            loss_fn=learn.lm_loss,
            stage=STAGE,
            steps=config.training.steps + config.on_policy.steps,
            optim=config.training.optim,
            out=phase.out,
            events=phase.events,
            seed=seed_for(config.seed, "bake", "train"),
            device=phase.device,
            dtype=phase.dtype,
        ),
    )
    return model


def is_same(batches: BakeBatches) -> bool:
    """Return whether the bake has no loss but cross-entropy and its weights stay as trained, so
    that it is its own baseline.
    """
    others = (batches.neutral, batches.spoken, batches.pairs)
    more = batches.traits or batches.on_policy or batches.drawn_back
    return not more and all(one is None for one in others)


def phrase(after: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Return the figures of the baked model, each beside the figure of plain training, with their
    intervals and n.
    """
    pairs = [*((kind, after["tools"][kind], plain["tools"][kind]) for kind in after["tools"])]
    pairs.append(("text bits per byte", after["text"], plain["text"]))
    against = [
        f"{name} {_figure(ours)} against {_figure(other)} (n={ours['n']})"
        for name, ours, other in pairs
    ]
    return f"against plain training on the same rows for as many steps: {'; '.join(against)}"


def columns(plain: Mapping[str, Any] | None, kind: str) -> dict[str, Any]:
    """Return what the baseline adds to a row of the table of held-out tools; {} where none ran."""
    if plain is None:
        return {}
    figure = plain["tools"][kind]
    return {"plain": figure["value"], "plain low": figure["low"], "plain high": figure["high"]}


def _figure(metric: Mapping[str, Any]) -> str:
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
