"""Phases say before work starts what they reach of a model; scaled embeddings and Conv1D are
reached, experts are told.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from agent_forge import codecs, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.export import hf_folder
from agent_forge.models import compressed, conv1d
from agent_forge.models.skeleton import skeleton
from agent_forge.models.ternary import (
    TernarySettings,
    rounded_embeddings,
    save_packed,
    set_blend,
    ternarise,
    ternary_layers,
)
from agent_forge.phases import PhaseRun, bitnet, compress, quietstar
from agent_forge.phases.bitnet import fits as bitnet_fits
from agent_forge.phases.compress import fits as compress_fits
from agent_forge.phases.compress import sensitivity
from agent_forge.phases.quietstar import fits as quietstar_fits
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.estimate import estimate_phase
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.run_phase import check_inputs
from tests import tiny_families

BITNET = ["sources=[x]", "out=y", "train.length_tokens=64", "linear.group_size=32"]
COMPRESS = [
    "sources=[x]", "out=y", "calibration.length_tokens=64", "measure.length_tokens=64", "codec.min_weights=64",
    "recover.length_tokens=64",
]  # fmt: skip


def content(kind: str, **settings: Any) -> dict[str, Any]:
    """Return config.json of a tiny model."""
    full = {**tiny_families.FAMILIES[kind], **settings}
    result: dict[str, Any] = json.loads(tiny_families.build(kind, **full).config.to_json_string())
    return result


def bitnet_lines(model: dict[str, Any], *settings: str) -> list[str]:
    return bitnet_fits.check(compose("bitnet", bitnet.Config, [*BITNET, *settings]), model)


def compress_lines(model: dict[str, Any], *settings: str) -> list[str]:
    return compress_fits.check(compose("compress", compress.Config, [*COMPRESS, *settings]), model)


def test_windows_may_be_as_long_as_the_models_positions_and_no_longer() -> None:
    llama = content("llama", max_position_embeddings=64)
    assert any("ternary layers reach" in line for line in bitnet_lines(llama))
    with pytest.raises(ConfigError, match="length_tokens=65 is more than the 64 positions"):
        bitnet_lines(llama, "train.length_tokens=65")
    compress_lines(llama, "recover.steps=1")
    for name in ("calibration", "measure", "recover"):
        with pytest.raises(ConfigError, match=f"{name}.length_tokens=65 is more than the 64"):
            compress_lines(llama, "recover.steps=1", f"{name}.length_tokens=65")
    compress_lines(llama, "recover.steps=0", "recover.length_tokens=65")  # no step, no window


def test_experts_that_bitnet_does_not_reach_are_counted_and_named() -> None:
    model = skeleton(content("mixtral"))
    sizes = {name: value.numel() for name, value in model.named_parameters()}
    total = sum(sizes.values())
    experts = sum(n for name, n in sizes.items() if ".experts." in name)
    attention = sum(n for name, n in sizes.items() if "_proj.weight" in name)
    (line,) = bitnet_lines(content("mixtral"))
    assert f"reach {100 * attention / total:.3g}% of {total:,} weights" in line
    assert f"fused experts (MixtralExperts) {100 * experts / total:.3g}%" in line
    assert "fused experts" not in compress_lines(content("mixtral"))[0]


@pytest.mark.parametrize("kind", tiny_families.FAMILIES)
def test_every_family_is_told_its_share_from_its_config_alone(kind: str) -> None:
    for line in (
        *bitnet_lines(content(kind), "linear.embedding_bits=8"),
        *compress_lines(content(kind)),
    ):
        assert "% of " in line
        assert "not reached: " in line


@pytest.mark.parametrize(
    ("kind", "settings", "named"),
    [
        ("phi3", ["distill.relation_weight=1"], "no attention of Phi3ForCausalLM has q_proj"),
        ("llama", ["distill.relation_weight=1", "distill.relation_heads=3"], "does not divide"),
        ("llama", ["train.length_tokens=512"], "256 positions"),
        ("llama", ["linear.group_size=128"], "nothing to make ternary"),
    ],
)
def test_settings_that_cannot_work_for_a_model_are_refused_by_bitnet(
    kind: str, settings: list[str], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        bitnet_lines(content(kind), *settings)


def test_a_quantised_source_and_a_budget_below_what_is_not_coded_are_refused() -> None:
    llama = content("llama")
    with pytest.raises(ConfigError, match="quantised already"):
        bitnet_lines({**llama, "quantization_config": {"quant_method": "forge_ternary"}})
    with pytest.raises(ConfigError, match=r"linear\.sub_norm"):
        compress_lines(
            {
                **llama,
                "quantization_config": {"quant_method": "forge_ternary", "sub_norm": ["o_proj"]},
            }
        )
    small = ["budget.quality_floor=0", "budget.bytes_ratio=0.05", "codec.min_weights=3000"]
    with pytest.raises(ConfigError, match="what is not coded takes"):
        compress_lines(llama, *small)
    assert compress_lines(llama, "budget.quality_floor=0", "budget.bytes_ratio=0.5")
    with pytest.raises(
        ConfigError, match=r"measure\.length_tokens=512 is more than the 256 positions"
    ):
        compress_lines(llama, "measure.length_tokens=512")


@pytest.mark.parametrize(
    "codes",
    [
        {"quant_method": "forge_compressed"},
        {"quant_method": "gptq"},
        {"quant_method": "forge_ternary", "packed": True},
    ],
)
@pytest.mark.parametrize(
    "phase", ["evomerge", "quietstar", "bitnet", "train", "bake", "adas", "compress"]
)
def test_every_phase_refuses_weights_that_are_codes_alone(
    phase: str, codes: dict[str, Any], tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({**content("llama"), "quantization_config": codes})
    )
    source = Checkpoint(
        tmp_path, replace(tiny_checkpoint.manifest, parents=[{"path": "the/parent"}])
    )
    config = compose(phase, phases()[phase].config, [f"sources=[{tmp_path}]", "out=unused"])
    with pytest.raises(
        ConfigError, match=rf"holds codes .*which {phase} cannot change.*sources=\[the/parent\]"
    ):
        fits(phase, config, [source])


def test_the_preflight_and_the_dry_run_ask(
    data_config: DataConfig, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    config = compose(
        "bitnet",
        bitnet.Config,
        [f"sources=[{tiny_checkpoint.path}]", f"out={tmp_path / 'o'}", *BITNET[2:]],
    )
    config.data = data_config
    assert any("ternary layers reach" in note for note in estimate_phase("bitnet", config).notes)
    config.distill.relation_weight, config.distill.relation_heads = 1.0, 7
    for ask in (lambda: estimate_phase("bitnet", config), lambda: check_inputs("bitnet", config)):
        with pytest.raises(ConfigError, match="relation_heads=7"):
            ask()


@pytest.mark.parametrize(
    ("kind", "named"), [("gemma3_text", "sliding_attention"), ("mistral", "looks back over 16")]
)
def test_quietstar_refuses_windows_before_work_starts(kind: str, named: str) -> None:
    config = compose("quietstar", quietstar.Config, ["sources=[x]", "out=y"])
    assert quietstar_fits.check(config, content("llama")) == []
    with pytest.raises(ConfigError, match=named):
        quietstar_fits.check(config, content(kind, sliding_window=16))


SETTINGS = TernarySettings(
    group_size=16, activation_bits=0, packing="five_trits", skip=[], embedding_bits=8
)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])
def test_a_scaled_embedding_is_rounded_and_keeps_its_scale(kind: str, tmp_path: Path) -> None:
    model = tiny_families.build(kind, **tiny_families.FAMILIES[kind])
    expected = copy.deepcopy(model)
    ternarise(model, SETTINGS)
    set_blend(model, 0.0)
    rounded = rounded_embeddings(model)["model.embed_tokens"].quantised_weight()
    with torch.no_grad():
        expected.get_input_embeddings().weight.copy_(rounded)
    assert tiny_families.relative_error(model, expected) <= 1e-6
    set_blend(model, 1.0)
    models.save(model, None, tmp_path / "latents")
    save_packed(models.load(tmp_path / "latents"), None, tmp_path / "packed")
    for name in ("latents", "packed"):
        assert tiny_families.relative_error(models.load(tmp_path / name), model) <= 1e-6


def test_conv1d_becomes_ternary_and_goes_back_where_it_was(tmp_path: Path) -> None:
    model = tiny_families.build("gpt2", **tiny_families.FAMILIES["gpt2"])
    expected = copy.deepcopy(model)
    names = ternarise(model, SETTINGS)
    assert sorted(names) == sorted(
        name for name, m in expected.named_modules() if isinstance(m, Conv1D)
    )
    set_blend(model, 0.0)
    with torch.no_grad():
        rounded = rounded_embeddings(model)["transformer.wte"].quantised_weight()
        expected.get_input_embeddings().weight.copy_(rounded)
    assert tiny_families.relative_error(model, expected) <= 1e-6
    set_blend(model, 1.0)
    models.save(model, None, tmp_path / "latents")
    save_packed(models.load(tmp_path / "latents"), None, tmp_path / "packed")
    for name in ("latents", "packed"):
        assert tiny_families.relative_error(models.load(tmp_path / name), model) <= 1e-6
    plain = hf_folder.dense(model)
    assert any(isinstance(module, Conv1D) for module in plain.modules())
    assert not ternary_layers(plain)
    assert tiny_families.relative_error(plain, model) <= 1e-6


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt2", "mixtral"])
def test_coded_tensors_of_every_kind_open_from_their_file_and_compute_what_they_stand_for(
    kind: str, tmp_path: Path
) -> None:
    model = tiny_families.build(kind, **tiny_families.FAMILIES[kind])
    plain = copy.deepcopy(model)
    conv1d.unfold(model)
    names = [
        name for name, tensor in compressed.coded_tensors(model).items() if tensor.numel() >= 2000
    ]
    coded = {
        name: codecs.encode("intk", compressed.as_matrix(tensor), {"bits": 8})
        for name, tensor in compressed.coded_tensors(model).items()
        if name in names
    }
    built = compressed.compress(model, coded)
    conv1d.fold(built)
    assert not any(isinstance(module, conv1d.TransposedLinear) for module in built.modules())
    models.save(built, None, tmp_path / "coded")
    again = models.load(tmp_path / "coded")
    assert tiny_families.relative_error(again, built) == 0
    # Rounding sends some tokens to another expert.
    assert tiny_families.relative_error(again, plain) <= (0.2 if kind == "mixtral" else 0.05)
    assert tiny_families.relative_error(hf_folder.dense(again), again) <= 1e-5


def test_unfolding_a_conv1d_changes_no_logit_and_can_be_undone() -> None:
    model = tiny_families.build("gpt2", **tiny_families.FAMILIES["gpt2"])
    plain = copy.deepcopy(model)
    assert len(conv1d.unfold(model)) == 8
    assert tiny_families.relative_error(model, plain) <= 1e-6
    conv1d.fold(model)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )


class Doubled(nn.Embedding):
    """An embedding that does more than look rows up."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).tanh()


def test_an_embedding_of_another_kind_stays_float_and_is_told() -> None:
    model = tiny_families.build("llama", tie_word_embeddings=True)
    model.model.embed_tokens = Doubled(400, 32)
    model.lm_head.weight = model.model.embed_tokens.weight
    names = compressed.coded_tensors(model)
    assert "model.embed_tokens" not in names
    assert "lm_head" not in names
    assert "embeddings and head 40.8%" in compress_fits.reach_line(model, names)


def test_the_estimated_loss_of_a_scaled_embedding_counts_its_scale(tmp_path: Path) -> None:
    untied = {**tiny_families.FAMILIES["gemma2"], "tie_word_embeddings": False}
    model = tiny_families.build("gemma2", **untied)
    name, windows = (
        "model.embed_tokens",
        torch.randint(1, 400, (48, 32), generator=torch.Generator().manual_seed(0)),
    )
    config = compose("compress", compress.Config, [f"out={tmp_path / 'out'}"])
    out = Workspace(tmp_path / "w", phase="compress", seed=0, config=config)
    phase = PhaseRun(config, [], out, EventLog(None, "compress"))
    result = dict(sensitivity.measure(phase, model, sensitivity.Calibration(windows)))[name]
    changed = copy.deepcopy(model)
    error = 0.005 * torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        changed.get_input_embeddings().weight.add_(error)
        base, new = (m(windows).logits.log_softmax(-1) for m in (model, changed))
    rise = (
        float(nn.functional.kl_div(new, base, log_target=True, reduction="sum")) / windows.numel()
    )
    assert 0.4 < result.distortion(error) / rise < 2.5  # without the scale it would be one 32nd
