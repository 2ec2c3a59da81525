"""Write a checkpoint as a GGUF file for llama.cpp, and state what the types cost.

Reads the tokenizer and the model as torch loads it: ternary and compressed layers give the weights
that they multiply with. Names, settings and tokens come from models.gguf_format, with which an
import reads the file again.
"""

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.export import quantise

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.models.gguf_format.families import Family

Array = NDArray[Any]
# llama.cpp's llama_ftype
FILE_TYPES = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15, "TQ1_0": 36, "TQ2_0": 37}
# Embedding and head have this type in every quantised file: fewer bits cost more than they save.
EMBEDDING_TYPE = "Q8_0"
OUTER = ("token_embd.weight", "output.weight")
# Matrices that stay float32: the positions, and the router of a mixture of experts.
FLOAT = ("position_embd.weight", "ffn_gate_inp.weight")


@dataclass(slots=True)
class Written:
    """What a file holds.

    tensors: name -> (type, relative squared error).
    lines: what to tell the user.
    """

    path: Path
    size_bytes: int = 0
    tensors: dict[str, tuple[str, float]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def write(source: Path, path: Path, kind: str) -> Written:
    """Write the GGUF file of a checkpoint directory.

    Raises ConfigError for an unknown type, a missing package, or a model or tokenizer that
    llama.cpp does not compute.
    """
    gguf_writer()  # a missing package is named before a model is loaded
    quantise.checked_type(kind)
    content = json.loads((source / "config.json").read_text(encoding="utf-8"))
    content = (
        content.get("base_config", content) if content.get("model_type") == "thought" else content
    )
    family = family_of(content, source)
    from agent_forge import models
    from agent_forge.export import source as sources
    from agent_forge.models.gguf_format import families
    from agent_forge.models.skeleton import skeleton

    plain = skeleton(content)
    places = families.places(plain, family)
    entries, factors, lines = _metadata(plain, family, content, kind)
    (model, notes), tokenizer = sources.load(source, can_think=False), models.load_tokenizer(source)
    lines += _tokenizer_entries(entries, tokenizer, model, plain.config.vocab_size)
    written = Written(path)
    with whole_file(path, family.architecture) as writer:
        for key, value in entries.items():
            _add_entry(writer, key, value)
        for name, stored in _tensors(model, places, factors, kind):
            _add_tensor(writer, name, stored)
            written.tensors[name] = (stored.kind, stored.relative_error)
    written.size_bytes = path.stat().st_size
    written.lines = [*notes, *lines, *_summary(written, kind)]
    return written


@contextmanager
def whole_file(path: Path, architecture: str) -> Iterator[Any]:
    """Lend a GGUFWriter to be filled; the file is written and takes its name at the end.

    Raises StorageError where the file cannot be written; nothing is left of it then.
    """
    from agent_forge.checkpoint import atomic

    temporary = path.with_name(f"{atomic.TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf_writer()(str(temporary), architecture)
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(path)
    except OSError as error:
        raise atomic.storage_error(error, path, 0) from error
    finally:
        temporary.unlink(missing_ok=True)


def gguf_writer() -> Any:
    """Return the package's class of writers. Raises ConfigError where it is not installed."""
    try:
        from gguf import GGUFWriter
    except ImportError:
        raise ConfigError(
            "writing GGUF needs the package gguf; pip install 'agent-forge[export]'"
        ) from None
    return GGUFWriter


def family_of(content: dict[str, Any], source: Path) -> "Family":
    """Return the family of a config.json.

    Raises ConfigError where this export writes no architecture for it.
    """
    from agent_forge.models.gguf_format.families import BY_TYPE

    kind = str(content.get("model_type", ""))
    if kind not in BY_TYPE:
        raise ConfigError(
            f"{source} cannot become GGUF: this export writes no architecture for model type "
            f"'{kind}'{did_you_mean(kind, BY_TYPE)}; it writes {', '.join(BY_TYPE)}. "
            "Use --format hf"
        )
    return BY_TYPE[kind]


def _metadata(
    plain: "PreTrainedModel", family: "Family", content: dict[str, Any], kind: str
) -> tuple[dict[str, Any], dict[str, Array], list[str]]:
    """Return the model's metadata, its rotary factors and lines for the user.

    Raises ConfigError naming a setting that would be read back with another value.
    """
    from agent_forge.models.gguf_format import families, settings
    from agent_forge.models.gguf_format.metadata import Metadata
    from agent_forge.models.skeleton import typed_config

    entries: dict[str, Any] = {
        "general.name": str(content.get("_name_or_path") or "agent-forge"),
        "general.file_type": FILE_TYPES[kind],
    }

    def put(key: str, value: Any) -> None:
        entries[f"{family.architecture}.{key}"] = value

    factors, lines = settings.write(put, plain.config, family)
    meta = Metadata(Path("the file"), {**entries, "general.architecture": family.architecture})
    names = [*families.places(plain, family), *factors]
    again = settings.read(meta, family, names, factors, int(plain.config.vocab_size))
    settings.refuse_lost(
        plain.config, typed_config({"model_type": family.model_type, **again}), family
    )
    return entries, factors, lines


def _tokenizer_entries(
    entries: dict[str, Any],
    tokenizer: "PreTrainedTokenizerFast",
    model: "PreTrainedModel",
    vocabulary: int,
) -> list[str]:
    from agent_forge.models.gguf_format import vocabulary as tokens

    ends = getattr(model.generation_config, "eos_token_id", None)
    stops = ends if isinstance(ends, list) else [] if ends is None else [ends]

    def put(key: str, value: Any) -> None:
        entries[key] = value

    return tokens.write(put, tokenizer, int(vocabulary), [i for i in stops if i < vocabulary])


def _add_entry(writer: Any, key: str, value: Any) -> None:
    """Add metadata by the type of its value.

    Whole numbers are unsigned, except llama.cpp's token types.
    """
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value:  # the format has no empty lists
        writer.add_array(key, value)


def _tensors(
    model: "PreTrainedModel", places: dict[str, Any], factors: dict[str, Array], kind: str
) -> Iterator[tuple[str, quantise.QuantisedTensor]]:
    """Yield GGUF tensors in file order. Norms, biases, routers and rotary factors stay float32."""
    from agent_forge.export.source import plain_value

    for name, place in places.items():
        value = plain_value(model, place.parameter)
        if place.half is not None:
            value = value.chunk(2, dim=1)[place.half]
        values: Array = place.to_file(value.detach().float().cpu().numpy())
        if values.ndim < 2 or name.endswith(FLOAT):
            yield name, quantise.store(values, "F32")
        elif name in OUTER:
            yield name, _stored(values, "F16" if kind == "F16" else EMBEDDING_TYPE)
        else:
            yield name, _stored(values, kind)
    for name, values in factors.items():
        yield name, quantise.store(values, "F32")


def _stored(weight: Array, kind: str) -> quantise.QuantisedTensor:
    return quantise.store(weight, quantise.fitting(kind, weight.shape[-1]))


def _add_tensor(writer: Any, name: str, stored: quantise.QuantisedTensor) -> None:
    from gguf import GGMLQuantizationType

    if stored.kind in ("F32", "F16"):
        writer.add_tensor(name, stored.data)
    else:
        writer.add_tensor(name, stored.data, raw_dtype=GGMLQuantizationType[stored.kind])


def _summary(written: Written, kind: str) -> list[str]:
    """Return lines about the types of the matrices, their loss, and where `kind` did not fit."""
    matrices = {n: t for n, t in written.tensors.items() if t[0] != "F32"}
    lines = []
    for stored_type in sorted({t for t, _ in matrices.values()}):
        errors = [error for t, error in matrices.values() if t == stored_type]
        exact = sum(error == 0 for error in errors)
        lines.append(
            f"{stored_type}: {len(errors)} matrices, {exact} of them exact, relative "
            "squared error mean "
            f"{np.mean(errors):.2e}, worst {max(errors):.2e}"
        )
    missed = [n for n, (t, _) in matrices.items() if t != kind and n.startswith("blk.")]
    if missed:
        lines.append(
            f"{len(missed)} matrices are not {kind}: its blocks of "
            f"{quantise.BLOCKS[kind]} do not divide their columns "
            f"({missed[0]}, ...)"
        )
    return lines
