"""Run the bake phase: traces, filter, persona lessons, one joint training, own answers where they
are on, measurement, one checkpoint.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge import evaluate, learn, models
from agent_forge.config import Report
from agent_forge.core.errors import PhaseError
from agent_forge.core.seeds import seed_for
from agent_forge.learn.adapters import Adapters, adapters
from agent_forge.phases import PhaseRun
from agent_forge.phases.bake import (
    OWN,
    Config,
    baseline,
    lessons,
    measure,
    on_policy,
    own,
    own_measure,
    persona,
    retain,
    traces,
)
from agent_forge.phases.bake.preferences import Preferences
from agent_forge.phases.bake.voice import Voice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELDOUT = "validation"


def run(phase: PhaseRun[Config]) -> Report:
    """Bake `sources[0]`. Raises PhaseError without a source or without anything to bake."""
    config, out = phase.config, phase.out
    if not phase.sources:
        raise PhaseError("bake needs a checkpoint to bake into; set sources=[DIR]")
    parent, model = (models.load(phase.sources[0].path, device=phase.device) for _ in range(2))
    parent.eval().requires_grad_(False)
    before = out.remember("before", lambda: _measure(phase, parent, baked=False))
    helpful, table = lessons.collect(phase, parent)
    traits = _Traits(phase, parent)
    spoken = Voice(phase, parent)
    pairs = Preferences(phase, parent)
    batches = lessons.BakeBatches(
        config, phase.tokenizer, helpful, traits.lessons, spoken.lesson, pairs.lesson
    )
    loss_fn = lessons.joint_loss(config, parent, batches, traits.weights)
    answers = on_policy.Answers(phase, parent, helpful[OWN]) if config.on_policy.steps > 0 else None
    adapter, rounds = _trained(phase, model, batches, loss_fn, answers)
    drawn_back = retain.draw_back(phase, parent, model)
    after = out.remember("after", lambda: _measure(phase, model))
    reached = out.remember("strengths", lambda: traits.measure(model))
    voice_kl = out.remember("voice", lambda: spoken.measure(model))
    preferred = out.remember("preferences", lambda: pairs.measure(model))
    plain = _plain(phase, batches)
    metrics = _metrics(before, after, reached)
    if voice_kl is not None:
        metrics["voice change (nats per token)"] = voice_kl
    if preferred is not None:
        metrics["chosen answer likelier"] = preferred
    if drawn_back:
        metrics["share of the change"] = retain.share(drawn_back)
    offered = _offered(phase, after["tools"])
    written = out.write(
        partial(_save, phase, model, adapter),
        metrics=metrics,
        agent=agent_settings(config, offered, own.reply_tokens(phase) if OWN in offered else 0),
        deployable_bytes=models.deployable_bytes(model),
    )
    return Report(
        summary=_summary(after["tools"], offered, table),
        outputs=[str(written.path)],
        metrics=metrics,
        tables={
            "traces": table,
            "held-out tools": _tool_rows(before, after, plain, offered),
            "how held-out answers ended": _ending_rows(after),
            **({"own tools": own_measure.table(before, after, plain)} if "own" in after else {}),
            **({"own answers": rounds} if rounds else {}),
            **({"drawn back to the parent": drawn_back} if drawn_back else {}),
            "persona": traits.rows(reached),
            **({"own pairs, held out": [preferred]} if preferred is not None else {}),
        },
        samples=after["samples"],
        baseline=_against(batches, after, plain),
    )


def _summary(
    tools: Mapping[str, Any], offered: Sequence[str], table: Sequence[Mapping[str, Any]]
) -> str:
    """Return the report's one line: what is right, what is offered, which filter was overridden."""
    accuracy = ", ".join(
        f"{kind} {figure['value']:.1%} (n={figure['n']})" for kind, figure in tools.items()
    )
    overridden = [str(row["kind"]) for row in table if row["taken below tau (filter overridden)"]]
    return (
        f"held-out calls right: {accuracy or 'none made'}; "
        f"offered: {', '.join(offered) or 'no tool'}"
        + (f"; filter overridden for {', '.join(overridden)}" if overridden else "")
    )


def _offered(phase: PhaseRun[Config], measured: Mapping[str, Any]) -> list[str]:
    """Return the kinds of tool that the model is offered; a warning names the others."""
    config = phase.config
    offered = offered_kinds(config, measured)
    unusable = [kind for kind in lessons.enabled_kinds(config) if kind not in offered]
    if unusable:
        phase.events.warning(
            f"{', '.join(unusable)}: the model cannot use these tools, so it is not offered them "
            f"by default (less than {config.measure.offer_from:.0%} right by the lower bound, "
            "measure.offer_from)"
        )
    return offered


def _save(
    phase: PhaseRun[Config], model: "PreTrainedModel", adapter: "Adapters | None", directory: Path
) -> None:
    """Write the model, and the adapter that was merged into it."""
    models.save(model, phase.tokenizer, directory)
    if adapter is not None:
        adapter.write(directory / "adapter", phase.sources[0].name)


def _trained(
    phase: PhaseRun[Config],
    model: "PreTrainedModel",
    batches: lessons.BakeBatches,
    loss_fn: learn.LossFn,
    answers: on_policy.Answers | None,
) -> "tuple[Adapters | None, list[dict[str, Any]]]":
    """Train the model, or adapters that are then merged; return the adapters, and the report's
    table of own answers, empty where they are off.
    """
    config = phase.config
    training = config.training
    seed = seed_for(config.seed, "bake", "adapters")
    with adapters(
        model, training.lora_rank, training.lora_alpha, seed, "training.lora_rank"
    ) as adapter:
        learn.train(
            model,
            learn.TrainRequest(
                batches=batches,
                loss_fn=loss_fn,
                stage="bake",
                steps=training.steps,
                optim=training.optim,
                out=phase.out,
                events=phase.events,
                seed=seed_for(config.seed, "bake", "train"),
                device=phase.device,
                dtype=phase.dtype,
                settings={"lora": [training.lora_rank, training.lora_alpha]},
            ),
        )
        rounds = [] if answers is None else on_policy.train(phase, model, batches, loss_fn, answers)
    return adapter, rounds


def _plain(phase: PhaseRun[Config], batches: lessons.BakeBatches) -> dict[str, Any] | None:
    """Return the measurements of plain training on the same rows.

    None where it is off, and where the bake itself is plain training.
    """
    if not phase.config.baseline or baseline.is_same(batches):
        return None

    def compute() -> dict[str, Any]:
        return _measure(phase, baseline.fine_tuned(phase, batches))

    return dict(phase.out.remember("plain", compute))


def _against(
    batches: lessons.BakeBatches, after: dict[str, Any], plain: dict[str, Any] | None
) -> str:
    """Return the report's line on the baseline."""
    if baseline.is_same(batches):
        return baseline.SAME
    return baseline.NOT_RUN if plain is None else baseline.phrase(after, plain)


def offered_kinds(config: Config, measured: Mapping[str, Any]) -> list[str]:
    """Return the baked kinds whose tools the model can use: the lower bound of the share of right
    held-out answers is high enough, theirs or that of another kind with the same tools.
    """
    kinds = {kind: set(traces.TOOLS.get(kind, (kind,))) for kind in lessons.enabled_kinds(config)}
    able = [kind for kind in kinds if measured[kind]["low"] >= config.measure.offer_from]
    usable = {tool for kind in able for tool in kinds[kind]}
    return [kind for kind, names in kinds.items() if names <= usable]


def agent_settings(config: Config, offered: Sequence[str], reply_tokens: int = 0) -> dict[str, Any]:
    """Return the manifest's `agent` entry: the tools of the kinds that are offered, and how the
    agent decodes.

    reply_tokens: what a turn with the user's own tools needs.
    """
    builtin = [tool for kind in offered if kind != OWN for tool in traces.TOOLS[kind]]
    tools: list[Any] = list(dict.fromkeys(builtin))
    if OWN in offered:
        tools += [tool.entry() for tool in own.load_tools(tuple(config.tools))]
    return {
        "tools": tools,
        "allow": list(config.allow) if OWN in offered else [],
        "system": "",
        "decoder": {
            "temperature": 0.0,
            "max_new_tokens": max(config.measure.max_new_tokens, reply_tokens),
        },
        "scaffold": {"name": "direct"},
        "memory": {"recall_facts": 0},
    }


class _Traits:
    """The persona lessons, and the thermostat that pauses a trait at its target strength."""

    def __init__(self, phase: PhaseRun[Config], parent: "PreTrainedModel") -> None:
        self.config, self.out, seed = phase.config.persona, phase.out, phase.config.seed
        self.lessons: lessons.Lessons = {}
        self.heldout: lessons.Lessons = {}
        self.base: dict[str, float] = {}
        for name, trait in self.config.traits.items() if self.config.enabled else ():
            teacher_seed = seed_for(seed, "bake", "teacher", name)

            def lesson(
                split: str,
                count: int,
                name: str = name,
                trait: Any = trait,
                drawn: int = teacher_seed,
            ) -> Any:
                questions = persona.questions(trait, count, split, seed, name)
                return self.out.remember_tensors(
                    f"persona-{name}-{split}",
                    lambda: persona.teach(
                        parent, phase.tokenizer, trait, questions, self.config, drawn
                    ),
                )

            self.heldout[name] = lesson(HELDOUT, self.config.heldout)
            self.base[name] = self.out.remember(
                f"persona-{name}-effect", partial(persona.effect, parent, self.heldout[name])
            )
            if self.base[name] < self.config.min_effect_nats:
                phase.events.warning(
                    f"persona {name}: the system prompt moves the parent by {self.base[name]:.4f} nats per token only; "
                    "the trait is not baked"
                )
                continue
            self.lessons[name] = lesson("train", self.config.prompts)

    def measure(self, model: "PreTrainedModel") -> dict[str, float]:
        """Return each baked trait's strength on held-out questions."""
        return {
            name: persona.strength(persona.effect(model, self.heldout[name]), self.base[name])
            for name in self.lessons
        }

    def weights(self, model: "PreTrainedModel", step: int) -> Mapping[str, float]:
        """Return each trait's weight at `step`: 0 while its last measured strength is at the
        target.
        """
        every = self.config.check_every_steps
        if step < every:
            return dict.fromkeys(self.lessons, self.config.weight)
        check = step // every
        strengths = self.out.remember(f"strengths-{check}", lambda: self.measure(model))
        return {
            name: 0.0
            if strengths[name] >= self.config.traits[name].strength
            else self.config.weight
            for name in self.lessons
        }

    def rows(self, reached: Mapping[str, float]) -> list[dict[str, Any]]:
        """Return the report's table: each trait's strength and target, and how far the prompt moves
        the parent.
        """
        return [
            {
                "trait": name,
                "strength": round(reached[name], 3) if name in reached else "not baked",
                "target": self.config.traits[name].strength,
                "prompt effect (nats/token)": round(self.base[name], 4),
                "held-out answers": len(self.heldout[name]["ids"]),
            }
            for name in self.base
        ]


def _measure(
    phase: PhaseRun[Config], model: "PreTrainedModel", *, baked: bool = True
) -> dict[str, Any]:
    """Return held-out tool accuracy by kind, text bits per byte, and sample conversations.

    baked: the user's own tools are measured without a prompt too; the parent only knows them from
    a listing, so for the parent that figure is the listed one.
    """
    config, tokenizer = phase.config, phase.tokenizer
    measured: dict[str, Any] = {"tools": {}}
    samples: list[str] = []
    for kind in lessons.enabled_kinds(config):
        if kind == OWN:
            bare, shown, listed = own_measure.figures(phase, model, baked=baked)
            measured |= {"own": bare, "own listed": listed}
            measured["tools"] |= bare
        else:
            heldout = heldout_traces(config, kind)
            measured["tools"][kind], shown = measure.accuracy(model, phase, kind, heldout, HELDOUT)
        samples += shown
    text = evaluate.score(
        model, tokenizer, ["text"], HELDOUT, config.measure.text_items, phase.eval_context
    )["text"]
    return {**measured, "text": text.as_metric(), "samples": samples}


def heldout_traces(config: Config, kind: str) -> list[traces.Trace]:
    """Return the held-out traces of a kind. Of memory these are only the recalls, which run the
    writes before them.
    """
    items = config.measure.items
    count = 3 * items if kind == "memory" else items
    candidates = traces.make(kind, count, HELDOUT, config.seed, config.data, config.traces.digits)
    return [trace for trace in candidates if kind != "memory" or trace["filtered"]][:items]


def _metrics(
    before: dict[str, Any], after: dict[str, Any], reached: Mapping[str, float]
) -> dict[str, Any]:
    metrics: dict[str, Any] = {f"tools/{kind}": value for kind, value in after["tools"].items()}
    metrics |= {f"tools before/{kind}": value for kind, value in before["tools"].items()}
    metrics["text bits per byte"] = after["text"]
    metrics["text bits per byte before"] = before["text"]
    metrics["text bits per byte change"] = after["text"]["value"] / before["text"]["value"] - 1.0
    return metrics | {f"persona strength/{name}": value for name, value in reached.items()}


def _ending_rows(after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return per kind how many held-out answers were right, and how the others went wrong."""
    return [
        {"kind": kind, **{name: figure["endings"].get(name, 0) for name in measure.ENDINGS}}
        for kind, figure in after["tools"].items()
        if "endings" in figure
    ]


def _tool_rows(
    before: dict[str, Any],
    after: dict[str, Any],
    plain: dict[str, Any] | None,
    offered: Sequence[str],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, value in after["tools"].items():
        earlier = before["tools"][kind]
        rows.append(
            {"kind": kind, "before": earlier["value"], "after": value["value"],
             "low": value["low"], "high": value["high"], **baseline.columns(plain, kind),
             "n": value["n"], "offered": kind.partition(":")[0] in offered}
        )  # fmt: skip
        for name, part in value.get("kinds", {}).items():
            rows.append(
                {"kind": f"{kind}, {name}", "before": earlier["kinds"][name]["value"],
                 "after": part["value"], "low": part["low"], "high": part["high"], "n": part["n"]}
            )  # fmt: skip
    return rows
