"""What a model would miss in a tool's schema: each line says what to add, and where."""

import json
import re
from collections.abc import Mapping
from typing import Any

from agent_forge.agent.tool import Tool

# OpenAI's API and most chat templates take no other names.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
LONG_CHARACTERS = 4000  # about a thousand tokens, half of a small model's context


def advice(tool: Tool) -> list[str]:
    """Return one line per weakness of a tool's schema; none where a model can read it well."""
    lines = []
    if NAME.fullmatch(tool.name) is None:
        lines.append(
            "the name should be letters, digits, _ and -, at most 64 of them: other names "
            "are refused by OpenAI's API"
        )
    if not tool.description.strip():
        lines.append("add a description: the model chooses a tool by it")
    properties: Mapping[str, Any] = tool.parameters.get("properties", {})
    for name, schema in properties.items():
        if not isinstance(schema, Mapping):
            continue
        if not str(schema.get("description", "")).strip():
            lines.append(f"describe the argument '{name}'")
        if not {"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"} & set(schema):
            lines.append(f"say the type of '{name}': any value is taken now")
    missing = [name for name in tool.parameters.get("required", ()) if name not in properties]
    lines += [f"'{name}' is required, but is not among the properties" for name in missing]
    size = len(json.dumps(tool.schema(), ensure_ascii=False))
    if size > LONG_CHARACTERS:
        lines.append(f"the schema has {size:,} characters, which a small model reads badly")
    return lines
