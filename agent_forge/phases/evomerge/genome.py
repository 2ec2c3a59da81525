"""A genome and its space: technique, weights over depth for every source, a few scalars, and a
layer path.

All techniques share one layout of genes, so that techniques cross with each other; a technique
reads the genes that its parameters name. Decoding gives a plain recipe
(`agent_forge.merge.Recipe`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError
from agent_forge.merge import Method, Recipe, load_method
from agent_forge.merge.bank import GRID
from agent_forge.merge.methods import dfs
from agent_forge.merge.recipe import ModelEntry
from agent_forge.phases.evomerge import MergeConfig

PATHS = ("passthrough", "dfs")
# Methods that average whole models take no negative weight. Where the weights of all models are
# nearly 0 at some depth, all models count alike there.
LEAST_MEAN_WEIGHT = 1e-3
FIRST_MOVES = 2  # how many layers of a random path are changed
# The ranges of the share of largest entries that is dropped, and of the spread of keep
# probabilities.
GAMMA, EPSILON = [0.0, 0.1], [0.0, 0.2]


@dataclass(frozen=True, slots=True)
class Genome:
    """One candidate. Sources are numbered, 0 is the trunk.

    weights: (sources, anchors). mix: (anchors,), how far an interpolation of two models goes. pair:
    those two models. density: (sources,). path: (source, layer) of each layer. input_scales: one
    per layer, read where the path jumps.
    """

    technique: str
    weights: tuple[tuple[float, ...], ...]
    mix: tuple[float, ...]
    pair: tuple[int, int]
    density: tuple[float, ...]
    strength: float
    gamma: float
    epsilon: float
    path: tuple[tuple[int, int], ...]
    input_scales: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a number of a genome stands: its field, its place there, and [lowest, highest]."""

    name: str
    place: tuple[int, ...]
    bounds: list[float]


class GenomeSpace:
    """Draws, changes and compares genomes over `labels` (trunk first); see
    `agent_forge.search.population.Space`.
    """

    def __init__(self, config: MergeConfig, labels: list[str], layers: int, scalable: bool) -> None:
        """Open the space of the techniques that fit these sources; ConfigError where none does.

        layers: depth of the models, 0 when layers cannot be rearranged; scalable: whether the
        inputs of layers can be scaled.
        """
        self.config, self.labels, self.layers, self.scalable = config, labels, layers, scalable
        self.methods: dict[str, Method] = {
            name: load_method(name).METHOD for name in config.techniques
        }
        if not layers:
            self.methods = {
                name: method for name, method in self.methods.items() if name not in PATHS
            }
        for name, method in list(self.methods.items()):
            if method.base == "required" and method.models[0] > len(labels) - 1:
                del self.methods[name]
        if not self.methods:
            raise ConfigError(
                f"none of merge.techniques={list(config.techniques)} fits these sources; add linear"
            )
        self.techniques = list(self.methods)

    # -- Drawing genomes.

    def parent(self, source: int) -> Genome:
        """Return the genome that is source number `source` itself."""
        technique = self.techniques[0] if set(self.techniques) <= set(PATHS) else "linear"
        return replace(
            self._plain(source), technique=technique, weights=self.soup([source]).weights
        )

    def soup(self, sources: Sequence[int] | None = None) -> Genome:
        """Return the plain mean of some sources (default: of the specialists)."""
        chosen = range(1, len(self.labels)) if sources is None else sources
        weights = tuple(
            (float(i in chosen),) * self.config.anchors for i in range(len(self.labels))
        )
        return replace(self._plain(1), technique="linear", weights=weights)

    def summed(self, technique: str) -> Genome:
        """Return a task-vector merge whose weights sum to about 2, with a density of a half.

        Published evolutions end near that sum.
        """
        share = min(max(2.0 / (len(self.labels) - 1), self.config.weight[0]), self.config.weight[1])
        weights = tuple(tuple(share for _ in range(self.config.anchors)) for _ in self.labels)
        return replace(self._plain(1), technique=technique, weights=weights)

    def random(self, generator: np.random.Generator) -> Genome:
        """Return a genome drawn from the whole space."""
        config, count = self.config, len(self.labels)
        genome = Genome(
            technique=self.techniques[int(generator.integers(len(self.techniques)))],
            weights=tuple(_draws(generator, config.weight, config.anchors) for _ in range(count)),
            mix=_draws(generator, [0.0, 1.0], config.anchors),
            pair=self._pair(generator),
            density=_draws(generator, config.density, count),
            strength=_draws(generator, config.strength, 1)[0],
            gamma=_draws(generator, GAMMA, 1)[0],
            epsilon=_draws(generator, EPSILON, 1)[0],
            path=(),
            input_scales=(),
        )
        plain = self._plain(int(generator.integers(count)))
        genome = replace(genome, path=plain.path, input_scales=plain.input_scales)
        for _ in range(FIRST_MOVES if self.layers else 0):
            genome = self._move_path(genome, generator, 1.0)
        return genome

    def _plain(self, source: int) -> Genome:
        """Return a genome of middle values whose path is all layers of one source."""
        config, count = self.config, len(self.labels)
        return Genome(
            technique="linear",
            weights=tuple((1.0,) * config.anchors for _ in range(count)),
            mix=(0.5,) * config.anchors,
            pair=(0, min(source, count - 1) or 1),
            density=tuple(
                min(max(0.5, config.density[0]), config.density[1]) for _ in range(count)
            ),
            strength=min(max(1.0, config.strength[0]), config.strength[1]),
            gamma=0.01,
            epsilon=0.1,
            path=tuple((source, layer) for layer in range(self.layers)),
            input_scales=(1.0,) * self.layers,
        )

    # -- Changing genomes.

    def mutate(self, genome: Genome, generator: np.random.Generator, strength: float) -> Genome:
        """Return a changed copy: a step in the genes, and sometimes another technique."""
        if generator.random() < 0.2 * strength + 0.05 or genome.technique not in self.techniques:
            genome = replace(
                genome, technique=self.techniques[int(generator.integers(len(self.techniques)))]
            )
        if genome.technique in PATHS:
            for _ in range(1 + int(generator.integers(1 + round(2 * strength)))):
                genome = self._move_path(genome, generator, strength)
            return genome
        config = self.config
        if generator.random() < 0.2 * strength:
            genome = replace(genome, pair=self._pair(generator))
        return replace(
            genome,
            weights=self._moved(genome.weights, generator, strength),
            mix=_stepped(generator, genome.mix, [0.0, 1.0], strength),
            density=_stepped(generator, genome.density, config.density, strength),
            strength=_stepped(generator, (genome.strength,), config.strength, strength)[0],
            gamma=_stepped(generator, (genome.gamma,), GAMMA, strength)[0],
            epsilon=_stepped(generator, (genome.epsilon,), EPSILON, strength)[0],
        )

    def _moved(
        self, rows: tuple[tuple[float, ...], ...], generator: np.random.Generator, strength: float
    ) -> tuple[tuple[float, ...], ...]:
        """Return the weights after a step.

        Half of the time every weight takes its own step; otherwise a source takes one step, the
        same at every depth.
        """
        if generator.random() < 0.5:
            return tuple(_stepped(generator, row, self.config.weight, strength) for row in rows)
        low, high = self.config.weight
        steps = _stepped(generator, (0.0,) * len(rows), [low - high, high - low], strength / 2)
        return tuple(
            tuple(float(np.clip(value + step, low, high)) for value in row)
            for row, step in zip(rows, steps, strict=True)
        )

    def cross(self, a: Genome, b: Genome, generator: np.random.Generator) -> Genome:
        """Return a child of two genomes.

        It has the technique of one parent. Its numbers lie between the parents' or come from
        either, and one cut joins the two paths.
        """
        lead, other = (a, b) if generator.random() < 0.5 else (b, a)
        blend = float(generator.uniform(0.0, 1.0)) if generator.random() < 0.5 else None

        def mix(left: tuple[float, ...], right: tuple[float, ...]) -> tuple[float, ...]:
            shares = [float(generator.random() < 0.5) if blend is None else blend for _ in left]
            return tuple(s * x + (1 - s) * y for s, x, y in zip(shares, left, right, strict=True))

        child = replace(
            lead,
            weights=tuple(mix(x, y) for x, y in zip(lead.weights, other.weights, strict=True)),
            mix=mix(lead.mix, other.mix),
            density=mix(lead.density, other.density),
            strength=mix((lead.strength,), (other.strength,))[0],
            gamma=mix((lead.gamma,), (other.gamma,))[0],
            epsilon=mix((lead.epsilon,), (other.epsilon,))[0],
        )
        if len(lead.path) != len(other.path) or len(lead.path) < 2:
            return child
        cut = int(generator.integers(1, len(lead.path)))
        return replace(
            child,
            path=lead.path[:cut] + other.path[cut:],
            input_scales=lead.input_scales[:cut] + other.input_scales[cut:],
        )

    def _move_path(self, genome: Genome, generator: np.random.Generator, strength: float) -> Genome:
        """Return the genome with one change of its path.

        The change is a layer's source, a layer, the order, an input scale, or the length.
        """
        path, scales = list(genome.path), list(genome.input_scales)
        config = self.config
        moves = ["source", "source", "layer", "swap"]
        moves += ["scale", "scale"] if self.scalable and genome.technique == "dfs" else []
        moves += ["repeat"] if len(path) < self.layers + config.extra_layers else []
        moves += ["drop"] if len(path) > max(1, self.layers - config.fewer_layers) else []
        move = moves[int(generator.integers(len(moves)))]
        at = int(generator.integers(len(path)))
        source, layer = path[at]
        if move == "source":
            path[at] = (int(generator.integers(len(self.labels))), layer)
        elif move == "layer":
            path[at] = (source, int(np.clip(layer + generator.choice([-1, 1]), 0, self.layers - 1)))
        elif move == "swap" and len(path) > 1:
            other = min(at + 1, len(path) - 1)
            path[at], path[other] = path[other], path[at]
        elif move == "scale":
            low, high = config.input_scale
            scales[at] = float(
                np.clip(scales[at] * np.exp(generator.normal(0, 0.3 * strength)), low, high)
            )
        elif move == "repeat":
            path.insert(at + 1, (source, layer))
            scales.insert(at + 1, 1.0)
        elif move == "drop":
            del path[at], scales[at]
        return replace(genome, path=tuple(path), input_scales=tuple(scales))

    def _pair(self, generator: np.random.Generator) -> tuple[int, int]:
        first, second = generator.permutation(len(self.labels))[:2]
        return int(first), int(second)

    # -- Reading genomes.

    def recipe(self, genome: Genome) -> Recipe:
        """Return the recipe that a genome stands for."""
        if genome.technique in PATHS:
            steps = [(self.labels[source], layer) for source, layer in genome.path]
            scaled = genome.technique == "dfs" and self.scalable
            return dfs.path_recipe(steps, genome.input_scales if scaled else [1.0] * len(steps))
        method = self.methods_of(genome)
        base, chosen = self._chosen(genome, method)
        shared = {
            name: value
            for name in method.shared
            if (value := self._shared(genome, method, name)) is not None
        }
        models = [
            ModelEntry(
                model=self.labels[source],
                parameters={
                    name: self._each(genome, method, name, source, chosen) for name in method.each
                },
            )
            for source in chosen
        ]
        label = self.labels[base] if base >= 0 else ""
        return Recipe(method=genome.technique, models=models, base=label, parameters=shared)

    def _chosen(self, genome: Genome, method: Method) -> tuple[int, list[int]]:
        """Return the base (-1: none) and the models that a technique merges."""
        everyone = list(range(len(self.labels)))
        if method.models == (1, 1):
            return genome.pair[0], [genome.pair[1]]
        if method.models == (2, 2):
            return (-1 if 0 in genome.pair else 0), list(genome.pair)
        return (-1, everyone) if method.base == "unused" else (0, everyone[1:])

    def _each(
        self, genome: Genome, method: Method, name: str, source: int, chosen: list[int]
    ) -> object:
        if name == "weight":
            # Task vectors are added with their weights as they are; whole models are averaged.
            added = "lambda" in method.shared
            values = [round(weight, 6) for weight in genome.weights[source]]
            if not added:
                totals = [
                    sum(max(genome.weights[i][at], 0.0) for i in chosen)
                    for at in range(len(values))
                ]
                values = [
                    max(v, 0.0) if t > LEAST_MEAN_WEIGHT else 1.0
                    for v, t in zip(values, totals, strict=True)
                ]
            return values[0] if len(set(values)) == 1 else values
        density = max(_on_grid(genome.density[source]), 1 / GRID)
        if name == "density":
            return density
        if name == "gamma":
            return min(_on_grid(genome.gamma), 1.0 - density)
        if name == "epsilon":
            return round(max(0.0, min(genome.epsilon, density - 0.5 / GRID, 1.0 - density)), 6)
        raise ConfigError(
            f"merge.techniques: the parameter '{name}' of {genome.technique} has no gene; leave it out"
        )

    def _shared(self, genome: Genome, method: Method, name: str) -> object:
        if name == "t":
            values = [round(value, 6) for value in genome.mix]
            return values[0] if len(set(values)) == 1 else values
        if name == "lambda":
            return round(genome.strength, 6)
        if name == "normalize" and "lambda" in method.shared:
            return False
        if name == "select_topk":
            return max(_on_grid(genome.density[1]), 1 / GRID)
        return None

    # -- The numbers of a genome, as a vector.

    def kind(self, genome: Genome) -> str:
        """Return technique, pair of models, or layer path: all that `vector` does not hold."""
        if genome.technique in PATHS:
            return f"{genome.technique} {genome.path}"
        return f"{genome.technique} {genome.pair if self.methods_of(genome).models[1] in (1, 2) else ''}"

    def vector(self, genome: Genome) -> NDArray[np.float64]:
        """Return the numbers that the technique reads, each scaled from its range to [0, 1]."""
        slots = self._slots(genome)
        values = np.asarray([_read(genome, slot) for slot in slots], np.float64)
        low, high = (np.asarray([slot.bounds[i] for slot in slots], np.float64) for i in (0, 1))
        return np.asarray(np.clip((values - low) / np.maximum(high - low, 1e-12), 0.0, 1.0))

    def with_vector(self, genome: Genome, vector: NDArray[np.float64]) -> Genome:
        """Return the genome with the numbers of `vector`."""
        for slot, share in zip(self._slots(genome), vector, strict=True):
            low, high = slot.bounds
            genome = _written(genome, slot, low + float(np.clip(share, 0.0, 1.0)) * (high - low))
        return genome

    def methods_of(self, genome: Genome) -> Method:
        """Return what the technique of a genome says about itself."""
        method: Method = load_method(genome.technique).METHOD
        return method

    def _slots(self, genome: Genome) -> list[Slot]:
        """Return the place and the range of each number that the technique reads."""
        config, method = self.config, self.methods_of(genome)
        if genome.technique in PATHS:
            steps = [(self.labels[source], layer) for source, layer in genome.path]
            scaled = genome.technique == "dfs" and self.scalable
            jumps = [i for i, jump in enumerate(dfs.jumps(steps)) if jump and scaled]
            return [Slot("input_scales", (i,), config.input_scale) for i in jumps]
        chosen = self._chosen(genome, method)[1]
        weight = (
            config.weight
            if "lambda" in method.shared
            else [max(config.weight[0], 0.0), config.weight[1]]
        )
        depths = range(config.anchors)
        return [
            *(
                Slot("weights", (i, at), weight)
                for i in chosen
                for at in depths
                if "weight" in method.each
            ),
            *(Slot("density", (i,), config.density) for i in chosen if "density" in method.each),
            *(Slot("mix", (at,), [0.0, 1.0]) for at in depths if "t" in method.shared),
            *(Slot("strength", (), config.strength) for _ in [0] if "lambda" in method.shared),
            *(Slot("gamma", (), GAMMA) for _ in [0] if "gamma" in method.each),
            *(Slot("epsilon", (), EPSILON) for _ in [0] if "epsilon" in method.each),
            *(Slot("density", (1,), config.density) for _ in [0] if "select_topk" in method.shared),
        ]

    def key(self, genome: Genome) -> str:
        """Return a hash of the recipe: genes that the technique does not read do not matter."""
        text = json.dumps(asdict(self.recipe(genome)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def distance(self, a: Genome, b: Genome) -> float:
        """Return 1 for different techniques, else the mean difference of the genes.

        Each gene's difference is a share of its range, and the result is at most 1.
        """
        if a.technique != b.technique:
            return 1.0
        if a.technique in PATHS:
            length = max(len(a.path), len(b.path))
            same = sum(x == y for x, y in zip(a.path, b.path, strict=False))
            scale = float(
                np.mean(
                    [
                        abs(np.log(x / y))
                        for x, y in zip(a.input_scales, b.input_scales, strict=False)
                    ]
                    or [0]
                )
            )
            return min(1.0, 1.0 - same / length + scale)
        low, high = self.config.weight
        rows = [
            abs(x - y) / max(high - low, 1e-9)
            for p, q in zip(a.weights, b.weights, strict=True)
            for x, y in zip(p, q, strict=True)
        ]
        rows += [
            abs(x - y)
            for x, y in zip(
                (*a.density, *a.mix, a.strength), (*b.density, *b.mix, b.strength), strict=True
            )
        ]
        return min(1.0, float(np.mean(rows)) + 0.5 * (a.pair != b.pair))


def _draws(generator: np.random.Generator, bounds: list[float], count: int) -> tuple[float, ...]:
    return tuple(float(value) for value in generator.uniform(bounds[0], bounds[1], count))


def _stepped(
    generator: np.random.Generator, values: tuple[float, ...], bounds: list[float], strength: float
) -> tuple[float, ...]:
    """Return the values after about half of them took a normal step.

    The standard deviation of a step is `strength` times a third of the range; values stay inside.
    """
    low, high = bounds
    moved = generator.random(len(values)) < 0.5
    steps = generator.normal(0.0, strength * (high - low) / 3, len(values))
    return tuple(
        float(np.clip(v + s, low, high)) if m else v
        for v, s, m in zip(values, steps, moved, strict=True)
    )


def _read(genome: Genome, slot: Slot) -> float:
    value = getattr(genome, slot.name)
    for index in slot.place:
        value = value[index]
    return float(value)


def _written(genome: Genome, slot: Slot, value: float) -> Genome:
    """Return the genome with one number changed."""

    def put(old: Any, where: tuple[int, ...]) -> Any:
        if not where:
            return value
        place, *deeper = where
        return (*old[:place], put(old[place], tuple(deeper)), *old[place + 1 :])

    return replace(genome, **{slot.name: put(getattr(genome, slot.name), slot.place)})


def _on_grid(share: float) -> float:
    """Return a share rounded to the grid of merges in memory, one byte per entry (merge.bank)."""
    return round(share * GRID) / GRID
