"""Run jobs under Slurm, submitted by submitit.

    SlurmLauncher(parameters={"slurm_partition": "gpu", "timeout_min": 600})

Needs `pip install agent-forge[dist]`, Slurm's commands on the PATH, and a root directory that the
nodes share. Accelerators are asked from Slurm, one per process of the job. A minute and a half
before the time limit the phase is asked to save; resume goes on in a new Slurm job.
"""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.server.launchers import Handle, Launch, cluster, last_lines, node
from agent_forge.server.launchers.cluster import ClusterLauncher, answer, require_tool, silence

HINT = "start the service on a machine that submits to Slurm"
# States of sacct in which a job has, or may get, processes.
LIVING = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "RESIZING",
          "REQUEUE_HOLD", "SPECIAL_EXIT", "SIGNALING", "STAGE_OUT", "STOPPED")  # fmt: skip
UNKNOWN = "UNKNOWN"


class SlurmLauncher(ClusterLauncher):
    """Submit attempts with submitit.

    parameters: of submitit's executor, such as {"slurm_partition", "timeout_min", "cpus_per_task"}.
    gpus_per_process: 0 asks for none.
    """

    name = "slurm"

    def __init__(
        self,
        command: Sequence[str] = ("python", "-m", "agent_forge"),
        *,
        parameters: Mapping[str, Any] | None = None,
        gpus_per_process: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(command, **shared)
        self.parameters = dict(parameters or {})
        self.gpus_per_process = gpus_per_process

    def check(self) -> None:
        """Raise ConfigError where submitit or Slurm's commands are missing."""
        _submitit()
        require_tool("sbatch", HINT)

    def submit(self, launch: Launch) -> Handle:
        """Submit the attempt under the name forge-TOKEN. Raises ConfigError, PhaseError."""
        self.check()
        submitit = _submitit()
        self.prepare(launch)
        executor = submitit.AutoExecutor(folder=_folder(launch), cluster="slurm")
        gpus = self.gpus_per_process * launch.processes
        extra = {"gpus_per_node": gpus} if gpus else {}
        executor.update_parameters(name=_name(launch), **extra, **self.parameters)
        try:
            job = executor.submit(node.run, str(launch.directory), launch.token)
        except (submitit.core.utils.FailedSubmissionError, subprocess.CalledProcessError) as error:
            text = " ".join(str(error).split())
            raise PhaseError(f"Slurm refused the job: {text}") from error
        return {"slurm_id": job.job_id}

    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of a job of this name that Slurm has."""
        listed = answer(["squeue", "--noheader", "--format=%i", f"--name={_name(launch)}"]).split()
        if listed:
            return {"slurm_id": listed[0]}
        return {"slurm_id": ""} if launch.exit_file.exists() else None

    def is_known(self, launch: Launch, handle: Handle) -> bool:
        """Return whether Slurm has the job in a living state.

        Without accounting Slurm forgets ended jobs at once; then the node's touch decides.
        """
        watcher = _submitit().SlurmJob.watcher
        state = watcher.get_state(handle["slurm_id"], mode="force").split()[0]
        if state == UNKNOWN:
            listed = answer(["squeue", "--noheader", "--format=%i", f"--name={_name(launch)}"])
            return bool(listed.split()) or silence(launch) < cluster.SILENT_SECONDS
        return state.rstrip("+") in LIVING

    def end(self, launch: Launch, handle: Handle) -> None:
        """Cancel the job."""
        del launch
        answer(["scancel", handle["slurm_id"]])

    def tail(self, launch: Launch, lines: int) -> str:
        """Return the end of the command's standard error, or of Slurm's where it has not begun."""
        said = super().tail(launch, lines)
        if said or not _folder(launch).is_dir():
            return said
        logs = sorted(_folder(launch).glob("*_log.err"), key=lambda file: file.stat().st_mtime)
        return last_lines(logs[-1], lines) if logs else ""


def _folder(launch: Launch) -> Path:
    """Return where submitit keeps the files of an attempt."""
    return launch.directory / "slurm" / launch.token


def _name(launch: Launch) -> str:
    return f"forge-{launch.token}"


def _submitit() -> Any:
    try:
        import submitit
        import submitit.core.utils
    except ImportError:
        raise ConfigError("jobs under Slurm need submitit: pip install agent-forge[dist]") from None
    return submitit
