"""What a scaffold changes in what the model is shown: pure functions of settings and messages.

Sources: zero-shot chain of thought, Kojima et al. 2022, arXiv:2205.11916; nearest examples, Liu et
al. 2021, arXiv:2101.06804; drafts, as in Madaan et al. 2023, arXiv:2303.17651, and Dhuliawala et
al. 2023, arXiv:2309.11495; votes of answers, Wang et al. 2022, arXiv:2203.11171, and of what calls
return, Shi et al. 2022, arXiv:2204.11454.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.agent.embedding import embed
from agent_forge.agent.settings import AgentSettings
from agent_forge.agent.turn import Turn

Messages = list[dict[str, Any]]
BY_EXECUTION = "best_by_execution"
VOTED = ("self_consistency", BY_EXECUTION)


def scaffolded(settings: AgentSettings, messages: Sequence[Mapping[str, Any]]) -> Messages:
    """Return a conversation as the scaffold shows it."""
    copied = [dict(message) for message in messages]
    ends_with_user = bool(copied) and copied[-1]["role"] == "user"
    if settings.scaffold == "chain_of_thought" and ends_with_user:
        copied[-1]["content"] = f"{copied[-1]['content']}\n{settings.scaffold_prompt}"
    if settings.scaffold == "drafts" and ends_with_user and not settings.scaffold_drafts:
        copied[-1] = filled(settings.scaffold_prompt, copied[-1], "")
    if settings.scaffold == "few_shot":
        shots = [
            {"role": role, "content": text}
            for question, answer in _examples(settings, copied)
            for role, text in (("user", question), ("assistant", answer))
        ]
        first = next(
            (i for i, message in enumerate(copied) if message["role"] != "system"), len(copied)
        )
        copied[first:first] = shots
    return copied


def shown_examples(settings: AgentSettings) -> int:
    """Return how many solved examples the scaffold shows."""
    if settings.scaffold != "few_shot":
        return 0
    return min(settings.scaffold_nearest or len(settings.scaffold_examples),
               len(settings.scaffold_examples))  # fmt: skip


def _examples(settings: AgentSettings, messages: Messages) -> list[list[str]]:
    """Return the examples to show; the nearest to the user's last message stands last."""
    examples = settings.scaffold_examples
    if not settings.scaffold_nearest or not messages:
        return examples
    question = embed(str(messages[-1]["content"]))
    near = [float(np.dot(question, embed(example[0]))) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (near[i], -i))
    return [examples[i] for i in order[-settings.scaffold_nearest :]]


def filled(template: str, message: Mapping[str, Any], draft: str) -> dict[str, Any]:
    """Return a user's message as a draft asks for it; {question} and {draft} are filled in."""
    parts = template.split("{question}")
    content = str(message["content"]).join(part.replace("{draft}", draft) for part in parts)
    return {**message, "content": content}


def votes(settings: AgentSettings) -> int:
    """Return how many replies vote; 1 where the scaffold has no vote."""
    return settings.scaffold_samples if settings.scaffold in VOTED else 1


def ballot(settings: AgentSettings, turn: Turn) -> str | None:
    """Return what a reply votes for: its words, or with `best_by_execution` what its calls returned.

    By execution a reply has no vote, None, where a call failed or the rounds ran out.
    """
    if settings.scaffold != BY_EXECUTION:
        return turn.text
    if not turn.finished or any(result.error for result in turn.results):
        return None
    if not turn.results:
        return f"no call: {turn.text}"
    return "\n".join(["results:", *(result.text for result in turn.results)])


def decided(ballots: Sequence[str | None], stop_after: int) -> int | None:
    """Return the place of the reply that has won already, None while the vote is open.

    stop_after: so many equal ballots decide; 0 lets all vote. Source of stopping early: Li et al.
    2024, arXiv:2401.10480.
    """
    counted = Counter(ballot for ballot in ballots if ballot is not None)
    most = max(counted.values(), default=0)
    return winner(ballots) if stop_after and most >= stop_after else None


def winner(ballots: Sequence[str | None]) -> int:
    """Return the place of the first reply with the most frequent ballot; of equally frequent ones the
    first, and 0 where none votes.
    """
    counted = Counter(ballot for ballot in ballots if ballot is not None)
    return ballots.index(counted.most_common(1)[0][0]) if counted else 0
