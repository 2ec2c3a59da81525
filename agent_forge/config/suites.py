"""Suites: names for several evaluation tasks at once, `conf/eval/<suite>.yaml`.

A suite stands wherever a task may be named: `forge eval -t skills`, `gate.tasks.skills=0.95`. It
names for each of its tasks the package, what installs it, and the licence; a task whose package is
missing is left out, and a line says so. Reading one imports none of the packages.
"""

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agent_forge.core.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "conf" / "eval"
ALWAYS = ("python", "agent_forge")  # the packages of texts that are always there


@dataclass(frozen=True, slots=True)
class Member:
    """One task of a suite, and where its items come from."""

    task: str
    package: str
    install: str
    licence: str

    @property
    def installed(self) -> bool:
        """Return whether the package is there."""
        return self.package in ALWAYS or importlib.util.find_spec(self.package) is not None


def names() -> list[str]:
    """Return the names of all suites."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


@cache
def read(name: str) -> tuple[Member, ...]:
    """Return the tasks of a suite. Raises ConfigError for a file that is not a suite."""
    import yaml

    file = FOLDER / f"{name}.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return tuple(Member(task=task, **facts) for task, facts in content.items())
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: each task has a package, install and licence ({error})"
        ) from None


def expanded(chosen: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the chosen tasks with suites replaced by their installed tasks, each once, and a line
    for every task that is left out.
    """
    known, tasks, lines = names(), list[str](), list[str]()
    for name in chosen:
        if name not in known:
            tasks.append(name)
            continue
        for member in read(name):
            if member.installed:
                tasks.append(member.task)
            else:
                lines.append(
                    f"{name} without {member.task}: {member.package} is not installed; "
                    f"pip install {member.install}"
                )
    return list(dict.fromkeys(tasks)), lines


def limits(by_name: Mapping[str, float]) -> dict[str, float]:
    """Return limits by task: a suite's limit holds for each of its tasks that has none of its
    own.
    """
    known = names()
    own = {name: limit for name, limit in by_name.items() if name not in known}
    suites = {
        task: limit
        for name, limit in by_name.items()
        if name in known
        for task in expanded([name])[0]
    }
    return {**suites, **own}
