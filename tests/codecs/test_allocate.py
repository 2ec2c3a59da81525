"""The allocator against brute force, and its limits."""

import itertools

import numpy as np
import pytest

from agent_forge.codecs import allocate
from agent_forge.codecs.allocate import Option
from agent_forge.core.errors import ConfigError


def instance(
    seed: int, tensors: int = 3, rates: int = 4, *, seeds: bool = False
) -> list[list[Option]]:
    generator = np.random.default_rng(seed)
    tensor_options = []
    for t in range(tensors):
        bits = np.sort(generator.uniform(1, 8, rates))
        variance, weights = 10 ** generator.uniform(-3, 0), int(generator.integers(100, 2000))
        tensor_options.append([
            Option(
                f"{t}-{i}", int(weights * b / 8),
                float(weights * variance * 4**-b * generator.uniform(0.7, 1.4)),
                   weights if seeds and i == 1 else 0)
            for i, b in enumerate(bits)
        ])  # fmt: skip
    return tensor_options


def brute_force(tensors: list[list[Option]], budget: int, max_seeds: int | None = None) -> float:
    best = float("inf")
    for choice in itertools.product(*(range(len(o)) for o in tensors)):
        fits = max_seeds is None or allocate.seed_blocks(tensors, list(choice)) <= max_seeds
        if fits and allocate.total_bytes(tensors, list(choice)) <= budget:
            best = min(best, allocate.total_distortion(tensors, list(choice)))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_three_tensors_of_four_rates_equal_brute_force(seed: int) -> None:
    tensors = instance(seed)
    sizes = [[o.size_bytes for o in options] for options in tensors]
    for share in (0.1, 0.35, 0.6, 0.9):
        low, high = sum(map(min, sizes)), sum(map(max, sizes))
        budget = int(low + share * (high - low))
        choice = allocate.within_budget(tensors, budget)
        assert allocate.total_bytes(tensors, choice) <= budget
        assert allocate.total_distortion(tensors, choice) == pytest.approx(
            brute_force(tensors, budget), rel=1e-12
        )


@pytest.mark.parametrize("others", [0, 1, 40])
def test_what_no_price_picks_is_found_for_one_tensor_alone_and_for_one_of_many(
    others: int,
) -> None:
    """The middle option lies above the line between the other two, so every price passes it by."""
    tensor = [Option("small", 10, 1.0), Option("middle", 15, 0.97), Option("large", 100, 0.0)]
    fixed = [[Option("only", 1, 50.0)] for _ in range(others)]
    for budget, expected in ((10, 0), (14, 0), (15, 1), (99, 1), (100, 2)):
        choice = allocate.within_budget([*fixed, tensor], others + budget)
        assert choice == [0] * others + [expected], budget


@pytest.mark.parametrize("seed", range(30))
def test_a_choice_at_a_price_is_optimal_for_the_bytes_it_uses(seed: int) -> None:
    tensors = instance(seed, tensors=4)
    for mu in (1e-5, 1e-3, 1e-1):
        choice = allocate.at_price(tensors, mu)
        used = allocate.total_bytes(tensors, choice)
        assert allocate.total_distortion(tensors, choice) == pytest.approx(
            brute_force(tensors, used), rel=1e-12
        )


def test_a_higher_price_never_buys_more_bytes() -> None:
    tensors = instance(7, tensors=20, rates=6)
    sizes = [
        allocate.total_bytes(tensors, allocate.at_price(tensors, 10.0**e))
        for e in np.linspace(-8, 3, 45)
    ]
    assert all(later <= earlier for earlier, later in itertools.pairwise(sizes))
    assert sizes[0] > sizes[-1]


@pytest.mark.parametrize("seed", range(10))
def test_seeds_keep_their_share(seed: int) -> None:
    tensors = instance(seed, tensors=8, seeds=True)
    free = allocate.at_price(tensors, 1e-3)
    total = sum(max(o.seed_blocks for o in options) for options in tensors)
    for share in (0.0, 0.05, 0.3):
        limit = int(share * total)
        choice = allocate.at_price(tensors, 1e-3, max_seed_blocks=limit)
        assert allocate.seed_blocks(tensors, choice) <= limit
    assert allocate.at_price(tensors, 1e-3, max_seed_blocks=total) == free


def test_seeds_are_used_up_to_their_share_even_where_tensors_gain_alike() -> None:
    """One multiplier for the share would take all of the equal tensors or none."""
    alike = [[Option("raw", 300, 0.0), Option("seeds", 100, 1.0, 100)] for _ in range(10)]
    choice = allocate.at_price(alike, float("inf"), max_seed_blocks=350)
    assert allocate.seed_blocks(alike, choice) == 300
    assert (
        allocate.total_bytes(alike, allocate.within_budget(alike, 2500, max_seed_blocks=350))
        <= 2500
    )


@pytest.mark.parametrize("seed", range(20))
def test_exchanges_keep_the_seed_share_and_reach_brute_force(seed: int) -> None:
    """Seeds make the second rate of each tensor so good that every exchange would take it."""
    tensors = [
        [
            Option(o.name, o.size_bytes, o.distortion / (50 if o.seed_blocks else 1), o.seed_blocks)
            for o in options
        ]
        for options in instance(seed, seeds=True)
    ]
    blocks = [max(o.seed_blocks for o in options) for options in tensors]
    budget = sum(options[2].size_bytes for options in tensors)
    for limit in (0, min(blocks), sum(blocks) - min(blocks)):
        choice = allocate.within_budget(tensors, budget, max_seed_blocks=limit)
        assert allocate.seed_blocks(tensors, choice) <= limit
        assert allocate.total_bytes(tensors, choice) <= budget
        best = brute_force(tensors, budget, limit)
        assert allocate.total_distortion(tensors, choice) == pytest.approx(best, rel=1e-12)


def test_seeds_go_where_each_coded_weight_gains_most() -> None:
    """The first fits in no share, and its price shuts the others out; then two small ones (14) beat
    a large one (10).
    """
    huge = [Option("raw", 100, 400.0), Option("seeds", 100, 0.0, 1000)]
    large = [Option("raw", 100, 10.0), Option("seeds", 100, 0.0, 100)]
    small = [Option("raw", 100, 7.0), Option("seeds", 100, 0.0, 50)]
    choice = allocate.at_price([huge, large, small, small], 0.0, max_seed_blocks=100)
    assert choice == [0, 0, 1, 1]


def test_the_order_of_options_and_tensors_changes_nothing() -> None:
    tensors = instance(3, tensors=6, rates=5)
    budget = sum(o[2].size_bytes for o in tensors)

    def names(ts: list[list[Option]]) -> set[str]:
        chosen = allocate.within_budget(ts, budget)
        return {options[i].name for options, i in zip(ts, chosen, strict=True)}

    turned = [list(reversed(options)) for options in reversed(tensors)]
    assert names(tensors) == names(turned)


def test_a_budget_below_everything_names_the_smallest_size() -> None:
    tensors = instance(1)
    smallest = sum(min(o.size_bytes for o in options) for options in tensors)
    with pytest.raises(ConfigError, match=f"takes {smallest:,}"):
        allocate.within_budget(tensors, smallest - 1)
    assert allocate.total_bytes(tensors, allocate.within_budget(tensors, smallest)) == smallest


def test_spare_seeds_are_not_spent_on_what_gains_nothing() -> None:
    """The first fits in no share, so that seeds are left over; the second gains nothing by them."""
    huge = [Option("raw", 100, 400.0), Option("seeds", 100, 0.0, 1000)]
    even = [Option("raw", 100, 7.0), Option("seeds", 100, 7.0, 50)]
    assert allocate.at_price([huge, even], 0.0, max_seed_blocks=100) == [0, 0]
