"""Search, write the winner with its recipe, and report it on the test split against its parents and their soup."""

import hashlib
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedTokenizerFast

from agent_forge import evaluate, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import Report
from agent_forge.core.device import pick_device, pick_dtype
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.phases.evomerge import Config
from agent_forge.phases.evomerge.candidates import Stage
from agent_forge.phases.evomerge.fitness import Yardstick, make_yardstick
from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.phases.evomerge.sources import Sources, open_sources
from agent_forge.search.evolve import Evolution, Generation, evolve
from agent_forge.search.journal import Journal
from agent_forge.search.race import Evaluator, rung_borders

SUMMED = ("task_arithmetic", "ties")  # members from the start, with weights that sum to about 2
RECIPE_FILE = "merge_recipe.yml"


def run(config: Config, sources: list[Checkpoint], out: Workspace, events: EventLog) -> Report:
    """Evolve a merge of `sources` (trunk first) and write the winner.

    Raises ConfigError or CheckpointError before any work when the models do not belong together.
    """
    device, dtype = pick_device(config.runtime.device), pick_dtype(config.runtime.dtype)
    opened = open_sources(sources, out, events, device, dtype)
    tokenizer = models.load_tokenizer(sources[0])
    stage = Stage(opened, seed_for(config.seed, "evomerge", "masks"), out.check_stop)
    space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
    yardstick = make_yardstick(config, tokenizer, "search", config.items)
    evolution = search(config, opened, stage, space, yardstick, out, events)
    winner = evolution.best.genome
    tested = out.remember(f"test-{evolution.best.key}", partial(_test, config, opened, stage, space, winner, tokenizer))
    written = _write(opened, stage, space, evolution, tokenizer, tested, out)
    events.artefact(written.path)
    return _report(opened, space, evolution, tested, written)


def search(
    config: Config,
    opened: Sources,
    stage: Stage,
    space: GenomeSpace,
    yardstick: Yardstick,
    out: Workspace,
    events: EventLog,
) -> Evolution[Genome]:
    """Return the evolution, resumed from the journal in the phase's state."""
    per_task = len(yardstick.rows) // len(yardstick.tasks)
    borders = [border * len(yardstick.tasks) for border in rung_borders(config.search.race, per_task)]
    journal = Journal(out.state / f"evaluations-{_fingerprint(config, opened, yardstick)}.jsonl")

    def measure(genome: Genome, start: int, stop: int) -> list[float]:
        out.check_stop()
        return yardstick.measure(stage.show(space.recipe(genome)), start, stop)

    evaluator = Evaluator(space, measure, yardstick.fitness, borders, journal)
    yardstick.trunk_nats = evaluator.values(space.parent(0))
    total = config.search.generations

    def tell(generation: Generation) -> None:
        metrics = {key: value for key, value in asdict(generation).items() if key != "number"}
        events.progress("generations", generation.number, total, metrics)

    return evolve(space, evaluator, _initial(opened, space), config.search, config.seed, tell)


def _initial(opened: Sources, space: GenomeSpace) -> list[tuple[str, Genome]]:
    """Return the named first members: every source, the uniform soup, and task-vector sums where they take part."""
    named = [(label, space.parent(i)) for i, label in enumerate(opened.labels)]
    named.append(("soup", space.soup()))
    return named + [(name, space.summed(name)) for name in SUMMED if name in space.techniques]


def _fingerprint(config: Config, opened: Sources, yardstick: Yardstick) -> str:
    """Return a hash of all that a measurement depends on: another setting starts another journal."""
    parts: list[Any] = [
        [checkpoint.id for checkpoint in opened.checkpoints], opened.labels, config.seed, asdict(config.merge),
        yardstick.tasks, config.batch_tokens, config.search.race, asdict(config.runtime)["dtype"],
        evaluate.split_hash([ids for ids, _ in yardstick.rows]),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _test(
    config: Config,
    opened: Sources,
    stage: Stage,
    space: GenomeSpace,
    winner: Genome,
    tokenizer: PreTrainedTokenizerFast,
) -> dict[str, Any]:
    """Return the winner's losses on the test split, and what it gains over each source and over the soup."""
    yardstick = make_yardstick(config, tokenizer, "test", config.test_items)
    named = {label: space.parent(i) for i, label in enumerate(opened.labels)} | {"soup": space.soup()}
    nats = {
        name: yardstick.measure(stage.show(space.recipe(genome)), 0, len(yardstick.rows))
        for name, genome in {**named, "winner": winner}.items()
    }
    scores = {name: yardstick.scores(values, "test", config.seed) for name, values in nats.items()}
    rows = []
    for name in named:
        row: dict[str, Any] = {
            "over": name,
            "gain": yardstick.gain(nats["winner"], nats[name], config.samples, config.seed),
        }
        for task in yardstick.tasks:
            kept = evaluate.retention(task, scores[name][task], scores["winner"][task], config.samples, config.seed)
            row[task] = {"value": kept.ratio, "low": kept.low, "high": kept.high, "n": scores[name][task].n}
        rows.append(row)
    losses = {name: {task: score.as_metric() for task, score in found.items()} for name, found in scores.items()}
    return {"gains": rows, "losses": losses}


def _write(
    opened: Sources,
    stage: Stage,
    space: GenomeSpace,
    evolution: Evolution[Genome],
    tokenizer: PreTrainedTokenizerFast,
    tested: dict[str, Any],
    out: Workspace,
) -> Checkpoint:
    recipe = space.recipe(evolution.best.genome)
    model = stage.make(recipe, opened.dtype)
    content = recipe.to_mergekit(str(opened.dtype).removeprefix("torch."))

    def save(directory: Path) -> None:
        models.save(model, tokenizer, directory)
        (directory / RECIPE_FILE).write_text(_recipe_text(content, recipe.method, stage.seed))

    metrics: dict[str, Any] = {f"test_{task}_nats": score for task, score in tested["losses"]["winner"].items()}
    metrics["search_fitness"] = evolution.best.fitness
    return out.write(
        save,
        metrics=metrics,
        extra={"recipe": content, "technique": recipe.method, "origin": evolution.best.origin, "mask_seed": stage.seed},
        deployable_bytes=models.deployable_bytes(model),
    )


def _recipe_text(content: dict[str, Any], method: str, seed: int) -> str:
    """Return the recipe as YAML that mergekit reads, from the directory that holds the models it names."""
    return (
        f"# The merge that made this model ({method}). Paths are relative to the directory that holds the sources.\n"
        f"# Random masks, where the method has any, are those of seed {seed}.\n"
        f"{yaml.safe_dump(content, sort_keys=False)}"
    )


def _report(
    opened: Sources, space: GenomeSpace, evolution: Evolution[Genome], tested: dict[str, Any], written: Checkpoint
) -> Report:
    best = evolution.best
    gains = {row["over"]: row["gain"] for row in tested["gains"]}
    named = {label: space.key(space.parent(i)) for i, label in enumerate(opened.labels)} | {
        "soup": space.key(space.soup())
    }
    same = next((name for name, key in named.items() if key == best.key), "")
    over_trunk = gains[opened.labels[0]]
    best_label = min((label for label in opened.labels), key=lambda label: gains[label]["value"])
    measured = evolution.history[-1].measured_items
    summary = (
        f"Winner: {best.genome.technique}{f' (which is {same} itself: no merge beat it)' if same else ''}. On the "
        f"test split its mean log retention is {_interval(over_trunk)} over the trunk, "
        f"{_interval(gains[best_label])} over the best source ({best_label}) and "
        f"{_interval(gains['soup'])} over the uniform soup."
    )
    metrics = {
        "search_fitness": best.fitness,
        "generations": len(evolution.history) - 1,
        "measured_items": measured,
        **{f"gain_over_{Path(name).name}": gain for name, gain in gains.items()},
    }
    tables = {
        "Winner on the test split: gain in mean log retention, and ratio of losses a task": [
            _plain_row(row) for row in tested["gains"]
        ],
        "Generations": [
            {
                "generation": g.number, "best": round(g.best, 5), "mean": round(g.mean, 5),
                "diversity": round(g.diversity, 3), "best from": g.best_origin,
            }
            for g in evolution.history
        ],
    }  # fmt: skip
    return Report(summary=summary, outputs=[str(written.path)], metrics=metrics, tables=tables)


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _interval(value) if isinstance(value, dict) else value for key, value in row.items()}


def _interval(metric: dict[str, Any]) -> str:
    return f"{metric['value']:+.3f} [{metric['low']:+.3f}, {metric['high']:+.3f}]"
