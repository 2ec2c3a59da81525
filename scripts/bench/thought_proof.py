"""Do thoughts in words pay, at equal training and equal inference?

    python -m scripts.bench run thought_proof --parent outputs/run_all/1-cognate/trunk --seeds 5
    python -m scripts.bench run thought_proof --smoke

From one parent, as many windows of equal length teach questions that need a few steps (sums,
products by parts, swapped cups, stories), in five ways:

1. answers alone, answered once;
2. the same model, answered by the vote of as many samples as a thought costs (equal inference);
3. pause tokens: in the place of the thought as many dots (equal inference);
4. shuffled thoughts: the thought of another question of the same kind (equal inference);
5. the right thought: plain chain of thought.

Rationales in words are of this kind; --thinker DIR scores a model of `forge quietstar
objective=task_thoughts` on the same questions beside them, whose training was its own. Every
finished trial is a line of WORK/trials.jsonl: a killed bench goes on.
"""

import argparse
import copy
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_forge import data, evaluate, learn, models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_prompt, stop_ids
from agent_forge.data.calls import THINK_CLOSE, THINK_OPEN
from agent_forge.data.sources import RowSource
from agent_forge.data.synthetic import chat, rationales
from agent_forge.evaluate.engine import last_word
from agent_forge.phases.quietstar import Config
from scripts.bench import trials
from scripts.bench.result import Figure, Result, here
from scripts.bench.stats import mean_interval

CLAIM = "Thoughts in words answer more questions than their controls at equal FLOPs"
BAR = "at least 10 points over answers alone and over every control of equal inference"
LEAST = 0.10

ALONE, VOTED, PAUSED = "answers alone", "answers alone, voted", "pause tokens"
SHUFFLED, THOUGHT = "shuffled thoughts", "thoughts"
WAYS = (ALONE, VOTED, PAUSED, SHUFFLED, THOUGHT)
PAUSE = "."
Row = dict[str, Any]


def taught(way: str, rows: Sequence[Row], tokenizer: Any, seed: int) -> list[Row]:
    """Return the rows as a way teaches them; questions and answers stay."""
    if way in (ALONE, VOTED):
        return [rationales.plain(row) for row in rows]
    if way == THOUGHT:
        return list(rows)
    thoughts = [row["thought"] for row in rows]
    if way == PAUSED:
        thoughts = [PAUSE * len(tokenizer.encode(t, add_special_tokens=False)) for t in thoughts]
    else:
        thoughts = shuffled(rows, seed)
    return [
        {**row, "thought": thought, "messages": chat(
            row["messages"][0]["content"], f"{THINK_OPEN}{thought}{THINK_CLOSE} {row['answer']}"
        )}
        for row, thought in zip(rows, thoughts, strict=True)
    ]  # fmt: skip


def shuffled(rows: Sequence[Row], seed: int) -> list[str]:
    """Return for every row the thought of another row of its kind, each thought once."""
    generator = numpy_generator(seed, "bench", "shuffled thoughts")
    thoughts = [row["thought"] for row in rows]
    for kind in sorted({row["kind"] for row in rows}):
        places = [i for i, row in enumerate(rows) if row["kind"] == kind]
        order = [places[i] for i in generator.permutation(len(places))]
        # A cycle through a random order leaves no row its own.
        for here_, there in zip(order, [*order[1:], order[0]], strict=True):
            thoughts[here_] = rows[there]["thought"]
    return thoughts


def majority(answers: Sequence[str]) -> str:
    """Return the most frequent answer, of equals the first."""
    return Counter(answers).most_common(1)[0][0]


def run(arguments: Sequence[str] = ()) -> Result:
    """Train what is not yet trained, and print the five ways beside one another."""
    parser = argparse.ArgumentParser(prog="thought_proof", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    trials.add_arguments(parser, seeds=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--items", type=int, default=256, help="held-out questions")
    parser.add_argument("--thinker", type=Path, help="a model of objective=task_thoughts")
    options = trials.settled(parser.parse_args(arguments))
    if options.smoke:
        options.steps, options.items = 3, 4
    proof = Proof(options)
    shares: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for way in WAYS if seed % 2 == 0 else WAYS[::-1]:
            shares[way].append(proof.share(way, seed))
    figures = [_figure(f"right answers, {way}", values) for way, values in shares.items()]
    gains = [
        _figure(
            f"gain of thoughts over {way}",
            [a - b for a, b in zip(shares[THOUGHT], shares[way], strict=True)], True,
        )
        for way in WAYS[:-1]
    ]  # fmt: skip
    if options.thinker:
        scores = proof.right(models.load(options.thinker).eval(), proof.tokenizer, THOUGHT, 1)
        figures.append(_figure(f"right answers, {options.thinker.name}", [statistics.mean(scores)]))
    for figure in [*figures, *gains]:
        print(f"{figure.claim}: {figure.figure:.4f} {figure.interval}")
    worst = min(gains, key=lambda figure: figure.figure or 0.0)
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, figure=worst.figure, interval=worst.interval,
        unit="points over the best control", met=all(gain.met for gain in gains),
        n=f"{options.seeds} seeds, {options.items} questions", figures=[*figures, *gains],
        note=f"{options.steps} steps of {options.rows} windows of {options.length} tokens each way",
        **here("thought_proof", arguments),
    )  # fmt: skip


class Proof:
    """Trainings by way and seed, and their right answers."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.trials = options, trials.Trials(options)
        self.tokenizer = self.trials.tokenizer
        more = [trials.SMOKE_DATA] if options.smoke else []
        self.config = compose("quietstar", Config, ["out=o", "sources=[s]", *more])

    def share(self, way: str, seed: int) -> float:
        """Return the share of held-out questions that a way answers rightly."""
        key = {
            "way": way, "seed": seed, "steps": self.options.steps, "items": self.options.items,
        }  # fmt: skip

        def compute() -> dict[str, Any]:
            rows = rationales.rows(200 if self.options.smoke else 4000, "train", seed)
            model = self._trained(taught(way, rows, self.tokenizer, seed), way, seed)
            votes = self._votes(rows) if way == VOTED else 1
            right = self.right(model, self.tokenizer, way, votes)
            return {"right": statistics.mean(right), "votes": votes}

        return float(self.trials.once(key, compute)["right"])

    def _votes(self, rows: Sequence[Row]) -> int:
        """Return how many answers alone cost as many tokens as one reply with a thought."""

        def tokens(row: Row) -> int:
            return len(self.tokenizer.encode(row["messages"][1]["content"]))

        pairs = [(tokens(row), tokens(rationales.plain(row))) for row in rows[:200]]
        return max(1, round(sum(a for a, _ in pairs) / sum(b for _, b in pairs)))

    def _trained(self, rows: list[Row], way: str, seed: int) -> Any:
        """Return the parent trained on these rows for as many windows as every other way."""
        options, config = self.options, copy.deepcopy(self.config)
        config.optim.lr, config.optim.clip_norm = config.task.lr, 1.0
        sources: dict[str, Any] = {
            "rows": RowSource(rows, self.tokenizer),
            "text": data.source("text", config.data, self.tokenizer, "train", seed),
        }
        share = config.task.text_share
        batches = data.Mixture(
            sources, {"rows": 1 - share, "text": share}, rows=options.rows,
            length_tokens=options.length, seed=seed, name="thought_proof",
        )  # fmt: skip
        model = models.load(self.trials.parent)
        place = options.work / f"proof-{way.replace(' ', '-')}-{seed}"
        out = Workspace(place, phase="quietstar", seed=seed, config=config)
        learn.train(
            model,
            learn.TrainRequest(
                batches=batches, loss_fn=learn.lm_loss, stage="proof", steps=options.steps,
                optim=config.optim, out=out, events=EventLog(None, "quietstar"), seed=seed,
            ),
        )  # fmt: skip
        out.clear_state()
        return model.eval()

    def right(self, model: Any, tokenizer: Any, way: str, votes: int) -> list[bool]:
        """Return question by question whether the answer is right.

        votes: samples per question, of which the majority answers; 1 answers greedily.
        """
        context = evaluate.EvalContext(data=self.config.data, seed=0, tokenizer=tokenizer)
        items = evaluate.task_items("rationales", "test", self.options.items, context)
        prompts = [encode_prompt(tokenizer, item["messages"][:1]) for item in items]
        decoding = models.Decoding(
            max_new_tokens=self.config.task.max_new_tokens, stop_ids=stop_ids(tokenizer, model),
            temperature=0.0 if votes == 1 else 1.0, seed=seed_for(0, "bench", way),
        )  # fmt: skip
        replies = models.generate(
            model, [prompt for prompt in prompts for _ in range(votes)], decoding
        )
        most = self.config.task.max_new_tokens
        words = [
            last_word(str(tokenizer.decode(r, skip_special_tokens=True))) if len(r) < most else ""
            for r in replies
        ]
        return [
            majority(words[votes * i : votes * (i + 1)]) == item["answer"]
            for i, item in enumerate(items)
        ]


def _figure(claim: str, values: Sequence[float], judged: bool = False) -> Figure:
    mean, low, high = mean_interval(values)
    return Figure(
        claim=claim, figure=mean, unit="share of the questions", interval=(low, high),
        n=f"{len(values)} seeds", bar=f"at least {LEAST}" if judged else "",
        met=mean >= LEAST and not low <= 0 if judged else None,
    )  # fmt: skip
