"""What a checked merge consists of: opened models, the result's tokenizer, and the job to run.

`settle.py` fills these records, `job.py` runs them, `card.py` describes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.checkpoint.manifest import Manifest
from agent_forge.merge import MergePlan, Recipe, special_tokens, stream
from agent_forge.merge.files import ModelFiles
from agent_forge.merge.tokenizer_files import TokenizerFiles

CONFIG, GENERATION = "config.json", "generation_config.json"


@dataclass(slots=True, kw_only=True)
class MergeSource:
    """One model of the recipe: its path, opened files, settings, tokenizer and manifest, if any."""

    label: str
    path: Path
    files: ModelFiles
    config: dict[str, Any]
    generation: dict[str, Any] | None
    tokenizer: TokenizerFiles | None
    manifest: Manifest | None

    def parent(self, with_ids: bool) -> special_tokens.Parent:
        """Return what the files say of special tokens; the ids of all tokens only where they are
        needed.
        """
        tokenizer = self.tokenizer
        return special_tokens.Parent(
            config=self.config, generation=self.generation or {},
            tokenizer=tokenizer.settings if tokenizer else {},
            ids=tokenizer.ids if tokenizer and with_ids else {},
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The result's tokenizer: a new one, or (None) a copy of the files of the model `chosen`.

    ids: token -> id, None where every model has that vocabulary already and no id moves.
    """

    chosen: str
    united: dict[str, Any] | None = None
    ids: Mapping[str, int] | None = None


@dataclass(slots=True, kw_only=True)
class MergeJob:
    """A checked merge, ready to run.

    donor: whose config and other files the result has. notes: what the user must know.
    """

    recipe: Recipe
    text: str
    sources: dict[str, MergeSource]
    donor: str
    plan: MergePlan
    layout: stream.Layout
    settings: stream.StreamSettings
    tokens: Tokens
    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def read_bytes(self) -> int:
        """Return the bytes of all weights that are read."""
        return sum(
            path.stat().st_size for source in self.sources.values() for path in source.files.files
        )

    def close(self) -> None:
        """Close the sources' files."""
        for source in self.sources.values():
            source.files.close()
