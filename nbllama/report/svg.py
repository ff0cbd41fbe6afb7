"""Charts as SVG. Colours are classes, so that a page's style can change them with the theme."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MOST_POINTS = 600  # of a line; more are drawn as means
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 34

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve: `style` names its classes in the page's style sheet; `dots`: mark every point."""

    name: str
    points: Sequence[Point]
    style: str
    dots: bool = False


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of neighbours."""
    n = len(points)
    if n <= most:
        return list(points)
    cuts = [i * n // most for i in range(most + 1)]
    groups = [points[a:b] for a, b in itertools.pairwise(cuts)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def smoothed(points: Sequence[Point], share: float = 0.05) -> list[Point]:
    """Means of each point and those around it, `share` of all of them."""
    n = len(points)
    half = max(1, round(share * n / 2))
    sums = [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    found = []
    for i, (x, _) in enumerate(points):
        a, b = max(0, i - half), min(n, i + half + 1)
        found.append((x, (sums[b] - sums[a]) / (b - a)))
    return found


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within low..high, some of 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Write a short number."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 1e-3:
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return f"{value:.4g}"


def chart(
    lines: Sequence[Line],
    title: str,
    *,
    width: int = 420,
    height: int = 230,
    show: Callable[[float], str] = label,
    from_zero: bool = False,
) -> str:
    """Draw the curves over the iterations; `show` writes a value of the vertical axis.

    The vertical axis leaves out the outermost hundredth of the values of long curves: one bad step
    would hide all others.
    """
    lines = [line for line in lines if line.points]
    xs = [x for line in lines for x, _ in line.points]
    ys = sorted(y for line in lines for _, y in line.points)
    if not xs:
        return f'<p class="none">{html.escape(title)}: nothing to draw yet</p>'
    cut = len(ys) // 100
    low, high = (0.0 if from_zero else ys[cut]), ys[-1 - cut]
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = (0.0 if from_zero else low - margin), high + margin
    first, last = min(xs), max(xs)
    if first == last:
        first, last = first - 1, last + 1
    across, up = width - LEFT - RIGHT, height - TOP - BOTTOM

    def at(point: Point) -> tuple[float, float]:
        x = LEFT + across * (point[0] - first) / (last - first)
        y = TOP + up * (high - min(max(point[1], low), high)) / (high - low)
        return round(x, 1), round(y, 1)

    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">',
        f"<title>{html.escape(title)}</title>",
    ]
    for value in ticks(low, high, max(2, height // 45)):
        _, y = at((first, value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y}" y2="{y}"/>')
        text = html.escape(show(value))
        parts.append(
            f'<text class="tick" x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{text}</text>'
        )
    for value in ticks(first, last, max(2, width // 90)):
        if value == int(value):
            x, _ = at((value, low))
            parts.append(
                f'<text class="tick" x="{x}" y="{height - BOTTOM + 18}" text-anchor="middle">'
                f"{int(value)}</text>"
            )
    base = height - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/>')
    for line in lines:
        where = [at(p) for p in thinned(line.points)]
        path = "M" + "L".join(f"{x},{y}" for x, y in where)
        if len(where) == 1:
            path += "h0.01"  # with round ends, a dot
        parts.append(f'<path class="curve {line.style}" d="{path}"/>')
        if line.dots:
            for point in thinned(line.points):
                x, y = at(point)
                tip = html.escape(f"{line.name}, iteration {point[0]:g}: {show(point[1])}")
                parts.append(
                    f'<circle class="dot {line.style}" cx="{x}" cy="{y}" r="3.5">'
                    f"<title>{tip}</title></circle>"
                )
    parts.append("</svg>")
    return "\n".join(parts)


def bars(
    counts: Sequence[tuple[str, int]], title: str, *, width: int = 420, height: int = 190
) -> str:
    """Draw a histogram: (label, count) from left to right.

    The labels of the first, the middle and the last are written.
    """
    most = max((n for _, n in counts), default=0)
    if not most:
        return ""
    across, up = width - LEFT - RIGHT, height - TOP - BOTTOM
    step, base = across / len(counts), height - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">',
        f"<title>{html.escape(title)}</title>",
    ]
    for value in ticks(0, most, 4):
        if value == int(value):
            y = round(base - up * value / most, 1)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y}" y2="{y}"/>')
            where = f'x="{LEFT - 7}" y="{y + 4}" text-anchor="end"'
            parts.append(f'<text class="tick" {where}>{int(value)}</text>')
    written = {0, len(counts) // 2, len(counts) - 1}
    for i, (name, n) in enumerate(counts):
        x, tall = LEFT + i * step, up * n / most
        tip = html.escape(f"{name} tokens: {n}")
        parts.append(
            f'<rect class="bar" x="{x + 1:.1f}" y="{base - tall:.1f}" height="{tall:.1f}" '
            f'width="{max(1.0, step - 2):.1f}"><title>{tip}</title></rect>'
        )
        if i in written:
            parts.append(
                f'<text class="tick" x="{x + step / 2:.1f}" y="{base + 18}" text-anchor="middle">'
                f"{html.escape(name)}</text>"
            )
    parts.append(
        f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/></svg>'
    )
    return "\n".join(parts)
