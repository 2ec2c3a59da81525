"""The bitnet phase: compensation against algebra, losses against closed forms, and whole runs on a
tiny model.
"""

import copy
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from agent_forge import checkpoint, models
from agent_forge.anatomy import chunks
from agent_forge.anatomy.head import plain_head
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.codecs.ternary import on_grid
from agent_forge.config import DataConfig, Report
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, Interrupted, PhaseError
from agent_forge.core.events import Event, EventLog
from agent_forge.data import TextSource
from agent_forge.learn import distill_loss
from agent_forge.models.ternary import (
    ROW,
    TernarySettings,
    latents_for,
    multiply_out,
    ternarise,
    ternary_codes,
    ternary_layers,
    ternary_weight,
)
from agent_forge.phases import PhaseRun
from agent_forge.phases.bitnet import (
    Config,
    DistillConfig,
    distill,
    head_loss,
    measure,
    own_text,
)
from agent_forge.phases.bitnet.compensate import (
    CalibrationRun,
    Rounding,
    _fit_scales,
    best_scale,
    compensate,
    compensate_in_waves,
    input_hessians,
    output_error,
)
from agent_forge.phases.bitnet.distill import Distillation, blend_at, hidden_loss, relation_loss
from agent_forge.phases.bitnet.follow import blocks_in_line, compensated
from agent_forge.phases.bitnet.run import run
from agent_forge.phases.bitnet.sub_norm import mean_sizes, set_gains

SETTINGS = TernarySettings(group_size=16, activation_bits=8, packing="five_trits", skip=[])


def correlated_inputs(count: int, width: int, seed: int) -> torch.Tensor:
    """Return (count, width) rows of one fixed covariance with a falling spectrum; the seed draws
    the rows alone.
    """
    basis = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(7)))[
        0
    ]
    spectrum = torch.arange(1, width + 1, dtype=torch.float32) ** -0.7
    return (
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
        * spectrum
        @ basis.T
    )


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


def tied(latents: torch.Tensor, scales: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return latents with the same codes and mean size as these latents and scales."""
    codes, own = ternary_codes(latents, group_size, scales)
    return latents_for(codes, own, group_size, near=latents)


@pytest.mark.parametrize(
    ("rows", "columns", "group_size"), [(24, 48, 16), (24, 40, 16), (8, 16, 64)]
)
def test_compensated_codes_err_less_on_fresh_inputs_than_rounding(
    rows: int, columns: int, group_size: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))
    hessian = hessian_of(correlated_inputs(400, columns, seed=0))
    latents = tied(*compensate(weight, hessian, group_size, Rounding(0.01)), group_size)
    fresh = hessian_of(correlated_inputs(400, columns, seed=1))
    rounded = output_error(weight, weight, fresh, group_size)
    assert output_error(weight, latents, fresh, group_size) < 0.6 * rounded


def test_output_error_is_the_relative_squared_error_of_the_outputs() -> None:
    weight, x = torch.randn(5, 12), torch.randn(30, 12)
    outputs, changed = x @ weight.T, x @ ternary_weight(weight, 4).T
    expected = ((changed - outputs).square().sum() / outputs.square().sum()).item()
    assert output_error(weight, weight, hessian_of(x), 4) == pytest.approx(expected, rel=1e-4)


def test_uncorrelated_inputs_leave_codes_of_the_best_scale_with_least_squares_scales() -> None:
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    latents, scales = compensate(weight, torch.eye(20), 8, Rounding(0.01))
    codes = ternary_codes(latents, 8, scales)[0]
    # Without correlation the best scale of a group is the mean magnitude of what is kept.
    for group, scale in zip(range(3), scales.float().T, strict=True):
        columns = slice(8 * group, 8 * group + 8)
        block = weight[:, columns]
        chosen = best_scale(block, torch.ones(block.shape[1]))
        assert torch.equal(
            codes[:, columns], (block.sign() * (block.abs() > chosen[:, None] / 2)).to(torch.int8)
        )
        nonzero = codes[:, columns] != 0
        expected = (block.abs() * nonzero).sum(1) / nonzero.sum(1)
        assert torch.allclose(scale, expected, rtol=2**-8)


def test_a_scale_of_its_own_for_each_weight_loses_nothing() -> None:
    """Each column then begins a group, as the columns before have left it: without an error."""
    weight = torch.randn(3, 300, generator=torch.Generator().manual_seed(1))
    hessian = hessian_of(correlated_inputs(600, 300, seed=0))
    latents, scales = compensate(weight, hessian, 1, Rounding(0.01))
    codes, scales = ternary_codes(latents, 1, scales)
    torch.testing.assert_close(multiply_out(codes, scales, 1), weight, rtol=2**-8, atol=2e-3)


def test_best_scale_of_normal_weights_is_about_one_and_a_half_times_their_mean_size() -> None:
    weight = torch.randn(50, 4096, generator=torch.Generator().manual_seed(0))
    ratio = best_scale(weight, torch.ones(4096)) / weight.abs().mean(1)
    # Lloyd-Max for a normal density at -s, 0, s with borders s / 2: s = 1.224 sigma, mean|W| = .798
    # sigma.
    assert float(ratio.mean()) == pytest.approx(1.224 / 0.798, abs=0.1)
    # A column that costs nothing decides nothing.
    cost = torch.tensor([1.0, 1.0, 0.0])
    assert float(best_scale(torch.tensor([[1.0, 1.0, 40.0]]), cost)) == pytest.approx(
        14.0
    )  # all zero at 14 or above


def test_best_scale_of_heavy_tails_is_about_twice_their_mean_size() -> None:
    """Beyond the border s / 2 a Laplace density has the mean s / 2 + 1, which is s at 2."""
    uniform = torch.rand(50, 4096, generator=torch.Generator().manual_seed(0)) - 0.5
    weight = -uniform.sign() * (1 - 2 * uniform.abs()).log()
    ratio = best_scale(weight, torch.ones(4096)) / weight.abs().mean(1)
    assert float(ratio.mean()) == pytest.approx(2.0, abs=0.12)


def test_scales_are_the_least_squares_ones_for_the_codes() -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    hessian = hessian_of(correlated_inputs(300, 32, seed=0))
    latents, scales = compensate(weight, hessian, 8, Rounding(1e-4))
    codes = ternary_codes(latents, 8, scales)[0]

    def error(own: torch.Tensor) -> torch.Tensor:
        change = multiply_out(codes, own, 8) - weight
        return ((change @ hessian) * change).sum(1)

    for group in range(4):
        for factor in (0.95, 1.05):
            other = scales.float().clone()
            other[:, group] *= factor
            assert bool((error(other) > error(scales)).all())


def test_pull_moves_the_goal_to_the_weight_that_gives_the_wanted_outputs() -> None:
    """Student inputs are a matrix times the parent's: the weight for the wanted outputs is
    known.
    """
    generator = torch.Generator().manual_seed(2)
    weight, x = torch.randn(12, 16, generator=generator), correlated_inputs(600, 16, seed=3)
    distorted = x @ (torch.eye(16) + 0.3 * torch.randn(16, 16, generator=generator) / 4)
    target = x @ weight.T
    pull = (target - distorted @ weight.T).T @ distorted / len(x)
    result = [
        ternary_weight(
            tied(*compensate(weight, hessian_of(distorted), 8, Rounding(1e-4), pull=own), 8), 8
        )
        for own in (None, pull)
    ]
    without, aimed = ((distorted @ w.T - target).square().mean().item() for w in result)
    assert aimed < 0.8 * without
    exact = torch.linalg.lstsq(distorted, target).solution.T
    same = compensate(exact, hessian_of(distorted), 8, Rounding(1e-6))[0]
    assert torch.allclose(
        compensate(weight, hessian_of(distorted), 8, Rounding(1e-6), pull=pull)[0], same, atol=1e-2
    )


@pytest.mark.parametrize("group_size", [8, 12, 0, -1])
def test_sweeps_lower_the_error_and_raise_that_of_no_row(group_size: int) -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(4))
    hessian = hessian_of(correlated_inputs(400, 40, seed=0))
    hessian.diagonal().add_(0.01 * hessian.diagonal().log().mean().exp())

    def errors(sweeps: int) -> torch.Tensor:
        latents, scales = compensate(weight, hessian, group_size, Rounding(1e-9, sweeps))
        change = multiply_out(*ternary_codes(latents, group_size, scales), group_size) - weight
        return ((change @ hessian) * change).sum(1)

    result = torch.stack([errors(sweeps) for sweeps in (0, 1, 2, 8)])
    rising = result.diff(dim=0) if group_size != -1 else result.sum(1).diff()
    assert float(rising.max()) <= 1e-5 * float(result.max())
    assert float(result[-1].mean()) < 0.95 * float(result[0].mean())


def test_after_enough_sweeps_no_other_code_is_better_than_the_one_chosen() -> None:
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(5))
    hessian = hessian_of(correlated_inputs(200, 12, seed=0))
    latents, scales = compensate(weight, hessian, 6, Rounding(1e-9, 60))
    codes = ternary_codes(latents, 6, scales)[0]

    def error(own: torch.Tensor) -> torch.Tensor:
        change = multiply_out(own, scales, 6) - weight
        return ((change @ hessian) * change).sum(1)

    best = error(codes)
    for column in range(12):
        for value in (-1, 0, 1):
            other = codes.clone()
            other[:, column] = value
            assert bool((error(other) >= best * (1 - 1e-4)).all())


def test_inputs_that_are_always_zero_do_not_break_compensation() -> None:
    x = correlated_inputs(100, 16, seed=0)
    x[:, [2, 9]] = 0.0
    latents, scales = compensate(torch.randn(4, 16), hessian_of(x), 8, Rounding(0.01, 2))
    assert bool(latents.isfinite().all())
    assert bool(scales.isfinite().all())


def test_hessians_are_those_of_the_rounded_inputs_of_every_call(tiny_llama: Any) -> None:
    ternarise(
        tiny_llama, TernarySettings(group_size=16, activation_bits=0, packing="two_bit", skip=[])
    )
    layer = ternary_layers(tiny_llama)["model.layers.0.self_attn.q_proj"]
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    windows = [torch.arange(12).view(2, 6), torch.arange(20, 32).view(2, 6)]
    with torch.no_grad():
        result = input_hessians(tiny_llama, {"q": layer}, windows)["q"]
    handle.remove()
    x = torch.cat([part.reshape(-1, 32) for part in seen])
    assert len(x) == 24
    assert torch.allclose(result, hessian_of(x), atol=1e-5)


def calibration() -> list[torch.Tensor]:
    return [
        torch.randint(0, 100, (8, 24), generator=torch.Generator().manual_seed(i)) for i in range(4)
    ]


@pytest.mark.parametrize(("waves", "batches"), [(1, 1), (3, None), (100, None)])
def test_waves_leave_the_layers_ternary_with_scales_of_their_own(
    tiny_llama: Any, waves: int, batches: int | None
) -> None:
    ternarise(tiny_llama, SETTINGS)
    calls: list[tuple[int, int]] = []
    result = compensate_in_waves(
        tiny_llama,
        CalibrationRun(windows=calibration()[:batches], progress=lambda *done: calls.append(done)),
        waves,
        Rounding(0.01),
    )
    layers = ternary_layers(tiny_llama)
    assert set(result) == set(layers)
    assert calls == [(i + 1, len(layers)) for i in range(len(layers))]
    assert all(layer.blend == 1.0 and layer.weight_scale is not None for layer in layers.values())


def test_blocks_in_line_are_the_decoder_layers_with_what_shares_an_input_together(
    tiny_llama: Any,
) -> None:
    ternarise(tiny_llama, SETTINGS)
    blocks = blocks_in_line(tiny_llama, calibration()[0])
    assert [block.name for block in blocks] == ["model.layers.0", "model.layers.1"]
    ends = [[name.rpartition(".")[2] for name in group] for group in blocks[1].groups]
    assert ends == [
        ["q_proj", "k_proj", "v_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]


def test_a_block_that_runs_twice_stands_in_no_line(tiny_llama: Any) -> None:
    ternarise(tiny_llama, SETTINGS)
    tiny_llama.model.layers[1] = tiny_llama.model.layers[0]
    assert blocks_in_line(tiny_llama, calibration()[0]) == []


@pytest.mark.parametrize(
    "settings",
    [SETTINGS, TernarySettings(**{**asdict(SETTINGS), "group_size": -1, "embedding_bits": 8})],
)
def test_aiming_at_the_parents_stream_errs_less_on_fresh_text_than_waves(
    llama_config: LlamaConfig, settings: TernarySettings
) -> None:
    torch.manual_seed(0)
    shape = copy.deepcopy(llama_config)
    shape.initializer_range, shape.num_hidden_layers = 0.1, 3
    parent = LlamaForCausalLM(shape).eval()
    fresh = torch.randint(0, 100, (8, 24), generator=torch.Generator().manual_seed(99))
    errors = []
    with torch.no_grad():
        target = parent(fresh, output_hidden_states=True).hidden_states[-1]
        for aimed in (True, False):
            model = copy.deepcopy(parent)
            ternarise(model, settings)
            if aimed:
                result = compensated(
                    parent, model, CalibrationRun(windows=calibration()), 4, Rounding(0.1)
                )
                assert set(result) == {
                    f"{n}.{k}" for n in ternary_layers(model) for k in ("weight", "weight_scale")
                }
                assert all(
                    torch.equal(value, model.get_parameter(name)) for name, value in result.items()
                )
            else:
                compensate_in_waves(model, CalibrationRun(windows=calibration()), 4, Rounding(0.1))
            stream = model(fresh, output_hidden_states=True).hidden_states[-1]
            errors.append(float((stream - target).square().sum() / target.square().sum()))
    assert errors[0] < 0.85 * errors[1]


def test_lambda_rises_to_one_over_its_share_and_stays() -> None:
    values = [blend_at(step, 100, 0.4) for step in range(100)]
    assert 0 < values[0] < 0.03
    assert values == sorted(values)
    assert values[39] < 1.0
    assert set(values[40:]) == {1.0}
    assert {blend_at(step, 100, 0.0) for step in range(100)} == {1.0}


def ternarised(model: Any) -> Any:
    ternarise(model, SETTINGS)
    return model


def distillation(parent: nn.Module, **changes: float) -> Distillation:
    weights = {
        "kl_weight": 1.0, "ce_weight": 0.0, "relation_weight": 1.0, "relation_heads": 2, "hidden_weight": 0.0,
        "temperature": 2.0,
    }  # fmt: skip
    return Distillation(
        parent, DistillConfig(**{**weights, **changes}), pad=0, steps=10, blend_share=0.0
    )  # type: ignore[arg-type]


def make_batch(seed: int = 0) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 100, (3, 16), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids.clone()}


def test_teacher_that_is_the_student_gives_no_loss_and_no_gradient(tiny_llama: Any) -> None:
    ternarise(tiny_llama, SETTINGS)
    teacher = copy.deepcopy(tiny_llama).requires_grad_(False)
    loss, parts = distillation(teacher)(tiny_llama, make_batch(), 0)
    loss.backward()
    assert abs(float(parts["kl"])) < 1e-6
    assert abs(float(parts["relation"])) < 1e-6
    largest = max(p.grad.abs().max().item() for p in tiny_llama.parameters() if p.grad is not None)
    assert largest < 1e-6


def test_loss_is_the_weighted_sum_of_its_parts_by_hand(tiny_llama: Any) -> None:
    parent = copy.deepcopy(tiny_llama).requires_grad_(False)
    ternarise(tiny_llama, SETTINGS)
    batch = make_batch()
    batch["input_ids"][0, 10:] = 0
    batch["labels"][0, 5:] = -100
    loss, parts = distillation(parent, kl_weight=0.7, ce_weight=0.4, relation_weight=0.0)(
        tiny_llama, batch, 0
    )
    with torch.no_grad():
        student, teacher = tiny_llama(batch["input_ids"]).logits, parent(batch["input_ids"]).logits
    p, q = (torch.softmax(logits.double() / 2.0, -1) for logits in (teacher, student))
    present = batch["input_ids"] != 0
    kl = 4.0 * (p * (p.log() - q.log())).sum(-1)[present].mean()
    labelled = batch["labels"][:, 1:] != -100
    ce = (
        -torch.log_softmax(student.double(), -1)[:, :-1][labelled]
        .gather(1, batch["labels"][:, 1:][labelled][:, None])
        .mean()
    )
    assert float(parts["kl"]) == pytest.approx(kl.item(), abs=1e-5)
    assert float(parts["ce"]) == pytest.approx(ce.item(), abs=1e-5)
    assert loss.item() == pytest.approx(0.7 * kl.item() + 0.4 * ce.item(), abs=1e-5)


class NotPlain(LlamaForCausalLM):
    """A model whose logits nothing is known of, so that they are made whole."""


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("bits", [0, 8])
def test_losses_with_the_heads_inside_have_the_values_and_gradients_of_whole_logits(
    llama_config: LlamaConfig, temperature: float, bits: int
) -> None:
    shape = copy.deepcopy(llama_config)
    shape.initializer_range = 0.3
    parent = LlamaForCausalLM(shape).eval().requires_grad_(False)
    students = [LlamaForCausalLM(shape), NotPlain(shape)]
    students[1].load_state_dict(students[0].state_dict())
    batch = make_batch()
    batch["input_ids"][0, 10:] = 0
    batch["labels"][0, 5:] = -100
    result = []
    for student in students:
        ternarise(student, TernarySettings(**{**asdict(SETTINGS), "embedding_bits": bits}))
        assert (plain_head(student, rounded=True) is not None) == (
            type(student) is LlamaForCausalLM
        )
        loss_of = distillation(
            parent,
            kl_weight=0.7,
            ce_weight=0.4,
            relation_weight=0,
            hidden_weight=0.3,
            temperature=temperature,
        )
        loss, parts = loss_of(student, batch, 0)
        (3.0 * loss).backward()  # a gradient that comes from outside is carried on
        result.append(
            (loss.detach(), parts, {name: p.grad for name, p in student.named_parameters()})
        )
    (one, parts, gradients), (other, others, whole) = result
    assert float(one) == pytest.approx(float(other), rel=1e-5)
    assert {key: float(value) for key, value in parts.items()} == pytest.approx(
        {key: float(value) for key, value in others.items()}, rel=1e-5
    )
    for name, gradient in gradients.items():
        assert gradient is not None
        assert torch.allclose(gradient, whole[name], atol=1e-5), name


def test_losses_with_the_heads_inside_do_not_depend_on_the_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, taught = (torch.randn(11, 6, generator=generator) for _ in range(2))
    head, taught_head = (torch.randn(20, 6, generator=generator) for _ in range(2))
    targets = torch.tensor([1, -100, 3, 4, 5, -100, 7, 8, 9, 10, 11])
    result = []
    for entries in (1 << 20, 20, 60):
        monkeypatch.setattr(chunks, "CPU_ENTRIES", entries)
        inputs = [hidden.clone().requires_grad_(), head.clone().requires_grad_()]
        weights = head_loss.LossWeights(kl=0.5, ce=0.25, temperature=1.5)
        total, kl, ce = head_loss.head_loss(
            inputs[0], inputs[1], taught, taught_head, targets, weights
        )
        (3 * total).backward()
        result.append((total.detach(), kl, ce, inputs[0].grad, inputs[1].grad))
    for other in result[1:]:
        for a, b in zip(result[0], other, strict=True):
            assert a is not None
            assert torch.allclose(a, b, atol=1e-5)


def test_hidden_loss_is_the_relative_squared_error_of_each_token_after_each_layer() -> None:
    parent = [
        torch.full((1, 2, 3), 9.0),
        torch.tensor([[[3.0, 0, 4], [1, 1, 1]]]),
        torch.ones(1, 2, 3),
    ]
    student = [torch.zeros(1, 2, 3), torch.tensor([[[3.0, 0, 9], [5, 5, 5]]]), torch.ones(1, 2, 3)]
    present = torch.tensor([[True, False]])
    # The embedding's output is left out; the second token is absent: (25 / 25 + 0) / 2.
    assert hidden_loss(parent, student, present).item() == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="hidden_weight"):
        hidden_loss(parent, student[:2], present)
    with pytest.raises(ConfigError, match="hidden_weight"):
        hidden_loss(None, student, present)


def test_frozen_embeddings_stay_the_parents(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    report, _, _ = run_phase(
        config_for(tiny_checkpoint.path, tmp_path / "out", data_config, "train.embeddings=false")
    )
    parent, child = (models.load(path) for path in (tiny_checkpoint.path, report.outputs[0]))
    assert torch.equal(parent.get_input_embeddings().weight, child.get_input_embeddings().weight)
    assert not torch.equal(parent.model.norm.weight, child.model.norm.weight)


def test_own_text_is_what_the_parent_would_say(tiny_llama: Any) -> None:
    parent = tiny_llama.eval()
    first = own_text.first_tokens(parent.config.vocab_size, 12, range(50), seed=3)
    windows = own_text.sample(parent, [[token] for token in first], 10, temperature=0.0, seed=3)
    assert windows.shape == (12, 10)
    assert int(windows[:, 0].min()) >= 50
    assert len(set(windows[:, 0].tolist())) > 3
    with torch.no_grad():
        likeliest = parent(windows).logits.argmax(-1)
    assert torch.equal(likeliest[:, :-1], windows[:, 1:])
    assert windows[:, 0].tolist() == first
    assert first == own_text.first_tokens(parent.config.vocab_size, 12, range(50), seed=3)


def test_phase_runs_without_any_data_on_what_the_parent_writes(
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_data(kind: str, *_: Any) -> None:
        raise AssertionError(f"the data-free mode read {kind}")

    monkeypatch.setattr("agent_forge.phases.bitnet.run.data.source", no_data)
    overrides = ("train.mix.text=0", "train.mix.own=1", "own.windows=16")
    report, _, _ = run_phase(
        config_for(tiny_checkpoint.path, tmp_path / "out", data_config, *overrides)
    )
    assert (
        0 < report.metrics["codes_changed_in_training"] < 0.5
    )  # a few steps move few codes over a border


@pytest.mark.parametrize(("group_size", "bits"), [(0, 8), (-1, 4), (0, 2)])
def test_phase_counts_coarser_scales_and_rounded_embeddings_in_its_size(
    group_size: int,
    bits: int,
    trained: tuple[Report, Workspace, list[Event]],
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
) -> None:
    overrides = (f"linear.group_size={group_size}", f"linear.embedding_bits={bits}")
    report, out, _ = run_phase(
        config_for(tiny_checkpoint.path, tmp_path / "out", data_config, *overrides)
    )
    child = checkpoint.open(report.outputs[0])
    assert child.manifest.deployable_bytes == report.metrics["packed_file_bytes"]
    saved = trained[0].metrics["packed_file_bytes"] - report.metrics["packed_file_bytes"]
    table = models.load(tiny_checkpoint).get_input_embeddings().weight
    assert saved > table.numel() * (4 - bits / 8) - 2 * len(table)
    assert (
        measure.packed_file_bytes(models.load(child), out.state / "again.safetensors")
        == child.manifest.deployable_bytes
    )


@pytest.mark.parametrize(
    "coarse",
    [
        ("linear.embedding_bits=4", "train.scale_lr=0.1", "train.blend_share=1"),
        ("linear.embedding_bits=2", "train.steps=0"),
    ],
)
def test_phase_writes_what_it_trained_with_coarse_embeddings_also_when_stopped_on_the_way(
    coarse: tuple[str, ...], tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    config = config_for(tiny_checkpoint.path, tmp_path / "out", data_config, *coarse)
    report, out, _ = run_phase(config)
    child = checkpoint.open(report.outputs[0])
    assert child.manifest.deployable_bytes == report.metrics["packed_file_bytes"]
    model = models.load(child)
    again = measure.packed_file_bytes(model, out.state / "again.safetensors")
    assert again == child.manifest.deployable_bytes
    tokenizer = models.load_tokenizer(child)
    context = measure.EvalContext(data=data_config, seed=0, tokenizer=tokenizer)
    last = [key for key in report.metrics if key.startswith("bits_per_byte_")][-1]
    scores = measure.text_scores(model, tokenizer, 8, context)
    assert scores.mean == pytest.approx(report.metrics[last]["value"], rel=1e-6)
    stopped = config_for(tiny_checkpoint.path, tmp_path / "stopped", data_config, *coarse)
    with pytest.raises(Interrupted):
        run_phase(stopped, stop_after="compensate" if "train.steps=0" in coarse else "distil")
    assert checkpoint.open(run_phase(stopped)[0].outputs[0]).id == child.id


def test_sub_norm_begins_with_the_mean_size_of_the_inputs_so_that_a_typical_token_passes(
    tiny_llama: Any,
) -> None:
    dense = copy.deepcopy(tiny_llama)
    ternarise(tiny_llama, TernarySettings(**{**asdict(SETTINGS), "sub_norm": ["down_proj"]}))
    windows = [torch.randint(1, 100, (4, 24), generator=torch.Generator().manual_seed(0))]
    seen: list[torch.Tensor] = []
    dense.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0])
    )
    with torch.no_grad():
        dense(windows[0])
    sizes = mean_sizes(tiny_llama, windows)
    expected = seen[0].square().mean(-1).sqrt().mean()
    assert float(sizes["model.layers.1.mlp.down_proj"]) == pytest.approx(float(expected), rel=1e-5)
    assert set(sizes) == {name for name in ternary_layers(tiny_llama) if name.endswith("down_proj")}
    set_gains(tiny_llama, sizes)
    gains = tiny_llama.model.layers[1].mlp.down_proj.norm_weight
    assert torch.allclose(gains, expected.expand_as(gains))


def test_phase_trains_a_model_with_sub_norm(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    overrides = ("linear.sub_norm=[o_proj,down_proj]",)
    report, out, _ = run_phase(
        config_for(tiny_checkpoint.path, tmp_path / "out", data_config, *overrides)
    )
    child = models.load(report.outputs[0])
    gains = [
        layer.norm_weight
        for layer in ternary_layers(child).values()
        if layer.norm_weight is not None
    ]
    assert len(gains) == 4
    assert all(
        float(gain.detach().std()) > 0 for gain in gains
    )  # they began equal and have trained
    size = measure.packed_file_bytes(child, out.state / "again.safetensors")
    assert checkpoint.open(report.outputs[0]).manifest.deployable_bytes == size


@pytest.mark.parametrize("group_size", [0, -1])
def test_compensation_with_coarser_scales_errs_less_on_fresh_inputs_than_rounding(
    group_size: int,
) -> None:
    weight = torch.randn(24, 48, generator=torch.Generator().manual_seed(3))
    result = compensate(
        weight, hessian_of(correlated_inputs(400, 48, seed=0)), group_size, Rounding(0.01)
    )
    latents = tied(*result, group_size)
    fresh = hessian_of(correlated_inputs(400, 48, seed=1))
    assert output_error(weight, latents, fresh, group_size) < 0.75 * output_error(
        weight, weight, fresh, group_size
    )


def test_relations_need_an_attention_with_the_three_projections(tiny_llama: Any) -> None:
    other = GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    )
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has q_proj, k_proj, v_proj"):
        distillation(other.requires_grad_(False))(ternarised(tiny_llama), make_batch(), 0)


def test_relations_of_the_last_attention_are_compared_by_their_softmax(tiny_llama: Any) -> None:
    """By brute force: softmax over keys of A Aᵀ / √width, the KL averaged over projections, heads
    and tokens.
    """
    generator = torch.Generator().manual_seed(0)
    both = [
        {
            kind: torch.randn(2, 5, 12, generator=generator)
            for kind in ("q_proj", "k_proj", "v_proj")
        }
        for _ in range(2)
    ]
    total = []
    for kind, b, head in itertools.product(both[0], range(2), range(3)):
        part = slice(4 * head, 4 * head + 4)
        p, q = (torch.softmax(of[kind][b, :, part] @ of[kind][b, :, part].T / 2, 1) for of in both)
        total.append((p * (p / q).log()).sum(1).mean())
    assert float(relation_loss(*both, heads=3)) == pytest.approx(
        float(torch.stack(total).mean()), rel=1e-5
    )
    with distill.projections(tiny_llama, True) as seen:
        output = tiny_llama(torch.arange(7)[None], output_hidden_states=True)
    last = tiny_llama.model.layers[-1]
    expected = last.self_attn.q_proj(last.input_layernorm(output.hidden_states[-2]))
    assert torch.allclose(seen["q_proj"], expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("ce", [0.0, 0.5])
def test_the_chunk_for_a_compiler_is_the_one_that_works_in_place(
    temperature: float, ce: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = (torch.randn(6, 20, generator=generator) for _ in range(2))
    targets = torch.tensor([1, -100, 3, 4, -100, 6])
    shares = head_loss._shares(targets, torch.tensor([True, True, False, True, True, True]))
    weights = head_loss.LossWeights(kl=0.7, ce=ce, temperature=temperature)
    expected = head_loss._chunk(logits.clone(), target.clone(), targets, shares, weights)
    result = head_loss._written_for_a_compiler(logits, target, targets, shares, weights)
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_work_of_the_phase_is_counted_in_the_students_tokens(tmp_path: Path) -> None:
    """A teacher's pass costs a third of a trained token, and so do calibration and the parent's own
    text.
    """
    overrides = [
        f"out={tmp_path}", "train.steps=10", "train.rows=2", "train.length_tokens=30", "init.rows=6", "own.windows=9",
        "train.mix={text:1,own:0}",
    ]  # fmt: skip
    steps, calibration, own = 10 * 2 * 30 * 4 / 3, 6 * 30 / 3, 9 * 30 / 3
    for more, work in (
        (["init.method=absmean"], steps),
        (["init.method=gptq"], steps + calibration),
        (["init.method=absmean", "train.mix={text:1,own:0.5}"], steps + own),
    ):
        assert compose("bitnet", Config, [*overrides, *more]).work_tokens() == pytest.approx(work)


def test_the_tokens_of_a_step_count_the_teachers_pass_as_a_third(tmp_path: Path) -> None:
    overrides = [f"out={tmp_path}", "train.rows=2", "train.length_tokens=30"]
    assert compose("bitnet", Config, overrides).step_tokens() == pytest.approx(2 * 30 * (1 + 1 / 3))


def test_relations_of_two_tokens_by_hand_and_their_gradient_in_each_projection() -> None:
    """A parent of (1, 0) relates its first token as softmax(1, 0), and its second evenly."""
    parent = {kind: torch.tensor([[[1.0], [0.0]]]) for kind in distill.PROJECTIONS}
    silent = {kind: torch.zeros(1, 2, 1) for kind in distill.PROJECTIONS}
    p = math.e / (1 + math.e)
    one_token = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert relation_loss(parent, silent, heads=1).item() == pytest.approx(one_token / 2, rel=1e-5)
    # A student of (a, b) relates its tokens as softmax(aa, ab) and softmax(ab, bb). At a = 1/2 and
    # b = 0 the slopes of (aa, ab) are (1, 0) in a and (0, 1/2) in b, and the second row is even.
    student = {
        kind: torch.tensor([[[0.5], [0.0]]], requires_grad=True) for kind in distill.PROJECTIONS
    }
    relation_loss(parent, student, heads=1).backward()
    q = math.exp(0.25) / (1 + math.exp(0.25))
    share = 1 / 6  # The loss is a mean over three projections and two tokens.
    for kind in distill.PROJECTIONS:
        slopes = student[kind].grad.flatten().tolist()
        assert slopes == pytest.approx([(q - p) * share, (p - q) / 2 * share], rel=1e-4)


def test_relations_do_not_change_when_a_head_is_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    one = {
        kind: torch.randn(2, 5, 8, generator=generator) for kind in ("q_proj", "k_proj", "v_proj")
    }
    turn = torch.block_diag(
        *[torch.linalg.qr(torch.randn(4, 4, generator=generator))[0] for _ in range(2)]
    )
    rotated = {kind: value @ turn for kind, value in one.items()}
    assert relation_loss(one, rotated, heads=2).item() == pytest.approx(0.0, abs=1e-6)
    scaled = {kind: 2 * value for kind, value in one.items()}
    assert relation_loss(one, scaled, heads=2).item() > 0.01
    with pytest.raises(ConfigError, match="does not divide"):
        relation_loss(one, rotated, heads=3)


def test_code_figures_match_a_hand_count(tiny_llama: Any) -> None:
    ternarise(tiny_llama, SETTINGS)
    layers = ternary_layers(tiny_llama)
    with torch.no_grad():
        for layer in layers.values():
            # In each group of 16: 8 zeros, 4 of +1, 4 of -1.
            pattern = torch.tensor([0.0] * 8 + [1.0] * 4 + [-1.0] * 4)
            layer.weight.copy_(pattern.repeat(layer.in_features // 16).expand_as(layer.weight))
    figures = measure.code_figures(tiny_llama)
    assert figures["zeros"] == 0.5
    assert figures["entropy_bits"] == pytest.approx(1.5)
    assert figures["ternary_weights"] == sum(layer.weight.numel() for layer in layers.values())
    assert 1.6 + 1.0 <= figures["stored_bits"] < 1.6 + 1.0 + 0.1  # one 16-bit scale a group of 16


def config_for(source: Path, out: Path, data: DataConfig, *overrides: str) -> Config:
    config = compose(
        "bitnet", Config,
        [
            f"sources=[{source}]", f"out={out}", f"data.text=[{data.text[0]}]", f"data.cache={data.cache}",
            "data.max_text_bytes=0", "linear.group_size=16", "init.rows=8", "train.steps=8",
            *(f"train.mix.{kind}=0" for kind in ("reasoning", "memory", "tools")), "train.rows=4",
            "train.length_tokens=48", "train.optim.warmup_steps=2", "measure_items=8", "unseen_items=4", "domain_items=0",
            "runtime.device=cpu", *overrides,
        ],
    )  # fmt: skip
    config.runtime.save_every_seconds = 0.0
    return config


def run_phase(config: Config, stop_after: str = "") -> tuple[Report, Workspace, list[Event]]:
    """Run the phase; a stop signal arrives with the first progress event of the stage
    `stop_after`.
    """
    sources = checkpoint.expand(config.sources)
    out = Workspace(
        config.out, phase="bitnet", seed=config.seed, config=asdict(config), parents=sources
    )
    out.save_every_seconds = 0.0
    seen: list[Event] = []

    def listen(event: Event) -> None:
        seen.append(event)
        if stop_after and event.stage == stop_after:
            out.stop_signal = 15

    return (
        run(
            PhaseRun(config, sources, out, EventLog(None, "bitnet", (listen,), interval_seconds=0))
        ),
        out,
        seen,
    )


@pytest.fixture(scope="module")
def trained(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Report, Workspace, list[Event]]:
    """Return one whole run of the phase."""
    out = tmp_path_factory.mktemp("bitnet") / "out"
    return run_phase(config_for(tiny_checkpoint.path, out, data_config))


def test_phase_writes_a_ternary_checkpoint_whose_size_is_that_of_the_packed_file(
    trained: tuple[Report, Workspace, list[Event]], tiny_checkpoint: Checkpoint
) -> None:
    report, out, _ = trained
    child = checkpoint.open(report.outputs[0])
    model = models.load(child)
    assert len(ternary_layers(model)) == 14
    assert child.manifest.deployable_bytes == measure.packed_file_bytes(
        model, out.state / "again.safetensors"
    )
    assert child.manifest.deployable_bytes < models.deployable_bytes(models.load(tiny_checkpoint))
    assert child.manifest.parents[0]["id"] == tiny_checkpoint.id
    assert checkpoint.open(tiny_checkpoint.path).id == tiny_checkpoint.id
    codes = torch.cat(
        [layer.ternary_parts()[0].flatten() for layer in ternary_layers(model).values()]
    )
    share = (codes == 0).double().mean().item()
    assert report.metrics["zeros"] == pytest.approx(share)
    assert 0 < report.metrics["entropy_bits"] <= math.log2(3)


def test_phase_reports_each_stage_with_its_interval(
    trained: tuple[Report, Workspace, list[Event]],
) -> None:
    report, _, _ = trained
    table = report.tables["Bits per byte"]
    assert [row["model"] for row in table] == ["parent", "rounded", "compensated", "trained"]
    assert all(row["n"] == 8 and row["low"] <= row["bits_per_byte"] <= row["high"] for row in table)
    assert (
        0 < report.metrics["codes_changed_in_training"] < 0.5
    )  # a few steps move few codes over a border
    json.dumps(report.metrics)
    before, rounded, trained_last = (
        report.metrics[f"bits_per_byte_{name}"]["value"]
        for name in ("parent", "rounded", "trained")
    )
    # What is kept is what the last stage keeps: fewer bits are better.
    assert report.metrics["kept"]["value"] == pytest.approx(before / trained_last)
    assert trained_last != pytest.approx(rounded, rel=1e-4)
    assert f"{before:.3f} -> {trained_last:.3f}" in report.summary


def test_scores_in_the_report_are_those_of_the_written_checkpoint(
    trained: tuple[Report, Workspace, list[Event]], data_config: DataConfig
) -> None:
    report, _, _ = trained
    tokenizer = models.load_tokenizer(report.outputs[0])
    context = measure.EvalContext(data=data_config, seed=0, tokenizer=tokenizer)
    again = measure.text_scores(models.load(report.outputs[0]), tokenizer, 8, context)
    assert again.mean == pytest.approx(report.metrics["bits_per_byte_trained"]["value"], rel=1e-6)


@pytest.mark.parametrize("stage", ["compensate", "distil"])
def test_stopped_run_ends_in_the_same_bytes_as_an_uninterrupted_one(
    stage: str,
    trained: tuple[Report, Workspace, list[Event]],
    tiny_checkpoint: Checkpoint,
    data_config: DataConfig,
    tmp_path: Path,
) -> None:
    config = config_for(tiny_checkpoint.path, tmp_path / "out", data_config)
    with pytest.raises(Interrupted):
        run_phase(config, stop_after=stage)
    assert not (tmp_path / "out").exists()
    report, _, _ = run_phase(config)
    assert checkpoint.open(report.outputs[0]).id == checkpoint.open(trained[0].outputs[0]).id


def test_distillation_brings_the_student_closer_to_its_parent(
    llama_config: LlamaConfig, tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    shape = copy.deepcopy(llama_config)
    shape.initializer_range = 0.2  # so that the parent has opinions that rounding can hurt
    torch.manual_seed(0)
    tokenizer = models.load_tokenizer(tiny_checkpoint)
    parent = LlamaForCausalLM(shape).eval()
    source = checkpoint.write(
        tmp_path / "parent",
        lambda at: models.save(parent, tokenizer, at),
        phase="import",
        seed=0,
        config={},
    )
    overrides = (
        "train.steps=60",
        "init.method=absmean",
        "distill.ce_weight=0",
        "train.blend_share=0.3",
    )
    report, _, _ = run_phase(config_for(source.path, tmp_path / "out", data_config, *overrides))
    windows = TextSource(data_config, tokenizer, "validation").windows(48, 8)
    ids = torch.from_numpy(windows)
    child, rounded = models.load(report.outputs[0]), copy.deepcopy(parent)
    ternarise(rounded, SETTINGS)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        taught = parent(ids).logits
        before, after = (
            distill_loss(taught, model(ids).logits, mask, 1.0).item() for model in (rounded, child)
        )
    assert after < 0.5 * before


def test_model_without_a_wide_enough_layer_is_refused_before_any_work(
    tiny_checkpoint: Checkpoint, data_config: DataConfig, tmp_path: Path
) -> None:
    config = config_for(
        tiny_checkpoint.path, tmp_path / "out", data_config, "linear.group_size=128"
    )
    with pytest.raises(PhaseError, match="nothing to make ternary"):
        run_phase(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "override",
    [
        "init.method=gptk",
        "init.damping=0",
        "train.blend_share=2",
        "distill.temperature=0",
        "distill.kl_weight=-1",
        "own.windows=0",
    ],
)
def test_setting_outside_its_range_is_named(override: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[0]):
        compose("bitnet", Config, [f"out={tmp_path}", override])


def test_multiply_out_of_codes_and_scales_is_the_ternary_weight() -> None:
    weight = torch.randn(3, 21)
    assert torch.equal(multiply_out(*ternary_codes(weight, 8), 8), ternary_weight(weight, 8))


def test_later_phases_train_on_and_leave_the_weights_ternary(tiny_run: Path) -> None:
    before = ternary_layers(models.load(tiny_run / "4-bitnet"))
    assert before
    changed = {}
    for name in ("5-train", "6-bake", "7-adas"):
        after = ternary_layers(models.load(tiny_run / name))
        assert set(after) == set(before)
        for layer in after.values():
            # What the forward multiplies with: every group of a row holds -s, 0 and s alone.
            assert on_grid(layer.quantised_weight(), layer.group_size) is not None
        changed[name] = sum(int((after[n].weight != before[n].weight).sum()) for n in after)
        before = after
    assert changed["5-train"] > 0
    assert changed["6-bake"] > 0


def test_a_row_that_its_codes_do_not_describe_at_all_keeps_its_other_scale() -> None:
    """Codes at right angles to the weights: least squares would take a scale of 0."""
    original, codes = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1, -1], [1, 1]])
    otherwise = torch.tensor([[0.5], [0.25]])
    fitted = _fit_scales(original, codes, torch.eye(2), ROW, otherwise)
    assert fitted.tolist() == [[0.5], [2.0]]


@pytest.mark.parametrize("present", [None, torch.tensor([True, True, True, False])])
def test_the_one_token_that_has_a_label_has_all_of_cross_entropys_weight(
    present: torch.Tensor | None,
) -> None:
    targets = torch.tensor([-100, 7, -100, -100])
    kl, ce = head_loss._shares(targets, present)
    torch.testing.assert_close(ce, torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(kl, torch.full((4,), 0.25) if present is None else present / 3)
