"""Run the phases of a finished run again with their baselines of equal budget, and print how they
stand.

The baselines of cognate and bake are off by default for their cost; train's baseline runs here too.
Each phase starts from the parents and settings in its checkpoint's manifest. An interrupted run
goes on when it is started again.

    python scripts/baselines.py outputs/run_all --out outputs/baselines             # all three
    python scripts/baselines.py outputs/run_all --out outputs/baselines --phases bake
"""

import argparse
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

PHASES = ("cognate", "train", "bake")


def main() -> None:
    """Run the named phases and print each one's baseline."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    args = parser.parse_args()
    for name in args.phases:
        print(f"{name}: {again(name, args.run_dir, args.out / name).baseline}", flush=True)


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


if __name__ == "__main__":
    main()
