"""Phases beside their baselines of equal budget.

    python -m scripts.bench run baselines outputs/run_all --out outputs/baselines             # all three
    python -m scripts.bench run baselines outputs/run_all --out outputs/baselines --phases bake

The baselines of cognate and bake are off by default for their cost; train's baseline runs here too.
Each phase of the finished run starts again from the parents and settings in its checkpoint's
manifest, writes below --out, and the figures are those of its report. An interrupted run goes on
when it is started again.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from agent_forge import checkpoint
from agent_forge.checkpoint import Workspace
from agent_forge.config import Report
from agent_forge.config.compose import to_typed
from agent_forge.core import registry
from agent_forge.core.device import set_threads
from agent_forge.core.events import EventLog
from agent_forge.phases import PhaseRun
from agent_forge.pipeline.catalogue import PACKAGE, phases
from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "Phases gain over a baseline of equal budget"
BAR = "above 0 with the whole interval, where the figure is a gain"
PHASES = ("cognate", "train", "bake")
ITSELF = "the same run: "  # nothing of the phase was on that its baseline lacks
NUMBER = r"[+-]?\d+\.\d+|[+-]?inf|nan"
ENTRY = re.compile(
    rf"(?P<name>[^:;]+?) (?P<value>{NUMBER}) \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\]"
    r"(?P<unit>[^;]*?) \(n=(?P<n>\d+)\)(?:[;,] |$)"
)


def run(arguments: Sequence[str] = ()) -> Result:
    """Run the named phases again and print each one's baseline."""
    parser = argparse.ArgumentParser(prog="baselines", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    args = parser.parse_args(arguments)
    figures: list[Figure] = []
    for name in args.phases:
        text = again(name, args.run_dir, args.out / name).baseline
        print(f"{name}: {text}", flush=True)
        figures += entries(name, text)
    return Result(
        claim=CLAIM, bar=BAR, topic="The default run", n="one run, one seed", **bars_met(figures),
        figures=figures, **here("baselines", arguments),
    )  # fmt: skip


def again(name: str, run_dir: Path, out: Path) -> Report:
    """Run phase `name` of the run below `run_dir` again into `out`, with its baseline, and return
    its report.
    """
    phase = phases()[name]
    finished = checkpoint.expand([run_dir / f"{phase.order}-{name}"])[0]
    config = to_typed(
        {**finished.manifest.config, "out": str(out), "baseline": True}, phase.config, name
    )
    set_threads(config.runtime.threads)
    sources = checkpoint.expand(config.sources)
    workspace = Workspace(config.out, phase=name, seed=config.seed, config=config, parents=sources)
    workspace.save_every_seconds = config.runtime.save_every_seconds
    run = registry.load(f"{PACKAGE}.{name}", "run", "phase module").run
    report: Report = run(PhaseRun(config, sources, workspace, EventLog(None, name)))
    return report


def entries(phase: str, text: str) -> list[Figure]:
    """Return the figures in the baseline's line of a report, in order.

    A figure with a sign is a gain over the baseline, and its bar is 0; any other stands beside the
    baseline's own figure, which is its unit. A phase that is its own baseline has one line without
    a figure. Raises ValueError where the line has no figure otherwise.
    """
    if text.startswith(ITSELF):
        return [Figure(claim=f"{phase}: {text}", figure=None, unit="")]
    head, _, rest = text.partition(": ")
    figures = []
    for entry in ENTRY.finditer(rest):
        gain = entry["value"].startswith(("+", "-"))
        low, high = (float(entry[end]) + 0.0 for end in ("low", "high"))  # -0 becomes 0
        figures.append(
            Figure(
                claim=f"{phase}, {head}: {entry['name']}", figure=float(entry["value"]),
                unit=entry["unit"].strip(), interval=(low, high), n=f"n={entry['n']}",
                bar="above 0" if gain else "", met=low > 0 if gain else None,
            )
        )  # fmt: skip
    if not figures:
        raise ValueError(f"{phase}: no figure in the baseline's line: {text}")
    return figures
