"""Read a GGUF file into a transformers model and tokenizer, in float32.

Every tensor and every key is used, or refused by name. Reads one file with the gguf package, which
dequantises all of ggml's types. Writes nothing.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.models.gguf_format import families, rope, settings, vocabulary
from agent_forge.models.gguf_format.families import Family
from agent_forge.models.gguf_format.metadata import Metadata
from agent_forge.models.skeleton import typed_config
from agent_forge.models.storage import quiet_transformers

MAGIC = b"GGUF"
SHOWN = 4  # names in a message


def read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Return the model and tokenizer of a GGUF file.

    Raises CheckpointError when the file is damaged, of an unknown architecture, or holds a tensor
    or a metadata key that the model does not use.
    """
    reader = _opened(file)
    try:
        meta = Metadata(file, {name: field.contents() for name, field in reader.fields.items()})
        return _read(file, reader, meta)
    except (KeyError, IndexError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"cannot read {file}: {' '.join(str(error).split())[:300]}"
        ) from error
    except ConfigError as error:
        raise CheckpointError(f"cannot read {file}: {error}") from error


def _opened(file: Path) -> Any:
    with file.open("rb") as head:
        if head.read(4) != MAGIC:
            raise CheckpointError(f"{file} is not a GGUF file: it does not begin with 'GGUF'")
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(
            "importing GGUF needs the package gguf; pip install 'agent-forge[export]'"
        ) from None
    try:
        return GGUFReader(str(file))
    except (ValueError, OSError, KeyError, IndexError, TypeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"cannot read {file}: {' '.join(str(error).split())[:300]}"
        ) from error


def _read(
    file: Path, reader: Any, meta: Metadata
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    family = _family(meta)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    factors = {
        name: _values(stored.pop(name))
        for name in (rope.FACTORS, rope.SHORT, rope.LONG)
        if name in stored
    }
    rows = next((int(t.shape[1]) for name, t in stored.items() if name == "token_embd.weight"), 0)
    config: Any = typed_config({
        "model_type": family.model_type,
        **settings.read(meta, family, stored.keys(), factors, rows), **_no_ids(),
    })  # fmt: skip
    tokenizer, stops = vocabulary.read(meta)
    meta.refuse_unread()
    for name in ("bos", "eos", "pad"):
        setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    config.architectures = None
    with quiet_transformers():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _fill(file, model, family, stored)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops if len(stops) > 1 else tokenizer.eos_token_id,
    )  # fmt: skip
    return model, tokenizer


def _no_ids() -> dict[str, None]:
    """Return None for the token ids, whose defaults may lie outside the file's vocabulary."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


def _family(meta: Metadata) -> Family:
    parts, kind = int(meta.get("split.count", 1) or 1), str(meta.get("general.type", "model"))
    if parts > 1:
        raise CheckpointError(
            f"{meta.path} is one of {parts} parts; join them first, with llama.cpp's "
            "llama-gguf-split --merge"
        )
    if kind != "model":
        raise CheckpointError(
            f"{meta.path} is no whole model: its general.type is '{kind}'; merge an "
            "adapter into its base"
        )
    family = families.of_architecture(
        meta.architecture, experts=int(meta.get("expert_count", 0) or 0)
    )
    if family is None:
        known = ", ".join(dict.fromkeys(one.architecture for one in families.FAMILIES))
        raise CheckpointError(
            f"{meta.path} is of architecture '{meta.architecture}'; GGUF import knows "
            f"{known}. Import the original "
            "Hugging Face directory instead"
        )
    for key in ("expert_count", "expert_used_count"):
        if family.model_type not in ("mixtral", "qwen3_moe"):
            meta.expect(key, (0,), "this architecture has no experts")
    return family


def _values(tensor: Any) -> NDArray[np.float32]:
    """Return a tensor of the file as float32."""
    from gguf.quants import dequantize

    values: NDArray[np.float32] = np.asarray(
        dequantize(tensor.data, tensor.tensor_type), np.float32
    )
    shape = tuple(int(n) for n in reversed(tensor.shape))
    return values.reshape(shape)


@torch.no_grad()
def _fill(file: Path, model: PreTrainedModel, family: Family, stored: dict[str, Any]) -> None:
    """Copy every tensor of the file into the model.

    Raises CheckpointError naming the tensors that are missing or left over.
    """
    places = families.places(model, family)
    left, missing = sorted(set(stored) - set(places)), sorted(set(places) - set(stored))
    for names, what in (
        (left, "that the model has no place for"),
        (missing, "fewer than the model has: without"),
    ):
        if names:
            shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
            raise CheckpointError(
                f"{file} has {len(names)} tensors {what} ({shown}); it is another kind "
                f"of {family.architecture} than is "
                "known here. Import the original Hugging Face directory instead"
            )
    for name, place in places.items():
        target: Any = model.get_parameter(place.parameter)
        target = target if place.half is None else target.chunk(2, dim=1)[place.half]
        values = torch.from_numpy(np.array(place.from_file(_values(stored[name]))))
        if values.shape != target.shape:
            raise CheckpointError(
                f"{file}: {name} is {list(values.shape)}, its metadata says "
                f"{list(target.shape)}; the file is damaged"
            )
        target.copy_(values)
