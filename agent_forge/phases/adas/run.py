"""Run the adas phase: train experts, search, race scaffolds, open the test split once, write the
winner.
"""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from agent_forge import models
from agent_forge.anatomy.stack import Matrix
from agent_forge.config import Report
from agent_forge.core.errors import ConfigError
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config, call_gate, runtime_search
from agent_forge.phases.adas.archive import archive
from agent_forge.phases.adas.candidate import Candidate, MergeBench
from agent_forge.phases.adas.evolution import by_cma
from agent_forge.phases.adas.experts import ExpertBank, train_bank
from agent_forge.phases.adas.influence import measure_influence
from agent_forge.phases.adas.objective import Drift, Objective, encode, make_objective, rows_of
from agent_forge.phases.adas.opened import Opened, beyond_doubt
from agent_forge.phases.adas.pool import COMPOSITIONS, EDITS, RUNTIME, Subject
from agent_forge.phases.adas.targets import find_matrices, within_budget
from agent_forge.phases.adas.tpe import by_tpe
from agent_forge.phases.adas.trust import (
    Propose,
    State,
    TrustSearch,
    anywhere,
    around_incumbent,
    begin_at,
)

LOOKED_AT = 4  # texts of each sort from which block influence and directions are measured


def run(phase: PhaseRun[Config]) -> Report:
    """Compose experts into sources[0]; write the model that the search accepted, or the input
    itself.
    """
    config, out = phase.config, phase.out
    if not phase.sources:
        raise ConfigError("adas reads a checkpoint: give sources=[DIR]")
    runtime_search.check(config)
    propose = _proposals(config)
    source = phase.sources[0]
    model = models.load(source, device=phase.device, dtype=phase.dtype)
    every = find_matrices(model)
    chosen = within_budget(every, config.experts.max_parameters)
    bank, expert_rows = train_bank(phase, model, chosen)
    search = config.search
    rows = search.pool_items + search.iterations * search.accept_items
    objective = _objective(phase, "search", rows, pool=search.pool_items)
    bench = MergeBench(model, bank, every, _subject_maker(phase, model, every))
    texts = rows_of("text", "search", search.drift_items, phase.eval_context)
    drift = Drift(model, [encode(phase.tokenizer, text) for text in texts])
    runs = _search_all(phase, bench, objective, drift, propose)
    winner = runs["adas"][1].incumbent
    opened = out.remember("test", lambda: _open_test(phase, bench, runs))
    test = opened["searches"]
    bench.put(winner)
    runtime_result = out.remember(
        "runtime", lambda: runtime_search.search_settings(phase, model, source.manifest.agent)
    )
    gate = out.remember("call-gate", lambda: call_gate.search_gate(phase, model))
    agent = runtime_search.laid_over(source.manifest.agent, runtime_result["settings"])
    agent = runtime_search.laid_over(agent, gate["settings"])
    metrics = _metrics(test, runs, winner, len(chosen)) | call_gate.metrics(gate)
    written = out.write(
        lambda directory: models.save(model, phase.tokenizer, directory),
        metrics=metrics,
        agent=agent,
        extra={
            "candidate": winner.to_plain(),
            "runtime": runtime_result["accepted"],
            "search_items": objective.items_hash,
        },
        deployable_bytes=models.deployable_bytes(model),
    )
    accepted = sum(step["accepted"] for step in runs["adas"][0].log)
    return Report(
        summary=_summary(winner, accepted, config, test["adas"], runtime_result["accepted"])
        + call_gate.phrase(gate),
        outputs=[str(written.path)],
        metrics=metrics,
        tables={
            "experts": expert_rows,
            "search": [_row(step) for step in runs["adas"][0].log],
            "pool screened": runs["adas"][2],
            "archive": archive(
                runs["adas"][1].trials,
                runs["adas"][0].log,
                search.race_items[0] * len(objective.rows),
            ),
            "test split, against baselines at equal budget": [
                {"search": label, **row} for label, row in test.items()
            ],
            "test split, every comparison": opened["family"],
            "scaffolds and decoders": runtime_result["rows"],
            "call gate": gate["rows"],
        },
        baseline=_baseline(test, beyond_doubt(opened["family"], search.confidence)),
    )


def _baseline(test: dict[str, dict[str, Any]], better: list[str]) -> str:
    """Return the gains of the search and of its baselines in one phrase ("" where no baseline
    ran), and where ours is better beyond doubt.
    """
    others = [
        f"{label} {entry['gain_nats']:+.4f} [{entry['low']:+.4f}, {entry['high']:+.4f}]"
        for label, entry in test.items()
        if label != "adas"
    ]
    ours = test["adas"]
    gain = f"{ours['gain_nats']:+.4f} [{ours['low']:+.4f}, {ours['high']:+.4f}]"
    claims = "; beyond doubt by Holm: " + (", ".join(better) or "nothing")
    return f"gain in nats {gain} against {', '.join(others)}{claims}" if others else ""


def _objective(phase: PhaseRun[Config], split: str, count: int, pool: int = 0) -> Objective:
    search = phase.config.search
    return make_objective(
        phase.config.fitness,
        phase.tokenizer,
        split,
        count,
        phase.eval_context,
        samples=search.samples,
        confidence=search.confidence,
        pool=pool,
    )


def _subject_maker(phase: PhaseRun[Config], model: PreTrainedModel, matrices: list[Matrix]) -> Any:
    """Return what builds an edit's view of the model; the measurements are made once, on the
    input.
    """

    config, tokenizer, context = phase.config, phase.tokenizer, phase.eval_context

    def measure() -> dict[str, Tensor]:
        plain = [
            encode(tokenizer, item)[0] for item in rows_of("text", "train", LOOKED_AT, context)
        ]
        kinds = [kind for kind in config.domains if kind != "text"] or ["reasoning"]
        tasks = [
            encode(tokenizer, row)[0]
            for kind in kinds
            for row in rows_of(kind, "train", LOOKED_AT, context)
        ]
        return measure_influence(model, matrices, plain, tasks)

    measurements = phase.out.remember_tensors("influence", measure)

    def named(kind: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(f"{kind}/"): value
            for key, value in measurements.items()
            if key.startswith(f"{kind}/")
        }

    heads = int(model.config.num_attention_heads)
    shared: dict[str, Any] = {
        "matrices": matrices, "heads": heads,
        "kv_heads": int(getattr(model.config, "num_key_value_heads", None) or heads),
        "influence": {int(key): float(value) for key, value in named("influence").items()},
        "share": {key: float(value) for key, value in named("share").items()},
        "stream": {int(key): value.to(model.device) for key, value in named("stream").items()},
        "rank_share": config.experts.rank_share, "density": config.experts.density,
    }  # fmt: skip
    return lambda weight: Subject(weight=weight, **shared)


Runs = dict[str, tuple[TrustSearch, State, list[dict[str, Any]], ExpertBank]]


def _search_all(
    phase: PhaseRun[Config],
    bench: MergeBench,
    objective: Objective,
    drift: Drift,
    propose: Propose,
) -> Runs:
    """Run the search and its baselines: random search, and the same search with random vectors of
    equal norm.
    """
    config = phase.config
    size, runs = len(config.domains), Runs()
    labels = ("adas", "random search", "random vectors") if config.search.baselines else ("adas",)
    real = bench.bank
    for label in labels:
        bench.bank = real.randomised(label) if label == "random vectors" else real
        search = TrustSearch(label.replace(" ", "-"), phase, bench, objective, drift)
        state = State(incumbent=Candidate(technique="svf_all", alpha=(0.0,) * size))
        screened: list[dict[str, Any]] = []
        if label == "random search":
            search.run(state, anywhere(config.search))
        else:
            screened = search.screen(size)
            begin_at(state, screened, config.search.scale)
            search.run(state, propose)
        runs[label] = (search, state, screened, bench.bank)
    bench.bank = real
    return runs


def _proposals(config: Config) -> Propose:
    """Return how the search finds its candidates, as `search.proposals` says."""
    if config.search.proposals == "optuna":
        return by_tpe(config.search, config.domains)
    if config.search.proposals == "cma":
        return by_cma(config.search)
    return around_incumbent(config.search)


def _open_test(phase: PhaseRun[Config], bench: MergeBench, runs: Runs) -> dict[str, Any]:
    """Score the winner of each search on the test split: its gain over the input, and every
    comparison of our search.
    """
    objective = _objective(phase, "test", phase.config.test_items)
    picks, real = objective.everything(), bench.bank
    bench.restore()
    before, after = objective.losses(bench.model, picks), {}
    for label, (_, state, _, bank) in runs.items():
        bench.bank = bank
        with bench.applied(state.incumbent) as model:
            after[label] = objective.losses(model, picks)
    bench.bank = real
    opened = Opened(objective, picks, before, after)
    searches = {
        label: {
            **gain, "rows_scored": runs[label][0].rows_scored,
            "accepted": sum(step["accepted"] for step in runs[label][0].log),
            "items": objective.items_hash,
        }
        for label, gain in opened.gains().items()
    }  # fmt: skip
    return {"searches": searches, "family": opened.family()}


def _metrics(
    test: dict[str, dict[str, Any]], runs: Runs, winner: Candidate, changed: int
) -> dict[str, Any]:
    ours = test["adas"]
    return {
        "test_gain_nats": {
            "value": ours["gain_nats"],
            "low": ours["low"],
            "high": ours["high"],
            "n": ours["n"],
        },
        **{
            f"test_gain_nats {label}": row["gain_nats"]
            for label, row in test.items()
            if label != "adas"
        },
        "accepted": sum(step["accepted"] for step in runs["adas"][0].log),
        "strength": sum(map(abs, winner.alpha)) / len(winner.alpha),
        "expert_matrices": changed,
        "pool": len(COMPOSITIONS) + len(EDITS) + len(RUNTIME),
    }


def _row(step: dict[str, Any]) -> dict[str, Any]:
    candidate = step.get("candidate") or {"technique": "", "alpha": [], "edits": []}
    return {
        "iteration": step["iteration"], "technique": candidate["technique"],
        "strengths": " ".join(f"{a:+.2f}" for a in candidate["alpha"]), "edits": " ".join(candidate["edits"]),
        "raced_gain_nats": step.get("raced_gain", 0.0), "gain_nats": step["gain"], "low": step["low"],
        "chance": step.get("chance", 1.0), "drift_nats": step.get("drift_nats", 0.0),
        "accepted": step["accepted"],
    }  # fmt: skip


def _summary(
    winner: Candidate, accepted: int, config: Config, test: dict[str, Any], scaffold: str
) -> str:
    run_time = f"; the agent's run time uses {scaffold}" if scaffold else ""
    if winner.changes_nothing:
        return f"no composition was better beyond doubt: the weights are the input's{run_time}"
    strengths = ", ".join(
        f"{d} {a:+.2f}" for d, a in zip(config.domains, winner.alpha, strict=True)
    )
    edits = f" and {', '.join(winner.edits)}" if winner.edits else ""
    return (
        f"{winner.technique} ({strengths}){edits} after {accepted} of {config.search.iterations} iterations: "
        f"{test['gain_nats']:+.4f} nats per token on the test split (at least {test['low']:+.4f}){run_time}"
    )
