"""Check a foreign Hugging Face directory for faults that transformers passes over or crashes on.

Reads its JSON files and the headers of its weights; writes nothing. Every refusal names the file
and what to do.
"""

import inspect
import json
import logging
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from agent_forge.core.errors import CheckpointError
from agent_forge.merge.files import INDEX, WEIGHTS, ModelFiles
from agent_forge.merge.weights import Weights

# transformers reads these files beside the weights, and passes over damage in some of them.
JSON_FILES = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.json", "vocab.json", "preprocessor_config.json",
)  # fmt: skip
PROBE = "Hello world, 48 + 77 = é 世"  # letters, digits, an accent and a Chinese character
OURS = "forge_"  # quantisation methods with this prefix belong to this project
# A config.json may hold these keys beside the fields of its class: where it comes from, and older
# names that transformers converts.
ALSO_KNOWN = frozenset((
    "_name_or_path", "_commit_hash", "transformers_version", "transformers.js_config",
    "torch_dtype", "model_type", "architectures", "_attn_implementation_autoset", "rope_scaling",
    "rope_theta", "rope_local_base_freq", "partial_rotary_factor", "rotary_pct", "rotary_emb_base",
    "original_max_position_embeddings", "sliding_window_pattern", "_sliding_window_pattern",
    "cache_implementation",
))  # fmt: skip
_log = logging.getLogger("agent_forge")


def read_config(directory: Path) -> Any:
    """Return the config of a directory, and warn of keys for which transformers has no field.

    Raises CheckpointError when a JSON file is damaged, when config.json does not make a config, or
    when the weights are codes of another project's quantiser.
    """
    for name in JSON_FILES:
        if (directory / name).is_file():
            content = _object(directory / name)
            method = (content.get("quantization_config") or {}).get("quant_method", "")
            if name == "config.json" and method and not str(method).startswith(OURS):
                raise CheckpointError(
                    f"{directory} holds codes of the quantiser '{method}', which are no "
                    "weights to work on; import the model that they were made from, or "
                    "dequantise it with transformers first"
                )
    path = directory / "config.json"
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (
        StrictDataclassError,
        ValueError,
        OSError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is not a config that transformers reads: {reason}") from None
    known = {*type(config)().to_dict(), *getattr(type(config), "attribute_map", {}), *ALSO_KNOWN}
    unknown = sorted(
        key for key, value in _object(path).items() if key not in known and value is not None
    )
    unknown = [key for key in unknown if not _reads(config, key)]
    if unknown:
        _log.warning(
            "%s: transformers has no field for %s: kept, but nothing is known to read it",
            path,
            ", ".join(unknown),
        )
    return config


def _reads(config: PreTrainedConfig, key: str) -> bool:
    """Return whether the code of the model reads a key that its config has no field for.

    Qwen3-MoE's does so with head_dim.
    """
    module = type(config).__module__.replace(".configuration_", ".modeling_")
    try:
        source = inspect.getsource(import_module(module))
    except (ImportError, OSError):
        return False
    return (
        f'config, "{key}"' in source
        or re.search(rf"config\.{re.escape(key)}\b", source) is not None
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it from a copy") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} is a {type(content).__name__}, an object is expected; restore it from a copy"
        )
    return content


def check_files(directory: Path) -> None:
    """Raise CheckpointError for weights that are incomplete, damaged, misnamed or stored twice."""
    files = ModelFiles(directory, str(directory))
    files.close()
    if files.files[0].name != WEIGHTS and (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        if not isinstance(index.get("metadata"), dict):
            raise CheckpointError(
                f'{directory / INDEX} has no "metadata", which transformers reads; add '
                '"metadata": {}'
            )
        if phantom := sorted(set(index["weight_map"]) - set(files.forms)):
            _log.warning(
                "%s lists %d weights that no file holds (%s, ...)",
                directory / INDEX,
                len(phantom),
                phantom[0],
            )
    if not any((directory / name).is_file() for name in (WEIGHTS, INDEX)):
        raise CheckpointError(
            f"{files.files[0]}: the weights of a model are called {WEIGHTS}; rename it"
        )


def check_loaded(directory: Path, model: PreTrainedModel) -> None:
    """Raise CheckpointError when a stored weight is not of a float dtype; settle the head's tie.

    Where config.json ties head and embedding and two different ones are stored, transformers uses
    both, and the config is changed to say so.
    """
    weights = Weights.open(directory, str(directory))
    prefix = f"{model.base_model_prefix}."
    names = dict(model.named_parameters(remove_duplicate=False))
    for name, (_, dtype) in weights.forms.items():
        held = any(place in names for place in (name, prefix + name, name.removeprefix(prefix)))
        if held and not dtype.is_floating_point:
            raise CheckpointError(
                f"{directory}: weight {name} is stored as "
                f"{str(dtype).removeprefix('torch.')}, not as floats; restore "
                "it, or dequantise the model with transformers first"
            )
    if (
        model.config.tie_word_embeddings
        and not model.all_tied_weights_keys
        and model._tied_weights_keys
    ):
        _log.warning(
            "%s: config.json ties the head to the embedding, but another head is "
            "stored: it is used, and the config says so from here on",
            directory,
        )
        model.config.tie_word_embeddings = False


def settle_tokenizer(directory: Path, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    """Check a tokenizer against the `rows` of its model's embedding, and switch off its dropout.

    Raises CheckpointError when a token has no row, or the tokenizer cannot encode. Warns of a
    special token that tokenizer.json lacks, of text that is lost, and of dropout, which leaves out
    merges at random.
    """
    name, last = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if last >= rows:
        raise CheckpointError(
            f"{directory}: token '{name}' has id {last}, the model {rows} rows; they do "
            "not belong together"
        )
    inner = tokenizer.backend_tokenizer
    if getattr(inner.model, "dropout", None):
        _log.warning(
            "%s: the tokenizer leaves out merges at random (dropout %s): switched off",
            directory,
            inner.model.dropout,
        )
        inner.model.dropout = None
    if (directory / "tokenizer.json").is_file():
        stored = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab()
        for token in sorted(set(tokenizer.all_special_tokens) - set(stored)):
            _log.warning(
                "%s: special token '%s' is not in tokenizer.json: it gets id %d, whose "
                "row the model may never have learned",
                directory,
                token,
                tokenizer.convert_tokens_to_ids(token),
            )
    try:
        back = str(tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False)))
    except Exception as error:  # the tokenizers library has no exception class of its own
        raise CheckpointError(
            f"{directory}: the tokenizer cannot encode {PROBE!r}: {error}"
        ) from error
    if back.split() != PROBE.split():
        _log.warning(
            "%s: the tokenizer changes text: %r comes back as %r", directory, PROBE, back[:80]
        )
