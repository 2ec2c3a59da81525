"""`-m`: Hydra's own multirun. Each job has a directory of its own and runs through the same door as any other.

Works with every Hydra 1.3.8 launcher that is installed (basic, joblib, submitit, ray): `-m hydra/launcher=joblib ...`.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import atomic
from agent_forge.cli.render import Display, console, print_json
from agent_forge.cli.tables import plain_table
from agent_forge.config.compose import CONF, all_overrides
from agent_forge.core.errors import ForgeError


def sweep(command: str, overrides: list[str], file: str | None, *, as_json: bool) -> int:
    """Run `command` once for each combination of the swept overrides; print a summary; return the worst exit code."""
    import hydra

    folder = Path("outputs") / "multirun" / command / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    arguments = [
        "--multirun",
        *all_overrides(overrides, file, _schema(command), sweep=True),
        f"hydra.sweep.dir={folder}",
        "hydra.job.chdir=false",
        "hydra.output_subdir=null",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]
    previous, sys.argv = sys.argv, ["forge", *arguments]
    try:
        hydra.main(config_path=str(CONF.resolve()), config_name=command, version_base="1.3")(_Job(command, as_json))()
    except SystemExit as leave:
        if leave.code:
            return int(leave.code) if isinstance(leave.code, int) else 2
    finally:
        sys.argv = previous
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*/job.json"), key=lambda p: int(p.parent.name))
    ]
    shared = set.intersection(*(set(row["overrides"]) for row in rows)) if len(rows) > 1 else set()
    for row in rows:  # what all jobs have in common says nothing about any of them
        row["overrides"] = ", ".join(override for override in row["overrides"] if override not in shared)
    atomic.write_json(folder / "summary.json", rows)
    if as_json:
        print_json(rows)
    else:
        console(stderr=False).print(plain_table(rows, f"{command}: {len(rows)} jobs in {folder}"))
    return max((row["exit_code"] for row in rows), default=2)


def _schema(command: str) -> type:
    from agent_forge.pipeline import run_all
    from agent_forge.pipeline.catalogue import phase_named

    return run_all.settings_schema() if command == run_all.COMMAND else phase_named(command).config


class _Job:
    """One job of a sweep: a picklable function of the composed config, so that every launcher can send it away."""

    def __init__(self, command: str, as_json: bool) -> None:
        self.command = command
        self.as_json = as_json
        self.__name__ = "forge"
        self.__module__ = __name__

    def __call__(self, tree: Any) -> float:
        from hydra.core.hydra_config import HydraConfig
        from omegaconf import OmegaConf

        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        row: dict[str, Any] = {"job": hydra_config.job.num, "overrides": list(hydra_config.overrides.task)}
        OmegaConf.set_struct(tree, False)
        try:
            row |= self._run(tree, folder)
        except ForgeError as error:
            row |= {"status": type(error).__name__, "exit_code": error.exit_code, "summary": str(error)}
        atomic.write_json(folder / "job.json", row)
        return float(row["exit_code"])

    def _run(self, tree: Any, folder: Path) -> dict[str, Any]:
        from agent_forge.config.compose import to_typed
        from agent_forge.pipeline import report, run_all
        from agent_forge.pipeline.catalogue import phase_named
        from agent_forge.pipeline.run_phase import run_phase

        with Display(as_json=self.as_json) as display:
            if self.command == run_all.COMMAND:
                tree.run_dir = str(folder / "run")
                run = run_all.typed_run(tree)
                outcomes = run_all.run_all(run, listener=display)
                report.write(run.run_dir, outcomes)
                outcome = outcomes[-1]
            else:
                tree.out = str(folder / self.command)
                config = to_typed(tree, phase_named(self.command).config, self.command)
                outcome = run_phase(self.command, config, listener=display)
        atomic.write_json(folder / "outcome.json", asdict(outcome))
        return {
            "status": outcome.status,
            "exit_code": outcome.exit_code,
            "seconds": round(outcome.seconds, 1),
            "deployable_bytes": outcome.deployable_bytes,
            "quality": report.quality_cell(outcome),
            "summary": outcome.report.get("summary", outcome.message),
        }
