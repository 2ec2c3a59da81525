"""Intervals, retention and verdicts, without a model."""

import math
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import agent_forge
from agent_forge.config import GateConfig
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.evaluate import (
    Cost,
    Scores,
    bootstrap_interval,
    draw_from,
    holm,
    judge,
    paired_gain,
    retention,
    split_hash,
)

judging = import_module("agent_forge.evaluate.judge")  # the package names a function so, too


def scores(values, weights=None, *, higher=True, chance=0.0, items="same", task="reasoning"):
    values = np.asarray(values, float)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, float)
    return Scores(
        task=task, version=1, metric="m", higher_is_better=higher, chance=chance,
        split="validation", items_hash=items, mean=float(values.sum() / weights.sum()),
        interval=bootstrap_interval(values, weights, seed=0), values=values.tolist(),
        weights=weights.tolist(),
    )  # fmt: skip


def gate(**changes):
    settings = {
        "enabled": True, "tasks": {"reasoning": 0.95}, "chain": {}, "base": "", "items": 96,
        "looks": 1, "samples": 500, "memory_ratio": 3.0, "speed_ratio": 0.1,
        "on_failure": "rollback",
    }  # fmt: skip
    return GateConfig(**{**settings, **changes})


def test_the_95_percent_interval_covers_a_known_bernoulli_about_95_times_in_100():
    generator = np.random.default_rng(1)
    trials, covered = 400, 0
    for trial in range(trials):
        values = (generator.random(100) < 0.6).astype(float)
        low, high = bootstrap_interval(values, np.ones(100), seed=trial, samples=400)
        covered += low <= 0.6 <= high
    assert 0.91 <= covered / trials <= 0.98


def test_the_interval_of_a_ratio_uses_weights_as_its_denominator():
    low, high = bootstrap_interval(np.array([2.0, 20.0]), np.array([1.0, 10.0]), seed=0)
    assert low == high == 2.0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(0).random(50)
    first = bootstrap_interval(values, np.ones(50), seed=3)
    assert first == bootstrap_interval(values, np.ones(50), seed=3)
    assert first != bootstrap_interval(values, np.ones(50), seed=4)


def test_an_unchanged_child_retains_exactly_all_at_every_seed():
    parent = scores(np.random.default_rng(0).random(96) < 0.5)
    rows = [retention("reasoning", parent, parent, 300, seed) for seed in range(200)]
    assert all((row.ratio, row.low, row.high) == (1.0, 1.0, 1.0) for row in rows)
    both = {"reasoning": parent}
    assert all(judge(gate(samples=100), both, both, seed=seed).passed for seed in range(200))


def test_retention_turns_over_where_lower_is_better():
    parent = scores([10.0, 30.0], [10.0, 10.0], higher=False, chance=8.0)
    child = scores([20.0, 60.0], [10.0, 10.0], higher=False, chance=8.0)
    assert retention("text", parent, child, 100, 0).ratio == 0.5


def test_retention_bounds_match_the_delta_method_for_many_items():
    generator = np.random.default_rng(5)
    n = 4000
    old = (generator.random(n) < 0.8).astype(float)
    new = np.where(generator.random(n) < 0.1, 0.0, old)
    row = retention("reasoning", scores(old), scores(new), 1000, 0)
    ratio = new.mean() / old.mean()
    error = np.std((new - ratio * old) / old.mean()) / np.sqrt(n)
    assert row.ratio == pytest.approx(ratio)
    assert row.low == pytest.approx(ratio - 1.645 * error, abs=0.2 * error)


@pytest.mark.parametrize("samples", [100, 1000])
def test_the_bounds_of_a_loss_are_those_of_the_gain_turned_over(samples: int) -> None:
    """The same resamples give the inverse ratio, so each upper bound is one over a lower one."""
    generator = np.random.default_rng(1)
    old, new = (scores(generator.uniform(0.2, 1.0, 60)) for _ in range(2))
    loss = retention("reasoning", old, new, samples, 3, confidence=0.95, loss_confidence=0.9)
    for upper, confidence in ((loss.high, 0.95), (loss.ceiling, 0.9)):
        gain = retention("reasoning", new, old, samples, 3, confidence=confidence)
        assert upper == pytest.approx(1 / gain.low, rel=1e-12)


def test_a_child_with_a_score_that_is_not_finite_retains_nothing_and_is_refused():
    parent = scores([2.0, 2.1], higher=False, chance=8.0)
    child = scores([float("nan"), 2.0], higher=False, chance=8.0)
    assert retention("reasoning", parent, child, 50, 0).ratio == 0.0
    assert not judge(gate(), {"reasoning": parent}, {"reasoning": child}).passed


def test_a_worse_child_is_refused_with_figures_and_a_better_one_passes():
    generator = np.random.default_rng(2)
    parent = scores(generator.random(96) < 0.8)
    fewer = np.asarray(parent.values) * (np.arange(96) % 4 > 0)
    worse = judge(gate(), {"reasoning": parent}, {"reasoning": scores(fewer)})
    assert not worse.passed
    assert "0.950" in worse.reasons[0]
    assert judge(gate(), {"reasoning": parent}, {"reasoning": scores(np.ones(96))}).passed


def test_a_task_on_which_the_parent_guesses_is_reported_but_not_gated():
    parent = scores(np.arange(96) % 4 == 0, chance=0.25)
    verdict = judge(gate(), {"reasoning": parent}, {"reasoning": scores(np.zeros(96), chance=0.25)})
    assert verdict.passed
    assert verdict.retentions["reasoning"].ratio == 0.0
    assert "chance" in verdict.retentions["reasoning"].note


def test_whether_a_task_is_gated_is_decided_by_the_parents_interval_alone():
    """Not by the parent's mean, not by the child, not by the child's interval: all eight cases."""
    above, below = np.repeat([1.0, 0.0], [60, 36]), np.repeat([1.0, 0.0], [20, 76])
    near = np.repeat([1.0, 0.0], [28, 68])  # The mean is above .25, and the interval is not.
    worst = np.zeros(96)
    for parent_values, gated in ((above, True), (near, False), (below, False), (worst, False)):
        for child_values in (above, near, below, worst):
            parent, child = scores(parent_values, chance=0.25), scores(child_values, chance=0.25)
            row = judge(gate(), {"reasoning": parent}, {"reasoning": child}).retentions["reasoning"]
            assert (row.gated, row.at_chance) == (gated, not gated)
            assert row.note.startswith("at chance") == (not gated)
    assert scores(near, chance=0.25).mean > 0.25
    assert not judge(
        gate(), {"reasoning": scores(above, chance=0.25)}, {"reasoning": scores(worst, chance=0.25)}
    ).passed


@pytest.mark.parametrize(("tasks", "looks"), [(1, 1), (3, 1), (2, 2)])
def test_tests_of_one_gate_share_their_chance_of_a_false_alarm(
    tasks: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bonferroni: each of n tests has an n-th of it; looks share that of showing enough."""
    levels: list[tuple[float, float]] = []

    def noted(*arguments, confidence, loss_confidence):
        levels.append((confidence, loss_confidence))
        return retention(*arguments, confidence=confidence, loss_confidence=loss_confidence)

    monkeypatch.setattr(judging, "retention", noted)
    names = [f"task{i}" for i in range(tasks)]
    parent = {name: scores(np.ones(20), task=name) for name in [*names, "other"]}
    judge(gate(tasks=dict.fromkeys(names, 0.9), looks=looks), parent, parent)
    assert len(levels) == tasks + 1
    for shown, lost in levels:
        assert looks * (1 - shown) == pytest.approx(1 - judging.CONFIDENCE)
        assert tasks * (1 - lost) == pytest.approx(1 - judging.LOSS_CONFIDENCE)


def test_one_bad_task_is_enough_to_refuse_and_is_the_one_that_is_named():
    generator = np.random.default_rng(4)
    good = {
        name: scores(generator.random(96) < 0.9, task=name) for name in ("text", "memory", "tools")
    }
    for name in good:
        child = {**good, name: scores(np.zeros(96), task=name)}
        limits = {"text": 0.9, "memory": 0.9, "tools": 0.9}
        verdict = judge(gate(tasks=limits), good, child)
        assert [reason.split()[0] for reason in verdict.reasons] == [name]
        lenient = judge(gate(tasks={**limits, name: 0.0}), good, child)
        assert lenient.passed


def jittered(values, lost, generator):
    """Return 0/1 values: a right one is lost at this rate, and as many are won in expectation."""
    values = np.asarray(values)
    won = lost * values.mean() / (1 - values.mean())
    return np.where(
        generator.random(len(values)) < np.where(values == 1, lost, won), 1 - values, values
    )


def test_an_unchanged_but_jittered_child_passes_at_99_of_100_draws_and_a_loss_of_a_tenth_does_not():
    """n = 512, the last look: 5% of the right items turn over and as many others, or 12% of them
    are lost.
    """
    generator = np.random.default_rng(11)
    settings = gate(tasks={"reasoning": 0.92}, looks=2, samples=400)
    passed = refused = 0
    for seed in range(100):
        right = (generator.random(512) < 0.8).astype(float)
        parent = {"reasoning": scores(right)}
        same = {"reasoning": scores(jittered(right, 0.05, generator))}
        less = {"reasoning": scores(right * (generator.random(512) > 0.12))}
        passed += judge(settings, parent, same, seed=seed).passed
        refused += not judge(settings, parent, less, seed=seed).passed
    assert passed >= 99
    assert refused >= 99


def test_a_weak_skill_passes_unchanged_and_is_refused_when_it_is_gone():
    """Ten right of 96, a fifth of them turned over.

    The lower bound alone would refuse at least four in five.
    """
    generator = np.random.default_rng(12)
    weak = np.repeat([1.0, 0.0], [10, 86])
    verdicts = [
        judge(
            gate(),
            {"reasoning": scores(weak)},
            {"reasoning": scores(jittered(weak, 0.2, generator))},
            seed=seed,
        )
        for seed in range(100)
    ]
    assert sum(verdict.passed for verdict in verdicts) >= 98
    rows = [verdict.retentions["reasoning"] for verdict in verdicts]
    assert sum(row.low >= row.limit for row in rows) <= 20
    assert all(
        "no loss is shown" in row.note for row in rows if row.low < row.limit and row.ceiling >= 1
    )
    assert not judge(
        gate(), {"reasoning": scores(weak)}, {"reasoning": scores(np.zeros(96))}
    ).passed


def test_the_chain_has_a_limit_of_its_own_and_refuses_what_each_phase_alone_may_lose():
    """Six times .96 is .78: every step keeps the phase's limit of .95, the chain's .9 ends it at
    the third.
    """
    settings = gate(tasks={"text": 0.95}, chain={"text": 0.9})
    base = np.full(96, 2.0)
    verdicts = []
    for step in range(1, 5):
        before, after = (
            scores(base / 0.96**k, higher=False, chance=8.0, task="text") for k in (step - 1, step)
        )
        first = scores(base, higher=False, chance=8.0, task="text")
        verdicts.append(judge(settings, {"text": before}, {"text": after}, base={"text": first}))
    assert [verdict.passed for verdict in verdicts] == [True, True, False, False]
    assert [round(verdict.chain["text"].ratio, 3) for verdict in verdicts] == [
        0.96,
        0.922,
        0.885,
        0.849,
    ]
    assert "the chain's base" in verdicts[2].reasons[0]
    assert all(verdict.retentions["text"].ratio == pytest.approx(0.96) for verdict in verdicts)


def test_of_nothing_nothing_is_lost_and_a_loss_that_is_not_shown_is_not_refused():
    none = scores([0.0] * 8)
    row = retention("reasoning", none, none, 200, 0)
    assert (row.ratio, row.low, row.high) == (1.0, 1.0, 1.0)
    doubtful = replace(row, ratio=0.9, low=0.8, limit=0.95, gated=True, ceiling=1.0)
    assert not doubtful.refused
    assert replace(doubtful, ceiling=0.999).refused


def test_more_items_are_wanted_only_where_they_can_change_the_verdict():
    settings = gate(tasks={"reasoning": 0.9})
    right = np.repeat([1.0, 0.0], [80, 16])
    parent = {"reasoning": scores(right)}

    def open_tasks(lost):
        child = right.copy()
        child[:lost] = 0.0
        return judge(settings, parent, {"reasoning": scores(child)}).open_tasks()

    assert (open_tasks(0), open_tasks(7), open_tasks(60)) == ([], ["reasoning"], [])


def test_size_speed_and_memory_are_judged_by_their_limits():
    one = {"reasoning": scores(np.ones(8))}

    def reasons(parent: Cost, child: Cost, **options: Any) -> str:
        return " ".join(
            judge(gate(), one, one, parent_cost=parent, child_cost=child, **options).reasons
        )

    small, large = Cost(deployable_bytes=10), Cost(deployable_bytes=11)
    assert not reasons(small, large)
    assert "grew" in reasons(small, large, promises_smaller=True)
    one_byte, two_bytes = Cost(deployable_bytes=1), Cost(deployable_bytes=2)
    assert "grew" in reasons(one_byte, two_bytes, promises_smaller=True)
    assert not reasons(Cost(), large, promises_smaller=True)  # what it was is not known
    assert "speed" in reasons(Cost(tokens_per_second=100), Cost(tokens_per_second=9))
    assert "memory" in reasons(Cost(memory_bytes=100), Cost(memory_bytes=301))
    assert not reasons(Cost(memory_bytes=100), Cost(memory_bytes=301), memory_slack=1)
    assert not reasons(Cost(), Cost(memory_bytes=301))
    assert not reasons(
        Cost(tokens_per_second=100, memory_bytes=100), Cost(tokens_per_second=10, memory_bytes=300)
    )


def test_a_model_made_from_nothing_needs_only_finite_scores():
    assert judge(gate(), {}, {"reasoning": scores(np.zeros(8))}).passed
    assert not judge(gate(), {}, {"reasoning": scores([float("inf"), 0.0])}).passed


def test_a_gated_task_that_was_not_scored_is_named():
    one = {"reasoning": scores(np.ones(8))}
    with pytest.raises(ConfigError, match="did you mean 'reasoning'"):
        judge(gate(tasks={"reasonin": 0.9}), one, one)


def test_scores_of_different_items_cannot_be_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        retention("reasoning", scores(np.ones(4)), scores(np.ones(4), items="other"), 10, 0)


def test_a_gain_is_positive_for_fewer_bits_and_its_bound_rejects_the_null_about_5_times_in_100():
    four, three = scores([4.0, 4.0], higher=False), scores([3.0, 3.0], higher=False)
    assert paired_gain(four, three, samples=50, seed=0) == (1.0, 1.0)
    generator = np.random.default_rng(9)
    accepted = 0
    for trial in range(300):
        base = generator.normal(1.0, 0.2, 128)
        bound = paired_gain(
            scores(base), scores(base + generator.normal(0, 0.1, 128)), samples=200, seed=trial
        )[1]
        accepted += bound > 0
    assert accepted / 300 <= 0.085


def test_scores_survive_json_and_the_hash_follows_the_items():
    import json

    one = scores([1.0, 0.0])
    assert Scores.from_plain(json.loads(json.dumps(one.to_plain()))) == one
    assert (
        split_hash([{"a": 1, "b": 2}])
        == split_hash([{"b": 2, "a": 1}])
        != split_hash([{"a": 1, "b": 3}])
    )


def clustered(values, clusters, **more):
    one = scores(values, **more)
    one.clusters = list(clusters)
    one.interval = bootstrap_interval(
        np.asarray(values, float), np.ones(len(values)), seed=0, clusters=clusters
    )
    return one


def test_with_one_item_a_cluster_every_interval_is_that_of_the_items():
    generator = np.random.default_rng(3)
    values, other = generator.random(40), generator.random(40)
    plain, own = scores(values), clustered(values, range(40))
    assert plain.interval == own.interval
    assert paired_gain(plain, scores(other), samples=99, seed=1) == paired_gain(
        own, clustered(other, range(40)), samples=99, seed=1
    )
    assert retention("r", plain, scores(other), 99, 1) == retention(
        "r", own, clustered(other, range(40)), 99, 1
    )


def test_copies_within_a_cluster_do_not_narrow_an_interval():
    generator = np.random.default_rng(4)
    values, other = generator.random(30), generator.random(30)
    one, same = scores(values), scores(other)
    for copies in (2, 5):
        repeat = np.repeat(np.arange(30), copies)
        many, more = (clustered(np.repeat(part, copies), repeat) for part in (values, other))
        assert many.interval == pytest.approx(one.interval)
        assert paired_gain(many, more, samples=200, seed=0) == pytest.approx(
            paired_gain(one, same, samples=200, seed=0)
        )
        wide, narrow = retention("r", many, more, 200, 0), retention("r", one, same, 200, 0)
        assert (wide.ratio, wide.low, wide.high) == pytest.approx(
            (narrow.ratio, narrow.low, narrow.high)
        )


def test_the_interval_of_clusters_covers_their_mean_where_that_of_items_does_not():
    generator = np.random.default_rng(6)
    trials, by_item, by_cluster = 300, 0, 0
    clusters = np.repeat(np.arange(30), 8)
    for trial in range(trials):
        values = generator.normal(0, 1, 30)[clusters] + generator.normal(0, 0.3, 240)
        for unit, names in (("item", ()), ("cluster", clusters)):
            low, high = bootstrap_interval(
                values, np.ones(240), seed=trial, samples=300, clusters=names
            )
            by_item += unit == "item" and low <= 0 <= high
            by_cluster += unit == "cluster" and low <= 0 <= high
    assert 0.90 <= by_cluster / trials <= 0.98
    assert by_item / trials < 0.6


def test_kinds_are_reported_apart_with_their_own_count():
    one = scores([1, 0, 1, 1, 0, 0])
    one.kinds = ["call", "call", "call", "call", "repeat", "repeat"]
    kinds = one.as_metric()["kinds"]
    assert (kinds["call"]["value"], kinds["call"]["n"]) == (0.75, 4)
    assert (kinds["repeat"]["value"], kinds["repeat"]["high"], kinds["repeat"]["n"]) == (
        0.0,
        0.0,
        2,
    )
    one.kinds = ["call"] * 6
    assert "kinds" not in one.as_metric()


def test_scores_with_other_clusters_cannot_be_paired():
    with pytest.raises(DataError, match="cannot be paired"):
        retention(
            "r", clustered(np.ones(4), [0, 0, 1, 1]), clustered(np.ones(4), [0, 1, 1, 1]), 10, 0
        )


def test_a_score_without_a_level_of_chance_says_none_in_a_manifest() -> None:
    """A loss in nats has none, and JSON has no infinity."""
    loss = scores([1.0, 2.0, 3.0], higher=False, chance=math.inf)
    assert loss.as_metric()["chance"] is None
    assert loss.as_metric()["at_chance"] is False
    assert replace(loss, chance=0.5).as_metric()["chance"] == 0.5


def test_bootstrap_draws_are_made_in_one_place() -> None:
    """A room that resamples by itself calls `draw_from`: only evaluate/scores.py draws a table of
    item numbers.
    """
    package = Path(agent_forge.__file__).parent
    tables = re.compile(r"\.integers\(\s*0,[^()]*\(+[\w.]*samples")
    drawing = [
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if tables.search(file.read_text())
    ]
    assert drawing == ["evaluate/scores.py"]
    expected = np.random.default_rng(3).integers(0, 7, (5, 7))
    assert (draw_from(np.random.default_rng(3), 7, 5) == expected).all()
    with pytest.raises(DataError, match="nothing to resample"):
        draw_from(np.random.default_rng(3), 0, 5)


def test_holm_corrects_as_its_paper_says_and_keeps_the_level_of_the_whole_family() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    generator = np.random.default_rng(0)
    chances = generator.random((4000, 15))
    plain = (chances <= 0.05).any(1).mean()
    corrected = np.mean([min(holm(list(row))) <= 0.05 for row in chances])
    assert plain > 0.5
    # 1 - (1 - .05 / 15) ** 15 = .0489, and four standard errors
    assert corrected == pytest.approx(0.0489, abs=0.014)


def test_what_is_kept_of_a_kind_is_the_ratio_of_its_weighted_means() -> None:
    """Kind "b": 6 of 12 before, 3 of 12 after; kind "a" is unchanged."""
    weights = [4.0, 6.0, 4.0, 6.0]
    parent, child = scores([4, 4, 4, 2], weights), scores([4, 2, 4, 1], weights)
    parent.kinds = child.kinds = ["a", "b", "a", "b"]
    ratios = judging.retention_by_kind(parent, child, 200, 0)
    assert {kind: row.ratio for kind, row in ratios.items()} == {"a": 1.0, "b": 0.5}
    part = judging._items_at(parent, [1, 3])
    assert (part.values, part.weights, part.mean) == ([4.0, 2.0], [6.0, 6.0], 0.5)
