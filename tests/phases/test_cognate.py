"""The cognate phase at a tiny size: learns, branches, resumes to the same bytes, and takes an imported trunk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, DataError, Interrupted
from agent_forge.core.events import Event, EventLog
from agent_forge.data.synthetic import memory
from agent_forge.models.cognate import CognateForCausalLM
from agent_forge.phases.cognate import PHASE, Config
from agent_forge.phases.cognate.run import SPECIALISTS, run
from agent_forge.phases.cognate.segments import SegmentRows, two_segment_loss

TINY = [
    "model.vocab_size=400", "model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=2",
    "model.num_attention_heads=2", "model.halting_size=8", "model.memory_slots=16", "model.written_slots=16",
    "trunk.steps=30", "trunk.rows=4", "trunk.length_tokens=64", "trunk.optim.warmup_steps=2", "branch.steps=3",
    "branch.rows=4", "branch.length_tokens=256", "branch.optim.warmup_steps=1", "generated_rows=60",
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
    report = run(config, sources, out, EventLog(None, "cognate", listeners, interval_seconds=0))
    return report, out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data_config: DataConfig) -> tuple:
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


def test_it_writes_a_trunk_and_three_specialists_that_differ_only_in_weights(made: tuple) -> None:
    _, report, out = made
    found = checkpoint.expand([out.path])
    assert [c.name for c in found] == ["trunk", "adaptive_computation", "memory_integration", "reasoning"]
    assert [c.manifest.role for c in found] == ["trunk"] + ["specialist"] * 3
    assert report.outputs[0] == str(out.path / "trunk")
    assert all(c.manifest.parents[0]["id"] == found[0].id for c in found[1:])
    loaded = [models.load(c) for c in found]
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in loaded]
    assert all(shape == shapes[0] for shape in shapes)
    assert len({c.id for c in found}) == 4
    assert loaded[0].config.halting_threshold == 0.95
    for c in found:
        assert c.manifest.deployable_bytes == (c.path / "model.safetensors").stat().st_size
        assert len(c.manifest.extra["training"]["losses_nats"]) == c.metrics["steps"]


def test_the_loss_falls_from_that_of_guessing(made: tuple) -> None:
    _, _, out = made
    losses = checkpoint.open(out.path / "trunk").manifest.extra["training"]["losses_nats"]
    assert losses[0] == pytest.approx(np.log(400), rel=0.15)
    assert np.mean(losses[-5:]) < 0.85 * losses[0]


def test_a_run_stopped_anywhere_and_run_again_ends_in_the_same_bytes(
    made: tuple, tmp_path: Path, data_config: DataConfig
) -> None:
    config = settings(tmp_path / "out", data_config)
    stops = iter([("trunk", 7), ("trunk", 21), ("memory_integration", 2)])
    wanted = next(stops)

    def stop(event: Event, out: Workspace) -> None:
        if event.kind == "progress" and (event.stage, event.step) == wanted:
            out.stop_signal = 15

    for following in [*stops, None]:
        with pytest.raises(Interrupted):
            go(config, [], stop)
        wanted = following or ("", 0)
    _, out = go(config, [])
    for name in ("trunk", *SPECIALISTS):
        assert checkpoint.open(out.path / name).id == checkpoint.open(made[2].path / name).id


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
        assert not torch.equal(state["model.layers.0.mlp.up_proj.weight"], trunk["model.layers.0.mlp.up_proj.weight"])
    assert len(report.outputs) == 4
    with pytest.raises(ConfigError, match="sources="):
        go(config, [])


def test_facts_and_question_never_share_a_segment(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = memory.rows(20, "train", 0)
    source = SegmentRows(rows, tiny_tokenizer)
    for index, row in enumerate(rows):
        ids, labels = source.window(index, 512)
        first, second = tiny_tokenizer.decode(ids[:256]), tiny_tokenizer.decode(ids[256:])
        assert row["facts"] in first
        assert row["question"] in second
        assert row["facts"] not in second
        assert tiny_tokenizer.decode(ids[labels != -100]).startswith(row["answer"])
    with pytest.raises(DataError, match="length_tokens"):
        source.take(np.random.default_rng(0), 16)


def test_the_answer_loss_sends_gradient_into_what_was_written_and_not_when_writes_are_off(
    made: tuple,
) -> None:
    _, _, out = made
    tokenizer = models.load_tokenizer(out.path / "trunk")
    source = SegmentRows(memory.rows(20, "train", 0, difficulty=1), tokenizer)
    windows = [source.take(np.random.default_rng(i), 256) for i in range(4)]
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*windows, strict=True))
    for write in (True, False):
        model = models.load(out.path / "trunk")
        assert isinstance(model, CognateForCausalLM)
        model.config.write_loss_weight = 0.0
        loss, _ = two_segment_loss(model, ids, labels, source.pad, write=write)
        loss.backward()
        gradient = model.model.memory.write_proj.weight.grad
        assert (gradient is not None and float(gradient.abs().sum()) > 0) == write
