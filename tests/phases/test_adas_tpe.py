"""Candidates by optuna's TPE: its genome, its seeds, what it learns, and a search that goes on."""

import contextlib
import math
import re
import sys
from types import SimpleNamespace

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
from agent_forge.phases.adas import run as phase_run
from agent_forge.phases.adas.candidate import Candidate
from agent_forge.phases.adas.objective import Objective
from agent_forge.phases.adas.pool import COMPOSITIONS, EDITS
from agent_forge.phases.adas.tpe import by_tpe
from agent_forge.phases.adas.trust import State, Trial, TrustSearch, around_incumbent, begin_at

DOMAINS = ["text", "tools"]
TECHNIQUES, CHANGES = sorted(COMPOSITIONS)[:4], sorted(EDITS)[:3]
TARGET = {"technique": TECHNIQUES[2], "alpha": (0.07, -0.04), "edits": (CHANGES[1],)}
STILL = Candidate(technique="svf_all", alpha=(0.0, 0.0))


def settings(*more):
    return compose("adas", Config, ["domains=[text,tools]", "search.proposals=optuna", *more])


@pytest.fixture
def optuna():
    return pytest.importorskip("optuna", reason="optuna is not installed (extra: search)")


def gain_of(candidate):
    """A gain in closed form: a part for the technique, one for the edit, and the distance of the
    strengths from their best.
    """
    steps = (np.asarray(candidate.alpha) - TARGET["alpha"]) / 0.1
    right = candidate.technique == TARGET["technique"] and any(candidate.alpha)
    return float(right + (candidate.edits == TARGET["edits"]) - (steps**2).sum())


def state_of(incumbent=STILL, trials=()):
    return State(incumbent=incumbent, ranking=TECHNIQUES, edits=CHANGES, trials=list(trials))


def best_of(search, seed, iterations):
    """The best gain among all candidates of a search whose incumbent stays where it is."""
    state, propose = state_of(), by_tpe(search, DOMAINS)
    for number in range(iterations):
        suggested = propose(state, numpy_generator(seed, "tpe", number))
        state.trials += [Trial(incumbent=STILL, candidate=c, gain=gain_of(c)) for c in suggested]
    assert len(state.trials) == iterations * search.candidates
    return max(trial.gain for trial in state.trials)


def test_tpe_comes_nearer_to_a_planted_optimum_than_chance_in_as_many_trials(optuna, monkeypatch):
    search, seeds = settings("search.candidates=6").search, range(8)
    learned = [best_of(search, seed, 10) for seed in seeds]
    by_chance = optuna.samplers.RandomSampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda seed: by_chance(seed=seed))
    drawn = [best_of(search, seed, 10) for seed in seeds]
    near = 1.85  # The best possible gain is 2.
    assert sum(gain > near for gain in learned) >= 7
    assert sum(gain > near for gain in drawn) <= 2


def test_the_same_seed_and_trials_propose_the_same_and_another_seed_does_not(optuna):
    del optuna
    search = settings().search
    trials = [
        Trial(incumbent=STILL, candidate=Candidate(technique=name, alpha=(0.1, 0.1)), gain=place)
        for place, name in enumerate(TECHNIQUES)
    ]
    first, again, other = (
        by_tpe(search, DOMAINS)(state_of(trials=trials), np.random.default_rng(seed))
        for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other
    assert len(first) == search.candidates


def test_a_choice_is_made_only_where_the_choices_before_it_need_it(optuna, monkeypatch):
    suggested = []
    ask = optuna.study.Study.ask

    def watched(study):
        suggested.append(ask(study))
        return suggested[-1]

    monkeypatch.setattr(optuna.study.Study, "ask", watched)
    search = settings("search.candidates=40").search
    chosen = by_tpe(search, DOMAINS)(state_of(), np.random.default_rng(0))
    moves = {"technique", "step text", "step tools"}
    needs = {"strengths": moves, "edit": {"edit"}, "both": {*moves, "edit"}}
    assert {trial.params["changes"] for trial in suggested} == set(needs)
    expected = []
    for params in (trial.params for trial in suggested):
        assert set(params) == {"changes"} | needs[params["changes"]]
        steps = [params.get(f"step {domain}", 0.0) for domain in DOMAINS]
        expected.append(
            Candidate(
                technique=params.get("technique", STILL.technique),
                alpha=tuple(round(0.1 * step, 6) for step in steps),
                edits=(params["edit"],) if "edit" in params else (),
            )
        )
    assert chosen == list(dict.fromkeys(expected))
    assert len(chosen) == search.candidates == 40


@pytest.mark.parametrize(("held", "known"), [(("one", "two"), CHANGES), ((), [])])
def test_no_edit_is_chosen_where_there_is_no_room_or_none_to_choose(optuna, held, known):
    del optuna
    search = settings("search.candidates=20", "search.edits=2").search
    now = Candidate(technique="svf_all", alpha=(0.1, 0.0), edits=held)
    state = State(incumbent=now, ranking=TECHNIQUES, edits=known)
    chosen = by_tpe(search, DOMAINS)(state, np.random.default_rng(0))
    assert {one.edits for one in chosen} == {held}
    assert all(one.alpha != now.alpha for one in chosen)


def test_the_choices_of_a_finished_move_are_those_that_led_to_it(optuna, monkeypatch):
    """Also where the region's border cuts a step, and where a gain is not finite."""
    finished = []
    add = optuna.study.Study.add_trials
    monkeypatch.setattr(
        optuna.study.Study, "add_trials", lambda study, ts: (finished.extend(ts), add(study, ts))
    )
    now = Candidate(technique="ties", alpha=(0.95, 0.0), edits=("one",))
    name, edit = TECHNIQUES[1], CHANGES[0]
    trials = [
        Trial(incumbent=now, candidate=after, gain=gain)
        for after, gain in (
            (Candidate(technique=name, alpha=(1.0, -0.025), edits=("one",)), 0.5),
            (Candidate(technique="ties", alpha=now.alpha, edits=("one", edit)), math.nan),
            (Candidate(technique=name, alpha=(0.9, 0.1), edits=("one", edit)), -1.0),
        )
    ]
    by_tpe(settings().search, DOMAINS)(state_of(now, trials), np.random.default_rng(0))
    steps = [(one.params.get("step text"), one.params.get("step tools")) for one in finished]
    assert steps == [(pytest.approx(0.5), pytest.approx(-0.25)), (None, None),
                     (pytest.approx(-0.5), 1.0)]  # fmt: skip
    assert [one.params["changes"] for one in finished] == ["strengths", "edit", "both"]
    assert [one.params.get("technique") for one in finished] == [name, None, name]
    assert [one.params.get("edit") for one in finished] == [None, edit, edit]
    assert [one.value for one in finished] == [0.5, None, -1.0]


class Known(Objective):
    """Losses in closed form, the same on every row."""

    def losses(self, model, picks):
        self.scored += len(picks["x"])
        value = np.full(len(picks["x"]), 5 - gain_of(model))
        return {"x": np.stack([value, np.ones(len(value))], axis=1)}


class NoModel:
    """A bench whose models are the candidates themselves."""

    def applied(self, candidate):
        return contextlib.nullcontext(candidate)


def searched(folder, proposals):
    config = settings(
        "search.iterations=6", "search.samples=400", "search.accept_items=16", "search.edits=1"
    )
    objective = Known(rows={"x": [None] * 400}, weights={"x": 1.0}, items_hash="", seed=0,
                      samples=400, confidence=0.95, pool=120)  # fmt: skip
    out = Workspace(folder, phase="adas", seed=0, config={})
    search = TrustSearch(
        "adas", PhaseRun(config, [], out, EventLog(None, "adas")), NoModel(), objective,
        lambda _: 0.0,
    )  # fmt: skip
    state = State(incumbent=STILL)
    pool = [{"technique": name, "gain_nats": 0.0} for name in (*TECHNIQUES, *CHANGES)]
    begin_at(state, pool, config.search.scale)
    return search, search.run(state, proposals(config))


def tpe_of(config):
    return by_tpe(config.search, DOMAINS)


def test_an_interrupted_search_by_tpe_goes_on_to_the_same_end(optuna, tmp_path):
    del optuna
    search, whole = searched(tmp_path, tpe_of)
    assert any(step["accepted"] for step in search.log)
    for number in range(3, 6):
        (search.out.state / f"adas-{number:03}.json").unlink()
    again, resumed = searched(tmp_path, tpe_of)
    assert again.log == search.log
    assert resumed == whole


def test_every_iteration_by_tpe_races_as_many_candidates_as_it_may_and_no_two_alike(
    optuna, tmp_path
):
    """Also the search's own proposals never score more rows than that."""
    del optuna
    own, _ = searched(tmp_path / "own", lambda config: around_incumbent(config.search))
    learned, state = searched(tmp_path / "optuna", tpe_of)
    assert len(state.trials) == len(TECHNIQUES) + len(CHANGES) + 6 * 5
    assert learned.rows_scored == 6 * (5 * 2 + 2 + 2 * 6 + 6 + 2 * 16) >= own.rows_scored


def test_a_step_across_the_border_that_changes_nothing_is_no_candidate(optuna):
    del optuna
    search = settings("search.candidates=12", "search.edits=0").search
    now = Candidate(technique=TECHNIQUES[0], alpha=(1.0,))
    state = State(incumbent=now, ranking=TECHNIQUES[:1])
    chosen = by_tpe(search, DOMAINS[:1])(state, np.random.default_rng(0))
    assert len(set(chosen)) == 12
    assert all(0.9 <= one.alpha[0] < 1.0 for one in chosen)


def test_without_optuna_it_is_refused_in_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    config = settings(f"out={tmp_path}")
    expected = (
        "search.proposals=optuna needs the package optuna; pip install 'agent-forge[search]', "
        "or use search.proposals=own"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        refusals.check(config)
    nothing = SimpleNamespace(config=config, out=None, sources=[None])
    with pytest.raises(ConfigError, match="agent-forge\\[search\\]"):
        phase_run.run(nothing)
    refusals.check(compose("adas", Config, []))
