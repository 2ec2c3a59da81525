"""`-m`: Hydra's own multirun, in which each job has its own directory and runs as any other run.

Works with every Hydra 1.3.8 launcher that is installed (basic, joblib, submitit, ray), as in
`-m hydra/launcher=joblib ...`.
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
from agent_forge.config.overrides import quote, unquote
from agent_forge.core.errors import ConfigError, ForgeError


def sweep(command: str, overrides: list[str], file: str | None, *, as_json: bool) -> int:
    """Run `command` once per combination of the swept overrides; return the worst exit code."""
    import hydra

    settings = all_overrides(overrides, file, _schema(command), sweep=True)
    folder, settings = _folder(command, settings)
    arguments = [
        "--multirun",
        *settings,
        f"hydra.sweep.dir={quote(str(folder))}",
        "hydra.job.chdir=false",
        "hydra.output_subdir=null",
        "hydra/job_logging=none",  # "disabled" would silence our own warnings too
        "hydra/hydra_logging=none",
    ]
    previous, sys.argv = sys.argv, ["forge", *arguments]
    try:
        hydra.main(config_path=str(CONF.resolve()), config_name=command, version_base="1.3")(
            _Job(command, as_json)
        )()
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
    for row in rows:  # overrides that all jobs share do not tell them apart
        row["overrides"] = [plain_override(text) for text in row["overrides"] if text not in shared]
    atomic.write_json(folder / "summary.json", rows)
    if as_json:
        print_json(rows)
    else:
        console(stderr=False).print(plain_table(rows, f"{command}: {len(rows)} jobs in {folder}"))
    return max((row["exit_code"] for row in rows), default=2)


def _folder(command: str, settings: list[str]) -> tuple[Path, list[str]]:
    """Return the directory of the sweep and the other settings.

    out= (for run-all: run_dir=) names the directory. Raises ConfigError when that directory is not
    empty, or would differ between jobs.
    """
    key = "run_dir" if command == "run_all" else "out"
    chosen = [text.partition("=")[2] for text in settings if text.lstrip("+").startswith(f"{key}=")]
    if not chosen:
        name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
        return Path("outputs") / "multirun" / command / name, settings
    is_quoted = chosen[-1].startswith("'") and chosen[-1].endswith("'")
    if not is_quoted or "','" in chosen[-1]:
        raise ConfigError(
            f"-m: {key}= names one directory for all jobs, which have numbered ones in "
            "it; give it one value"
        )
    text = unquote(chosen[-1])
    if not text.strip() or "${" in text:
        raise ConfigError(
            f"-m: {key}={text} must be a plain directory name; the jobs have numbered "
            "directories in it"
        )
    folder = Path(text)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"-m: {key}={folder} is not empty; name a new directory for this sweep")
    return folder, [text for text in settings if not text.lstrip("+").startswith(f"{key}=")]


def _schema(command: str) -> type:
    from agent_forge.pipeline import run_all
    from agent_forge.pipeline.catalogue import phase_named

    return run_all.settings_schema() if command == run_all.COMMAND else phase_named(command).config


def plain_override(override: str) -> str:
    """Return an override as a user types it, without Hydra's quotes."""
    key, _, value = override.partition("=")
    is_quoted = len(value) > 1 and value[0] == value[-1] == "'"
    return f"{key}={unquote(value)}" if is_quoted else override


class _Job:
    """One job of a sweep, as a function of the composed config that launchers can pickle."""

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
        row: dict[str, Any] = {
            "job": hydra_config.job.num,
            "overrides": list(hydra_config.overrides.task),
        }
        OmegaConf.set_struct(tree, False)
        try:
            row |= self._run(tree, folder)
        except ForgeError as error:
            row |= {
                "status": type(error).__name__,
                "exit_code": error.exit_code,
                "summary": str(error),
            }
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
