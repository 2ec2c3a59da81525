"""Measure a model after a stage: text, tasks and the three exponents, always on the same held-out
items.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge import evaluate
from agent_forge.core import registry
from agent_forge.core.seeds import seed_for
from agent_forge.data import Mixture, TextSource
from agent_forge.evaluate import EvalContext, Scores
from agent_forge.phases.train import Config
from agent_forge.phases.train.exponents import depth_exponent, logit_sensitivity, twin_exponent


def without_thinking(model: Any) -> Any:
    """Return the model that answers directly.

    That is the base of a thinking model, and any other model itself.
    """
    base = getattr(model, "base", None)
    return base if hasattr(model, "thinks") and isinstance(base, nn.Module) else model


class TrainBench:
    """Fixed items and probes.

    Tasks are answered without thinking, because this phase trains the model that answers directly.
    """

    def __init__(self, config: Config, tokenizer: Any, mixture: Mixture) -> None:
        self.config, self.tokenizer, self.mixture = config, tokenizer, mixture
        self.context = EvalContext(data=config.data, seed=config.seed, tokenizer=tokenizer)
        self.text = TextSource(config.data, tokenizer, "validation")
        windows = self.text.windows(config.measure.probe_tokens, config.measure.probe_rows)
        self.probe = torch.from_numpy(windows)
        self.items = {
            "text": evaluate.task_items(
                "text", "validation", config.measure.text_items, self.context
            )
        }
        for task in config.measure.tasks:
            self.items[task] = evaluate.task_items(
                task, "validation", config.measure.task_items, self.context
            )

    def everything(self, model: Any, stage: str) -> dict[str, Any]:
        """Return the scores and exponents of a model as JSON values."""
        return {"scores": self.scores(model), "exponents": self.exponents(model, stage)}

    def scores(self, model: Any) -> dict[str, Any]:
        """Return the scores of a model on every task as JSON values."""
        plain = without_thinking(model)
        return {
            task: asdict(
                evaluate.score_items(plain, self.tokenizer, task, items, "validation", self.context)
            )
            for task, items in self.items.items()
        }

    def searched(self, model: Any) -> dict[str, Any]:
        """Return the score on text of the search split, by which weights may be chosen."""
        items = evaluate.task_items("text", "search", self.config.measure.text_items, self.context)
        scores = evaluate.score_items(
            without_thinking(model), self.tokenizer, "text", items, "search", self.context
        )
        return {"scores": {"text": asdict(scores)}}

    def exponents(self, model: Any, stage: str) -> dict[str, float]:
        """Return the depth exponent and the logit sensitivity, and with measure.twin_steps the
        weight-twin exponent.
        """
        settings, seed = self.config.measure, seed_for(self.config.seed, "train", "probes")
        exponents = {
            "depth": self.depth(model),
            "sensitivity": logit_sensitivity(
                model,
                self.probe.to(_device(model)),
                relative_step=settings.relative_step,
                seed=seed,
            ),
        }
        if settings.twin_steps:
            exponents["twin"] = twin_exponent(
                model,
                Mixture(
                    dict(zip(self.mixture.names, self.mixture.sources, strict=True)),
                    {name: self.config.mix[name] for name in self.mixture.names},
                    rows=settings.probe_rows,
                    length_tokens=settings.probe_tokens,
                    seed=seed,
                    name=f"twins {stage}",
                ),
                self.config.optim,
                steps=settings.twin_steps,
                relative_step=settings.relative_step,
                seed=seed,
            )
        return exponents

    def depth(self, model: Any) -> float:
        """Return the depth exponent on the probe windows, in nats per block."""
        ids = self.probe.to(_device(model))
        seed = seed_for(self.config.seed, "train", "probes")
        return depth_exponent(
            model,
            {"input_ids": ids, "labels": ids},
            relative_step=self.config.measure.relative_step,
            seed=seed,
        )

    def success(self, model: Any, kind: str, level: int) -> float:
        """Return the share of search rows of one level that the model answers rightly."""
        task = registry.load("agent_forge.data.synthetic", kind, "generated task")
        seed = seed_for(self.config.seed, "train", "success", kind, level)
        rows = task.rows(self.config.curriculum.items, "search", seed, difficulty=level)
        return evaluate.score_items(
            without_thinking(model), self.tokenizer, kind, rows, "search", self.context
        ).mean

    def held_out_windows(self, count: int) -> Tensor:
        """Return real validation windows (n, length_tokens)."""
        return torch.from_numpy(self.text.windows(self.config.length_tokens, count))


def scores_of(measured: dict[str, Any], task: str) -> Scores:
    """Return the Scores of one task from what `everything` returned."""
    scores = measured["scores"][task]
    return Scores(**{**scores, "interval": tuple(scores["interval"])})


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
