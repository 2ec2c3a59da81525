"""Search by an HTTP service in the place of a local index.

An address with `{query}` in it is read by GET (`{count}` is filled in too), any other gets
`POST {"query": "...", "count": 3}`. Both answer `{"results": [{"text": "...", "source": "..."}]}`;
`content` or `snippet` stand for `text`, `url` or `title` for `source`, so that SearXNG's JSON is
understood. The answer is text for the model and nothing else: nothing of it is run or followed.
"""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from agent_forge.agent.documents import DocumentIndex, Documents, Passage
from agent_forge.core.errors import ConfigError

LARGEST_ANSWER = 4 * 2**20
TEXT_KEYS = ("text", "content", "snippet")
SOURCE_KEYS = ("source", "url", "title")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SearchEndpoint:
    """Documents behind an address. Raises ConfigError for one that is not http or https."""

    def __init__(self, address: str, timeout_seconds: float = 10.0) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(
                f"a search endpoint is an http:// or https:// address, got '{address}'"
            )
        self.address, self.timeout_seconds = address, timeout_seconds
        self.is_loopback = parts.hostname in LOOPBACK

    def search(self, query: str, count: int) -> list[Passage]:
        """Ask the service. Raises ConfigError, which the model reads, where it does not answer."""
        try:
            with urllib.request.urlopen(
                self._request(query, count), timeout=self.timeout_seconds
            ) as answer:
                content = answer.read(LARGEST_ANSWER + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(f"the search endpoint does not answer: {reason}") from None
        if len(content) > LARGEST_ANSWER:
            raise ConfigError(f"the search endpoint sent more than {LARGEST_ANSWER:,} bytes")
        return _passages(content, count)

    def retrieve(self, query: str, count: int) -> list[Passage]:
        """Ask the service: it alone decides how it ranks."""
        return self.search(query, count)

    def __len__(self) -> int:
        return 1  # how many documents it has is not known; it is not empty

    def _request(self, query: str, count: int) -> urllib.request.Request:
        headers = {"Accept": "application/json", "User-Agent": "agent-forge"}
        if "{query}" in self.address:
            quoted = urllib.parse.quote(query, safe="")
            address = self.address.replace("{query}", quoted).replace("{count}", str(count))
            return urllib.request.Request(address, headers=headers)
        body = json.dumps({"query": query, "count": count}).encode()
        headers["Content-Type"] = "application/json"
        return urllib.request.Request(self.address, body, headers, method="POST")


def _passages(content: bytes, count: int) -> list[Passage]:
    try:
        results = json.loads(content)["results"]
        entries = [(_first(entry, TEXT_KEYS), _first(entry, SOURCE_KEYS)) for entry in results]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(
            'the search endpoint did not answer {"results": [{"text": …, "source": …}]}'
        ) from None
    passages = [
        Passage(number, source, " ".join(text.split()), 1.0 / number)
        for number, (text, source) in enumerate(entries, start=1)
        if text.strip()
    ]
    return passages[:count]


def _first(entry: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return next((str(entry[key]) for key in keys if entry.get(key)), "")


class WithEndpoint:
    """A local index for `retrieve`, a service for `search`."""

    def __init__(self, index: DocumentIndex, endpoint: SearchEndpoint) -> None:
        self.index, self.endpoint = index, endpoint

    def search(self, query: str, count: int) -> list[Passage]:
        """Ask the service."""
        return self.endpoint.search(query, count)

    def retrieve(self, query: str, count: int) -> list[Passage]:
        """Search the index; the service where the index is empty."""
        source: Documents = self.index if len(self.index) else self.endpoint
        return source.retrieve(query, count)

    def __len__(self) -> int:
        return len(self.index) + len(self.endpoint)
