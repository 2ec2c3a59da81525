"""Everything that an accelerator is used for, measured by one command in --minutes, the most
important first.

    python scripts/bench_gpu.py --minutes 10 [--model outputs/smollm2] [--only decode distil ...]
    python scripts/bench_gpu.py --minutes 6 --device cpu --smoke        # the script itself, at sizes of seconds

Needs this repository, unpacked, and the packages that it depends on; nothing is installed. Each
command runs in a process of its own with a time limit; one that fails or takes too long is named,
and the next one runs. The result, --out, is written anew after each part: device, versions,
commands, figures, and the bars that can be judged. Without --model the weights are random, in
SmolLM2's shape. `--render FILE.json` prints a finished result as markdown, for docs/results.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from few_steps import FEW_STEPS, NANO_SMOKE, SMALL, UNGATED

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TAIL = 1500  # characters of a failed command's output that are kept
LEAST_SECONDS = 20.0  # no part starts with less time left
# Figure -> least value (negative: most); of an H100 or H200.
BARS = {
    "train-135m: ours / plain compiled": 1.3, "train-135m: tokens per second": 350e3,
    "train-25m: ours / plain compiled": 1.2,
    "distil: tokens per second": 200e3, "distil: seconds of the start": -30.0, "compress: seconds, one size": -60.0,
    "compress: seconds, curve of four": -180.0, "decode: plain, batch 1, tokens per second": 1000.0,
    "decode: plain, batch 1, ours / transformers": 5.0, "decode: packed ternary / plain, batch 1": 1.0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """One process. read: makes figures of what it printed."""

    argv: list[str]
    read: Callable[[str], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Part:
    """Commands that belong together, and the most minutes that all of them may take."""

    name: str
    minutes: float
    commands: Callable[["Bench"], list[Command]]


@dataclass(slots=True)
class Bench:
    """What the parts are told, and the result so far."""

    options: argparse.Namespace
    started: float = field(default_factory=time.monotonic)
    text: str = "sotu"
    model: str = ""
    result: dict[str, Any] = field(default_factory=dict)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.options.minutes * 60 - (time.monotonic() - self.started)

    def own(self, part: str) -> Command:
        """Return the command of a part of gpu_parts.py."""
        options = self.options
        argv = [
            sys.executable,
            str(HERE / "gpu_parts.py"),
            part,
            "--device",
            options.device,
            "--work",
            str(options.work),
        ]
        argv += ["--text", self.text, *(["--model", self.model] if self.model else [])]
        return Command(argv + (["--smoke"] if options.smoke else []), last_json)

    def forge(self, *arguments: str, read: Callable[[str], dict[str, Any]]) -> Command:
        """Return a `forge` command on the device and text of this run."""
        where = [f"data.text=[{self.text}]", f"data.cache={self.options.work / 'cache'}"]
        argv = [
            sys.executable,
            "-m",
            "agent_forge",
            *arguments,
            *where,
            f"runtime.device={self.options.device}",
        ]
        return Command(argv, read)


def last_json(printed: str) -> dict[str, Any]:
    """Return the JSON object in the last line that is one."""
    line = next(line for line in reversed(printed.splitlines()) if line.startswith("{"))
    return json.loads(line)


def outcomes(run_dir: Path) -> dict[str, Any]:
    """Return seconds, verdict and peak memory of each phase of a run."""
    rows = {}
    for file in sorted((run_dir / ".forge").glob("*/outcome.json")):
        results = json.loads(file.read_text())
        rows[results["phase"]] = {
            key: results[key] for key in ("status", "seconds", "peak_memory_bytes", "message")
        }
    return {"phases": rows, "seconds": sum(row["seconds"] for row in rows.values())}


def run_of(bench: Bench, experiment: str, *settings: str) -> list[Command]:
    """Return `forge run-all` of an experiment, into a folder that does not exist yet."""
    run_dir = bench.options.work / f"run-{experiment or 'nano'}-{os.getpid()}"
    chosen = [f"experiment={experiment}"] if experiment else []
    return [
        bench.forge(
            "run-all", *chosen, f"run_dir={run_dir}", *settings, read=lambda _: outcomes(run_dir)
        )
    ]


def tiny(bench: Bench) -> list[Command]:
    """All eight phases of a model of milliseconds: does every one end on this device?"""
    return run_of(bench, "tiny")


def nano(bench: Bench) -> list[Command]:
    """The default run, as `make run-all` does it; for --smoke with few steps, for it takes a
    processor many minutes.
    """
    return run_of(bench, "", *(NANO_SMOKE if bench.options.smoke else []))


def smollm2_gpu(bench: Bench) -> list[Command]:
    """All eight phases of SmolLM2 for a few steps each."""
    small = [*SMALL, "runtime.compile=off"] if bench.options.smoke else []
    return run_of(
        bench, "smollm2_gpu", f"cognate.sources=[{bench.model}]", *FEW_STEPS, *small, *UNGATED
    )


def training(shape: str, rows: tuple[int, ...]) -> Callable[[Bench], list[Command]]:
    """Return the part that trains a shape by us, by a plain compiled loop and by Trainer, at each
    batch.
    """

    def commands(bench: Bench) -> list[Command]:
        options = bench.options
        dtype = " bfloat16" if options.device == "cuda" else ""
        cases = f"ours,ours compiled,plain{dtype},trainer{dtype}"
        if options.smoke:
            cases = f"ours,trainer{dtype}"  # compiling takes minutes of a processor
        results = []
        for count in (2,) if options.smoke else rows:
            argv = [
                sys.executable,
                "-m",
                "scripts.bench.train",
                "--shape",
                "tiny" if options.smoke else shape,
            ]
            argv += [
                "--rows",
                str(count),
                "--text",
                bench.text,
                "--device",
                options.device,
                "--cases",
                cases,
            ]
            argv += [
                "--steps",
                "6" if options.smoke else "30",
                "--repeats",
                "1",
                "--cache",
                str(options.work / "cache"),
            ]
            results.append(
                Command(
                    argv,
                    lambda printed, count=count: {f"{count} rows": last_json(printed)["medians"]},
                )
            )
        return results

    return commands


def compress(bench: Bench) -> list[Command]:
    """`forge compress` to one size, and its curve of four."""
    out, options = bench.options.work / f"compress-{os.getpid()}", bench.options
    settings = [
        "codec=light",
        f"sources=[{bench.model}]",
        "budget.quality_floor=0",
        "budget.bytes_ratio=0.1",
    ]
    if options.smoke:
        settings += [
            "codec.min_weights=512",
            "calibration.windows=4",
            "calibration.length_tokens=48",
            "measure.windows=2",
        ]
        settings += ["measure.length_tokens=48", "calibration.count_windows=8"]
    settings += ["gate.enabled=false"]
    curve = ["--curve", "curve.bytes_ratios=[0.07,0.1,0.14,0.2]"]
    return [
        bench.forge(
            "compress",
            *settings,
            f"out={out}/{name}",
            *more,
            read=lambda _, name=name: outcomes_of(out, name),
        )
        for name, more in (("one", []), ("curve", curve))
    ]


def outcomes_of(out: Path, name: str) -> dict[str, Any]:
    """Return the seconds of one compression."""
    results = json.loads((out / ".forge" / name / "outcome.json").read_text())
    return {name: {key: results[key] for key in ("status", "seconds", "peak_memory_bytes")}}


def gpu_tests(bench: Bench) -> list[Command]:
    """The tests that the marker gpu names."""
    del bench
    argv = [
        sys.executable,
        "-m",
        "pytest",
        str(ROOT / "tests"),
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    return [Command(argv, lambda printed: {"pytest": printed.strip().splitlines()[-1]})]


# In order of importance.
PARTS = (
    Part("tiny", 4, tiny),
    Part("train-135m", 6, training("135m", (32, 64))),
    Part("distil", 5, lambda bench: [bench.own("distil")]),
    Part("decode", 5, lambda bench: [bench.own("decode")]),
    Part("tests", 5, gpu_tests),
    Part("compress", 8, compress),
    Part("train-25m", 6, training("25m", (4, 64, 256))),
    Part("smollm2_gpu", 10, smollm2_gpu),
    Part("nano", 20, nano),
)


def run_command(command: Command, seconds: float) -> dict[str, Any]:
    """Run a command for at most so many seconds; return its figures, or what it said when it
    failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    # Packages may lie on PYTHONPATH alone: it is added to, never replaced.
    paths = [str(ROOT), str(HERE), *filter(None, [environment.get("PYTHONPATH", "")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    started = time.monotonic()
    row: dict[str, Any] = {"command": shlex.join(command.argv), "ok": False}
    with subprocess.Popen(
        command.argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            printed, said = process.communicate(timeout=seconds)
            row["exit_code"] = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, said = process.communicate()
            row["error"] = f"stopped after {seconds:.0f} s"
    row["seconds"] = round(time.monotonic() - started, 1)
    try:
        row["figures"] = command.read(printed)
        row["ok"] = row.get("exit_code") == 0
    except (StopIteration, ValueError, KeyError, OSError, IndexError) as error:
        row.setdefault("error", f"no figures: {type(error).__name__}: {error}")
    if not row["ok"]:
        row["output"] = (printed[-TAIL:] + "\n" + said[-TAIL:]).strip()
    return row


def run_part(bench: Bench, part: Part) -> list[dict[str, Any]]:
    """Run a part's commands while its time and the whole time last."""
    ends = time.monotonic() + part.minutes * 60
    rows = []
    for command in part.commands(bench):
        seconds = min(ends - time.monotonic(), bench.left())
        if seconds < LEAST_SECONDS:
            rows.append({"command": shlex.join(command.argv), "ok": False, "error": "no time left"})
        else:
            rows.append(run_command(command, seconds))
    return rows


def bars(parts: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return each bar whose figure is there, with that figure and whether it is met."""
    figures = judged(parts)
    return [
        {"bar": name, "limit": limit, "figure": figures[name], "met": met(figures[name], limit)}
        for name, limit in BARS.items()
        if name in figures
    ]


def met(figure: float, limit: float) -> bool:
    """Return whether a figure keeps a limit; a negative limit is the most that is allowed."""
    return figure <= -limit if limit < 0 else figure >= limit


def judged(parts: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Return the figures that bars speak of."""
    merged: dict[str, dict[str, Any]] = {}
    for name, rows in parts.items():
        merged[name] = {}
        for row in rows:
            merged[name] |= row.get("figures", {})
    results: dict[str, float] = {}
    for part in ("train-135m", "train-25m"):
        # At each batch the better of our two ways against the plain loop; over the batches our
        # best.
        best = 0.0
        for cases in merged.get(part, {}).values():
            mine = max(
                (
                    case["tokens_per_second"]
                    for name, case in cases.items()
                    if name.startswith("ours")
                ),
                default=0.0,
            )
            plain = next(
                (
                    case["tokens_per_second"]
                    for name, case in cases.items()
                    if name.startswith("plain")
                ),
                0.0,
            )
            if plain and mine > best:
                best = mine
                results[f"{part}: ours / plain compiled"] = mine / plain
                results[f"{part}: tokens per second"] = mine
    distil = merged.get("distil", {})
    if distil:
        results["distil: tokens per second"] = distil["tokens_per_second"]
        results["distil: seconds of the start"] = distil["start_seconds"]
    for name, label in (("one", "one size"), ("curve", "curve of four")):
        if name in merged.get("compress", {}):
            results[f"compress: seconds, {label}"] = merged["compress"][name]["seconds"]
    decode = merged.get("decode", {})
    if decode:
        plain = decode["plain, batch 1, ours"]
        results["decode: plain, batch 1, tokens per second"] = plain
        results["decode: plain, batch 1, ours / transformers"] = (
            plain / decode["plain, batch 1, transformers"]
        )
        results["decode: packed ternary / plain, batch 1"] = (
            decode["packed ternary, batch 1, ours"] / plain
        )
    return results


def render(result: dict[str, Any]) -> str:
    """Return a result as markdown."""
    machine = result.get("machine", {})
    lines = [f"# On one {machine.get('device', 'device')}", ""]
    lines += [
        f"`{result['command']}`, {result['seconds'] / 60:.1f} minutes; weights: {result.get('weights', 'unknown')}.",
        "",
    ]
    lines += [
        "| machine | |",
        "|---|---|",
        *(f"| {key} | {shown(value)} |" for key, value in machine.items()),
        "",
    ]
    lines += ["| bar | limit | figure | |", "|---|---|---|---|"]
    for row in result["bars"]:
        limit = f"at most {-row['limit']:g}" if row["limit"] < 0 else f"at least {row['limit']:g}"
        lines.append(
            f"| {row['bar']} | {limit} | {shown(row['figure'])} | {'met' if row['met'] else 'MISSED'} |"
        )
    for name, rows in result["parts"].items():
        lines += ["", f"## {name}"]
        for row in rows:
            state = (
                ""
                if row["ok"]
                else f": FAILED ({row.get('error') or 'exit code ' + str(row.get('exit_code'))})"
            )
            lines += [
                "",
                f"`{row['command']}`, {row.get('seconds', 0)} s{state}",
                "",
                "| figure | |",
                "|---|---|",
            ]
            lines += [f"| {key} | {shown(value)} |" for key, value in flat(row.get("figures", {}))]
    return "\n".join(lines) + "\n"


def flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested figures as (dotted name, value)."""
    results: list[tuple[str, Any]] = []
    for key, value in figures.items():
        results += (
            flat(value, f"{prefix}{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
        )
    return results


def shown(value: Any) -> str:
    """Return a value as a table shows it."""
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else (
        f"{value:,.0f}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    )  # fmt: skip


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts and write the result after each one; return it."""
    options.work = options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, model=str(Path(options.model).absolute()) if options.model else "")
    result = bench.result = {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "smoke": options.smoke,
    }
    result |= {"parts": {}, "bars": [], "seconds": 0.0}
    bench.result = result

    def keep() -> None:
        result["seconds"] = round(time.monotonic() - bench.started, 1)
        result["bars"] = [] if options.smoke else bars(result["parts"])
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(options.out)

    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in ("device", "prepare"):
        row = run_command(bench.own(name), max(bench.left(), LEAST_SECONDS))
        if not row["ok"]:
            result["parts"][name] = [row]
            keep()
            if name == "prepare":
                print(
                    f"prepare failed, and nothing can run without it:\n{row['output']}",
                    file=sys.stderr,
                )
                return result
        elif name == "device":
            result["machine"] = row["figures"]
        else:
            bench.text, bench.model = row["figures"]["text"], row["figures"]["model"]
            result["weights"] = row["figures"]["weights"]
    for part in PARTS:
        if options.only and part.name not in options.only:
            continue
        if bench.left() < LEAST_SECONDS:
            result["parts"][part.name] = [{"command": "", "ok": False, "error": "no time left"}]
            continue
        rows = result["parts"][part.name] = run_part(bench, part)
        state = "ok" if all(row["ok"] for row in rows) else "FAILED"
        print(
            f"{part.name}: {state}, {sum(row.get('seconds', 0) for row in rows):.0f} s",
            file=sys.stderr,
            flush=True,
        )
        keep()
    keep()
    return result


def main() -> int:
    """Measure, or render a finished result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="all parts together")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument(
        "--model",
        default="",
        help="checkpoint directory (outputs/smollm2); without it: random weights",
    )
    parser.add_argument(
        "--only", nargs="*", default=[], choices=[part.name for part in PARTS], help="parts to run"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="sizes of seconds: tries the script, measures nothing"
    )
    parser.add_argument("--work", type=Path, default=Path("outputs/bench_gpu"))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_gpu.json"))
    parser.add_argument("--render", type=Path, help="print this result as markdown and stop")
    options = parser.parse_args()
    if options.render:
        print(render(json.loads(options.render.read_text())), end="")
        return 0
    result = measure(options)
    print(render(result), end="")
    return (
        0
        if result["parts"] and all(row["ok"] for rows in result["parts"].values() for row in rows)
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
