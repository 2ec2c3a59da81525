"""The compress phase: estimates against measured losses, budgets kept, the written file scored,
restarts exact.
"""

import copy
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import checkpoint, codecs, data, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.codecs import allocate, payload
from agent_forge.codecs.allocate import Option
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import CheckpointError, ConfigError, Interrupted, PhaseError
from agent_forge.core.events import EventLog
from agent_forge.kernels import build
from agent_forge.models import compressed
from agent_forge.models.ternary import TernarySettings, ternarise
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import (
    PHASE,
    Config,
    CurveConfig,
    blockwise,
    choose,
    curve,
    measure,
    offers,
    recover,
    sensitivity,
)
from agent_forge.phases.compress import run as run_module
from agent_forge.phases.compress.run import run

CANDIDATES = [
    {"codec": "raw"}, {"codec": "intk", "bits": 8, "step": 0.1}, {"codec": "intk", "bits": 8, "step": 0.6},
    {"codec": "ternary", "group": 32}, {"codec": "seedlm", "seeds": 64}, {"codec": "vptq"}, {"codec": "hyper"},
]  # fmt: skip


@pytest.fixture
def config(data_config: DataConfig, tmp_path: Path) -> Config:
    result = compose(
        "compress", Config, [f"out={tmp_path / 'out'}", "calibration.mix={text:0.5,tools:0.5}"]
    )
    result.data = data_config
    result.calibration.windows, result.calibration.length_tokens = 4, 48
    result.calibration.mix = {"text": 0.5, "tools": 0.5}
    result.measure.windows, result.measure.length_tokens, result.measure.unseen_items = 3, 48, 8
    result.measure.domain_items = 0
    result.codec.candidates, result.codec.min_weights = CANDIDATES, 64
    result.budget.search_steps = 4
    return result


@pytest.fixture
def phase(config: Config, tmp_path: Path) -> PhaseRun[Config]:
    """Return a run that measures a model in memory: it has no source."""
    out = Workspace(tmp_path / "w", phase="compress", seed=config.seed, config=config)
    return PhaseRun(config, [], out, EventLog(None, "compress"))


def space(config: Config, parent: Checkpoint, place: Path) -> Workspace:
    return Workspace(place, phase="compress", seed=config.seed, config=config, parents=[parent])


def forge(config: Config, parent: Checkpoint, place: Path) -> tuple[Report, Workspace]:
    out = space(config, parent, place)
    return run(PhaseRun(config, [parent], out, EventLog(None, "compress"))), out


def test_the_written_file_is_what_was_scored_and_opens_by_itself(
    config: Config,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    report, _ = forge(config, tiny_checkpoint, tmp_path / "out")
    written = checkpoint.open(report.outputs[0])
    size = (written.path / "model.safetensors").stat().st_size
    assert report.metrics["bytes"] == size == written.manifest.deployable_bytes
    assert size < 0.5 * tiny_checkpoint.manifest.deployable_bytes
    assert PHASE.promises_smaller
    windows = measure.held_out(config, tiny_tokenizer, "validation")
    before = measure.losses(models.load(tiny_checkpoint), windows)
    again = measure.quality(measure.losses(models.load(written), windows), before)
    assert again["quality"] == report.metrics["quality"]
    worst = min(("text", "tools"), key=lambda kind: float(report.metrics[f"{kind}_kept"]))
    assert f"of the parent's (perplexity on {worst}, the worst kind)" in report.summary
    assert again["quality"] >= 0.9
    stored = sum(row["bytes"] for row in report.tables["tensors"])
    assert stored <= size <= stored + 16_000
    assert {row["codec"].split("(")[0] for row in report.tables["tensors"]} <= {
        c["codec"] for c in CANDIDATES
    }
    assert len(report.tables["rate and quality (search split)"]) >= 2


def test_a_run_killed_while_coding_ends_in_the_same_checkpoint(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    whole, _ = forge(config, tiny_checkpoint, tmp_path / "a" / "out")
    out = space(config, tiny_checkpoint, tmp_path / "b" / "out")
    events = EventLog(
        None,
        "compress",
        (lambda e: setattr(out, "stop_signal", 15 if e.stage == "code" else 0),),
        0,
    )
    with pytest.raises(Interrupted):
        run(PhaseRun(config, [tiny_checkpoint], out, events))
    assert not out.path.exists()
    resumed, _ = forge(config, tiny_checkpoint, tmp_path / "b" / "out")
    assert checkpoint.open(resumed.outputs[0]).id == checkpoint.open(whole.outputs[0]).id


def test_a_byte_budget_is_kept_and_a_larger_one_is_no_worse(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config.budget.quality_floor = 0.0
    estimated = []
    for ratio in (0.16, 0.25, 0.4):
        config.budget.bytes_ratio = ratio
        report, _ = forge(config, tiny_checkpoint, tmp_path / f"out-{ratio}")
        (point,) = report.tables["rate and quality (search split)"]
        fp32 = report.metrics["bytes"] / report.metrics["bytes_of_fp32"]
        assert point["bytes"] < report.metrics["bytes"] <= ratio * fp32
        estimated.append(point["estimated_nats"])
    assert estimated == sorted(estimated, reverse=True)
    config.budget.bytes_ratio = 0.01
    with pytest.raises(ConfigError, match="bytes_ratio"):
        forge(config, tiny_checkpoint, tmp_path / "out-none")


def test_stacking_the_three_codecs_loses_more_than_choosing(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config.mode = "stacked"
    stacked, _ = forge(config, tiny_checkpoint, tmp_path / "stacked")
    assert stacked.metrics["bytes"] > 0
    config.mode, config.budget.quality_floor = "allocate", 0.0
    config.budget.bytes_ratio = stacked.metrics["bytes_of_fp32"]
    chosen, _ = forge(config, tiny_checkpoint, tmp_path / "chosen")
    assert chosen.metrics["bytes"] <= stacked.metrics["bytes"]
    worst = stacked.tables["rate and quality (search split)"][0]["estimated_nats"]
    assert chosen.tables["rate and quality (search split)"][0]["estimated_nats"] < worst


def test_ternary_layers_stay_ternary_to_the_bit(
    config: Config,
    tiny_llama: LlamaForCausalLM,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    ternarise(
        tiny_llama, TernarySettings(group_size=32, activation_bits=8, packing="five_trits", skip=[])
    )
    parent = checkpoint.write(
        tmp_path / "parent",
        lambda d: models.save(tiny_llama, tiny_tokenizer, d),
        phase="bitnet",
        seed=0,
        config={},
    )
    config.codec.candidates = [{"codec": "raw", "dtype": "float32"}]
    report, _ = forge(config, parent, tmp_path / "out")
    rows = {row["tensor"]: row for row in report.tables["tensors"]}
    assert rows["model.layers.0.mlp.up_proj"]["codec"] == "ternary(group=32,scales=exact)"
    assert rows["model.layers.0.mlp.up_proj"]["relative_error"] == 0
    ids = torch.arange(20)[None]
    with torch.no_grad():
        difference = models.load(report.outputs[0])(ids).logits - models.load(parent)(ids).logits
    assert difference.abs().max() <= 1e-5


def test_the_estimated_loss_matches_the_measured_one_for_small_errors(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    """On the model's own distribution the loss rises by ½ΔᵀFΔ; the factored estimate must be near
    it, and quadratic.
    """
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    windows = torch.randint(0, 200, (24, 32))
    result = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows)))
    with torch.no_grad():
        base = tiny_llama(windows).logits.log_softmax(-1)
        for name in (
            "model.layers.0.mlp.up_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.1.mlp.down_proj",
        ):
            changed = copy.deepcopy(tiny_llama)
            layer = changed.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            error = 0.02 * layer.weight.std() * torch.randn(layer.weight.shape)
            layer.weight.add_(error)
            new = changed(windows).logits.log_softmax(-1)
            rise = (
                float(functional.kl_div(new, base, log_target=True, reduction="sum"))
                / windows.numel()
            )
            estimate = result[name].distortion(error)
            assert 0.5 < estimate / rise < 2.0
            assert result[name].distortion(2 * error) == pytest.approx(4 * estimate, rel=1e-4)


def test_a_tied_matrix_counts_both_its_uses(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    windows = torch.randint(0, 200, (3, 16))
    result = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows)))
    uses = result["model.embed_tokens"].uses
    assert len(uses) == 2
    assert "lm_head" not in result
    counts = torch.bincount(windows.flatten(), minlength=tiny_llama.config.vocab_size).float()
    assert any(
        torch.allclose(use.rows * windows.numel(), sensitivity.good_turing(counts)) for use in uses
    )
    with torch.no_grad():
        p = tiny_llama(windows).logits.softmax(-1).flatten(0, 1)
    assert any(
        torch.allclose(use.rows, (p - p**2).mean(0), atol=1e-6) for use in uses
    )  # the head's rows, for which no labels are needed


def test_layers_measured_in_parts_have_the_same_figures_and_hold_less(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []

    def hold(self: sensitivity.Collector, model: LlamaForCausalLM, names: list[str]) -> None:
        # Nothing is left of the last part.
        assert all(sums.second is None for sums in self.sums.values())
        whole(self, model, names)
        held.append(sum(4 * s.second.numel() for s in self.sums.values() if s.second is not None))

    whole = sensitivity.Collector.hold
    windows = torch.randint(0, 200, (3, 16))
    once = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows)))
    monkeypatch.setattr(sensitivity.Collector, "hold", hold)
    limit, passes = 40_000, list[tuple[int, int]]()
    calibration = sensitivity.Calibration(windows, limit_bytes=limit)
    monkeypatch.setattr(
        phase.events, "progress", lambda _, done, total: passes.append((done, total))
    )
    parts = dict(sensitivity.measure(phase, tiny_llama, calibration))
    assert len(held) > 2
    total = 3 * len(held)  # every window once per part
    assert passes == [(done, total) for done in range(1, total + 1)]
    assert max(held) <= limit < sum(held)
    assert parts.keys() == once.keys()
    for name, expected in once.items():
        for key, tensor in expected.tensors().items():
            assert torch.equal(parts[name].tensors()[key], tensor)


def test_unseen_tokens_together_get_what_was_seen_once() -> None:
    counts = torch.tensor([5.0, 1.0, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0])
    smoothed = sensitivity.good_turing(counts)
    assert torch.allclose(smoothed, torch.tensor([4.0, 0.8, 0.8, 2.4, 0.5, 0.5, 0.5, 0.5]))
    assert torch.equal(sensitivity.good_turing(counts[:4]), counts[:4])


def test_a_share_of_the_rows_weight_is_spread_by_zipfs_law_and_the_sum_stays() -> None:
    rows = torch.zeros(1000)
    rows[3], rows[900] = 6.0, 2.0
    assert torch.equal(sensitivity.with_other_text(rows, 0.0), rows)
    spread = sensitivity.with_other_text(rows, 0.25)
    assert float(spread.sum()) == pytest.approx(8.0, rel=1e-5)
    prior = 1 / (np.arange(1000) + 256)
    assert spread[:3].numpy() == pytest.approx(2.0 * (prior / prior.sum())[:3], rel=1e-5)
    assert float(spread[900]) == pytest.approx(
        0.75 * 2.0 + 2.0 * prior[900] / prior.sum(), rel=1e-5
    )
    assert float(spread.min()) == pytest.approx(2.0 * prior[-1] / prior.sum(), rel=1e-5)


def test_the_floor_is_under_the_rows_of_embedding_and_head_and_of_nothing_else(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    windows = torch.randint(0, 50, (3, 16))
    plain, floored = (
        dict(
            sensitivity.measure(
                phase, tiny_llama, sensitivity.Calibration(windows, other_share=share)
            )
        )
        for share in (0.0, 0.3)
    )
    assert len(plain["model.embed_tokens"].uses) == 2
    for name, sensitivities in plain.items():
        for before, after in zip(sensitivities.uses, floored[name].uses, strict=True):
            expected = before.rows
            if name == "model.embed_tokens":
                expected = sensitivity.with_other_text(before.rows, 0.3)
            assert torch.equal(after.columns, before.columns)
            assert torch.allclose(after.rows, expected, rtol=1e-5)


def test_curvature_is_the_use_itself_when_there_is_one_and_floors_silent_rows() -> None:
    use = sensitivity.Use(torch.tensor([2.0, 4.0, 0.0]), torch.eye(2) * 3)
    result = sensitivity.Sensitivity([use]).curvature()
    assert result is not None
    rows, columns = result
    assert torch.allclose(columns, torch.eye(2) * 6)  # E[g²] of the mean row is in it
    assert float(rows.mean()) == pytest.approx(1.0)
    assert rows[1] / rows[0] == pytest.approx(2.0)
    assert rows[2] / rows.mean() == pytest.approx(sensitivity.ROW_FLOOR, rel=0.05)
    assert sensitivity.Sensitivity().curvature() is None


def test_curvature_without_structure_has_the_means_of_its_rows_and_columns() -> None:
    """Rows are relative to their mean, columns carry the size: the product has both sums."""
    fisher = torch.tensor(
        [[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]]
    )  # Its rank is one, so nothing is lost.
    result = sensitivity.Sensitivity([], fisher).curvature()
    assert result is not None
    rows, columns = result
    assert rows.tolist() == pytest.approx([0.5, 1.5])
    torch.testing.assert_close(columns, torch.diag(torch.tensor([2.0, 4.0, 6.0])))
    torch.testing.assert_close(rows[:, None] * columns.diagonal(), fisher)
    error = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    distortion = sensitivity.Sensitivity([], fisher).distortion(error)
    assert distortion == pytest.approx(0.5 * (1 + 3 + 6 * 4))


def test_calibration_leaves_the_model_as_it_was(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    before = {name: p.requires_grad for name, p in tiny_llama.named_parameters()}
    windows = torch.randint(0, 200, (2, 16))
    read = sensitivity.remembered(phase, tiny_llama, sensitivity.Calibration(windows))
    assert {name: p.requires_grad for name, p in tiny_llama.named_parameters()} == before
    assert all(p.grad is None for p in tiny_llama.parameters())
    again = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows)))
    error = torch.randn_like(tiny_llama.model.layers[0].mlp.up_proj.weight)
    name = "model.layers.0.mlp.up_proj"
    assert read(name).distortion(error) == pytest.approx(again[name].distortion(error), rel=1e-6)


def test_a_models_water_filled_loss_is_near_what_its_setting_asks_for(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config.codec.candidates = [{"codec": "waterfill", "loss": 0.002}]
    config.budget.quality_floor, config.budget.bytes_ratio = 0.0, 1.0
    report, _ = forge(config, tiny_checkpoint, tmp_path / "out")
    (point,) = report.tables["rate and quality (search split)"]
    assert 0.5 * 0.002 < point["estimated_nats"] < 1.5 * 0.002


def test_recovery_finds_scales_back_that_were_put_wrong(
    config: Config, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    torch.manual_seed(0)
    wrong = {}
    for name, weight in compressed.coded_tensors(tiny_llama).items():
        gains = 1 + 0.3 * torch.randn(len(weight), 1)
        wrong[name] = codecs.encode("waterfill", weight * gains, {"step": 0.05})

    class Windows:
        def batch(self, step: int) -> dict[str, Tensor]:
            return {
                "input_ids": torch.randint(
                    0, 200, (8, 24), generator=torch.Generator().manual_seed(step)
                )
            }

    settings = config.recover
    settings.steps, settings.optim.lr, settings.optim.warmup_steps = 40, 0.03, 1
    out = Workspace(tmp_path / "w", phase="compress", seed=0, config={})
    log = EventLog(None, "compress")
    before = {name: p.clone() for name, p in tiny_llama.named_parameters()}
    dense, better = recover.recovered(
        PhaseRun(config, [], out, log),
        tiny_llama,
        wrong,
        Windows().batch(0)["input_ids"],
        Windows(),
    )
    assert all(torch.equal(p, before[name]) for name, p in tiny_llama.named_parameters())
    ids = Windows().batch(1000)["input_ids"]

    @torch.no_grad()
    def divergence(base: LlamaForCausalLM, payloads: dict[str, payload.Payload]) -> float:
        child = compressed.compress(copy.deepcopy(base), payloads)
        expected, coded = (m(ids).logits.log_softmax(-1) for m in (tiny_llama, child))
        return float(functional.kl_div(coded, expected, log_target=True, reduction="sum"))

    assert divergence(dense, better) < 0.3 * divergence(tiny_llama, wrong)  # type: ignore[arg-type]
    for name, old in wrong.items():
        assert torch.equal(codecs.unpack(better[name])["q"], codecs.unpack(old)["q"])


def coarse_codes(model: LlamaForCausalLM) -> dict[str, payload.Payload]:
    return {
        name: codecs.encode("intk", weight, {"bits": 2, "group": 16})
        for name, weight in compressed.coded_tensors(model).items()
    }


def grown(model: LlamaForCausalLM) -> LlamaForCausalLM:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return model


def test_aligned_blocks_are_nearer_to_the_parents_on_other_windows(
    config: Config, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    parent = grown(tiny_llama)
    picked = coarse_codes(parent)
    windows = torch.randint(0, 200, (40, 24), generator=torch.Generator().manual_seed(3))
    config.recover.block_steps, config.recover.block_lr = 60, 0.02

    def student() -> PreTrainedModel:
        copied = compressed.compress(recover.light_copy(parent, picked), picked)
        recover.trainable(copied, picked)
        return copied.eval()

    plain, better = student(), student()
    out = Workspace(tmp_path / "w", phase="compress", seed=0, config={})
    log = EventLog(None, "compress")
    phase = PhaseRun(config, [], out, log)
    errors = blockwise.align(phase, parent, better, windows[:32])
    assert list(errors) == ["model.layers.0", "model.layers.1"] == blockwise.coded_blocks(better)
    assert all(after < 0.9 * before for before, after in errors.values())
    with torch.no_grad():
        expected, first, last = (
            m.model(windows[32:]).last_hidden_state for m in (parent, plain, better)
        )
    assert float((last - expected).square().sum()) < float((first - expected).square().sum())
    # A killed run reads the finished blocks back: the same values, without a step.
    again = student()
    config.recover.block_steps = 0
    assert blockwise.align(phase, parent, again, windows[:32]) == errors
    for (name, a), b in zip(again.named_parameters(), better.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_block_that_training_would_worsen_keeps_its_values(
    config: Config, tiny_llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    picked = coarse_codes(tiny_llama)
    student = compressed.compress(recover.light_copy(tiny_llama, picked), picked)
    recover.trainable(student, picked)
    before = [p.clone() for p in student.parameters()]
    config.recover.block_steps, config.recover.block_lr = 3, 1e4
    out = Workspace(tmp_path / "w", phase="compress", seed=0, config={})
    windows = torch.randint(0, 200, (2, 12))
    phase = PhaseRun(config, [], out, EventLog(None, "compress"))
    errors = blockwise.align(phase, tiny_llama, student, windows)
    assert all(after == first for first, after in errors.values())
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), before, strict=True))


def test_a_light_copy_shares_what_is_coded_and_copies_the_rest(
    tiny_llama: LlamaForCausalLM,
) -> None:
    copied = recover.light_copy(tiny_llama, compressed.coded_tensors(tiny_llama))
    assert copied.model.embed_tokens.weight is tiny_llama.model.embed_tokens.weight
    assert (
        copied.model.layers[0].mlp.up_proj.weight is tiny_llama.model.layers[0].mlp.up_proj.weight
    )
    assert copied.model.norm.weight is not tiny_llama.model.norm.weight
    compressed.compress(copied, coarse_codes(tiny_llama))
    assert isinstance(tiny_llama.model.layers[0].mlp.up_proj, nn.Linear)
    assert not compressed.coded_modules(tiny_llama)


def test_token_counts_of_more_text_weigh_the_embeddings_rows(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    windows = torch.randint(0, 50, (3, 16))
    counts = torch.bincount(
        torch.randint(0, 200, (5000,), generator=torch.Generator().manual_seed(2))
    ).float()
    result = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows, counts)))
    rows = result["model.embed_tokens"].uses[0].rows
    expected = nn.functional.pad(counts, (0, len(rows) - len(counts)))
    assert torch.allclose(rows, sensitivity.good_turing(expected) / 5000, rtol=1e-4)
    assert float(rows.sum()) == pytest.approx(1.0, rel=1e-4)


def test_recovery_lowers_the_divergence_and_the_recovered_file_is_the_one_scored(
    config: Config,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    config.codec.candidates = [{"codec": "waterfill", "step": 3.0}]
    config.budget.quality_floor, config.budget.bytes_ratio = 0.0, 0.5
    plain, _ = forge(config, tiny_checkpoint, tmp_path / "plain")
    config.recover.steps, config.recover.rows, config.recover.length_tokens = 30, 4, 48
    config.recover.optim.lr, config.recover.block_steps = 1e-2, 4
    better, _ = forge(config, tiny_checkpoint, tmp_path / "better")
    windows = measure.held_out(config, tiny_tokenizer, "validation")
    divergence = []
    parent = models.load(tiny_checkpoint)
    for report in (plain, better):
        child, total = models.load(report.outputs[0]), 0.0
        with torch.no_grad():
            for ids, _ in windows.values():
                expected, coded = (m(ids).logits.log_softmax(-1) for m in (parent, child))
                total += float(functional.kl_div(coded, expected, log_target=True, reduction="sum"))
        divergence.append(total)
    assert divergence[1] < divergence[0]
    before = measure.losses(parent, windows)
    again = measure.quality(measure.losses(models.load(better.outputs[0]), windows), before)
    assert again["quality"] == better.metrics["quality"]
    assert (
        better.metrics["bytes"] <= 0.5 * better.metrics["bytes"] / better.metrics["bytes_of_fp32"]
    )


def test_seeds_and_hyper_keep_their_limits(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Entropy-coded bfloat16 takes 36% of fp32 here, so a budget of 32% needs seeds: 30% of the
    weights do, 20% do not.
    """
    config.codec.candidates = [
        {"codec": "raw"},
        {"codec": "seedlm", "seeds": 64},
        {"codec": "hyper", "bits": 8},
    ]
    config.budget.quality_floor, config.budget.bytes_ratio = 0.0, 0.32

    def codecs_used(hyper_ratio: float, seed_ratio: float) -> tuple[set[str], float]:
        config.hyper_ratio, config.seed_ratio = hyper_ratio, seed_ratio
        report, _ = forge(config, tiny_checkpoint, tmp_path / f"out-{hyper_ratio}-{seed_ratio}")
        used = {row["codec"].split("(")[0] for row in report.tables["tensors"]}
        return used, report.metrics["seed_share"]

    used, share = codecs_used(0.0, 0.3)
    assert used == {"raw", "seedlm"}
    assert 0.2 < share <= 0.3
    with pytest.raises(ConfigError, match="smallest choice of the candidates"):
        codecs_used(0.0, 0.2)
    used, share = codecs_used(1.0, 0.0)
    assert "hyper" in used
    assert share == 0


def test_the_floor_search_takes_the_smallest_choice_that_keeps_it(config: Config) -> None:
    tensors = [[Option(f"{i}", 100 - 10 * i, float(i)) for i in range(9)]]
    choices = choose.hull(tensors, 10**9)
    assert [c[0] for c in choices] in ([*range(9)], [0, 8])
    config.budget.quality_floor, config.budget.search_steps = 0.9, 8
    all_choices = [[i] for i in range(9)]
    quality = [1.0, 0.99, 0.97, 0.95, 0.92, 0.9, 0.7, 0.5, 0.2]  # the floor itself is kept
    chosen, points = choose.smallest_above_floor(
        all_choices,
        tensors,
        lambda c: {"quality": quality[c[0]]},
        config,
        EventLog(None, "compress"),
    )
    assert chosen == [5]
    assert len(points) <= 4
    chosen, _ = choose.smallest_above_floor(
        all_choices, tensors, lambda _: {"quality": 0.95}, config, EventLog(None, "compress")
    )
    assert chosen == [8]  # all keep the floor
    warned: list[str] = []
    events = EventLog(
        None, "compress", (lambda e: warned.append(e.message) if e.kind == "warning" else None,)
    )
    chosen, _ = choose.smallest_above_floor(
        all_choices, tensors, lambda _: {"quality": 0.5}, config, events
    )
    assert chosen == [0]
    assert "keeps quality 0.9" in warned[0]


def test_quality_is_the_worst_kinds_perplexity_ratio() -> None:
    parent = {
        "text": torch.tensor([[1.0, 3.0, 0], [2.0, 4.0, 1]]),
        "tools": torch.tensor([[0.5, 1.0, 0]]),
    }
    child = {
        "text": torch.tensor([[1.1, 3.0, 0], [2.1, 9.0, 1]]),
        "tools": torch.tensor([[0.7, 1.0, 0]]),
    }
    figures = measure.quality(child, parent)
    assert figures["text_kept"] == pytest.approx(math.exp(-0.1), abs=1e-4)
    assert figures["quality"] == pytest.approx(math.exp(-0.2), abs=1e-4)
    assert (figures["text_top1_kept"], figures["tools_top1_kept"]) == (0.5, 1.0)


def test_a_kind_without_a_scored_token_is_refused_before_anything_is_coded(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools rows of which no window holds a token of the answer."""
    source = data.source

    class Silent:
        def take(
            self,
            generator: np.random.Generator,  # noqa: ARG002
            length: int,
        ) -> tuple[np.ndarray, np.ndarray]:
            return np.full(length, 3), np.full(length, data.sources.IGNORE)

    monkeypatch.setattr(
        data, "source", lambda kind, *a, **k: Silent() if kind == "tools" else source(kind, *a, **k)
    )
    with pytest.raises(
        ConfigError,
        match=r"no token of 'tools' is scored in 3 windows .* raise measure.length_tokens",
    ):
        forge(config, tiny_checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_window_whose_second_token_alone_counts_has_a_scored_token(
    config: Config, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first token of a window is never scored: nothing before it predicts it."""

    class OneLabel:
        def __init__(self, place: int) -> None:
            self.place = place

        def take(
            self,
            generator: np.random.Generator,  # noqa: ARG002
            length: int,
        ) -> tuple[np.ndarray, np.ndarray]:
            labels = np.full(length, data.sources.IGNORE)
            labels[self.place] = 3
            return np.full(length, 3), labels

    for place in (1, 0):
        sources = {"tools": OneLabel(place)}
        monkeypatch.setattr(measure.texts, "sources", lambda *_, s=sources: s)
        if place:
            assert set(measure.held_out(config, tiny_tokenizer, "search")) == {"tools"}
        else:
            with pytest.raises(ConfigError, match="no token of 'tools' is scored"):
                measure.held_out(config, tiny_tokenizer, "search")


def test_quality_never_depends_on_the_order_of_kinds_and_a_broken_child_keeps_nothing() -> None:
    fine = {kind: torch.tensor([[1.0, 5, 0], [2.0, 6, 1]]) for kind in ("a", "b", "c")}
    for broken in fine:
        for worst in (float("nan"), float("inf")):
            child = {**fine, broken: torch.tensor([[worst, 5, 0], [2.0, 6, 1]])}
            figures = [
                measure.quality(dict(sorted(child.items(), reverse=r)), fine) for r in (False, True)
            ]
            assert figures[0] == figures[1]
            assert (
                figures[0]["quality"],
                figures[0]["quality_low"],
                figures[0]["quality_high"],
            ) == (0.0, 0.0, 0.0)
            assert figures[0][f"{broken}_kept"] == 0.0
    for useless in (torch.zeros(0, 3), torch.tensor([[float("nan"), 5, 0]])):
        with pytest.raises(PhaseError, match="loss on 'b' is not a finite number"):
            measure.quality(fine, {**fine, "b": useless})


def test_the_interval_of_quality_is_the_interval_of_the_mean_over_windows() -> None:
    """Tokens of a window hang together: with as many tokens per window, the spread of the windows'
    means decides.
    """
    rises = torch.tensor([[0.1, 0.3], [0.0, 0.2], [0.4, 0.6]])
    window = torch.arange(3.0).repeat_interleave(2)
    parent = {"text": torch.stack([torch.ones(6), torch.zeros(6), window], 1)}
    child = {"text": torch.stack([1 + rises.flatten(), torch.zeros(6), window], 1)}
    figures = measure.quality(child, parent)
    means = rises.mean(1)
    half = 1.96 * float(means.std()) / math.sqrt(3)
    assert figures["quality"] == pytest.approx(math.exp(-float(means.mean())), abs=1e-4)
    assert figures["quality_low"] == pytest.approx(math.exp(-float(means.mean()) - half), abs=1e-4)
    assert figures["quality_high"] == pytest.approx(math.exp(-float(means.mean()) + half), abs=1e-4)


def test_the_report_counts_weights_by_codec_and_sizes_in_shares_and_bits() -> None:
    rows = [
        {"shape": shape, "codec": codec}
        for shape, codec in (("4x5", "seedlm(block=8)"), ("2x10", "seedlm"), ("10x6", "raw"))
    ]
    weight = run_module.Weight(file_bytes=100, fp32_bytes=400, memory_bytes=150)
    parent = SimpleNamespace(manifest=SimpleNamespace(deployable_bytes=200))
    calibration = SimpleNamespace(texts="", mix={"text": 0.5, "tools": 0.5, "memory": 0.0})
    phase = SimpleNamespace(
        sources=[parent], config=SimpleNamespace(mode="allocated", calibration=calibration)
    )
    figures = {
        "quality": 0.9, "text_kept": 0.95, "tools_kept": 0.9, "memory_kept": 0.1,
        "unseen_python_kept": {"value": 0.8},
    }  # fmt: skip
    report = run_module._report(phase, weight, rows, figures)
    assert report.tables["weights by codec"] == [
        {"codec": "raw", "weights": 60, "share": 0.6},
        {"codec": "seedlm", "weights": 40, "share": 0.4},
    ]
    expected = {
        "bytes": 100, "bytes_of_fp32": 0.25, "bytes_of_parent": 0.5, "bits_per_weight": 8.0,
        "memory_bytes": 150, "seed_share": 0.4,
    }  # fmt: skip
    assert {key: report.metrics[key] for key in expected} == expected
    assert report.summary.startswith(
        "100 bytes: 25.0% of fp32, 50% of the parent's 200 bytes; quality 0.900 of the parent's "
        "(perplexity on tools, the worst kind); bits per byte kept on text that was not in the "
        "calibration: python 0.800"
    )
    phase.config.mode = "stacked"
    assert run_module._report(phase, weight, rows, figures).summary.startswith("stacked for")


def test_windows_of_one_token_count_in_the_interval_and_empty_ones_do_not() -> None:
    rises, windows = torch.tensor([0.2, 0.4, 0.9, -0.1, 0.3, 0.1]).double(), [0, 0, 2, 5, 5, 5]
    mean = float(rises.mean())
    sums, counts = {0: 0.6, 2: 0.9, 5: 0.3}, {0: 2, 2: 1, 5: 3}
    variance = sum((sums[w] - mean * counts[w]) ** 2 for w in sums) * 3 / 2
    half = measure._half_interval(rises, torch.tensor(windows))
    assert half == pytest.approx(1.96 * math.sqrt(variance) / 6)
    two = measure._half_interval(rises[:3], torch.tensor([4, 4, 1]))
    assert two == pytest.approx(1.96 * math.sqrt(2 * 2 * (0.6 - 2 * 0.5) ** 2) / 3)
    assert measure._half_interval(rises, torch.zeros(6, dtype=torch.int64)) == math.inf


def test_wrong_settings_and_parents_are_refused_before_any_work(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="needs a parent"):
        run(
            PhaseRun(
                config,
                [],
                space(config, tiny_checkpoint, tmp_path / "x"),
                EventLog(None, "compress"),
            )
        )
    config.codec.candidates = [{"codec": "intk", "bits": 4, "groups": 32}]
    with pytest.raises(ConfigError, match="no setting 'groups'; did you mean 'group'"):
        forge(config, tiny_checkpoint, tmp_path / "x")
    config.codec.candidates, config.codec.min_weights = CANDIDATES, 10**9
    with pytest.raises(PhaseError, match="nothing to compress"):
        forge(config, tiny_checkpoint, tmp_path / "x")
    config.codec.min_weights = 64
    config.codec.candidates, config.mode = [{"codec": "raw"}], "stacked"
    with pytest.raises(ConfigError, match="stacked needs a seedlm entry"):
        forge(config, tiny_checkpoint, tmp_path / "x")
    config.mode = "allocate"
    report, _ = forge(config, tiny_checkpoint, tmp_path / "once")
    with pytest.raises(CheckpointError, match="compressed already"):
        forge(config, checkpoint.open(report.outputs[0]), tmp_path / "twice")


def test_settings_contradict_each_other_with_a_remedy() -> None:
    for overrides, message in (
        (["budget.bytes_ratio=0.5"], "exactly one of budget"),
        (["mode=stack"], "mode must be one of allocate, stacked"),
        (["seed_ratio=2.0"], "seed_ratio must be in"),
        (["curve.bytes_ratios=[0.1,1.5]"], "curve.bytes_ratios must be in"),
        (["curve.bytes_ratios=[]", "curve.enabled=true"], "--curve needs at least one size"),
        (["curve.speed_tokens=0"], "curve.speed_tokens must be at least 1 and at most"),
        (["mode=stacked", "curve.enabled=true"], "--curve needs mode=allocate"),
        (["recover.block_windows=0"], "recover.block_windows must be at least 1"),
        (["recover.block_lr=0.0"], r"recover\.block_lr must be in \(0, 10\], got 0\.0"),
    ):
        with pytest.raises(ConfigError, match=message):
            compose("compress", Config, ["out=x", *overrides])


def test_the_work_of_the_phase_counts_each_measured_allocation_and_recovery() -> None:
    """A pass without a gradient is a third of a trained token; recovery also runs the parent; five
    of the default's six kinds of data have a share.
    """
    overrides = [
        "out=x", "calibration.windows=8", "calibration.length_tokens=64",
        "measure.windows=6", "measure.length_tokens=32", "budget.search_steps=5", "recover.block_steps=7",
        "recover.steps=9", "recover.rows=3", "recover.length_tokens=16", "curve.bytes_ratios=[0.1,0.2]",
        "calibration.mix.code=0",
    ]  # fmt: skip
    measured, recovery = 6 * 32 * 5 / 3, 9 * 3 * 16 * 4 / 3 + 7 * 64
    for curve_too, files in (("false", 0), ("true", 2)):
        config = compose("compress", Config, [*overrides, f"curve.enabled={curve_too}"])
        assert config.work_tokens() == pytest.approx(8 * 64 + (5 + 2 + files) * measured + recovery)
    # A size gives one allocation, and so does coding by three codecs in turn: nothing is searched.
    for one in (["budget.quality_floor=0", "budget.bytes_ratio=0.1"], ["mode=stacked"]):
        sized = compose("compress", Config, [*overrides, *one])
        assert sized.work_tokens() == pytest.approx(8 * 64 + 2 * measured + recovery)


def test_the_header_of_a_file_is_never_larger_than_is_reckoned_and_not_by_much(
    tmp_path: Path,
) -> None:
    """Many axes of length 1 need the most text for the fewest values."""
    for shapes in ([(1,) * 40], [(64, 32)] * 9, [(3,)] * 30):
        model = nn.Module()
        for number, shape in enumerate(shapes):
            model.register_parameter(
                f"layer{number}", nn.Parameter(torch.full(shape, float(number)))
            )
        save_file(dict(model.state_dict()), tmp_path / "file")
        size = sum(p.numel() for p in model.parameters()) * 4
        header = (tmp_path / "file").stat().st_size - size
        assert header <= run_module.header_bytes(model, size) <= header + 45 * len(shapes)


def test_the_header_of_a_large_file_has_room_for_its_places() -> None:
    """Each tensor's entry names two places, which have as many digits as the file has bytes."""
    model, size = nn.Module(), 4 * 10**12
    for number in range(30):
        model.register_parameter(f"layer{number}", nn.Parameter(torch.zeros(1)))
    entries = {
        f"{name}.payload": {"dtype": "BF16", "shape": [1], "data_offsets": [size, size]}
        for name in model.state_dict()
    }
    written = 8 + len(json.dumps(entries, separators=(",", ":")))
    assert written <= run_module.header_bytes(model, size) <= written + 45 * 30


def test_room_for_scales_that_will_be_trained_is_reckoned_at_half_a_byte_a_row(
    config: Config, tiny_llama: LlamaForCausalLM
) -> None:
    coded = {name: [SimpleNamespace(shape=(rows, 8))] for name, rows in (("a", 6), ("b", 14))}
    model = choose.CodedModel(tiny_llama, coded, 10_000)
    plain = run_module._fixed_bytes(config, model)
    assert plain == 10_000 - 4 * 20 * 8 + run_module.header_bytes(tiny_llama, 10_000)
    config.recover.steps = 1
    assert run_module._fixed_bytes(config, model) == plain + 10


@pytest.mark.parametrize("bias", [True, False])
def test_a_gain_multiplies_a_layers_rows_and_not_its_bias(bias: bool) -> None:
    layer = nn.Linear(3, 2, bias=bias)
    gain = torch.tensor([2.0, 0.5])
    module = object.__new__(compressed.CompressedLinear)
    nn.Module.__init__(module)
    module.bias = layer.bias
    holder = SimpleNamespace(get_parameter=lambda _: gain)
    x = torch.randn(4, 3)
    result = recover._times_gain(module, holder)(module, (x,), layer(x))
    assert torch.allclose(
        result, functional.linear(x, layer.weight * gain[:, None], layer.bias), atol=1e-6
    )


def test_the_hull_has_the_choice_between_two_slopes_that_are_nearly_equal() -> None:
    tensors = [[Option("a", 10, 2.05), Option("b", 20, 1.0), Option("c", 30, 0.0)]]
    assert choose.hull(tensors, 10**9) == [[2], [1], [0]]  # slopes of .105 and .1


def test_second_moments_of_a_linear_layer_are_means_over_the_tokens_that_passed(
    tiny_llama: LlamaForCausalLM, phase: PhaseRun[Config]
) -> None:
    down, seen = tiny_llama.model.layers[0].mlp.down_proj, []
    windows = torch.randint(0, 200, (5, 12), generator=torch.Generator().manual_seed(0))
    with down.register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[0].detach().flatten(0, -2))
    ):
        tiny_llama(windows)
    x = torch.cat(seen)
    result = dict(sensitivity.measure(phase, tiny_llama, sensitivity.Calibration(windows)))
    (use,) = result["model.layers.0.mlp.down_proj"].uses
    assert torch.allclose(use.columns, x.T @ x / 60, rtol=1e-4, atol=1e-7)


def test_every_shipped_candidate_list_names_real_settings() -> None:
    for group in ("nano", "light"):
        config = compose("compress", Config, ["out=x", f"codec={group}"])
        offers.check(config)
        assert len(config.codec.candidates) >= 4


def test_price_zero_takes_the_least_distortion_and_the_hull_ends_at_the_fewest_bytes() -> None:
    tensors = [[Option("a", 10, 1.0), Option("b", 20, 0.5), Option("c", 40, 0.1)] for _ in range(3)]
    choices = choose.hull(tensors, 10**9)
    assert choices[0] == [2, 2, 2]
    assert choices[-1] == [0, 0, 0]
    sizes = [allocate.total_bytes(tensors, c) for c in choices]
    assert sizes == sorted(sizes, reverse=True)


def test_the_curve_falls_with_the_bytes_and_each_point_keeps_its_ratio(
    config: Config, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config.codec.candidates = [{"codec": "waterfill", "loss": x} for x in (5e-6, 5e-5, 5e-4)]
    config.budget.quality_floor, config.budget.bytes_ratio = 0.0, 0.5
    config.curve = CurveConfig(enabled=True, bytes_ratios=[0.13, 0.19, 0.001], speed_tokens=4)
    report, _ = forge(config, tiny_checkpoint, tmp_path / "out")
    high, low = report.tables[curve.TITLE]
    assert low["bytes"] < high["bytes"]
    assert low["of_fp32"] <= 0.13
    assert high["of_fp32"] <= 0.19
    assert low["estimated_nats"] > high["estimated_nats"]
    assert all(row["low"] <= row["quality"] <= row["high"] for row in (low, high))
    assert {low["engine"], high["engine"]} == {"packed" if build.library() is not None else "torch"}
    assert report.plots[curve.TITLE] == [
        (low["bytes"], low["quality"]),
        (high["bytes"], high["quality"]),
    ]
    assert checkpoint.open(report.outputs[0]).manifest.extra["curve"] == [high, low]
    assert min(low["tokens_per_second"], high["tokens_per_second"]) > 0


def test_ties_and_names_of_tensors_are_those_of_the_model(tiny_llama: LlamaForCausalLM) -> None:
    tensors = compressed.coded_tensors(tiny_llama)
    assert compressed.tied_modules(tiny_llama) == {"lm_head": "model.embed_tokens"}
    assert sum(t.numel() for t in tensors.values()) == sum(
        p.numel() for p in tiny_llama.parameters() if p.ndim == 2
    )


@pytest.mark.parametrize(("loops", "once"), [(None, True), (1, True), (2, False)])
def test_a_block_is_read_once_unless_the_model_goes_through_it_again(
    tiny_llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, loops: int | None, once: bool
) -> None:
    answers: list[bool] = []

    def recorded(*_: object, once: bool, **__: object) -> tuple[list[object], list[Tensor]]:
        answers.append(once)
        return [], []

    monkeypatch.setattr(blockwise, "recorded_calls", recorded)
    if loops is not None:
        monkeypatch.setattr(tiny_llama.config, "max_loops", loops, raising=False)
    blockwise._pass(tiny_llama, "model.layers.0", torch.arange(4))
    assert answers == [once]


def test_a_budget_that_only_what_is_not_coded_would_fill_is_refused_with_its_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run_module, "_fixed_bytes", lambda *_: 50)
    config = SimpleNamespace(
        mode="allocate", seed_ratio=0.0, budget=SimpleNamespace(bytes_ratio=0.5)
    )
    phase: Any = SimpleNamespace(config=config, out=None)
    coded: Any = SimpleNamespace(
        options=[[Option("raw", 1, 0.0)]], weights=9, fp32_bytes=100
    )  # half of 100 bytes, and 50 are taken
    with pytest.raises(ConfigError, match=r"bytes_ratio=0.5 is below the 50 bytes"):
        run_module._choose(phase, coded, None)  # type: ignore[arg-type]


def test_a_row_of_the_report_has_the_bits_per_weight_of_the_bytes_that_were_picked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """6 bytes for 4 x 3 weights are 4 bits each, whatever the offer's estimate was."""
    offer = SimpleNamespace(
        label="int4", shape=(4, 3), size_bytes=99, relative_error=0.25, distortion=0.5
    )
    coded: Any = SimpleNamespace(offers={"w": [None, offer]}, model="the model")
    recover_nothing = SimpleNamespace(steps=0, block_steps=0)
    phase: Any = SimpleNamespace(config=SimpleNamespace(recover=recover_nothing))
    picked = {"w": SimpleNamespace(data=b"123456")}
    monkeypatch.setattr(run_module.choose, "picked", lambda *_: picked)
    monkeypatch.setattr(run_module.recover, "light_copy", lambda model, _: model)
    monkeypatch.setattr(run_module.compressed, "compress", lambda model, _: model)
    built, (row,) = run_module._built(phase, coded, [1], torch.zeros(0))
    assert built == "the model"  # type: ignore[comparison-overlap]
    assert (row["bytes"], row["bits"], row["shape"], row["codec"]) == (6, 4.0, "4x3", "int4")
    assert (row["relative_error"], row["estimated_nats"]) == (0.25, 0.5)


def test_a_gradient_of_the_embedding_counts_its_tokens_and_their_second_moment() -> None:
    sums = sensitivity._Sums(torch.zeros(5), second=torch.zeros(5, 5))
    gradient = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    sensitivity._note_gradient(sums, gradient, True, 2.0)
    sensitivity._note_gradient(sums, gradient, True, 1)
    flat = gradient.flatten(0, 1)
    assert sums.uses == 2 * 6
    torch.testing.assert_close(sums.second, 5 * flat.T @ flat)
