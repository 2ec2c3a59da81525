"""An adapter as a GGUF file: llama.cpp adds it to the base as the merged model has it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agent_forge import models
from agent_forge.checkpoint import Checkpoint
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.export import check, gguf_file
from agent_forge.export.run import export
from agent_forge.learn.adapters import adapters

pytest.importorskip("gguf", reason="the extra 'export' is not installed")
pytest.importorskip("peft", reason="the extra 'lora' is not installed")
LLAMA_PYTHON = check.usable_python()
IDS = [5, 9, 40, 41, 42, 300, 17, 8]


@pytest.fixture
def baked(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """Return a folder like a checkpoint that was trained with adapters: merged, and adapter/."""
    model = models.load(tiny_checkpoint)
    with adapters(model, 2, 4.0, 0, "rank") as adapter, torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.5)
    assert adapter is not None
    models.save(model, models.load_tokenizer(tiny_checkpoint), tmp_path / "baked")
    adapter.write(tmp_path / "baked" / "adapter", "tiny")
    return tmp_path / "baked"


@pytest.mark.skipif(not LLAMA_PYTHON, reason="needs xllamacpp or llama-cpp-python")
def test_llama_cpp_adds_the_adapter_to_the_base(
    baked: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    gguf_file.write(tiny_checkpoint.path, tmp_path / "base.gguf", "F16")
    export(baked, tmp_path / "adapter.gguf", "lora")
    model = models.load(baked)
    answer = check.llama_answer(
        tmp_path / "base.gguf", [IDS], (), model.config.vocab_size, LLAMA_PYTHON,
        tmp_path / "adapter.gguf",
    )  # fmt: skip
    with torch.no_grad():
        merged, base = (
            one(torch.tensor([IDS])).logits[0].log_softmax(-1).numpy()[answer["positions_0"]]
            for one in (model, models.load(tiny_checkpoint))
        )
    theirs = torch.from_numpy(answer["logits_0"]).log_softmax(-1).numpy()
    assert float(np.abs(theirs - merged).max()) < 0.02
    assert float(np.abs(base - merged).max()) > 0.2


def test_a_checkpoint_without_an_adapter_and_another_type_are_refused(
    baked: Path, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"training.lora_rank=16"):
        export(tiny_checkpoint.path, tmp_path / "a.gguf", "lora")
    with pytest.raises(ConfigError, match="F32 or F16"):
        export(baked, tmp_path / "a.gguf", "lora", "Q8_0")


def test_the_adapter_of_a_ternary_model_is_refused(baked: Path, tmp_path: Path) -> None:
    config = baked / "config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    content["quantization_config"] = {"quant_method": "forge_ternary"}
    config.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"adds it after; export the merged model instead"):
        export(baked, tmp_path / "a.gguf", "lora")
    assert not (tmp_path / "a.gguf").exists()
