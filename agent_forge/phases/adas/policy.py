"""SVF gains by reward: of the replies that a model samples, the right ones pull its gains.

Reads a frozen model with gains beside it, and questions with verified answers; the gains are
trained, the model is not. Only where the model answers between 10 and 60% of them rightly by itself
(`experts.policy`): below, a group of samples seldom has a right one, and above, little is left to
learn. Elsewhere the gains are trained by cross-entropy, and a warning says so. Source: REINFORCE on
singular values, Transformer^2, arXiv:2501.06252; here with group-relative advantages
(`learn.reward`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from agent_forge.core import registry
from agent_forge.core.seeds import seed_for
from agent_forge.learn.reward import Opened, Questions, Reinforcement, Row
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config

ANSWERED = ("reasoning", "memory", "tools")  # kinds of rows that have an answer to verify


@dataclass(slots=True)
class Groups:
    """How replies are drawn; every group with right and wrong replies teaches."""

    samples: int
    max_new_tokens: int
    temperature: float
    kl_weight: float
    low: float = 0.0
    high: float = 1.0


class Policy:
    """The reward of one domain: how often the model is right, and the loss that learns from it.

    opened: turns gains beside a frozen model into a model that generates.
    """

    def __init__(
        self, phase: PhaseRun[Config], model: PreTrainedModel, domain: str, opened: Opened
    ) -> None:
        experts = phase.config.experts
        self.settings, self.seed = (
            experts.policy,
            seed_for(phase.config.seed, "adas", "policy", domain),
        )
        groups = Groups(
            self.settings.samples,
            self.settings.max_new_tokens,
            self.settings.temperature,
            experts.kl_weight,
        )
        self.loss = Reinforcement(
            _rows(domain, experts.rows, "train", self.seed), phase.tokenizer, model, groups,
            seed=self.seed, phase="adas", opened=opened,
        )  # fmt: skip
        self.held_out = _rows(domain, self.settings.probe_rows, "validation", self.seed)
        self.batches = Questions(len(self.loss.rows), self.settings.items, self.seed, "adas")

    def share_right(self, model: PreTrainedModel) -> float:
        """Return the share of sampled replies to held-out questions that are right."""
        return float(self.loss.sampled(model, self.held_out, -1)[2].mean())

    def can_learn(self, share: float) -> bool:
        """Return whether a model with this share of right replies learns from its own."""
        return self.settings.low <= share <= self.settings.high


def policy_of(
    phase: PhaseRun[Config], model: PreTrainedModel, domain: str, opened: Opened
) -> tuple[Policy, float] | None:
    """Return the reward of a domain and the model's share of right replies; None where the gains
    are to be trained by cross-entropy.
    """
    if phase.config.experts.svf_by != "policy":
        return None
    if domain not in ANSWERED:
        phase.events.warning(
            f"{domain} has no answers to verify: its gains are trained by cross-entropy"
        )
        return None
    policy = Policy(phase, model, domain, opened)
    share = float(phase.out.remember(f"policy-{domain}", lambda: policy.share_right(model)))
    if policy.can_learn(share):
        return policy, share
    settings = policy.settings
    phase.events.warning(
        f"{domain}: {share:.0%} of the sampled replies are right, outside {settings.low:.0%} to "
        f"{settings.high:.0%} (experts.policy), so its gains are trained by cross-entropy"
    )
    return None


def _rows(domain: str, count: int, split: str, seed: int) -> Sequence[Row]:
    rows: Any = registry.load("agent_forge.data.synthetic", domain, "generated task")
    drawn: Sequence[Row] = rows.rows(count, split, seed)
    return drawn
