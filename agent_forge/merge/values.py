"""Parameters that vary over the model: gradients over depth, and choices by tensor name.

A number stands for itself; a list is interpolated over depth t in [0, 1]; a list of {filter, value}
gives the value of the first entry whose filter is part of the tensor's name (an entry without a
filter fits every name).
"""

from collections.abc import Sequence
from typing import Any

from agent_forge.core.errors import ConfigError

Setting = Any  # bool | number | list of numbers | list of {filter, value}


def check_setting(name: str, setting: Setting) -> None:
    """Raise ConfigError when a setting has none of the three forms."""
    entries = setting if isinstance(setting, list) else [setting]
    if isinstance(setting, list) and not setting:
        raise ConfigError(
            f"merge parameter {name} is an empty list; give a number, numbers, or filter entries"
        )
    if any(isinstance(entry, dict) for entry in entries):
        for entry in entries:
            if (
                not isinstance(entry, dict)
                or "value" not in entry
                or set(entry) - {"filter", "value"}
            ):
                raise ConfigError(
                    f"merge parameter {name}: each entry needs `value` and may have `filter`, got "
                    f"{entry!r}"
                )
            check_setting(name, entry["value"])
        return
    for entry in entries:
        if not isinstance(entry, (bool, int, float)):
            raise ConfigError(
                f"merge parameter {name} must be a number, a list of numbers or filter entries, "
                f"got {entry!r}"
            )


def resolve(setting: Setting, tensor_name: str, depth: float, used: set[int]) -> Any:
    """Return the value of a setting for one tensor, or None when no filter fits.

    depth: position of the tensor's layer in [0, 1]. used: a set to which the ids of the filter
    entries that fitted are added.
    """
    if not isinstance(setting, list):
        return setting
    if isinstance(setting[0], dict):
        for entry in setting:
            if entry.get("filter") in (None, "*") or entry["filter"] in tensor_name:
                used.add(id(entry))
                return resolve(entry["value"], tensor_name, depth, used)
        return None
    return interpolate(setting, depth)


def interpolate(points: Sequence[float], depth: float) -> float:
    """Return the piecewise linear function through evenly spaced points at `depth` in [0, 1]."""
    if len(points) == 1:
        return points[0]
    place = min(max(depth, 0.0), 1.0) * (len(points) - 1)
    below = min(int(place), len(points) - 2)
    share = place - below
    return (1.0 - share) * points[below] + share * points[below + 1]


def unused_filters(setting: Setting, used: set[int]) -> list[str]:
    """Return the filters of a setting that fitted no tensor."""
    if not isinstance(setting, list):
        return []
    return [
        entry["filter"]
        for entry in setting
        if isinstance(entry, dict)
        and entry.get("filter") not in (None, "*")
        and id(entry) not in used
    ]
