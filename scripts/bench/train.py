"""Training speed, memory and data efficiency beside two peers on the same machine, model, data,
tokens and threads.

Peers: a plain loop in nanoGPT's manner with torch.compile, and transformers.Trainer; each as its
users get it by default (Trainer: float32, eager) and with bfloat16 and compile on. Each case runs
in a process of its own, several times in turn; medians are compared. Compiled code is kept in the
cache, so a first run fills it and a second one measures. Memory is the peak above what the process
held before its first step.

    python -m scripts.bench run train --shape nano --repeats 3
    python -m scripts.bench run train --shape 25m --cases ours,trainer --steps 8
    python -m scripts.bench run train --device cuda --shape 135m --steps 40         # prints MFU

`python -m scripts.bench.train` with the same arguments prints the same and writes no result.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from scripts.bench.engines import (
    Shape,
    add_arguments,
    ours,
    plain,
    prepare,
    set_environment,
    shape_of,
    trainer,
)
from scripts.bench.result import ROOT, Figure, Result, bars_met, here
from scripts.bench.stats import medians
from scripts.process_memory import held_bytes, peak_bytes

CLAIM = "Our training engine is faster than transformers' Trainer and a nanoGPT-style loop"
BAR = "at least 1.3 x the Trainer and 1.0 x the compiled plain loop, as their users get them"

# name -> engine, dtype, compile. The bars are judged against "trainer" and "plain".
CASES = {
    "ours": ("ours", "auto", "off"),
    "ours compiled": ("ours", "auto", "on"),
    "ours float32": ("ours", "float32", "off"),
    "plain": ("plain", "float32", "on"),
    "plain bfloat16": ("plain", "bfloat16", "on"),
    "trainer": ("trainer", "float32", "off"),
    "trainer bfloat16": ("trainer", "bfloat16", "off"),
    "trainer bfloat16 compiled": ("trainer", "bfloat16", "on"),
}
BARS = (("trainer", 1.3), ("plain", 1.0))
PEAK_TFLOPS = {
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L4 ": 121.0,
    "4090": 165.0,
}  # dense bfloat16
SKIPPED = 3  # steps before timing starts


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_arguments(parser)
    add = parser.add_argument
    add("--method", choices=("adamw", "muon"), default="adamw", help="of ours")
    add("--repeats", type=int, default=3)
    add("--cases", default=",".join(CASES), help="with commas; known: " + ", ".join(CASES))
    add("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Run the cases in turn, and print medians, ratios and, in the last line, all of it as JSON."""
    args = options(arguments)
    set_environment(args)
    prepare(args)  # tokenise once, outside every measurement
    chosen = [name.strip() for name in args.cases.split(",")]
    turns: dict[str, list[dict[str, Any]]] = {case: [] for case in chosen}
    for _ in range(args.repeats):
        for case in chosen:
            turns[case].append(in_process(case, args))
    numbers = {
        case: [{k: v for k, v in run.items() if k != "note"} for run in runs]
        for case, runs in turns.items()
    }
    middle = {case: medians(runs) for case, runs in numbers.items()}
    for case, values in middle.items():
        print(
            f"{case:26} {values['tokens_per_second']:10,.0f} tok/s  {values['cpu_ms']:8.1f} CPU-ms per step  "
            f"{values['peak_mb']:7,.0f} MB above start ({values['total_mb']:,.0f} in all)  "
            f"data {values['data_share']:.2%}  loss {values['loss']:.4f}"
            + (f"  MFU {values['mfu']:.1%}" if values["mfu"] else "")
        )
    print_ratios(middle)
    bars = judged(middle)
    for bar in bars:
        print(f"{bar.claim}: x {bar.figure:.3f}, {bar.bar}: {'met' if bar.met else 'missed'}")
    notes = {
        case: sorted({run["note"] for run in runs if run["note"]}) for case, runs in turns.items()
    }
    print(json.dumps({"options": vars(args), "medians": middle, "notes": notes}))
    speeds = [
        Figure(claim=f"{case}, {args.shape}", figure=values["tokens_per_second"], unit="tokens/s")
        for case, values in middle.items()
    ]
    return Result(
        claim=CLAIM, topic="Training", bar=BAR, n=f"medians of {args.repeats}", **bars_met(bars),
        figures=[*bars, *speeds], **here("train", arguments),
    )  # fmt: skip


def in_process(case: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run one case in a process of its own; leave when it fails."""
    command = [sys.executable, "-m", "scripts.bench.train", "--case", case]
    for name in ("shape", "steps", "rows", "text", "threads", "method", "device", "cache"):
        command += [f"--{name}", str(getattr(args, name))]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def print_ratios(middle: dict[str, dict[str, float]]) -> None:
    """Print each of ours against each peer."""
    mine = [case for case in middle if case.startswith("ours")]
    for own in mine:
        for peer in (case for case in middle if case not in mine):
            ratios = {
                key: middle[own][key] / middle[peer][key]
                for key in ("tokens_per_second", "cpu_ms", "peak_mb")
            }
            print(
                f"{own} / {peer}: tokens per second x {ratios['tokens_per_second']:.3f}, CPU time per step "
                f"x {ratios['cpu_ms']:.3f}, peak memory above start x {ratios['peak_mb']:.3f}"
            )


def judged(middle: dict[str, dict[str, float]]) -> list[Figure]:
    """Return our best speed against each peer that has a bar."""
    mine = [
        values["tokens_per_second"] for case, values in middle.items() if case.startswith("ours")
    ]
    figures = []
    for peer, least in BARS:
        if mine and peer in middle:
            best = max(mine) / middle[peer]["tokens_per_second"]
            figures.append(
                Figure(
                    claim=f"ours / {peer}, as its users get it",
                    figure=best,
                    unit="x its tokens per second",
                    bar=f"at least {least} x",
                    met=best >= least,
                )
            )
    return figures


class Clock:
    """Wall and CPU time of every step, and the time spent on data."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.stamps: list[tuple[float, float]] = []
        self.data: list[float] = []

    def tick(self) -> None:
        """Note the end of a step."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        self.stamps.append((time.perf_counter(), time.process_time()))

    def timed(self, mixture: Any) -> Any:
        """Return the mixture with its batches timed."""
        build = mixture.batch

        def batch(step: int) -> Any:
            started = time.perf_counter()
            content = build(step)
            self.data.append(time.perf_counter() - started)
            return content

        mixture.batch = batch
        return mixture

    def result(self, shape: Shape) -> dict[str, float]:
        """Return tokens per second, CPU milliseconds per step, and the share of data."""
        skipped = min(SKIPPED, len(self.stamps) - 3)
        pairs = list(zip(self.stamps[skipped:-1], self.stamps[skipped + 1 :], strict=True))
        wall = statistics.median(b[0] - a[0] for a, b in pairs)
        processor = statistics.median(b[1] - a[1] for a, b in pairs)
        return {
            "tokens_per_second": shape.rows * shape.length / wall, "cpu_ms": 1e3 * processor,
            "data_share": statistics.median(self.data[-len(pairs) :]) / wall if self.data else 0.0,
        }  # fmt: skip


def model_flops_share(model: Any, shape: Shape, tokens_per_second: float) -> float:
    """Return model FLOP utilisation on a known accelerator (6 N + 12 L d T a token), 0 where its
    peak is not known.
    """
    import torch

    name = torch.cuda.get_device_name()
    peak = next((1e12 * tera for key, tera in PEAK_TFLOPS.items() if key in name), 0.0)
    flop = (
        6 * sum(p.numel() for p in model.parameters())
        + 12 * shape.layers * shape.width * shape.length
    )
    return tokens_per_second * flop / peak if peak else 0.0


def run_case(options: argparse.Namespace) -> dict[str, Any]:
    """Train one case and return its figures."""
    from agent_forge.core import device

    name, options.dtype, options.compile = CASES[options.case]
    device.set_threads(options.threads)
    model, mixture, _ = prepare(options)
    model.to(options.device)
    importlib.import_module(
        "transformers.trainer"
    )  # heavy: held by every case before memory is counted
    clock = Clock(options.device)
    engine = {"ours": ours, "plain": plain, "trainer": trainer}[name]
    before = held_bytes(options.device)
    loss, note = engine(model, clock.timed(mixture), options, clock.tick, 0)
    peak = peak_bytes(options.device)
    shape = shape_of(options)
    speeds = clock.result(shape)
    mfu = (
        model_flops_share(model, shape, speeds["tokens_per_second"])
        if options.device == "cuda"
        else 0.0
    )
    return {
        **speeds,
        "peak_mb": (peak - before) / 1e6,
        "total_mb": peak / 1e6,
        "loss": loss,
        "mfu": mfu,
        "note": note,
    }


if __name__ == "__main__":
    if "--case" in sys.argv:
        case = options(sys.argv[1:])
        set_environment(case)
        print(json.dumps(run_case(case)))
    else:
        run(sys.argv[1:])
