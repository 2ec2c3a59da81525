"""The card of a data set: what is in it, from where, under which licences, and what was dropped."""

from collections.abc import Mapping
from typing import Any

from agent_forge.data.sets.filters import REASONS


def text(manifest: Mapping[str, Any]) -> str:
    """Return the README of a data set as Markdown."""
    lines = [
        f"# {manifest['name']}",
        "",
        f"Id {manifest['id']}, recipe {manifest['recipe'][:16]}, seed {manifest['seed']}.",
        "",
        "| domain | share | source | rows | bytes | dropped |",
        "|---|---|---|---|---|---|",
    ]
    for domain, sources in manifest["counts"].items():
        for source, count in sources.items():
            gone = ", ".join(f"{count[why]:,} {why}" for why in REASONS if count.get(why))
            lines.append(
                f"| {domain} | {manifest['shares'][domain]:.0%} | {source} | "
                f"{count.get('rows', 0):,} | {count.get('bytes', 0):,} | {gone or 'none'} |"
            )
    lines += ["", "## Sources", ""]
    lines += [f"- {name}: {licence}" for name, licence in manifest["texts"].items()]
    lines += _own(manifest)
    benchmarks = ", ".join(manifest["benchmarks"])
    lines += [
        "",
        "## Evaluation",
        "",
        f"Benchmark data in it: {benchmarks or 'none'}. A model that was trained on this set is not "
        "scored on those."
        if benchmarks
        else "Benchmark data in it: none.",
        f"A document that shares {manifest['run_words']} words in a row with a held-out item of "
        f"{', '.join(manifest['held_out'])} was dropped.",
    ]
    return "\n".join(lines) + "\n"


def _own(manifest: Mapping[str, Any]) -> list[str]:
    parent = manifest["parent"]
    if not parent:
        return []
    own = manifest["own"]
    return [
        f"- own: written by the model {parent['name'] or 'without a name'} ({parent['id'][:16]}) "
        f"at temperature {own['temperature']:g}, top_p {own['top_p']:g}, at most "
        f"{own['new_tokens']} tokens after a prompt of the domain; rows hold their prompts",
    ]
