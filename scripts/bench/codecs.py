"""Every codec alone on one model, the spec's settings, and the three codecs stacked: bits, error of
the weights, perplexity.

    python -m scripts.bench run codecs outputs/run_all/1-cognate/trunk phase [--codecs CODEC ...]

Text and windows are the bench `compress`'s. All matrices of the model are coded, embeddings
included; a codec has the layer's second-order statistics where it uses them. Then: SeedLM, VPTQ and
Hyper under one allocator with seed_ratio .05, codebook 256 and hyper_ratio .5; the same three run
one after another (`mode=stacked`); and all codecs under the allocator at the same bytes as each of
the two. No recovery training anywhere.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from agent_forge.checkpoint import Workspace
from agent_forge.codecs import allocate
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.models import compressed
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, choose, offers
from agent_forge.phases.compress.offers import Offer
from agent_forge.phases.compress.sensitivity import Sensitivity
from scripts.bench import compress
from scripts.bench.perplexity import LENGTH, figures, scored
from scripts.bench.result import Figure, Result, here

CLAIM = "Of all codecs alone, water-filling loses least at every size"
BAR = "none: a table of all codecs"

Candidate = dict[str, Any]
SEED_4 = {"codec": "seedlm", "block": 8, "coefficients": 3, "seeds": 4096}
SEED_3 = {"codec": "seedlm", "block": 12, "coefficients": 4, "seeds": 4096}
VPTQ, HYPER = {"codec": "vptq", "vector": 4}, {"codec": "hyper", "bits": 8}
ALONE: dict[str, Candidate] = {
    "raw bfloat16": {"codec": "raw"},
    "int8, groups of 128": {"codec": "intk", "bits": 8},
    "int4, groups of 128": {"codec": "intk", "bits": 4},
    "int3, groups of 128": {"codec": "intk", "bits": 3},
    "one step per row (.5 RMS), entropy coded": {"codec": "intk", "bits": 8, "step": 0.5},
    "SeedLM 4 bit (C 8, P 3; 4,096 seeds)": SEED_4,
    "SeedLM 3 bit (C 12, P 4; 4,096 seeds)": SEED_3,
    "VPTQ v 4, 256 centroids": VPTQ,
    "VPTQ v 4, 256 + 256 residual": {**VPTQ, "residual": 256},
    "VPTQ v 4, 256 centroids, 2% outlier columns": {**VPTQ, "outliers": 0.02},
    "VPTQ v 8, 256 centroids": {**VPTQ, "vector": 8},
    "Hyper, 8 bits per pair": HYPER,
    "Hyper, 6 bits per pair": {"codec": "hyper", "bits": 6},
    "ternary, groups of 128": {"codec": "ternary"},
    "waterfill, loss .02": {"codec": "waterfill", "loss": 0.02},
    "waterfill, loss .16": {"codec": "waterfill", "loss": 0.16},
    "waterfill, loss .5": {"codec": "waterfill", "loss": 0.5},
}
# Over an hour of search for 135 million weights: only where it is named.
SLOW: dict[str, Candidate] = {
    "SeedLM 4 bit (C 8, P 3; all 65,535 seeds)": {**SEED_4, "seeds": 65535}
}
SPEC_SEEDS, SPEC_CODEBOOK, SPEC_HYPER = 0.05, 256, 0.5
NINETY_FIVE_PERCENT_SMALLER = 0.05

Score = Callable[[PreTrainedModel], dict[str, float]]


class Table:
    """The table under way. score: a compressed model to its figures. space: a workspace by name."""

    def __init__(
        self,
        model: PreTrainedModel,
        sensitivities: Callable[[str], Sensitivity],
        config: Config,
        space: Callable[[str], Workspace],
        events: EventLog,
        score: Score,
    ) -> None:
        self.model, self.read, self.config, self.space, self.events = (
            model,
            sensitivities,
            config,
            space,
            events,
        )
        self.score = score
        self.tensors = offers.quantisable(model, config)
        self.weights = sum(tensor.numel() for tensor in self.tensors.values())
        config.seed_ratio, config.codebook, config.hyper_ratio = (
            SPEC_SEEDS,
            SPEC_CODEBOOK,
            SPEC_HYPER,
        )
        self.coded: dict[str, dict[str, list[Offer]]] = {}

    def offered(self, label: str, candidate: Candidate) -> dict[str, list[Offer]]:
        """Return every tensor coded by one candidate."""
        if label not in self.coded:
            self.config.codec.candidates = [candidate]
            out = self.space(f"codec-{offers.label(candidate)}")
            phase = PhaseRun(self.config, [], out, self.events)
            self.coded[label] = offers.all_offers(phase, self.model, self.tensors, self.read)
        return self.coded[label]

    def row(self, label: str, coded: dict[str, list[Offer]], choice: list[int]) -> dict[str, Any]:
        """Score one choice."""
        taken = [options[i] for options, i in zip(coded.values(), choice, strict=True)]
        energy = [
            float(compressed.as_matrix(t).float().square().sum()) for t in self.tensors.values()
        ]
        error = sum(offer.relative_error * e for offer, e in zip(taken, energy, strict=True)) / sum(
            energy
        )
        size = sum(offer.size_bytes for offer in taken)
        figures = self.space("scores").remember(
            f"{label}-{size}", lambda: self.score(choose.build(self.model, coded, choice))
        )
        return {"label": label, "bytes": size, "bits": 8 * size / self.weights, "error": error,
                "nats": sum(offer.distortion for offer in taken), **figures}  # fmt: skip

    def alone(self, label: str) -> dict[str, Any]:
        """Return the row of one codec for all tensors."""
        coded = self.offered(label, {**ALONE, **SLOW}[label])
        return self.row(label, coded, [0] * len(coded))

    def chosen(self, label: str, names: list[str], budget: int, *, seeds: float) -> dict[str, Any]:
        """Return the row of the allocator over the candidates `names` within `budget` bytes.

        Seeds: largest share.
        """
        coded = {
            tensor: [o for name in names for o in self.offered(name, ALONE[name])[tensor]]
            for tensor in self.tensors
        }
        tensors = [[offer.option() for offer in options] for options in coded.values()]
        choice = allocate.within_budget(tensors, budget, max_seed_blocks=int(seeds * self.weights))
        return self.row(label, coded, choice)

    def stacked(self) -> dict[str, Any]:
        """Return the row of SeedLM, then VPTQ, then Hyper."""
        self.config.codec.candidates = [SEED_4, VPTQ, HYPER]
        phase = PhaseRun(self.config, [], self.space("codec-stacked"), self.events)
        coded = offers.stacked(phase, self.tensors, self.read)
        return self.row("stacked: SeedLM 4 bit, then VPTQ, then Hyper 8", coded, [0] * len(coded))


def rows(table: Table, labels: list[str], *, combined: bool) -> list[dict[str, Any]]:
    """Return one row per codec in `labels`; with `combined` also rows of the spec's settings and of
    stacking.
    """
    table_rows = [table.alone(label) for label in labels]
    if not combined:
        return table_rows
    spec = [
        "SeedLM 4 bit (C 8, P 3; 4,096 seeds)",
        "SeedLM 3 bit (C 12, P 4; 4,096 seeds)",
        "VPTQ v 4, 256 centroids",
        "VPTQ v 8, 256 centroids",
        "Hyper, 8 bits per pair",
        "Hyper, 6 bits per pair",
    ]
    stacked = table.stacked()
    three = table.chosen(
        "spec settings, three codecs chosen, at the bytes of stacked",
        spec,
        stacked["bytes"],
        seeds=SPEC_SEEDS,
    )
    every = [label for label in labels if label not in spec] + spec
    table_rows += [stacked, three]
    table_rows.append(
        table.chosen(
            "all codecs chosen, at the bytes of stacked", every, stacked["bytes"], seeds=SPEC_SEEDS
        )
    )
    small = int(NINETY_FIVE_PERCENT_SMALLER * 4 * table.weights)
    for label, names in (
        ("spec settings, three codecs chosen", spec),
        ("all codecs chosen", every),
    ):
        try:
            table_rows.append(table.chosen(f"{label}, 95% smaller", names, small, seeds=SPEC_SEEDS))
        except ConfigError as error:  # a small model's codebooks are a large part of it
            print(f"{label}, 95% smaller: {error}")
    return table_rows


def text(table_rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| codec | bits per weight | relative weight error | estimated nats | perplexity / parent (95%) | top-1 kept % |",
        "|---|---|---|---|---|---|",
    ]
    for row in table_rows:
        ratio = f"{row['ratio']:.3f} ({row['ratio_low']:.3f}–{row['ratio_high']:.3f})"
        nats = f"{row['nats']:.3f}" if math.isfinite(row["nats"]) else "?"
        lines.append(
            f"| {row['label']} | {row['bits']:.2f} | {row['error']:.4f} | {nats} | {ratio} | {row['top1_kept']:.1f} |"
        )
    return "\n".join(lines)


def run(arguments: Sequence[str] = ()) -> Result:
    """Code the whole model by every codec and print the table."""
    parser = argparse.ArgumentParser(prog="codecs", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model")
    parser.add_argument("text", help="JSON lines, or `phase` for the windows of `forge compress`")
    parser.add_argument(
        "--codecs", nargs="*", default=[], metavar="CODEC", help="none: all of them"
    )
    parser.add_argument("--work", default="outputs/bench")
    parser.add_argument("--windows", type=int, default=16, help="of 512 held-out tokens")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float32"])
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    common = ["--work", args.work, "--windows", str(args.windows), "--dtype", args.dtype]
    bench = compress.Bench(compress.options([args.model, args.text, *common]))

    def score(model: Any) -> dict[str, float]:
        values = figures(scored(model, bench.evaluation, bench.dtype), bench.parent)
        low, high = values["low"] / bench.perplexity, values["high"] / bench.perplexity
        return {"ratio_low": low, "ratio_high": high, **values}

    table = Table(
        bench.model, bench.sensitivities(), bench.config, bench.workspace, bench.events, score
    )
    lines = rows(table, args.codecs or list(ALONE), combined=not args.codecs)
    print(text(lines))
    shown = [
        Figure(
            claim=f"{line['label']}, {line['bits']:.2f} bits per weight", figure=line["ratio"],
            unit="x fp32 perplexity", interval=(line["ratio_low"], line["ratio_high"]),
        )
        for line in lines
    ]  # fmt: skip
    return Result(
        claim=CLAIM, topic="Compression", figure=None, bar=BAR, figures=shown, tables=text(lines),
        n=f"{args.windows * (LENGTH - 1):,} held-out tokens", **here("codecs", arguments),
    )  # fmt: skip
