"""One part of the report: what was checked, how it ended, and the lines that show it."""

from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED, NOT_JUDGED = "passed", "FAILED", "not judged"


@dataclass(slots=True)
class Check:
    """status: passed, FAILED, or "not judged" where a tool or a source was not there."""

    name: str
    status: str
    summary: str
    lines: list[str] = field(default_factory=list)
