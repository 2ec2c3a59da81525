"""Merge from files into files: tensor by tensor, piece by piece, hashed while it is written.

Reads opened ModelFiles, writes model.safetensors or numbered shards with their index. A few pieces
are in memory at a time; pieces are merged side by side and written in order, so the bytes do not
depend on the number of threads.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.core.errors import CheckpointError
from agent_forge.merge.arrays import Array, DType, all_finite, encode
from agent_forge.merge.files import INDEX, ModelFiles
from agent_forge.merge.pieces import PIECE_ENTRIES, TASK_ENTRIES, WAITING_TASKS, Stored, Whole
from agent_forge.merge.plan import MergePlan, TensorPlan, is_wide

ALIGNMENT = 8


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor to write."""

    plan: TensorPlan
    shape: tuple[int, ...]
    dtype: DType

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(slots=True, kw_only=True)
class Layout:
    """What is written where. shards: file name -> tensors in the order of the file."""

    shards: dict[str, list[Output]]

    @property
    def outputs(self) -> list[Output]:
        """Return every tensor, in order."""
        return [output for shard in self.shards.values() for output in shard]

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all numbers."""
        return sum(output.size_bytes for output in self.outputs)


@dataclass(slots=True, kw_only=True)
class StreamSettings:
    """How to merge.

    dtype: of the written numbers, None to keep each tensor's. wide: float64 arithmetic throughout.
    """

    dtype: DType | None = None
    wide: bool = False
    shard_bytes: int = 0
    seed: int = 0
    threads: int = 1
    hashes: dict[str, str] = field(default_factory=dict)


def lay_out(plan: MergePlan, models: Mapping[str, ModelFiles], settings: StreamSettings) -> Layout:
    """Return shards of at most `shard_bytes` (0: one file); a larger tensor is a file alone."""
    outputs = []
    for tensor in plan.tensors:
        label, name = tensor.base or tensor.sources[0]
        shape, dtype = models[label].forms[name]
        outputs.append(
            Output(
                tensor, shape, dtype if tensor.copy or settings.dtype is None else settings.dtype
            )
        )
    groups: list[list[Output]] = [[]]
    filled = 0
    for output in outputs:
        if (
            groups[-1]
            and settings.shard_bytes
            and filled + output.size_bytes > settings.shard_bytes
        ):
            groups.append([])
            filled = 0
        groups[-1].append(output)
        filled += output.size_bytes
    count = len(groups)
    names = [
        f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"
        for i in range(count)
    ]
    # Wider numbers first, so that every tensor is aligned to its own width.
    ordered = [sorted(group, key=lambda output: -output.dtype.itemsize) for group in groups]
    return Layout(shards=dict(zip(names, ordered, strict=True)))


def write(
    plan: MergePlan,
    models: Mapping[str, ModelFiles],
    layout: Layout,
    directory: Path,
    settings: StreamSettings,
    progress: Callable[[int], None] = lambda _done: None,
) -> None:
    """Write the merged weights into `directory`; the files' SHA-256 go into settings.hashes.

    progress: called with the bytes written so far. Raises CheckpointError when an input or a result
    is not finite.
    """
    done = 0
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="merge") as pool:
        for name, outputs in layout.shards.items():
            digest = hashlib.sha256()
            with (directory / name).open("wb") as file:
                for block in blocks(plan, models, outputs, settings, pool):
                    file.write(block)
                    digest.update(block)
                    done += memoryview(block).nbytes
                    progress(done)
            settings.hashes[name] = digest.hexdigest()
    if len(layout.shards) > 1:
        where = {
            output.plan.target: name
            for name, outputs in layout.shards.items()
            for output in outputs
        }
        content = {
            "metadata": {"total_size": layout.size_bytes},
            "weight_map": dict(sorted(where.items())),
        }
        (directory / INDEX).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    check_written(layout, directory)


def check_written(layout: Layout, directory: Path) -> None:
    """Open what was written and compare names, shapes and dtypes with the plan.

    Raises CheckpointError when they differ.
    """
    written = ModelFiles(directory, str(directory))
    written.close()
    expected = {output.plan.target: (output.shape, output.dtype) for output in layout.outputs}
    if written.forms != expected:
        odd = sorted(
            name
            for name in written.forms | expected
            if written.forms.get(name) != expected.get(name)
        )
        raise CheckpointError(
            f"the written weights differ from the plan at {odd[0]}: a defect, please report it"
        )


def blocks(
    plan: MergePlan,
    models: Mapping[str, ModelFiles],
    outputs: Sequence[Output],
    settings: StreamSettings,
    pool: ThreadPoolExecutor,
) -> Iterator[Any]:
    """Yield the bytes of one file: its header, then the pieces of its tensors, in order."""
    yield _header(outputs)
    waiting: deque[Future[list[Array]]] = deque()
    for output in outputs:
        for work in _tasks(plan, models, output, settings, pool):
            waiting.append(pool.submit(work))
            while len(waiting) > WAITING_TASKS:
                yield from (block.data for block in waiting.popleft().result())
    while waiting:
        yield from (block.data for block in waiting.popleft().result())


def _tasks(
    plan: MergePlan,
    models: Mapping[str, ModelFiles],
    output: Output,
    settings: StreamSettings,
    pool: ThreadPoolExecutor,
) -> Iterator[Callable[[], list[Array]]]:
    """Yield the work of one tensor: functions that return pieces as they are stored.

    A small tensor is the work of one thread.
    """
    tensor = output.plan
    entries = math.prod(output.shape)
    sources = [models[label].stored(name) for label, name in tensor.sources]
    if tensor.copy:
        for start in range(0, entries, PIECE_ENTRIES):
            yield lambda start=start: [_copied(tensor, sources, start)]  # type: ignore[misc]
        return
    rated = plan.method.METHOD.importance
    small = entries <= TASK_ENTRIES
    whole = Whole(
        method=plan.method, tensors=sources,
        base=models[tensor.base[0]].stored(tensor.base[1]) if tensor.base else None,
        importance=[models[label].rated(name) for label, name in tensor.sources] if rated else [],
        each=tensor.each, shared=tensor.shared, keys=tensor.keys, name=tensor.target,
        seed=settings.seed, wide=settings.wide or is_wide(tensor, models),
        pool=None if small else pool,
        cache={} if small and hasattr(plan.method, "survey") else None,
    )  # fmt: skip
    if small:
        yield lambda: _merged(whole, output, whole.borders(), whole.survey())
        return
    facts = whole.survey()
    for task in whole.tasks():
        yield lambda task=task: _merged(whole, output, task, facts)  # type: ignore[misc]


def _merged(
    whole: Whole, output: Output, borders: Sequence[tuple[int, int]], facts: Any
) -> list[Array]:
    """Return some merged pieces, as they are stored.

    Raises CheckpointError when they do not fit the dtype.
    """
    parts = []
    for start, stop in borders:
        stored = encode(whole.merged(start, stop, facts), output.dtype)
        if not all_finite(stored, output.dtype):
            raise CheckpointError(
                f"{whole.name}: the merge gives numbers beyond {output.dtype}; lower the weights "
                "or set out_dtype"
            )
        parts.append(stored)
    return parts


def _copied(tensor: TensorPlan, sources: Sequence[Stored], start: int) -> Array:
    """Return a piece that holds no floating point numbers.

    Raises CheckpointError when the sources differ.
    """
    stop = min(start + PIECE_ENTRIES, math.prod(sources[0].shape))
    first = sources[0].read(start, stop)
    for other, (label, name) in zip(sources[1:], tensor.sources[1:], strict=True):
        if first.tobytes() != other.read(start, stop).tobytes():
            raise CheckpointError(
                f"{name} holds whole numbers that differ between {tensor.sources[0][0]} and "
                f"{label}: "
                "no merge of them exists"
            )
    return first


def _header(outputs: Sequence[Output]) -> bytes:
    """Return a safetensors header, padded to the format's alignment."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for output in outputs:
        end = offset + output.size_bytes
        content[output.plan.target] = {
            "dtype": output.dtype.code, "shape": list(output.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def threads_here() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
