"""The bench of the ternary recipe's candidates: equal tokens, one change each, the worst kind."""

import argparse
import math
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent_forge.config.compose import compose
from agent_forge.phases.bitnet import Config
from scripts.bench import ternary_candidates, trials
from scripts.bench.ternary_candidates import CANDIDATES, KINDS, SHIPPED, Candidates, overrides


def composed(variant: str) -> Config:
    return compose("bitnet", Config, ["out=o", "sources=[s]", *overrides(variant, 8, 192)])


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def test_the_shipped_variant_is_the_shipped_recipe() -> None:
    assert composed(SHIPPED) == compose("bitnet", Config, ["out=o", "sources=[s]"])


@pytest.mark.parametrize("variant", sorted(CANDIDATES))
def test_each_candidate_changes_one_thing_and_trains_on_as_many_tokens(variant: str) -> None:
    one, shipped = composed(variant), composed(SHIPPED)
    before, after = leaves(asdict(shipped)), leaves(asdict(one))
    changed = {key for key in before if before[key] != after[key]}
    if variant == ternary_candidates.LONGER:
        assert changed == {"train.rows", "train.length_tokens", "init.rows"}
        assert one.init.rows * one.train.length_tokens == (
            shipped.init.rows * shipped.train.length_tokens
        )
    else:
        assert len(changed) == 1
    assert one.train.rows * one.train.length_tokens == 8 * 192


def test_a_candidate_is_judged_on_the_kind_where_it_does_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trials, "Trials", lambda _: SimpleNamespace())
    bench = Candidates(argparse.Namespace(seeds=3, scale=0.5))
    assert bench.steps == 100
    gains = {"text": [0.3, 0.4, 0.5], "tools": [0.1, 0.2, 0.0]}

    def trial(variant: str, seed: int) -> dict[str, Any]:
        by_kind = {kind: 1.0 - (variant != SHIPPED) * gains[kind][seed] for kind in KINDS}
        return {"kl": by_kind, "bits": by_kind}

    monkeypatch.setattr(bench, "trial", trial)
    assert bench.worst_kind("KL alone") == "tools"
    figure = bench.gain("KL alone", "tools", "kl")
    assert figure.figure == pytest.approx(0.1)
    assert figure.interval == pytest.approx(
        (0.1 - 4.303 * 0.1 / 3**0.5, 0.1 + 4.303 * 0.1 / 3**0.5)
    )
    assert bench.shipped("text", "bits").figure == 1.0


def test_log_probabilities_are_those_of_the_scored_tokens_given_the_ones_before() -> None:
    logits = torch.log(torch.tensor([[[1.0, 3.0], [1.0, 1.0], [9.0, 1.0]]]))
    model = lambda **_: SimpleNamespace(logits=logits)  # noqa: E731
    both = ternary_candidates.log_probabilities(model, [0, 1, 1], [False, True, True])
    assert both.exp().tolist() == [pytest.approx([0.25, 0.75]), pytest.approx([0.5, 0.5])]
    only_last = ternary_candidates.log_probabilities(model, [0, 1, 1], [False, False, True])
    assert only_last.shape == (1, 2)
    assert float(only_last[0, 0]) == pytest.approx(-math.log(2))


def test_some_candidates_alone_have_a_reference_of_their_own_and_a_record_that_names_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[tuple[str, int]] = []

    def trial(_: Candidates, variant: str, seed: int) -> dict[str, Any]:
        trained.append((variant, seed))
        worth = {"cross-entropy at .1": 0.5, "KL alone": 1.5}.get(variant, 1.0) + 0.01 * seed
        by_kind = dict.fromkeys(KINDS, worth)
        return {"kl": by_kind, "bits": by_kind, "seconds": worth, "bytes": 2}

    monkeypatch.setattr(trials, "Trials", lambda _: SimpleNamespace())
    monkeypatch.setattr(Candidates, "trial", trial)
    result = ternary_candidates.run(["--seeds", "2", "--only", "KL alone", "cross-entropy at .1"])
    assert {name for name, _ in trained} == {SHIPPED, "KL alone", "cross-entropy at .1"}
    assert result.figure == 1.0
    assert result.unit == "of 2 candidates win and are off"
    assert "KL alone, cross-entropy at .1" in result.note
    assert [figure.figure for figure in result.figures[:2]] == pytest.approx([-0.5, 0.5])
    with pytest.raises(SystemExit):
        ternary_candidates.run(["--only", "no such candidate"])
