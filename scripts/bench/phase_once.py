"""Phases that a bench runs: each once, kept in a folder, refused where the settings were others."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.own_tools import GATE_REFUSED, forge

REFUSED = ".rejected"


@dataclass(frozen=True, slots=True)
class Finished:
    """What a phase wrote, also where its gate refused it, and the minutes that it took.

    cpu_minutes: of processor time. minutes: by the clock, 0 where they were not noted.
    """

    path: Path
    cpu_minutes: float
    minutes: float

    @property
    def passed(self) -> bool:
        """Return whether the phase's gate let the result pass."""
        return self.path.suffix != REFUSED


def phase_once(place: Path, phase: Sequence[str], settings: Sequence[str]) -> Finished:
    """Return what `forge PHASE out=PLACE SETTINGS` wrote, now or when it was first asked for.

    phase: the phase, and settings that are not compared. A killed phase goes on. A phase that fails
    ends the bench with its exit code, and so does a place that has other settings, with 2.
    """
    noted = place.with_name(f"{place.name}.training.json")
    chosen = list(settings)
    if not noted.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        _, minutes = forge(*phase, f"out={place}", *chosen, allowed=(0, GATE_REFUSED))
        taken = {"minutes": minutes, "wall_minutes": (time.monotonic() - start) / 60}
        noted.write_text(json.dumps({"settings": chosen, **taken}), encoding="utf-8")
    record = json.loads(noted.read_text(encoding="utf-8"))
    if record["settings"] != chosen:
        print(f"{place} was made with {record['settings']}; name another --work")
        raise SystemExit(2)
    path = place if place.exists() else place.with_name(place.name + REFUSED)
    return Finished(path, float(record["minutes"]), float(record.get("wall_minutes", 0.0)))
