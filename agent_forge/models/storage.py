"""Load and save Hugging Face model directories strictly.

No weight is left random or non-finite, and no code of a checkpoint is run: a config that names its
own code (`auto_map`) is refused, and weights are only read and written as safetensors. Reads and
writes config.json, model.safetensors, generation_config.json and the tokenizer's files.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from agent_forge.checkpoint import Checkpoint, readable
from agent_forge.core.errors import CheckpointError, PhaseError
from agent_forge.data.windows import stored_positions
from agent_forge.models import registration, wrapped_names

# Settings of a generation config that only sampling reads.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h",
)  # fmt: skip
_log = logging.getLogger("agent_forge")
# Names of dtypes in a safetensors header; only their lengths matter here.
# The key under which a tokenizer of transformers notes that it has warned of a long text.
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
_DTYPE_CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


def load(
    source: Checkpoint | Path | str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Return the causal language model of a checkpoint directory, in eval mode.

    Raises CheckpointError when the directory has no model, asks for remote code, has weights in
    another format than safetensors, or when a tensor of the model is missing, left over or of
    another shape.
    """
    registration.register()
    directory = _directory(source)
    refuse_remote_code(directory)
    if not list(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{directory} has no .safetensors weights; run `forge import {directory}` to convert it"
        )
    with quiet_transformers():
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                directory, dtype=dtype, local_files_only=True, use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused by name below
            )  # fmt: skip
        except (ValueError, OSError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot load the model in {directory}: {' '.join(str(error).split())}"
            ) from error
    model, info = loaded
    for name, in_file, in_model in sorted(info.get("mismatched_keys") or ()):
        raise CheckpointError(
            f"{directory}: weight {name} is {list(in_file)}, config.json says "
            f"{list(in_model)}; they do not belong together"
        )
    for what in ("unexpected_keys", "missing_keys"):
        if info.get(what):
            raise CheckpointError(
                f"{directory}: {len(info[what])} {what.replace('_', ' ')} in the weights "
                f"({wrapped_names.explained(map(str, info[what]))}); config.json and "
                "the weights do not belong together"
            )
    _settle_sampling(directory, model)
    return model.to(device).eval()


def _settle_sampling(directory: Path, model: Any) -> None:
    """Take out settings of sampling from a generation config that does not sample.

    They have no effect, and transformers refuses to save such a config. Raises CheckpointError for
    a config that it refuses for another reason.
    """
    config = model.generation_config
    if config is None or config.do_sample:
        return
    inert = [key for key in SAMPLING if getattr(config, key, None) is not None]
    try:
        config.validate(strict=True)
        return
    except ValueError:
        for key in inert:
            setattr(config, key, None)
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"{directory / 'generation_config.json'}: {' '.join(str(error).split())[:300]}"
        ) from None
    _log.warning(
        "%s does not sample (do_sample), so it leaves out %s, which had no effect",
        directory / "generation_config.json",
        ", ".join(inert),
    )


def load_tokenizer(source: Checkpoint | Path | str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a checkpoint directory. Raises CheckpointError when there is none."""
    directory = _directory(source)
    refuse_remote_code(directory)
    if not (directory / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{directory} has no tokenizer.json; copy the tokenizer of the model there"
        )
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"cannot load the tokenizer in {directory}: {error}") from error
    limit = stored_positions(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    if limit is not None and tokenizer.model_max_length > limit:
        # Code that cuts windows of tokens goes by the tokenizer's length.
        tokenizer.model_max_length = limit
    # transformers would warn of indexing errors; longer rows are cut, or scored in windows, here.
    tokenizer.deprecation_warnings[TOO_LONG] = True
    return tokenizer


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast | None, directory: Path
) -> None:
    """Write a Hugging Face directory; the same model and tokenizer always give the same bytes.

    Raises PhaseError when a weight is NaN or infinite: such a model is never written.
    """
    refuse_non_finite(model)
    _forget_origin(model)
    with quiet_transformers():
        model.save_pretrained(directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory)


def deployable_bytes(model: PreTrainedModel) -> int:
    """Return the size of the safetensors file that would be shipped, header included.

    A module with `packed_bytes()` counts that many bytes for all its own tensors except `bias`,
    because its latent weights are not shipped. Tied tensors count once.
    """
    packed_bytes = 0
    hidden: set[str] = set()
    for name, module in model.named_modules():
        if callable(getattr(module, "packed_bytes", None)):
            packed_bytes += int(module.packed_bytes())
            own = [
                *dict(module.named_parameters(recurse=False)),
                *dict(module.named_buffers(recurse=False)),
            ]
            hidden.update(f"{name}.{key}" if name else key for key in own if key != "bias")
    tensors = {name: value for name, value in stored_tensors(model).items() if name not in hidden}
    return packed_bytes + _safetensors_bytes(tensors)


def stored_tensors(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the state of a model with tied tensors listed once, under the names of `save`."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = model.state_dict()
    seen: dict[tuple[int, torch.Size], str] = {}
    tensors: dict[str, Tensor] = {}
    for name in sorted(state, key=lambda key: (key in tied, key)):
        value = state[name]
        place = (value.data_ptr() if value.device.type != "meta" else id(value), value.shape)
        if value.numel() and place in seen:
            continue
        seen[place] = name
        tensors[name] = value
    return {name: tensors[name] for name in sorted(tensors)}


def refuse_non_finite(model: torch.nn.Module) -> None:
    """Raise PhaseError naming the first tensor that holds a NaN or an infinity."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise PhaseError(
                f"refused to save: {name} holds {bad:,} non-finite values of {value.numel():,}; "
                "lower the learning rate or go back to the last checkpoint"
            )


def refuse_remote_code(directory: Path) -> None:
    """Raise CheckpointError when config.json is missing, or a config is damaged or names code."""
    for file in ("config.json", "tokenizer_config.json"):
        path = directory / file
        if not path.is_file():
            if file == "config.json":
                adapter = wrapped_names.adapter_in(directory)
                raise CheckpointError(adapter or f"{directory} holds no model: {file} is missing")
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{path} is not JSON ({error}); restore it from a copy") from None
        if not isinstance(content, dict):
            raise CheckpointError(
                f"{path} is a {type(content).__name__}, an object is expected; restore it from a "
                "copy"
            )
        if "auto_map" in content and not content["auto_map"]:
            raise CheckpointError(
                f"{path} has an empty auto_map, which transformers cannot read; remove that entry"
            )
        if "auto_map" in content:
            raise CheckpointError(
                f"{path} asks to run code of its own (auto_map), which is never done here; "
                "use a model type that transformers knows, or convert the model first"
            )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and advice off the terminal; errors still raise."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _directory(source: Checkpoint | Path | str) -> Path:
    directory = source.path if isinstance(source, Checkpoint) else readable(Path(source))
    if not directory.is_dir():
        raise CheckpointError(f"no model directory at {directory}")
    return directory


def _forget_origin(model: PreTrainedModel) -> None:
    """Drop the path that a config was read from, because it differs between machines."""
    parts = [getattr(model.config, key, None) for key in getattr(model.config, "sub_configs", ())]
    configs: list[Any] = [model.config, *parts, getattr(model, "generation_config", None)]
    for config in configs:
        if getattr(config, "_name_or_path", None):
            config._name_or_path = ""


def _safetensors_bytes(tensors: dict[str, Tensor]) -> int:
    """Return the exact size of a safetensors file of `tensors` with transformers' metadata."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    # The format sorts by falling alignment, then by name. Only the number of digits of the offsets
    # matters for the size.
    for name in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        value = tensors[name]
        end = offset + value.numel() * value.element_size()
        code = _DTYPE_CODES.get(value.dtype, "F8_E4M3")
        header[name] = {"dtype": code, "shape": list(value.shape), "data_offsets": [offset, end]}
        offset = end
    length = len(json.dumps(header, separators=(",", ":")).encode())
    return 8 + -(-length // 8) * 8 + offset
