"""The checkpoint directory: atomic writes, verified reads, lineage, locks, resumable workspaces."""

from agent_forge.checkpoint.directory import Checkpoint, expand, open, refuse_to_replace, write
from agent_forge.checkpoint.lending import readable
from agent_forge.checkpoint.lock import DirectoryLock
from agent_forge.checkpoint.workspace import Workspace, record_dir

__all__ = [
    "Checkpoint",
    "DirectoryLock",
    "Workspace",
    "expand",
    "open",
    "readable",
    "record_dir",
    "refuse_to_replace",
    "write",
]
