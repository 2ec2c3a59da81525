"""Settings of a data set's recipe, `conf/data/<name>.yaml`, which holds and explains every value."""

from dataclasses import dataclass
from typing import Annotated

from agent_forge.config import DataConfig, RuntimeConfig
from agent_forge.config.limits import (
    MANY,
    Count,
    OneOf,
    PositiveShare,
    Range,
    Share,
    SomeWeight,
    TaskOrSuite,
    Temperature,
    Text,
    Weight,
)
from agent_forge.core.errors import ConfigError

DOMAINS = ("prose", "chat", "mathematics", "code", "tool_calls")
Domain = Annotated[str, OneOf(DOMAINS)]


@dataclass(slots=True, kw_only=True)
class OwnConfig:
    """What a model writes itself."""

    parent: str
    share: Annotated[float, Range(0, 1, below=True)]
    prompts: Annotated[int, Range(1, 10**6)]
    batch_rows: Count
    new_tokens: Count
    temperature: Temperature
    top_p: PositiveShare


@dataclass(slots=True, kw_only=True)
class FilterConfig:
    """What is dropped."""

    min_words: Count
    max_words: Count
    repeated_share: Share
    english_share: Share

    def validate(self) -> None:
        """Raise ConfigError where no document could pass."""
        if self.min_words > self.max_words:
            raise ConfigError(
                f"filter.min_words={self.min_words} is above filter.max_words={self.max_words}, so "
                "every document would be dropped; lower the first"
            )


@dataclass(slots=True, kw_only=True)
class BuildSettings:
    """Settings of `forge data build`."""

    seed: Annotated[int, Range(0, 2**63 - 1)]
    out: Text
    size_bytes: Annotated[int, Range(1000, 1000 * MANY)]
    shares: Annotated[dict[Domain, Weight], SomeWeight()]
    texts: dict[Domain, list[Text]]
    benchmarks: list[Text]
    report: list[TaskOrSuite]
    own: OwnConfig
    filter: FilterConfig
    data: DataConfig
    runtime: RuntimeConfig

    def validate(self) -> None:
        """Raise ConfigError for a domain with a share that no text is named for."""
        for domain, share in self.shares.items():
            if share and not self.texts.get(domain):
                raise ConfigError(
                    f"shares.{domain}={share}, but texts.{domain} names nothing; name a text or set "
                    "the share to 0"
                )
