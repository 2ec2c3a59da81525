"""Merge models as a recipe says: read its YAML, check everything, stream the weights, write them.

Reads Forge checkpoints and plain Hugging Face directories; writes a checkpoint of phase "merge"
with the recipe and a model card. Nothing is written before names, shapes, parameters, configs and
tokenizers have been found to fit. Needs neither torch nor transformers, whose imports would take
longer than most merges.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, atomic
from agent_forge.core.errors import ConfigError, StorageError
from agent_forge.merge import heads, make_plan, read_recipe, special_tokens, stream
from agent_forge.merge.arrays import float_dtype
from agent_forge.merge.card import merge_card
from agent_forge.merge.document import read_document, text_of
from agent_forge.merge.layers import NESTED, stack_config
from agent_forge.merge.prepared import CONFIG, GENERATION, MergeJob, MergeSource
from agent_forge.merge.settle import (
    compare_configs,
    inner,
    locate,
    open_sources,
    settle_heads,
    settle_vocabulary,
)
from agent_forge.merge.tokenizer_files import TOKENIZER

RECIPE, TEMPLATE = "merge_recipe.yml", "chat_template.jinja"
# What a tokenizer may consist of, as file name patterns.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model*", "spiece.model",
    "sentencepiece*.model", "*.tiktoken", "tekken.json", TEMPLATE,
    "additional_chat_templates/*.jinja",
)  # fmt: skip
# Files that repeat the vocabulary: they would be wrong beside a united vocabulary.
KEPT_AFTER_UNION = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    TEMPLATE,
    "additional_chat_templates/*.jinja",
)


def prepare(path: Path, *, seed: int = 0, threads: int = 0, shard_bytes: int = 0) -> MergeJob:
    """Return the checked merge of a recipe file; reads headers and JSON only.

    Raises ConfigError for a recipe that does not fit, CheckpointError for models that do not.
    """
    recipe, paths = locate(read_recipe(path), path.parent)
    donor = recipe.base or recipe.labels()[0]
    notes = [f"config.json and all that is not merged come from {donor}"]
    sources = open_sources(paths, notes)
    share_head = settle_heads(sources, notes)
    notes += compare_configs(sources, donor)
    tokens = settle_vocabulary(recipe, sources, donor, notes)
    files = {label: source.files for label, source in sources.items()}
    plan = make_plan(recipe, files)
    notes += plan.notes
    dtype = recipe.out_dtype or recipe.dtype
    settings = stream.StreamSettings(
        dtype=float_dtype(dtype, "dtype") if dtype else None,
        wide=bool(recipe.dtype) and float_dtype(recipe.dtype, "dtype").name == "float64",
        shard_bytes=shard_bytes, seed=seed, threads=threads or stream.threads_here(),
    )  # fmt: skip
    job = MergeJob(
        recipe=recipe, text=text_of(path.read_bytes()), sources=sources, donor=donor,
        plan=plan, layout=stream.lay_out(plan, files, settings), settings=settings, tokens=tokens,
        notes=notes,
    )  # fmt: skip
    _template(job)
    _settle_settings(job, share_head)
    return job


def estimate_seconds(job: MergeJob, sample_bytes: int = 1 << 24) -> float:
    """Return about how many seconds the merge takes.

    A small part of it is timed and scaled to the whole; the disk's time is added.
    """
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


def run(
    job: MergeJob, out: Path, progress: Callable[[int], None] = lambda _done: None
) -> Checkpoint:
    """Write the merge as checkpoint `out` and return it.

    Raises StorageError when `out` exists or there is no room, CheckpointError when a source is
    damaged or not finite; nothing is left at `out` then.
    """
    if out.exists():
        raise StorageError(f"{out} already exists; name another directory or remove it")
    free = shutil.disk_usage(
        next(place for place in (out, *out.absolute().parents) if place.exists())
    ).free
    if free < job.layout.size_bytes:
        raise StorageError(
            f"the merge needs {job.layout.size_bytes:,} bytes at {out}, {free:,} are free"
        )
    files = {label: source.files for label, source in job.sources.items()}
    parents: list[dict[str, str]] = []
    # Sources are hashed while the weights are merged; one that does not fit its manifest stops the
    # merge.
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        hashes = {label: pool.submit(_verified_id, source) for label, source in job.sources.items()}

        def save(directory: Path) -> None:
            stream.write(job.plan, files, job.layout, directory, job.settings, progress)
            parents.extend(_parents(job, hashes))
            _write_rest(job, directory, parents)

        return checkpoint.write(
            out, save, phase="merge", seed=job.settings.seed,
            config={"recipe": read_document(job.text)}, parents=parents, name=out.name,
            extra={"donor": job.donor, "notes": job.notes}, hashes=job.settings.hashes,
            agent=_agent(job),
        )  # fmt: skip


def _settle_settings(job: MergeJob, share_head: bool | None) -> None:
    """Set the result's config.json and generation_config.json, with its tokenizer's token ids."""
    job.config = _config(job, share_head)
    donor = job.sources[job.donor]
    job.generation = None if donor.generation is None else json.loads(json.dumps(donor.generation))
    documents = [job.config, *([] if job.generation is None else [job.generation])]
    tokens = job.tokens
    moved = tokens.ids is not None
    parents = {label: source.parent(with_ids=moved) for label, source in job.sources.items()}
    if tokens.ids is None:
        job.notes += special_tokens.unite_stops(parents, documents, job.donor)
    else:
        job.notes += special_tokens.follow(parents, documents, job.donor, tokens.chosen, tokens.ids)


def _config(job: MergeJob, share_head: bool | None) -> dict[str, Any]:
    """Return the result's config.json.

    Raises ConfigError when its layers cannot be rearranged as the slices say.
    """
    donor = job.sources[job.donor]
    config: dict[str, Any] = json.loads(json.dumps(donor.config))
    if job.plan.path is not None:
        config = stack_config(
            config, [(job.sources[label].config, layer) for label, layer in job.plan.path]
        )
    if job.settings.dtype is not None:
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = job.settings.dtype.name
    embedding = next(
        (o for o in job.layout.outputs if o.plan.target.endswith("embed_tokens.weight")), None
    )
    sizes = {o.shape[0] for o in job.layout.outputs if o.shape and _is_embedding(o, donor)} or (
        {embedding.shape[0]} if embedding else set()
    )
    if len(sizes) == 1:
        inner(config)["vocab_size"] = sizes.pop()
    if share_head is not None:
        for part in (
            config,
            *(config[key] for key in NESTED if heads.TIE in (config.get(key) or {})),
        ):
            part[heads.TIE] = share_head
    return config


def _is_embedding(output: stream.Output, donor: MergeSource) -> bool:
    form = donor.files.forms.get(output.plan.target)
    return (
        form is not None
        and bool(form[0])
        and form[0][0] == output.shape[0]
        and "embed" in output.plan.target
    )


def _verified_id(source: MergeSource) -> str:
    """Return the content id of a source.

    Raises CheckpointError when a file does not fit the source's manifest.
    """
    if source.manifest is not None:
        return checkpoint.open(source.path).id
    files = {
        path.name: {"sha256": atomic.sha256_file(path)}
        for path in [*source.files.files, source.path / CONFIG, source.path / TOKENIZER]
        if path.is_file()
    }
    return checkpoint.manifest.content_id(files)


def _parents(job: MergeJob, hashes: Mapping[str, Future[str]]) -> list[dict[str, str]]:
    parents = []
    for label, source in job.sources.items():
        manifest = source.manifest
        parents.append(
            {
                "path": str(source.path), "id": hashes[label].result(),
                "phase": manifest.phase if manifest else "",
                "name": (manifest.name if manifest else "") or source.path.name,
            }
        )  # fmt: skip
    return parents


def _agent(job: MergeJob) -> dict[str, Any]:
    manifest = job.sources[job.donor].manifest
    return dict(manifest.agent) if manifest else {}


def _write_rest(job: MergeJob, directory: Path, parents: list[dict[str, str]]) -> None:
    """Write config, tokenizer, recipe and model card beside the weights."""
    _write_json(directory / CONFIG, job.config)
    if job.generation is not None:
        _write_json(directory / GENERATION, job.generation)
    source, united = job.sources[job.tokens.chosen].path, job.tokens.united
    for pattern in TOKENIZER_FILES if united is None else KEPT_AFTER_UNION:
        for file in source.glob(pattern):
            target = directory / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)
    if united is not None:
        _write_json(directory / TOKENIZER, united)
    template = _template(job)
    if template:
        (directory / TEMPLATE).write_text(template, encoding="utf-8")
    (directory / RECIPE).write_text(job.text, encoding="utf-8")
    (directory / "README.md").write_text(merge_card(job, parents), encoding="utf-8")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _template(job: MergeJob) -> str:
    """Return the chat template to write, "" to leave the template in the tokenizer's files."""
    template = job.recipe.chat_template
    if template in ("", "auto"):
        texts = [_own_template(source.path) for source in job.sources.values()]
        counts = Counter(text for text in texts if text)
        return counts.most_common(1)[0][0] if template and counts else ""
    if "{" not in template:
        raise ConfigError(f"chat_template must be auto or a Jinja template, got '{template}'")
    return template


def _own_template(path: Path) -> str:
    if (path / TEMPLATE).is_file():
        return (path / TEMPLATE).read_text(encoding="utf-8")
    settings = path / "tokenizer_config.json"
    template = (
        json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
        if settings.is_file()
        else ""
    )
    return template if isinstance(template, str) else ""
