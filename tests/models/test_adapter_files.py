"""Adapters: what peft saved is merged as peft merges it; what cannot be merged is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from agent_forge import models
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import CheckpointError
from agent_forge.learn.adapters import adapters
from agent_forge.models import adapter_files
from agent_forge.models.importing import import_model

peft = pytest.importorskip("peft")
IDS = torch.arange(5, 25)[None]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@pytest.fixture
def folder(tiny_llama: LlamaForCausalLM, tmp_path: Path) -> Path:
    """Return an adapter that peft saved, with scales that differ by layer."""
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=True,
        rank_pattern={"down_proj": 2}, alpha_pattern={"layers.1.mlp.down_proj": 5},
        task_type="CAUSAL_LM",
    )  # fmt: skip
    wrapped = peft.get_peft_model(tiny_llama, config)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
    wrapped.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_imported_into_its_base_as_peft_merges_it(
    folder: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = models.load(tiny_checkpoint)
    expected = peft.PeftModel.from_pretrained(models.load(tiny_checkpoint), folder)
    merged = import_model(folder, tmp_path / "merged", base=tiny_checkpoint.path)
    ours = logits(models.load(merged))
    assert torch.allclose(ours, logits(expected), atol=1e-5)
    assert float((ours - logits(base)).abs().max()) > 0.01


def test_what_changes_the_sum_is_refused_by_name(
    folder: Path, tiny_llama: LlamaForCausalLM, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="--base DIR"):
        import_model(folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="not a LoRA adapter"):
        import_model(tiny_checkpoint.path, tmp_path / "out", base=tiny_checkpoint.path)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    for key, value in (("use_dora", True), ("modules_to_save", ["lm_head"]), ("bias", "all")):
        file.write_text(json.dumps({**config, key: value}))
        with pytest.raises(CheckpointError, match=key):
            adapter_files.merge(tiny_llama, folder)
    file.write_text(json.dumps(config))
    tensors = load_file(folder / "adapter_model.safetensors")
    first = sorted(tensors)[0]
    save_file({first: tensors[first]}, folder / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="not whole"):
        adapter_files.merge(tiny_llama, folder)


def test_trained_adapters_are_merged_and_written_as_peft_reads_them(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = models.load(tiny_checkpoint)
    with adapters(model, 2, 4.0, 0, "rank") as adapter, torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3)
        trained = logits(model)
    assert adapter is not None
    assert torch.allclose(logits(model), trained, atol=1e-5)
    adapter.write(tmp_path / "adapter", "tiny")
    again = peft.PeftModel.from_pretrained(models.load(tiny_checkpoint), tmp_path / "adapter")
    assert torch.allclose(logits(again), trained, atol=1e-5)
    other = models.load(tiny_checkpoint)
    assert adapter_files.merge(other, tmp_path / "adapter") == 14
    assert torch.allclose(logits(other), trained, atol=1e-5)
