"""On-policy distillation: the model answers in its own words, and learns what the prompted parent
finds likely at each of them.

After the supervised steps the model answers questions of the user's tools as it will be asked them,
without a listing. The teacher is the parent with all tools listed on a system turn. At every token
that the model wrote, the loss is (1 − λ) KL(teacher ‖ model) + λ KL(model ‖ teacher). λ is 0 for the
first share of the steps and then rises linearly: reverse KL alone makes the model sure of few
answers before it has seen what the teacher would say. Answers are sampled in batches, anew every few
steps, and are the first message of the model: no tool runs. What the supervised steps learn from is
learned beside. Sources: on-policy context distillation (arXiv:2602.12275), forward KL mixed in
(arXiv:2605.16826), answers of the student (arXiv:2306.13649).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agent_forge import learn, models
from agent_forge.agent.settings import BATCH_ROWS
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_prompt, stop_ids, turn_end
from agent_forge.data.windows import positions
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import Config, OnPolicyConfig, own, persona, traces

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STAGE = "on_policy"
FORWARD, REVERSE, SHARE = "on_policy_forward", "on_policy_reverse", "on_policy_reverse_share"


def reverse_share(settings: OnPolicyConfig, step: int) -> float:
    """Return λ at a step: 0 at first, then rising linearly to settings.reverse_share at the last
    step.
    """
    first = settings.forward_share * settings.steps
    rising = (step + 1 - first) / max(settings.steps - first, 1e-9)
    return settings.reverse_share * min(max(rising, 0.0), 1.0)


class Answers:
    """The model's own answers, a round of them at a time, and what the prompted parent makes of
    each token.
    """

    def __init__(
        self,
        phase: PhaseRun[Config],
        parent: "PreTrainedModel",
        questions: Sequence[traces.Trace],
    ) -> None:
        """Take the questions of training traces. Raises PhaseError where the listing of the tools
        leaves no room for an answer.
        """
        self.phase, self.parent = phase, parent
        self.settings, self.seed = phase.config.on_policy, phase.config.seed
        self.reply_tokens = own.reply_tokens(phase)
        self.listing = own.system_turn(
            [tool.schema() for tool in own.load_tools(tuple(phase.config.tools))]
        )
        generator = numpy_generator(self.seed, "bake", STAGE)
        chosen = generator.permutation(len(questions))[: self.settings.steps * self.settings.rows]
        self.prompts = [self._prompts(questions[i]) for i in chosen]
        longest = max(len(prompted) for _, prompted in self.prompts) + self.reply_tokens
        limit = positions(parent.config)
        if limit is not None and longest > limit:
            raise PhaseError(
                f"on_policy: a question with all tools listed and an answer take {longest} tokens, "
                f"and the model has {limit} positions; give fewer tools, or set on_policy.steps=0"
            )
        self._round: tuple[int, Mapping[str, Tensor]] | None = None

    def _prompts(self, trace: traces.Trace) -> tuple[list[int], list[int]]:
        """Return a question as the model sees it, and as the teacher does."""
        turns = [
            turn for turn in trace["messages"][: trace["prompt_turns"]] if turn["role"] != "system"
        ]
        tokenizer = self.phase.tokenizer
        return encode_prompt(tokenizer, turns), encode_prompt(tokenizer, [self.listing, *turns])

    def rows(self, step: int) -> Tensor:
        """Return which answers of its round a step learns from: (rows,) int64, each answer once."""
        first = step % self.settings.refresh_every_steps * self.settings.rows
        return torch.arange(first, first + self.settings.rows)

    def lesson(self, model: "PreTrainedModel", step: int) -> Mapping[str, Tensor]:
        """Return the answers of a step's round, as `persona.taught` does; the model writes them at
        the first step of the round, once, also across restarts.
        """
        number = step // self.settings.refresh_every_steps
        if self._round is None or self._round[0] != number:
            lesson = self.phase.out.remember_tensors(
                f"on-policy-{number}", lambda: self._answered(model, number)
            )
            self._round = (number, lesson)
        return self._round[1]

    def _answered(self, model: "PreTrainedModel", number: int) -> dict[str, Tensor]:
        settings, every = self.settings, self.settings.refresh_every_steps
        steps = range(number * every, min((number + 1) * every, settings.steps))
        places = np.arange(steps.start * settings.rows, steps.stop * settings.rows)
        prompts = [self.prompts[place % len(self.prompts)] for place in places]
        stops = stop_ids(self.phase.tokenizer, model)
        decoding = models.Decoding(
            max_new_tokens=self.reply_tokens, stop_ids=stops, temperature=settings.temperature,
            seed=seed_for(self.seed, "bake", STAGE, number), batch_rows=BATCH_ROWS,
        )  # fmt: skip
        answers = models.generate(model, [plain for plain, _ in prompts], decoding)
        # The token at which the model stopped is its own too; what the template adds is not.
        end = (turn_end(self.phase.tokenizer) or sorted(stops))[:1]
        answers = [[*one, *end] if len(one) < self.reply_tokens else one for one in answers]
        plain, prompted = zip(*prompts, strict=True)
        return persona.taught(self.parent, plain, prompted, answers, settings.top_k)

    def loss(
        self, model: "PreTrainedModel", rows: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the mixture of both KLs (nats per token) at some answers of a step's round, and
        its parts.
        """
        at_answers = persona.answer_logits(model, self.lesson(model, step), rows)
        share = reverse_share(self.settings, step)
        forward = persona.top_kl(*at_answers).mean()
        with torch.set_grad_enabled(share > 0 and torch.is_grad_enabled()):
            reverse = persona.reverse_top_kl(*at_answers).mean()
        loss = (1.0 - share) * forward + share * reverse if share > 0 else forward
        return loss, {FORWARD: forward.detach(), REVERSE: reverse.detach(), SHARE: share}


class Batches:
    """The batches of the joint training from step `first` on, with the numbers of own answers."""

    def __init__(self, joint: learn.Batches, answers: Answers, first: int) -> None:
        self.joint, self.answers, self.first = joint, answers, first

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the tensors of one step: a pure function of step."""
        return {**self.joint.batch(self.first + step), "on_policy_rows": self.answers.rows(step)}


def train(
    phase: PhaseRun[Config],
    model: "PreTrainedModel",
    joint: learn.Batches,
    joint_loss: learn.LossFn,
    answers: Answers,
) -> list[dict[str, Any]]:
    """Train `model` in place after the supervised steps; return the report's table, a row per
    round.
    """
    config, settings = phase.config, phase.config.on_policy
    first = config.training.steps

    def loss_fn(model: Any, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Any]]:
        loss, metrics = joint_loss(model, batch, first + step)
        rows = learn.on_host(batch)["on_policy_rows"]
        mixture, parts = answers.loss(model, rows, step)
        return loss + settings.weight * mixture, {**metrics, **parts}

    optim = config.training.optim
    records = learn.train(
        model,
        learn.TrainRequest(
            batches=Batches(joint, answers, first),
            loss_fn=loss_fn,
            stage=STAGE,
            steps=settings.steps,
            optim=replace(
                optim,
                lr=optim.lr * settings.lr_scale,
                muon_lr=optim.muon_lr * settings.lr_scale,
                warmup_steps=min(optim.warmup_steps, settings.steps // 4),
            ),
            out=phase.out,
            events=phase.events,
            seed=seed_for(config.seed, "bake", STAGE),
            device=phase.device,
            dtype=phase.dtype,
            settings={"on_policy": asdict(settings)},
        ),
    )
    return table(records, settings.refresh_every_steps)


def table(records: Sequence[learn.StepRecord], every: int) -> list[dict[str, Any]]:
    """Return a row per round of answers: the mean over its steps of both KLs, in nats per token."""
    rounds = [records[start : start + every] for start in range(0, len(records), every)]
    return [
        {
            "steps": f"{part[0].step + 1}-{part[-1].step + 1}",
            "KL(parent || model)": round(_mean(part, FORWARD), 4),
            "KL(model || parent)": round(_mean(part, REVERSE), 4),
            "share of the second": round(_mean(part, SHARE), 3),
        }
        for part in rounds
    ]


def _mean(records: Sequence[learn.StepRecord], name: str) -> float:
    return sum(record.metrics[name] for record in records) / len(records)
