"""Measure compression of a real model: whole-file bytes against perplexity and top-1 agreement, beside llama.cpp's.

    python scripts/fetch_debian_text.py outputs/text/debian.jsonl
    python scripts/bench_compress.py outputs/smollm2 outputs/text/debian.jsonl [--megabytes 27 37 50 62 88 105]

Every file is written, reloaded and scored on 8,176 held-out tokens (--windows 16, of 512); documents are split by a hash of
their names, so calibration and scoring never share one. Everything long is kept in --work and not done twice: the
sensitivities, the codes of each rate (--losses), each scored file. Perplexity has an interval from the spread over windows
of the rise in loss against the parent. Prints rows of JSON and a table; megabytes are millions of bytes.
--llama-python PYTHON adds llama.cpp, quantised (rows padded, importance matrix from our calibration) and scored on the same
tokens by that interpreter, which needs llama-cpp-python. Without it llama.cpp's figures stand as published in the project's
notes: another sample of the same kind of text, so compare ratios to fp32.
"""

import argparse
import hashlib
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import llama_convert
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agent_forge import codecs, models
from agent_forge.checkpoint import Workspace
from agent_forge.codecs import allocate
from agent_forge.config.compose import compose
from agent_forge.core.events import Event, EventLog
from agent_forge.models import compressed
from agent_forge.phases.compress import Config, offers, sensitivity

LENGTH = 512
CALIBRATION_WINDOWS = 12
HELD_OUT = 26  # of 256 hash values
HEADER_BYTES = 160  # of a tensor in a safetensors header, at most
# (case, MB, perplexity / fp32 perplexity, top-1 kept %) of llama.cpp, 8,192 other tokens of the same kind of text.
PUBLISHED = (
    ("Q8_0", 145.0, 26.59 / 26.44, 100.0), ("Q4_K_M", 105.5, 27.71 / 26.44, 98.1),
    ("Q4_K_M+im padded", 88.5, 27.00 / 26.44, 99.4), ("IQ4_NL", 92.1, 30.61 / 26.44, 94.8),
    ("Q4_0", 91.7, 32.08 / 26.44, 93.1), ("Q3_K_S+im padded", 70.8, 35.60 / 26.44, 91.2),
    ("Q2_K+im padded", 64.5, 52.04 / 26.44, 78.9), ("IQ3_XXS+im padded", 62.3, 40.77 / 26.44, 86.8),
    ("IQ2_S+im padded", 54.8, 90.0 / 26.44, 67.9), ("IQ2_XXS+im padded", 50.0, 233 / 26.44, 48.0),
    ("IQ1_S+im padded", 44.3, 3199 / 26.44, 15.0),
)  # fmt: skip


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


class Bench:
    """The state of a run: text, model, and where results lie."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.dtype = getattr(torch, args.dtype)
        self.config = compose("compress", Config, [f"out={args.work}/model", "codec=light"])
        tokenizer = models.load_tokenizer(args.model)
        rows = [json.loads(line) for line in Path(args.text).read_text(encoding="utf-8").splitlines()]
        held = [hashlib.sha256(row["source"].encode()).digest()[0] < HELD_OUT for row in rows]
        self.evaluation = windows([r for r, h in zip(rows, held, strict=True) if h], tokenizer, args.windows)
        self.calibration = windows(
            [r for r, h in zip(rows, held, strict=True) if not h], tokenizer, CALIBRATION_WINDOWS
        )
        self.space = self.workspace("work")
        self.events = EventLog(None, "compress", (self._show,), interval_seconds=20)
        self.model = models.load(args.model)
        self.parent = self.space.remember_tensors(
            f"parent-{args.windows}-{args.dtype}", lambda: {"scores": scored(self.model, self.evaluation, self.dtype)}
        )["scores"]

    def workspace(self, name: str) -> Workspace:
        """Return a place for results under --work."""
        return Workspace(Path(self.args.work) / name, phase="compress", seed=0, config={})

    def _show(self, event: Event) -> None:
        if event.kind == "progress":
            print(f"{event.stage} {event.step}/{event.total} at {time.process_time():.0f} CPU s", file=sys.stderr)

    def coded(self, losses: list[float]) -> dict[str, list[offers.Offer]]:
        """Return every tensor's codes at the rates of `losses`, each rate in a folder of its own."""
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            sensitivities = sensitivity.remembered(self.model, self.calibration, 0, self.space, self.events)
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

    def file_of(self, coded: dict[str, list[offers.Offer]], megabytes: float) -> tuple[Path, float]:
        """Write the best file within a budget; return its directory and the estimated rise in loss."""
        weights = sum(options[0].shape[0] * options[0].shape[1] for options in coded.values())
        plain = sum(t.numel() for t in models.storage.stored_tensors(self.model).values()) - weights
        budget = int(megabytes * 1e6) - 4 * plain - HEADER_BYTES * len(self.model.state_dict())
        tensors = [[offer.option() for offer in options] for options in coded.values()]
        choice = allocate.within_budget(tensors, budget)
        picked = {n: options[i].payload(n) for (n, options), i in zip(coded.items(), choice, strict=True)}
        place = Path(self.args.work) / f"ours-{megabytes:g}"
        models.save(compressed.compress(models.load(self.args.model), picked), None, place)
        return place, allocate.total_distortion(tensors, choice)

    def ours(self, coded: dict[str, list[offers.Offer]], megabytes: float) -> dict[str, Any]:
        """Write, reload and score one file."""
        place, nats = self.file_of(coded, megabytes)
        return {"case": f"ours {megabytes:g} MB", **self.score_directory(place), "estimated_nats": round(nats, 4)}

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
        if not source.exists():
            shares = llama_convert.convert(self.model, source)
            (work / "shares.json").write_text(json.dumps(shares))
            np.savez(work / "importance.npz", **self._importance())
        (work / "tokens.json").write_text(json.dumps(self.evaluation.tolist()))
        script = Path(__file__).with_name("llama_reference.py")
        command = [self.args.llama_python, str(script), str(source), kind, str(work)]
        result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        shares = json.loads((work / "shares.json").read_text())
        size = llama_convert.true_bytes(work / f"padded-{kind}.gguf", shares)
        child = torch.tensor([result["nll"], result["top1"]], dtype=torch.float32).permute(1, 2, 0)
        return {"case": f"llama.cpp {kind}+im padded", "megabytes": round(size / 1e6, 2), **figures(child, self.parent)}

    def _importance(self) -> dict[str, Any]:
        """Return the mean square of every input of every linear, zero in the padding, by llama.cpp's names."""
        read = sensitivity.remembered(self.model, self.calibration, 0, self.space, self.events)
        found = {}
        for name in compressed.coded_tensors(self.model):
            if name.startswith("model.layers."):
                _, _, index, ours = name.split(".", 3)
                target = f"blk.{index}.{llama_convert.NAMES[ours]}.weight"
                (use,) = read(name).uses
                width = use.columns.shape[0]
                padded = (
                    width
                    if width % llama_convert.BLOCK == 0
                    else -(-width // llama_convert.BLOCK) * llama_convert.BLOCK
                )
                found[target] = np.pad(use.columns.diagonal().numpy(), (0, padded - width))
        return found


CODECS: tuple[tuple[str, tuple[dict[str, Any], ...]], ...] = (
    ("waterfill, 0.16 nats a model", ({"codec": "waterfill", "loss": 0.16},)),
    ("waterfill, 0.64", ({"codec": "waterfill", "loss": 0.64},)),
    ("int4, groups of 128, compensated", ({"codec": "intk", "bits": 4},)),
    ("int3, groups of 128, compensated", ({"codec": "intk", "bits": 3},)),
    ("one step a row, entropy coded, compensated", ({"codec": "intk", "bits": 8, "step": 0.5},)),
    ("SeedLM C 8 P 3 (1,024 seeds)", ({"codec": "seedlm", "block": 8, "coefficients": 3, "seeds": 1024},)),
    ("SeedLM C 12 P 4 (1,024 seeds)", ({"codec": "seedlm", "block": 12, "coefficients": 4, "seeds": 1024},)),
    ("VPTQ v 4, 256 centroids", ({"codec": "vptq", "vector": 4},)),
    ("Hyper, 8 bits a pair", ({"codec": "hyper", "bits": 8},)),
    ("Hyper, 6 bits a pair", ({"codec": "hyper", "bits": 6},)),
    ("ternary, groups of 128", ({"codec": "ternary"},)),
    ("stacked: SeedLM 4 bit, then VPTQ, then Hyper 8", (
        {"codec": "seedlm", "block": 8, "coefficients": 3, "seeds": 1024}, {"codec": "vptq", "vector": 4},
        {"codec": "hyper", "bits": 8})),
)  # fmt: skip
CODEC_TENSORS = ("model.layers.15.self_attn.o_proj", "model.layers.15.mlp.up_proj")


def codec_table(bench: Bench) -> str:
    """Return what each codec takes and costs on two real matrices: bits, relative error, second-order rise of the loss."""
    read = sensitivity.remembered(bench.model, bench.calibration, 0, bench.space, bench.events)
    tensors = compressed.coded_tensors(bench.model)
    weights = sum(tensor.numel() for tensor in tensors.values())
    lines = ["| codec | bits | relative weight error | loss, micro-nats |", "|---|---|---|---|"]
    for label, stages in CODECS:
        size = count = error = energy = nats = 0.0
        for name in CODEC_TENSORS:
            found = read(name)
            importance, hessian = found.curvature() or (None, None)
            current = tensors[name].float()
            for stage in stages:
                given = {key: value for key, value in stage.items() if key != "codec"}
                if "loss" in given:
                    given["loss"] /= weights
                coded = codecs.encode(stage["codec"], current, given, hessian, importance)
                current = codecs.decode(coded)
            change = current - tensors[name].float()
            size, count = size + 8 * len(coded.data), count + change.numel()
            error, energy = error + float(change.square().sum()), energy + float(tensors[name].float().square().sum())
            nats += found.distortion(change)
        lines.append(f"| {label} | {size / count:.2f} | {error / energy:.4f} | {1e6 * nats:.1f} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]], base: float) -> str:
    """Return the rows with the published ones, by size, as a Markdown table."""
    lines = ["| case | MB | perplexity | interval | ratio to fp32 | top-1 kept % |", "|---|---|---|---|---|---|"]
    published = [
        {"case": f"llama.cpp {case} (published in METHODS, other text sample)", "megabytes": size, "ratio": ratio,
         "top1_kept": kept} for case, size, ratio, kept in PUBLISHED
    ]  # fmt: skip
    for row in sorted([*rows, *published], key=lambda r: (-r["megabytes"], r["case"])):
        interval = f"{row['low']:.2f}–{row['high']:.2f}" if "low" in row else ""
        perplexity = row.get("perplexity", base * row["ratio"])
        mark = "" if "perplexity" in row else "≈ "
        lines.append(f"| {row['case']} | {row['megabytes']:.1f} | {mark}{perplexity:.2f} | {interval} "
                     f"| {row['ratio']:.3f} | {row['top1_kept']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--work", default="outputs/bench")
    parser.add_argument("--losses", type=float, nargs="+", default=[1.28, 0.64, 0.32, 0.16, 0.08, 0.04, 0.02, 0.01])
    parser.add_argument("--megabytes", type=float, nargs="*", default=[27, 37, 44, 50, 62, 71, 88, 105])
    parser.add_argument("--llama-python", default="")
    parser.add_argument("--llama-types", nargs="*", default=["Q4_K_M", "Q3_K_S", "Q2_K", "IQ2_XXS"])
    parser.add_argument("--codecs", action="store_true", help="only the table of all codecs on two matrices")
    parser.add_argument("--windows", type=int, default=16, help="of 512 held-out tokens")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="of the arithmetic")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args)
    if args.codecs:
        print(codec_table(bench))
        return
    base = float(bench.parent[..., 0].double().mean())
    rows: list[dict[str, Any]] = [
        {"case": f"parent, {args.dtype} arithmetic", "megabytes": 4e-6 * sum(p.numel() for p in bench.model.parameters()),
         **figures(bench.parent, bench.parent)}
    ]  # fmt: skip
    print(json.dumps(rows[0]), flush=True)
    coded = bench.coded(args.losses) if args.losses else {}
    for megabytes in args.megabytes:
        key = f"{megabytes:g}-{'-'.join(f'{loss:g}' for loss in args.losses)}-{args.windows}-{args.dtype}"
        rows.append(bench.space.remember(f"scored-{key}", lambda m=megabytes: bench.ours(coded, m)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    for kind in args.llama_types if args.llama_python else []:
        rows.append(bench.space.remember(f"llama-{kind}-{args.windows}", lambda k=kind: bench.llama(k)))  # type: ignore[misc]
        print(json.dumps(rows[-1]), flush=True)
    print(table(rows, math.exp(base)))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(f"{usage.ru_utime + usage.ru_stime:.0f} CPU s, peak memory {usage.ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
