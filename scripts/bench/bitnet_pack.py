"""Pack a ternary model for real, in several ways, reload each file, and print its bytes against its
perplexity.

    python -m scripts.bench run bitnet_pack outputs/smollm2 outputs/text/debian.jsonl outputs/bench_bitnet/trained

The first argument is the float parent, the last what the bench `bitnet` trained. Rows: the latents;
packed files (5 trits per byte) with embeddings in 8 and 4 bits and as codewords; compressed files
with lossless ternary linears and the embedding coded by VPTQ, or water-filled to what is left of a
budget. Perplexity, ratio and interval are over the parent, on the held-out tenth.
"""

import argparse
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from agent_forge import models
from agent_forge.checkpoint import Workspace
from agent_forge.codecs import allocate
from agent_forge.config.compose import compose
from agent_forge.core.events import EventLog
from agent_forge.models import compressed
from agent_forge.models.ternary import CodeGrid, round_embeddings, save_packed, ternary_layers
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, offers, sensitivity
from agent_forge.phases.compress.run import header_bytes
from scripts.bench.perplexity import (
    CALIBRATION_WINDOWS,
    LENGTH,
    figures,
    scored,
    split_documents,
    windows,
)
from scripts.bench.result import Figure, Result, here

CLAIM = "A ternary model packed for real keeps its perplexity"
BAR = "none: a table of embeddings beside five trits per byte"

VPTQ = {"codec": "vptq", "vector": 4}


class Packer:
    """The ternary model, the text, and the files on the way."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work, self.dtype = args, Path(args.work), getattr(torch, args.dtype)
        parts = split_documents(args.text)
        tokenizer = models.load_tokenizer(args.parent)
        self.scored_ids = windows(parts["held"], tokenizer, args.windows)
        self.calibration = windows(parts["train"], tokenizer, CALIBRATION_WINDOWS)
        self.base = scored(models.load(args.parent), self.scored_ids, self.dtype)
        self.events = EventLog(None, "compress", (), interval_seconds=20)
        self.rows: list[dict[str, Any]] = []
        self.config = compose("compress", Config, [f"out={args.work}/model", "codec=light"])

    def row(self, case: str, place: Path) -> None:
        """Reload a directory, score it, and print its figures."""
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        model = models.load(place)
        row = figures(scored(model, self.scored_ids, self.dtype), self.base)
        self.rows.append({"case": case, "megabytes": round(size / 1e6, 3), **row})
        print(json.dumps(self.rows[-1]), flush=True)

    def packed(self, name: str, grid: CodeGrid) -> None:
        """Write, reload and score the packed file with the embedding on a grid."""
        model, place = (
            models.load(self.args.ternary),
            self.work / f"packed-{name.replace(' ', '-')}",
        )
        round_embeddings(model, grid)
        save_packed(model, None, place)
        self.row(f"five trits a byte, embedding {name}", place)

    def offered(self, candidates: list[dict[str, Any]], name: str) -> dict[str, list[offers.Offer]]:
        """Return every tensor's codes.

        The trits of ternary layers as they are, the embedding by each candidate.
        """
        model = models.load(self.args.ternary)
        self.config.codec.candidates = candidates
        space = Workspace(self.work / "sensitivities", phase="compress", seed=0, config={})
        with torch.autocast("cpu", torch.bfloat16):
            read = sensitivity.remembered(
                PhaseRun(self.config, [], space, self.events),
                model,
                sensitivity.Calibration(self.calibration),
            )
        tensors = offers.quantisable(model, self.config)
        coded = Workspace(self.work / name, phase="compress", seed=0, config={})
        phase = PhaseRun(self.config, [], coded, self.events)
        return offers.all_offers(phase, model, tensors, read)

    def compressed(self, case: str, candidates: list[dict[str, Any]], megabytes: float) -> None:
        """Write, reload and score the best compressed file within a budget.

        0 takes the only choice there is.
        """
        coded = self.offered(candidates, "".join(c for c in case if c.isalnum()))
        model = models.load(self.args.ternary)
        names, options = (
            list(coded),
            [[offer.option() for offer in offered] for offered in coded.values()],
        )
        ternary = sum(coded[name][0].size_bytes for name in ternary_layers(model))
        choice = [0] * len(names)
        if megabytes:
            weights = sum(offered[0].shape[0] * offered[0].shape[1] for offered in coded.values())
            plain = sum(t.numel() for t in models.storage.stored_tensors(model).values()) - weights
            budget = (
                int(megabytes * 1e6)
                - 4 * plain
                - header_bytes(model, 4 * sum(p.numel() for p in model.parameters()))
            )
            choice = allocate.within_budget(options, budget)
        picked = {name: coded[name][i].payload(name) for name, i in zip(names, choice, strict=True)}
        place = self.work / f"compressed-{megabytes:g}-{len(candidates)}"
        models.save(compressed.compress(model, picked), None, place)
        embedding = next(name for name in names if name.endswith("embed_tokens"))
        chosen = coded[embedding][choice[names.index(embedding)]]
        print(
            json.dumps(
                {
                    "trits_megabytes": round(ternary / 1e6, 3),
                    "embedding_megabytes": round(chosen.size_bytes / 1e6, 3),
                    "embedding": chosen.label,
                }
            ),
            flush=True,
        )
        self.row(case, place)


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="bitnet_pack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("parent")
    add("text")
    add("ternary")
    add("--work", default="outputs/bench_bitnet_pack")
    add("--windows", type=int, default=16, help="scored windows of 512 tokens")
    add("--megabytes", type=float, nargs="*", default=[27.0])
    rates = [0.1, 0.4, 0.8, 1.6, 3.2]
    add("--losses", type=float, nargs="*", default=rates, help="of the embedding's rates")
    add("--dtype", default="float32", choices=["bfloat16", "float32"], help="of the scoring")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Write, reload and score every file."""
    args = options(arguments)
    torch.set_num_threads(1)
    packer = Packer(args)
    packer.row("latents (what trains on)", Path(args.ternary))
    packer.packed("8 bits", CodeGrid(8))
    packer.packed("4 bits", CodeGrid(4, 64))
    packer.compressed("lossless trits, embedding by VPTQ at 2 bits", [VPTQ], 0)
    rates = [{"codec": "waterfill", "loss": loss} for loss in args.losses]
    for megabytes in args.megabytes:
        packer.compressed("lossless trits, water-filled embedding", rates, megabytes)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{usage.ru_utime + usage.ru_stime:.0f} CPU s, peak memory {usage.ru_maxrss / 1e6:.2f} GB"
    )
    base = float(figures(packer.base, packer.base)["perplexity"])
    shown = [
        Figure(
            claim=f"{row['case']}, {row['megabytes']:.1f} MB", figure=row["ratio"],
            unit="x fp32 perplexity", interval=(row["low"] / base, row["high"] / base),
        )
        for row in packer.rows
    ]  # fmt: skip
    return Result(
        claim=CLAIM, topic="Ternary weights", bar=BAR, figure=shown[1].figure, unit=shown[1].unit,
        interval=shown[1].interval, n=f"{args.windows * (LENGTH - 1):,} held-out tokens",
        figures=shown, **here("bitnet_pack", arguments),
    )  # fmt: skip
