"""Load, save and size of model directories."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from agent_forge import models
from agent_forge.core.errors import CheckpointError, PhaseError


def small(tie: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, tie_word_embeddings=tie,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_deployable_bytes_is_the_size_of_the_written_file(
    tmp_path: Path, tie: bool, dtype: torch.dtype
) -> None:
    model = small(tie).to(dtype)
    models.save(model, None, tmp_path)
    assert models.deployable_bytes(model) == (tmp_path / "model.safetensors").stat().st_size


def test_a_packed_module_counts_its_packed_bytes_and_its_bias() -> None:
    model = small(False)
    before = models.deployable_bytes(model)

    class Packed(nn.Linear):
        def packed_bytes(self) -> int:
            return 100

    packed = Packed(16, 24, bias=True)
    dense = nn.Linear(16, 24, bias=True)
    model.model.layers[0].mlp.gate_proj = dense
    with_dense = models.deployable_bytes(model)
    model.model.layers[0].mlp.gate_proj = packed
    difference = with_dense - models.deployable_bytes(model)
    # The header loses the entry of the weight (less than 200 bytes), the data loses the weight and
    # gains 100.
    assert 16 * 24 * 4 - 100 <= difference <= 16 * 24 * 4 + 100
    assert with_dense > before


@pytest.mark.parametrize("tie", [True, False])
def test_save_then_load_is_bit_exact_and_bytes_are_the_same_twice(
    tmp_path: Path, tie: bool
) -> None:
    model = small(tie)
    models.save(model, None, tmp_path / "a")
    loaded = models.load(tmp_path / "a")
    models.save(loaded, None, tmp_path / "b")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    if tie:
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_weight_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, value: float
) -> None:
    model = small(False)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = value
    with pytest.raises(PhaseError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1 non-finite"):
        models.save(model, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_brings_its_own_code_is_refused(tmp_path: Path) -> None:
    models.save(small(False), None, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}})
    )
    with pytest.raises(CheckpointError, match="auto_map"):
        models.load(tmp_path)
    assert not (tmp_path / "mark").exists()


def test_a_missing_weight_is_an_error_and_never_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models.save(small(False), None, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys .*q_proj"):
        models.load(tmp_path)


def test_a_directory_without_model_or_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model directory"):
        models.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        models.load(tmp_path)
    models.save(small(False), None, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="forge import"):
        models.load(tmp_path)


def test_the_tokenizer_round_trips_for_us_and_for_the_auto_class(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    models.save(small(False), tiny_tokenizer, tmp_path)
    text = 'The union is strong <tool_call>{"a": 12}</tool_call><|im_end|>'
    expected = tiny_tokenizer.encode(text)
    assert models.load_tokenizer(tmp_path).encode(text) == expected
    assert AutoTokenizer.from_pretrained(tmp_path).encode(text) == expected
    assert models.load_tokenizer(tmp_path).chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize(
    "first",
    ["import agent_forge", "import agent_forge.models.cognate", "import transformers, agent_forge"],
)
def test_plain_transformers_opens_a_cognate_whatever_is_imported_first(
    tmp_path: Path, first: str
) -> None:
    from agent_forge.models.cognate import CognateConfig, CognateForCausalLM

    config = CognateConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, memory_slots=4, written_slots=2,
    )  # fmt: skip
    models.save(CognateForCausalLM(config), None, tmp_path)
    code = (
        f"{first}\nfrom transformers import AutoModelForCausalLM\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "CognateForCausalLM", done.stderr


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import sys, agent_forge, agent_forge.models\nprint('torch' in sys.modules, "
        "'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_loaded_model_is_the_one_the_auto_class_loads(tmp_path: Path) -> None:
    models.save(small(True), None, tmp_path)
    ours, theirs = models.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
