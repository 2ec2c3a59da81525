"""The state of a training stage on disk: safetensors and JSON, written whole, the newest two kept.

`resume_dir/step-00000120/` holds tensors.safetensors and state.json (with the hashes of both);
`resume_dir/final/` is the result of a finished stage. A damaged state is passed over for the older
one; with none left the stage restarts.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import CheckpointError, ConfigError
from agent_forge.core.events import EventLog
from agent_forge.learn.distribution import laid_out_like

FORMAT = 1
FINAL = "final"
KEEP = 2
TENSORS = "tensors.safetensors"
RECORD = "state.json"


def write(
    directory: Path, name: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write one state as `directory/name`, read it back, and only then remove the states that it
    replaces.

    Raises CheckpointError when what is on the disk is not what was written; older states are kept
    then.
    """
    content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    hashes = {"sha256": hashlib.sha256(content).hexdigest(), "record_sha256": _record_hash(record)}
    document = {"format": FORMAT, **hashes, **record}

    def fill(temporary: Path) -> None:
        (temporary / TENSORS).write_bytes(content)
        (temporary / RECORD).write_text(json.dumps(document), encoding="utf-8")

    atomic.write_directory(directory / name, fill)
    with (directory / name / TENSORS).open("rb") as written:
        if hashlib.file_digest(written, "sha256").hexdigest() != document["sha256"]:
            raise CheckpointError(
                f"{directory / name}: the disk does not hold what was written; check the disk"
            )
    staying = (
        [name]
        if name == FINAL
        else [name, *(other for other in _names(directory) if other != name)][:KEEP]
    )
    for path in directory.iterdir():
        if path.name not in staying:
            shutil.rmtree(path, ignore_errors=True)


def newest(
    directory: Path, stage: str, events: EventLog
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return (tensors, record) of the newest undamaged state, or None.

    A warning names each damaged one.
    """
    for name in _names(directory):
        try:
            content = (directory / name / TENSORS).read_bytes()
            record = json.loads((directory / name / RECORD).read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
            if record["sha256"] != hashlib.sha256(content).hexdigest():
                raise ValueError(f"{TENSORS} does not have its recorded hash")
            if record["record_sha256"] != _record_hash(record):
                raise ValueError(f"{RECORD} does not have its recorded hash")
        except (OSError, ValueError, KeyError, TypeError) as error:
            events.warning(
                f"{stage}: passed over a damaged training state {directory / name} ({error})",
                stage=stage,
            )
            continue
        return load(content), record
    return None


def _record_hash(record: Mapping[str, Any]) -> str:
    """Return a hash of a record, without its format and hashes.

    The record is hashed as it looks after a round trip through JSON.
    """
    own = {
        key: value
        for key, value in record.items()
        if key not in ("format", "sha256", "record_sha256")
    }
    return hashlib.sha256(
        json.dumps(json.loads(json.dumps(own)), sort_keys=True).encode()
    ).hexdigest()


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return one line per setting that differs between the start of a stage and now."""
    differing = [key for key in sorted({*then, *now}) if then.get(key) != now.get(key)]
    return [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in differing]


def refuse(stage: str, directory: Path, changed: Sequence[str]) -> None:
    """Raise ConfigError naming the changes that make a resumed stage another one."""
    raise ConfigError(
        f"{stage}: cannot resume with other settings: {', '.join(changed[:5])}; set the old values again, remove "
        f"{directory} to restart, or take the changes with runtime.resume_anyway=true"
    )


def copy_into(target: Tensor, value: Tensor) -> None:
    """Overwrite a parameter or buffer in place."""
    with torch.no_grad():
        target.copy_(laid_out_like(value.to(target.device), target))


def _names(directory: Path) -> list[str]:
    """Return the states in `directory`: the final one, then the steps from newest to oldest."""
    if not directory.is_dir():
        return []
    steps = sorted((path.name for path in directory.glob("step-*")), reverse=True)
    return ([FINAL] if (directory / FINAL).exists() else []) + steps
