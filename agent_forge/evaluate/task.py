"""The fixed facts of an evaluation task, and the context in which it scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent_forge.config import DataConfig

if TYPE_CHECKING:
    from agent_forge.agent import TurnLimits
    from agent_forge.models import Decoding


@dataclass(frozen=True, slots=True)
class Task:
    """A task's fixed facts. `version` changes whenever its scores would.

    chance: the metric of a model that knows the form of an answer and guesses its content.
    by_default: whether `forge eval` scores it unasked; not where it needs settings or packages, or
    long prompts.
    logarithmic: scores are nats per token, so what a child keeps is the parent's perplexity over
    the child's, not the ratio of the two scores.
    calls: whether its replies call tools, so that a grammar may decode them.
    """

    name: str
    version: int
    metric: str
    higher_is_better: bool
    chance: float
    by_default: bool = True
    logarithmic: bool = False
    calls: bool = False


@dataclass(slots=True, kw_only=True)
class EvalContext:
    """What items and scores may depend on besides the model.

    batch_tokens: the most tokens in one forward pass, padding included; 0 means 4,096 on the CPU,
    and as many as fill an accelerator.
    batch_rows: the most conversations generated at once.
    tools: sources of the user's own tools. rows: files of the user's own rows.
    grammar: under which tasks whose replies call tools decode them (`agent.grammar`).
    """

    data: DataConfig
    seed: int
    tokenizer: Any = None
    batch_tokens: int = 0
    batch_rows: int = 64
    tools: Sequence[str] = ()
    rows: Sequence[str] = ()
    grammar: str = "none"

    def decoding(self, max_new_tokens: int) -> "Decoding":
        """Return how a task's replies are decoded: greedily, as many at once as the context has."""
        from agent_forge.models.sampling import Decoding

        return Decoding(max_new_tokens=max_new_tokens, batch_rows=self.batch_rows)

    def turn_limits(self, max_rounds: int, max_new_tokens: int) -> "TurnLimits":
        """Return how a task's whole turns are generated, under the grammar where there is one."""
        from agent_forge.agent import TurnLimits

        decoding = self.decoding(max_new_tokens)
        return TurnLimits(max_rounds=max_rounds, decoding=decoding, grammar=self.grammar)
