"""Perplexity on held-out text: windows, losses, and figures with an interval against a parent.

A text is a file of JSON lines with "source" and "text" (scripts/fetch_debian_text.py writes one).
Its documents are split by a hash of their names, so that calibration and scoring never share one.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LENGTH = 512
CALIBRATION_WINDOWS = 24
# A document is held out, or in dev, by a hash of its name with 256 values: the first HELD_OUT of
# them are held out, and the next DEV are dev.
HELD_OUT = 26
DEV = 13


def split_documents(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the documents of a file by what they are for.

    Held (only scored), dev (settings are chosen on), train.
    """
    parts: dict[str, list[dict[str, str]]] = {"held": [], "dev": [], "train": []}
    for line in Path(text).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = hashlib.sha256(row["source"].encode()).digest()[0]
        parts["held" if place < HELD_OUT else "dev" if place < HELD_OUT + DEV else "train"].append(
            row
        )
    return parts


def held_apart(text: str) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the documents of a file that are held out, and the others, each in their order."""
    rows = [json.loads(line) for line in Path(text).read_text(encoding="utf-8").splitlines()]
    held = [hashlib.sha256(row["source"].encode()).digest()[0] < HELD_OUT for row in rows]
    pairs = list(zip(rows, held, strict=True))
    return [row for row, out in pairs if out], [row for row, out in pairs if not out]


def windows(rows: list[dict[str, str]], tokenizer: Any, count: int) -> Tensor:
    """Return `count` windows (count, LENGTH) that begin at evenly spaced documents, in the order of
    a hash of names.
    """
    rows = sorted(rows, key=lambda row: hashlib.sha256(f"order/{row['source']}".encode()).digest())
    pieces = []
    for index in range(count):
        ids: list[int] = []
        place = index * len(rows) // count
        while len(ids) < LENGTH:
            ids += tokenizer(rows[place]["text"][:6000] + "\n\n").input_ids
            place += 1
        pieces.append(ids[:LENGTH])
    return torch.tensor(pieces)


def counted(texts: list[str], tokenizer: Any) -> Tensor:
    """Return how often each token comes in `texts`: (vocabulary,) float32."""
    counts = torch.zeros(len(tokenizer))
    for text in texts:
        counts += torch.bincount(torch.tensor(tokenizer(text).input_ids), minlength=len(counts))
    return counts


@torch.no_grad()
def scored(model: Any, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (windows, LENGTH - 1, 2).

    The loss in nats of each next token, and the token thought likeliest.
    """
    parts = []
    for batch in ids.split(4):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        nll = [functional.cross_entropy(row.float(), target, reduction="none")
               for row, target in zip(logits, batch[:, 1:], strict=True)]  # fmt: skip
        parts.append(torch.stack([torch.stack(nll), logits.argmax(-1).float()], -1))
    return torch.cat(parts)


def figures(child: Tensor, parent: Tensor) -> dict[str, float]:
    """Return perplexity with its 95% interval (given the parent's), the ratio to the parent, and
    top-1 agreement.
    """
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
