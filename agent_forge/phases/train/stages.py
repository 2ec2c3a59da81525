"""The ten stages as settings of the one loop: batches, loss, controllers and schedule of each."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from agent_forge import data
from agent_forge.config import OptimConfig
from agent_forge.core.seeds import seed_for
from agent_forge.data import Mixture
from agent_forge.data.sources import Source
from agent_forge.learn import Batches, lm_loss
from agent_forge.phases import PhaseRun
from agent_forge.phases.train import STAGES, Config
from agent_forge.phases.train.control import (
    CombinedController,
    Controller,
    ExponentControl,
    Rollback,
)
from agent_forge.phases.train.curriculum import Curriculum, LevelSource
from agent_forge.phases.train.dreams import (
    DreamSource,
    ReplayGuard,
    distinct_bigrams,
    dream,
    text_loss,
)
from agent_forge.phases.train.measure import TrainBench, without_thinking
from agent_forge.phases.train.replay import beside, replayed
from agent_forge.phases.train.self_model import SelfModel

HELD_OUT_WINDOWS = 16  # real windows that guard a dream stage


@dataclass(slots=True)
class StagePlan:
    """How one stage trains.

    notes: returns figures of its mechanism for the report; it is called after training.
    """

    batches: Batches
    controllers: dict[str, Controller]
    loss: Callable[..., Any] = lm_loss
    parameters: Callable[[nn.Module], list[nn.Parameter]] | None = None
    active: bool = False
    notes: Callable[[], dict[str, Any]] = field(default=dict)

    @property
    def controller(self) -> CombinedController:
        """Return the controllers as one."""
        return CombinedController(self.controllers)


def mechanism_settings(config: Config, mechanism: str) -> dict[str, Any]:
    """Return the settings that must not change while a stage is resumed.

    There are none when its mechanism is off.
    """
    if not config.is_on(mechanism) or mechanism == "average":
        return {}
    return {
        f"{mechanism}.{key}": value for key, value in asdict(getattr(config, mechanism)).items()
    }


def stage_optim(config: Config, stage: str, stages: list[str]) -> OptimConfig:
    """Return the schedule of one stage.

    The first stage warms up, the last one cools down and averages, and all between are flat.
    """
    first, last = stage == stages[0], stage == stages[-1]
    return replace(
        config.optim,
        warmup_steps=config.optim.warmup_steps if first else 0,
        cooldown_share=config.optim.cooldown_share if last else 0.0,
        average_share=config.optim.average_share if last and config.average != "none" else 0.0,
    )


def plain_sources(config: Config, tokenizer: Any) -> dict[str, Source]:
    """Return the source of every kind in `mix`, of the train split."""
    return {
        kind: data.source(
            kind,
            config.data,
            tokenizer,
            "train",
            seed_for(config.seed, "train", kind),
            rows=config.mix_rows,
        )
        for kind in config.mix
    }


def mixture(
    config: Config, sources: Mapping[str, Source], weights: Mapping[str, float], name: str
) -> Mixture:
    """Return batches of this phase's shape."""
    return Mixture(
        sources,
        weights,
        rows=config.batch_rows,
        length_tokens=config.length_tokens,
        seed=config.seed,
        name=f"train {name}",
    )


class Planner:
    """Make the plan of each stage.

    The curriculum and the exponent controller keep their state from stage to stage.
    """

    def __init__(
        self, phase: PhaseRun[Config], bench: TrainBench, sources: dict[str, Source]
    ) -> None:
        self.phase, self.config, self.events = phase, phase.config, phase.events
        self.bench = bench
        others, weights = replayed(self.config, phase.tokenizer)
        self.sources = {**sources, **others}
        self.weights = beside(self.config.mix, weights, self.config.replay.share)
        self.curriculum: Curriculum | None = None
        self.control = ExponentControl(self.config.chaos, bench.depth)

    def plan(self, stage: str, model: Any) -> StagePlan:
        """Return how `stage` trains."""
        config, mechanism = self.config, STAGES[stage]
        controllers: dict[str, Controller] = {}
        if config.rollback.enabled:
            controllers["rollback"] = Rollback(config.rollback, stage, self.events)
        plan = StagePlan(
            mixture(config, self.sources, self.weights, stage),
            controllers,
            active=config.is_on(mechanism),
        )
        if not plan.active:
            self.events.message(
                f"{mechanism.replace('_', ' ')} is off: plain training with telemetry", stage=stage
            )
        elif mechanism == "curriculum":
            self._steer_difficulty(plan, stage)
        elif mechanism == "chaos":
            controllers["chaos"] = self.control
            plan.notes = lambda: {"control": [round(u, 3) for _, _, u in self.control.log]}
        elif mechanism == "dream":
            self._dream(plan, stage, model)
        elif mechanism == "self_model":
            settings = config.self_model
            own = SelfModel(
                model, weight=settings.weight, targets=settings.targets, seed=config.seed
            )
            plan.loss, plan.parameters = own.loss, own.parameters
        return plan

    def _steer_difficulty(self, plan: StagePlan, stage: str) -> None:
        config = self.config
        if self.curriculum is None:
            levels = {
                kind: LevelSource(
                    kind,
                    self.phase.tokenizer,
                    config.mix_rows,
                    seed_for(config.seed, "train", kind),
                    config.curriculum.uniform_share,
                    config.curriculum.start,
                )
                for kind in config.curriculum.kinds
            }
            self.curriculum = Curriculum(config.curriculum, levels, self.bench.success, self.events)
        curriculum = self.curriculum
        plan.batches = mixture(config, {**self.sources, **curriculum.sources}, self.weights, stage)
        plan.controllers["curriculum"] = curriculum
        plan.notes = lambda: {
            f"difficulty {k}": round(s.difficulty, 3) for k, s in curriculum.sources.items()
        }

    def _dream(self, plan: StagePlan, stage: str, model: Any) -> None:
        config, settings, out = self.config, self.config.dream, self.phase.out
        plain = without_thinking(model)
        text: Any = data.source("text", config.data, self.phase.tokenizer, "train", config.seed)
        windows = out.remember_tensors(
            f"dreams-{stage}",
            lambda: dream(
                plain,
                text,
                settings,
                length_tokens=config.length_tokens,
                seed=config.seed,
                stage=stage,
            ),
        )
        # Relative to real windows of the same number and length, since the share of distinct
        # bigrams falls with both.
        share = distinct_bigrams(windows["dreams"]) / distinct_bigrams(windows["real"])
        if share < settings.distinct_share:
            plan.active = False
            self.events.warning(
                f"{stage}: dreams are not replayed (distinct bigrams {share:.2f} of real text); "
                "plain training",
                stage=stage,
            )
            plan.notes = lambda: {"distinct": round(share, 3)}
            return
        weights = beside(self.weights, {"dream": 1.0}, settings.share)
        sources = {**self.sources, "dream": DreamSource(windows["dreams"], settings.prompt_tokens)}
        held_out = self.bench.held_out_windows(HELD_OUT_WINDOWS)
        before = out.remember(f"real-text-{stage}", lambda: text_loss(plain, held_out))
        with_dreams, without = mixture(config, sources, weights, stage), plan.batches
        guard = ReplayGuard(settings, with_dreams, without, held_out, before, stage, self.events)
        plan.batches, plan.controllers["dream"] = guard, guard
        plan.notes = lambda: {"distinct": round(share, 3), "replay ended at": guard.ended_at}


def self_model_error(records: list[Any]) -> float | None:
    """Return the mean error of the self-model over the last quarter of a stage.

    None when the self-model was off.
    """
    tail = [
        record.metrics["self_model_error"]
        for record in records[-max(len(records) // 4, 1) :]
        if "self_model_error" in record.metrics
    ]
    return float(torch.tensor(tail).mean()) if tail else None
