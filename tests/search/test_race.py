"""Racing and baselines: shared items, half the cost, and an early stop for hopeless children."""

import numpy as np
import pytest

from agent_forge.core.errors import ConfigError
from agent_forge.search.evolve import evolve
from agent_forge.search.population import fittest_first
from agent_forge.search.race import Heat, mean_rule, race, rung_borders
from tests.search.planted import Bench, Planted, Vectors, flat, settings

SPACE = Vectors(size=1)


def heat(values: list[float], weakest: str = "") -> Heat:
    return Heat([("planted", ("a", (x,))) for x in values], fittest_first, weakest)


def test_a_race_of_eight_costs_half_and_ends_with_the_best() -> None:
    with Bench(Planted(flat), space=SPACE) as scorer:
        raced = race([heat([0.1, 0.8, 0.3, 0.6, 0.2, 0.7, 0.5, 0.4])], scorer)[0]
        assert scorer.measured_items == 8 * 16 // 2
    assert [one.genome[1][0] for one in raced[:2]] == [0.8, 0.7]
    assert [one.finished for one in raced] == [True] * 2 + [False] * 6
    assert [one.items for one in raced] == [16, 16, 8, 8, 4, 4, 4, 4]
    assert len({one.key for one in raced}) == 8


def test_what_is_hard_about_an_item_cancels() -> None:
    """Items differ by a spread of 1, candidates by .01: unpaired, 4 items could not tell them
    apart.
    """
    for seed in range(10):
        generator = np.random.default_rng(seed)
        values = [0.5 + 0.01 * i for i in generator.permutation(8)]
        with Bench(Planted(flat), space=SPACE) as scorer:
            assert race([heat(values)], scorer)[0][0].genome[1][0] == max(values)


def test_with_noise_a_race_loses_little_for_half_the_cost() -> None:
    raced, full = [], []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        values = [float(x) for x in generator.random(8)]
        for shares, regrets in (([0.25, 0.5, 1.0], raced), ([1.0], full)):
            chosen = settings(race=shares)
            with Bench(Planted(flat, noise=0.3), chosen, SPACE, items=32) as scorer:
                regrets.append(max(values) - race([heat(values)], scorer)[0][0].genome[1][0])
                assert scorer.measured_items == (8 * 32 if len(shares) == 1 else 8 * 32 / 2)
    assert np.mean(raced) <= np.mean(full) + 0.02


def test_a_child_surely_below_the_weakest_member_stops_and_one_in_doubt_goes_on() -> None:
    with Bench(Planted(flat, noise=0.05), space=SPACE) as scorer:
        member = ("a", (0.502,))
        scorer.measure([member])
        weakest = SPACE.key(member)
        raced = race([heat([0.0, 0.1, 0.495, 0.9], weakest)], scorer, confidence=2.0)[0]
        assert {one.genome[1][0]: one.items for one in raced} == {0.9: 16, 0.495: 8, 0.0: 4, 0.1: 4}
        hopeless = race([heat([0.01, 0.02], weakest)], scorer, confidence=2.0)[0]
        assert [one.items for one in hopeless] == [4, 4]
        assert not any(one.finished for one in hopeless)
        assert race([heat([0.03, 0.04], weakest)], scorer, confidence=0.0)[0][0].finished


def test_the_paired_difference_is_mean_and_standard_error() -> None:
    mean, error = mean_rule().difference([1.0, 2.0, 4.0], [1.0, 1.0, 1.0])
    assert mean == pytest.approx(4 / 3)
    assert error == pytest.approx(np.std([0, 1, 3], ddof=1) / np.sqrt(3))


def test_a_lone_candidate_reaches_the_end_and_of_an_odd_number_the_larger_half_goes_on() -> None:
    with Bench(Planted(flat), space=SPACE) as scorer:
        assert [one.items for one in race([heat([0.5])], scorer)[0]] == [16]
        assert [one.items for one in race([heat([0.1, 0.2, 0.3, 0.4, 0.6])], scorer)[0]] == [
            16,
            16,
            8,
            4,
            4,
        ]


def test_who_is_measured_on_all_items_is_finished() -> None:
    with Bench(Planted(flat), space=SPACE) as scorer:
        proposals = [("planted", ("a", (0.5,)))]
        ends = [scorer.individuals(proposals, rung)[0] for rung in (0, 1, 2, None)]
    assert [(one.items, one.finished) for one in ends] == [
        (4, False),
        (8, False),
        (16, True),
        (16, True),
    ]


def test_borders_rise_to_all_items_or_are_refused() -> None:
    assert rung_borders([0.25, 0.5, 1.0], 8) == [2, 4, 8]
    assert rung_borders([0.01, 1.0], 4) == [1, 4]
    for wrong in ([], [0.5], [0.5, 0.25, 1.0], [0.0, 1.0]):
        with pytest.raises(ConfigError, match=r"must rise to 1\.0"):
            rung_borders(wrong, 8)


def test_random_search_at_equal_budget_needs_as_many_items_and_ends_on_an_exhausted_space() -> None:
    space = Vectors(size=2)
    with Bench(Planted(flat), space=space) as scorer:
        evolve(space, scorer, (), settings(generations=7), 0)
        budget = scorer.measured_items
    with Bench(Planted(flat), space=space) as scorer:
        evolve(space, scorer, (), settings(method="random_search"), 0, least_items=budget)
        assert budget <= scorer.measured_items < budget + 8 * 16
    tiny = Vectors(size=0)
    with Bench(Planted(lambda kind, x: 0.0), space=tiny) as scorer:  # noqa: ARG005
        evolution = evolve(
            tiny, scorer, (), settings(method="random_search"), 0, least_items=10_000
        )
        assert scorer.measured_items == 16
        assert evolution.best.genome == ("a", ())
        assert len(evolution.history) == 1 + 20  # generations that brought nothing new
