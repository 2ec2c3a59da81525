"""Choose a codec and rate for every tensor: least total distortion within a byte budget.

Minimises Σ D + μ Σ R for each tensor on its own; bisection finds the μ whose choice just fits the
budget (Everett 1963: that choice is optimal for the bytes it uses). Bytes that are left over are
then spent by exchanges. Codecs that regenerate blocks from seeds may take only a share of all
blocks; a second multiplier keeps them within that share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product

from agent_forge.core.errors import ConfigError

BISECTIONS = 60
EXCHANGE_ROUNDS = 50
# Pairs and triples are tried among this many tensors, the ones with most distortion left; triples
# only when no pair helps.
PAIR_TENSORS, TRIPLE_TENSORS = 24, 5


@dataclass(frozen=True, slots=True)
class Option:
    """One way to code a tensor.

    size_bytes: bytes on disk. distortion: estimated loss. seed_blocks: weights coded by seeds.
    """

    name: str
    size_bytes: int
    distortion: float
    seed_blocks: int = 0


Choice = list[int]  # one index per tensor: its option


def at_price(
    tensors: Sequence[Sequence[Option]], mu: float, *, max_seed_blocks: int | None = None
) -> Choice:
    """Return the choice of least Σ D + μ Σ R with at most `max_seed_blocks` weights under seeds."""
    if (
        max_seed_blocks is None
        or seed_blocks(tensors, _cheapest(tensors, mu, 0.0)) <= max_seed_blocks
    ):
        return _cheapest(tensors, mu, 0.0)
    low, high = 0.0, 1.0
    while seed_blocks(tensors, _cheapest(tensors, mu, high)) > max_seed_blocks:
        low, high = high, high * 4
        if high > 1e30:
            raise ConfigError(
                "seed_ratio cannot be kept: some tensor is offered to seedlm alone; add another "
                "codec"
            )
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if seed_blocks(tensors, _cheapest(tensors, mu, middle)) > max_seed_blocks:
            low = middle
        else:
            high = middle
    chosen = _cheapest(tensors, mu, high)
    return _spend_seeds(tensors, chosen, mu, max_seed_blocks - seed_blocks(tensors, chosen))


def within_budget(
    tensors: Sequence[Sequence[Option]], budget_bytes: int, *, max_seed_blocks: int | None = None
) -> Choice:
    """Return the choice of least distortion found within `budget_bytes`.

    Raises ConfigError when even the smallest choice is larger, naming the size that would do.
    """
    smallest = at_price(tensors, float("inf"), max_seed_blocks=max_seed_blocks)
    if total_bytes(tensors, smallest) > budget_bytes:
        raise ConfigError(
            f"budget.bytes_ratio allows {budget_bytes:,} bytes for the coded tensors, but the "
            "smallest choice of the "
            f"candidates takes {total_bytes(tensors, smallest):,}; raise it or offer candidates of "
            "fewer bits"
        )
    # Bytes fall as the price μ rises, though in steps. Factors of 8 find a price that is high
    # enough, bisection the least such price, and exchanges spend the bytes that a step leaves over.
    low, high, best = 0.0, 1e-12, smallest
    while (
        total_bytes(tensors, at_price(tensors, high, max_seed_blocks=max_seed_blocks))
        > budget_bytes
        and high < 1e30
    ):
        low, high = high, high * 8
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        choice = at_price(tensors, middle, max_seed_blocks=max_seed_blocks)
        if total_bytes(tensors, choice) > budget_bytes:
            low = middle
        else:
            high, best = middle, choice
    return _exchange(tensors, best, budget_bytes, max_seed_blocks)


def total_bytes(tensors: Sequence[Sequence[Option]], choice: Choice) -> int:
    """Return the bytes of a choice."""
    return sum(options[i].size_bytes for options, i in zip(tensors, choice, strict=True))


def total_distortion(tensors: Sequence[Sequence[Option]], choice: Choice) -> float:
    """Return the distortion of a choice."""
    return sum(options[i].distortion for options, i in zip(tensors, choice, strict=True))


def seed_blocks(tensors: Sequence[Sequence[Option]], choice: Choice) -> int:
    """Return how many weights a choice codes by seeds."""
    return sum(options[i].seed_blocks for options, i in zip(tensors, choice, strict=True))


def _cheapest(tensors: Sequence[Sequence[Option]], mu: float, seed_price: float) -> Choice:
    def cost(option: Option) -> tuple[float, float, str]:
        tie = option.distortion if mu == float("inf") else float(option.size_bytes)
        return _price(option, mu) + seed_price * option.seed_blocks, tie, option.name

    return [
        min(range(len(options)), key=[cost(option) for option in options].__getitem__)
        for options in tensors
    ]


def _price(option: Option, mu: float) -> float:
    """Return D + μ R; at an infinite μ only the bytes count."""
    return (
        float(option.size_bytes)
        if mu == float("inf")
        else option.distortion + mu * option.size_bytes
    )


def _spend_seeds(
    tensors: Sequence[Sequence[Option]], choice: Choice, mu: float, spare: int
) -> Choice:
    """Give the seed weights that are left over to the tensors that gain most by each of them.

    One multiplier for the share can jump from none to too many: one large tensor, or several of
    equal gain, go together.
    """
    gains = []
    for t, (options, taken) in enumerate(zip(tensors, choice, strict=True)):
        for i, option in enumerate(options):
            extra = option.seed_blocks - options[taken].seed_blocks
            gain = _price(options[taken], mu) - _price(option, mu)
            if extra > 0 and gain > 0:
                gains.append((gain / extra, t, i, extra))
    choice, changed = list(choice), set[int]()
    for _, t, i, extra in sorted(gains, key=lambda entry: (-entry[0], entry[1], entry[2])):
        if t not in changed and extra <= spare:
            choice[t], spare = i, spare - extra
            changed.add(t)
    return choice


def _exchange(
    tensors: Sequence[Sequence[Option]],
    choice: Choice,
    budget_bytes: int,
    max_seed_blocks: int | None,
) -> Choice:
    """Change one, two or three tensors at a time while that lowers the distortion and fits both
    limits.
    """
    choice = list(choice)
    for _ in range(EXCHANGE_ROUNDS):
        spare_bytes = budget_bytes - total_bytes(tensors, choice)
        spare_seeds = (
            float("inf")
            if max_seed_blocks is None
            else max_seed_blocks - seed_blocks(tensors, choice)
        )
        order = sorted(range(len(tensors)), key=lambda t: -tensors[t][choice[t]].distortion)
        for size, width in ((1, len(tensors)), (2, PAIR_TENSORS), (3, TRIPLE_TENSORS)):
            better = _best_change(
                tensors, choice, combinations(sorted(order[:width]), size), spare_bytes, spare_seeds
            )
            if better is not None:
                choice = better
                break
        else:
            return choice
    return choice


def _best_change(
    tensors: Sequence[Sequence[Option]],
    choice: Choice,
    groups: Iterable[tuple[int, ...]],
    spare_bytes: int,
    spare_seeds: float,
) -> Choice | None:
    """Return the choice after the best change of one of `groups` of tensors; None if none helps."""
    # A gain has to be more than rounding, or two choices of equal distortion would swap for ever.
    best_gain, best = 1e-15 * total_distortion(tensors, choice), None
    for group in groups:
        for candidate in product(*(range(len(tensors[t])) for t in group)):
            gain = extra = seeds = 0.0
            for t, i in zip(group, candidate, strict=True):
                old, new = tensors[t][choice[t]], tensors[t][i]
                gain += old.distortion - new.distortion
                extra += new.size_bytes - old.size_bytes
                seeds += new.seed_blocks - old.seed_blocks
            if gain > best_gain and extra <= spare_bytes and seeds <= spare_seeds:
                best_gain, best = gain, dict(zip(group, candidate, strict=True))
    return None if best is None else [best.get(t, i) for t, i in enumerate(choice)]
