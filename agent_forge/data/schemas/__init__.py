"""Tools as JSON schemas, and the questions that they answer: drawn at random, or of the user.

A declaration is {"name", "description", "parameters"}, as a tool describes itself; `listed` writes
it as chat templates take it. `draw` makes declarations whose names, descriptions and types are
random, so that a model has to read them; `wording` asks for a call of any declaration; `values`
draws arguments and how a question writes them; `canonical` says when two of these are the same.
Reads and writes nothing.
"""

from collections.abc import Mapping
from typing import Any

Declaration = Mapping[str, Any]


def listed(declaration: Declaration) -> dict[str, Any]:
    """Return a declaration as chat templates list it."""
    return {
        "type": "function",
        "function": {key: declaration[key] for key in ("name", "description", "parameters")},
    }
