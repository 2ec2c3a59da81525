"""The cognate phase at a tiny size: learns, branches, resumes to the same bytes, and takes an
imported trunk.
"""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agent_forge import checkpoint, data, learn, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, DataError, Interrupted
from agent_forge.core.events import Event, EventLog
from agent_forge.data.synthetic import memory
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM
from agent_forge.phases import PhaseRun
from agent_forge.phases.cognate import PHASE, Config, RecallConfig, longer, probes
from agent_forge.phases.cognate.run import SPECIALISTS, loss_over, mixed_batches, priced, run
from agent_forge.phases.cognate.segments import BatchPlan, RecallRows, WithRecall, segment_loss

TINY = [
    "model.vocab_size=400", "model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.halting_size=8", "model.memory_slots=16", "model.written_slots=16",
    "trunk.steps=32", "trunk.rows=4", "trunk.length_tokens=64", "trunk.optim.warmup_steps=2", "branch.steps=3",
    "branch.rows=4", "branch.length_tokens=256", "recall.segment_tokens=160", "branch.optim.warmup_steps=1",
    "generated_rows=60", "baseline=true",
    "tokenizer_rows=60", "probe_items=8", "runtime.device=cpu", "runtime.save_every_seconds=0",
]  # fmt: skip


def settings(out: Path, data_config: DataConfig, *overrides: str) -> Config:
    config = compose("cognate", Config, [*TINY, f"out={out}", *overrides])
    config.data = data_config
    return config


def go(config: Config, sources: list[Checkpoint], listener=None) -> tuple:
    out = Workspace(config.out, phase="cognate", seed=config.seed, config=config, parents=sources)
    out.save_every_seconds = config.runtime.save_every_seconds
    listeners = () if listener is None else (lambda event: listener(event, out),)
    report = run(
        PhaseRun(config, sources, out, EventLog(None, "cognate", listeners, interval_seconds=0))
    )
    return report, out


@pytest.fixture(scope="module")
def cognate_run(tmp_path_factory: pytest.TempPathFactory, data_config: DataConfig) -> tuple:
    config = settings(tmp_path_factory.mktemp("cognate") / "out", data_config)
    report, out = go(config, [])
    return config, report, out


def test_the_shipped_settings_compose_for_every_model() -> None:
    for model in ("nano", "25m", "imported"):
        config = compose("cognate", Config, [f"model={model}", "out=x"])
        assert config.starts_from_nothing() == (model != "imported")
    assert (PHASE.name, PHASE.order) == ("cognate", 1)
    thresholds = [getattr(config, name).halting_threshold for name in SPECIALISTS]
    assert thresholds == [0.95, 0.90, 0.99]
    assert [getattr(config, name).surprise_weight for name in SPECIALISTS] == [0.7, 0.5, 0.3]


def test_it_writes_a_trunk_and_three_specialists_that_differ_only_in_weights(
    cognate_run: tuple,
) -> None:
    _, report, out = cognate_run
    result = checkpoint.expand([out.path])
    assert [c.name for c in result] == [
        "trunk",
        "adaptive_computation",
        "memory_integration",
        "reasoning",
    ]
    assert [c.manifest.role for c in result] == ["trunk"] + ["specialist"] * 3
    assert report.outputs[0] == str(out.path / "trunk")
    assert all(c.manifest.parents[0]["id"] == result[0].id for c in result[1:])
    loaded = [models.load(c) for c in result]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in loaded]
    assert all(shape == shapes[0] for shape in shapes)
    assert len({c.id for c in result}) == 4
    assert loaded[0].config.halting_threshold == 0.95
    for c in result:
        assert c.manifest.deployable_bytes == (c.path / "model.safetensors").stat().st_size
        assert len(c.manifest.extra["training"]["losses_nats"]) == c.metrics["steps"]


def test_the_loss_falls_from_that_of_guessing(cognate_run: tuple) -> None:
    _, _, out = cognate_run
    losses = checkpoint.open(out.path / "trunk").manifest.extra["training"]["losses_nats"]
    assert losses[0] == pytest.approx(np.log(400), rel=0.15)
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


def test_a_run_stopped_anywhere_and_run_again_ends_in_the_same_bytes(
    cognate_run: tuple, tmp_path: Path, data_config: DataConfig
) -> None:
    config = settings(tmp_path / "out", data_config)
    stops = iter([("trunk", 7), ("trunk", 21), ("memory_integration", 2), ("longer", 2)])
    expected = next(stops)

    def stop(event: Event, out: Workspace) -> None:
        if event.kind == "progress" and (event.stage, event.step) == expected:
            out.stop_signal = 15

    for following in [*stops, None]:
        with pytest.raises(Interrupted):
            go(config, [], stop)
        expected = following or ("", 0)
    report, out = go(config, [])
    for name in ("trunk", *SPECIALISTS):
        assert checkpoint.open(out.path / name).id == checkpoint.open(cognate_run[2].path / name).id
    assert report.tables == cognate_run[1].tables
    assert report.baseline == cognate_run[1].baseline


def test_the_trunk_trained_as_long_is_plain_training_on_its_own_mix_and_on_every_probe(
    cognate_run: tuple, tmp_path: Path
) -> None:
    config, report, out = cognate_run
    trunk, tokenizer = models.load(out.path / "trunk"), models.load_tokenizer(out.path / "trunk")
    steps = round(sum(round(3 * scale) for scale in (0.7, 1.2, 1.3)) / 3)
    plan = BatchPlan(
        name="cognate-longer", steps=steps, rows=4, length_tokens=256, seed=config.seed
    )
    batches = mixed_batches(plan, config.trunk.mix, config, tokenizer)
    hand = Workspace(tmp_path / "hand", phase="cognate", seed=0, config={})
    learn.train(
        trunk,
        learn.TrainRequest(
            batches=batches,
            loss_fn=loss_over(batches, config),
            stage="longer",
            steps=steps,
            optim=config.branch.optim,
            out=hand,
            events=EventLog(None, "cognate"),
            seed=config.seed,
        ),
    )
    figures = probes.measure(trunk, tokenizer, config)
    row = {name: round(value, 4) for name, value in figures.items()}
    assert report.tables["All probes"][-1] == {"model": longer.NAME, **row}
    for own in report.tables["Own probes"]:
        ours, other = own["loss_nats"], own[longer.NAME]
        assert other == row[f"{own['probe']}_loss_nats"]
        said = re.search(
            rf"{own['specialist']} ([+-][.\d]+) \[([+-][.\d]+), ([+-][.\d]+)\]", report.baseline
        )
        assert said is not None
        gain, low, high = map(float, said.groups())
        assert gain == pytest.approx(other - ours, abs=2e-3)
        assert low <= gain <= high


def test_the_control_is_one_model_on_the_union_of_the_specialists_data_for_all_their_steps(
    cognate_run: tuple, tmp_path: Path, data_config: DataConfig
) -> None:
    seen: list[str] = []

    def note(event: Event, _: Workspace) -> None:
        if event.kind == "progress" and event.step == event.total:
            seen.append(f"{event.stage} {event.total}")

    report, out = go(settings(tmp_path / "out", data_config, "union=true"), [], note)
    control = checkpoint.open(out.path / "union")
    steps = sum(round(3 * scale) for scale in (0.7, 1.2, 1.3))
    assert f"union {steps}" in seen
    assert control.manifest.role == "control"
    assert (
        control.metrics["steps"] == steps == len(control.manifest.extra["training"]["losses_nats"])
    )
    assert control.manifest.parents[0]["id"] == checkpoint.open(cognate_run[2].path / "trunk").id
    for name in ("trunk", *SPECIALISTS):  # the control changes nothing beside it
        assert checkpoint.open(out.path / name).id == checkpoint.open(cognate_run[2].path / name).id
    assert report.tables["All probes"][-1]["model"] == "union"


def test_the_gain_over_the_longer_trunk_is_paired_by_item() -> None:
    ours = {"losses": [1.0, 2.0, 3.0], "tokens": [2.0, 2.0, 2.0]}
    other = {"losses": [1.5, 2.5, 3.5], "tokens": [2.0, 2.0, 2.0]}
    assert longer.gain(ours, other, 0) == (0.25, 0.25, 0.25)
    assert longer.gain(other, ours, 0) == (-0.25, -0.25, -0.25)


def test_an_imported_model_becomes_trunk_and_three_specialisations(
    tmp_path: Path, data_config: DataConfig, tiny_checkpoint: Checkpoint
) -> None:
    config = settings(tmp_path / "out", data_config, "model=imported")
    report, out = go(config, [tiny_checkpoint])
    trunk = models.load(out.path / "trunk").state_dict()
    source = models.load(tiny_checkpoint).state_dict()
    assert all(torch.equal(value, source[name]) for name, value in trunk.items())
    for name in SPECIALISTS:
        state = models.load(out.path / name).state_dict()
        assert not torch.equal(
            state["model.layers.0.mlp.up_proj.weight"], trunk["model.layers.0.mlp.up_proj.weight"]
        )
    assert len(report.outputs) == 4
    with pytest.raises(ConfigError, match="sources="):
        go(config, [])


def test_adapters_specialise_an_imported_model_and_leave_a_plain_one(
    tmp_path: Path, data_config: DataConfig, tiny_checkpoint: Checkpoint
) -> None:
    pytest.importorskip("peft")
    config = settings(
        tmp_path / "out", data_config, "model=imported", "branch.lora_rank=4", "branch.lora_alpha=8"
    )
    _, out = go(config, [tiny_checkpoint])
    trunk = models.load(tiny_checkpoint).state_dict()
    for name in SPECIALISTS:
        state = models.load(out.path / name).state_dict()
        assert state.keys() == trunk.keys()
        change = (
            state["model.layers.0.mlp.up_proj.weight"] - trunk["model.layers.0.mlp.up_proj.weight"]
        )
        singular = torch.linalg.svdvals(change)
        assert float(singular[0]) > 1e-5
        assert float(singular[4:].max()) < 1e-3 * float(
            singular[0]
        )  # rank 4: nothing beyond the fourth direction
        assert torch.equal(state["model.norm.weight"], trunk["model.norm.weight"])


def test_adapters_of_a_cognate_are_trained_interrupted_and_merged_to_the_same_bytes(
    cognate_run: tuple, tmp_path: Path, data_config: DataConfig
) -> None:
    pytest.importorskip("peft")
    ids = []
    for place, stopped in (("one", True), ("two", False)):
        config = settings(tmp_path / place, data_config, "branch.lora_rank=2")
        if stopped:

            def stop(event: Event, out: Workspace) -> None:
                if event.kind == "progress" and (event.stage, event.step) == (
                    "memory_integration",
                    2,
                ):
                    out.stop_signal = 15

            with pytest.raises(Interrupted):
                go(config, [], stop)
        _, out = go(config, [])
        ids.append([checkpoint.open(out.path / name).id for name in ("trunk", *SPECIALISTS)])
    assert ids[0] == ids[1]
    assert ids[0][0] == checkpoint.open(cognate_run[2].path / "trunk").id
    assert ids[0][1:] != [checkpoint.open(cognate_run[2].path / name).id for name in SPECIALISTS]


def recall_settings(**changes: float) -> RecallConfig:
    values = {
        "segment_tokens": 256,
        "filler_segments": 1,
        "filler_from": 0.5,
        "context_weight": 0.3,
    }
    return RecallConfig(**{**values, **changes})


def test_facts_text_and_questions_never_share_a_segment(
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = memory.rows(20, "train", 0)
    source = RecallRows(rows, tiny_tokenizer, 256)
    text = np.full(256, 7)
    for index, row in enumerate(rows):
        ids, labels = source.window(index, [text, text])
        first, *between, last = ids.reshape(4, 256)
        assert row["facts"] in tiny_tokenizer.decode(first)
        assert all((segment == 7).all() for segment in between)
        assert row["question"] in tiny_tokenizer.decode(last)
        assert row["facts"] not in tiny_tokenizer.decode(last)
        answer = last[labels[-256:] != -100]
        assert tiny_tokenizer.decode(answer) == f"{row['answer']}<|im_end|>"
        several, _ = source.window(index, [], np.random.default_rng(0))
        assert all(
            f"of the {key}?" in tiny_tokenizer.decode(several[256:]) for key, _ in row["pairs"][:2]
        )
    with pytest.raises(DataError, match="segment_tokens"):
        RecallRows(rows, tiny_tokenizer, 8)


def test_steps_of_recall_come_in_their_share_and_the_text_comes_later(
    tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig
) -> None:
    text = data.TextSource(data_config, tiny_tokenizer, "train")
    mixture = data.Mixture(
        {"text": text}, {"text": 1.0}, rows=4, length_tokens=384, seed=0, name="t"
    )
    source = RecallRows(memory.rows(20, "train", 0), tiny_tokenizer, 256)
    plan = BatchPlan(name="t", steps=40, rows=4, length_tokens=384, seed=0)
    batches = WithRecall(mixture, 0.25, source, text, recall_settings(), plan)
    assert [step for step in range(12) if batches.recalls(step)] == [3, 7, 11]
    assert torch.equal(batches.batch(2)["input_ids"], mixture.batch(2)["input_ids"])
    shapes = [tuple(batches.batch(step)["input_ids"].shape) for step in (3, 39)]
    assert shapes == [(3, 512), (2, 768)]
    assert torch.equal(batches.batch(7)["input_ids"], batches.batch(7)["input_ids"])
    assert not torch.equal(batches.batch(7)["input_ids"], batches.batch(11)["input_ids"])


def test_the_answer_loss_sends_gradient_into_what_was_written_and_not_when_writes_are_off(
    cognate_run: tuple,
) -> None:
    _, _, out = cognate_run
    tokenizer = models.load_tokenizer(out.path / "trunk")
    source = RecallRows(memory.rows(20, "train", 0, difficulty=1), tokenizer, 256)
    windows = [source.window(i, [], np.random.default_rng(i)) for i in range(4)]
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*windows, strict=True))
    for write in (True, False):
        model = models.load(out.path / "trunk")
        assert isinstance(model, CognateForCausalLM)
        model.config.write_loss_weight = 0.0
        loss, _ = segment_loss(
            model, ids, labels, recall_settings(context_weight=0.0), source.pad, write=write
        )
        loss.backward()
        bank = model.model.memory
        for weight in (bank.write_proj.weight, bank.write_gate.weight):
            assert (weight.grad is not None and float(weight.grad.abs().sum()) > 0) == write


def test_passes_get_their_price_at_their_share_of_the_steps() -> None:
    config = compose("cognate", Config, ["out=x"])
    config.adaptive_computation.ponder_from = 0.5
    model = SimpleNamespace(config=CognateConfig())
    seen: list[tuple[float, float]] = []
    loss = priced(
        lambda model, batch, step: seen.append((model.config.ponder_cost, model.config.entropy_cost)),  # noqa: ARG005
        config.adaptive_computation, 4,
    )  # fmt: skip
    for step in (0, 1, 2, 3):
        loss(model, {}, step)
    after = (config.adaptive_computation.ponder_cost, config.adaptive_computation.entropy_cost)
    assert seen == [(0.0, 1.0), (0.0, 1.0), after, after]
    assert after[0] > 0
    with pytest.raises(ConfigError, match="ponder_from"):
        compose("cognate", Config, ["out=x", "adaptive_computation.ponder_from=1.0"])


def test_recall_becomes_ordinary_rows_for_a_model_without_written_memory(
    data_config: DataConfig, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    config = settings(Path("x"), data_config)
    plan = BatchPlan(name="t", steps=4, rows=4, length_tokens=256, seed=config.seed)
    mix = {"recall": 0.5, "text": 0.5}
    batches = mixed_batches(plan, mix, config, tiny_tokenizer, segmented=False)
    assert isinstance(batches, data.Mixture)
    shown = tiny_tokenizer.decode(batches.batch(0)["input_ids"].flatten())
    assert "The code of the" in shown
    assert "What is the code of the" in shown


def test_probes_count_a_reply_as_right_only_as_a_whole_and_leave_padding_out_of_the_passes() -> (
    None
):
    logits = torch.full((2, 5, 8), -9.0)
    for row, tokens in enumerate(([3, 4, 5, 0, 0], [3, 4, 6, 0, 0])):
        for time, token in enumerate(tokens):
            logits[row, time, token] = 9.0
    labels = torch.tensor([[-100, -100, 4, 5, -100], [-100, -100, 4, 5, -100]])
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]])
    passes = torch.tensor([[1, 2, 2, 1, 9], [1, 1, 1, 1, 9]])
    items = probes._items(SimpleNamespace(logits=logits, passes=passes), labels, real)
    assert items.right.tolist() == [1.0, 0.0]
    assert items.tokens.tolist() == [2.0, 2.0]
    assert items.passes.tolist() == [1.5, 1.0]
    assert items.answer_passes.tolist() == [2.0, 1.0]
    assert items.losses[0] == pytest.approx(2 * np.log(1 + 7 * np.exp(-18)), abs=1e-6)
    assert items.losses[1] == pytest.approx(18, abs=0.01)
