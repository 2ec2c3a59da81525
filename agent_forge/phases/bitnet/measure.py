"""Figures of a ternary model: bits per byte with intervals, zeros and entropy of the codes, bytes
of the real file.

Reads a model in memory; the packed file is written to scratch, read back and compared weight by
weight.
"""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agent_forge import evaluate
from agent_forge.core.errors import PhaseError
from agent_forge.evaluate import EvalContext, Scores
from agent_forge.models.ternary import rounded_embeddings, ternary_layers
from agent_forge.models.ternary.packing import read_packed, write_packed

TASK = "text"
SPLIT = "validation"


def text_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, items: int, context: EvalContext
) -> Scores:
    """Return bits per byte on held-out text."""
    return evaluate.score(model, tokenizer, [TASK], SPLIT, items, context)[TASK]


def code_figures(model: PreTrainedModel) -> dict[str, float]:
    """Return zeros, entropy and stored bits (scales included) per ternary weight, and the
    number of these weights.
    """
    counts = torch.zeros(3, dtype=torch.float64)
    packed_bytes = 0
    for layer in ternary_layers(model).values():
        codes, _ = layer.ternary_parts()
        counts += torch.bincount(codes.flatten().long().cpu() + 1, minlength=3)
        packed_bytes += layer.packed_bytes()
    shares = (counts / counts.sum()).tolist()
    return {
        "ternary_weights": int(counts.sum()),
        "zeros": shares[1],
        "entropy_bits": -sum(share * math.log2(share) for share in shares if share > 0),
        "stored_bits": 8 * packed_bytes / float(counts.sum()),
    }


def packed_file_bytes(model: PreTrainedModel, scratch: Path) -> int:
    """Return the size of the packed file, after reading it back and comparing it with the weights
    of the model.

    Raises PhaseError when a weight differs.
    """
    size = write_packed(model, scratch)
    stored = read_packed(scratch)
    for name, layer in {**ternary_layers(model), **rounded_embeddings(model)}.items():
        if not torch.equal(stored[f"{name}.weight"], layer.quantised_weight().float().cpu()):
            raise PhaseError(
                f"the packed file holds other weights for {name} than the model; this is a defect of the packing"
            )
    scratch.unlink()
    return size


def starts(stages: dict[str, Scores]) -> str:
    """Return the figure of the last stage beside the figures of the earlier stages, on the same
    text.
    """
    *before, last = stages
    figures = [_bits(stages[name]) + f" {name}" for name in before]
    against = (
        f"; bits per byte {_bits(stages[last])} {last} against {', '.join(figures)}"
        if figures
        else ""
    )
    return f"none ran of equal budget (the parent trained on without ternary weights){against} (n={stages[last].n})"


def _bits(scores: Scores) -> str:
    return f"{scores.mean:.3f} [{scores.interval[0]:.3f}, {scores.interval[1]:.3f}]"


def comparison(
    parent: Scores, stages: dict[str, Scores], samples: int, seed: int
) -> list[dict[str, Any]]:
    """Return a table row for the parent and each stage: bits per byte, interval, n and the share
    of the parent's quality that is kept.
    """
    rows = []
    for name, scores in {"parent": parent, **stages}.items():
        retention = evaluate.retention(TASK, parent, scores, samples, seed)
        low, high = scores.interval
        rows.append(
            {
                "model": name,
                "bits_per_byte": round(scores.mean, 4),
                "low": round(low, 4),
                "high": round(high, 4),
                "n": scores.n,
                "kept": round(retention.ratio, 4),
                "kept_low": round(retention.low, 4),
            }
        )
    return rows
