"""Draw measured points as SVG, without a plotting library: bytes against what a model lost.

`compression(points)` takes name -> [[megabytes, perplexity over fp32], ...] of one run, as the
bench `compress` leaves them in results/compress.json. Both axes are logarithmic.
"""

import math
from collections.abc import Sequence

Points = dict[str, list[tuple[float, float]]]
WIDTH, HEIGHT = 760, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 52, 52
X_TICKS, Y_TICKS = (25, 35, 50, 70, 100, 140), (1.0, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10)
COLOURS = {"ours": "#0b62a8", "llama.cpp": "#c2410c"}
LABELS = {"ours": "Agent Forge", "llama.cpp": "llama.cpp, with an importance matrix"}
# The excess over fp32 is drawn on a logarithmic axis from here, so that 1.00 has a place.
LEAST_EXCESS = 0.003


def x_of(megabytes: float) -> float:
    """Return the horizontal place of a size."""
    low, high = math.log(X_TICKS[0]), math.log(X_TICKS[-1] * 1.06)
    return LEFT + (math.log(megabytes) - low) / (high - low) * (WIDTH - LEFT - RIGHT)


def y_of(ratio: float) -> float:
    """Return the vertical place of a ratio of perplexities, to the perplexity of fp32."""
    low, high = math.log(LEAST_EXCESS), math.log(Y_TICKS[-1] * 1.3 - 1)
    share = (math.log(max(ratio - 1, LEAST_EXCESS)) - low) / (high - low)
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def text(x: float, y: float, words: str, *, anchor: str = "middle", more: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{words}</text>'


def grid() -> list[str]:
    """Return the axes with their ticks and titles."""
    lines = []
    for tick in X_TICKS:
        x = x_of(tick)
        lines.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" class="grid"/>')
        lines.append(text(x, HEIGHT - BOTTOM + 18, f"{tick}"))
    for tick in Y_TICKS:
        y = y_of(tick)
        lines.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" class="grid"/>')
        lines.append(text(LEFT - 8, y + 4, f"{tick:g}", anchor="end"))
    lines.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "size of the whole file, MB"))
    title = "SmolLM2-135M: perplexity over fp32 (lower is better)"
    lines.append(text(LEFT, 22, title, anchor="start", more='class="title"'))
    return lines


def series(name: str, points: Sequence[tuple[float, float]], place: int) -> list[str]:
    """Return one run of points with its name in the legend."""
    colour = COLOURS[name]
    drawn = sorted((x, y) for x, y in points if X_TICKS[0] <= x <= X_TICKS[-1] * 1.06)
    lines = []
    if name == "ours":
        path = "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in drawn)
        lines.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for x, y in drawn:
        lines.append(f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="4.5" fill="{colour}"/>')
    x = LEFT + place * 150
    lines.append(f'<circle cx="{x + 6}" cy="38" r="4.5" fill="{colour}"/>')
    lines.append(text(x + 16, 42, LABELS[name], anchor="start"))
    return lines


def compression(points: Points) -> str:
    """Return the picture as SVG; the same points give the same bytes."""
    style = (
        "text{font:12px system-ui,sans-serif;fill:#333}.title{font-weight:600;font-size:14px}"
        ".grid{stroke:#ddd;stroke-width:1}"
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Size of SmolLM2-135M against perplexity, beside llama.cpp</title>",
        f"<style>{style}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        *grid(),
    ]
    for place, name in enumerate(points):
        lines += series(name, points[name], place)
    return "\n".join([*lines, "</svg>"]) + "\n"
