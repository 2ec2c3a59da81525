"""Export a checkpoint with a model card: GGUF, Ollama, a plain Hugging Face folder, a packed file,
or the LoRA adapter that it was trained with as a GGUF file of its own.

Call `run.export(source, out, format, type)`; `check.compare` loads a GGUF file in llama.cpp and
compares logits. GGUF needs the extra `export`; the check also needs llama-cpp-python or xllamacpp,
in this Python or in another.
"""

from dataclasses import dataclass, field
from typing import Any

FORMATS = ("gguf", "hf", "lora", "ollama", "packed")


@dataclass(slots=True)
class Exported:
    """What was written: the files, lines for the user, and any comparison with llama.cpp."""

    format: str
    type: str
    files: list[str]
    size_bytes: int
    lines: list[str]
    tensors: dict[str, tuple[str, float]] = field(default_factory=dict)
    check: dict[str, Any] | None = None
