# ruff: noqa: ARG005 - doubles have the signature of what they stand for
"""The benches of further training: orders, settings and trials that are done once."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent_forge.config.compose import compose
from agent_forge.phases.train import Config
from scripts.bench import ablate_stages, replay, trials


def composed(*overrides: str) -> Config:
    return compose("train", Config, ["out=o", "sources=[s]", *trials.BARE, *overrides])


def mechanisms_of(config: Config) -> set[str]:
    names = {
        "curriculum": "curriculum", "chaos": "chaos", "dream": "dreams",
        "self_model": "self-model", "replay": "replay", "average": "average",
    }  # fmt: skip
    return {shown for name, shown in names.items() if config.is_on(name)}


def test_a_variant_switches_on_what_its_name_says_and_nothing_else() -> None:
    everything = set(ablate_stages.MECHANISMS)
    expected = {ablate_stages.PLAIN: set(), ablate_stages.ALL: everything}
    expected |= {name: {name} for name in everything}
    expected |= {name: set() for name in ablate_stages.SCHEDULES}
    expected |= {ablate_stages.LESS + name: everything - {name} for name in everything}
    assert set(expected) == {*ablate_stages.LEAVE_IN, *ablate_stages.LEAVE_OUT}
    for variant, names in expected.items():
        assert mechanisms_of(composed(*ablate_stages.overrides(variant))) == names


def test_the_order_turns_so_that_no_variant_is_always_early() -> None:
    variants = list(ablate_stages.LEAVE_IN)
    orders = [ablate_stages.in_turn(variants, seed) for seed in range(2 * len(variants))]
    assert all(sorted(order) == sorted(variants) for order in orders)
    for variant in variants:
        mean = sum(order.index(variant) for order in orders) / len(orders)
        assert mean == pytest.approx((len(variants) - 1) / 2, abs=1.0)


def test_shipped_steps_are_those_of_conf_and_scale_together() -> None:
    whole = trials.shipped_steps()
    assert sum(whole.values()) == 138
    assert trials.shipped_steps(0.5)["settle"] == round(whole["settle"] / 2)
    config = composed(*trials.steps_of({"dream_1": 7}))
    assert config.taken_stages() == ["dream_1"]


def test_replay_and_dreams_have_equal_shares_of_what_came_before() -> None:
    for variant, share in replay.SHARES.items():
        settings = [
            *replay.BASE, replay.only("tools"), *replay.replaying(variant, ["text", "reasoning"])
        ]  # fmt: skip
        config = composed(*settings)
        assert {kind for kind, weight in config.mix.items() if weight} == {"tools"}
        if variant.startswith("dreams"):
            assert (config.dream.enabled, config.dream.share, config.replay.share) == (
                True, share, 0.0,
            )  # fmt: skip
        else:
            assert (config.dream.enabled, config.replay.share) == (False, share)
            assert config.replay.mix == {"text": 1.0, "reasoning": 1.0}
    assert replay.replaying("real .5", []) == []


def test_a_trial_is_done_once_also_by_a_later_process(tmp_path: Path) -> None:
    calls: list[int] = []

    def opened(rows: int) -> trials.Trials:
        bench = object.__new__(trials.Trials)
        bench.options = SimpleNamespace(rows=rows, length=8, windows=3)  # type: ignore[assignment]
        bench.place = torch.device("cpu")
        bench.file, bench.parent = tmp_path / "t.jsonl", SimpleNamespace(id="p")  # type: ignore[assignment]
        lines = bench.file.read_text().splitlines() if bench.file.exists() else []
        bench.known = {line["key"]: line["record"] for line in map(json.loads, lines)}
        return bench

    def compute() -> dict[str, Any]:
        calls.append(1)
        return {"n": len(calls)}

    assert opened(2).once({"a": 1}, compute) == {"n": 1}
    assert opened(2).once({"a": 1}, compute) == {"n": 1}
    assert opened(4).once({"a": 1}, compute) == {"n": 2}
    assert opened(2).once({"a": 2}, compute) == {"n": 3}


def test_forgetting_is_the_rise_after_each_kind_was_learned() -> None:
    bench = object.__new__(replay.Replay)
    chain = [
        {"text": 2.0, "reasoning": 5.0, "tools": 6.0},
        {"text": 2.5, "reasoning": 1.0, "tools": 6.0},
        {"text": 3.0, "reasoning": 1.4, "tools": 1.0},
    ]
    bench.chain = lambda variant, seed: chain  # type: ignore[method-assign]
    assert bench.forgetting("no replay", 0) == pytest.approx((1.0 + 0.4) / 2)


@pytest.mark.parametrize(
    ("ours", "ratio", "prose", "met"),
    [(1.5, 2**0.5, 2.5, False), (0.5, 2.0, 3.5, False), (0.5, 2.0, 2.9, True)],
)
def test_efficiency_counts_at_equal_forgetting(
    ours: float, ratio: float, prose: float, met: bool
) -> None:
    """Between two budgets the loss falls with the logarithm; beyond the last, that one counts."""
    bench = object.__new__(replay.Replay)
    curve = {
        budget: {"tools": tools, "text": text}
        for budget, tools, text in ((0.25, 3.0, 2.0), (0.5, 2.0, 2.4), (1.0, 1.0, 3.0))
    }
    losses = {replay.NONE: curve, "real .5": {0.5: {"tools": ours, "text": prose}}}
    bench.target_losses = lambda v, budget, seed: losses[v][budget]  # type: ignore[method-assign]
    measured = bench.efficiency("real .5", 0)
    assert measured[0] == pytest.approx(ratio)
    at_that_loss = {2**0.5: 2.7, 2.0: 3.0}[ratio]
    assert measured[1] == pytest.approx(at_that_loss - prose)
    efficiency, saved = replay._efficiency("real .5", [measured] * 2)
    assert efficiency.met is met
    assert saved.figure == pytest.approx(at_that_loss - prose)
    assert ("at least that" in efficiency.n) == (ratio == 2.0)
