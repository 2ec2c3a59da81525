"""How an agent runs: settings from a manifest's `agent` entry, which the phases fill in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_forge.config.schema import GRAMMARS
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.data.call_dialects import check_name
from agent_forge.models.sampling import Cuts, Decoding, check_sampling

# Scaffold -> the settings that it follows.
SCAFFOLDS: dict[str, tuple[str, ...]] = {
    "direct": (),
    "chain_of_thought": ("prompt",),
    "few_shot": ("examples", "nearest"),
    "self_consistency": ("samples", "stop_after"),
    "best_by_execution": ("samples", "stop_after"),
    "drafts": ("prompt", "drafts"),
}
_DECODER = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "max_new_tokens", "seed", "call_gate",
)  # fmt: skip
BATCH_ROWS = 64  # the most conversations that are answered at once
REQUIRED = GRAMMARS[-1]
SUMMARIES = ("sentences", "model", "none")
_MEMORY = ("working_tokens", "recall_facts", "summary")
_SEARCH = ("endpoint", "timeout_seconds")
_KEYS = (
    "tools", "allow", "system", "decoder", "scaffold", "memory", "search", "max_rounds",
    "code_sandbox", "calls", "grammar",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class AgentSettings:
    """Run-time settings of one agent.

    The defaults hold for an agent whose manifest does not name a setting.
    """

    # Enabled tools, every other call is refused: names of built-in ones, or entries with the schema
    # and the source of a user's (`Tool.entry`).
    tools: list[str | dict[str, Any]] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)  # destructive tools that are not denied
    system: str = ""  # system turn before every conversation; "" adds none
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # likeliest tokens to draw from; 0: all
    min_p: float = 0.0  # tokens below this share of the likeliest one's probability are left out
    typical_p: float = 1.0  # mass of the tokens whose surprise is nearest to the entropy
    max_new_tokens: int = 96
    seed: int = 0
    # Least probability of a call's first token with which a reply may begin as a call; 0: any.
    call_gate: float = 0.0
    scaffold: str = "direct"
    # chain_of_thought: added to the user's message. drafts: what the final answer is asked with.
    scaffold_prompt: str = "Think step by step."
    # few_shot: pairs of a question and its answer
    scaffold_examples: list[list[str]] = field(default_factory=list)
    scaffold_nearest: int = 0  # few_shot: show so many that are nearest to the question; 0: all
    # self_consistency and best_by_execution: replies that vote, and equal ones that end the vote
    # (0: none)
    scaffold_samples: int = 5
    scaffold_stop_after: int = 0
    # drafts: what the model is asked before the final answer, without tools. {question} stands for
    # the user's message, {draft} for what it wrote last.
    scaffold_drafts: list[str] = field(default_factory=list)
    working_tokens: int = 0  # token budget of the conversation in view; 0 takes the model's context
    recall_facts: int = 0  # facts recalled into the system turn unasked; 0 recalls only by tool
    # What becomes of turns that leave the window: sentences (of them, in the system turn), model (it
    # writes a summary), none (they are dropped).
    summary: str = "sentences"
    search_endpoint: str = ""  # address of a search service; "" searches the document index
    search_timeout_seconds: float = 10.0
    max_rounds: int = 4  # generations in one reply: calls and the final answer
    code_sandbox: str = "monty"
    # How the model writes calls: auto (its chat template tells), or a name of data/call_dialects.
    calls: str = "auto"
    # Decoding under a grammar: none, calls (whatever is written as a call fits its tool's schema), or
    # required (a message begins as such a call). It mends syntax alone.
    grammar: str = "none"

    @classmethod
    def from_manifest(cls, agent: Mapping[str, Any]) -> "AgentSettings":
        """Read a manifest's `agent` entry.

        Raises ConfigError on a key or value that the runtime does not know.
        """
        _check_keys("agent", agent, _KEYS)
        decoder = agent.get("decoder") or {}
        memory = agent.get("memory") or {}
        search = agent.get("search") or {}
        scaffold = agent.get("scaffold") or {}
        scaffold = {"name": scaffold} if isinstance(scaffold, str) else scaffold
        _check_keys("agent.decoder", decoder, _DECODER)
        _check_keys("agent.memory", memory, _MEMORY)
        _check_keys("agent.search", search, _SEARCH)
        name = scaffold.get("name", "direct")
        if name not in SCAFFOLDS:
            raise ConfigError(
                f"no scaffold '{name}'{did_you_mean(name, SCAFFOLDS)}; known: "
                f"{', '.join(SCAFFOLDS)}"
            )
        _check_keys(f"agent.scaffold ({name})", scaffold, ("name", *SCAFFOLDS[name]))
        summary = memory.get("summary", "sentences")
        if summary not in SUMMARIES:
            raise ConfigError(
                f"agent.memory.summary must be one of {', '.join(SUMMARIES)}, got '{summary}'"
                f"{did_you_mean(str(summary), SUMMARIES)}"
            )
        check_name(agent.get("calls", "auto"))
        grammar = agent.get("grammar", "none")
        if grammar not in GRAMMARS:
            raise ConfigError(
                f"agent.grammar must be one of {', '.join(GRAMMARS)}, got '{grammar}'"
                f"{did_you_mean(str(grammar), GRAMMARS)}"
            )
        values = {
            key: agent[key]
            for key in (
                "tools",
                "allow",
                "system",
                "max_rounds",
                "code_sandbox",
                "calls",
                "grammar",
            )
            if key in agent
        }
        values |= {key: value for part in (decoder, memory) for key, value in part.items()}
        values |= {f"search_{key}": value for key, value in search.items()}
        values |= {f"scaffold_{key}": value for key, value in scaffold.items() if key != "name"}
        settings = cls(**values, scaffold=name)
        check_sampling(settings.temperature, settings.top_p, settings.cuts)
        if not 0 <= settings.call_gate <= 1:
            raise ConfigError(f"agent.decoder.call_gate is in [0, 1], got {settings.call_gate}")
        if settings.call_gate and settings.grammar == REQUIRED:
            raise ConfigError(
                "agent.decoder.call_gate lets a reply begin without a call, and "
                f"agent.grammar={REQUIRED} forbids that; set call_gate=0 or grammar=calls"
            )
        return settings

    @property
    def cuts(self) -> Cuts:
        """Return what sampling leaves out beside top_p. Raises ConfigError outside the limits."""
        return Cuts(top_k=self.top_k, min_p=self.min_p, typical_p=self.typical_p)

    @property
    def decoding(self) -> Decoding:
        """Return how a reply is decoded. Raises ConfigError outside the limits."""
        return Decoding(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            cuts=self.cuts,
            seed=self.seed,
            batch_rows=BATCH_ROWS,
        )


def _check_keys(where: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in entry:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(
                f"{where}.{key} is no setting of the agent{hint}; known: {', '.join(known)}"
            )
