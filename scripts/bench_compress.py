"""Measure compression of a real model: whole-file bytes against perplexity and top-1 agreement, beside llama.cpp's.

    python scripts/fetch_debian_text.py outputs/text/debian.jsonl
    python scripts/bench_compress.py outputs/smollm2 outputs/text/debian.jsonl [--megabytes 27 37 50 62 88 105]

Every file is written, reloaded and scored on 8,176 held-out tokens (--windows 16, of 512); documents are split by a hash of
their names, so calibration and scoring never share one. Everything long is kept in --work and not done twice: the
sensitivities, the codes of each rate (--losses), each scored file. Perplexity has an interval from the spread over windows
of the rise in loss against the parent. Prints rows of JSON, a table and the bars; megabytes are millions of bytes.
--llama-python PYTHON adds llama.cpp, quantised and scored on the same tokens by that interpreter, which needs
llama-cpp-python. It gets rows padded to whole blocks, counted at their true shape, and an importance matrix from our
calibration text, for the tied head as well.
"""

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_codecs
import llama_convert
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.codecs import allocate
from agent_forge.config.compose import compose
from agent_forge.core.events import Event, EventLog
from agent_forge.models import compressed
from agent_forge.phases.compress import Config, measure, offers, recover, sensitivity
from agent_forge.phases.compress.run import calibration_windows, header_bytes

LENGTH = 512
CALIBRATION_WINDOWS = 24
TRAINING_WINDOWS = 200
HELD_OUT = 26  # of 256 hash values
# (MB, perplexity) to reach, set on another sample of the same kind of text, where fp32 has NAMED_BARS_FP32: ratios count.
NAMED_BARS, NAMED_BARS_FP32 = ((50.0, 45.0), (62.0, 36.0), (88.0, 27.0)), 26.44
LARGEST_COMPARED = 106.0  # MB: above it both sides are near the parent
# Mixtures of llama.cpp; after a colon another type for the embedding, which the mixtures keep at 6 bits or more.
LLAMA_TYPES = [
    "F16", "Q8_0", "Q4_K_M", "Q4_0", "IQ4_NL", "Q4_K_M:Q4_K", "Q3_K_S", "Q3_K_S:Q4_K", "IQ3_XXS", "IQ3_XXS:Q4_K", "Q2_K",
    "IQ2_S", "IQ2_S:Q3_K", "IQ2_XXS",
]  # fmt: skip


def windows(rows: list[dict[str, str]], tokenizer: Any, count: int) -> Tensor:
    """Return `count` windows (count, LENGTH) that begin at evenly spaced documents, in the order of a hash of names."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(f"order/{row['source']}".encode()).digest())
    found = []
    for index in range(count):
        ids: list[int] = []
        place = index * len(rows) // count
        while len(ids) < LENGTH:
            ids += tokenizer(rows[place]["text"][:6000] + "\n\n").input_ids
            place += 1
        found.append(ids[:LENGTH])
    return torch.tensor(found)


def counted(texts: list[str], tokenizer: Any) -> Tensor:
    """Return how often each token comes in `texts`: (vocabulary,) float32."""
    counts = torch.zeros(len(tokenizer))
    for text in texts:
        counts += torch.bincount(torch.tensor(tokenizer(text).input_ids), minlength=len(counts))
    return counts


@torch.no_grad()
def scored(model: Any, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (windows, LENGTH - 1, 2): the loss in nats of each next token, and the token thought likeliest."""
    parts = []
    for batch in ids.split(4):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        nll = [functional.cross_entropy(row.float(), target, reduction="none")
               for row, target in zip(logits, batch[:, 1:], strict=True)]  # fmt: skip
        parts.append(torch.stack([torch.stack(nll), logits.argmax(-1).float()], -1))
    return torch.cat(parts)


def figures(child: Tensor, parent: Tensor) -> dict[str, float]:
    """Return perplexity with its 95% interval (given the parent's), the ratio to the parent, and top-1 agreement."""
    rise = (child[..., 0] - parent[..., 0]).double().mean(1)  # a window each
    half = 1.96 * float(rise.std()) / math.sqrt(len(rise))
    base = float(parent[..., 0].double().mean())
    return {
        "perplexity": round(math.exp(base + float(rise.mean())), 3),
        "low": round(math.exp(base + float(rise.mean()) - half), 3),
        "high": round(math.exp(base + float(rise.mean()) + half), 3),
        "ratio": round(math.exp(float(rise.mean())), 4),
        "top1_kept": round(100 * float((child[..., 1] == parent[..., 1]).double().mean()), 2),
    }


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
        self.config = compose("compress", Config, [f"out={args.work}/model", "codec=light"])
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
            f"parent-{args.windows}-{args.dtype}", lambda: {"scores": scored(self.model, self.evaluation, self.dtype)}
        )["scores"]
        self.perplexity = math.exp(float(self.parent[..., 0].double().mean()))

    def _read_text(self, tokenizer: Any) -> None:
        """Set windows to score and to calibrate on, and token counts of all the text that is not held out."""
        args = self.args
        if args.text == "phase":
            self.config.measure.windows = args.windows
            self.config.calibration.mix = {"text": 1.0}
            self.evaluation, _ = measure.held_out(self.config, tokenizer, "validation")["text"]
            self.calibration, self.counts = calibration_windows(self.config, tokenizer)
            return
        rows = [json.loads(line) for line in Path(args.text).read_text(encoding="utf-8").splitlines()]
        held = [hashlib.sha256(row["source"].encode()).digest()[0] < HELD_OUT for row in rows]
        self.evaluation = windows([r for r, h in zip(rows, held, strict=True) if h], tokenizer, args.windows)
        self.calibration = windows(
            [r for r, h in zip(rows, held, strict=True) if not h], tokenizer, CALIBRATION_WINDOWS
        )
        rest = [r for r, h in zip(rows, held, strict=True) if not h]
        self.training = Batches(windows(rest, tokenizer, TRAINING_WINDOWS), rows=2)
        texts = [row["text"] for row, h in zip(rows, held, strict=True) if not h]
        self.counts = self.space.remember_tensors("counts", lambda: {"counts": counted(texts, tokenizer)})["counts"]

    def workspace(self, name: str) -> Workspace:
        """Return a place for results under --work."""
        return Workspace(Path(self.args.work) / name, phase="compress", seed=0, config={})

    def _show(self, event: Event) -> None:
        if event.kind == "progress":
            print(f"{event.stage} {event.step}/{event.total} at {time.process_time():.0f} CPU s", file=sys.stderr)

    def sensitivities(self) -> Callable[[str], sensitivity.Sensitivity]:
        """Return a reader of each tensor's sensitivity, measured once."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return sensitivity.remembered(self.model, self.calibration, 0, self.space, self.events, self.counts)

    def coded(self, losses: list[float]) -> dict[str, list[offers.Offer]]:
        """Return every tensor's codes at the rates of `losses`, each rate in a folder of its own."""
        sensitivities = self.sensitivities()
        tensors = offers.quantisable(self.model, self.config)
        found: dict[str, list[offers.Offer]] = {name: [] for name in tensors}
        for loss in losses:
            self.config.codec.candidates = [{"codec": "waterfill", "loss": loss}]
            began = time.process_time()
            coded = offers.all_offers(
                self.model, tensors, sensitivities, self.config, self.workspace(f"loss-{loss}"), self.events
            )
            for name, offered in coded.items():
                found[name] += offered
            size = sum(options[-1].size_bytes for options in found.values())
            nats = sum(options[-1].distortion for options in found.values())
            print(f"loss {loss}: {size / 1e6:.2f} MB coded, {nats:.4f} nats estimated, "
                  f"{time.process_time() - began:.0f} CPU s", flush=True)  # fmt: skip
        return found

    def file_of(self, coded: dict[str, list[offers.Offer]], megabytes: float, recovered: bool) -> tuple[Path, float]:
        """Write the best file within a budget; return its directory and the estimated rise in loss before recovery."""
        shapes = [options[0].shape for options in coded.values()]
        everything = sum(t.numel() for t in models.storage.stored_tensors(self.model).values())
        plain = everything - sum(rows * columns for rows, columns in shapes)
        budget = int(megabytes * 1e6) - 4 * plain - header_bytes(self.model, 4 * everything)
        if recovered:  # trained scales compress a little worse than fitted ones
            budget -= sum(rows for rows, _ in shapes) // 2
        tensors = [[offer.option() for offer in options] for options in coded.values()]
        choice = allocate.within_budget(tensors, budget)
        picked = {n: options[i].payload(n) for (n, options), i in zip(coded.items(), choice, strict=True)}
        dense = self.model
        if recovered:
            dense, picked = recover.recovered(
                self.model, picked, self.calibration, self.training, self.config.recover,
                self.workspace(f"recover-{megabytes:g}-{self.recovery}"), self.events, seed=0, dtype=torch.bfloat16,
            )  # fmt: skip
        place = Path(self.args.work) / f"ours-{megabytes:g}{f'-{self.recovery}' if recovered else ''}"
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
        return {"case": label, **self.score_directory(place), "estimated_nats": round(nats, 4), "cpu_seconds": seconds}

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
        """Score a llama.cpp quantisation, padded and with an importance matrix from our calibration, on the same tokens."""
        work = Path(self.args.work) / "llama"
        work.mkdir(exist_ok=True)
        source = work / "padded.gguf"
        if not (work / "importance.npz").exists():
            shares = llama_convert.convert(self.model, source)
            (work / "shares.json").write_text(json.dumps(shares))
            width, _, _ = llama_convert.padded_shape(self.model.config)
            np.savez(work / "importance.npz", **llama_convert.importance(self._input_squares(), width))  # type: ignore[arg-type]
        (work / "tokens.json").write_text(json.dumps(self.evaluation.tolist()))
        script = Path(__file__).with_name("llama_reference.py")
        command = [self.args.llama_python, str(script), str(source), kind, str(work)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"llama.cpp failed at {kind}: {done.stderr.strip().splitlines()[-1]}")
        result = json.loads(done.stdout.splitlines()[-1])
        size, types = llama_convert.true_bytes(Path(result["file"]), json.loads((work / "shares.json").read_text()))
        Path(result["file"]).unlink()
        child = torch.tensor([result["nll"], result["top1"]], dtype=torch.float32).permute(1, 2, 0)
        return {
            "case": f"llama.cpp {kind}", "megabytes": round(size / 1e6, 2),
            "bits_per_weight": round(8 * size / sum(p.numel() for p in self.model.parameters()), 3),
            **figures(child, self.parent), "types": types,
        }  # fmt: skip

    def _input_squares(self) -> dict[str, Tensor]:
        """Return E[x²] of the inputs of every linear; the embedding's are those of the head that it is tied to."""
        read = self.sensitivities()
        found = {}
        for name in compressed.coded_tensors(self.model):
            if name.startswith("model.layers."):
                (use,) = read(name).uses
                found[name] = use.columns.diagonal()
        head = read("model.embed_tokens").uses[-1]  # first the lookup, then the head
        return {**found, "model.embed_tokens": head.columns.diagonal()}


def codec_table(bench: Bench, wanted: list[str], *, combined: bool) -> str:
    """Return what each codec alone, the spec's settings and stacking take and lose on the whole model."""

    def score(model: Any) -> dict[str, float]:
        found = figures(scored(model, bench.evaluation, bench.dtype), bench.parent)
        return {"ratio_low": found["low"] / bench.perplexity, "ratio_high": found["high"] / bench.perplexity, **found}

    table = bench_codecs.Table(bench.model, bench.sensitivities(), bench.config, bench.workspace, bench.events, score)
    return bench_codecs.text(bench_codecs.rows(table, wanted, combined=combined))


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows by size as a Markdown table."""
    lines = [
        "| case | MB | bits a weight | perplexity (95%) | ratio to fp32 | top-1 kept % |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (-r["megabytes"], r["case"])):
        lines.append(f"| {row['case']} | {row['megabytes']:.1f} | {row['bits_per_weight']:.2f} | {row['perplexity']:.2f} "
                     f"({row['low']:.2f}–{row['high']:.2f}) | {row['ratio']:.3f} | {row['top1_kept']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def bars(rows: list[dict[str, Any]]) -> str:
    """Return each bar with met or MISSED: below llama.cpp's best of no more bytes, and the three named sizes."""
    ours = [row for row in rows if row["case"].startswith("ours")]
    theirs = [row for row in rows if row["case"].startswith("llama.cpp") and row["case"] != "llama.cpp F16"]
    lines = ["| bar | ours | wanted | |", "|---|---|---|---|"]

    def add(bar: str, row: dict[str, Any], ratio: float, base: float, against: str) -> None:
        wanted = f"{base * ratio:.2f}, {ratio:.3f} x fp32{against}"
        verdict = "met" if row["ratio"] <= ratio else "MISSED"
        lines.append(f"| {bar} | {row['perplexity']:.2f}, {row['ratio']:.3f} x fp32 | {wanted} | {verdict} |")

    base = ours[0]["perplexity"] / ours[0]["ratio"] if ours else 1.0
    for size, perplexity in NAMED_BARS:
        fitting = [row for row in ours if row["megabytes"] <= size]
        if fitting:
            best = min(fitting, key=lambda r: r["ratio"])
            add(f"at {size:g} MB", best, perplexity / NAMED_BARS_FP32, base, "")
    for rival in sorted(theirs, key=lambda r: r["megabytes"]):
        fitting = [row for row in ours if row["megabytes"] <= rival["megabytes"]]
        if fitting and rival["megabytes"] <= LARGEST_COMPARED:
            best = min(fitting, key=lambda r: r["ratio"])
            add(f"{best['megabytes']:.1f} MB against {rival['case']}", best, rival["ratio"], base,
                f" at {rival['megabytes']:.1f} MB")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", help="JSON lines, or `phase` for the windows that `forge compress` itself takes")
    parser.add_argument("--work", default="outputs/bench")
    parser.add_argument(
        "--losses", type=float, nargs="+", default=[0.5, 0.3, 0.16, 0.08, 0.04, 0.02, 0.008, 0.0018, 0.0004]
    )
    parser.add_argument(
        "--megabytes", type=float, nargs="*", default=[27, 37, 44.3, 50, 54.8, 62, 71, 79, 83, 86.5, 88, 92, 105]
    )
    parser.add_argument("--recover", type=int, nargs=2, default=[0, 0], metavar=("BLOCK_STEPS", "STEPS"))
    parser.add_argument("--recover-lr", type=float, default=2e-3, help="end to end")
    parser.add_argument(
        "--recover-megabytes", type=float, nargs="*", default=[27], help="sizes that are recovered as well"
    )
    parser.add_argument("--llama-python", default="")
    parser.add_argument("--llama-types", nargs="*", default=LLAMA_TYPES)
    parser.add_argument("--codecs", nargs="*", metavar="CODEC", help="only the table of codecs: these, or all of them")
    parser.add_argument("--windows", type=int, default=16, help="of 512 held-out tokens")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the arithmetic")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args)
    if args.codecs is not None:
        print(codec_table(bench, args.codecs or list(bench_codecs.ALONE), combined=not args.codecs))
        return
    weights = sum(p.numel() for p in bench.model.parameters())
    rows: list[dict[str, Any]] = [
        {"case": f"parent, {args.dtype} arithmetic", "megabytes": 4e-6 * weights, "bits_per_weight": 32.0,
         **figures(bench.parent, bench.parent)}
    ]  # fmt: skip
    print(json.dumps(rows[0]), flush=True)
    coded = bench.coded(args.losses)
    for megabytes in args.megabytes:
        key = f"{megabytes:g}-{'-'.join(f'{loss:g}' for loss in args.losses)}-{args.windows}-{args.dtype}"
        rows.append(bench.space.remember(f"scored-{key}", lambda m=megabytes: bench.ours(coded, m)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    for megabytes in args.recover_megabytes if any(args.recover) else []:
        key = f"recovered-{megabytes:g}-{bench.recovery}-{args.recover_lr}-{args.windows}-{args.dtype}"
        rows.append(bench.space.remember(key, lambda m=megabytes: bench.ours(coded, m, recovered=True)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    for kind in args.llama_types if args.llama_python else []:
        key = f"llama-{kind.replace(':', '-')}-{args.windows}-{args.dtype}"
        rows.append(bench.space.remember(key, lambda k=kind: bench.llama(k)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows), bars(rows), sep="\n\n")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{usage.ru_utime + usage.ru_stime:.0f} CPU s, peak memory {usage.ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
