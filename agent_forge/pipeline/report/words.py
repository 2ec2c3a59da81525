"""How the report and the terminal write figures and names: three significant figures and words.

Reads plain values of outcomes, writes text. Nothing here knows of HTML or of terminals.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

AT_CHANCE = "at chance"
EXACT_INTEGERS = 10_000  # counts below are written in full
MINUS = "\N{MINUS SIGN}"
KEPT = "_kept"
# The ending of a metric's name, its unit in words, and the factor to that unit.
UNITS = (
    ("_bits_per_byte", "bits per byte", 1.0),
    ("_tokens_per_second", "tokens per second", 1.0),
    ("_per_second", "per second", 1.0),
    ("_nats", "nats", 1.0),
    ("_bytes", "MB", 1e-6),
    ("_seconds", "s", 1.0),
    ("_share", "%", 100.0),
    (KEPT, "%", 100.0),
)
WHOLE_NAMES = {
    "seconds": ("time", "s", 1.0),
    "deployable_bytes": ("size", "MB", 1e-6),
    "file_bytes": ("files", "MB", 1e-6),
    "bytes": ("size", "MB", 1e-6),
    "bytes_of_fp32": ("size against float32", "%", 100.0),
    "bytes_of_parent": ("size against the parent", "%", 100.0),
    "of_fp32": ("size against float32", "%", 100.0),
    "size_ratio": ("size against the parent", "%", 100.0),
    "kept": ("kept", "%", 100.0),
    "share": ("share", "%", 100.0),
    "seed_share": ("weights coded as seeds", "%", 100.0),
    "zeros": ("weights that are zero", "%", 100.0),
    "bits": ("bits per weight", "", 1.0),
    "n": ("items", "", 1.0),
}
TASKS = {
    "tools": "tool calls", "choice": "multiple choice", "unseen": "unseen text",
    "tool_calls": "text of tool calls", "hellaswag": "HellaSwag", "truthfulqa": "TruthfulQA",
    "gsm8k": "GSM8K", "humaneval": "HumanEval", "bfcl": "BFCL", "reasoning_gym": "reasoning-gym",
    "agentdojo": "AgentDojo",
}  # fmt: skip
SHARES = ("exact match", "right answers by right calls", "accuracy")
PREPOSITIONS = {"a second": "per second", "a weight": "per weight", "a task": "per task"}


def number(value: float) -> str:
    """Return a number with at most three significant figures and without an exponent."""
    if isinstance(value, int) and abs(value) < EXACT_INTEGERS:
        return f"{value:,}".replace("-", MINUS)
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    sign, size = (MINUS if value < 0 else ""), abs(value)
    for factor, word in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if size >= 0.9995 * factor:
            return f"{sign}{_three(size / factor)}{word}"
    if size < 5e-6:
        return "\N{ALMOST EQUAL TO} 0"
    return sign + _three(size)


def _three(size: float) -> str:
    """Return a positive number with three significant figures, trailing zeros of fractions kept
    off.
    """
    places = 2 - math.floor(math.log10(size))
    rounded = round(size, places)
    text = f"{rounded:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def figure(value: float) -> str:
    """Return a measured number with three significant figures, its zeros included, as in "1.80"."""
    if not math.isfinite(value) or not 0.001 <= abs(value) < 1000:
        return number(value)
    return (MINUS if value < 0 else "") + _fixed(abs(value))


def percent(share: float) -> str:
    """Return a measured share as per cent with three significant figures."""
    return f"{figure(100.0 * share)}%"


def short(value: float) -> str:
    """Return a score with three decimals, and without the zero before the point: ".980"."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def size(count: float) -> str:
    """Return bytes as MB, or GB from a thousand of them, with three figures; "" for none."""
    if not count:
        return ""
    if count >= 0.9995e9:
        return f"{_fixed(count / 1e9)} GB"
    return f"{_fixed(count / 1e6)} MB" if count >= 500 else "<0.001 MB"


def _fixed(value: float) -> str:
    """Return a positive number with three significant figures, at most three of them decimals."""
    value = float(f"{value:.3g}")
    places = min(max(2 - math.floor(math.log10(value)), 0), 3)
    return f"{value:,.{places}f}"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would use; "" for none."""
    if seconds <= 0:
        return ""
    if seconds < 299.5:
        return f"{_three(seconds)} s"
    if seconds < 99.5 * 60:
        return f"{_three(seconds / 60)} min"
    return f"{_three(seconds / 3600)} h"


def times(ratio: float) -> str:
    """Return a ratio as "14.5 times"."""
    return f"{number(float(f'{ratio:.3g}'))} times"


def task(name: str) -> str:
    """Return the name of an evaluation task in words."""
    return TASKS.get(name, name.replace("_", " "))


def is_share(metric: str) -> bool:
    """Return whether a task's metric is a share of right answers."""
    return metric.startswith(SHARES)


def score(entry: Mapping[str, Any]) -> str:
    """Return the value of a score in its unit: a share as per cent, everything else as it is."""
    metric = str(entry.get("metric", ""))
    if is_share(metric):
        return percent(entry["value"])
    return f"{figure(entry['value'])} {metric}".strip()


def interval(entry: Mapping[str, Any]) -> str:
    """Return the 95% interval of a score in its unit; "" where none is known."""
    low, high = entry.get("low"), entry.get("high")
    if low is None or high is None:
        return ""
    if is_share(str(entry.get("metric", ""))):
        return f"{figure(100.0 * low)} to {percent(high)}"
    return f"{figure(low)} to {figure(high)}"


def label(key: str) -> tuple[str, str, float]:
    """Return a metric's key as (name in words, unit, factor to the unit)."""
    if key in WHOLE_NAMES:
        return WHOLE_NAMES[key]
    for ending, unit, factor in UNITS:
        if key.endswith(ending) and key != ending:
            name = key if ending == KEPT else key.removesuffix(ending)
            return _in_words(name), unit, factor
        if key == ending.removeprefix("_"):
            return unit, "", factor
    return _in_words(key), "", 1.0


def _in_words(key: str) -> str:
    text = key.replace("_", " ").strip()
    for old, new in PREPOSITIONS.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


def heading(key: str) -> str:
    """Return a metric's key as the head of a column: name and unit."""
    name, unit, _ = label(key)
    return f"{name} ({unit})" if unit else name


def cell(key: str, value: Any) -> str:
    """Return a plain value of the column `key`; "" for None, NaN and empty lists."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping) and "value" in value:
        return measured(key, value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_in_words(str(k))} {cell(str(k), v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(cell("", entry) for entry in value)
    if isinstance(value, (int, float)):
        factor = label(key)[2]
        finite = math.isfinite(value)
        return number(value * factor if factor != 1.0 else value) if finite else ""
    text = "" if value is None else str(value)
    return "" if text in ("None", "nan", "inf", "-inf") else tidy(text)


def measured(key: str, entry: Mapping[str, Any]) -> str:
    """Return a value with what is known of its interval and count, in the unit of `key`."""
    if entry.get("value") is None:
        return ""
    factor = label(key)[2]
    text = cell(key, entry["value"])
    low, high = entry.get("low"), entry.get("high")
    if low is not None and high is not None:
        text += f" ({number(low * factor)} to {number(high * factor)})"
    elif low is not None:
        text += f" (at least {number(low * factor)})"
    text += f", n = {number(entry['n'])}" if entry.get("n") else ""
    return text + (f", {AT_CHANCE}" if entry.get("at_chance") else "")


_BYTES = re.compile(r"(?<![\w.])(\d{1,3}(?:,\d{3})+|\d{4,}) bytes\b")
_DECIMAL = re.compile(r"(?<![\w.,])([+-]?)(\d[\d,]*\.\d+)(?![\w]|\.\d)")
_PER_CENT = re.compile(r"(?<![\w.,])([+-]?)(\d[\d,]*\.\d+)%")
_EXPONENT = re.compile(r"(?<![\w.])[+-]?\d(?:\.\d+)?e[+-]?\d+\b")
_SNAKE = re.compile(r"(?<![\w./=`\\-])[a-z]+(?:_[a-z0-9]+)+(?![\w./=`])")


def tidy(text: str) -> str:
    """Return a phase's own sentence with its figures rounded and its names in words.

    Code between backticks stays as it is.
    """
    parts = text.split("`")
    return "`".join(
        part if index % 2 and len(parts) % 2 else _tidied(part) for index, part in enumerate(parts)
    )


def _tidied(text: str) -> str:
    text = _BYTES.sub(lambda match: size(float(match[1].replace(",", ""))), text)
    text = _EXPONENT.sub(lambda match: number(float(match[0])), text)
    text = _PER_CENT.sub(lambda match: f"{_signed(match[1], match[2])}%", text)
    text = _DECIMAL.sub(lambda match: _signed(match[1], match[2]), text)
    text = _SNAKE.sub(lambda match: match[0].replace("_", " "), text)
    return text.replace(" -> ", " \N{RIGHTWARDS ARROW} ")


def _signed(sign: str, digits: str) -> str:
    value = float(digits.replace(",", ""))
    if value == 0:
        return "0"
    return {"-": MINUS, "+": "+", "": ""}[sign] + number(value)


def sentence(text: str) -> str:
    """Return text with a capital first letter and a full stop; "" stays empty."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?", ":")) else ".")


def clause(text: str) -> str:
    """Return text with a small first letter, unless the first word is a name in capitals."""
    first, second = text[:1], text[1:2]
    return first.lower() + text[1:] if first.isupper() and not second.isupper() else text


def joined(parts: list[str]) -> str:
    """Return parts as "a, b and c"."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
