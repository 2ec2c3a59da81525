"""What `forge adas` finds for a model that calls tools where none fits, beside equal baselines.

    python -m scripts.bench run adas CHECKPOINT [--items 100] [--fit 32] [--fresh 48] [KEY=VALUE ...]

The task is `abstain`: whether to call at all, on questions of which no listed tool can answer half.
`forge adas` seeks how likely a call has to be before a reply may begin as one
(`call_gate.items`): it sets the bound on some questions of the search split, and accepts it on
fresh ones. Its search over weights is switched off here, so the weights stay as they are. Every
baseline that learns or searches may read as many tokens forward as that search did:

    LoRA            supervised fine-tuning on the questions that the search had, with their answers
    random search   prompts and bounds drawn at random, the best on those questions
    random vectors  noise on all weights, with the norms of what LoRA changed, the best of the draws
    best of n       a vote of replies drawn at temperature 1; it searches nothing, and each answer
                    costs n times as much

Questions of the test split are then read once by each. Differences are paired by question, their
intervals resample clusters of questions about one object, and the chances are corrected by Holm's
method. What is in --work already is not done again: a killed bench goes on.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agent_forge import checkpoint, data, evaluate, learn, models
from agent_forge.agent import scaffolds
from agent_forge.agent.settings import AgentSettings
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core import device
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator, torch_generator
from agent_forge.data.windows import positions
from agent_forge.evaluate import Scores
from agent_forge.evaluate.tasks.abstain import FITS, NONE_FITS
from agent_forge.learn.adapters import adapters
from agent_forge.phases.adas import Config
from agent_forge.phases.adas import call_gate as gates
from agent_forge.phases.adas.pool import RUNTIME
from scripts.bench.own_tools import forge
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "adas on SmolLM2 gains over the best baseline of equal budget"
BAR = "the 95% interval of the gain over the best of all baselines excludes 0"
INPUT, OURS = "the input", "adas"
# Only the gate is sought: no expert is trained, no weight moves, and no other technique is raced.
ONLY_THE_GATE = (
    "domains=[text]", "fitness={text:1.0,reasoning:0,memory:0,tools:0}", "experts.svf_steps=0",
    "experts.task_steps=0", "experts.max_parameters=1", "search.iterations=0",
    "search.race_items=[1]", "search.race_keep=[]", "search.pool_items=2", "search.drift_items=1",
    "search.screened=1", "search.baselines=false", "runtime_search.techniques=[]", "test_items=2",
    "gate.enabled=false", "runtime.dtype=bfloat16",
)  # fmt: skip
PROMPTS = ("chain_of_thought", "plan_solve", "step_back", "few_shot", "re_reading")
DRAWS = 5  # candidates of random search and of random vectors, and votes of best of n
# The same as in conf/experiment/smollm2_schemas.yaml.
LORA_RANK, LORA_ALPHA, LORA_LR, WINDOW = 16, 32.0, 1e-3, 720
SAMPLES = 10_000  # draws of the paired bootstrap and of the sign flips
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
Array = NDArray[np.float64]


@dataclass(slots=True)
class Bench:
    """The model as it came, and the questions: those that the search had, and those of the test."""

    source: checkpoint.Checkpoint
    config: Config
    work: Path
    search: list[Any]
    test: list[Any]
    tokenizer: Any
    model: Any

    def remember(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what is in WORK/NAME.json, computed where it is not there."""
        path = self.work / f"{name}.json"
        if not path.exists():
            print(f"{name} …", flush=True)
            text = json.dumps(compute())
            path.with_suffix(".part").write_text(text, encoding="utf-8")
            path.with_suffix(".part").rename(path)
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def decisions(self, items: Sequence[Any], bound: float = 0.0) -> tuple[Array, int]:
        """Return (n,), 1 for each right decision, and the tokens that were read."""
        shares, tokens = gates.call_shares(self.model, self.tokenizer, items)
        return gates.right_decisions(shares, gates.needs_of(items), bound), tokens


def run(arguments: Sequence[str] = ()) -> Result:
    """Search, train and draw; open the test split; print the gains, and return them."""
    parser = argparse.ArgumentParser(prog="adas", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, help="a checkpoint that calls tools")
    add("--items", type=int, default=100, help="questions of the test split")
    add("--fit", type=int, default=32, help="questions of the search split that set the bound")
    add("--fresh", type=int, default=48, help="questions of the search split that decide on it")
    add("--work", type=Path, default=Path("outputs/adas_bench"))
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of forge adas")
    args = parser.parse_intermixed_args(arguments)
    args.work.mkdir(parents=True, exist_ok=True)
    bound, tokens = _searched(args)
    bench = _opened(args)
    right = _every_arm(bench, bound, tokens)
    scores = {name: _scores(bench, one["right"]) for name, one in right.items()}
    compared = _compared(scores)
    others = [name for name in scores if name not in (INPUT, OURS)]
    best = max(others, key=lambda name: scores[name].mean)
    figures = [
        _gain(scores, best, compared, bar=True),
        *(_gain(scores, name, compared) for name in (INPUT, *others) if name != best),
        *(Figure(claim=f"right decisions: {name}", figure=round(one.mean, 3),
                 interval=one.interval, n=f"{one.n} questions") for name, one in scores.items()),
        Figure(claim="least probability of a call (0: nothing was accepted)", figure=bound),
        Figure(claim="tokens that the search read", figure=float(tokens)),
    ]  # fmt: skip
    for figure in figures:
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.interval or ''}")
    return Result(
        claim=CLAIM, topic="Agent", bar=BAR, n=f"{args.items} questions, one seed",
        figures=figures, tables=_table(scores, right, compared), **bars_met(figures),
        **here("adas", arguments),
    )  # fmt: skip


def _searched(args: argparse.Namespace) -> tuple[float, int]:
    """Run `forge adas`; return the bound that it accepted, and the tokens that it read for it."""
    out, noted = args.work / "adas", args.work / "settings.json"
    chosen = [
        f"sources=[{args.source}]", *ONLY_THE_GATE, f"call_gate.items={args.fit}",
        f"call_gate.final_items={args.fresh}", *args.settings,
    ]  # fmt: skip
    known = json.loads(noted.read_text(encoding="utf-8")) if noted.exists() else None
    if known not in (None, [*chosen, args.items]):
        raise SystemExit(f"{args.work} holds a run with other settings; name another --work")
    noted.write_text(json.dumps([*chosen, args.items]), encoding="utf-8")
    if not (out / "forge.json").exists():
        forge("adas", f"out={out}", *chosen)
    metrics = checkpoint.open(out).manifest.metrics
    return float(metrics["call_gate"]), int(metrics["call_gate_tokens"])


def _opened(args: argparse.Namespace) -> Bench:
    settings = [*ONLY_THE_GATE, *args.settings, f"sources=[{args.source}]"]
    config = compose("adas", Config, settings)
    device.set_threads(config.runtime.threads)
    source = checkpoint.open(args.source)
    tokenizer = models.load_tokenizer(source.path)
    context = evaluate.EvalContext(data=config.data, tokenizer=tokenizer, seed=config.seed)
    search = evaluate.task_items(gates.TASK, "search", args.fit + args.fresh, context)
    test = evaluate.task_items(gates.TASK, "test", args.items, context)
    model = models.load(source, device=device.pick_device(config.runtime.device),
                        dtype=DTYPES[config.runtime.dtype])  # fmt: skip
    return Bench(source, config, args.work, search, test, tokenizer, model)


def _every_arm(bench: Bench, bound: float, tokens: int) -> dict[str, dict[str, Any]]:
    """Return name -> {"right": of each test question, "tokens": read before the test}.

    All that chooses is done before the first question of the test split is read.
    """
    lora = bench.remember("lora", lambda: _lora(bench, tokens))
    drawn = bench.remember("random_search", lambda: _random_search(bench, tokens))
    noise = bench.remember("random_vectors", lambda: _random_vectors(bench, tokens, lora["norms"]))
    test = bench.remember("test", lambda: _plain_test(bench, bound))
    arms = {
        INPUT: {"right": test[INPUT], "tokens": 0},
        OURS: {"right": test[OURS], "tokens": tokens},
        "LoRA": lora,
        "random search": drawn,
        "random vectors": noise,
        f"best of {DRAWS}": {"right": test["votes"], "tokens": 0},
    }
    return {name: {"right": one["right"], "tokens": one["tokens"]} for name, one in arms.items()}


def _plain_test(bench: Bench, bound: float) -> dict[str, Any]:
    """Return the decisions of the unchanged weights: as they are, under the bound, and by vote."""
    shares, _ = gates.call_shares(bench.model, bench.tokenizer, bench.test)
    needs = gates.needs_of(bench.test)
    draws = numpy_generator(bench.config.seed, "bench", "votes").random((DRAWS, len(shares)))
    votes = (draws < shares[:, 0]).sum(0) > DRAWS / 2
    return {
        INPUT: gates.right_decisions(shares, needs, 0.0).tolist(),
        OURS: gates.right_decisions(shares, needs, bound).tolist(),
        "votes": (votes == (needs > 0)).astype(float).tolist(),
    }


def _lora(bench: Bench, tokens: int) -> dict[str, Any]:
    """Train on the questions of the search for as many tokens; return its decisions, the tokens,
    and the norm of what it changed in each weight.
    """
    config, window = bench.config, min(WINDOW, positions(bench.model.config) or WINDOW)
    steps = max(1, round(tokens / window))
    model = models.load(bench.source, device=bench.model.device, dtype=torch.float32)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    out = Workspace(bench.work / "lora", phase="bench", seed=config.seed, config={})
    batches = data.Mixture(
        {"rows": data.RowSource(bench.search, bench.tokenizer)}, {"rows": 1.0}, rows=1,
        length_tokens=window, seed=config.seed, name="questions of the search",
    )  # fmt: skip
    optim = replace(
        config.experts.optim, lr=LORA_LR, warmup_steps=min(3, steps), cooldown_share=0.8
    )
    with adapters(model, LORA_RANK, LORA_ALPHA, config.seed, "the bench"):
        learn.train(
            model,
            learn.TrainRequest(
                batches=batches, loss_fn=_cross_entropy, stage="lora", steps=steps, optim=optim,
                out=out, events=EventLog(None, "bench"), seed=config.seed, runtime=config.runtime,
                device=model.device, dtype=DTYPES[config.runtime.dtype],
            ),
        )  # fmt: skip
    norms = {
        name: float((weight.detach() - before[name]).norm())
        for name, weight in model.named_parameters()
    }
    own, bench.model = bench.model, model.to(bench.model.dtype)
    right, _ = bench.decisions(bench.test)
    bench.model = own
    return {"right": right.tolist(), "tokens": steps * window, "norms": norms}


def _cross_entropy(
    model: Any, batch: Mapping[str, torch.Tensor], step: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    del step
    logits = model(input_ids=batch["input_ids"], use_cache=False).logits
    loss = learn.next_token_loss(logits, batch["labels"])
    return loss, {"cross_entropy": loss.detach()}


def _random_search(bench: Bench, tokens: int) -> dict[str, Any]:
    """Draw prompts and bounds; return the decisions of the best, and the tokens that were read."""
    generator = numpy_generator(bench.config.seed, "bench", "random search")
    items = _share_of(bench.search)
    solved = [(row["messages"][0]["content"], str(row["answer"])) for row in _solved(bench)]
    best, read, most = (AgentSettings(), 0.0), 0, -1.0
    for _ in range(DRAWS):
        name = (*PROMPTS, "")[int(generator.integers(len(PROMPTS) + 1))]
        bound = float(generator.random())
        settings = AgentSettings.from_manifest(RUNTIME[name].settings(solved) if name else {})
        right, used = bench.decisions(_prompted(items, settings), bound)
        read += used
        if right.mean() > most:
            best, most = (settings, bound), float(right.mean())
        if read >= tokens:
            break
    right, _ = bench.decisions(_prompted(bench.test, best[0]), best[1])
    return {
        "right": right.tolist(), "tokens": read, "bound": best[1], "scaffold": best[0].scaffold,
        "prompt": best[0].scaffold_prompt,
    }  # fmt: skip


def _solved(bench: Bench) -> list[Any]:
    context = evaluate.EvalContext(data=bench.config.data, seed=bench.config.seed)
    return evaluate.task_items("reasoning", "train", 8, context)


def _prompted(items: Sequence[Any], settings: AgentSettings) -> list[Any]:
    """Return the questions as a scaffold shows them."""
    shown = []
    for item in items:
        messages = item["messages"][: item.get("prompt_turns")]
        shown.append(
            {**item, "messages": scaffolds.scaffolded(settings, messages), "prompt_turns": None}
        )
    return shown


def _random_vectors(bench: Bench, tokens: int, norms: Mapping[str, float]) -> dict[str, Any]:
    """Draw noise of these norms; return the decisions of the best draw, and the tokens read."""
    items, best, most, read = _share_of(bench.search), 0, -1.0, 0
    for number in range(DRAWS):
        with _Noise(bench, norms, number):
            right, used = bench.decisions(items)
        read += used
        if right.mean() > most:
            best, most = number, float(right.mean())
        if read >= tokens:
            break
    with _Noise(bench, norms, best):
        right, _ = bench.decisions(bench.test)
    return {"right": right.tolist(), "tokens": read, "draw": best}


class _Noise:
    """The model with noise on its weights; afterwards they are as before, bit for bit."""

    def __init__(self, bench: Bench, norms: Mapping[str, float], number: int) -> None:
        self.bench, self.norms, self.number = bench, norms, number
        self.kept: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        generator = torch_generator(self.bench.config.seed, "bench", "noise", self.number)
        for name, weight in self.bench.model.named_parameters():
            if self.norms.get(name, 0.0) > 0:
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                self.kept[name] = weight.detach().clone()
                weight.copy_(weight.float() + noise * (self.norms[name] / noise.norm()))

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for name, weight in self.bench.model.named_parameters():
            if name in self.kept:
                weight.copy_(self.kept[name])


def _share_of(items: Sequence[Any]) -> list[Any]:
    """Return so many questions that all draws together read as many as the search."""
    return list(items[: max(2, len(items) // DRAWS)])


def _scores(bench: Bench, right: Sequence[float]) -> Scores:
    pairs = np.stack([np.asarray(right), np.ones(len(right))], 1)
    return evaluate.scores_of(gates.TASK, bench.test, pairs, "test", bench.config.seed)


def _compared(scores: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Return adas over each other: gain, 95% interval, and the chance of it corrected by Holm."""
    ours, rows = scores[OURS], {}
    for name, other in scores.items():
        if name != OURS:
            shared: dict[str, Any] = {"samples": SAMPLES, "seed": 0, "confidence": 0.975}
            gain, low = evaluate.paired_gain(other, ours, **shared)
            high = -evaluate.paired_gain(ours, other, **shared)[1]
            bounds = {"low": low + 0.0, "high": high + 0.0}  # -0 becomes 0
            rows[name] = {"gain": gain + 0.0, **bounds, "p": chance(other, ours)}
    corrected = evaluate.holm([row["p"] for row in rows.values()])
    return {
        name: {**row, "p by Holm": p}
        for (name, row), p in zip(rows.items(), corrected, strict=True)
    }


def chance(base: Scores, other: Scores) -> float:
    """Return how likely so large a gain is where nothing helps: the one-sided p of the sign-flip
    test over clusters.
    """
    pull = other.sums()[0] - base.sums()[0]
    flips = numpy_generator(0, "bench", "flips").choice((-1.0, 1.0), (SAMPLES, len(pull)))
    return float((1 + (flips @ pull >= pull.sum() - 1e-12).sum()) / (SAMPLES + 1))


def _gain(
    scores: Mapping[str, Scores], name: str, compared: Mapping[str, Any], *, bar: bool = False
) -> Figure:
    row = compared[name]
    best = ", the best baseline" if bar else ""
    return Figure(
        claim=f"gain in right decisions over {name}{best}", figure=round(row["gain"], 3),
        interval=(row["low"], row["high"]), n=f"{scores[name].n} questions",
        bar="above 0" if bar else "", met=row["low"] > 0 if bar else None,
    )  # fmt: skip


def _table(
    scores: Mapping[str, Scores], right: Mapping[str, Any], compared: Mapping[str, Any]
) -> str:
    lines = [
        "| | tokens read before the test | calls nothing where no tool fits | calls where one fits "
        "| right | adas over it | p by Holm |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, score in scores.items():
        kinds = score.by_kind()
        shares = " | ".join(
            f"{kinds[kind]['value']:.2f} [{kinds[kind]['low']:.2f}, {kinds[kind]['high']:.2f}]"
            for kind in (NONE_FITS, FITS)
        )
        row = compared.get(name)
        against = (
            f"{row['gain']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}] | {row['p by Holm']:.4f}"
            if row
            else " | "
        )
        lines.append(
            f"| {name} | {right[name]['tokens']:,} | {shares} | {score.mean:.2f} | {against} |"
        )
    return "\n".join(lines)
