"""Open what an agent may search in: indexes, text sources, and a search service.

Reads the names that a person gave and the settings in a manifest; text sources are indexed into the
memory file.
"""

from collections.abc import Sequence

from agent_forge.agent.documents import DocumentIndex, Documents, open_index
from agent_forge.agent.settings import AgentSettings
from agent_forge.agent.store import Store
from agent_forge.core.errors import ConfigError
from agent_forge.data.documents import read_source
from agent_forge.data.indexes import is_index


def open_documents(
    store: Store,
    names: Sequence[str],
    encoding: str,
    settings: AgentSettings,
    search_endpoint: str = "",
) -> Documents:
    """Return the documents of an agent.

    names: one index of `forge index`, or text sources as in data.text.
    search_endpoint: an address that a person gave; the manifest's own may only name this machine,
    else a checkpoint from elsewhere could have questions sent anywhere.
    Raises ConfigError for an index among other sources, or an address that is not allowed.
    """
    if any(is_index(name) for name in names):
        if len(names) > 1:
            raise ConfigError(
                "an index is named among other documents; add them to it with `forge index`"
            )
        index = open_index(names[0])
    else:
        index = DocumentIndex(store)
        for name in names:
            index.add_all(read_source(name, encoding))
    address = search_endpoint or settings.search_endpoint
    if not address:
        return index
    from agent_forge.agent.endpoint import SearchEndpoint, WithEndpoint

    endpoint = SearchEndpoint(address, settings.search_timeout_seconds)
    if not search_endpoint and not endpoint.is_loopback:
        raise ConfigError(
            f"the checkpoint's manifest sends searches to {address}; allow it with "
            f"--search-endpoint '{address}'"
        )
    return WithEndpoint(index, endpoint)
