"""Render what was measured: docs/results.md, its picture, and the tables of README, from results/.

README holds blocks between `<!-- NAME: begin -->` and `<!-- NAME: end -->`; nothing measured is
written there by hand. tests/scripts/test_results.py fails where a page differs from results/.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from scripts.bench import draw
from scripts.bench.result import ROOT, Figure, Result, read_all

PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
PICTURE = ROOT / "docs" / "compression.svg"
TOPICS = (
    "A real model through all phases",
    "Compression",
    "Decoding",
    "Merging",
    "Evolution",
    "Training",
    "Ternary weights",
    "Memory and depth",
    "Agent",
    "Tools",
    "Chat",
    "Gates",
    "Tests",
    "Service",
    "Dashboard",
    "The default run",
)
MOST_ROWS = 8  # further figures of one run that the page shows; the JSON has all
INTRODUCTION = """# Results

Every claim with its figure, its bar, and the command that measures it again. Rendered from `results/*.json` by
`python -m scripts.bench render`; `python -m scripts.bench run NAME` measures anew and writes the JSON. Brackets are 95%
intervals. "Met" and "missed" are said of the figure itself; where its interval reaches over the bar, look at both.
Where the day of a run was not noted, the date is the log's. Experiments that ended in nothing are in
[the log](log.md); raw tables and all conditions in [results/notes](../results/notes).
"""


def number(value: float | None) -> str:
    """Return a figure as text: three decimals below ten, one below a thousand, then whole.

    Zeros at the end are left out: they would claim digits that nobody measured.
    """
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".")


def shown(figure: Figure) -> str:
    """Return a figure with its unit and interval."""
    interval = ""
    if figure.interval is not None:
        interval = f" [{number(figure.interval[0])}, {number(figure.interval[1])}]"
    unit = f" {figure.unit}" if figure.unit else ""
    if figure.figure is not None and unit.endswith("bars met"):
        return f"{figure.figure:.0f}{unit}"
    return f"{number(figure.figure)}{interval}{unit}".strip()


def verdict(figure: Figure) -> str:
    """Return how a figure stands to its bar."""
    return {True: "met", False: "**missed**", None: ""}[figure.met]


def row(figure: Figure, place: int | None) -> str:
    """Return a row of a topic's table; place: the number of the run, for its headline."""
    claim = f"**{figure.claim}** [{place}]" if place else figure.claim
    return f"| {claim} | {shown(figure)} | {figure.n} | {figure.bar} | {verdict(figure)} |"


def provenance(name: str, result: Result, place: int) -> str:
    """Return how a run is made again, and where and when it was made."""
    note = f" {result.note}" if result.note else ""
    return (
        f"{place}. `{result.command}`: {result.date}; {result.machine}; commit {result.commit}."
        f"{note} ([{name}.json](../results/{name}.json))"
    )


def section(topic: str, results: dict[str, Result]) -> str:
    """Return one topic: its table, and how its runs were made."""
    lines = [f"## {topic}", "", "| claim | figure | n | bar | |", "|---|---|---|---|---|"]
    runs = []
    for place, (name, result) in enumerate(results.items(), 1):
        lines.append(row(result, place))
        lines += [row(figure, None) for figure in result.figures[:MOST_ROWS]]
        left = len(result.figures) - MOST_ROWS
        if left > 0:
            lines.append(f"| {left} more in [{name}.json](../results/{name}.json) | | | | |")
        runs.append(provenance(name, result, place))
    return "\n".join([*lines, "", *runs, ""])


def results_page(results: dict[str, Result]) -> str:
    """Return docs/results.md. Raises ValueError for a topic that TOPICS does not name."""
    unknown = {result.topic for result in results.values()} - set(TOPICS)
    if unknown:
        raise ValueError(f"topics {sorted(unknown)} are not in TOPICS of {__file__}")
    sections = []
    for topic in TOPICS:
        inside = {name: result for name, result in results.items() if result.topic == topic}
        if inside:
            sections.append(section(topic, inside))
    picture = f"![size against perplexity]({PICTURE.name})\n"
    return "\n".join([INTRODUCTION, picture, *sections])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)])


def real_model_table(results: dict[str, Result]) -> str:
    """Return README's first table: SmolLM2-135M beside its peers."""
    compress, decode, merge = results["compress"], results["decode"], results["merge"]
    run, ternary = results["smollm2_run"], results["bitnet"]

    def cell(result: Result, *keys: str, unit: bool = True) -> str:
        figures = [result.find(key) for key in keys]
        bare = [f if unit else replace(f, unit="") for f in figures]
        return ", ".join(shown(figure) for figure in bare)

    def ratio(key: str) -> str:
        return cell(compress, key, unit=False)

    def percent(key: str) -> str:
        return f"{run.find(key).figure:.1%}"

    return table(
        ("SmolLM2-135M", "Agent Forge", "peer"),
        [
            ("perplexity over fp32, at 87 MB (fp32: 538 MB)", ratio("ours 86.5 MB"),
             f"{ratio('llama.cpp Q4_K_M')} (llama.cpp Q4_K_M)"),
            ("perplexity over fp32, at 62 MB", ratio("ours 62 MB"),
             f"{ratio('llama.cpp Q2_K')} (llama.cpp Q2_K)"),
            ("decoding that 62 MB file, two cores", cell(decode, "water-filled, 62 MB"),
             f"{cell(decode, 'llama.cpp Q4_0')} (llama.cpp Q4_0, 92 MB)"),
            ("decoding ternary weights, two cores", cell(decode, "ternary + int8 embedding"),
             f"{cell(decode, 'transformers float32')} (transformers, float32)"),
            ("TIES merge of three, whole process", cell(merge, "ties seconds", "ties megabytes"),
             f"{cell(merge, 'mergekit ties seconds', 'mergekit ties megabytes')} (mergekit 0.1.5)"),
            ("all eight phases: size", cell(run, "deployable"), "538 MB before"),
            ("all eight phases: bits per byte kept by compressing", percent("kept by compress"), ""),
            ("calculator questions answered by calling the tool",
             f"{percent('tools after')} of {run.find('tools after').n}",
             f"{percent('tools before')} before"),
            ("perplexity over fp32, ternary, distilled on one thread",
             shown(replace(ternary, unit="")), f"bar: {ternary.bar}: {verdict(ternary)}"),
        ],
    )  # fmt: skip


def training_table(results: dict[str, Result]) -> str:
    """Return README's table of the training engine."""
    figures = [*results["train"].figures[:6], results["tokens_to_loss"]]
    rows = [(f.claim, shown(f), f.bar, verdict(f)) for f in figures]
    return table(("claim", "figure", "bar", ""), rows)


def run_sentence(result: Result) -> str:
    """Return where and when the default run was made."""
    return (
        f"`{result.command}`: {result.date}, {result.machine}, commit {result.commit}; "
        f"{shown(result)} over the phases ({result.bar}: {verdict(result)}). "
        f"{result.note.replace('](../', '](')}"
    ).rstrip()


def blocks(results: dict[str, Result]) -> dict[str, str]:
    """Return README's blocks by name."""
    return {
        "real model": real_model_table(results),
        "training": training_table(results),
        "run-all": run_sentence(results["run_all"]),
        **results["run_all"].blocks,
    }


def with_blocks(page: str, contents: dict[str, str]) -> str:
    """Return a page with each block between its markers. Raises ValueError where one is missing."""
    for name, content in contents.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, found_begin, rest = page.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found_begin or not found_end:
            raise ValueError(f"the page has no block between {begin} and {end}; add the two lines")
        page = f"{before}{begin}\n\n{content}\n\n{end}{after}"
    return page


def pages() -> dict[Path, str]:
    """Return every rendered file with what it is to hold."""
    results = read_all()
    return {
        PAGE: results_page(results),
        README: with_blocks(README.read_text(encoding="utf-8"), blocks(results)),
        PICTURE: draw.compression(results["compress"].points),
    }


def write_all() -> list[Path]:
    """Write every rendered file; return those that changed."""
    changed = []
    for path, content in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")
            changed.append(path)
    return changed
