"""Names of text and rows that clients may train on: the operator gives them paths, clients do not.

The texts that come with installed packages are known by their own names; `forge serve --data
NAME=PATH` adds files, folders and hub names.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ConfigError, did_you_mean

NAME = re.compile(r"[A-Za-z][\w.-]{0,63}", re.ASCII)


class DataSources:
    """The sources of one server. own: name -> path, or hf:NAME."""

    def __init__(self, own: Mapping[str, str] | None = None) -> None:
        from agent_forge.data.packaged import PACKAGES

        self._specs = {name: name for name in PACKAGES} | dict(own or {})
        self._packaged = frozenset(PACKAGES)

    def spec(self, key: str, name: str) -> str:
        """Return what `data.text` or `data.rows` takes for a name.

        key: the setting, for the message. Raises ConfigError for an unknown name.
        """
        if name not in self._specs:
            hint = did_you_mean(name, self._specs)
            raise ConfigError(
                f"{key}: no data source '{name}'{hint}; known: {', '.join(self.names())}"
            )
        return self._specs[name]

    def names(self) -> list[str]:
        """Return the known names."""
        return sorted(self._specs)

    def listed(self) -> list[dict[str, Any]]:
        """Return what clients may know: the name, and whether it came with a package."""
        return [
            {"name": name, "kind": "package" if name in self._packaged else "registered"}
            for name in self.names()
        ]


def read_sources(lines: Sequence[str], option: str) -> dict[str, str]:
    """Return name -> path of NAME=PATH options.

    Raises ConfigError for a line of another form and for a path that is missing.
    """
    sources: dict[str, str] = {}
    for line in lines:
        name, equals, path = line.partition("=")
        if not equals or not NAME.fullmatch(name) or not path:
            raise ConfigError(f"{option} {line}: write NAME=PATH, as in speeches=texts/speeches")
        if not path.startswith("hf:") and not Path(path).exists():
            raise ConfigError(f"{option} {name}: there is nothing at {path}")
        sources[name] = path if path.startswith("hf:") else str(Path(path).resolve())
    return sources
