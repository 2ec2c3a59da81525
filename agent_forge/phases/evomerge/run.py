"""Search; write the winner with its recipe and card; compare it on the test split with what it
must beat.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent_forge import evaluate, models
from agent_forge.checkpoint import Checkpoint
from agent_forge.config import Report
from agent_forge.core.device import set_threads
from agent_forge.core.seeds import seed_for
from agent_forge.phases import PhaseRun
from agent_forge.phases.evomerge import Config
from agent_forge.phases.evomerge.baselines import greedy_soup, random_search
from agent_forge.phases.evomerge.candidates import Stage
from agent_forge.phases.evomerge.card import CARD_FILE, RECIPE_FILE, card_text, recipe_text
from agent_forge.phases.evomerge.evaluation import CandidateTask
from agent_forge.phases.evomerge.fitness import Yardstick, make_yardstick, require_disjoint
from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.phases.evomerge.sources import Sources, check_sources, open_sources
from agent_forge.search.evaluator import Evaluator, open_evaluator
from agent_forge.search.evolve import Evolution, Generation, evolve
from agent_forge.search.journal import Journal
from agent_forge.search.population import Individual
from agent_forge.search.race import Scorer, rung_borders

SUMMED = ("task_arithmetic", "ties")  # members from the start, with weights that sum to about 2

# Role of a model that is scored beside the winner and never merged, and the name cognate gives it.
CONTROL, UNION = "control", "union"


@dataclass(slots=True, kw_only=True)
class MergeSearch:
    """What a search works with.

    evaluator: measures the items of `yardstick`, then `final`, then `exam` (the test split).
    """

    phase: PhaseRun[Config]
    space: GenomeSpace
    yardstick: Yardstick
    final: Yardstick
    exam: Yardstick
    evaluator: Evaluator[Genome]
    journal: Journal

    @property
    def config(self) -> Config:
        """Return the settings of the phase."""
        return self.phase.config

    def scorer(self) -> Scorer[Genome]:
        """Return a scorer on the search split whose count of items starts at 0."""
        per_task = len(self.yardstick.rows) // len(self.yardstick.tasks)
        borders = [
            border * len(self.yardstick.tasks)
            for border in rung_borders(self.config.search.race, per_task)
        ]
        return Scorer(
            self.space, self.evaluator, self.yardstick.scoring_rule(), borders, self.journal
        )


@dataclass(slots=True, kw_only=True)
class SearchResult:
    """What a search found.

    final_fitness: the winner's, on the items that chose it. named: every model that the winner is
    compared with, the trunk first, and the winner itself last. items: how many items the evolution
    measured, and how many random search did.
    """

    evolution: Evolution[Genome]
    winner: Individual[Genome]
    final_fitness: float
    named: dict[str, Genome]
    items: dict[str, int]


def run(phase: PhaseRun[Config]) -> Report:
    """Evolve a merge of `sources` (trunk first) and write the winner.

    Raises ConfigError, CheckpointError or DataError before any work when models or splits do not
    belong together.
    """
    config, out = phase.config, phase.out
    merged = [source for source in phase.sources if source.manifest.role != CONTROL]
    check_sources(merged, phase.events)
    whole = make_yardstick(config, phase.tokenizer, "search", config.items + config.final_items)
    yardstick, final = whole.split(config.items)
    exam = make_yardstick(config, phase.tokenizer, "test", config.test_items)
    require_disjoint(search=yardstick, final=final, test=exam)
    for name, part, count in (
        ("search", yardstick, config.items), ("final", final, config.final_items), ("test", exam, config.test_items),
    ):  # fmt: skip
        if len(part.rows) < count * len(part.tasks):
            available = len(part.rows) // len(part.tasks)
            phase.events.warning(
                f"{name}: {available} distinct items per task, not {count}: the split holds no more"
            )
    opened = open_sources(merged, out.state, phase.device, phase.dtype)
    stage = Stage(opened, seed_for(config.seed, "evomerge", "masks"), between=out.check_stop)
    space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
    task = CandidateTask(
        sources=[str(source.path.resolve()) for source in merged], scratch=str(out.state.resolve()),
        merge=config.merge, mask_seed=stage.seed, rows=[*whole.rows, *exam.rows], batch_tokens=config.batch_tokens,
        device=str(phase.device), dtype=config.runtime.dtype, threads=config.search.threads or config.runtime.threads,
    )  # fmt: skip
    journal = Journal(
        out.state / f"evaluations-{_fingerprint(config, opened, yardstick, final, exam)}.jsonl"
    )
    evaluator = open_evaluator(task, config.search, out.check_stop)
    try:
        work = MergeSearch(
            phase=phase, space=space, yardstick=yardstick, final=final, exam=exam, evaluator=evaluator,
            journal=journal,
        )  # fmt: skip
        result = search(work)
        controls = [source for source in phase.sources if source.manifest.role == CONTROL]
        names = "-".join([result.winner.key, *(control.id for control in controls)])
        tested = out.remember(f"test-{names}", partial(examine, work, result.named, controls))
    finally:
        evaluator.close()
        set_threads(config.runtime.threads)
    written = _write(work, opened, stage, result, tested)
    phase.events.artefact(written.path)
    return _report(work, opened, result, tested, written)


def search(work: MergeSearch) -> SearchResult:
    """Return what the evolution and its baselines found.

    An interrupted search resumes from the journal in the phase's state.
    """
    space, config, scorer = work.space, work.config, work.scorer()
    trunk = space.parent(0)
    work.yardstick.trunk_nats = scorer.measure([trunk])[0]
    initial = [(label, space.parent(i)) for i, label in enumerate(space.labels)]
    soups = [("uniform soup", space.soup()), ("greedy soup", greedy_soup(space, scorer))]
    initial += soups + [(name, space.summed(name)) for name in SUMMED if name in space.techniques]
    evolution = evolve(space, scorer, initial, config.search, config.seed, partial(_tell, work))
    # Counted before the final choice among the fittest, which is the same for both searches.
    items = {"evolution": scorer.measured_items}
    winner, fitness = chosen(work, scorer, evolution.members, initial)
    named = dict([*initial[: len(space.labels)], *soups])
    if config.baseline:
        other = work.scorer()

        def tell(measured: int) -> None:
            work.phase.events.progress(
                "random search (items)", min(measured, items["evolution"]), items["evolution"]
            )

        members = random_search(
            space, other, initial, config.search, config.seed, items["evolution"], tell
        )
        items["random search"] = other.measured_items
        named["random search"] = chosen(work, other, members, initial)[0].genome
    return SearchResult(
        evolution=evolution, winner=winner, final_fitness=fitness, named={**named, "winner": winner.genome}, items=items
    )  # fmt: skip


def chosen(
    work: MergeSearch,
    scorer: Scorer[Genome],
    members: Sequence[Individual[Genome]],
    initial: Sequence[tuple[str, Genome]],
) -> tuple[Individual[Genome], float]:
    """Return the fittest of `members` (best first) and `initial` on the final items, and its
    fitness there.

    The best of hundreds on the search's own items owes its place partly to luck; fresh items and
    few finalists leave little of that.
    """
    if not work.final.rows:
        return members[0], members[0].fitness
    finalists = list({one.key: one for one in [*members, *scorer.individuals(initial)]}.values())
    start = len(work.yardstick.rows)
    genomes = [work.space.parent(0), *(one.genome for one in finalists)]
    trunk, *measured = scorer.measure_spans(genomes, ((start, start + len(work.final.rows)),))
    work.final.trunk_nats = list(trunk)
    fitness = [work.final.fitness(values) for values in measured]
    best = max(range(len(finalists)), key=lambda place: (fitness[place], -place))
    return finalists[best], fitness[best]


def _tell(work: MergeSearch, generation: Generation, members: Sequence[Individual[Genome]]) -> None:
    """Emit a generation: the curve of the best fitness, and the population as rows."""
    metrics: dict[str, Any] = {
        "fitness": generation.best, "mean": generation.mean, "diversity": generation.diversity,
        "items": generation.measured_items, "population": _population(work.yardstick.tasks, members),
    }  # fmt: skip
    work.phase.events.progress(
        "generations", generation.number, work.config.search.generations, metrics
    )


def _population(
    tasks: Sequence[str], members: Sequence[Individual[Genome]]
) -> list[dict[str, Any]]:
    """Return the members as rows of a table.

    The figure of a task is the mean log retention of the trunk's loss.
    """
    return [
        {
            "#": place, "technique": member.genome.technique, "from": member.origin, "fitness": round(member.fitness, 4),
            **{task: round(value, 3) for task, value in zip(tasks, member.objectives, strict=True)},
        }
        for place, member in enumerate(members, 1)
    ]  # fmt: skip


def _fingerprint(config: Config, opened: Sources, *parts_of_items: Yardstick) -> str:
    """Return a hash of all that a measurement depends on.

    Where one of these settings changes, the search starts another journal.
    """
    parts: list[Any] = [
        [checkpoint.id for checkpoint in opened.checkpoints], opened.labels, config.seed, asdict(config.merge),
        parts_of_items[0].tasks, config.batch_tokens, config.search.race, config.runtime.dtype,
        [evaluate.split_hash([ids for ids, _ in part.rows]) for part in parts_of_items],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def examine(
    work: MergeSearch, named: dict[str, Genome], controls: Sequence[Checkpoint] = ()
) -> dict[str, Any]:
    """Return the losses of the named models on the test split, and the winner's gain over each.

    The winner is the last of `named`. controls: trained models that are compared, and not merged.
    """
    config, exam = work.config, work.exam
    start = len(work.yardstick.rows) + len(work.final.rows)
    spans = ((start, start + len(exam.rows)),)
    own = dict(zip(named, work.scorer().measure_spans(list(named.values()), spans), strict=True))
    winning = own.popitem()
    nats = {**own, **{control.name: _losses_of(work, control) for control in controls}}
    nats |= [winning]
    exam.trunk_nats = next(iter(nats.values()))
    scores = {name: exam.scores(values, "test", config.seed) for name, values in nats.items()}
    winner = winning[0]
    rows = []
    for name in list(nats)[:-1]:
        row: dict[str, Any] = {
            "over": name,
            "fitness": exam.gain(
                nats[winner], nats[name], config.floor_penalty, config.samples, config.seed
            ),
            "gain": exam.gain(nats[winner], nats[name], 0.0, config.samples, config.seed),
        }
        for task in exam.tasks:
            retention = evaluate.retention(
                task, scores[name][task], scores[winner][task], config.samples, config.seed
            )
            row[task] = retention.as_metric()
        rows.append(row)
    losses = {
        name: {task: score.as_metric() for task, score in task_scores.items()}
        for name, task_scores in scores.items()
    }
    return {"gains": rows, "losses": losses}


def _losses_of(work: MergeSearch, control: Checkpoint) -> list[float]:
    """Return the loss of each item of the test split, in the dtype of the search (nats)."""
    model = models.load(control, device=work.phase.device, dtype=work.phase.dtype).eval()
    losses = evaluate.row_nll(model, work.exam.rows, work.config.batch_tokens)
    return [float(value) for value in losses[:, 0]]


def _write(
    work: MergeSearch, opened: Sources, stage: Stage, result: SearchResult, tested: dict[str, Any]
) -> Checkpoint:
    config, best, history = work.config, result.winner, result.evolution.history
    recipe = work.space.recipe(best.genome)
    model = stage.make(recipe, opened.dtype)
    dtype = opened.dtype_name
    figures = {
        "method": config.search.method, "population": config.search.population, "generations": len(history) - 1,
        "islands": config.search.islands, "measured items": result.items["evolution"], "seed": config.seed,
        "mask seed": stage.seed, "fitness on the search split": round(best.fitness, 6),
        "fitness on the items that chose it": round(result.final_fitness, 6), "winner came from": best.origin,
    }  # fmt: skip

    def save(directory: Path) -> None:
        models.save(model, work.phase.tokenizer, directory)
        (directory / RECIPE_FILE).write_text(
            recipe_text(recipe, dtype, stage.seed), encoding="utf-8"
        )
        card = card_text(config, opened, recipe, tested, figures)
        (directory / CARD_FILE).write_text(card, encoding="utf-8")

    metrics: dict[str, Any] = {
        f"test_{task}_nats": score for task, score in tested["losses"]["winner"].items()
    }
    metrics["search_fitness"] = best.fitness
    content = recipe.to_mergekit(dtype)
    return work.phase.out.write(
        save,
        metrics=metrics,
        extra={
            "recipe": content,
            "technique": recipe.method,
            "origin": best.origin,
            "mask_seed": stage.seed,
        },
        parents=opened.checkpoints,
        deployable_bytes=models.deployable_bytes(model),
    )


def _report(
    work: MergeSearch,
    opened: Sources,
    result: SearchResult,
    tested: dict[str, Any],
    written: Checkpoint,
) -> Report:
    """Return what the search found: the winner over every rival, on the test split."""
    evolution, best = result.evolution, result.winner
    gains = {row["over"]: row["fitness"] for row in tested["gains"]}
    metrics = {
        "search_fitness": best.fitness,
        "final_fitness": result.final_fitness,
        "generations": len(evolution.history) - 1,
        **{
            f"measured_items_of_{name.replace(' ', '_')}": items
            for name, items in result.items.items()
        },
        **{f"gain_over_{Path(name).name.replace(' ', '_')}": gain for name, gain in gains.items()},
    }
    rival = "random search"
    baseline = "; ".join(
        [
            f"{_interval(gains[rival])} fitness over random search on as many items"
            if rival in gains
            else "random search did not run (baseline=true runs it)",
            _against_union(gains),
        ]
    )
    return Report(
        summary=_summary(opened, work.space, result, gains),
        outputs=[str(written.path)],
        metrics=metrics,
        tables=_tables(work.yardstick, evolution, tested),
        baseline=baseline,
    )


def _summary(
    opened: Sources, space: GenomeSpace, result: SearchResult, gains: dict[str, dict[str, Any]]
) -> str:
    """Return the winner's technique and its gain in fitness over each rival, in words."""
    best = result.winner
    same = next(
        (name for name, genome in list(result.named.items())[:-1] if space.key(genome) == best.key),
        "",
    )
    best_label = min(opened.labels, key=lambda label: gains[label]["value"])
    compared = {
        "the trunk": opened.labels[0], f"the best source ({best_label})": best_label, "the uniform soup": "uniform soup",
        "the greedy soup": "greedy soup", "random search on as many items": "random search",
        "one model trained on the union of the specialists' data": UNION,
    }  # fmt: skip
    parts = [
        f"{_interval(gains[name])} over {words}"
        for words, name in compared.items()
        if name in gains
    ]
    unbeaten = f" (which is {same} itself: nothing beat it)" if same else ""
    return (
        f"Winner: {best.genome.technique}{unbeaten}. On the test split its fitness is "
        f"{', '.join(parts[:-1])} and {parts[-1]}."
    )


def _tables(
    yardstick: Yardstick, evolution: Evolution[Genome], tested: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    return {
        "Winner on the test split: gain in fitness, in mean log retention, and ratio of losses per task": [
            {key: _interval(value) if isinstance(value, dict) else value for key, value in row.items()}
            for row in tested["gains"]
        ],
        "Population at the end: log retention of the trunk on the search split": _population(
            yardstick.tasks, evolution.members
        ),
        "Generations": [
            {
                "generation": g.number, "best": round(g.best, 5), "mean": round(g.mean, 5),
                "diversity": round(g.diversity, 3), "measured items": g.measured_items, "best from": g.best_origin,
            }
            for g in evolution.history
        ],
    }  # fmt: skip


def _against_union(gains: dict[str, dict[str, Any]]) -> str:
    """Return the report's words on the control of merging: training on all data at once."""
    if UNION not in gains:
        return (
            "no model was trained on the union of the data (`forge cognate union=true` trains it)"
        )
    gain = gains[UNION]
    better = "the winner" if gain["low"] > 0 else "the union" if gain["high"] < 0 else "neither"
    return (
        f"{_interval(gain)} fitness over one model trained on the union of the specialists' data "
        f"with as many tokens ({better} is better beyond doubt)"
    )


def _interval(metric: dict[str, Any]) -> str:
    return f"{metric['value']:+.3f} [{metric['low']:+.3f}, {metric['high']:+.3f}]"
