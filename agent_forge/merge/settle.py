"""Open the models of a merge and settle what they share: config, vocabulary, and kind of head.

Reads config.json, tokenizers and safetensors headers. Errors name what does not belong together.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.core.errors import CheckpointError, ConfigError, did_you_mean
from agent_forge.merge import Recipe, find_layers, heads, vocabulary
from agent_forge.merge.files import ModelFiles
from agent_forge.merge.layers import NESTED
from agent_forge.merge.prepared import CONFIG, GENERATION, MergeSource, Tokens
from agent_forge.merge.tokenizer_files import (
    TOKENIZER,
    TokenizerFiles,
    difference,
    read_tokenizer,
    token_ids,
    usage_difference,
)

# These settings tell where a config came from and how it was used, not what the model computes.
NOT_COMPARED = (
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache",
    "initializer_range", "architectures", "attention_dropout", "vocab_size", "bos_token_id",
    "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip


def locate(recipe: Recipe, beside: Path) -> tuple[Recipe, dict[str, Path]]:
    """Return the recipe with one name per model, however its path is spelled, and the paths.

    A relative path counts from here, or else from the recipe's directory. Raises CheckpointError
    for a missing model.
    """
    paths: dict[str, Path] = {}
    names: dict[str, str] = {}
    for label in recipe.labels():
        path = _find(label, beside)
        known = next(
            (other for other, place in paths.items() if place.resolve() == path.resolve()), label
        )
        names[label] = known
        paths.setdefault(known, path)
    # Other places that name a model may spell its path in yet another way.
    for label in {recipe.tokenizer_source, *(token.model for token in recipe.tokens.values())} - {
        "",
        "base",
        "union",
    }:
        place = next((place for place in _places(label, beside) if place.is_dir()), None)
        if place is not None:
            same = (other for other, path in paths.items() if path.resolve() == place.resolve())
            names.setdefault(label, next(same, label))
    return recipe.renamed(names), paths


def open_sources(paths: Mapping[str, Path], notes: list[str]) -> dict[str, MergeSource]:
    """Return the opened models.

    Raises CheckpointError for one that is damaged or cannot be merged.
    """
    sources = {label: _open(label, path) for label, path in paths.items()}
    for label, source in sources.items():
        if source.files.others:
            read = ", ".join(path.name for path in source.files.files[:3])
            notes.append(
                f"{label}: {', '.join(source.files.others)} is not read, the model is in {read}"
            )
        if old := source.files.drop_old_buffers():
            notes.append(
                f"{label}: {len(old)} buffers that follow from its config are left out ({old[0]})"
            )
    return sources


def settle_heads(sources: Mapping[str, MergeSource], notes: list[str]) -> bool | None:
    """Make heads all stored or all shared; return what the config must say of that, None for no
    change.
    """
    share, said = heads.settle(
        {label: (source.files, source.config) for label, source in sources.items()}
    )
    notes += said
    return share


def compare_configs(sources: Mapping[str, MergeSource], donor: str) -> list[str]:
    """Return a note for each setting in which a model differs from the donor.

    Raises CheckpointError for another model type.
    """
    ours, notes = sources[donor].config, []
    for label, source in sources.items():
        if source.config.get("model_type") != ours.get("model_type"):
            raise CheckpointError(
                f"{label} is a {source.config.get('model_type')} model, {donor} a "
                f"{ours.get('model_type')} one; "
                "only models of one architecture merge"
            )
        for name in sorted(set(ours) | set(source.config)):
            mine, theirs = ours.get(name), source.config.get(name)
            if (
                name not in NOT_COMPARED
                and mine != theirs
                and not (name.startswith("num_") and "layers" in name)
            ):
                notes.append(
                    f"{name} is {theirs!r} in {label} and {mine!r} in {donor}; the result has "
                    f"{donor}'s"
                )
    return notes


def settle_vocabulary(
    recipe: Recipe, sources: Mapping[str, MergeSource], donor: str, notes: list[str]
) -> Tokens:
    """Bring all models onto one vocabulary, and return the result's tokenizer.

    Raises CheckpointError when vocabularies differ and the recipe does not say what to do,
    ConfigError for an unknown source of the tokenizer.
    """
    having = {
        label: source.tokenizer for label, source in sources.items() if source.tokenizer is not None
    }
    choice = recipe.tokenizer_source
    chosen = _chosen(recipe, sources, having, donor, notes)
    if not having:
        return Tokens(chosen=donor)
    differing = {
        label: where
        for label, other in having.items()
        if (where := difference(having[chosen], other))
    }
    lacking = [label for label in sources if label not in having]
    if not choice and not recipe.pad_to_multiple_of:
        _refuse_differing(chosen, differing)
        notes += [
            f"{label} has no tokenizer; its token ids are taken to mean what {chosen}'s mean"
            for label in lacking
        ]
        _refuse_heights(sources, chosen)
        _note_usage(having, chosen, notes)
        return Tokens(chosen=chosen)
    if lacking:
        raise CheckpointError(
            f"{lacking[0]} has no {TOKENIZER}; tokenizer_source needs one of every model"
        )
    united = None
    if choice == "union" and differing:
        united = vocabulary.union(
            [_content(sources[label]) for label in [chosen, *differing]], notes
        )
    ids = token_ids(united) if united else having[chosen].ids
    _transplant(recipe, sources, ids, chosen, notes)
    _note_usage(having, chosen, notes)
    moved = bool(differing) or (choice in sources and chosen != donor)
    return Tokens(chosen=chosen, united=united, ids=ids if moved else None)


def _places(label: str, beside: Path) -> tuple[Path, Path]:
    path = Path(label).expanduser()
    return path, beside / path


def _find(label: str, beside: Path) -> Path:
    """Return where a model is. Raises CheckpointError when it is nowhere."""
    places = _places(label, beside)
    path = next((place for place in places if place.is_dir()), None)
    if path is not None:
        return path
    folder = places[1].parent
    near = did_you_mean(
        Path(label).name, [p.name for p in folder.iterdir()] if folder.is_dir() else []
    )
    adapter = (
        "; MODEL+ADAPTER is not read here: "
        "merge the adapter into its model first (peft: merge_and_unload)"
    )
    raise CheckpointError(
        f"no model directory at {label}, seen from here or from {beside}{near}; models are "
        "directories, and names "
        f"of a hub are not looked up{adapter if '+' in label else ''}"
    )


def _open(label: str, path: Path) -> MergeSource:
    path = checkpoint.readable(path)
    if not (path / CONFIG).is_file():
        adapter = (path / "adapter_config.json").is_file()
        hint = (
            "; it is an adapter: merge it into its model first (peft: merge_and_unload)"
            if adapter
            else ""
        )
        raise CheckpointError(f"{path} holds no model: {CONFIG} is missing{hint}")
    config = _json(path / CONFIG)
    if config.get("auto_map"):
        raise CheckpointError(
            f"{path / CONFIG} asks to run code of its own (auto_map), which is never done here"
        )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{path}: quantised weights cannot be merged; merge the models before quantising them"
        )
    manifest = (
        checkpoint.open(path, verify=False).manifest
        if (path / checkpoint.manifest.MANIFEST).is_file()
        else None
    )
    return MergeSource(
        label=label, path=path, files=ModelFiles(path, label), config=config,
        generation=_json(path / GENERATION) if (path / GENERATION).is_file() else None,
        tokenizer=read_tokenizer(path), manifest=manifest,
    )  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it from a copy") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no KEY: VALUE entries; restore it from a copy")
    return content


def _chosen(
    recipe: Recipe,
    sources: Mapping[str, MergeSource],
    having: Mapping[str, TokenizerFiles],
    donor: str,
    notes: list[str],
) -> str:
    """Return whose tokenizer the result has, or starts from."""
    choice = recipe.tokenizer_source
    if choice not in ("", "base", "union") and choice not in sources:
        known = ["base", "union", *sources]
        raise ConfigError(
            f"tokenizer_source '{choice}' is none of "
            f"{', '.join(known)}{did_you_mean(choice, known)}"
        )
    if not having:
        if choice or recipe.pad_to_multiple_of:
            raise CheckpointError(
                f"tokenizer_source: {choice or 'base'}: no model has a {TOKENIZER}"
            )
        return donor
    chosen = choice if choice in sources else donor
    if chosen not in having:
        if choice:
            raise CheckpointError(
                f"{chosen} has no {TOKENIZER}; copy the tokenizer of the model there"
            )
        chosen = next(iter(having))
        notes.append(f"{donor} has no tokenizer; the result has {chosen}'s")
    return chosen


def _refuse_differing(chosen: str, differing: Mapping[str, str]) -> None:
    if differing:
        label, where = next(iter(differing.items()))
        raise CheckpointError(
            f"the tokenizers of {chosen} and {label} differ at {where}, so their token ids mean "
            "different things; "
            "add `tokenizer_source: union` (all tokens) or `tokenizer_source: base` to the recipe"
        )


def _refuse_heights(sources: Mapping[str, MergeSource], chosen: str) -> None:
    """Refuse embeddings of different heights under one tokenizer.

    Models pad their embeddings; a recipe can say to which multiple.
    """
    heights = {}
    for label, source in sources.items():
        name = heads.embedding_name(source.files)
        if name:
            heights[label] = source.files.forms[name][0][0]
    first = heights.get(chosen)
    for label, height in heights.items():
        if first is not None and height != first:
            raise CheckpointError(
                f"the embeddings have {height} rows in {label} and {first} in {chosen}, for one "
                "tokenizer (padding); add "
                "`tokenizer_source: base` to the recipe, which merges the rows of its tokens"
            )


def _note_usage(having: Mapping[str, TokenizerFiles], chosen: str, notes: list[str]) -> None:
    for label, tokenizer in having.items():
        if parts := usage_difference(having[chosen], tokenizer):
            notes.append(
                f"the {parts} of {label}'s tokenizer is another; the result has {chosen}'s"
            )


def _content(source: MergeSource) -> dict[str, Any]:
    """Return a tokenizer.json in canonical form.

    Raises CheckpointError when the vocabulary is stored in another way.
    """
    assert source.tokenizer is not None
    if source.tokenizer.content is None:
        raise CheckpointError(
            f"tokenizer_source: union needs a {TOKENIZER} of every model, {source.label} has "
            f"{source.tokenizer.file.name}; "
            "load it with transformers' AutoTokenizer and save it, or use tokenizer_source: base"
        )
    return source.tokenizer.canonical


def _transplant(
    recipe: Recipe,
    sources: Mapping[str, MergeSource],
    ids: Mapping[str, int],
    chosen: str,
    notes: list[str],
) -> None:
    heights: dict[str, int] = {}
    names: list[str] = []
    for label, source in sources.items():
        height = inner(source.config).get("vocab_size")
        layers = find_layers(source.files.forms)
        embeddings = (
            vocabulary.embedding_names(source.files, layers, height)
            if isinstance(height, int)
            else []
        )
        if not isinstance(height, int) or not embeddings:
            raise CheckpointError(
                f"{source.path / CONFIG}: no tensor has vocab_size = {height} rows"
            )
        heights[label] = height
        names += [name for name in embeddings if name not in names]
    tokenizers = {
        label: source.tokenizer.ids
        for label, source in sources.items()
        if source.tokenizer is not None
    }
    rows = vocabulary.make_vocabulary(ids, tokenizers, heights, chosen, recipe.pad_to_multiple_of)
    vocabulary.give(rows, recipe.tokens, ids, tokenizers)
    vocabulary.transplant({label: source.files for label, source in sources.items()}, rows, names)
    for label, places in rows.rows.items():
        missing = sum(
            row < 0 and place not in rows.named for place, row in enumerate(places.tolist())
        )
        if missing:
            notes.append(
                f"{missing} of {rows.size} embedding rows are not in {label} and were borrowed for "
                "it"
            )


def inner(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that describes the language model."""
    nested = next((config[key] for key in NESTED if isinstance(config.get(key), dict)), None)
    return config if nested is None or "vocab_size" in config else nested
