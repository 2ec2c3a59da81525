"""The Berkeley Function Calling Leaderboard's sets, read from the wheel of bfcl-eval.

Five sets: simple, multiple, parallel, parallel_multiple and irrelevance. An entry is {"id", "kind",
"messages": its tools on the system turn and its question, "expected"}. The package is optional: it
is read where it is installed (`pip install --no-deps bfcl-eval==2026.3.23`), and not imported; the
services of its multi-turn set are run by `evaluate.bfcl_environment`. Its schemas say `dict`,
`float` and `tuple`, which become JSON's types. Source: Apache-2.0, gorilla.cs.berkeley.edu.
"""

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.schemas import listed

SETS = {
    "simple": "BFCL_v4_simple_python", "multiple": "BFCL_v4_multiple",
    "parallel": "BFCL_v4_parallel", "parallel_multiple": "BFCL_v4_parallel_multiple",
    "irrelevance": "BFCL_v4_irrelevance",
}  # fmt: skip
WHOLE = "whole"  # every entry, for models that were trained on none of them
SHARES = (("train", 200), ("validation", 300), ("search", 400), ("test", 1000))
MISSING = (
    "bfcl-eval is not installed; pip install --no-deps bfcl-eval==2026.3.23 (only its data is read)"
)
_TYPES = {
    "dict": "object", "float": "number", "double": "number", "tuple": "array", "long": "integer",
    "list": "array", "int": "integer", "bool": "boolean", "str": "string",
}  # fmt: skip


def installed() -> bool:
    """Return whether the package is there."""
    return _folder() is not None


def entries(split: str = WHOLE) -> list[dict[str, Any]]:
    """Return the entries of a split, or all with "whole". Raises DataError without the package."""
    rows = [row for kind, name in SETS.items() for row in _set(folder(), kind, name)]
    return rows if split == WHOLE else [row for row in rows if split_of_entry(row["id"]) == split]


def split_of_entry(identity: str) -> str:
    """Return the split of an entry by the hash of its id: a fifth is for training."""
    digest = hashlib.sha256(f"bfcl/{identity}".encode()).digest()
    bucket = int.from_bytes(digest[:4], "little") % 1000
    return next(split for split, border in SHARES if bucket < border)


def folder() -> Path:
    """Return the folder of the package's data. Raises DataError without the package."""
    place = _folder()
    if place is None:
        raise DataError(MISSING)
    return place


def _folder() -> Path | None:
    spec = importlib.util.find_spec("bfcl_eval")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "data"


def _set(folder: Path, kind: str, name: str) -> list[dict[str, Any]]:
    answers = {}
    try:
        if kind != "irrelevance":
            answers = {
                row["id"]: row["ground_truth"]
                for row in lines(folder / "possible_answer" / f"{name}.json")
            }
        return [
            {
                "id": row["id"], "kind": kind,
                "messages": [
                    {"role": "system", "content": "", "tools": [tool(f) for f in row["function"]]},
                    *row["question"][0],
                ],
                "expected": [
                    {"name": function, "arguments": arguments}
                    for one in answers.get(row["id"], [])
                    for function, arguments in one.items()
                ],
            }
            for row in lines(folder / f"{name}.json")
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"{folder}: {name} cannot be read ({type(error).__name__}: {error}); "
            "pip install --force-reinstall --no-deps bfcl-eval==2026.3.23"
        ) from None


def lines(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of the package."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def tool(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function of the package as a system turn lists it."""
    return listed({**function, "parameters": json_schema(function["parameters"])})


def json_schema(schema: Any) -> Any:
    """Return a schema with JSON's names of types, at any depth."""
    if isinstance(schema, Mapping):
        changed = {key: json_schema(value) for key, value in schema.items()}
        declared = changed.get("type")
        if isinstance(declared, str):
            changed["type"] = _TYPES.get(declared, declared)
            if declared == "any":
                del changed["type"]
        return changed
    return [json_schema(one) for one in schema] if isinstance(schema, list) else schema
