"""Bake tool use, memory use and a persona into the weights.

Traces come from tools that really ran: the calculator, a SQLite memory, the code sandbox and a
passage store answer generated questions, or any tools of the user's (`tools=[…]`) answer questions
made from their schemas; a trace is kept where the call lowers the loss of the answer. The model
learns the assistant's turns by cross-entropy, stays near the parent on text by KL, and takes on
traits by KL to the parent under a system prompt, each to a measured strength. On request the
trained weights are then drawn back to the parent as far as its skills need it.
Reads one checkpoint, writes one, with the enabled tools in its manifest. Sources: Toolformer
(Schick et al. 2023, arXiv:2302.04761), prompt baking (Bhargava et al. 2024, arXiv:2409.13697).
"""

from dataclasses import dataclass, replace
from typing import Annotated

from agent_forge.config import OptimConfig, Phase, PhaseConfig, StepMemory, suites
from agent_forge.config.limits import (
    MANY,
    Count,
    CountOrNone,
    DataMix,
    DataWeights,
    OneOf,
    Range,
    Share,
    TaskOrSuite,
    Temperature,
    Text,
    Weight,
)
from agent_forge.core.errors import ConfigError

KINDS = ("calculator", "word_problems", "memory", "code", "retrieve")
OWN = "own"  # the kind of traces of the user's own tools
BUILTIN = ("auto", "on", "off")
# For estimates, in tokens: a question, a trace, a listing of tools, a piece of held-out text.
QUESTION_TOKENS, TRACE_TOKENS, LISTING_TOKENS, TEXT_ITEM_TOKENS = 32, 60, 300, 100
CONVERSATIONS = {"memory": 3}  # per question of a kind, where there are several


@dataclass(slots=True, kw_only=True)
class KindConfig:
    """One kind of trace. With count 0 no traces of it are generated or measured, and its tools are
    not enabled.
    """

    count: CountOrNone
    weight: Weight


@dataclass(slots=True, kw_only=True)
class OwnConfig:
    """Traces of the user's own tools: how many, and of which sort."""

    count: CountOrNone
    weight: Weight
    none_share: Annotated[float, Range(0, 0.9)]
    listed_share: Share
    errors: bool
    filter: bool


@dataclass(slots=True, kw_only=True)
class TracesConfig:
    """How many questions of each kind real tools answer, and which of the traces are trained on."""

    builtin: Annotated[str, OneOf(BUILTIN)]
    calculator: KindConfig
    digits: Annotated[int, Range(3, 15)]
    word_problems: KindConfig
    memory: KindConfig
    code: KindConfig
    retrieve: KindConfig
    own: OwnConfig
    tau_nats: Annotated[float, Range(-1e6, 1e6)]
    min_kept_share: Share


@dataclass(slots=True, kw_only=True)
class TrainingConfig:
    """What one step learns: rows of traces and of replay by cross-entropy, and the parent's
    distribution on neutral data.
    """

    steps: CountOrNone
    rows: Count
    length_tokens: Annotated[int, Range(16, MANY)]
    lora_rank: CountOrNone
    lora_alpha: Annotated[float, Range(0, 1e6, above=True)]
    mix: DataWeights
    generated_rows: Annotated[int, Range(1, 10**7)]
    last_turn: bool
    neutral_rows: CountOrNone
    neutral_mix: DataMix
    neutral_weight: Weight
    optim: OptimConfig


@dataclass(slots=True, kw_only=True)
class OnPolicyConfig:
    """Steps after the others, in which the model answers questions of the user's tools itself and
    learns the prompted parent's distribution at its own tokens.
    """

    steps: CountOrNone
    rows: Count
    refresh_every_steps: Count
    lr_scale: Annotated[float, Range(0, 100, above=True)]
    forward_share: Share
    reverse_share: Annotated[float, Range(0, 0.9)]
    temperature: Temperature
    top_k: Count
    weight: Weight


@dataclass(slots=True, kw_only=True)
class RetainConfig:
    """How far the trained weights are drawn back to the parent: tasks, and the least share of the
    parent's score on each.
    """

    tasks: dict[TaskOrSuite, Annotated[float, Range(0, 1000)]]
    items: Count


@dataclass(slots=True, kw_only=True)
class VoiceConfig:
    """The parent's own answers to plain questions, on which its distribution is kept."""

    prompts: CountOrNone
    heldout: Count
    reply_tokens: Count
    rows: Count
    weight: Weight


@dataclass(slots=True, kw_only=True)
class PreferencesConfig:
    """The user's own pairs of a chosen and a rejected answer, learned by DPO."""

    rows: list[Text]
    pairs: Count
    length_tokens: Annotated[int, Range(16, MANY)]
    beta: Annotated[float, Range(0, 100, above=True)]
    weight: Weight


@dataclass(slots=True, kw_only=True)
class TraitConfig:
    """One trait: the system prompt that shows it, the strength to bake, and the questions where it
    shows.
    """

    system: str
    strength: Share
    questions: list[Text]


@dataclass(slots=True, kw_only=True)
class PersonaConfig:
    """Traits baked by KL on the answers of the prompted parent."""

    enabled: bool
    prompts: Count
    heldout: Count
    reply_tokens: Count
    temperature: Temperature
    top_k: Count
    rows: Count
    weight: Weight
    check_every_steps: Count
    min_effect_nats: Weight
    traits: dict[str, TraitConfig]


@dataclass(slots=True, kw_only=True)
class MeasureConfig:
    """Held-out measurement, before and after."""

    items: Count
    text_items: Count
    max_new_tokens: Count
    listed: bool
    offer_from: Share


@dataclass(slots=True, kw_only=True)
class Config(PhaseConfig):
    """Settings of `forge bake`."""

    tools: list[Text]
    allow: list[Text]
    traces: TracesConfig
    training: TrainingConfig
    on_policy: OnPolicyConfig
    retain: RetainConfig
    voice: VoiceConfig
    preferences: PreferencesConfig
    persona: PersonaConfig
    measure: MeasureConfig
    baseline: bool

    def validate(self) -> None:
        """Refuse tools that may run although they are not named, and settings of rows that are not
        learned. Raises ConfigError.
        """
        if self.training.last_turn and not self.training.mix.get("rows", 0):
            raise ConfigError(
                "training.last_turn is for rows of your own, and training.mix has none; set "
                "training.mix={rows: 0.5} and data.rows, or leave it out"
            )
        if self.allow and not self.tools:
            raise ConfigError(
                f"allow={self.allow} names destructive tools, but tools=[] has none; name both, or "
                "leave allow out"
            )
        if self.on_policy.steps and not (self.tools and self.traces.own.count):
            raise ConfigError(
                f"on_policy.steps={self.on_policy.steps} lets the model answer questions of your "
                "own tools, and there are none; set tools=[my_tools.py] and traces.own.count, or "
                "on_policy.steps=0"
            )
        checks = self.persona.enabled and self.persona.check_every_steps < self.training.steps
        if checks and self.runtime.shard and self.runtime.processes > 1:
            raise ConfigError(
                f"persona.check_every_steps={self.persona.check_every_steps} lets one process measure "
                "the model, which a sharded model cannot; set it to "
                f"{self.training.steps} (training.steps), or runtime.shard=false"
            )
        if self.retain.tasks and self.training.lora_rank:
            raise ConfigError(
                f"retain.tasks={self.retain.tasks} draws whole weights back, and the adapter that is "
                f"kept beside them would not follow; set training.lora_rank=0, or a smaller "
                f"training.lora_alpha than {self.training.lora_alpha:g}"
            )
        if self.retain.tasks and self.runtime.shard:
            raise ConfigError(
                "retain.tasks needs whole weights, and runtime.shard=true divides them among the "
                "processes; set runtime.shard=false"
            )
        if self.on_policy.steps and self.runtime.shard:
            raise ConfigError(
                "on_policy.steps lets one process write the model's answers, which a sharded model "
                "cannot; set runtime.shard=false"
            )

    def kinds(self) -> list[str]:
        """Return the kinds of traces that are made, the user's own tools first."""
        own = [OWN] if self.tools and self.traces.own.count > 0 else []
        if self.traces.builtin == "off" or (self.traces.builtin == "auto" and self.tools):
            return own
        return [*own, *(kind for kind in KINDS if getattr(self.traces, kind).count > 0)]

    def work_tokens(self) -> float:
        """Return the trained tokens, the tokens of neutral data that the parent reads, and what
        traces, lessons and measuring cost.
        """
        training, persona = self.training, self.persona
        rows = training.rows + 4 / 3 * training.neutral_rows
        answers = (
            persona.rows * (persona.reply_tokens + 32) * len(persona.traits)
            if persona.enabled
            else 0
        )
        plain = training.rows * training.length_tokens if self.baseline else 0
        voice = self.voice.rows * (self.voice.reply_tokens + 32) if self.voice.prompts else 0
        # A pair has two answers, which fill half of the longest length.
        pairs = self.preferences.pairs * self.preferences.length_tokens
        others = voice + (pairs if self.preferences.rows else 0)
        steps = training.steps + self.on_policy.steps
        trained = steps * (rows * training.length_tokens + answers + plain + others)
        return trained + self._on_policy_tokens() + self._lesson_tokens() + self._measured_tokens()

    def _on_policy_tokens(self) -> float:
        """Return what own answers cost: each is written, read by the parent, and trained on."""
        answer = QUESTION_TOKENS + self.measure.max_new_tokens
        each = self.measure.max_new_tokens + (LISTING_TOKENS + answer) / 3 + answer
        return self.on_policy.steps * self.on_policy.rows * each

    def _lesson_tokens(self) -> float:
        """Return the cost of what is learned from: each trace is read three times by the filter,
        and the parent writes the answers of personas and voice.
        """
        traces = sum(getattr(self.traces, kind).count for kind in self.kinds())
        persona, voice = self.persona, self.voice
        lessons = 0.0
        if persona.enabled:
            read = (QUESTION_TOKENS + persona.reply_tokens) / 3
            questions = len(persona.traits) * (persona.prompts + persona.heldout)
            checked = len(persona.traits) * persona.heldout
            checks = self.training.steps // persona.check_every_steps
            lessons += questions * (persona.reply_tokens + read) + checks * checked * read
        if voice.prompts:
            written = voice.reply_tokens + (QUESTION_TOKENS + voice.reply_tokens) / 3
            lessons += (voice.prompts + voice.heldout) * written
        return traces * TRACE_TOKENS + lessons

    def _measured_tokens(self) -> float:
        """Return the cost of measuring before and after, and after plain training.

        A token that is written costs about as much as a trained one, because tokens are written
        one after another; a token that is read costs a third.
        """
        measure, kinds, times = self.measure, self.kinds(), 3 if self.baseline else 2
        talks = sum(CONVERSATIONS.get(kind, 1) for kind in kinds if kind != OWN) * measure.items
        cost = talks * (measure.max_new_tokens + QUESTION_TOKENS / 3) * times
        if OWN in kinds:
            # As many questions that no tool answers; the parent answers with a listing or without.
            listed = times * 2 * measure.items if measure.listed else 0
            bare = (times - measure.listed) * 2 * measure.items
            cost += (listed + bare) * (measure.max_new_tokens + QUESTION_TOKENS / 3)
            cost += listed * LISTING_TOKENS / 3
        # Of each task's texts: the parent, the trained model, and a search by halves.
        texts = 7 * len(suites.limits(self.retain.tasks)) * self.retain.items
        return cost + (times * measure.text_items + texts) * TEXT_ITEM_TOKENS / 3

    def step_memory(self) -> list[StepMemory]:
        """Return what a step holds: the parent, the model, and all losses of the step together;
        and the steps of plain training where it is on.
        """
        training, voice, persona = self.training, self.voice, self.persona
        neutral = training.neutral_rows if training.neutral_weight > 0 else 0
        spoken = voice.rows if voice.prompts else 0
        played = persona.rows if persona.enabled else 0
        answered = spoken * voice.reply_tokens + played * persona.reply_tokens
        pairs = self.preferences.pairs * self.preferences.length_tokens
        learned = training.rows * training.length_tokens
        bake = StepMemory(
            models=2,
            rank=training.lora_rank,
            averages=1 if training.optim.average_share > 0 else 0,
            tokens=learned
            + neutral * training.length_tokens
            + answered
            + (spoken + played) * QUESTION_TOKENS
            + (pairs if self.preferences.rows else 0),
            compared_tokens=neutral * training.length_tokens + answered,
        )
        plain = replace(bake, models=3, rank=0, tokens=learned, compared_tokens=0)
        return [bake, plain] if self.baseline else [bake]

    def step_tokens(self) -> float:
        """Return the tokens of a batch: traces, neutral data and answers."""
        return (self.training.rows + self.training.neutral_rows) * self.training.length_tokens + (
            self.persona.rows * (self.persona.reply_tokens + 32) if self.persona.enabled else 0
        )


PHASE = Phase(
    name="bake",
    order=6,
    summary="bake tools, memory use and persona into the weights",
    config=Config,
    several_processes=True,
    effort=1.35,
    copies=6.0,
    example="tools=[my_tools.py]",
)
