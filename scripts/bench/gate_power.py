"""What the default gates refuse.

    python -m scripts.bench run gate_power RUN_DIR [--parents 1-cognate/trunk]

Damages a checkpoint of a finished run in known ways and at several strengths, scores parent and
damaged child on a large pool of validation items, and lets the gate judge the two on items drawn
from the pool, as often as --draws says. A row per damage: what the pool says is kept of each gated
task, and the share of draws refused. Prints a Markdown table, then how the two bars stand: every
damage that costs a task more than a tenth is refused, and unchanged children pass at 99%.

Reads RUN_DIR; writes only the pairs of each damage under --cache, so that it can go on after a
stop.
"""

import argparse
import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent_forge import checkpoint, data, evaluate, models
from agent_forge.config import PhaseConfig
from agent_forge.config.compose import compose
from agent_forge.core.seeds import numpy_generator, seed_for, torch_generator
from agent_forge.data.synthetic import tools
from agent_forge.pipeline.gate import LOOK_GROWTH, SPLIT
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "The default gates refuse what costs a task more than a tenth, and pass unchanged children"
BAR = "each such damage refused in 99% of draws, unchanged children passed in 99%"

LOST = 0.1  # a damage that costs a task more than this share of its score is to be refused
Pairs = dict[str, np.ndarray]  # task -> (pool, 2)


@dataclass
class Damage:
    """A named change of a model's weights. unchanged: it is meant to cost nothing."""

    name: str
    apply: Callable[[Any], None]
    unchanged: bool = False


def matrices(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """Return the weight matrices by name."""
    return [(name, value) for name, value in model.named_parameters() if value.dim() == 2]


def noise(share: float) -> Callable[[Any], None]:
    """Add normal noise of `share` of each matrix's standard deviation."""

    def apply(model: Any) -> None:
        generator = torch_generator(0, "gate-power", "noise")
        for _, weight in matrices(model):
            weight += share * weight.std() * torch.randn(weight.shape, generator=generator)

    return apply


def rounded(model: Any) -> None:
    """Round every parameter to bfloat16."""
    for value in model.parameters():
        value.copy_(value.bfloat16().float())


def output_projections(model: Any) -> list[torch.nn.Parameter]:
    """Return the matrices by which attention heads enter the stream, from the first layer on."""
    return [weight for name, weight in matrices(model) if name.endswith("o_proj.weight")]


def heads(count: int, factor: float) -> Callable[[Any], None]:
    """Scale the first `count` attention heads of the middle layer by `factor`."""

    def apply(model: Any) -> None:
        layers = output_projections(model)
        weight = layers[len(layers) // 2]
        width = weight.shape[1] // int(model.config.get_text_config().num_attention_heads)
        weight[:, : count * width] *= factor

    return apply


def shuffled(share: float) -> Callable[[Any], None]:
    """Permute a share of the rows of the feed-forward output of the middle layer."""

    def apply(model: Any) -> None:
        layers = [weight for name, weight in matrices(model) if name.endswith("down_proj.weight")]
        weight = layers[len(layers) // 2]
        generator = torch_generator(0, "gate-power", "shuffle")
        chosen = torch.randperm(len(weight), generator=generator)[
            : max(2, int(share * len(weight)))
        ]
        weight[chosen.sort().values] = weight[chosen].clone()

    return apply


def unlearned(steps: int, tokenizer: Any) -> Callable[[Any], None]:
    """Train `steps` steps on tool questions answered at once, without a call."""
    rows = []
    for row in tools.rows(400, "train", 0):
        answer = {"role": "assistant", "content": row["answer"]}
        rows.append({"messages": [row["messages"][0], answer]})
    source = data.RowSource(rows, tokenizer)

    def apply(model: Any) -> None:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        generator = numpy_generator(0, "gate-power", "unlearn")
        for _ in range(steps):
            ids, labels = (
                torch.from_numpy(np.stack(part))
                for part in zip(*(source.take(generator, 96) for _ in range(8)), strict=True)
            )
            with torch.enable_grad():
                loss = model(input_ids=ids, labels=labels).loss
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()

    return apply


def damages(tokenizer: Any) -> Iterator[Damage]:
    """Yield the table's rows."""
    yield Damage("the same weights", lambda model: None, unchanged=True)  # noqa: ARG005
    yield Damage("rounded to bfloat16", rounded, unchanged=True)
    for share in (0.001, 0.003, 0.01, 0.03, 0.06, 0.1, 0.2):
        yield Damage(f"noise of {share:g} σ", noise(share), unchanged=share <= 0.003)
    for share in (0.1, 0.3, 1.0):
        yield Damage(f"{share:.0%} of one layer's rows shuffled", shuffled(share))
    for count, factor in ((1, 0.8), (1, 0.5), (1, 0.0), (2, 0.0), (4, 0.0)):
        yield Damage(f"{count} head{'s' * (count > 1)} times {factor:g}", heads(count, factor))
    for steps in (1, 2, 4, 8):
        yield Damage(
            f"tools unlearned, {steps} step{'s' * (steps > 1)}", unlearned(steps, tokenizer)
        )


class Pool:
    """The pool of items, and the pairs of each model on it."""

    def __init__(self, settings: PhaseConfig, size: int, cache: Path) -> None:
        self.settings, self.cache = settings, cache
        self.context = evaluate.EvalContext(data=settings.data, seed=settings.seed)
        self.items = {
            task: evaluate.task_items(task, SPLIT, size, self.context)
            for task in settings.gate.tasks
        }

    def pairs(self, identity: str, model: Any, tokenizer: Any, tasks: Sequence[str]) -> Pairs:
        """Return the pairs of a model on `tasks`.

        `model` makes it, where they are not known yet.
        """
        pairs: Pairs = {}
        ready = None
        for task in tasks:
            items = self.items[task]
            key = json.dumps([identity, task, evaluate.split_hash(items)])
            file = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"
            if not file.exists():
                ready = model() if ready is None else ready
                scored = evaluate.item_pairs(ready, tokenizer, task, items, self.context)
                self.cache.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(scored.tolist()), encoding="utf-8")
            pairs[task] = np.asarray(json.loads(file.read_text(encoding="utf-8")))
        return pairs

    def scores(self, task: str, pairs: np.ndarray, places: np.ndarray) -> evaluate.Scores:
        """Return the scores on the items at `places`."""
        items = [self.items[task][i] for i in places]
        return evaluate.scores_of(task, items, pairs[places], SPLIT, self.settings.seed)


def refused(pool: Pool, parent: Pairs, child: Pairs, seed: int) -> bool:
    """Return whether the gate refuses the child on items drawn by `seed`, look by look as in a
    run.
    """
    gate = replace(
        pool.settings.gate, tasks={task: pool.settings.gate.tasks[task] for task in parent}
    )
    most = gate.items * LOOK_GROWTH ** (gate.looks - 1)
    draws = {
        task: numpy_generator(seed, "gate-power", task).integers(
            0, len(items), min(most, len(items))
        )
        for task, items in pool.items.items()
    }
    open_tasks, scores = list(parent), ({}, {})
    for look in range(gate.looks):
        for task in open_tasks:
            places = draws[task][: gate.items * LOOK_GROWTH**look]
            for side, pairs in zip(scores, (parent, child), strict=True):
                side[task] = pool.scores(task, pairs[task], places)
        verdict = evaluate.judge(gate, *scores, seed=seed)
        open_tasks = verdict.open_tasks()
        if not open_tasks:
            break
    return not verdict.passed


def table(pool: Pool, source: checkpoint.Checkpoint, draws: int) -> tuple[list[str], list[Figure]]:
    """Return the Markdown rows of one parent, and its damages beside their bars."""
    tokenizer = models.load_tokenizer(source.path)
    loaded = models.load(source)
    parent = pool.pairs(source.id, lambda: loaded, tokenizer, list(pool.items))
    everything = {task: np.arange(len(items)) for task, items in pool.items.items()}
    whole = {task: pool.scores(task, parent[task], everything[task]) for task in parent}
    gated = [task for task, scores in whole.items() if scores.above_chance]
    parent = {
        task: parent[task] for task in gated
    }  # the others are not gated, whatever the child does
    lines, figures = [], []
    for damage in damages(tokenizer):

        def damaged(damage: Damage = damage) -> Any:
            model = copy.deepcopy(loaded)
            with torch.no_grad():
                damage.apply(model)
            return model

        child = pool.pairs(f"{source.id} {damage.name}", damaged, tokenizer, gated)
        retained = {
            task: evaluate.retention(
                task, whole[task], pool.scores(task, child[task], everything[task]), 1000, 0
            ).ratio
            for task in gated
        }
        rate = np.mean(
            [refused(pool, parent, child, seed_for(seed, "draw")) for seed in range(draws)]
        )
        due = "pass" if damage.unchanged else "refuse" if min(retained.values()) < 1 - LOST else ""
        figures.append(refusals(damage.name, retained, float(rate), due, draws))
        cells = [
            f"{retained[task]:.3f}" if task in retained else "at chance" for task in pool.items
        ]
        lines.append(f"| {damage.name} | {' | '.join(cells)} | {due} | {rate:.3f} |")
        print(lines[-1], flush=True)
    return lines, figures


def refusals(damage: str, retained: dict[str, float], rate: float, due: str, draws: int) -> Figure:
    """Return how often a damage is refused.

    retained: what is kept of each gated task. due: "pass", "refuse", or "" where either is right.
    """
    shares = ", ".join(f"{task} {share:.3f}" for task, share in retained.items())
    bars = {"pass": "at most .01", "refuse": "at least .99"}
    met = {"pass": rate <= 0.01, "refuse": rate >= 0.99}
    return Figure(
        claim=f"refused: {damage} ({shares} kept)", figure=rate, unit="of draws", n=f"{draws} draws",
        bar=bars.get(due, ""), met=met.get(due),
    )  # fmt: skip


def run(arguments: Sequence[str] = ()) -> Result:
    """Print one table per parent, and how the two bars stand."""
    parser = argparse.ArgumentParser(prog="gate_power", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("run_dir", type=Path)
    add("--parents", nargs="*", default=["1-cognate/trunk"], help="inside RUN_DIR")
    add("--pool", type=int, default=640, help="validation items per task")
    add("--draws", type=int, default=300)
    add("--cache", type=Path, default=Path("outputs/gate_power"))
    add("overrides", nargs="*", default=[], help="KEY=VALUE settings, as gate.items=96")
    args = parser.parse_intermixed_args(arguments)
    names = {"out": "out=.", "cache": f"data.cache={args.cache / 'data'}"}
    settings = compose("base", PhaseConfig, [*names.values(), *args.overrides])
    settings.gate = replace(settings.gate, chain={})
    pool = Pool(settings, args.pool, args.cache)
    sizes = ", ".join(f"{task} {len(items)}" for task, items in pool.items.items())
    head = [
        f"| damage | {' | '.join(pool.items)} | due | refused |",
        "|---|" + "---|" * len(pool.items) + "---|---|",
    ]
    figures, tables = [], []
    for name in args.parents:
        title = f"\nparent {name}; pool: {sizes}; {args.draws} draws; share of the parent kept\n"
        print(title, *head, sep="\n")
        lines, judged = table(pool, checkpoint.open(args.run_dir / name), args.draws)
        figures += sorted(judged, key=lambda figure: not figure.bar)
        tables += [title, *head, *lines]
    result = Result(
        claim=CLAIM,
        topic="Gates",
        bar=BAR,
        n=f"{args.draws} draws per damage",
        **bars_met(figures),
        figures=figures,
        tables="\n".join(tables),
        **here("gate_power", arguments),
    )
    print(f"\nboth bars {'met' if result.met else 'MISSED'}")
    return result
