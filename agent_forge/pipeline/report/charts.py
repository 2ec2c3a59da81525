"""Line charts and bars as inline SVG: axes with round ticks, units, and a title and description.

Reads plain points, writes SVG text whose colours are the page's CSS variables, so that one drawing
serves light, dark and print. Every text in it is escaped.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent_forge.pipeline.report import words

CHARACTER = 6.2  # width of a 12-pixel character, on average
COLOURS = 6  # series colours that the page's style defines
MARKS = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True, slots=True)
class Point:
    """A value at a place, with the ends of its interval where they are known."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    refused: bool = False


@dataclass(slots=True)
class Frame:
    """The place of a plot in a drawing, and the values at its edges."""

    left: float
    top: float
    right: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    parts: list[str] = field(default_factory=list)

    def across(self, x: float) -> float:
        """Return the place of a value on the horizontal axis."""
        return self.left + (x - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def down(self, y: float) -> float:
        """Return the place of a value on the vertical axis."""
        share = (y - self.y_low) / (self.y_high - self.y_low)
        return self.bottom - share * (self.bottom - self.top)

    def text(self, x: float, y: float, words_: str, kind: str = "tick", anchor: str = "") -> None:
        """Add a text; kind: its CSS class."""
        anchored = f' text-anchor="{anchor}"' if anchor else ""
        self.parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchored}>{html.escape(words_)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> None:
        """Add a straight line; kind: its CSS class."""
        self.parts.append(
            f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
        )

    def y_axis(self, unit: str = "", count: int = 4) -> None:
        """Add horizontal grid lines with their values."""
        values = ticks(self.y_low, self.y_high, count)
        for value, label in zip(values, tick_labels(values), strict=True):
            place = self.down(value)
            self.line(self.left, place, self.right, place)
            self.text(self.left - 6, place + 4, label + unit, anchor="end")

    def x_axis(self, count: int = 4) -> None:
        """Add the lower edge with its values."""
        self.line(self.left, self.bottom, self.right, self.bottom, "axis")
        values = ticks(self.x_low, self.x_high, count)
        for value, label in zip(values, tick_labels(values), strict=True):
            self.text(self.across(value), self.bottom + 16, label, anchor="middle")

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Add a line through the points."""
        places = " ".join(f"{self.across(x):.1f},{self.down(y):.1f}" for x, y in points)
        self.parts.append(f'<polyline class="{kind}" points="{places}"/>')

    def mark(self, x: float, y: float, shape: str, kind: str) -> None:
        """Add a mark at a place of the drawing."""
        r = 4.5
        if shape == "circle":
            self.parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>')
            return
        shapes: dict[str, list[tuple[float, float]]] = {
            "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            "triangle": [(0, -1.2), (1.1, 1), (-1.1, 1)],
            "diamond": [(0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)],
        }
        places = " ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in shapes[shape])
        self.parts.append(f'<polygon class="{kind}" points="{places}"/>')


def ticks(low: float, high: float, count: int) -> list[float]:
    """Return about `count` round values between two edges, in steps of 1, 2 or 5 times a power of
    ten.
    """
    span = high - low
    power = 10.0 ** math.floor(math.log10(span / max(count, 1)))
    step = next(factor * power for factor in (1, 2, 5, 10) if span <= (count + 1) * factor * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    values = [round(index * step, 12) for index in range(first, last + 1)]
    return [int(value) if value == int(value) else value for value in values]


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis, all with as many decimals as the longest needs."""
    labels = [words.number(value) for value in values]
    decimals = max((len(label.partition(".")[2]) for label in labels), default=0)
    if not decimals or not all(label.lstrip(words.MINUS)[:1].isdigit() for label in labels):
        return labels
    return [f"{value:,.{decimals}f}".replace("-", words.MINUS) for value in values]


def spread(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    """Return edges a little outside of the values."""
    low, high = min(values), max(values)
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def drawing(
    name: str, size: tuple[float, float], title: str, description: str, parts: Sequence[str]
) -> str:
    """Return an SVG of `parts`. name: unique in its page. size: width and height."""
    width, height = size
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(description)}</desc>{"".join(parts)}</svg>'
    )


@dataclass(frozen=True, slots=True)
class Labels:
    """The words of a chart: its title, and what its axes show."""

    title: str
    x: str
    y: str


def curve(
    name: str,
    labels: Labels,
    lines: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    faint: Sequence[Sequence[tuple[float, float]]] = (),
    *,
    dots: bool = False,
) -> str:
    """Return a line chart of one or several lines on shared axes.

    lines: (label, points); a label stands above the part of the axis that its line covers. faint:
    points as they were measured, drawn behind the smoothed lines. dots: mark every point.
    """
    width, height = 420.0, 220.0
    points = [p for _, line in lines for p in line]
    every = [*points, *(p for line in faint for p in line)]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = spread([y for _, y in every])
    frame = Frame(58, 30, width - 14, height - 40, x_low, x_high or 1, y_low, y_high)
    if x_low == x_high:
        frame.x_low, frame.x_high = x_low - 1, x_high + 1
    frame.text(4, 14, labels.y, "label")
    frame.y_axis()
    frame.x_axis()
    frame.text(frame.right, height - 6, labels.x, "label", "end")
    for line in faint:
        frame.path(line, "faint")
    for index, (label, line) in enumerate(lines):
        kind = f"c{index % COLOURS + 1}"
        frame.path(line, f"line {kind}")
        if dots:
            for x, y in line:
                frame.mark(frame.across(x), frame.down(y), MARKS[index % len(MARKS)], f"dot {kind}")
        _stage_label(frame, label, line, first=index == 0)
    first, last = points[0][1], points[-1][1]
    described = f"{labels.y} against {labels.x}: from {words.number(first)} to {words.number(last)}"
    return drawing(name, (width, height), labels.title, described, frame.parts)


def _stage_label(
    frame: Frame, label: str, line: Sequence[tuple[float, float]], *, first: bool
) -> None:
    """Mark where a stage begins, and name it where its part of the axis has room for the name."""
    begin, end = frame.across(line[0][0]), frame.across(line[-1][0])
    if not first:
        frame.line(begin, frame.top, begin, frame.bottom, "stage")
    if len(label) * CHARACTER * 0.9 < end - begin:
        frame.text((begin + end) / 2, frame.top - 3, label, "tick", "middle")


@dataclass(slots=True, kw_only=True)
class Step:
    """One phase in the chart of size and quality. kept: task -> point in per cent of the base."""

    name: str
    size_mb: float
    size_text: str
    kept: dict[str, Point]


def size_and_quality(name: str, steps: Sequence[Step], base: str, *, width: float = 760) -> str:
    """Return quality above and size below, over the phases from left to right."""
    narrow = (width - 70) / max(len(steps), 1) < 70
    tasks = list(dict.fromkeys(task for step in steps for task in step.kept))
    quality_height = 150.0 if tasks else 0.0
    legend = 22.0 * (len(tasks) > 0)
    top = 26 + legend
    middle = top + quality_height + (52 if tasks else 0)
    bottom = middle + 120
    height = bottom + (56 if narrow else 30)
    parts: list[str] = []
    slots = (0.0, float(len(steps)))
    if tasks:
        ends = [v for step in steps for p in step.kept.values() for v in (p.low, p.high, p.y) if v]
        low, high = spread([*ends, 100.0], 0.12)
        upper = Frame(56, top, width - 12, top + quality_height, *slots, low, high, parts)
        _quality(upper, steps, tasks, base)
    most = max((step.size_mb for step in steps), default=1.0) or 1.0
    lower = Frame(56, middle, width - 12, bottom, *slots, 0.0, most * 1.14, parts)
    _sizes(lower, steps, narrow=narrow)
    described = "; ".join(
        f"{step.name}: {step.size_text}"
        + "".join(f", {words.number(p.y)}% of {t}" for t, p in step.kept.items())
        for step in steps
    )
    return drawing(name, (width, height), "Size and quality after each phase", described, parts)


def _quality(frame: Frame, steps: Sequence[Step], tasks: Sequence[str], base: str) -> None:
    frame.text(4, 14, f"Quality kept, % of {base}", "label")
    x = frame.left
    for index, task in enumerate(tasks):
        kind = f"c{index % COLOURS + 1}"
        frame.mark(x + 5, 30, MARKS[index % len(MARKS)], f"dot {kind}")
        frame.text(x + 15, 34, task, "label")
        x += 34 + len(task) * CHARACTER
    frame.y_axis("%")
    frame.line(frame.left, frame.down(100), frame.right, frame.down(100), "base")
    for index, task in enumerate(tasks):
        kind, shape = f"c{index % COLOURS + 1}", MARKS[index % len(MARKS)]
        offset = (index - (len(tasks) - 1) / 2) * 0.12
        places = [
            (slot + 0.5 + offset, step.kept[task])
            for slot, step in enumerate(steps)
            if task in step.kept
        ]
        frame.path([(x, p.y) for x, p in places if not p.refused], f"line {kind}")
        for x, p in places:
            if p.low is not None and p.high is not None:
                across = frame.across(x)
                frame.line(across, frame.down(p.low), across, frame.down(p.high), f"whisker {kind}")
            frame.mark(
                frame.across(x),
                frame.down(p.y),
                shape,
                f"{'hollow' if p.refused else 'dot'} {kind}",
            )


def _sizes(frame: Frame, steps: Sequence[Step], *, narrow: bool) -> None:
    frame.text(4, frame.top - 14, "Size of the file to ship, MB", "label")
    frame.y_axis(count=3)
    frame.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")
    slot_width = frame.across(1) - frame.across(0)
    before = ""
    for slot, step in enumerate(steps):
        centre = frame.across(slot + 0.5)
        top = frame.down(step.size_mb)
        bar = min(slot_width * 0.62, 64)
        frame.parts.append(
            f'<rect class="bar" x="{centre - bar / 2:.1f}" y="{top:.1f}" width="{bar:.1f}" '
            f'height="{max(frame.bottom - top, 0):.1f}"/>'
        )
        in_mb = step.size_text.endswith(" MB")
        value = step.size_text.removesuffix(" MB") if in_mb else words.number(step.size_mb)
        # Side by side on a phone, labels have room without their zero, and one of equal ones.
        value = value.removeprefix("0") if narrow else value
        if not narrow or step.size_text != before:
            frame.text(centre, top - 5, value, "value", "middle")
        before = step.size_text
        _phase_name(frame, centre, step.name, narrow=narrow)


def _phase_name(frame: Frame, centre: float, name: str, *, narrow: bool) -> None:
    if not narrow:
        frame.text(centre, frame.bottom + 18, name, "label", "middle")
        return
    y = frame.bottom + 12
    frame.parts.append(
        f'<text class="label" text-anchor="end" transform="translate({centre + 4:.1f} {y:.1f}) '
        f'rotate(-45)">{html.escape(name)}</text>'
    )
