"""What sampling leaves out: closed forms, and the same in batches as in engines without torch."""

import numpy as np
import pytest
import torch

from agent_forge.core.errors import ConfigError
from agent_forge.models.generation import _cut
from agent_forge.models.sampling import Cuts, check_sampling, choose, cut

FOUR = np.array([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        (Cuts(top_k=2), [4 / 7, 3 / 7, 0, 0]),
        (Cuts(min_p=0.5), [4 / 9, 3 / 9, 2 / 9, 0]),
        (Cuts(min_p=1.0), [1, 0, 0, 0]),
        # The entropy is 1.28 nats; the surprises are .92, 1.20, 1.61, 2.30.
        (Cuts(typical_p=0.2), [0, 1, 0, 0]),
        (Cuts(typical_p=0.5), [0, 0.6, 0.4, 0]),
        (Cuts(top_k=3, typical_p=0.3), [0, 1, 0, 0]),
    ],
)
def test_cuts_leave_what_their_definitions_say(cuts: Cuts, expected: list[float]) -> None:
    assert cut(FOUR, cuts) == pytest.approx(expected)
    batch = _cut(torch.from_numpy(np.stack([FOUR, FOUR])), cuts)
    assert batch.numpy() == pytest.approx(np.array([expected, expected]))


def test_batches_and_single_rows_cut_alike() -> None:
    draws = np.random.default_rng(0)
    rows = -np.sort(-draws.dirichlet(np.full(50, 0.3), 20), axis=1)
    for cuts in (Cuts(top_k=7), Cuts(min_p=0.1), Cuts(typical_p=0.7, top_k=20, min_p=0.01)):
        ours = np.stack([cut(row, cuts) for row in rows])
        assert np.allclose(_cut(torch.from_numpy(rows), cuts).numpy(), ours)
        assert np.allclose(ours.sum(1), 1)


def test_a_draw_follows_what_is_left() -> None:
    logits = np.log(FOUR).astype(np.float32)
    draws = (np.arange(100) + 0.5) / 100
    drawn = [choose(logits, 1.0, 1.0, draw, Cuts(typical_p=0.5)) for draw in draws]
    assert [drawn.count(token) for token in range(4)] == [0, 60, 40, 0]


def test_cuts_outside_their_limits_or_without_effect_are_refused() -> None:
    for wrong in ({"top_k": -1}, {"min_p": 1.5}, {"typical_p": 0.0}):
        with pytest.raises(ConfigError, match="top_k must be >= 0"):
            Cuts(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="temperature=0 takes the likeliest"):
        check_sampling(0.0, 1.0, Cuts(top_k=3))
