"""Data sets of five domains, built once, named by their content, and read by phases.

`forge data build broad` (pipeline.data_set) writes one; `open_set` verifies it; `domain_sources`
makes of each domain a source of windows for a mixture.
"""

from agent_forge.data.sets.folder import (
    CARD,
    MANIFEST,
    DataSet,
    benchmarks_of,
    domain_sources,
    open_set,
)
from agent_forge.data.sets.settings import DOMAINS, BuildSettings

__all__ = [
    "CARD",
    "DOMAINS",
    "MANIFEST",
    "BuildSettings",
    "DataSet",
    "benchmarks_of",
    "domain_sources",
    "open_set",
]
