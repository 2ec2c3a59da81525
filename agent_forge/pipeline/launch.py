"""Start the processes that run one phase together: torchrun over pipeline.worker.

    python -m agent_forge.pipeline.launch RECORD PROCESSES PARENT_PID

The processes die with the one that started them. `torchrun -m agent_forge <phase>` starts the
command line several times instead, and run_phase then starts a worker in each.
"""

import sys

from agent_forge.core.lifetime import die_with_parent


def main(record: str, processes: str, parent_pid: str) -> None:
    """Run the workers and leave with their exit code."""
    die_with_parent(int(parent_pid))
    from torch.distributed.run import main as torchrun

    # Each worker reports its own error; torchrun adds a table of failures at level ERROR.
    torchrun(
        [
            "--standalone",
            f"--nproc-per-node={processes}",
            "-m",
            "agent_forge.pipeline.worker",
            record,
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
