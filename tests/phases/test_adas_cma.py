"""Strengths by CMA-ES: a planted optimum, the region, its order of gains, and a search that goes on."""

import contextlib
import math

import numpy as np
import pytest

from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config
from agent_forge.phases.adas import check as refusals
from agent_forge.phases.adas.candidate import Candidate
from agent_forge.phases.adas.evolution import by_cma
from agent_forge.phases.adas.objective import Objective
from agent_forge.phases.adas.trust import State, Trial, TrustSearch

# A quadratic in three strengths whose axes are turned and whose curvatures are 1, 3 and 10.
TURN, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
CURVED = TURN @ np.diag([1.0, 3.0, 10.0]) @ TURN.T
BEST = np.array([0.5, -0.3, 0.2])


def settings(*more):
    return compose(
        "adas", Config, ["domains=[text,tools,memory]", "search.proposals=cma", *more]
    ).search


def loss_of(candidate):
    away = np.asarray(candidate.alpha) - BEST
    return float(away @ CURVED @ away)


class Known(Objective):
    """Losses in closed form, the same on every row."""

    def losses(self, model, picks):
        count = len(picks["x"])
        self.scored += count
        return {"x": np.stack([np.full(count, loss_of(model)), np.ones(count)], axis=1)}


class NoModel:
    """A bench whose models are the candidates themselves."""

    def applied(self, candidate):
        return contextlib.nullcontext(candidate)


def searched(folder, seed=0):
    config = compose(
        "adas", Config, ["search.proposals=cma", "search.candidates=6", "search.accept_items=16"]
    )
    objective = Known(rows={"x": [None] * 400}, weights={"x": 1.0}, items_hash="", seed=seed,
                      samples=400, confidence=0.95, pool=120)  # fmt: skip
    out = Workspace(folder, phase="adas", seed=0, config={})
    search = TrustSearch(
        "adas", PhaseRun(config, [], out, EventLog(None, "adas")), NoModel(), objective,
        lambda _: 0.0,
    )  # fmt: skip
    still = Candidate(technique="svf_all", alpha=(0.0,) * 3)
    return search, search.run(State(incumbent=still, ranking=["ties"]), by_cma(config.search))


def test_the_optimum_of_a_turned_quadratic_is_found_inside_the_region(tmp_path):
    start = loss_of(Candidate(technique="ties", alpha=(0.0,) * 3))
    for seed in range(4):
        search, state = searched(tmp_path / str(seed), seed)
        assert loss_of(state.incumbent) < 0.15 * start
        for trial in state.trials:
            before, after = np.asarray(trial.incumbent.alpha), np.asarray(trial.candidate.alpha)
            assert np.abs(after - before).max() <= 0.1 + 1e-6
            assert (trial.candidate.technique, trial.candidate.edits) == ("ties", ())
        assert [trial.number for trial in state.trials] == [i for i in range(10) for _ in range(6)]
        assert search.rows_scored == 10 * (6 * 2 + 2 + 2 * 6 + 6 + 2 * 16)


def test_an_interrupted_search_goes_on_to_the_same_end(tmp_path):
    search, whole = searched(tmp_path)
    for number in range(4, 10):
        (search.out.state / f"adas-{number:03}.json").unlink()
    again, resumed = searched(tmp_path)
    assert again.log == search.log
    assert resumed == whole


def learned(gains, candidates=40):
    """The mean of what is proposed after one generation with these gains of (step, gain)."""
    still = Candidate(technique="ties", alpha=(0.0, 0.0, 0.0))
    trials = [
        Trial(incumbent=still, candidate=Candidate(technique="ties", alpha=(step, 0.0, 0.0)),
              gain=gain, number=0)
        for step, gain in gains
    ]  # fmt: skip
    state = State(incumbent=still, ranking=["ties"], trials=trials)
    search = settings(f"search.candidates={candidates}")
    proposed = by_cma(search)(state, numpy_generator(0, "cma"))
    assert len(set(proposed)) == candidates
    return np.mean([one.alpha[0] for one in proposed])


def test_it_learns_the_order_of_gains_and_one_that_is_not_finite_is_the_worst():
    steps = np.linspace(-0.1, 0.1, 40)
    rising = learned(list(zip(steps, steps, strict=True)))
    falling = learned(list(zip(steps, -steps, strict=True)))
    assert rising > 0.02
    assert falling < -0.02
    assert rising == learned(list(zip(steps, 1e6 * steps**3, strict=True)))  # the order alone
    broken = [(step, math.nan if step > 0 else step) for step in steps]
    assert learned(broken) < 0
    screened = [Trial(incumbent=Candidate(technique="ties", alpha=(0.0,) * 3), gain=9.0,
                      candidate=Candidate(technique="ties", alpha=(0.1,) * 3))] * 4  # fmt: skip
    state = State(incumbent=screened[0].incumbent, ranking=["ties"], trials=screened)
    plain = State(incumbent=screened[0].incumbent, ranking=["ties"])
    propose = by_cma(settings())
    first, other = (propose(one, numpy_generator(1, "cma")) for one in (state, plain))
    assert first == other  # screening teaches nothing here


def test_one_domain_is_enough_and_fewer_than_four_candidates_are_not():
    still = Candidate(technique="svf_all", alpha=(0.95,))
    chosen = by_cma(settings("search.candidates=5"))(
        State(incumbent=still, ranking=["ties"]), numpy_generator(0, "cma")
    )
    assert len({one.alpha for one in chosen}) == 5
    assert all(0.85 - 1e-9 <= one.alpha[0] <= 1.0 for one in chosen)
    assert {one.technique for one in chosen} == {"svf_all"}
    config = compose("adas", Config, ["search.proposals=cma", "search.candidates=3"])
    with pytest.raises(ConfigError, match="candidates of at least 4, got 3"):
        refusals.check(config)
