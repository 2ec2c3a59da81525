"""The metadata of a GGUF file: every key is read, ignored for a stated reason, or refused.

Keys of the file's architecture are read by their last part (`get("block_count")`), all others by
their whole name.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from agent_forge.core.errors import CheckpointError

# Pattern of a key -> why an import may ignore it. Every other key must be read.
IGNORED = {
    "GGUF.*": "the reader's own header fields",
    "general.name": "names the model; the checkpoint has a name of its own",
    "general.basename": "names the model",
    "general.finetune": "names the model",
    "general.version": "names the model",
    "general.size_label": "names the model",
    "general.description": "describes the model",
    "general.author": "names the author",
    "general.organization": "names the author",
    "general.quantized_by": "names the one who quantised it",
    "general.license*": "the licence; the manifest keeps the source's name and hash",
    "general.url": "names its origin",
    "general.doi": "names its origin",
    "general.uuid": "names its origin",
    "general.repo_url": "names its origin",
    "general.source.*": "names its origin",
    "general.base_model.*": "names the model that it was trained from",
    "general.dataset.*": "names the data that it was trained on",
    "general.tags": "words for a catalogue",
    "general.languages": "words for a catalogue",
    "general.file_type": "the commonest type of the tensors; each names its own",
    "general.quantization_version": "version of the blocks; the gguf package reads all versions",
    "general.alignment": "where tensors begin; the gguf package has used it",
    "general.sampling.*": "llama.cpp's default sampling; here it is chosen at generation",
    "quantize.imatrix.*": "how the file was quantised",
    "split.*": "parts of a file; one part alone was checked to be all",
    "*.rope.scaling.finetuned": "notes that training used the scaling; nothing computes with it",
    "*.tensor_data_layout": "names the order of query and key rows, which the architecture fixes",
    "tokenizer.ggml.fim_*_token_id": "fill-in-the-middle; the tokens are in the vocabulary",
    "tokenizer.ggml.prefix_token_id": "fill-in-the-middle; the token is in the vocabulary",
    "tokenizer.ggml.suffix_token_id": "fill-in-the-middle; the token is in the vocabulary",
    "tokenizer.ggml.middle_token_id": "fill-in-the-middle; the token is in the vocabulary",
}


class Metadata:
    """Values by key. `get` adds the architecture to keys that need it."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values
        self.read: set[str] = set()
        self.architecture = str(self.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or `default` where the file has none."""
        if not key.startswith(("general.", "tokenizer.", "split.")):
            key = f"{self.architecture}.{key}"
        self.read.add(key)
        return self.values.get(key, default)

    def number(self, key: str) -> int:
        """Return a whole number.

        Raises CheckpointError when it is missing, or differs from layer to layer.
        """
        value = self.get(key)
        if isinstance(value, list) and value and all(one == value[0] for one in value):
            value = value[0]
        if isinstance(value, list):
            raise CheckpointError(
                f"{self.path}: {self.architecture}.{key} differs between layers; no "
                "model type here does"
            )
        if value is None:
            raise CheckpointError(
                f"{self.path} has no {self.architecture}.{key}; the file is damaged or cut short"
            )
        return int(value)

    def expect(self, key: str, allowed: Iterable[Any], meaning: str) -> None:
        """Raise CheckpointError when `key` has a value that is not allowed; it may be absent."""
        value = self.get(key)
        if value is not None and value not in set(allowed):
            raise CheckpointError(
                f"{self.path}: {key} is {value}, which is not computed here ({meaning})"
            )

    def refuse_unread(self) -> None:
        """Raise CheckpointError naming the keys that nothing has read and no reason covers."""
        left = [
            k
            for k in self.values
            if k not in self.read and not any(fnmatchcase(k, p) for p in IGNORED)
        ]
        if left:
            shown = ", ".join(f"{key}={_short(self.values[key])}" for key in left[:5])
            raise CheckpointError(
                f"{self.path}: {len(left)} metadata keys are not understood "
                f"({shown}{', ...' if len(left) > 5 else ''}); "
                "importing without them would make another model. Take a file without "
                "them, or the original directory"
            )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
