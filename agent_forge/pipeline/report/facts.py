"""What a report says, before anybody formats it: the run, its phases, what the agent can do.

Reads outcomes, writes `RunFacts`. The page, the Markdown and the terminal's last screen show these
facts, so that all three agree. Nothing is measured here; the only arithmetic is ratios of sizes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ConfigError
from agent_forge.pipeline.catalogue import phase_named
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report import words

QUESTION = "What is 48 plus 77?"
TEXT = "text"


@dataclass(slots=True, kw_only=True)
class PhaseFacts:
    """One phase of a run. verdict: one word; tone: good, bad or plain."""

    position: int
    outcome: Outcome
    purpose: str
    verdict: str
    tone: str

    @property
    def name(self) -> str:
        """Return the phase's name."""
        return self.outcome.phase

    @property
    def scores(self) -> dict[str, dict[str, Any]]:
        """Return task -> score with interval, as the gate measured them; {} where it did not."""
        return dict((self.outcome.verdict or {}).get("scores", {}))

    @property
    def parent_scores(self) -> dict[str, dict[str, Any]]:
        """Return task -> the parent's score on the same items."""
        return dict((self.outcome.verdict or {}).get("parent_scores", {}))

    @property
    def retentions(self) -> dict[str, dict[str, Any]]:
        """Return task -> what was kept of the parent."""
        return dict((self.outcome.verdict or {}).get("retentions", {}))

    @property
    def chain(self) -> dict[str, dict[str, Any]]:
        """Return task -> what was kept of the base of the chain."""
        return dict((self.outcome.verdict or {}).get("chain", {}))

    @property
    def reasons(self) -> list[str]:
        """Return why the gate refused the phase, in words."""
        return [words.tidy(reason) for reason in (self.outcome.verdict or {}).get("reasons", [])]

    @property
    def accepted(self) -> bool:
        """Return whether the next phase reads this one's output."""
        return self.outcome.status == "done"


@dataclass(slots=True, kw_only=True)
class RunFacts:
    """A run: its phases, the last accepted one, and the base that the chain is compared with."""

    run_dir: str
    phases: list[PhaseFacts]
    base_name: str = ""
    base_bytes: int = 0
    base_scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    resume: str = ""  # the command that goes on with an unfinished run

    @property
    def name(self) -> str:
        """Return the name of the run's directory, which stays when the run is moved."""
        return Path(self.run_dir).absolute().name

    @property
    def final(self) -> PhaseFacts | None:
        """Return the last accepted phase, whose output is what the run has made."""
        accepted = [phase for phase in self.phases if phase.accepted and phase.outcome.outputs]
        return accepted[-1] if accepted else None

    @property
    def stopped(self) -> PhaseFacts | None:
        """Return the phase that ended the run before its end, or None."""
        return next(
            (p for p in self.phases if p.outcome.status not in ("done", "rejected")),
            None,
        )

    @property
    def path(self) -> str:
        """Return the directory of what the run has made, or ""."""
        return self.final.outcome.outputs[0] if self.final else ""

    def able(self) -> list[str]:
        """Return the tasks on which the result is above chance."""
        scores = self.final.scores if self.final else {}
        return [name for name, score in scores.items() if not score.get("at_chance")]

    def guessed(self) -> list[str]:
        """Return the tasks on which the result is at chance."""
        scores = self.final.scores if self.final else {}
        return [name for name, score in scores.items() if score.get("at_chance")]


def gather(
    outcomes: Sequence[Outcome], run_dir: str = "", base_bytes: int = 0, resume: str = ""
) -> RunFacts:
    """Return the facts of a run.

    base_bytes: deployable size of a base that the run read; the base that a run makes itself is its
    first phase's output, whose size the outcome has.
    """
    phases = [
        PhaseFacts(
            position=position, outcome=outcome, purpose=_purpose(outcome.phase),
            verdict=verdict_word(outcome), tone=_tone(outcome),
        )
        for position, outcome in enumerate(outcomes, start=1)
    ]  # fmt: skip
    run = RunFacts(run_dir=run_dir, phases=phases, resume=resume)
    judged = [p for p in phases if p.accepted and (p.outcome.verdict or {}).get("chain")]
    if judged:
        verdict = judged[-1].outcome.verdict or {}
        run.base_name = str(verdict.get("base", {}).get("name", "base"))
        run.base_scores = dict(verdict.get("base_scores", {}))
    if phases and not phases[0].outcome.parent:
        run.base_bytes = phases[0].outcome.deployable_bytes
        run.base_name = run.base_name or _name_of(phases[0].outcome)
        run.base_scores = run.base_scores or phases[0].scores
    else:
        run.base_bytes = base_bytes
    return run


def _name_of(outcome: Outcome) -> str:
    return Path(outcome.outputs[0]).name if outcome.outputs else outcome.phase


def _purpose(name: str) -> str:
    """Return what a phase does, from its own summary; "" for a phase that is not installed."""
    try:
        return words.sentence(phase_named(name).summary)
    except ConfigError:
        return ""


def verdict_word(outcome: Outcome) -> str:
    """Return how a phase ended: passed, refused, kept by policy, not gated, interrupted, failed."""
    if outcome.status == "rejected":
        return "refused"
    if outcome.status != "done":
        return outcome.status
    if outcome.verdict is None:
        return "not gated"
    return "passed" if outcome.verdict.get("passed", True) else "refused, kept by policy"


def _tone(outcome: Outcome) -> str:
    return {"passed": "good", "not gated": "plain"}.get(verdict_word(outcome), "bad")


def title(run: RunFacts) -> str:
    """Return what was made and how good it is, in one line."""
    if run.final is None:
        return "No phase of this run has been accepted yet"
    packed = f"{words.size(run.final.outcome.deployable_bytes)} "
    if not run.final.scores:
        return f"A {packed}model that has not been scored"
    skills = [name for name in run.able() if name != TEXT]
    if not skills:
        return f"A {packed}model that cannot do any of the tasks yet"
    best = max(skills, key=lambda name: run.final.scores[name]["value"])  # type: ignore[union-attr]
    score = run.final.scores[best]
    if words.is_share(str(score.get("metric", ""))):
        return f"A {packed}agent that gets {words.score(score)} of its {words.task(best)} right"
    return f"A {packed}agent with {words.score(score)} on {words.task(best)}"


def lead(run: RunFacts) -> list[str]:
    """Return how small it is, what it kept, and what it cannot do: one sentence each."""
    if run.final is None:
        return []
    sentences = [text for text in (_smaller(run), _chain_sentence(run)) if text]
    guessed = words.joined([words.task(name) for name in run.guessed()])
    if guessed and not [name for name in run.able() if name != TEXT]:
        sentences.append(
            f"On {guessed} it is at chance: its answers are no better than guessing. This run shows"
            " that the eight phases work together, not that the model is of use."
        )
    elif guessed:
        sentences.append(f"On {guessed} it is at chance: no better than guessing.")
    return sentences


def _smaller(run: RunFacts) -> str:
    assert run.final is not None
    size, count = run.final.outcome.deployable_bytes, len(run.phases)
    phases = f"{count} phase{'s' * (count != 1)}"
    origin = f" from {run.base_name} ({words.size(run.base_bytes)})" if run.base_bytes else ""
    ratio = run.base_bytes / size if size else 0.0
    shrunk = f": {words.times(ratio)} smaller" if ratio >= 1.05 else ""
    return f"Made by {phases}{origin}{shrunk}."


def _chain_sentence(run: RunFacts) -> str:
    entries = chain_entries(run)
    parts = [
        f"{words.percent(entry['ratio'])} on {words.task(name)}"
        + (f" (at least {words.percent(entry['low'])})" if entry.get("low") is not None else "")
        for name, entry in entries.items()
        if not entry.get("at_chance") and entry.get("ratio") is not None
    ]
    return f"Of the quality of {run.base_name} it keeps {words.joined(parts)}." if parts else ""


def stop_reason(run: RunFacts) -> str:
    """Return where and why a run ended before its end; "" where it did not."""
    if run.stopped is None:
        return ""
    return words.sentence(f"The run ended in {run.stopped.name}: {reason(run.stopped)}")


def reason(phase: PhaseFacts) -> str:
    """Return why a phase ended as it did, without its name before it; "" where all is well."""
    if phase.reasons:
        return "; ".join(phase.reasons)
    said = phase.outcome.message or (phase.verdict if phase.tone == "bad" else "")
    for start in (f"{phase.name}: ", f"{phase.name} "):
        said = said.removeprefix(start)
    return words.tidy(said)


def chain_entries(run: RunFacts) -> dict[str, dict[str, Any]]:
    """Return task -> what the result kept of the base of its chain; {} where nothing compared."""
    judged = [phase for phase in run.phases if phase.accepted and phase.chain]
    return judged[-1].chain if judged else {}


def gain(phase: PhaseFacts) -> str:
    """Return what a phase gained or lost against its parent, from the paired retentions."""
    parts, unchanged, guessed = [], [], []
    for name, entry in phase.retentions.items():
        task, ratio = words.task(name), entry.get("ratio")
        if entry.get("at_chance"):
            guessed.append(task)
        elif ratio is None:
            parts.append(f"{task}: the parent scored nothing")
        elif entry["low"] > 1:
            parts.append(f"{task} better by {words.number(100 * (ratio - 1))}%")
        elif entry["high"] < 1:
            parts.append(f"{task} worse by {words.number(100 * (1 - ratio))}%")
        else:
            unchanged.append(task)
    if unchanged:
        parts.append(f"no clear change on {words.joined(unchanged)}")
    if guessed:
        parts.append(f"not compared, because the parent is at chance: {words.joined(guessed)}")
    return words.sentence("; ".join(parts))


# A signed figure with its interval, as phases write a gain over a baseline.
_SIGNED_INTERVAL = re.compile(r"([+-][\d.,]+) \[([+-][\d.,]+), ([+-][\d.,]+)\]")


def baseline(phase: PhaseFacts) -> str:
    """Return how the phase stands against a baseline of equal budget, or that none ran.

    A signed gain is called better, worse, or no clear difference, by its interval.
    """
    said = str(phase.outcome.report.get("baseline") or "none ran")
    return words.sentence(words.tidy(_SIGNED_INTERVAL.sub(_judged, said)))


def _judged(match: re.Match[str]) -> str:
    low, high = (float(match[place].replace(",", "")) for place in (2, 3))
    word = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    if low == high == 0:
        return f"{match[1]} (no difference)"
    return f"{match[1]} ({word}: {match[2]} to {match[3]})"


def finding(phase: PhaseFacts) -> str:
    """Return the phase's own sentence on its result, or why it ended without one."""
    said = str(phase.outcome.report.get("summary", "") or phase.outcome.message)
    return words.sentence(words.tidy(said))


def notes(phase: PhaseFacts) -> list[str]:
    """Return the gate's notes on tasks whose verdict few items could not settle."""
    return [
        f"{words.task(name)}, against {against}: {words.tidy(entry['note'])}"
        for against, rows in (("the parent", phase.retentions), ("the chain's base", phase.chain))
        for name, entry in rows.items()
        if entry.get("note") and not entry.get("at_chance")
    ]


def gate_line(verdict: Mapping[str, Any], *, name_guessed: bool = True) -> str:
    """Return a gate's verdict in one line: "passed: text .980 (≥ .977); at chance: memory".

    name_guessed: False leaves out the tasks at chance, where an earlier line has named them.
    """
    if not verdict.get("passed", True):
        return f"refused: {'; '.join(map(words.tidy, verdict.get('reasons', [])))}"
    retentions, scores = verdict.get("retentions", {}), verdict.get("scores", {})
    rows = retentions or scores
    parts = [
        f"{words.task(name)} {kept_short(entry) if retentions else _score_short(entry)}"
        for name, entry in rows.items()
        if not entry.get("at_chance")
    ]
    text = ", ".join(parts)
    if name_guessed and (guessed := guessed_in(verdict)):
        text += f"{'; ' * bool(text)}at chance: {', '.join(guessed)}"
    return f"passed: {text}" if text else "passed"


def guessed_in(verdict: Mapping[str, Any]) -> list[str]:
    """Return the tasks, in words, on which a gate could compare nothing."""
    rows = verdict.get("retentions", {}) or verdict.get("scores", {})
    return [words.task(name) for name, entry in rows.items() if entry.get("at_chance")]


def _score_short(entry: Mapping[str, Any]) -> str:
    metric = str(entry.get("metric", ""))
    unit = "" if words.is_share(metric) or not metric else f" {metric}"
    return f"{words.short(entry['value'])}{unit}"


def kept_short(entry: Mapping[str, Any], *, with_limit: bool = False) -> str:
    """Return a retention as the terminal writes it: ".980 (≥ .977)", or with "; limit .95"."""
    if entry.get("ratio") is None:
        return "of nothing"
    limit = f"; limit {words.short(entry['limit'])}" if with_limit and entry.get("limit") else ""
    return f"{words.short(entry['ratio'])} (≥ {words.short(entry['low'])}{limit})"


def commands(run: RunFacts) -> list[tuple[str, str]]:
    """Return three commands to try with the result, each with what it is for."""
    if not run.path:
        return []
    base = run.phases[0].outcome.outputs[0] if run.phases[0].outcome.outputs else ""
    compared = base if base and base != run.path else ""
    tasks = ",".join(run.able())
    second = (
        (
            f"forge compare {compared} {run.path} -t {tasks or TEXT}",
            "measure it beside the first model",
        )
        if compared
        else (f"forge eval {run.path}", "measure it on held-out items")
    )
    return [
        (f"forge chat {run.path} '{QUESTION}'", "chat with it"),
        second,
        (f"forge inspect {run.path}", "see what it is made of"),
    ]
