"""What a server looks up on every request and what does not change while it runs.

The pipeline's catalogue lists folders each time, so that a new phase is found at once; at a hundred
requests a second that would be most of the work.
"""

from collections.abc import Mapping
from functools import cache

from agent_forge.config import Phase, compose
from agent_forge.pipeline import catalogue, run_all


@cache
def phases() -> Mapping[str, Phase]:
    """Return every phase by name, in their order."""
    return catalogue.phases()


@cache
def groups() -> Mapping[str, list[str]]:
    """Return the config groups and their options."""
    return compose.groups()


@cache
def run_schema() -> type:
    """Return the dataclass of a run's settings."""
    return run_all.settings_schema()
