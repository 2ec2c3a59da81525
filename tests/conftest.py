"""Shared fixtures: one tiny tokenizer, one tiny Llama, and a checkpoint of it."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import agent_forge  # noqa: F401 - registers our model types
from agent_forge import checkpoint, data, models
from agent_forge.config import DataConfig
from agent_forge.data.synthetic import memory, reasoning, tools

torch.set_num_threads(1)

TEXT = (
    "Fellow citizens of the Senate and of the House. The state of the union is strong, and the work of the nation "
    "goes on in year {i}. We thank the people of district {j} for their letters and for their labor."
)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 400 short documents, so that every split has some."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(400):
        (folder / f"{i:03}.txt").write_text(" ".join(TEXT.format(i=1790 + i, j=i * j % 97) for j in range(1, 4)))
    return folder


@pytest.fixture(scope="session")
def data_config(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Return data settings over `text_folder`, with a cache of the session's own."""
    return DataConfig(text=[str(text_folder)], max_text_bytes=0, cache=str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_tokenizer(data_config: DataConfig) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most 512 tokens, with ChatML and tool tokens."""
    rows = [
        m["content"] for task in (reasoning, memory, tools) for r in task.rows(50, "train", 0) for m in r["messages"]
    ]
    return data.train_tokenizer([*data.documents(data_config, "train"), *rows], 512)


@pytest.fixture(scope="session")
def llama_config(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape of the tiny Llama: grouped queries, tied embeddings, widths that hold no 128-group."""
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )


@pytest.fixture
def tiny_llama(llama_config: LlamaConfig) -> LlamaForCausalLM:
    """Return a fresh tiny Llama with seeded weights (a function-scoped copy, safe to change)."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    llama_config: LlamaConfig, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> checkpoint.Checkpoint:
    """Return a checkpoint directory of the tiny Llama. Do not write into it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config).eval()
    return checkpoint.write(
        tmp_path_factory.mktemp("checkpoints") / "tiny",
        lambda directory: models.save(model, tiny_tokenizer, directory),
        phase="import",
        seed=0,
        config={},
        name="tiny",
        role="trunk",
    )
