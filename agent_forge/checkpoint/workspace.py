"""Where a phase writes: results are computed once, checkpoints written whole, stops noticed in
time.

For a target `runs/bitnet` everything about its making is under `runs/.forge/bitnet/`: the job, the
events, the outcome, and `state`. `state` survives a kill, so a phase that runs again finds there
what it had finished; it is removed when the phase has succeeded.
"""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.checkpoint import atomic, directory
from agent_forge.checkpoint.directory import Checkpoint
from agent_forge.core.errors import Interrupted

if TYPE_CHECKING:
    import torch


def record_dir(out: Path | str) -> Path:
    """Return the directory that keeps the job, events, outcome and state of the phase that writes
    `out`.
    """
    out = Path(out)
    return out.parent / ".forge" / out.name


class Workspace:
    """Where a phase writes.

    path: the checkpoint directory (or, for several checkpoints, the directory that holds them).
    state: resumable scratch of the phase.
    stop_signal: 0, or the number of the signal that asked the process to stop.
    warn: called with one line about damaged state that is passed over.
    rank: of several processes that run the phase together, only rank 0 writes what they share; the
    others wait for it at `meet`, a barrier, and have scratch of their own.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        phase: str,
        seed: int,
        config: Any,
        parents: Sequence[Checkpoint] = (),
        rank: int = 0,
        meet: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = Path(path)
        self.rank, self.meet = rank, meet
        self._shared = record_dir(self.path) / "state"
        self.state = self._shared / f"rank-{rank}" if rank else self._shared
        self.phase = phase
        self.seed = seed
        self.config: dict[str, Any] = (
            asdict(config)
            if is_dataclass(config) and not isinstance(config, type)
            else dict(config)
        )
        self.parents = list(parents)
        self.stop_signal = 0
        self.save_every_seconds = 60.0
        self.warn: Callable[[str], None] = lambda text: None  # noqa: ARG005

    def write(
        self,
        save: Callable[[Path], None],
        *,
        name: str = "",
        role: str = "model",
        metrics: Mapping[str, Any] | None = None,
        agent: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
        deployable_bytes: int | None = None,
        parents: Sequence[Checkpoint] | None = None,
    ) -> Checkpoint:
        """Write `path` (or `path/name`) as a checkpoint filled by `save(directory)`.

        `agent` settings are laid over the first parent's, so what an earlier phase baked stays
        known. Benchmarks whose data a parent or this phase has used (extra["benchmarks"]) stay
        named, because no descendant may be scored on them.
        """
        target = self.path / name if name else self.path
        if self.rank:
            self.meet()
            return directory.open(target)
        parents = self.parents if parents is None else list(parents)
        inherited = parents[0].manifest.agent if parents else {}
        used = {name for one in parents for name in one.manifest.extra.get("benchmarks", ())}
        extra = dict(extra or {})
        used |= set(extra.pop("benchmarks", ()))
        if used:
            extra["benchmarks"] = sorted(used)
        written = directory.write(
            target,
            save,
            phase=self.phase,
            seed=self.seed,
            config=self.config,
            parents=parents,
            name=name,
            role=role,
            metrics=metrics,
            agent={**inherited, **(agent or {})},
            extra=extra,
            deployable_bytes=deployable_bytes,
        )
        self.meet()
        return written

    def remember(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the JSON value of `compute()`, computed at most once per workspace, also across
        restarts.
        """
        return json.loads(
            self._once(f"{name}.json", lambda: json.dumps(compute(), indent=2).encode())
        )

    def remember_tensors(
        self, name: str, compute: Callable[[], dict[str, "torch.Tensor"]]
    ) -> dict[str, "torch.Tensor"]:
        """Return the tensors of `compute()`, computed at most once per workspace, also across
        restarts.
        """
        from safetensors.torch import load, save

        def content() -> bytes:
            return save(
                {key: value.detach().contiguous().cpu() for key, value in compute().items()}
            )

        return load(self._once(f"{name}.tensors", content))

    def _once(self, name: str, compute: Callable[[], bytes]) -> bytes:
        """Return the content stored as `name`; rank 0 computes it where it is missing, the others
        wait.
        """
        file = self._shared / name
        if self.rank:
            self.meet()
        content = self._kept(file)
        if content is None:
            self.check_stop()
            content = compute()
            if not self.rank:
                self._keep(file, content)
        if not self.rank:
            self.meet()
        return content

    def _keep(self, file: Path, content: bytes) -> None:
        """Write `content` after a line with its hash."""
        atomic.write_bytes(file, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)

    def _kept(self, file: Path) -> bytes | None:
        """Return what `_keep` wrote, None where it is missing or damaged and has to be computed
        again.
        """
        try:
            digest, _, content = file.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if hashlib.sha256(content).hexdigest().encode() == digest:
            return content
        self.warn(f"{file} is damaged; what it held is computed again")
        return None

    def resume_dir(self, stage: str) -> Path:
        """Return the directory where `learn` keeps the state of `stage`."""
        return self._shared / stage

    def listen_for_signals(self) -> None:
        """Note SIGTERM and Ctrl-C; the second one ends the process at once."""

        def note(number: int, frame: object) -> None:  # noqa: ARG001
            if self.stop_signal:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.stop_signal = number

        signal.signal(signal.SIGTERM, note)
        signal.signal(signal.SIGINT, note)

    def check_stop(self) -> None:
        """Raise Interrupted when a signal asked to stop.

        To be called where everything worth keeping is saved.
        """
        if self.stop_signal:
            name = signal.Signals(self.stop_signal).name
            error = Interrupted(
                f"{self.phase} stopped by {name}; the same command goes on from here"
            )
            error.exit_code = 130 if self.stop_signal == signal.SIGINT else Interrupted.exit_code
            raise error

    def clear_state(self) -> None:
        """Remove the scratch of a finished phase."""
        shutil.rmtree(self.state, ignore_errors=True)
