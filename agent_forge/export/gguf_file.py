"""Write a checkpoint as a GGUF file of llama.cpp's llama, qwen2 or qwen3 architecture, and print what it cost.

Reads the model as torch loads it (ternary and compressed weights are what their layers multiply with) and its tokenizer.
Keys and tensor names: the GGUF specification and gguf.constants. llama.cpp's llama turns neighbouring pairs of a head
where Hugging Face turns halves: rows of the query and key matrices are reordered for it.
"""

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError
from agent_forge.export import quantise
from agent_forge.runtime.shape import Shape, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Array = NDArray[Any]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "TQ1_0": 36, "TQ2_0": 37}  # llama.cpp's llama_ftype
EMBEDDING_TYPE = "Q8_0"  # of embedding and head in every quantised file: fewer bits there cost more than they save
MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NORMS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}  # fmt: skip
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types


@dataclass(slots=True)
class Written:
    """What a file holds. tensors: name -> (type, relative squared error); lines: what to tell the user."""

    path: Path
    size_bytes: int = 0
    tensors: dict[str, tuple[str, float]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def write(source: Path, path: Path, kind: str) -> Written:
    """Write the GGUF file of a checkpoint directory.

    Raises ConfigError for an unknown type, a missing package, or a model or tokenizer that llama.cpp does not compute.
    """
    writer_class = _gguf_writer()
    quantise.checked_type(kind)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = config.get("base_config", config) if config.get("model_type") == "thought" else config
    architecture = ARCHITECTURES.get(config.get("model_type", ""))
    if architecture is None:
        raise ConfigError(
            f"llama.cpp has no architecture for model type '{config.get('model_type')}', so {source} cannot become GGUF; "
            f"it knows {', '.join(ARCHITECTURES)}; use --format hf"
        )
    shape = shape_of(config)
    from agent_forge import models
    from agent_forge.checkpoint import atomic
    from agent_forge.export import source as sources

    (model, lines), tokenizer = sources.load(source, can_think=False), models.load_tokenizer(source)
    written = Written(path)
    temporary = path.with_name(f"{atomic.TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = writer_class(str(temporary), architecture)
        _add_shape(writer, shape, config, kind)
        _add_tokenizer(writer, tokenizer, source, shape.vocabulary)
        for name, stored in _tensors(model, shape, architecture, kind):
            _add_tensor(writer, name, stored)
            written.tensors[name] = (stored.kind, stored.relative_error)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    except OSError as error:
        raise atomic.storage_error(error, path, 0) from error
    finally:
        temporary.unlink(missing_ok=True)
    written.size_bytes = path.stat().st_size
    written.lines = [*lines, *_summary(written, kind)]
    return written


def _gguf_writer() -> Any:
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise ConfigError("writing GGUF needs the package gguf; pip install 'agent-forge[export]'") from None
    return GGUFWriter


def _add_shape(writer: Any, shape: Shape, config: dict[str, Any], kind: str) -> None:
    writer.add_name(str(config.get("_model_name_or_path") or "agent-forge"))
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_context_length(shape.longest)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(_rope_base(config))
    writer.add_vocab_size(shape.vocabulary)


def _rope_base(config: dict[str, Any]) -> float:
    return float((config.get("rope_parameters") or {}).get("rope_theta") or config.get("rope_theta") or 10000.0)


def _tensors(
    model: "PreTrainedModel", shape: Shape, architecture: str, kind: str
) -> Iterator[tuple[str, quantise.Stored]]:
    """Yield GGUF tensors in file order. Norms, biases and rotary factors stay float32."""
    outer = "F16" if kind == "F16" else EMBEDDING_TYPE
    yield "token_embd.weight", _stored(weight_of(model, "model.embed_tokens"), outer)
    yield "output_norm.weight", quantise.store(floats(model, "model.norm.weight"), "F32")
    if not is_tied(model):
        yield "output.weight", _stored(weight_of(model, "lm_head"), outer)
    factors = rotary_factors(shape, model.config.to_dict())
    if factors is not None:
        yield "rope_freqs.weight", quantise.store(factors, "F32")
    parameters = dict(model.named_parameters())
    for index in range(shape.layers):
        for name, module in MODULES.items():
            full, heads = f"model.layers.{index}.{module}", heads_to_reorder(name, shape, architecture)
            yield f"blk.{index}.{name}.weight", _stored(reordered(weight_of(model, full), heads), kind)
            if f"{full}.bias" in parameters:
                bias = reordered(floats(model, f"{full}.bias"), heads)
                yield f"blk.{index}.{name}.bias", quantise.store(bias, "F32")
        for name, module in NORMS.items():
            if f"model.layers.{index}.{module}.weight" in parameters:
                norm = floats(model, f"model.layers.{index}.{module}.weight")
                yield f"blk.{index}.{name}.weight", quantise.store(norm, "F32")


def _stored(weight: Array, kind: str) -> quantise.Stored:
    return quantise.store(weight, quantise.fitting(kind, weight.shape[1]))


def weight_of(model: "PreTrainedModel", module: str) -> Array:
    """Return what a linear or embedding multiplies with: (rows, columns) float32."""
    layer: Any = model.get_submodule(module)
    from agent_forge.models.ternary import refuse_norm

    refuse_norm(layer, "this export")
    ternary = getattr(layer, "quantised_weight", None)
    weight = ternary() if ternary else layer.weight
    values: Array = weight.detach().float().cpu().numpy()
    return values


def floats(model: "PreTrainedModel", name: str) -> Array:
    """Return a parameter as float32."""
    values: Array = model.get_parameter(name).detach().float().cpu().numpy()
    return values


def is_tied(model: "PreTrainedModel") -> bool:
    """Say whether the head multiplies with the embedding."""
    head: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    source = getattr(head, "_source", None)
    return bool(source and source[0] is embedding) if source is not None else head.weight is embedding.weight


def rotary_factors(shape: Shape, config: dict[str, Any]) -> Array | None:
    """Return what llama.cpp divides its plain frequencies by, (head_size / 2,), or None where they are plain."""
    steps = np.arange(0, shape.head_size, 2, dtype=np.float32) / np.float32(shape.head_size)
    plain = 1.0 / np.float32(_rope_base(config)) ** steps
    factors = (plain / np.asarray(shape.frequencies, np.float32)).astype(np.float32)
    return None if np.allclose(factors, 1, atol=1e-6) else factors


def heads_to_reorder(name: str, shape: Shape, architecture: str) -> int:
    """Return the heads whose rows are reordered; 0 for none."""
    if architecture != "llama" or name not in ("attn_q", "attn_k"):
        return 0
    return shape.heads if name == "attn_q" else shape.kv_heads


def reordered(rows: Array, heads: int) -> Array:
    """Interleave the halves of each head's rows (heads * size, ...): 0, size/2, 1, size/2 + 1, ..."""
    if not heads:
        return rows
    split = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def halves_again(rows: Array, heads: int) -> Array:
    """Undo `reordered`."""
    if not heads:
        return rows
    split = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def _add_tensor(writer: Any, name: str, stored: quantise.Stored) -> None:
    from gguf import GGMLQuantizationType

    if stored.kind in ("F32", "F16"):
        writer.add_tensor(name, stored.data)
    else:
        writer.add_tensor(name, stored.data, raw_dtype=GGMLQuantizationType[stored.kind])


def _add_tokenizer(writer: Any, tokenizer: "PreTrainedTokenizerFast", source: Path, vocabulary: int) -> None:
    content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    pre = pre_tokenizer_name(content)
    added = {entry["id"]: entry for entry in content.get("added_tokens", [])}
    names = {index: name for name, index in content["model"]["vocab"].items()}
    names |= {index: entry["content"] for index, entry in added.items()}
    tokens, types = [], []
    for index in range(vocabulary):
        tokens.append(names.get(index, f"[PAD{index}]"))
        kind = NORMAL if index in names else UNUSED
        if index in added:
            kind = CONTROL if added[index]["special"] else USER_DEFINED
        types.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]])
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def pre_tokenizer_name(content: dict[str, Any]) -> str:
    """Return llama.cpp's name of the way a tokenizer.json cuts text: GPT-2's, or SmolLM's with digits apart.

    Raises ConfigError for any other: a guess would tokenise otherwise than the model was trained.
    """
    given = content.get("pre_tokenizer") or {}
    steps = given.get("pretokenizers", [given])
    kinds = [step.get("type") for step in steps]
    byte_level = (
        kinds[-1:] == ["ByteLevel"] and steps[-1].get("use_regex", True) and not steps[-1].get("add_prefix_space")
    )
    plain_model = content["model"]["type"] == "BPE" and content.get("normalizer") is None
    if byte_level and plain_model and kinds[:-1] == []:
        return "gpt-2"
    if byte_level and plain_model and kinds[:-1] == ["Digits"] and steps[0].get("individual_digits"):
        return "smollm"
    raise ConfigError(
        f"this tokenizer cuts text by {kinds} in a {content['model']['type']} model; GGUF export knows byte-level BPE as "
        "GPT-2 and SmolLM have it. Use --format hf"
    )


def _summary(written: Written, kind: str) -> list[str]:
    """Say which types the matrices got, what could not have the wanted one, and the loss of each kind."""
    matrices = {n: t for n, t in written.tensors.items() if n.endswith(".weight") and "norm" not in n}
    lines = []
    for found in sorted({t for t, _ in matrices.values()}):
        errors = [error for t, error in matrices.values() if t == found]
        exact = sum(error == 0 for error in errors)
        lines.append(
            f"{found}: {len(errors)} matrices, {exact} of them exact, relative squared error mean "
            f"{np.mean(errors):.2e}, worst {max(errors):.2e}"
        )
    missed = [n for n, (t, _) in matrices.items() if t != kind and n.startswith("blk.")]
    if missed:
        lines.append(
            f"{len(missed)} matrices are not {kind}: its blocks of {quantise.BLOCKS[kind]} do not divide their columns "
            f"({missed[0]}, ...)"
        )
    return lines
