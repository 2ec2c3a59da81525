"""The Berkeley leaderboard's questions, before and after one GPU-hour of learning to call tools.

    python -m scripts.bench run bfcl outputs/smollm2 [--device cuda] [KEY=VALUE ...]
    python -m scripts.bench run --results outputs/smoke bfcl --smoke

Runs `forge bake experiment=smollm2_calls_gpu`, makes the result small (`--small`: compress to 60 MB,
or bitnet), and asks parent, baked and small model the whole sets of BFCL (bfcl-eval 2026.3.23,
`pip install --no-deps bfcl-eval`), compared as its own checker does. The bars are FunctionGemma's
figures, a model of 270 M parameters; the small model has to keep 95% of what the baked one has.

By default nothing of BFCL is trained on, and every question counts. --bfcl-rows adds the training
fifth of the sets to the rows. Questions of that fifth are then left out, and so are those that offer
a function of it under the same name, because the sets share many: of the other four fifths 35% of
simple and 62% of multiple do. Those figures are not the leaderboard's, and the result says so.

--rows FILE ... adds packaged or own chats with tool calls (all dialects that `forge data inspect`
reads), a seventh of the windows. What is in --work is neither trained nor asked again; what was made
with other settings is refused. --smoke does all of it with a tiny model, in about a minute: it tries
the script and measures nothing.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_forge import checkpoint, evaluate, models
from agent_forge.config import EvalSettings
from agent_forge.config.compose import compose
from agent_forge.core import device
from agent_forge.core.errors import DataError
from agent_forge.data import bfcl
from agent_forge.evaluate import Scores
from scripts.bench.phase_once import Finished, phase_once
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "SmolLM2-135M calls functions as well as a model of twice its size"
BAR = "BFCL simple 61.6, multiple 63.5, irrelevance 73.7 in one GPU-hour; 95% of each in 60 MB"
LEAST = {"simple": 0.616, "multiple": 0.635, "irrelevance": 0.737}
LEAST_KEPT, MOST_BYTES, MOST_MINUTES = 0.95, 60_000_000, 60.0
TASK, SMALL_WAYS = "bfcl", ("compress", "bitnet")
ALL_ITEMS = 5000  # more than the sets have
ROWS_SHARE, BFCL_SHARE = 0.16, 0.08  # windows, beside 1 of generated rows
SAMPLES = 2000
# A training that takes seconds of a processor.
SMOKE_DATA = ("data.max_text_bytes=300000", "gate.enabled=false", "runtime.compile=off")
SMOKE: Mapping[str, tuple[str, ...]] = {
    "bake": (
        "training.steps=3", "training.rows=2", "training.length_tokens=256", "training.neutral_rows=1",
        "training.generated_rows=40", "voice.prompts=4", "voice.heldout=2", "voice.reply_tokens=4",
        "measure.text_items=4", *SMOKE_DATA,
    ),
    "bitnet": (
        "linear.group_size=32", "init.rows=4", "train.steps=3", "train.rows=2", "train.length_tokens=256",
        "measure_items=8", "unseen_items=4", "domain_items=1", *SMOKE_DATA,
    ),
    "compress": (
        "budget.bytes_ratio=0.3", "codec.min_weights=512", "calibration.windows=4", "calibration.length_tokens=96",
        "calibration.count_windows=8", "recover.steps=2", "recover.rows=2", "recover.length_tokens=96",
        "measure.windows=2", "measure.length_tokens=96", "measure.unseen_items=4", "measure.domain_items=1",
        *SMOKE_DATA,
    ),
}  # fmt: skip
SMOKE_ITEMS = 10


def run(arguments: Sequence[str] = ()) -> Result:
    """Bake, make small, ask all models, print each bar, and return the figures."""
    args = _options(arguments)
    try:
        bfcl.folder()
    except DataError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    args.work.mkdir(parents=True, exist_ok=True)
    baked = phase_once(args.work / "baked", _words(args, "bake"), _baked_by(args))
    small = {
        way: phase_once(args.work / way, _words(args, way), _settings(args, way, baked.path))
        for way in args.small
    }
    items = _items(args)
    compared = {
        "the parent": args.source,
        "baked": baked.path,
        **{w: s.path for w, s in small.items()},
    }
    scores = {name: _scores(path, items, args) for name, path in compared.items()}
    figures = [
        *_right(scores["the parent"], "the parent", {}), *_right(scores["baked"], "baked", LEAST),
        Figure(
            claim="minutes of the bake by the clock", figure=round(baked.minutes, 1), unit="minutes",
            bar=f"at most {MOST_MINUTES:.0f}", met=baked.minutes <= MOST_MINUTES,
        ),
        Figure(claim="the bake's gate passed (1: yes)", figure=float(baked.passed), bar="passed", met=baked.passed),
        *(figure for way in small for figure in _kept(way, small[way], scores["baked"], scores[way])),
    ]  # fmt: skip
    for figure in figures:
        verdict = (
            "" if figure.met is None else f" ({figure.bar}: {'met' if figure.met else 'MISSED'})"
        )
        print(f"{figure.claim}: {figure.figure} {figure.unit} {figure.interval or ''}{verdict}")
    return Result(
        claim=CLAIM, topic="Tools", bar=BAR, n=f"{len(items):,} questions", figures=figures,
        note=_note(args), **bars_met(figures), **here("bfcl", arguments),
    )  # fmt: skip


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bfcl", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("source", type=Path, nargs="?", help="the checkpoint to bake into")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--bfcl-rows", action="store_true", help="also train on the training fifth of BFCL")
    add("--rows", nargs="*", default=[], help="files of chats to train on as well")
    add("--small", nargs="*", default=["compress"], choices=SMALL_WAYS, help="how it is made small")
    add("--items", type=int, default=ALL_ITEMS, help="most questions over all sets")
    add("--work", type=Path, default=Path("outputs/bfcl"))
    add("--smoke", action="store_true", help="a tiny model, in about a minute; measures nothing")
    add("settings", nargs="*", metavar="KEY=VALUE", help="settings of the bake")
    args = parser.parse_intermixed_args(arguments)
    if args.source is not None and "=" in str(args.source):
        args.settings.insert(0, str(args.source))
        args.source = None
    if args.smoke:
        args.work, args.items = args.work / "smoke", min(args.items, SMOKE_ITEMS)
        args.source = args.source or tiny_model(args.work)
    if args.source is None:
        parser.error("name the checkpoint to bake into, as in outputs/smollm2")
    return args


def tiny_model(work: Path) -> Path:
    """Return a checkpoint of random weights and 1,024 tokens, made where it is missing."""
    from scripts.gpu_parts import SMALL, stand_in

    place = work / "model"
    if not (place / "forge.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        stand_in(place, "sotu", SMALL)
    return place


def _words(args: argparse.Namespace, phase: str) -> tuple[str, ...]:
    return (phase, "experiment=smollm2_calls_gpu", f"runtime.device={args.device}")


def _baked_by(args: argparse.Namespace) -> list[str]:
    """Return the settings of the bake: its source, its further rows, and the user's own."""
    chosen = [f"sources=[{args.source}]", *(SMOKE["bake"] if args.smoke else ())]
    if args.bfcl_rows:
        chosen.append(f"+training.mix.bfcl={BFCL_SHARE}")
    if args.rows:
        chosen += [f"data.rows=[{','.join(args.rows)}]", f"+training.mix.rows={ROWS_SHARE}"]
    return [*chosen, *args.settings]


def _settings(args: argparse.Namespace, way: str, baked: Path) -> list[str]:
    return [f"sources=[{baked}]", *(SMOKE[way] if args.smoke else ())]


def _items(args: argparse.Namespace) -> list[Any]:
    """Return the questions: the whole sets, or those that have nothing of the training fifth."""
    settings = compose("eval", EvalSettings, [])
    context = evaluate.EvalContext(data=settings.data, seed=settings.seed)
    items = evaluate.task_items(TASK, bfcl.WHOLE, args.items, context)
    return untouched(items, bfcl.entries("train")) if args.bfcl_rows else items


def untouched(items: Sequence[Any], trained: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return the items that are not among the trained entries and offer none of their functions."""
    ids = {entry["id"] for entry in trained}
    names = set().union(*(_functions(entry) for entry in trained))
    return [item for item in items if item["id"] not in ids and not names & _functions(item)]


def _functions(entry: Mapping[str, Any]) -> set[str]:
    return {tool["function"]["name"] for tool in entry["messages"][0]["tools"]}


def _scores(path: Path, items: Sequence[Any], args: argparse.Namespace) -> Scores:
    """Return what a checkpoint scores, from --work where it was asked the same questions before."""
    opened = checkpoint.open(path)
    which = hashlib.sha256("".join(item["id"] for item in items).encode()).hexdigest()[:8]
    noted = args.work / f"{opened.manifest.id[:16]}-{which}.json"
    if not noted.exists():
        settings = compose("eval", EvalSettings, [f"runtime.device={args.device}"])
        device.set_threads(settings.runtime.threads)
        place = device.pick_device(settings.runtime.device)
        tokenizer = models.load_tokenizer(opened.path)
        context = evaluate.EvalContext(data=settings.data, tokenizer=tokenizer, seed=settings.seed)
        scores = evaluate.score_items(
            models.load(opened, device=place, dtype=device.pick_dtype(settings.runtime.dtype)),
            tokenizer, TASK, items, bfcl.WHOLE, context,
        )  # fmt: skip
        noted.write_text(json.dumps(scores.to_plain()), encoding="utf-8")
    return Scores.from_plain(json.loads(noted.read_text(encoding="utf-8")))


def _right(scores: Scores, name: str, least: Mapping[str, float]) -> list[Figure]:
    """Return the share of right answers per set, judged by its value, as the bars are written."""
    return [
        Figure(
            claim=f"{kind}: {name}", figure=round(one["value"], 3), interval=(one["low"], one["high"]),
            n=f"{one['n']} questions", bar=f"at least {least[kind]}" if kind in least else "",
            met=one["value"] >= least[kind] if kind in least else None,
        )
        for kind, one in sorted(scores.by_kind().items())
    ]  # fmt: skip


def _kept(way: str, small: Finished, before: Scores, after: Scores) -> list[Figure]:
    """Return the small model's bytes, and what it keeps of the baked one per set."""
    size = checkpoint.open(small.path).manifest.deployable_bytes
    retentions = evaluate.retention_by_kind(before, after, SAMPLES, 0)
    return [
        Figure(
            claim=f"{way}: bytes", figure=float(size), unit="bytes", bar=f"at most {MOST_BYTES:,}",
            met=size <= MOST_BYTES,
        ),
        *_right(after, way, {}),
        *(
            Figure(
                claim=f"{kind}: kept by {way}", figure=round(retentions[kind].ratio, 3),
                interval=(retentions[kind].low, retentions[kind].high), n=f"{retentions[kind].n} questions",
                bar=f"at least {LEAST_KEPT}", met=retentions[kind].ratio >= LEAST_KEPT,
            )
            for kind in LEAST if kind in retentions
        ),
    ]  # fmt: skip


def _note(args: argparse.Namespace) -> str:
    if args.smoke:
        return "A smoke run of a tiny model: the figures mean nothing."
    if args.bfcl_rows:
        return (
            "Trained on the training fifth of these sets; scored on the questions outside it that "
            "offer none of its functions. Not comparable with figures on the whole sets."
        )
    return "The whole sets; nothing of them was trained on."
