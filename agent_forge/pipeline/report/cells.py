"""Cells and tables of the page: a rounded figure with its exact value, an interval, a badge.

Every function returns HTML in which everything that it was given as text is escaped.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.pipeline.report import words


def score_cell(score: Mapping[str, Any] | None) -> str:
    """Return a score with its interval as a cell; "" where it was not measured."""
    if not score or score.get("value") is None:
        return ""
    return data(score["value"], words.score(score)) + _sub(_between(score))


def bare_cell(score: Mapping[str, Any] | None) -> str:
    """Return a score with its interval and without its unit, which its column's head has."""
    if not score or score.get("value") is None:
        return ""
    return data(score["value"], bare(score)) + _sub(_between(score))


def bare(score: Mapping[str, Any]) -> str:
    """Return a score as it stands in a tile or a column that names its unit."""
    share = words.is_share(str(score.get("metric", "")))
    return words.percent(score["value"]) if share else words.figure(score["value"])


def _between(score: Mapping[str, Any]) -> str:
    return words.AT_CHANCE if score.get("at_chance") else words.interval(score)


def _sub(text: str) -> str:
    return f' <span class="sub">{html.escape(text)}</span>' if text else ""


def kept_cell(entry: Mapping[str, Any]) -> str:
    """Return a retention with its lower bound as a cell, or "at chance"."""
    if entry.get("at_chance"):
        return words.AT_CHANCE
    if entry.get("ratio") is None:
        return "the parent scored nothing"
    low = entry.get("low")
    bound = "" if low is None else f"at least {words.percent(low)}"
    return data(entry["ratio"], words.percent(entry["ratio"])) + _sub(bound)


def plain_cell(key: str, value: Any) -> str:
    """Return a phase's own value as a cell; a number keeps its exact value behind it."""
    text = words.cell(key, value)
    exact = value.get("value") if isinstance(value, Mapping) else value
    if isinstance(exact, bool) or not isinstance(exact, (int, float)) or not text:
        return html.escape(text)
    return data(exact, text)


def data(value: float, text: str) -> str:
    """Return a rounded figure with its exact value behind it."""
    return f'<data value="{value!r}">{html.escape(text)}</data>'


def table(
    rows: Sequence[Sequence[tuple[str, str]]], *, row_head: bool = False, scroll: bool = False
) -> str:
    """Return rows of (head, cell as HTML) as a table that stacks on a phone, or scrolls.

    row_head: the first cell of a row names it.
    """
    if not rows:
        return ""
    heads = "".join(f'<th scope="col">{html.escape(capital(head))}</th>' for head, _ in rows[0])
    body = []
    for row in rows:
        cells = [
            f'<th scope="row">{cell}</th>' if row_head and index == 0 else _td(head, cell)
            for index, (head, cell) in enumerate(row)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    kind = "" if scroll else ' class="stack wide"'
    content = f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{content}</div>' if scroll else content


def _td(head: str, cell: str) -> str:
    """Return a cell; its content is one element, which stands beside its head on a phone."""
    name = html.escape(capital(head), quote=True)
    return f'<td data-head="{name}"><div>{cell}</div></td>' if cell else "<td></td>"


def size_cell(count: float) -> str:
    """Return a size with its exact bytes behind it; "" for none."""
    return data(count, words.size(count)) if count else ""


def prose(text: str) -> str:
    """Return a phase's sentence, with what stands between backticks as code."""
    parts = html.escape(text).split("`")
    if len(parts) % 2 == 0:
        return html.escape(text)
    return "".join(
        f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)
    )


def time_cell(seconds: float) -> str:
    """Return a time with its exact seconds behind it; "" for none."""
    return data(seconds, words.duration(seconds)) if seconds else ""


def badge(text: str, tone: str) -> str:
    """Return a verdict as a badge; tone: good, bad or plain."""
    return f'<span class="badge {tone}">{html.escape(text)}</span>'


def capital(text: str) -> str:
    """Return text with a capital first letter."""
    return text[:1].upper() + text[1:]


def limit_cell(entry: Mapping[str, Any]) -> str:
    """Return the limit of a retention, or that it is not gated."""
    if entry.get("at_chance") or not entry.get("limit"):
        return "not gated"
    return data(entry["limit"], f"{words.number(100 * entry['limit'])}%")


def room_cell(entry: Mapping[str, Any]) -> str:
    """Return how much a next phase may still lose before the limit; "" where nothing is gated."""
    if entry.get("at_chance") or not entry.get("limit") or not entry.get("ratio"):
        return ""
    room = max(1 - entry["limit"] / entry["ratio"], 0.0)
    return html.escape(f"{words.number(round(100 * room, 1))}%")
