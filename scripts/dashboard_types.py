"""Write the dashboard's types from the OpenAPI description of the service.

Reads the application's own description, writes `openapi.json` (the answers that the dashboard
reads, without prose) and, by openapi-typescript, `src/api/schema.ts`. `--check` writes nothing
and exits with 1 when what is committed is stale.

    python -m scripts.dashboard_types [--check]
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1] / "agent_forge" / "server" / "dashboard"
DESCRIPTION, TYPES = HOME / "openapi.json", HOME / "src" / "api" / "schema.ts"
GENERATOR = HOME / "node_modules" / ".bin" / "openapi-typescript"
PROSE = ("summary", "description", "examples", "example")
# The answers that the dashboard reads.
READ = (
    "CheckpointAnswer", "ExportedFile", "FileAnswer", "JobAnswer", "JobState", "LineageAnswer", "PipelineAnswer",
    "QueueAnswer", "RecordAnswer", "SeriesAnswer", "ServiceAnswer", "ValidateAnswer",
)  # fmt: skip


def described() -> str:
    """Return what the service says of the answers that the dashboard reads, as JSON."""
    from agent_forge.server.serving import ServeSettings, schema

    with tempfile.TemporaryDirectory() as state:
        whole = schema(ServeSettings(state=Path(state), watch=[]))
    return json.dumps(trimmed(whole), indent=1, sort_keys=True) + "\n"


def trimmed(whole: dict[str, Any], names: Sequence[str] = READ) -> dict[str, Any]:
    """Return a description with the named schemas and what these use, and nothing else."""
    schemas = whole["components"]["schemas"]
    used = {*names, *_used([schemas[name] for name in names], schemas)}
    return {
        "openapi": whole["openapi"],
        "info": {"title": whole["info"]["title"], "version": "0"},
        "paths": {},
        "components": {"schemas": _plain({name: schemas[name] for name in used})},
    }


def _used(node: Any, schemas: dict[str, Any]) -> set[str]:
    """Return the names of the schemas that a part refers to, directly or through others."""
    names: set[str] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            name = str(one.get("$ref", "")).rpartition("/")[2]
            if name and name not in names:
                names.add(name)
                waiting.append(schemas[name])
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return names


def _plain(node: Any, is_names: bool = True) -> Any:
    """Return a part without prose. is_names: its keys are names that somebody chose."""
    if isinstance(node, list):
        return [_plain(one, False) for one in node]
    if not isinstance(node, dict):
        return node
    return {
        key: _plain(value, key == "properties")
        for key, value in node.items()
        if is_names or (key not in PROSE and not (key == "title" and isinstance(value, str)))
    }


def generated(description: str) -> str:
    """Return the TypeScript types of a description. Needs the dashboard's node_modules."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "openapi.json", Path(folder) / "schema.ts"
        source.write_text(description, encoding="utf-8")
        subprocess.run(
            [str(GENERATOR), str(source), "-o", str(target)], check=True, cwd=HOME,
            capture_output=True, text=True,
        )  # fmt: skip
        return target.read_text(encoding="utf-8")


def main() -> int:
    """Write both files, or say whether they are stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    is_check = parser.parse_args().check
    description = described()
    types = generated(description)
    files = {DESCRIPTION: description, TYPES: types}
    stale = [
        file for file, text in files.items()
        if not file.exists() or file.read_text(encoding="utf-8") != text
    ]  # fmt: skip
    if not is_check:
        for file in stale:
            file.write_text(files[file], encoding="utf-8")
    for file in stale:
        print(f"{'stale' if is_check else 'written'}: {file.relative_to(HOME)}")
    return int(bool(stale) and is_check)


if __name__ == "__main__":
    sys.exit(main())
