"""Stand-ins for the commands of Slurm and SkyPilot, which run jobs as processes of this machine.

    python fake_cluster.py FOLDER sbatch SCRIPT

They keep one file per job in FOLDER, and answer in the forms that submitit and the launchers read.
What they cannot show is how a real cluster schedules, signals and mounts.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

TOOLS = ("sbatch", "srun", "squeue", "sacct", "scancel", "sky")


def install(folder: Path) -> Path:
    """Write the commands into `folder`/bin, and return that directory."""
    commands = folder / "bin"
    commands.mkdir(parents=True)
    for tool in TOOLS:
        file = commands / tool
        line = f'exec "{sys.executable}" "{Path(__file__).resolve()}" "{folder}" {tool} "$@"'
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)
    return commands


class Jobs:
    """The jobs of the pretended cluster: id -> name and process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        self.folder.mkdir(exist_ok=True)

    def start(self, name: str, command: list[str], **environment: str) -> str:
        """Start a job in a session of its own; return its id."""
        # Never the number of another test's job: submitit remembers for good which have ended.
        number = str(time.time_ns())
        child = subprocess.Popen(
            command, env={**os.environ, **environment, "SLURM_JOB_ID": number},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        (self.folder / number).write_text(json.dumps({"name": name, "pid": child.pid}))
        return number

    def all(self) -> dict[str, dict[str, object]]:
        """Return id -> {"name", "pid", "alive"}."""
        listed = {}
        for file in sorted(self.folder.iterdir()):
            job = json.loads(file.read_text())
            listed[file.name] = {**job, "alive": _is_alive(job["pid"])}
        return listed


def _is_alive(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] not in ("Z", "X")


def sbatch(jobs: Jobs, arguments: list[str]) -> int:
    """Start a copy of a job's script, as Slurm does: whoever submitted it may move it at once."""
    text = Path(arguments[-1]).read_text()
    script = jobs.folder.parent / f"{time.time_ns()}.sh"
    script.write_text(text)
    match = re.search(r"--job-name=(\S+)", text)
    name = match[1].strip("'\"") if match else "none"
    print(f"Submitted batch job {jobs.start(name, ['bash', str(script)])}")
    return 0


def srun(arguments: list[str]) -> None:
    """Run a command with its output in files, as Slurm names them."""
    while arguments and arguments[0].startswith("--"):
        option = arguments.pop(0)
        if option in ("--output", "--error"):
            name = arguments.pop(0).replace("%j", os.environ["SLURM_JOB_ID"]).replace("%t", "0")
            file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.dup2(file, 1 if option == "--output" else 2)
    os.environ.update(SLURM_PROCID="0", SLURM_LOCALID="0", SLURM_NODEID="0", SLURM_NTASKS="1")
    os.execvp(arguments[0], arguments)


def squeue(jobs: Jobs, arguments: list[str]) -> int:
    """List the ids of living jobs of a name."""
    name = next(one.partition("=")[2] for one in arguments if one.startswith("--name="))
    print("\n".join(n for n, job in jobs.all().items() if job["name"] == name and job["alive"]))
    return 0


def sacct(jobs: Jobs) -> int:
    """List all jobs with their states."""
    print("JobID|State|NodeList")
    for number, job in jobs.all().items():
        print(f"{number}|{'RUNNING' if job['alive'] else 'COMPLETED'}|here")
    return 0


def end(jobs: Jobs, target: str) -> int:
    """End the job of an id or name, with all its processes."""
    for number, job in jobs.all().items():
        if target in (number, job["name"]) and job["alive"]:
            os.killpg(int(str(job["pid"])), signal.SIGKILL)
    return 0


def sky(jobs: Jobs, arguments: list[str]) -> int:
    """Launch, list and end clusters of one job."""
    if arguments[0] == "launch":
        import yaml

        task = yaml.safe_load(Path(arguments[-1]).read_text())
        name = arguments[arguments.index("--cluster") + 1]
        run = task["run"].replace("python ", f"{sys.executable} ", 1)
        jobs.start(name, ["bash", "-c", f"exec {run}"])
    elif arguments[0] == "status":
        print("Clusters\nNAME  INFRA  STATUS")
        for job in jobs.all().values():
            if job["name"] == arguments[-1]:
                print(f"{job['name']}  here  UP")
    elif arguments[0] == "queue":
        for job in jobs.all().values():
            if job["name"] == arguments[-1]:
                print(f"1  {job['name']}  {'RUNNING' if job['alive'] else 'FAILED'}")
    elif arguments[0] == "down":
        return end(jobs, arguments[-1])
    return 0


def main() -> int:
    """Be the command that the first argument names."""
    jobs, tool, arguments = Jobs(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
    if tool == "srun":
        srun(arguments)
    if tool == "scancel":
        return end(jobs, arguments[-1])
    if tool == "sacct":
        return sacct(jobs)
    return {"sbatch": sbatch, "squeue": squeue, "sky": sky}[tool](jobs, arguments)


if __name__ == "__main__":
    sys.exit(main())
