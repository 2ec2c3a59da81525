"""What the parts of the supervisor share: where jobs live, how they run, and who is told of news."""

from collections.abc import Callable
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from agent_forge.server import queueing
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Database
from agent_forge.server.launchers import Launcher, chosen
from agent_forge.server.settings import JobSettings, visible_gpus

T = TypeVar("T")


class Workplace:
    """The jobs' surroundings. gpus: the accelerators that jobs of this machine share."""

    def __init__(
        self,
        database: Database,
        root: Path,
        launcher: Launcher,
        registry: Registry | None,
        settings: JobSettings | None,
    ) -> None:
        self.database, self.root, self.launcher = database, root.absolute(), launcher
        self.settings = settings or JobSettings()
        self.registry = registry or Registry(database, [self.root / "jobs", *self.settings.watch])
        self.gpus = visible_gpus() if self.settings.gpus is None else self.settings.gpus
        self._listeners: list[Callable[[int], None]] = []
        self._launchers = {launcher.name: launcher}

    def launcher_named(self, name: str) -> Launcher:
        """Return the launcher of an attempt; attempts of an earlier server may need another one.

        Raises ConfigError for a name that this forge does not know.
        """
        if name not in self._launchers:
            self._launchers[name] = chosen.launcher(name, {})
        return self._launchers[name]

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run a change of the database, wait until it is on the disk, and tell of new events.

        Raises what `work` raises, and StorageError on a full disk.
        """

        def counted(connection: Connection) -> tuple[int, T, int]:
            before = queueing.last_seq(connection)
            return before, work(connection), queueing.last_seq(connection)

        before, result, after = self.database.write(counted).result()
        if after > before:
            for listener in tuple(self._listeners):
                listener(after)
        return result

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(last_seq)` after changes that bring events; return how to end that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)
