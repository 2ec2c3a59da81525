"""The errors a user can meet, and the exit code of each.

    ForgeError                 1   a defect unless a subclass says otherwise
    ├── ConfigError            2   a wrong key, value or combination
    ├── GateError              3   a phase's result was refused by its gate
    ├── CheckpointError       74   missing, damaged or unwritable checkpoint
    │   └── LockedError       73   another process is writing there
    ├── DataError             74   unreadable data, or no usable row
    ├── StorageError          74   disk full, read-only directory
    ├── PhaseError             1   a phase cannot go on (NaN loss, nothing to quantise)
    └── Interrupted           75   stopped by a signal, resumable (130 after Ctrl-C)

A message says what, where, got, allowed, and what to do next, in one line.
"""

import difflib
from collections.abc import Iterable


class ForgeError(Exception):
    """Base of every error that is shown to the user as one line."""

    exit_code = 1


class ConfigError(ForgeError):
    """A wrong key, value or combination of settings."""

    exit_code = 2


class GateError(ForgeError):
    """A phase's result was refused by its gate and the policy was to stop."""

    exit_code = 3


class CheckpointError(ForgeError):
    """A checkpoint is missing, damaged, or of a kind that the phase cannot use."""

    exit_code = 74


class LockedError(CheckpointError):
    """Another live process holds the directory."""

    exit_code = 73


class DataError(ForgeError):
    """A data file is unreadable or holds no usable row."""

    exit_code = 74


class StorageError(ForgeError):
    """The disk is full or the directory cannot be written."""

    exit_code = 74


class PhaseError(ForgeError):
    """A phase cannot go on."""


class Interrupted(ForgeError):
    """Stopped by a signal after the state was saved; the same command resumes."""

    exit_code = 75


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest known name, or "" when nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
