"""Write a Llama checkpoint as GGUF for llama.cpp, its width padded with zeros to whole blocks of
256 columns.

llama.cpp's types of less than 4 bits come in blocks of 256; a width of 576 makes it fall back to
bigger types without a word. Padded to 768 (and 9 heads to 12) the same function comes out: new
columns are zero, and norms are scaled by √(576/768) because they now average over more numbers.
Token ids only: no vocabulary is written.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 256
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def padded_shape(config: Any) -> tuple[int, int, int]:
    """Return width, heads and key-value heads after padding; the width and the heads' total are
    whole blocks.
    """
    head = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    heads = config.num_attention_heads
    while heads * head % BLOCK or heads % group:
        heads += 1
    return -(-config.hidden_size // BLOCK) * BLOCK, heads, heads // group


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of a query or key projection in llama.cpp's order: rotary pairs side by
    side.
    """
    head = len(weight) // heads
    return weight.reshape(heads, 2, head // 2, -1).transpose(1, 2).reshape(weight.shape)


def resized(weight: Tensor, rows: int, columns: int) -> Tensor:
    """Return `weight` with zero rows and columns appended."""
    return torch.nn.functional.pad(
        weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0])
    )


def convert(model: Any, target: Path) -> dict[str, float]:
    """Write `model` in float16; return for each tensor the share of it that is not padding."""
    config = model.config
    width, heads, kv_heads = padded_shape(config)
    head = config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(width)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps * config.hidden_size / width)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    shares: dict[str, float] = {}

    def add(name: str, weight: Tensor, rows: int, columns: int) -> None:
        writer.add_tensor(name, resized(weight, rows, columns).numpy().astype(np.float16))
        shares[name] = weight.numel() / (rows * columns)

    def add_norm(name: str, weight: Tensor) -> None:
        scaled = weight * (config.hidden_size / width) ** 0.5
        writer.add_tensor(
            name,
            torch.nn.functional.pad(scaled, (0, width - len(weight))).numpy().astype(np.float32),
        )
        shares[name] = len(weight) / width

    add("token_embd.weight", model.model.embed_tokens.weight.detach(), config.vocab_size, width)
    add_norm("output_norm.weight", model.model.norm.weight.detach())
    sizes = {
        "attn_q": (heads * head, width), "attn_k": (kv_heads * head, width), "attn_v": (kv_heads * head, width),
        "attn_output": (width, heads * head), "ffn_gate": (config.intermediate_size, width),
        "ffn_up": (config.intermediate_size, width), "ffn_down": (width, config.intermediate_size),
    }  # fmt: skip
    own_heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for index, layer in enumerate(model.model.layers):
        add_norm(f"blk.{index}.attn_norm.weight", layer.input_layernorm.weight.detach())
        add_norm(f"blk.{index}.ffn_norm.weight", layer.post_attention_layernorm.weight.detach())
        for ours, theirs in NAMES.items():
            weight = layer.get_submodule(ours).weight.detach().float()
            if theirs in own_heads:
                weight = interleaved(weight, own_heads[theirs])
            add(f"blk.{index}.{theirs}.weight", weight, *sizes[theirs])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return shares


def importance(uses: Mapping[str, Tensor], width: int) -> dict[str, NDArray[np.float32]]:
    """Return llama.cpp's importance matrix: llama.cpp's name of a tensor -> the mean square of each
    input column, 0 in the padding.

    uses: our name of a linear -> E[x²] of its inputs, (columns,). `model.embed_tokens` stands for
    the head tied to it.
    """
    matrix = {}
    for name, squares in uses.items():
        if name == "model.embed_tokens":
            target = "token_embd.weight"
        else:
            _, _, index, ours = name.split(".", 3)
            target = f"blk.{index}.{NAMES[ours]}.weight"
        columns = len(squares) if len(squares) % BLOCK == 0 else width
        matrix[target] = np.pad(squares.numpy().astype(np.float32), (0, columns - len(squares)))
    return matrix


def true_bytes(file: Path, shares: dict[str, float]) -> tuple[int, dict[str, int]]:
    """Return the bytes of a GGUF's tensors without their padding, and type -> number of tensors.

    Each tensor counts with the share of it that is not padding; the file's header is not counted.
    """
    tensors = gguf.GGUFReader(file).tensors
    types = Counter(t.tensor_type.name for t in tensors)
    return int(sum(t.n_bytes * shares[t.name] for t in tensors)), dict(sorted(types.items()))
