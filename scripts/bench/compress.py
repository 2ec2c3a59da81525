"""Compression of a real model: whole-file bytes against perplexity and top-1 agreement, beside
llama.cpp's.

    python scripts/fetch_debian_text.py outputs/text/debian.jsonl
    python -m scripts.bench run compress outputs/smollm2 outputs/text/debian.jsonl [--megabytes 27 62 88]

Every file is written, reloaded and scored on 8,176 held-out tokens (--windows 16, of 512);
documents are split by a hash of their names, so calibration and scoring never share one. Everything
long is kept in --work and not done twice: the sensitivities, the codes of each rate (--losses),
each scored file. Perplexity has an interval from the spread over windows of the rise in loss
against the parent. Prints rows of JSON, a table and the bars; megabytes are millions of bytes.
--llama-python PYTHON adds llama.cpp, quantised and scored on the same tokens by that interpreter,
which needs llama-cpp-python. It gets rows padded to whole blocks, counted at their true shape, and
an importance matrix from our calibration text, for the tied head as well.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.codecs import allocate
from agent_forge.config.compose import compose
from agent_forge.core.events import Event, EventLog
from agent_forge.models import compressed
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, measure, offers, recover, sensitivity
from agent_forge.phases.compress.run import calibration_windows, header_bytes
from scripts import llama_convert
from scripts.bench.perplexity import (
    CALIBRATION_WINDOWS,
    LENGTH,
    counted,
    figures,
    held_apart,
    scored,
    windows,
)
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "At every size that llama.cpp has, a file of no more bytes loses less (SmolLM2-135M)"
BAR = "below llama.cpp's best of no more bytes up to 106 MB; 50, 62, 88 MB as in NAMED_BARS"

TRAINING_WINDOWS = 200
# (MB, perplexity) to reach, set on another sample of the same kind of text, where fp32 has
# NAMED_BARS_FP32: ratios count.
NAMED_BARS, NAMED_BARS_FP32 = ((50.0, 45.0), (62.0, 36.0), (88.0, 27.0)), 26.44
LARGEST_COMPARED = 106.0  # MB: above it both sides are near the parent
# Mixtures of llama.cpp; after a colon another type for the embedding, which the mixtures keep at 6
# bits or more.
LLAMA_TYPES = [
    "F16",
    "Q8_0",
    "Q4_K_M",
    "Q4_0",
    "IQ4_NL",
    "Q4_K_M:Q4_K",
    "Q3_K_S",
    "Q3_K_S:Q4_K",
    "IQ3_XXS",
    "IQ3_XXS:Q4_K",
    "Q2_K",
    "IQ2_S",
    "IQ2_S:Q3_K",
    "IQ2_XXS",
]


class Batches:
    """Windows of the text that calibration may see, `rows` a step, in order."""

    def __init__(self, ids: Tensor, rows: int) -> None:
        self.ids, self.rows = ids, rows

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the windows of one step."""
        places = (torch.arange(self.rows) + step * self.rows) % len(self.ids)
        return {"input_ids": self.ids[places]}


class Bench:
    """The state of a run: text, model, and where results lie."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.config = compose(
            "compress", Config, [f"out={args.work}/model", "codec=light", "runtime.dtype=bfloat16"]
        )
        tokenizer = models.load_tokenizer(args.model)
        settings = self.config.recover
        settings.block_steps, settings.steps = args.recover
        settings.optim.lr = args.recover_lr
        self.recovery = f"{settings.block_steps} steps a block, {settings.steps} end to end"
        self.space = self.workspace("work")
        self._read_text(tokenizer)
        self.events = EventLog(None, "compress", (self._show,), interval_seconds=20)
        self.model = models.load(args.model)
        self.parent = self.space.remember_tensors(
            f"parent-{args.windows}-{args.dtype}",
            lambda: {"scores": scored(self.model, self.evaluation, self.dtype)},
        )["scores"]
        self.perplexity = math.exp(float(self.parent[..., 0].double().mean()))

    def _read_text(self, tokenizer: Any) -> None:
        """Set windows to score and to calibrate on, and token counts of all the text that is not
        held out.
        """
        args = self.args
        if args.text == "phase":
            self.config.measure.windows = args.windows
            self.config.calibration.mix = {"text": 1.0}
            self.evaluation, _ = measure.held_out(self.config, tokenizer, "validation")["text"]
            self.calibration, self.counts = calibration_windows(self.config, tokenizer)
            return
        held, rest = held_apart(args.text)
        self.evaluation = windows(held, tokenizer, args.windows)
        self.calibration = windows(rest, tokenizer, CALIBRATION_WINDOWS)
        self.training = Batches(windows(rest, tokenizer, TRAINING_WINDOWS), rows=2)
        texts = [row["text"] for row in rest]
        self.counts = self.space.remember_tensors(
            "counts", lambda: {"counts": counted(texts, tokenizer)}
        )["counts"]

    def workspace(self, name: str) -> Workspace:
        """Return a place for results under --work."""
        return Workspace(Path(self.args.work) / name, phase="compress", seed=0, config={})

    def _show(self, event: Event) -> None:
        if event.kind == "progress":
            print(
                f"{event.stage} {event.step}/{event.total} at {time.process_time():.0f} CPU s",
                file=sys.stderr,
            )

    def sensitivities(self) -> Callable[[str], sensitivity.Sensitivity]:
        """Return a reader of each tensor's sensitivity, measured once."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return sensitivity.remembered(
                PhaseRun(self.config, [], self.space, self.events),
                self.model,
                sensitivity.Calibration(self.calibration, self.counts),
            )

    def coded(self, losses: list[float]) -> dict[str, list[offers.Offer]]:
        """Return every tensor's codes at the rates of `losses`, each rate in a folder of its
        own.
        """
        sensitivities = self.sensitivities()
        tensors = offers.quantisable(self.model, self.config)
        coded_by_rate: dict[str, list[offers.Offer]] = {name: [] for name in tensors}
        for loss in losses:
            self.config.codec.candidates = [{"codec": "waterfill", "loss": loss}]
            began = time.process_time()
            phase = PhaseRun(self.config, [], self.workspace(f"loss-{loss}"), self.events)
            coded = offers.all_offers(phase, self.model, tensors, sensitivities)
            for name, offered in coded.items():
                coded_by_rate[name] += offered
            size = sum(options[-1].size_bytes for options in coded_by_rate.values())
            nats = sum(options[-1].distortion for options in coded_by_rate.values())
            print(f"loss {loss}: {size / 1e6:.2f} MB coded, {nats:.4f} nats estimated, "
                  f"{time.process_time() - began:.0f} CPU s", flush=True)  # fmt: skip
        return coded_by_rate

    def file_of(
        self, coded: dict[str, list[offers.Offer]], megabytes: float, recovered: bool
    ) -> tuple[Path, float]:
        """Write the best file within a budget.

        Return its directory and the estimated rise in loss before recovery.
        """
        shapes = [options[0].shape for options in coded.values()]
        everything = sum(t.numel() for t in models.storage.stored_tensors(self.model).values())
        plain = everything - sum(rows * columns for rows, columns in shapes)
        budget = int(megabytes * 1e6) - 4 * plain - header_bytes(self.model, 4 * everything)
        if recovered:  # trained scales compress a little worse than fitted ones
            budget -= sum(rows for rows, _ in shapes) // 2
        tensors = [[offer.option() for offer in options] for options in coded.values()]
        choice = allocate.within_budget(tensors, budget)
        picked = {
            n: options[i].payload(n) for (n, options), i in zip(coded.items(), choice, strict=True)
        }
        dense = self.model
        if recovered:
            space = self.workspace(f"recover-{megabytes:g}-{self.recovery}")
            phase = PhaseRun(self.config, [], space, self.events)
            dense, picked = recover.recovered(
                phase, self.model, picked, self.calibration, self.training
            )
        place = (
            Path(self.args.work) / f"ours-{megabytes:g}{f'-{self.recovery}' if recovered else ''}"
        )
        models.save(compressed.compress(recover.light_copy(dense, picked), picked), None, place)
        return place, allocate.total_distortion(tensors, choice)

    def ours(
        self, coded: dict[str, list[offers.Offer]], megabytes: float, *, recovered: bool = False
    ) -> dict[str, Any]:
        """Write, reload and score one file."""
        began = time.process_time()
        place, nats = self.file_of(coded, megabytes, recovered)
        label = f"ours {megabytes:g} MB" + (f", recovered ({self.recovery})" if recovered else "")
        seconds = round(time.process_time() - began)
        return {
            "case": label,
            **self.score_directory(place),
            "estimated_nats": round(nats, 4),
            "cpu_seconds": seconds,
        }

    def score_directory(self, place: Path) -> dict[str, Any]:
        """Reload a checkpoint directory and score it."""
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        began = time.perf_counter()
        model = models.load(place)
        seconds = time.perf_counter() - began
        return {
            "megabytes": round(size / 1e6, 3),
            "bits_per_weight": round(8 * size / sum(t.numel() for t in self.model.parameters()), 3),
            **figures(scored(model, self.evaluation, self.dtype), self.parent),
            "load_seconds": round(seconds, 1),
        }

    def llama(self, kind: str) -> dict[str, Any]:
        """Score a llama.cpp quantisation, padded and with an importance matrix from our
        calibration, on the same tokens.
        """
        work = Path(self.args.work) / "llama"
        work.mkdir(exist_ok=True)
        source = work / "padded.gguf"
        if not (work / "importance.npz").exists():
            shares = llama_convert.convert(self.model, source)
            (work / "shares.json").write_text(json.dumps(shares))
            width, _, _ = llama_convert.padded_shape(self.model.config)
            np.savez(
                work / "importance.npz", **llama_convert.importance(self._input_squares(), width)
            )  # type: ignore[arg-type]
        (work / "tokens.json").write_text(json.dumps(self.evaluation.tolist()))
        script = Path(llama_convert.__file__).with_name("llama_reference.py")
        command = [self.args.llama_python, str(script), str(source), kind, str(work)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama.cpp failed at {kind}: {done.stderr.strip().splitlines()[-1]}")
        result = json.loads(done.stdout.splitlines()[-1])
        size, types = llama_convert.true_bytes(
            Path(result["file"]), json.loads((work / "shares.json").read_text())
        )
        Path(result["file"]).unlink()
        child = torch.tensor([result["nll"], result["top1"]], dtype=torch.float32).permute(1, 2, 0)
        return {
            "case": f"llama.cpp {kind}", "megabytes": round(size / 1e6, 2),
            "bits_per_weight": round(8 * size / sum(p.numel() for p in self.model.parameters()), 3),
            **figures(child, self.parent), "types": types,
        }  # fmt: skip

    def _input_squares(self) -> dict[str, Tensor]:
        """Return E[x²] of the inputs of every linear.

        The embedding has the figures of the head that it is tied to.
        """
        read = self.sensitivities()
        squares = {}
        for name in compressed.coded_tensors(self.model):
            if name.startswith("model.layers."):
                (use,) = read(name).uses
                squares[name] = use.columns.diagonal()
        head = read("model.embed_tokens").uses[-1]  # first the lookup, then the head
        return {**squares, "model.embed_tokens": head.columns.diagonal()}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows by size as a Markdown table."""
    lines = [
        "| case | MB | bits per weight | perplexity (95%) | ratio to fp32 | top-1 kept % |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (-r["megabytes"], r["case"])):
        lines.append(
            f"| {row['case']} | {row['megabytes']:.1f} | {row['bits_per_weight']:.2f} | {row['perplexity']:.2f} "
            f"({row['low']:.2f}–{row['high']:.2f}) | {row['ratio']:.3f} | {row['top1_kept']:.1f} |"
        )
    return "\n".join(lines)


def bars(rows: list[dict[str, Any]]) -> list[Figure]:
    """Return each bar: below llama.cpp's best of no more bytes, and the three named sizes."""
    ours = [row for row in rows if row["case"].startswith("ours")]
    theirs = [
        row
        for row in rows
        if row["case"].startswith("llama.cpp") and row["case"] != "llama.cpp F16"
    ]
    judged = []
    for size, perplexity in NAMED_BARS:
        fitting = [row for row in ours if row["megabytes"] <= size]
        if fitting:
            best = min(fitting, key=lambda r: r["ratio"])
            judged.append(judge(f"at {size:g} MB", best, perplexity / NAMED_BARS_FP32))
    for rival in sorted(theirs, key=lambda r: r["megabytes"]):
        fitting = [row for row in ours if row["megabytes"] <= rival["megabytes"]]
        if fitting and rival["megabytes"] <= LARGEST_COMPARED:
            best = min(fitting, key=lambda r: r["ratio"])
            against = f"{rival['case']} at {rival['megabytes']:.1f} MB"
            judged.append(
                judge(f"{best['megabytes']:.1f} MB against {against}", best, rival["ratio"])
            )
    return judged


def judge(claim: str, row: dict[str, Any], ratio: float) -> Figure:
    """Return a row of ours held against a ratio to fp32."""
    base = row["perplexity"] / row["ratio"]
    return Figure(
        claim=claim, figure=row["ratio"], unit="x fp32 perplexity",
        interval=(row["low"] / base, row["high"] / base), bar=f"at most {ratio:.3f} x",
        met=row["ratio"] <= ratio,
    )  # fmt: skip


def of_row(row: dict[str, Any]) -> Figure:
    """Return a scored file as a figure."""
    base = row["perplexity"] / row["ratio"]
    return Figure(
        claim=f"{row['case']}: {row['megabytes']:.1f} MB", figure=row["ratio"],
        unit="x fp32 perplexity", interval=(row["low"] / base, row["high"] / base), key=row["case"],
    )  # fmt: skip


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="compress", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model")
    add("text", help="JSON lines, or `phase` for the windows that `forge compress` itself takes")
    add("--work", default="outputs/bench")
    losses = [0.5, 0.3, 0.16, 0.08, 0.04, 0.02, 0.008, 0.0018, 0.0004]
    add("--losses", type=float, nargs="+", default=losses)
    sizes = [27, 37, 44.3, 50, 54.8, 62, 71, 79, 83, 86.5, 88, 92, 105]
    add("--megabytes", type=float, nargs="*", default=sizes)
    add("--recover", type=int, nargs=2, default=[0, 0], metavar=("BLOCK_STEPS", "STEPS"))
    add("--recover-lr", type=float, default=2e-3, help="end to end")
    add(
        "--recover-megabytes",
        type=float,
        nargs="*",
        default=[27],
        help="sizes that are recovered as well",
    )
    add("--llama-python", default="")
    add("--llama-types", nargs="*", default=LLAMA_TYPES)
    add("--windows", type=int, default=16, help="of 512 held-out tokens")
    add("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the arithmetic")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Write, reload and score every size; print rows, the table and the bars."""
    args = options(arguments)
    torch.set_num_threads(1)
    bench = Bench(args)
    weights = sum(p.numel() for p in bench.model.parameters())
    rows: list[dict[str, Any]] = [
        {
            "case": f"parent, {args.dtype} arithmetic",
            "megabytes": 4e-6 * weights,
            "bits_per_weight": 32.0,
            **figures(bench.parent, bench.parent),
        }
    ]
    print(json.dumps(rows[0]), flush=True)
    for key, measure_row in cases(bench, args):
        rows.append(bench.space.remember(key, measure_row))
        print(json.dumps(rows[-1]), flush=True)
    judged = bars(rows)
    print(table(rows))
    for figure in judged:
        verdict = "met" if figure.met else "MISSED"
        print(f"{figure.claim}: {figure.figure:.3f}, {figure.bar}: {verdict}")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{usage.ru_utime + usage.ru_stime:.0f} CPU s, peak memory {usage.ru_maxrss / 1e6:.2f} GB"
    )
    points = {
        name: [(row["megabytes"], row["ratio"]) for row in rows if row["case"].startswith(name)]
        for name in ("ours", "llama.cpp")
    }
    return Result(
        claim=CLAIM,
        topic="Compression",
        bar=BAR,
        n=f"{args.windows * (LENGTH - 1):,} held-out tokens",
        **bars_met(judged),
        **here("compress", arguments),
        figures=[*judged, *(of_row(row) for row in rows)],
        points=points,
        tables=table(rows),
    )


def cases(
    bench: Bench, args: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield (name under which it is kept, what measures it) for every file that is scored."""
    coded = bench.coded(args.losses)
    for megabytes in args.megabytes:
        rates = "-".join(f"{loss:g}" for loss in args.losses)
        key = f"scored-{megabytes:g}-{rates}-{args.windows}-{args.dtype}"
        yield key, partial(bench.ours, coded, megabytes)
    for megabytes in args.recover_megabytes if any(args.recover) else []:
        key = f"recovered-{megabytes:g}-{bench.recovery}-{args.recover_lr}-{args.windows}-{args.dtype}"
        yield key, partial(bench.ours, coded, megabytes, recovered=True)
    for kind in args.llama_types if args.llama_python else []:
        key = f"llama-{kind.replace(':', '-')}-{args.windows}-{args.dtype}"
        yield key, partial(bench.llama, kind)
