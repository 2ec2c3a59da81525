"""Merge models once, as a recipe says: read mergekit's YAML, check everything, stream the weights, write a checkpoint.

Reads Forge checkpoints and plain Hugging Face directories; writes a checkpoint of phase "merge" with the recipe and a
model card. Nothing is written before names, shapes, parameters, configs and tokenizers have been found to fit. Needs
neither torch nor transformers, whose imports would take longer than most merges.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.core.errors import CheckpointError, ConfigError, StorageError, did_you_mean
from agent_forge.merge import Plan, Recipe, find_layers, make_plan, read_recipe, stream
from agent_forge.merge import vocabulary as vocabularies
from agent_forge.merge.arrays import float_dtype
from agent_forge.merge.files import ModelFiles
from agent_forge.merge.layers import NESTED, Layers, stack_config
from agent_forge.pipeline import model_card

CONFIG, RECIPE = "config.json", "merge_recipe.yml"
HEAD = "lm_head.weight"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
)  # fmt: skip
# Files that spell out the vocabulary a second time: a united vocabulary makes them stale.
STALE_AFTER_UNION = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "added_tokens.json")
TEMPLATE = "chat_template.jinja"
# Where a config came from and how it was used, not what the model computes.
NOT_COMPARED = (
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "initializer_range", "architectures",
    "attention_dropout", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Source:
    """One model of the recipe: where it is, its opened files, config.json, tokenizer.json and (if it has one) id."""

    label: str
    path: Path
    files: ModelFiles
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None
    manifest: checkpoint.directory.Manifest | None


@dataclass(slots=True, kw_only=True)
class Job:
    """A checked merge, ready to run. donor: whose config and other files the result has. notes: what the user must know."""

    recipe: Recipe
    text: str
    sources: dict[str, Source]
    donor: str
    plan: Plan
    layout: stream.Layout
    settings: stream.Settings
    config: dict[str, Any]
    tokenizer: dict[str, Any] | None  # the united one; None where the files of `tokenizer_from` are copied
    tokenizer_from: str
    notes: list[str] = field(default_factory=list)

    @property
    def read_bytes(self) -> int:
        """Return the bytes of all weights that are read."""
        return sum(path.stat().st_size for source in self.sources.values() for path in source.files.files)

    def close(self) -> None:
        """Close the sources' files."""
        for source in self.sources.values():
            source.files.close()


def prepare(path: Path, *, seed: int = 0, threads: int = 0, shard_bytes: int = 0) -> Job:
    """Return the checked merge of a recipe file; reads headers and JSON only.

    Raises ConfigError for a recipe that does not fit, CheckpointError for models that do not.
    """
    recipe = read_recipe(path)
    sources = {label: _open(label, path.parent) for label in recipe.labels()}
    donor = recipe.base or recipe.labels()[0]
    notes = [f"config.json and all that is not merged come from {donor}"]
    files = {label: source.files for label, source in sources.items()}
    layers = find_layers(sources[donor].files.forms)
    untied = _settle_ties(sources, notes)
    notes += _compare_configs(sources, donor)
    united, tokenizer_from = _settle_vocabulary(recipe, sources, donor, layers, notes)
    plan = make_plan(recipe, files)
    dtype = recipe.out_dtype or recipe.dtype
    settings = stream.Settings(
        dtype=float_dtype(dtype, "dtype") if dtype else None,
        wide=bool(recipe.dtype) and float_dtype(recipe.dtype, "dtype").name == "float64",
        shard_bytes=shard_bytes, seed=seed, threads=threads or stream.threads_here(),
    )  # fmt: skip
    job = Job(
        recipe=recipe, text=path.read_text(encoding="utf-8"), sources=sources, donor=donor, plan=plan,
        layout=stream.lay_out(plan, files, settings), settings=settings, config={}, tokenizer=united,
        tokenizer_from=tokenizer_from, notes=notes,
    )  # fmt: skip
    job.config = _config(job, untied)
    return job


def estimate_seconds(job: Job, sample_bytes: int = 1 << 24) -> float:
    """Return about how long the merge takes: the time of a small part of it, scaled to the whole, plus the disk's."""
    outputs = sorted(job.layout.outputs, key=lambda output: output.size_bytes)
    sample, size = [], 0
    for output in reversed(outputs[: len(outputs) // 2 + 1]):
        if size < sample_bytes:
            sample.append(output)
            size += output.size_bytes
    files = {label: source.files for label, source in job.sources.items()}
    began = time.perf_counter()
    with ThreadPoolExecutor(job.settings.threads) as pool:
        for _ in stream.blocks(job.plan, files, sample, job.settings, pool):
            pass
    return (time.perf_counter() - began) * job.layout.size_bytes / max(size, 1)


def run(job: Job, out: Path, progress: Callable[[int], None] = lambda _done: None) -> Checkpoint:
    """Write the merge as checkpoint `out` and return it.

    Raises StorageError when `out` exists or there is no room, CheckpointError when a source is damaged or not finite;
    nothing is left at `out` then.
    """
    if out.exists():
        raise StorageError(f"{out} already exists; name another directory or remove it")
    free = shutil.disk_usage(next(place for place in (out, *out.absolute().parents) if place.exists())).free
    if free < job.layout.size_bytes:
        raise StorageError(f"the merge needs {job.layout.size_bytes:,} bytes at {out}, {free:,} are free")
    files = {label: source.files for label, source in job.sources.items()}
    parents: list[dict[str, str]] = []
    # Sources are hashed while the weights are merged; a source that does not fit its manifest stops the merge.
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        hashes = {label: pool.submit(_verified_id, source) for label, source in job.sources.items()}

        def save(directory: Path) -> None:
            stream.write(job.plan, files, job.layout, directory, job.settings, progress)
            parents.extend(_parents(job, hashes))
            _write_rest(job, directory, parents)

        return checkpoint.write(
            out, save, phase="merge", seed=job.settings.seed, config={"recipe": yaml.safe_load(job.text)},
            parents=parents, name=out.name, extra={"donor": job.donor, "notes": job.notes},
            hashes=job.settings.hashes, agent=_agent(job),
        )  # fmt: skip


def _open(label: str, beside: Path) -> Source:
    """Open one model. A relative path counts from here, or else from the recipe's directory."""
    path = next((place for place in (Path(label), beside / label) if place.is_dir()), None)
    if path is None:
        folder = (beside / label).parent
        near = did_you_mean(Path(label).name, [p.name for p in folder.iterdir()] if folder.is_dir() else [])
        raise CheckpointError(
            f"no model directory at {label}, seen from here or from {beside}{near}; models are directories, and names "
            "of a hub are not looked up"
        )
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path} holds no model: {CONFIG} is missing")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path / CONFIG} is not JSON ({error}); restore it from a copy") from None
    if "auto_map" in config:
        raise CheckpointError(f"{path / CONFIG} asks to run code of its own (auto_map), which is never done here")
    if config.get("quantization_config"):
        raise CheckpointError(f"{path}: quantised weights cannot be merged; merge the models before quantising them")
    manifest = (
        checkpoint.open(path, verify=False).manifest if (path / checkpoint.directory.MANIFEST).is_file() else None
    )
    return Source(
        label=label, path=path, files=ModelFiles(path, label), config=config,
        tokenizer=vocabularies.read_tokenizer(path), manifest=manifest,
    )  # fmt: skip


def _settle_ties(sources: Mapping[str, Source], notes: list[str]) -> bool:
    """Where some models have an output head of their own and others share the embedding's, give the latter a copy.

    Return whether the result has a head of its own against the config of one of them.
    """
    with_head = [label for label, source in sources.items() if HEAD in source.files.forms]
    untied = False
    for label, source in sources.items():
        embedding = next((name for name in source.files.forms if name.endswith("embed_tokens.weight")), "")
        if with_head and label not in with_head and embedding and _ties(source.config):
            source.files.put(HEAD, source.files.stored(embedding))
            untied = True
            notes.append(f"{label} ties its head to its embedding, {with_head[0]} does not: the result has both apart")
    return untied or (bool(with_head) and any(_ties(sources[label].config) for label in with_head))


def _ties(config: Mapping[str, Any]) -> bool:
    inner: Mapping[str, Any] = next((config[key] for key in NESTED if isinstance(config.get(key), dict)), {})
    return bool(config.get("tie_word_embeddings", inner.get("tie_word_embeddings", False)))


def _compare_configs(sources: Mapping[str, Source], donor: str) -> list[str]:
    """Return a note for each setting in which a model differs from the donor. Raises CheckpointError on another type."""
    ours, notes = sources[donor].config, []
    for label, source in sources.items():
        if source.config.get("model_type") != ours.get("model_type"):
            raise CheckpointError(
                f"{label} is a {source.config.get('model_type')} model, {donor} a {ours.get('model_type')} one; "
                "only models of one architecture merge"
            )
        for name in sorted(set(ours) | set(source.config)):
            mine, theirs = ours.get(name), source.config.get(name)
            if name not in NOT_COMPARED and mine != theirs and not (name.startswith("num_") and "layers" in name):
                notes.append(f"{name} is {theirs!r} in {label} and {mine!r} in {donor}; the result has {donor}'s")
    return notes


def _settle_vocabulary(
    recipe: Recipe, sources: Mapping[str, Source], donor: str, layers: Layers | None, notes: list[str]
) -> tuple[dict[str, Any] | None, str]:
    """Bring all models onto one vocabulary. Return the united tokenizer (None: an existing one) and whose files to copy.

    Raises CheckpointError when tokenizers differ and the recipe does not say what to do.
    """
    having = {label: source.tokenizer for label, source in sources.items() if source.tokenizer is not None}
    wanted = recipe.tokenizer_source
    if wanted not in ("", "base", "union") and wanted not in sources:
        known = ["base", "union", *sources]
        raise ConfigError(f"tokenizer_source '{wanted}' is none of {', '.join(known)}{did_you_mean(wanted, known)}")
    chosen = wanted if wanted in sources else donor
    if not having:
        if wanted or recipe.pad_to_multiple_of:
            raise CheckpointError(f"tokenizer_source: {wanted or 'base'}: no model has a {vocabularies.TOKENIZER}")
        return None, donor
    if chosen not in having:
        if wanted:
            raise CheckpointError(f"{chosen} has no {vocabularies.TOKENIZER}; copy the tokenizer of the model there")
        chosen = next(iter(having))
        notes.append(f"{donor} has no tokenizer; the result has that of {chosen}")
    differing = _differing(having, chosen)
    if not wanted and not recipe.pad_to_multiple_of:
        if differing:
            label, where = next(iter(differing.items()))
            raise CheckpointError(
                f"the tokenizers of {chosen} and {label} differ at {where}, so their token ids mean different things; "
                "add `tokenizer_source: union` (all tokens) or `tokenizer_source: base` to the recipe"
            )
        return None, chosen
    lacking = [label for label in sources if label not in having]
    if lacking:
        raise CheckpointError(
            f"{lacking[0]} has no {vocabularies.TOKENIZER}; tokenizer_source needs one of every model"
        )
    united = None
    if wanted == "union" and differing:
        united = vocabularies.union([having[chosen], *(having[label] for label in differing)])
    _transplant(recipe, sources, having, united or having[chosen], chosen, layers, notes)
    return united, chosen


def _differing(tokenizers: Mapping[str, dict[str, Any]], chosen: str) -> dict[str, str]:
    """Return label -> place of the first difference, for tokenizers that differ from the chosen one."""
    found = {label: vocabularies.difference(tokenizers[chosen], other) for label, other in tokenizers.items()}
    return {label: where for label, where in found.items() if where}


def _transplant(
    recipe: Recipe,
    sources: Mapping[str, Source],
    tokenizers: Mapping[str, dict[str, Any]],
    target: dict[str, Any],
    chosen: str,
    layers: Layers | None,
    notes: list[str],
) -> None:
    heights: dict[str, int] = {}
    names: list[str] = []
    for label, source in sources.items():
        height = _inner(source.config).get("vocab_size")
        found = vocabularies.embedding_names(source.files, layers, height) if isinstance(height, int) else []
        if not found:
            raise CheckpointError(f"{source.path / CONFIG}: no tensor has vocab_size = {height} rows")
        heights[label] = height  # type: ignore[assignment]
        names += [name for name in found if name not in names]
    vocabulary = vocabularies.make_vocabulary(target, tokenizers, heights, chosen, recipe.pad_to_multiple_of)
    vocabularies.give(vocabulary, recipe.tokens, target, tokenizers)
    vocabularies.transplant({label: source.files for label, source in sources.items()}, vocabulary, names)
    for label, rows in vocabulary.rows.items():
        missing = sum(row < 0 and place not in vocabulary.given for place, row in enumerate(rows.tolist()))
        if missing:
            notes.append(f"{missing} of {vocabulary.size} embedding rows are not in {label} and were borrowed for it")


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that describes the language model."""
    nested = next((config[key] for key in NESTED if isinstance(config.get(key), dict)), None)
    return config if nested is None or "vocab_size" in config else nested


def _config(job: Job, untied: bool) -> dict[str, Any]:
    """Return the result's config.json. Raises ConfigError when its layers cannot be rearranged as the slices say."""
    donor = job.sources[job.donor]
    config = json.loads(json.dumps(donor.config))
    if job.plan.path is not None:
        config = stack_config(config, [(job.sources[label].config, layer) for label, layer in job.plan.path])
    if job.settings.dtype is not None:
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = job.settings.dtype.name
    embedding = next((o for o in job.layout.outputs if o.plan.target.endswith("embed_tokens.weight")), None)
    inner = _inner(config)
    sizes = {o.shape[0] for o in job.layout.outputs if o.shape and _is_embedding(o, donor)} or (
        {embedding.shape[0]} if embedding else set()
    )
    if len(sizes) == 1:
        inner["vocab_size"] = sizes.pop()
    if untied:
        config["tie_word_embeddings"] = False
    return config


def _is_embedding(output: stream.Output, donor: Source) -> bool:
    form = donor.files.forms.get(output.plan.target)
    return form is not None and bool(form[0]) and form[0][0] == output.shape[0] and "embed" in output.plan.target


def _verified_id(source: Source) -> str:
    """Return the content id of a source. Raises CheckpointError when a file does not fit the source's manifest."""
    if source.manifest is not None:
        return checkpoint.open(source.path).id
    files = {
        path.name: {"sha256": atomic.sha256_file(path)}
        for path in [*source.files.files, source.path / CONFIG, source.path / vocabularies.TOKENIZER] if path.is_file()
    }  # fmt: skip
    return checkpoint.directory.content_id(files)


def _parents(job: Job, hashes: Mapping[str, Future[str]]) -> list[dict[str, str]]:
    found = []
    for label, source in job.sources.items():
        manifest = source.manifest
        found.append(
            {
                "path": str(source.path), "id": hashes[label].result(), "phase": manifest.phase if manifest else "",
                "name": (manifest.name if manifest else "") or source.path.name,
            }
        )  # fmt: skip
    return found


def _agent(job: Job) -> dict[str, Any]:
    manifest = job.sources[job.donor].manifest
    return dict(manifest.agent) if manifest else {}


def _write_rest(job: Job, directory: Path, parents: list[dict[str, str]]) -> None:
    """Write config, tokenizer, recipe and model card beside the weights."""
    (directory / CONFIG).write_text(json.dumps(job.config, indent=2) + "\n", encoding="utf-8")
    donor, tokens = job.sources[job.donor].path, job.sources[job.tokenizer_from].path
    if (donor / "generation_config.json").is_file():
        shutil.copyfile(donor / "generation_config.json", directory / "generation_config.json")
    for name in TOKENIZER_FILES:
        if (tokens / name).is_file() and not (job.tokenizer is not None and name in STALE_AFTER_UNION):
            shutil.copyfile(tokens / name, directory / name)
    if job.tokenizer is not None:
        (directory / vocabularies.TOKENIZER).write_text(
            json.dumps(job.tokenizer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    template = _template(job)
    if template:
        (directory / TEMPLATE).write_text(template, encoding="utf-8")
    (directory / RECIPE).write_text(job.text, encoding="utf-8")
    (directory / "README.md").write_text(model_card.merge_card(job, parents), encoding="utf-8")


def _template(job: Job) -> str:
    """Return the chat template to write, "" for that of the tokenizer's files."""
    wanted = job.recipe.chat_template
    if wanted in ("", "auto"):
        texts = [_own_template(source.path) for source in job.sources.values()]
        found = Counter(text for text in texts if text)
        return found.most_common(1)[0][0] if wanted and found else ""
    if "{" not in wanted:
        raise ConfigError(f"chat_template must be auto or a Jinja template, got '{wanted}'")
    return wanted


def _own_template(path: Path) -> str:
    if (path / TEMPLATE).is_file():
        return (path / TEMPLATE).read_text(encoding="utf-8")
    settings = path / "tokenizer_config.json"
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template") if settings.is_file() else ""
    return template if isinstance(template, str) else ""
