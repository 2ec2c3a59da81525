"""Persona vectors: how strongly one direction in the stream shows a trait, and what it costs.

    python -m scripts.bench run persona_vectors outputs/smollm2 [KEY=VALUE ...]

What is measured is kept in --work, dose by dose, so that a killed bench goes on.

The traits and their questions are those of `forge bake` (`persona.traits`, and every other setting
of it, by KEY=VALUE). A trait's vector in a layer is the mean hidden state at the tokens of the
prompted model's answers, with the trait's system prompt less without it. A dose of it is added to
what the layer returns, at every token, which is a bias of the layer. Strength is that of a bake:
1 - KL(prompted || steered) / KL(prompted || plain), on questions of other topics than those that
the vector was taken from. Drift is KL(plain || steered) on held-out text, in nats per token. The
layer is chosen by the strength of dose 1 on the vector's own questions; a random vector of equal
norm in that layer stands beside every dose. Nothing is trained. Source: persona vectors
(arXiv:2507.21509).
"""

import argparse
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import checkpoint, data, learn, models
from agent_forge.anatomy.stack import blocks, matrices, stream_out, with_stream_out
from agent_forge.anatomy.watch import watching
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.seeds import seed_for
from agent_forge.data import encode_prompt
from agent_forge.evaluate.scores import bootstrap_interval
from agent_forge.phases.adas.influence import measure_influence
from agent_forge.phases.bake import Config, TraitConfig, persona
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "One vector shows a trait of bake as strongly as bake is asked to show it"
BAR = "the strength that bake aims at (.9, .7, .8), with less than .05 nats per token of drift"
MOST_DRIFT_NATS = 0.05
DOSES = (0.25, 0.5, 1.0, 2.0, 4.0)
DEPTHS = (0.25, 0.5, 0.75)  # layers that are tried, as shares of the stack
Lesson = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Point:
    """One dose of a trait's vector (random: of a random vector of its norm), and its response."""

    trait: str
    layer: int
    dose: float
    random: bool
    strength: float
    interval: tuple[float, float]
    drift_nats: float


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is steered, and the windows (n, T) of text on which it should not change.

    plain: its logits (n, T, V) there without a vector. out: where what is measured is kept.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    windows: Tensor
    plain: Tensor
    config: Config
    out: Workspace

    def lesson(self, name: str, split: str, count: int) -> tuple[list[str], Lesson]:
        """Return questions of a trait, and the prompted model's answers to them."""
        trait, seed = self.config.persona.traits[name], self.config.seed
        texts = persona.questions(trait, count, split, seed, name)
        drawn = seed_for(seed, "bake", "teacher", name)
        lesson = self.out.remember_tensors(
            f"{name}-{split}",
            lambda: persona.teach(
                self.model, self.tokenizer, trait, texts, self.config.persona, drawn
            ),
        )
        return texts, lesson


@contextmanager
def steered(model: PreTrainedModel, layer: int, vector: Tensor) -> Iterator[None]:
    """Add a vector (d) to what a layer returns, at every token, while the context lasts."""

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        return with_stream_out(output, stream_out(output) + vector)

    with watching(after=[(blocks(model)[layer], add)]):
        yield


def vectors(
    subject: Subject, trait: TraitConfig, questions: Sequence[str], lesson: Lesson
) -> dict[str, Tensor]:
    """Return a trait's vector (d) by the number of each layer: the mean hidden state at answer tokens, with the
    system prompt less without it.
    """
    plain, prompted, starts = [], [], ([], [])
    for question, ids, mask in zip(questions, lesson["ids"], lesson["mask"], strict=True):
        places = mask.nonzero()[:, 0] + 1
        answer = ids[places].tolist()
        turns = [
            {"role": "system", "content": trait.system}, {"role": "user", "content": question},
        ]  # fmt: skip
        before = encode_prompt(subject.tokenizer, turns)
        plain.append(ids[: int(places[-1]) + 1].tolist())
        prompted.append([*before, *answer])
        starts[0].append(int(places[0]))
        starts[1].append(len(before))
    seen = measure_influence(
        subject.model, matrices(subject.model), plain, prompted, counted_from=starts
    )
    return {
        key.removeprefix("stream/"): value
        for key, value in seen.items()
        if key.startswith("stream/")
    }


@torch.no_grad()
def nats(model: PreTrainedModel, lesson: Lesson) -> np.ndarray:
    """Return KL(prompted || model) of each answer, summed over its tokens: (answers,) float64."""
    rows = range(len(lesson["ids"]))
    return np.asarray([float(persona.lesson_kl(model, lesson, [row])[0]) for row in rows])


@torch.no_grad()
def drift(subject: Subject, layer: int, vector: Tensor) -> float:
    """Return KL(plain || steered) on the windows, in nats per token."""
    with steered(subject.model, layer, vector):
        other = window_logits(subject.model, subject.windows)
    every = torch.ones(subject.windows.shape, dtype=torch.bool)
    return float(learn.distill_loss(subject.plain, other, every, 1.0))


@torch.no_grad()
def window_logits(model: PreTrainedModel, windows: Tensor) -> Tensor:
    """Return the logits (n, T, V) of windows (n, T), on the host."""
    rows = windows.to(model.device).split(1)
    return torch.cat([model(input_ids=row).logits.float().cpu() for row in rows])


def strength(
    model: PreTrainedModel, lesson: Lesson, before: np.ndarray, layer: int, vector: Tensor
) -> tuple[float, tuple[float, float]]:
    """Return the strength of a steered model with its interval; before: `nats` without a vector."""
    with steered(model, layer, vector):
        after = nats(model, lesson)
    low, high = bootstrap_interval(after, before, seed=0)
    return 1.0 - float(after.sum() / before.sum()), (1.0 - high, 1.0 - low)


def chosen_layer(subject: Subject, lesson: Lesson, by_layer: Mapping[str, Tensor]) -> int:
    """Return the layer in which dose 1 is strongest, among those at DEPTHS."""
    before = nats(subject.model, lesson)
    candidates = sorted({round(share * (len(by_layer) - 1)) for share in DEPTHS})
    return max(
        candidates,
        key=lambda layer: strength(
            subject.model, lesson, before, layer, by_layer[str(layer)].to(subject.model.device)
        )[0],
    )


def curve(subject: Subject, name: str) -> list[Point]:
    """Return the response to every dose of a trait's vector, and of a random one."""
    settings, trait = subject.config.persona, subject.config.persona.traits[name]
    texts, lesson = subject.lesson(name, "train", settings.prompts)
    by_layer = subject.out.remember_tensors(
        f"{name}-vectors", lambda: vectors(subject, trait, texts, lesson)
    )
    layer = int(
        subject.out.remember(f"{name}-layer", lambda: chosen_layer(subject, lesson, by_layer))
    )
    _, held_out = subject.lesson(name, "validation", settings.heldout)
    before = np.asarray(
        subject.out.remember(f"{name}-before", lambda: nats(subject.model, held_out).tolist())
    )
    generator = torch.Generator().manual_seed(seed_for(subject.config.seed, "bench", name))
    vector = by_layer[str(layer)]
    other = torch.randn(vector.shape, generator=generator)
    other *= vector.norm() / other.norm()

    def measured(dose: float, *, random: bool) -> dict[str, Any]:
        dosed = (dose * (other if random else vector)).to(subject.model.device)
        value, interval = strength(subject.model, held_out, before, layer, dosed)
        return {
            "strength": value, "interval": interval, "drift_nats": drift(subject, layer, dosed),
        }  # fmt: skip

    points = []
    for dose, random in itertools.product(DOSES, (False, True)):
        row = subject.out.remember(
            f"{name}-{dose:g}-{'random' if random else 'trait'}",
            partial(measured, dose, random=random),
        )
        point = {**row, "interval": tuple(row["interval"])}
        points.append(Point(trait=name, layer=layer, dose=dose, random=random, **point))
        print(points[-1], flush=True)
    return points


def opened(source: Path, settings: Sequence[str], windows: int, length: int, work: Path) -> Subject:
    """Return the model of a checkpoint, and windows of held-out text.

    work: what is measured is kept there, for these arguments alone.
    """
    config = compose("bake", Config, ["out=x", f"sources=[{source}]", *settings])
    tokenizer = models.load_tokenizer(source)
    text: Any = data.source("text", config.data, tokenizer, "validation", config.seed)
    rows = torch.from_numpy(text.windows(length, windows))
    model = models.load(source).eval()
    arguments = [checkpoint.open(source).id, *settings, str(windows), str(length)]
    key = hashlib.sha256("\n".join(arguments).encode()).hexdigest()[:12]
    out = Workspace(work / key, phase="persona_vectors", seed=config.seed, config=config)
    return Subject(model, tokenizer, rows, window_logits(model, rows), config, out)


def best(points: Sequence[Point]) -> Point | None:
    """Return the strongest dose of the vector whose drift is small enough; None where none is."""
    mild = [one for one in points if not one.random and one.drift_nats < MOST_DRIFT_NATS]
    return max(mild, key=lambda one: one.strength, default=None)


def figure_of(name: str, points: Sequence[Point], target: float, count: int) -> Figure:
    """Return a trait's best strength at small drift beside what bake aims at."""
    one = best(points)
    if one is None:
        return Figure(claim=f"{name}: no dose stays below the drift", figure=None, met=False,
                      bar=f"strength of at least {target}")  # fmt: skip
    where = f"layer {one.layer}, dose {one.dose:g}, drift {one.drift_nats:.3f}"
    return Figure(
        claim=f"strength of {name} by its vector ({where})", figure=round(one.strength, 3),
        interval=one.interval, n=f"{count} answers", bar=f"at least {target}",
        met=one.strength >= target,
    )  # fmt: skip


def table(points: Sequence[Point]) -> str:
    """Return the dose-response curves as Markdown."""
    lines = [
        "| trait | layer | dose | vector | strength | 95% | drift (nats per token) |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in points:
        sort, (low, high) = "random" if one.random else "trait", one.interval
        lines.append(
            f"| {one.trait} | {one.layer} | {one.dose:g} | {sort} | {one.strength:.3f} "
            f"| [{low:.3f}, {high:.3f}] | {one.drift_nats:.4f} |"
        )
    return "\n".join(lines)


def run(arguments: Sequence[str] = ()) -> Result:
    """Measure and print the curves of all traits."""
    parser = argparse.ArgumentParser(prog="persona_vectors", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, help="the checkpoint to steer")
    add("--windows", type=int, default=8, help="pieces of held-out text")
    add("--length", type=int, default=96, help="tokens of each")
    add("--work", type=Path, default=Path("outputs/persona_vectors"), help="what is measured")
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of forge bake")
    options = parser.parse_intermixed_args(arguments)
    subject = opened(
        options.source, options.settings, options.windows, options.length, options.work
    )
    settings = subject.config.persona
    curves = {name: curve(subject, name) for name in settings.traits}
    figures = [
        figure_of(name, points, settings.traits[name].strength, settings.heldout)
        for name, points in curves.items()
    ]
    tokens = subject.windows.numel()
    return Result(
        claim=CLAIM, topic="Agent", bar=BAR, figures=figures, **bars_met(figures),
        n=f"{settings.heldout} held-out answers per trait, {tokens} tokens of text",
        tables=table([point for points in curves.values() for point in points]),
        **here("persona_vectors", arguments),
    )  # fmt: skip
