"""Measure the Fisher information of a model's weights on text, for `merge_method: fisher`.

    python scripts/measure_fisher.py MODEL_DIR TEXT_FILE [--rows 64] [--tokens 256]

Reads a model directory and a text file; writes MODEL_DIR/fisher/model.safetensors (not part of a
checkpoint's manifest).
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from agent_forge import models
from agent_forge.learn.fisher import fisher_diagonal


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=64, help="sequences")
    parser.add_argument("--tokens", type=int, default=256, help="tokens a sequence")
    args = parser.parse_args()
    model, tokenizer = models.load(args.model), models.load_tokenizer(args.model)
    ids = torch.tensor(tokenizer(args.text.read_text(), verbose=False).input_ids)
    rows = [ids[i : i + args.tokens] for i in range(0, len(ids) - args.tokens + 1, args.tokens)][
        : args.rows
    ]
    if not rows:
        raise SystemExit(f"{args.text} has fewer than {args.tokens} tokens")
    diagonal = fisher_diagonal(model, rows)
    (args.model / "fisher").mkdir(exist_ok=True)
    save_file(diagonal, args.model / "fisher" / "model.safetensors")
    print(
        f"{len(rows)} sequences of {args.tokens} tokens: wrote {args.model / 'fisher' / 'model.safetensors'}"
    )


if __name__ == "__main__":
    main()
