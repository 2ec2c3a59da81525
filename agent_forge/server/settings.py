"""How the service runs jobs; `forge serve` fills it from its options."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True, kw_only=True)
class JobSettings:
    """Settings of the supervisor.

    cpu_jobs: jobs at a time where there is no accelerator. gpus: accelerators, one job each; None
    takes those that this process may use, [] none. grace_seconds: between the request to stop and
    the end by force. poll_seconds: between looks at the jobs that run. check_seconds: between looks
    for runs of terminals. watch: directories below which those are found. background: phases give
    way to everything else on their machine. keep_days, keep_events: how long, and at most how many,
    events of ended jobs are kept.
    """

    cpu_jobs: int = 1
    gpus: list[str] | None = None
    grace_seconds: float = 60.0
    poll_seconds: float = 0.25
    check_seconds: float = 10.0
    watch: list[Path] = field(default_factory=list)
    background: bool = True
    keep_days: float = 30.0
    keep_events: int = 1_000_000


def visible_gpus() -> list[str]:
    """Return the NVIDIA accelerators that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Reads the environment and /dev, because asking CUDA would take memory on each of them.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    devices = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return [str(number) for number in sorted(int(match[1]) for match in devices if match)]
