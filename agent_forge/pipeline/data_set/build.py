"""Fill each domain's share with rows of packages and of a model's own writing, and write the set.

Reads the recipe, packages and a checkpoint; writes `out/<recipe>-<id>`. The model's batches lie in
`out/.<recipe>-<key>` while the set is being built, a file per batch, so that a killed build goes on.
"""

import hashlib
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import atomic
from agent_forge.checkpoint.lock import DirectoryLock
from agent_forge.config import suites
from agent_forge.config.compose import CONF, compose
from agent_forge.core.errors import ConfigError, DataError, did_you_mean
from agent_forge.data.overlap import RUN_WORDS
from agent_forge.data.sets import CARD, MANIFEST, BuildSettings, DataSet, open_set
from agent_forge.data.sets.filters import HeldOut, reason
from agent_forge.data.sets.texts import named, text_of
from agent_forge.pipeline.data_set import card, own

Row = dict[str, Any]
Say = Callable[[str], None]
OWN = "own"
# Held-out items per task and split whose runs of words are looked for; more than any of them has.
HELD_OUT_ITEMS = 5000
FORMAT = 1


def compose_recipe(name: str, overrides: list[str], file: str | None = None) -> BuildSettings:
    """Return the settings of the recipe `conf/data/<name>.yaml`.

    Raises ConfigError for an unknown recipe or setting.
    """
    known = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"no recipe '{name}' in conf/data{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    return compose(f"data/{name}", BuildSettings, overrides, file)


@dataclass(slots=True)
class Domain:
    """What a domain has so far: its rows, and how many rows of each source came and went."""

    name: str
    rows: list[Row] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)
    counts: dict[str, Counter[str]] = field(default_factory=dict)

    def take(self, row: Row, source: str, why_not: str) -> int:
        """Count a row; keep it unless there is a reason not to. Return the bytes that it adds."""
        count = self.counts.setdefault(source, Counter())
        text = text_of(row)
        key = hashlib.sha256(text.encode()).hexdigest()
        why_not = why_not or ("repeated" if key in self.seen else "")
        if why_not:
            count[why_not] += 1
            return 0
        self.seen.add(key)
        self.rows.append({**row, "source": source})
        size = len(text.encode())
        count["rows"] += 1
        count["bytes"] += size
        return size


def build(name: str, settings: BuildSettings, say: Say) -> DataSet:
    """Return the data set of a recipe, built now or found where an earlier build put it.

    say: receives lines of progress. Raises ConfigError for benchmark data that is to be reported
    too, DataError where a domain has too little text, LockedError while another process builds it.
    """
    benchmarks = _benchmarks(settings)
    parent = checkpoint.open(settings.own.parent) if settings.own.parent else None
    key = _key(name, settings, parent)
    out = Path(settings.out)
    scratch = out / f".{name}-{key[:12]}"
    entry = out / ".built" / f"{key}.json"
    if entry.is_file():
        built = out / json.loads(entry.read_text(encoding="utf-8"))["directory"]
        if built.is_dir():
            return open_set(built)
    with DirectoryLock(scratch):
        held_out = _held_out(settings, say)
        domains = [
            _fill(
                one, share, settings, held_out, _batches(one, settings, parent, scratch, say), say
            )
            for one, share in _shares(settings).items()
        ]
        written = _write(name, key, settings, domains, benchmarks, parent)
        atomic.write_json(entry, {"directory": written.path.name})
    shutil.rmtree(scratch)
    return written


def _benchmarks(settings: BuildSettings) -> list[str]:
    """Return the benchmarks that the recipe's texts are data of.

    Raises ConfigError where one of them is also to be reported.
    """
    reported = suites.expanded(settings.report)[0]
    benchmarks = dict.fromkeys(settings.benchmarks, "benchmarks")
    for domain, texts in settings.texts.items():
        for text in texts:
            for benchmark in named(text, f"texts.{domain}").benchmarks:
                benchmarks[benchmark] = f"texts.{domain}={text}"
    both = [name for name in benchmarks if name in reported]
    if both:
        raise ConfigError(
            f"{benchmarks[both[0]]} is data of the task '{both[0]}', which report={settings.report} "
            "names: a benchmark is either trained on or reported; leave the text out, or report "
            "without it, as in report=[domains]"
        )
    return sorted(benchmarks)


def _key(name: str, settings: BuildSettings, parent: checkpoint.Checkpoint | None) -> str:
    """Return the hash of all that decides the set's content."""
    plain = asdict(settings)
    del plain["out"], plain["own"]["parent"]
    plain["runtime"] = {"dtype": settings.runtime.dtype}
    plain["data"] = {key: plain["data"][key] for key in ("encoding", "ignore_keys")}
    texts = [named(text, domain) for domain, names in settings.texts.items() for text in names]
    versions = {one.package: _version(one.package) for one in texts if one.package}
    files = [
        atomic.sha256_file(Path(text)) for names in settings.texts.values() for text in names
        if Path(text).is_file()
    ]  # fmt: skip
    writer = parent.id if parent else ""
    everything = [FORMAT, name, plain, versions, sys.version_info[:3], files, writer]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return ""


def _shares(settings: BuildSettings) -> dict[str, float]:
    """Return domain -> share of the bytes, of those above 0; they sum to 1."""
    total = sum(settings.shares.values())
    return {name: share / total for name, share in settings.shares.items() if share}


def _held_out(settings: BuildSettings, say: Say) -> HeldOut:
    """Return the runs of words of every held-out item of what will be reported.

    Tasks whose items are generated are apart by their questions' hashes and share templates only.
    """
    from agent_forge import evaluate

    context = evaluate.EvalContext(data=settings.data, seed=settings.seed)
    chosen = {
        member.task for suite in settings.report if suite in suites.names()
        for member in suites.read(suite) if member.installed and member.package not in GENERATED
    } | {task for task in settings.report if task not in suites.names()}  # fmt: skip
    texts: list[str] = []
    for task in sorted(chosen):
        for split in ("validation", "search", "test"):
            items = evaluate.load_task(task).items(split, HELD_OUT_ITEMS, context)
            texts += [_said(item) for item in items]
    say(f"{len(texts):,} held-out items of {len(chosen)} tasks are kept out")
    return HeldOut(texts)


# Packages whose questions are generated, from templates that training shares.
GENERATED = ("agent_forge", "reasoning_gym")


def _said(item: Any) -> str:
    """Return all words of an evaluation item."""
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        return "\n".join(_said(value) for value in item.values())
    if isinstance(item, (list, tuple)):
        return "\n".join(map(_said, item))
    return str(item)


def _fill(
    name: str,
    share: float,
    settings: BuildSettings,
    held_out: HeldOut,
    batches: Iterator[list[Row]],
    say: Say,
) -> Domain:
    """Return a domain with its share of bytes: the model's own rows first, then those of packages,
    and the model's again where packages run out.

    Raises DataError where both do not have as much.
    """
    domain = Domain(name)
    goal = int(share * settings.size_bytes)

    def taken(row: Row, source: str) -> int:
        why_not = reason(row, settings.filter)
        if not why_not and text_of(row) in held_out:
            why_not = "held out"
        return domain.take(row, source, why_not)

    size, own_goal = 0, int(goal * settings.own.share)
    while size < own_goal and (batch := next(batches, None)) is not None:
        size += sum(taken(row, OWN) for row in batch)
    if size < own_goal and settings.own.parent:
        say(f"{name}: the model's prompts ran out at {size:,} of {own_goal:,} bytes; packages fill")
    for text in settings.texts[name]:
        for row in named(text, f"texts.{name}").rows(settings.data, settings.seed):
            if size >= goal:
                break
            size += taken(row, text)
    while size < goal and (batch := next(batches, None)) is not None:
        size += sum(taken(row, OWN) for row in batch)
    if size < goal:
        raise DataError(
            f"texts.{name}={settings.texts[name]} and the model's own give {size:,} bytes, not "
            f"{goal:,}; lower size_bytes or shares.{name}, or name more texts"
        )
    say(f"{name}: {len(domain.rows):,} rows, {size:,} bytes")
    return domain


def _batches(
    name: str,
    settings: BuildSettings,
    parent: checkpoint.Checkpoint | None,
    scratch: Path,
    say: Say,
) -> Iterator[list[Row]]:
    """Yield the batches that the model writes for a domain; an earlier run's are read back."""
    if parent is None:
        return
    prompts = own.prompts(name, settings)
    writer: Any = None
    for number in itertools.count():
        rows = list(itertools.islice(prompts, settings.own.batch_rows))
        if not rows:
            return
        file = scratch / f"{name}-{number:04}.json"
        if file.is_file():
            yield json.loads(file.read_text(encoding="utf-8"))
            continue
        model, tokenizer = writer = writer or _writer(parent, settings)
        seed = own.batch_seed(settings, name, number)
        batch = own.written(model, tokenizer, rows, settings, seed)
        atomic.write_json(file, batch)
        say(f"{name}: batch {number + 1} of the model's own writing")
        yield batch


def _writer(parent: checkpoint.Checkpoint, settings: BuildSettings) -> tuple[Any, Any]:
    """Return the model that writes and its tokenizer."""
    from agent_forge import models
    from agent_forge.core import device

    runtime = settings.runtime
    device.set_threads(runtime.threads)
    place, dtype = device.pick_device(runtime.device), device.pick_dtype(runtime.dtype)
    return models.load(parent, device=place, dtype=dtype), models.load_tokenizer(parent.path)


def _write(
    name: str,
    key: str,
    settings: BuildSettings,
    domains: list[Domain],
    benchmarks: list[str],
    parent: checkpoint.Checkpoint | None,
) -> DataSet:
    """Write the set into a temporary directory beside its place, which the hash of it names."""
    out = Path(settings.out)
    temporary = out / f"{atomic.TEMPORARY}{name}-{key[:12]}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files: dict[str, dict[str, Any]] = {}
    for domain in domains:
        rows = own.shuffled(domain.rows, settings, domain.name)
        for form, field_name in (("text", "text"), ("chat", "messages")):
            members = [row for row in rows if field_name in row]
            if members:
                lines = [json.dumps(row_of(row), ensure_ascii=False) for row in members]
                file = temporary / f"{domain.name}.{form}.jsonl"
                atomic.write_bytes(file, ("\n".join(lines) + "\n").encode())
                files[file.name] = {
                    "sha256": atomic.sha256_file(file), "rows": len(members),
                    "bytes": sum(len(text_of(row).encode()) for row in members),
                }  # fmt: skip
    hashes = json.dumps({name: facts["sha256"] for name, facts in sorted(files.items())})
    manifest = {
        "format": FORMAT, "name": name, "id": hashlib.sha256(hashes.encode()).hexdigest(),
        "recipe": key, "shares": _shares(settings), "files": files, "benchmarks": benchmarks,
        "counts": {
            one.name: {source: dict(count) for source, count in one.counts.items()}
            for one in domains
        },
        "texts": {
            text: named(text, domain).licence
            for domain, texts in settings.texts.items() for text in texts
        },
        "parent": {"id": parent.id, "name": parent.manifest.name} if parent else {},
        "own": {k: v for k, v in asdict(settings.own).items() if k != "parent"},
        "filter": asdict(settings.filter), "held_out": settings.report, "run_words": RUN_WORDS,
        "seed": settings.seed,
    }  # fmt: skip
    atomic.write_json(temporary / MANIFEST, manifest)
    atomic.write_bytes(temporary / CARD, card.text(manifest).encode())
    final = out / f"{name}-{str(manifest['id'])[:16]}"
    if final.exists():
        shutil.rmtree(temporary)  # another recipe gave the same content
    else:
        temporary.rename(final)
        atomic.fsync_path(out)
    return open_set(final)


def row_of(row: Row) -> Row:
    """Return a row as files hold it: tools beside the messages, as chats are published."""
    if "text" in row:
        return row
    first, *rest = row["messages"]
    if not first.get("tools"):
        return row
    turns = (
        rest if not first["content"] else [{"role": "system", "content": first["content"]}, *rest]
    )
    return {"messages": turns, "tools": first["tools"], "source": row["source"]}
