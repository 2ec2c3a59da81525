"""Time and peak memory of one-shot merges against mergekit, in one run: whole processes,
alternating, medians.

    python -m scripts.bench run merge BASE_DIR --mergekit PATH/mergekit-yaml [--methods linear,ties] [--runs 3]

BASE_DIR: a Hugging Face directory of the size to test (its weights are cast to bfloat16); without
it, random weights of SmolLM2-135M's shape. Three tuned models are the base plus small seeded
changes. Prints one row per method and, for methods without chance, how far the two outputs agree.
Leaves no file behind.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from scripts.bench.result import ROOT, Figure, Result, bars_met, here

CLAIM = "One-shot merges are faster than mergekit's in less memory, with the same weights"
BAR = "3 or 4 times as fast (WALL_BARS), half the memory; no output DISAGREES"
WALL_BARS = {
    "linear": 3,
    "slerp": 3,
    "task_arithmetic": 3,
    "karcher": 3,
    "model_stock": 3,
    "passthrough": 3,
    "ties": 4,
    "dare_ties": 4,
    "della": 4,
    "breadcrumbs": 4,
}
MEMORY_BAR = 2
DISAGREES = "DISAGREES"
HEAD = (
    "| method | mergekit s | forge s | faster | bar | mergekit MB | forge MB | less | agreement |"
)
CHANCE = ("dare_ties", "della")
# mergekit iterates in bfloat16, so both are held against the iteration in float64 instead of
# against each other.
TRUTH = "karcher"
# With 16-bit inputs many magnitudes are equal, and which of them a cut keeps is not defined.
CUT = ("ties", "breadcrumbs")
SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
}


def run(arguments: Sequence[str] = ()) -> Result:
    """Make the models, run every method, print the table; leave when an output disagrees."""
    parser = argparse.ArgumentParser(prog="merge", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("base", nargs="?", type=Path)
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the mergekit-yaml command")
    parser.add_argument("--methods", default=",".join(WALL_BARS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    if shutil.which(args.mergekit) is None:
        sys.exit(f"no command {args.mergekit}: install mergekit==0.1.5 and name it with --mergekit")
    figures, lines = [], [HEAD, "|---|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as scratch:
        folder = Path(scratch)
        make_models(args.base, folder)
        print(
            f"base {args.base or 'random'}, {args.runs} runs each, {args.threads} threads, medians"
        )
        print("\n".join(lines))
        for method in args.methods.split(","):
            line, judged = row(method, folder, args)
            print(line, flush=True)
            lines.append(line)
            figures += judged
    if any(DISAGREES in line for line in lines):
        sys.exit("some outputs differ from mergekit's by more than their limit")
    figures.sort(key=lambda figure: figure.met is None)
    return Result(
        claim=CLAIM, topic="Merging", bar=BAR, n=f"medians of {args.runs} runs, whole processes",
        **bars_met(figures), figures=figures, tables="\n".join(lines), **here("merge", arguments),
    )  # fmt: skip


def make_models(base: Path | None, folder: Path) -> None:
    """Write base, m1, m2, m3 as bfloat16 directories."""
    torch.manual_seed(0)
    if base is None:
        config, weights = dict(SMOLLM2), random_weights()
    else:
        config = json.loads((base / "config.json").read_text())
        weights = {
            k: v for file in sorted(base.glob("*.safetensors")) for k, v in load_file(file).items()
        }
    config["dtype"] = "bfloat16"
    for number, name in enumerate(("base", "m1", "m2", "m3")):
        generator = torch.Generator().manual_seed(number)
        (folder / name).mkdir()
        tensors = {}
        for key, value in weights.items():
            change = (
                torch.randn(value.shape, generator=generator) * value.float().std() * 0.05
                if number
                else 0.0
            )
            tensors[key] = (value.float() + change).bfloat16().contiguous()
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            if base is not None and (base / file).is_file():
                shutil.copyfile(base / file, folder / name / file)


def random_weights() -> dict[str, torch.Tensor]:
    """Return weights of SmolLM2-135M's shape."""
    width, inner, kv = 576, 1536, 192
    shapes = {"model.embed_tokens.weight": (49152, width), "model.norm.weight": (width,)}
    for layer in range(30):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}self_attn.q_proj.weight": (width, width),
            f"{at}self_attn.k_proj.weight": (kv, width),
            f"{at}self_attn.v_proj.weight": (kv, width),
            f"{at}self_attn.o_proj.weight": (width, width),
            f"{at}mlp.gate_proj.weight": (inner, width),
            f"{at}mlp.up_proj.weight": (inner, width),
            f"{at}mlp.down_proj.weight": (width, inner),
            f"{at}input_layernorm.weight": (width,),
            f"{at}post_attention_layernorm.weight": (width,),
        }
    return {name: torch.randn(shape) * 0.05 for name, shape in shapes.items()}


def recipe(method: str, folder: Path) -> dict[str, Any]:
    """Return the recipe of a method over the three models (and the base where it needs one).

    Paths are absolute: mergekit asks the hub about a name that is not.
    """
    content: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    base, *names = (str(folder / name) for name in ("base", "m1", "m2", "m3"))
    if method == "passthrough":
        parts = [(names[0], 0, 20), (names[1], 10, 30)]
        return content | {
            "slices": [
                {"sources": [{"model": name, "layer_range": [low, high]}]}
                for name, low, high in parts
            ]
        }
    if method == "slerp":
        return content | {
            "base_model": names[0],
            "models": [{"model": name} for name in names[:2]],
            "parameters": {"t": 0.4},
        }
    own = {
        "linear": {"weight": 0.3},
        "task_arithmetic": {"weight": 0.5},
        "ties": {"weight": 0.5, "density": 0.4},
        "dare_ties": {"weight": 0.5, "density": 0.4},
        "della": {"weight": 0.5, "density": 0.4, "epsilon": 0.1},
        "breadcrumbs": {"weight": 0.5, "density": 0.8, "gamma": 0.02},
    }.get(method)
    content["models"] = [{"model": name, **({"parameters": own} if own else {})} for name in names]
    return content if method in ("linear", "karcher") else content | {"base_model": base}


def row(method: str, folder: Path, args: argparse.Namespace) -> tuple[str, list[Figure]]:
    """Run both tools in turn; return their medians as a row of the table, and the two bars."""
    file = folder / f"{method}.yml"
    file.write_text(yaml.safe_dump(recipe(method, folder)))
    commands = {
        "mergekit": [args.mergekit, file.name, "out-mergekit"],
        "forge": [
            sys.executable,
            "-m",
            "agent_forge",
            "merge",
            file.name,
            "--out",
            "out-forge",
            "--threads",
            str(args.threads),
        ],
    }
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(args.runs):
        for name, command in commands.items():
            shutil.rmtree(folder / f"out-{name}", ignore_errors=True)
            turns[name].append(timed(command, folder, args.threads))
    theirs, ours = (
        [statistics.median(run[i] for run in turns[name]) for i in (0, 1)]
        for name in ("mergekit", "forge")
    )
    faster, less = theirs[0] / ours[0], theirs[1] / ours[1]
    figures = [
        Figure(
            claim=f"{method}: times as fast as mergekit",
            figure=faster,
            unit="x",
            bar=f"at least {WALL_BARS[method]} x",
            met=faster >= WALL_BARS[method],
            key=f"{method} speed",
        ),
        Figure(
            claim=f"{method}: times less memory",
            figure=less,
            unit="x",
            bar=f"at least {MEMORY_BAR} x",
            met=less >= MEMORY_BAR,
            key=f"{method} memory",
        ),
    ]
    for tool, (seconds, megabytes) in (("", ours), ("mergekit ", theirs)):
        name = f"{tool}{method}"
        raw = (("seconds", "s", seconds), ("megabytes", "MB", megabytes))
        figures += [
            Figure(claim=f"{name}: {what}", figure=value, unit=unit, key=f"{name} {what}")
            for what, unit, value in raw
        ]
    speed, memory = ("met" if figure.met else "MISSED" for figure in figures[:2])
    line = (
        f"| {method} | {theirs[0]:.2f} | {ours[0]:.2f} | {faster:.1f}x | {WALL_BARS[method]}x {speed} "
        f"| {theirs[1]:.0f} | {ours[1]:.0f} | {less:.1f}x {memory} | {agreement(method, folder)} |"
    )
    return line, figures


# Runs a command from a small process, because Linux counts the memory of the process that starts a
# program as the memory of that program.
LAUNCHER = """
import json, os, sys, time
began = time.perf_counter()
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ), 0)
json.dump([os.waitstatus_to_exitcode(status), time.perf_counter() - began, usage.ru_maxrss / 1024], sys.stderr)
"""


def timed(command: list[str], folder: Path, threads: int) -> tuple[float, float]:
    """Return the wall seconds and the peak resident MB of a command."""
    environment = dict(
        os.environ, OMP_NUM_THREADS=str(threads), PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, "sh", "-c", 'exec "$@" >log 2>&1', "sh", *command],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, seconds, memory = json.loads(done.stderr)
    if code:
        sys.exit(f"{' '.join(command)} failed:\n{(folder / 'log').read_text()[-2000:]}")
    return seconds, memory


def agreement(method: str, folder: Path) -> str:
    """Return how far the two outputs agree, marked DISAGREES where a method without chance is below
    its limit.
    """
    if method in CHANCE:
        return "random masks"
    theirs, ours = (
        {
            k: v
            for file in sorted((folder / f"out-{name}").glob("*.safetensors"))
            for k, v in load_file(file).items()
        }
        for name in ("mergekit", "forge")
    )
    if set(theirs) != set(ours):
        sys.exit(f"{method}: different tensors: {sorted(set(theirs) ^ set(ours))[:3]}")
    if method == TRUTH:
        return karcher_agreement(folder, ours, theirs)
    equal = near = total = 0
    for name, value in ours.items():
        a, b = value.float(), theirs[name].float()
        # Two steps of bfloat16 at the size of the value, and of the tensor's typical value for
        # those near 0.
        step = torch.maximum(a.abs(), a.abs().mean()) * 2.0**-6
        equal += int((a == b).sum())
        near += int(((a - b).abs() <= step).sum())
        total += a.numel()
    limit = 0.98 if method in CUT else 0.9999
    mark = f", {DISAGREES}: limit {limit:.2%}" if near < limit * total else ""
    return f"{equal / total:.2%} equal, {near / total:.3%} within 2 steps{mark}"


def karcher_agreement(
    folder: Path, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]
) -> str:
    """Return how many of either tool's weights are the float64 mean, rounded.

    DISAGREES below 99.9% of ours.
    """
    models = [load_file(folder / name / "model.safetensors") for name in ("m1", "m2", "m3")]
    right, total = {"forge": 0, "mergekit": 0}, 0
    for name in ours:
        truth = karcher_mean([model[name].double() for model in models]).bfloat16()
        right["forge"] += int((ours[name] == truth).sum())
        right["mergekit"] += int((theirs[name] == truth).sum())
        total += truth.numel()
    mark = f", {DISAGREES}: limit 99.90%" if right["forge"] < 0.999 * total else ""
    shares = ", ".join(f"{tool} {count / total:.2%}" for tool, count in right.items())
    return f"equal to the float64 mean: {shares}{mark}"


def karcher_mean(
    tensors: list[torch.Tensor], most: int = 100, tolerance: float = 1e-12
) -> torch.Tensor:
    """Return the Riemannian mean of the directions times the mean length, iterated on the vectors
    themselves.
    """
    lengths = [float(tensor.norm()) for tensor in tensors]
    units = [tensor / length for tensor, length in zip(tensors, lengths, strict=True)]
    mean = torch.stack(units).mean(0)
    mean /= mean.norm()
    for _ in range(most):
        tangents = []
        for unit in units:
            across = unit - (unit * mean).sum() * mean
            sine = across.norm()
            angle = torch.atan2(sine, (unit * mean).sum())
            tangents.append(across * (angle / sine) if sine > 0 else across)
        step = torch.stack(tangents).mean(0)
        size = step.norm()
        if size < tolerance:
            break
        mean = torch.cos(size) * mean + torch.sin(size) / size * step
        mean /= mean.norm()
    return mean * (sum(lengths) / len(lengths))
