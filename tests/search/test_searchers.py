"""Search methods on planted landscapes: optima, fronts, islands, novelty, determinism."""

import itertools
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from agent_forge.core.errors import ConfigError
from agent_forge.search.evolve import Evolution, _goes_on, evolve, island_seed
from agent_forge.search.pareto import crowding, fronts, hypervolume
from agent_forge.search.population import Individual, diversity, survivors
from agent_forge.search.race import ScoringRule, mean_rule
from agent_forge.search.searcher import Breeder, make_searcher
from agent_forge.search.searchers import cmaes
from agent_forge.search.searchers.cmaes import STALE_GENERATIONS
from agent_forge.search.settings import EvolveSettings
from tests.search.planted import Bench, Planted, Vectors, flat, peaks, quadratic, settings

# The package names a function so, too.
evolving = import_module("agent_forge.search.evolve")
METHODS = ("ga", "cmaes", "nsga2", "random_search")


def run(
    task: Planted, chosen: EvolveSettings, space: Vectors, seed: int = 0, initial: tuple = ()
) -> Evolution:
    with Bench(task, chosen, space) as scorer:
        return evolve(space, scorer, initial, chosen, seed)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


@pytest.mark.parametrize("method", METHODS)
def test_the_best_never_gets_worse_and_the_same_seed_gives_the_same_search(method: str) -> None:
    task, chosen, space = Planted(quadratic), settings(method=method), Vectors(kinds=("a", "b"))
    first = ("first", ("a", (0.5,) * 6))
    evolution = run(task, chosen, space, seed=4, initial=(first,))
    best = [generation.best for generation in evolution.history]
    assert best == sorted(best)
    assert evolution.best.fitness == best[-1] > best[0]
    np.random.seed(123)
    again = run(task, chosen, space, seed=4, initial=(first,))
    assert [m.key for m in again.members] == [m.key for m in evolution.members]
    assert run(task, chosen, space, seed=5, initial=(first,)).best.key != evolution.best.key


def test_cma_es_reaches_the_top_of_a_quadratic_and_random_search_at_equal_budget_does_not() -> None:
    space = Vectors(size=6)
    task = Planted(quadratic)
    chosen = settings(method="cmaes", generations=50, race=[1.0])
    offset = np.mean([task.item("", i) for i in range(16)])
    evolution = run(task, chosen, space)
    other = run(task, settings(method="random_search", generations=50, race=[1.0]), space)
    assert evolution.best.fitness - offset > -3e-3
    assert other.best.fitness - offset < -0.03
    top = 0.3 + 0.1 * np.arange(6) % 0.5
    np.testing.assert_allclose(evolution.best.genome[1], top, atol=0.03)


def test_cma_es_starts_again_from_another_kind_when_the_first_is_exhausted() -> None:
    space = Vectors(size=2, kinds=("a", "b"))
    low = Planted(lambda kind, x: quadratic("a", x) - (0.0 if kind == "b" else 5.0))
    first = (("near", ("a", (0.3, 0.4))), ("far", ("b", (0.9, 0.9))))
    evolution = run(
        low, settings(method="cmaes", generations=60, population=2, elites=1), space, initial=first
    )
    assert evolution.best.genome[0] == "b"


def test_cma_es_starts_again_after_twelve_generations_without_a_better_best_and_not_before() -> (
    None
):
    """Counted anew after each gain; each start has another stream of random numbers."""
    space = Vectors(size=2)
    method = make_searcher(space, settings(method="cmaes", children=4, population=4), 0)
    first = ("a", (0.3, 0.4))
    method.start([Individual(first, space.key(first), 0.0, "")])

    def one_generation(fitness: float) -> object:
        sample = [genome for _, genome in method.ask()]
        drawn.append(sample[0])
        method.tell([Individual(g, space.key(g), fitness, "", finished=True) for g in sample])
        return method._strategy

    drawn: list = []
    start = method._strategy
    assert all(one_generation(-1.0) is start for _ in range(STALE_GENERATIONS - 1))
    assert one_generation(1.0) is start  # a gain in the last one that counts
    assert all(one_generation(1.0) is start for _ in range(STALE_GENERATIONS - 1))
    again = one_generation(1.0)  # equal is not better
    assert again is not start
    assert all(one_generation(0.0) is again for _ in range(STALE_GENERATIONS - 1))
    assert one_generation(0.0) is not again
    one_generation(0.0)
    starts = [drawn[0], drawn[2 * STALE_GENERATIONS], drawn[3 * STALE_GENERATIONS]]
    assert len(set(starts)) == 3


def test_cma_es_pads_one_number_with_the_middle_of_its_range() -> None:
    assert cmaes._padded(np.array([0.2])).tolist() == [0.2, 0.5]
    assert cmaes._padded(np.array([0.2, 0.9])).tolist() == [0.2, 0.9]
    space = Vectors(size=1)
    evolution = run(Planted(quadratic), settings(method="cmaes", race=[1.0]), space)
    assert evolution.best.genome[1][0] == pytest.approx(0.3, abs=0.01)


def test_cma_es_refuses_what_it_cannot_move() -> None:
    with pytest.raises(ConfigError, match=r"children of at least 4, got 3"):
        run(Planted(flat), settings(method="cmaes", children=3), Vectors())
    with pytest.raises(ConfigError, match="no genome has any"):
        run(Planted(lambda kind, x: 0.0), settings(method="cmaes"), Vectors(size=0))  # noqa: ARG005


def test_an_unknown_method_or_backend_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no search method 'nsga'; did you mean 'nsga2'"):
        run(Planted(flat), settings(method="nsga"), Vectors())
    with pytest.raises(ConfigError, match="no search backend 'pol'; did you mean 'pool'"):
        run(Planted(flat), settings(backend="pol"), Vectors())


def test_fronts_equal_brute_force() -> None:
    generator = np.random.default_rng(0)
    for objectives in (1, 2, 3):
        points = generator.integers(0, 5, (30, objectives)).astype(float)  # many equal ones
        left, expected = set(range(30)), []
        while left:
            front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
            expected.append(sorted(front))
            left -= front
        assert [sorted(front) for front in fronts(points.tolist())] == expected
    assert fronts([[1.0, 2.0]]) == [[0]]


def test_crowding_equals_the_sides_of_the_box_between_neighbours() -> None:
    points = np.array([[0.0, 4.0], [1.0, 3.0], [1.5, 1.0], [4.0, 0.0]])
    expected = [np.inf, (1.5 / 4 + 3 / 4) / 2, (3 / 4 + 3 / 4) / 2, np.inf]
    np.testing.assert_allclose(crowding(points.tolist()), expected)
    shuffled = [2, 0, 3, 1]
    np.testing.assert_allclose(crowding(points[shuffled].tolist()), np.asarray(expected)[shuffled])
    assert crowding([[1.0, 1.0], [1.0, 1.0], [2.0, 0.0], [0.0, 2.0], [1.5, 0.5]])[1] == 0.0


def test_nsga2_lists_a_front_from_the_least_crowded_point_to_the_most() -> None:
    points = {"left": (0.0, 4.0), "wide": (1.0, 3.0), "crowded": (1.2, 2.9), "right": (4.0, 0.0)}
    front = [Individual(("a", (0.0,)), name, 0.0, "", point) for name, point in points.items()]
    method = make_searcher(Vectors(), settings(method="nsga2", children=4), 0)
    # sides of 3.9 + 4 and of 1.2 + 1.1
    assert [one.key for one in method.order(front)][2:] == ["crowded", "wide"]
    assert {one.key for one in method.order(front)[:2]} == {"left", "right"}


def test_a_search_goes_on_until_its_generations_or_its_items_are_spent() -> None:
    chosen = settings(generations=3)
    assert [_goes_on(number, 0, chosen, 0) for number in (2, 3)] == [True, False]
    assert [_goes_on(9, items, chosen, 100) for items in (99, 100)] == [True, False]
    assert len(run(Planted(flat), chosen, Vectors()).history) == 1 + 3


def test_children_come_in_the_shares_of_the_settings_and_steps_fall_to_their_last_value() -> None:
    """Of all children .4 are immigrants, and of the others half are crossed: .3 and .3."""

    class Steps(Vectors):
        def mutate(self, genome, generator, strength):
            steps.add(strength)
            return super().mutate(genome, generator, strength)

    space, steps = Steps(), set()
    chosen = settings(
        children=1000, immigrants=0.4, crossover=0.5, generations=5, mutation=0.6, mutation_end=0.2
    )
    members = [Individual(("a", (x,) * 6), space.key(("a", (x,) * 6)), x, "") for x in (0.2, 0.8)]
    breeder = Breeder(space, chosen, 0, lambda m, g: m[g.integers(len(m))])
    for number, step in ((1, 0.6), (3, 0.4), (5, 0.2), (9, 0.2)):
        steps.clear()
        origins = [origin for origin, _ in breeder.children(members, number)]
        assert [
            origins.count(name) / 1000 for name in ("immigrant", "crossover", "mutation")
        ] == pytest.approx([0.4, 0.3, 0.3], abs=0.05)
        assert list(steps) == pytest.approx([step])


def test_fewer_than_two_members_have_no_diversity() -> None:
    one = Individual(("a", (0.0,)), "one", 0.0, "")
    assert diversity([one], Vectors(size=1).distance) == 0.0
    assert (
        diversity([one, Individual(("a", (0.5,)), "two", 0.0, "")], Vectors(size=1).distance) == 0.5
    )


def test_hypervolume_equals_counting_cells() -> None:
    generator = np.random.default_rng(1)
    for objectives in (1, 2, 3):
        points = generator.integers(-1, 6, (8, objectives))
        cells = itertools.product(range(6), repeat=objectives)
        expected = sum(any((np.asarray(cell) < point).all() for point in points) for cell in cells)
        assert hypervolume(points.tolist(), [0.0] * objectives) == pytest.approx(expected)
    assert hypervolume([[-1.0, 5.0]], [0.0, 0.0]) == 0.0


def test_nsga2_covers_the_front_of_zdt1_where_random_search_does_not() -> None:
    """ZDT1 turned upside down: the front is f2 = 1 - sqrt(f1), hypervolume 2/3 against the corner
    (1, 1).
    """
    space = Vectors(size=5)

    def both(vector: np.ndarray) -> tuple[float, float]:
        g = 1 + 9 * vector[1:].mean()
        return -float(vector[0]), -float(g * (1 - np.sqrt(vector[0] / g)))

    class Halves(Planted):
        """Even items score the first objective, odd ones the second."""

        def open(self, worker: int, candidates: int):  # noqa: ARG002
            return lambda genome, key, spans: [  # noqa: ARG005
                [both(np.asarray(genome[1]))[i % 2] for i in range(*span)] for span in spans
            ]

    rule = ScoringRule(
        lambda v: float(np.mean(v)),
        lambda v: (float(np.mean(v[::2])), float(np.mean(v[1::2]))),
        mean_rule().difference,
    )
    areas = {}
    for method in ("nsga2", "random_search"):
        chosen = settings(method=method, population=16, children=16, generations=40, race=[1.0])
        with Bench(Halves(flat), chosen, space, rule) as scorer:
            evolution = evolve(space, scorer, (), chosen, 0)
        areas[method] = hypervolume([m.objectives for m in evolution.members], [-1.0, -1.0])
    assert areas["nsga2"] > 0.9 * 2 / 3
    assert areas["nsga2"] > areas["random_search"] + 0.3


@pytest.mark.parametrize("method", ["ga", "nsga2", "cmaes"])
def test_islands_without_migration_equal_separate_runs(method: str) -> None:
    task, space = Planted(quadratic, noise=0.1), Vectors()
    chosen = settings(method=method, islands=3, migrate_every=0)
    together = run(task, chosen, space, seed=7)
    alone = [run(task, settings(method=method), space, seed=island_seed(7, i, 3)) for i in range(3)]
    assert {m.key for one in alone for m in one.members} >= {m.key for m in together.members}
    assert together.best.key == max((one.best for one in alone), key=lambda m: m.fitness).key
    assert len({one.best.key for one in alone}) == 3


@pytest.mark.parametrize("islands", [2, 3])
def test_migration_brings_the_best_of_one_island_to_the_next(islands: int) -> None:
    task, space = Planted(quadratic), Vectors()
    apart = run(task, settings(islands=islands, migrate_every=0, generations=4), space)
    mixed = run(task, settings(islands=islands, migrate_every=4, generations=4), space)
    # migration after the last children moves members, makes none
    assert mixed.best.key == apart.best.key
    assert mixed.history[-1].diversity < apart.history[-1].diversity


def test_novelty_finds_more_of_many_equal_peaks() -> None:
    space, task = Vectors(size=2), Planted(peaks)

    def corners(novelty: float, seed: int) -> int:
        chosen = settings(
            novelty=novelty,
            generations=30,
            population=8,
            immigrants=0.2,
            race=[1.0],
            min_distance=0.0,
        )
        members = run(task, chosen, space, seed).members
        top = [m.genome[1] for m in members if peaks("", np.asarray(m.genome[1])) > 0.8]
        return len({tuple(x > 0.5 for x in vector) for vector in top})

    plain, novel = (
        np.mean([corners(novelty, seed) for seed in range(5)]) for novelty in (0.0, 0.5)
    )
    assert novel >= plain + 1


def test_survival_by_novelty_alone_takes_the_farthest_and_keeps_the_elite() -> None:
    space = Vectors(size=1)
    members = [Individual(("a", (x,)), str(x), -x, "") for x in (0.0, 0.1, 0.2, 0.5, 1.0)]
    survived = survivors(members, 3, 1, 0.0, space.distance, novelty=1.0)
    assert [m.genome[1][0] for m in survived] == [0.0, 0.5, 1.0]
    survived = survivors(members, 3, 1, 0.15, space.distance)
    assert [m.genome[1][0] for m in survived] == [0.0, 0.2, 0.5]
    # the fittest of the rest fill up
    assert len(survivors(members, 5, 1, 0.9, space.distance)) == 5


def test_of_all_that_finished_only_the_fittest_outlives_its_island(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    champions: list[list[Individual]] = []
    together = evolving._together

    def noted(islands: Any, champion: Any) -> list[Individual]:
        champions.append(list(champion))
        return together(islands, champion)

    monkeypatch.setattr(evolving, "_together", noted)
    evolution = run(Planted(quadratic), settings(method="cmaes", generations=6), Vectors())
    assert [len(one) for one in champions] == [0, *[1] * 6]
    assert champions[-1][0].key == evolution.best.key
    heights = [one.fitness for (one,) in champions[1:]]
    assert heights == sorted(heights)


@pytest.mark.parametrize("method", ["random_search", "cmaes"])
def test_streams_of_random_numbers_are_counted_one_by_one(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a search of an older version goes on with the same candidates."""
    module = import_module(f"agent_forge.search.searchers.{method}")
    drawn, names = module.numpy_generator, list[tuple[Any, ...]]()

    def noted(seed: int, *name: Any) -> np.random.Generator:
        names.append(name)
        return drawn(seed, *name)

    monkeypatch.setattr(module, "numpy_generator", noted)
    space = Vectors(size=2)
    searcher = make_searcher(space, settings(method=method, children=4, population=4), 0)
    searcher.start([Individual(g := ("a", (0.3, 0.4)), space.key(g), 0.0, "")])
    for _ in range(2 * STALE_GENERATIONS if method == "cmaes" else 3):
        sample = [genome for _, genome in searcher.ask()]
        searcher.tell([Individual(g, space.key(g), -1.0, "", finished=True) for g in sample])
    if method == "cmaes":
        assert names == [("cma-es", start) for start in range(3)]
    else:
        assert names == [("random search", n, i) for n in (1, 2, 3) for i in range(4)]
