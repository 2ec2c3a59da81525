"""Create models: import one, merge several, export one, or run a phase; all are jobs.

The answer comes at once with an id that is reserved for the result: `new-` and the job's id. Routes
of checkpoints take it like the id of a checkpoint, and know the model once the job has made it. A
recipe names checkpoints by id where a file would name directories.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.server.answers import CreateAnswer
from agent_forge.server.catalogue import phases
from agent_forge.server.client_settings import RUN_ALL
from agent_forge.server.commands import EXPORT, IMPORT, MERGE
from agent_forge.server.jobs import Job
from agent_forge.server.service import RESERVED, Service

TYPES = (IMPORT, MERGE, EXPORT)
FORMATS = ("gguf", "ollama", "hf", "packed")
RECIPE_KEYS = (
    "merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype",
    "tokenizer_source",
)  # fmt: skip
TOKENIZERS = ("union", "base")
TYPE_NAME = re.compile(r"[A-Z0-9_]{0,20}", re.ASCII)


def create(
    service: Service, kind: str, params: Mapping[str, Any], once: str | None = None
) -> CreateAnswer:
    """Queue what makes a model, and return the id that is reserved for it.

    Raises ConfigError for an unknown type or parameter, CheckpointError for an unknown source.
    """
    name = kind.replace("_", "-") if kind.replace("_", "-") == RUN_ALL else kind
    if name in TYPES:
        arguments, sources = _MAKERS[name](service, dict(params))
        job = service.supervisor.submit(
            name, sources=sources, hidden_overrides=arguments, idempotency_key=once
        )
    elif name in phases() or name == RUN_ALL:
        job = service.start_job(name, dict(params), once=once)
    else:
        known = (*TYPES, *phases(), RUN_ALL)
        raise ConfigError(
            f"no type '{kind[:100]}'{did_you_mean(kind, known)}; known: {', '.join(known)}"
        )
    return CreateAnswer(model_id=f"{RESERVED}{job.id}", metadata=_metadata(job))


def _metadata(job: Job) -> dict[str, Any]:
    return {"status": "creating", "task_id": job.id, "type": job.command}


def _import(service: Service, params: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the arguments of `forge import`. params: source, a name that the operator gave."""
    source = _text(params, "source")
    _no_more(params)
    if source not in service.imports:
        hint = did_you_mean(source, service.imports)
        known = ", ".join(service.imports) or "none; see `forge serve --import NAME=PATH`"
        raise ConfigError(f"no model '{source}' to import{hint}; known: {known}")
    return [service.imports[source]], []


def _export(service: Service, params: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the arguments of `forge export`. params: model_id, format, type."""
    model = service.checkpoint_id(_text(params, "model_id"))
    form, kind = _text(params, "format", "gguf"), _text(params, "type", "")
    _no_more(params)
    if form not in FORMATS:
        hint = did_you_mean(form, FORMATS)
        raise ConfigError(f"no format '{form}'{hint}; known: {', '.join(FORMATS)}")
    if not TYPE_NAME.fullmatch(kind):
        raise ConfigError(f"params.type must be the name of a type such as Q8_0, got '{kind[:50]}'")
    path = service.registry.path_of(model)
    return [str(path), "--format", form, *(["--type", kind] if kind else [])], [model]


def _merge(service: Service, params: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the arguments of `forge merge`. params: recipe (mergekit's form, with ids), seed."""
    recipe, seed = params.pop("recipe", None), params.pop("seed", 0)
    _no_more(params)
    if not isinstance(recipe, dict):
        raise ConfigError("params.recipe is the recipe of a merge: {merge_method, models, ...}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ConfigError("params.seed must be a whole number, 0 or more")
    for key in recipe:
        if key not in RECIPE_KEYS:
            hint = did_you_mean(key, RECIPE_KEYS)
            raise ConfigError(f"params.recipe: unknown key '{key[:100]}'{hint}")
    ids: list[str] = []
    content = _with_paths(service, recipe, "", ids)
    if not ids:
        raise ConfigError("params.recipe names no model; give the ids of checkpoints")
    # The recipe travels with the job's hidden arguments; the launcher's command reads it there.
    folder = service.state / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(content, sort_keys=True)
    from hashlib import sha256

    from agent_forge.checkpoint import atomic

    file = folder / f"{sha256(text.encode()).hexdigest()[:16]}.yaml"
    if not file.exists():
        atomic.write_bytes(file, text.encode())
    return [str(file), "--seed", str(seed)], list(dict.fromkeys(ids))


def _with_paths(service: Service, value: Any, key: str, ids: list[str]) -> Any:
    """Return a recipe with directories in the place of ids; collects the ids."""
    if isinstance(value, Mapping):
        return {str(name): _with_paths(service, one, str(name), ids) for name, one in value.items()}
    if isinstance(value, list):
        return [_with_paths(service, one, key, ids) for one in value]
    names_model = key in ("model", "base_model") or (
        key in ("tokenizer_source",) and value not in TOKENIZERS
    )
    if names_model or (key == "models" and isinstance(value, str)):
        if not isinstance(value, str):
            raise ConfigError(f"params.recipe: {key} is the id of a checkpoint")
        ids.append(service.checkpoint_id(value))
        return str(service.registry.path_of(ids[-1]))
    return value


def _text(params: dict[str, Any], key: str, default: str | None = None) -> str:
    value = params.pop(key, default)
    if not isinstance(value, str) or (default is None and not value):
        raise ConfigError(f"params.{key} must be text")
    return value


def _no_more(params: Mapping[str, Any]) -> None:
    if params:
        raise ConfigError(f"params: unknown field '{next(iter(params))[:100]}'")


_MAKERS = {IMPORT: _import, MERGE: _merge, EXPORT: _export}


def exported_files(job: Job) -> dict[str, Path]:
    """Return name -> file of what an export has written; nothing else of the disk."""
    from agent_forge.server.routes.checkpoints import whole_file

    folder = Path(job.out).parent
    if job.command != EXPORT or not folder.is_dir():
        return {}
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {name: whole_file(folder, name) for name in names if not name.startswith(".")}
    return {name: file for name, file in files.items() if file is not None}
