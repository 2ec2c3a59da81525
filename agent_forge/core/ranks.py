"""Which of several processes this one is, as torchrun says in the environment. Alone: rank 0 of
1.
"""

import os

# What torchrun tells its processes; a child that works alone must not inherit it.
VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE",
    "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_ERROR_FILE",
)  # fmt: skip


def size() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return this process's number, 0 for the one that writes."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def alone() -> dict[str, str]:
    """Return the environment of a child that works alone."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}
