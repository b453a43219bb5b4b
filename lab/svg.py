"""Curves, dots and intervals as SVG in plain strings, for lab/report.py.

A picture is made of panels, each 360 pixels wide, which a phone shows as they are. Colours are names: in a page
`var(--blue)` of its style sheet, so that one picture does for light and dark ground; in a file of its own, numbers.
"""

import html
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

# Hues of Okabe and Ito, which colour-blind readers tell apart, on light and on dark ground.
LIGHT = dict(ground="#ffffff", ink="#1f2328", faint="#59636e", rule="#d8dee4", grey="#6e7781", orange="#b84e00",
             blue="#0969b6", green="#007a58", purple="#a8498a", gold="#8a6000")  # fmt: skip
DARK = dict(ground="#0d1117", ink="#e6edf3", faint="#9198a1", rule="#30363d", grey="#8b949e", orange="#f28c4b",
            blue="#5fb4f0", green="#2fc79a", purple="#dd86c2", gold="#e0b040")  # fmt: skip
SERIES = ("green", "purple", "gold", "blue", "orange", "grey")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
FONT = "system-ui, -apple-system, Segoe UI, Roboto, Helvetica, Arial, sans-serif"
WIDTH = 360


@dataclass
class Line:
    """A curve through its points, as far as they are finite numbers."""

    label: str
    colour: str
    points: list[tuple[float, float]] = field(default_factory=list)
    dash: str = ""
    ring: tuple[float, float] | None = None  # the point that gets one
    intervals: list[tuple[float, float]] = field(default_factory=list)  # of each point, or of none

    def __post_init__(self):
        self.points = [point for point in self.points if all(map(math.isfinite, point))]


@dataclass
class Panel:
    title: str
    caption: str
    height: int
    svg: str


@dataclass
class Picture:
    name: str  # of its file
    caption: str
    panels: list[Panel]
    columns: int  # in its file; the page has as many as there is room for
    key: list[Line] = field(default_factory=list)


def words(x: float, y: float, text: str, anchor: str = "start", colour: str = "ink", more: str = "") -> str:
    text = "".join(letter if letter.isprintable() else "?" for letter in text)  # XML lacks control characters
    return (f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="var(--{colour})" font-size="12" {more}>'
            f"{html.escape(text)}</text>")  # fmt: skip


def clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def stroke(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> str:
    return (f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="var(--{colour})" stroke-width="{width}" '
            f'stroke-dasharray="{dash}"/>')  # fmt: skip


def dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="3.5" fill="var(--{colour})"/>'


def ring(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="6" fill="none" stroke="var(--{colour})" stroke-width="2"/>'


def scale(values: list[float], start: float, end: float) -> tuple[Callable, list[float]]:
    """Values → a function from a value to its place between two pixels, and up to six round values to mark there."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.05 * (abs(low) or 1), high + 0.05 * (abs(low) or 1)

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    step = 10.0 ** math.floor(math.log10(high - low))
    for factor in (0.2, 0.5, 1, 2):
        if (high - low) / (step * factor) <= 5:
            break
    step *= factor
    marks = range(math.ceil(low / step), math.floor(high / step) + 1)
    return place, [step * mark for mark in marks]


def number(value: float) -> str:
    return f"{value:.6g}".replace("-", "−")


def curves(title: str, caption: str, lines: list[Line], height: int = 190) -> list[Panel]:
    """One panel with these lines; none where no line has a point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return []
    all_x, all_y = [], []
    for line in lines:
        for x, y in line.points:
            all_x.append(x)
            all_y.append(y)
        for bounds in line.intervals:
            all_y += bounds
    place_x, marks_x = scale(all_x, 52, WIDTH - 12)
    place_y, marks_y = scale(all_y, height - 30, 32)

    parts = [words(0, 14, clip(title, 48), more='font-weight="600"')]
    for mark in marks_y:
        parts.append(stroke(44, place_y(mark), WIDTH, place_y(mark), "rule"))
        parts.append(words(38, place_y(mark) + 4, number(mark), "end", "faint"))
    for mark in marks_x:
        parts.append(words(place_x(mark), height - 6, number(mark), "middle", "faint"))
    for line in lines:
        parts.append(drawn(line, place_x, place_y))
    return [Panel(title, caption, height, "".join(parts))]


def drawn(line: Line, place_x: Callable, place_y: Callable) -> str:
    places = [(place_x(x), place_y(y)) for x, y in line.points]
    way = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{way}" fill="none" stroke="var(--{line.colour})" stroke-width="1.8" '
             f'stroke-dasharray="{line.dash}"/>']  # fmt: skip
    parts.append(dot(*places[-1], line.colour))
    for (x, _), (low, high) in zip(places, line.intervals, strict=False):
        parts.append(stroke(x, place_y(low), x, place_y(high), line.colour, 2))
    if line.ring in line.points:
        x, y = line.ring
        parts.append(ring(place_x(x), place_y(y), line.colour))
    return "".join(parts)


def dots(title: str, cells: dict[str, tuple[str, float, float, float]]) -> list[Panel]:
    """One panel with a dot and its interval for each label (colour, mean, low, high); none without labels."""
    if not cells:
        return []
    height = 50 + 20 * len(cells)
    bounds = []
    for _, _, low, high in cells.values():
        bounds += [low, high]
    place, marks = scale(bounds, 178, WIDTH - 12)
    parts = [words(0, 14, clip(title, 48), more='font-weight="600"')]
    for mark in marks:
        parts.append(stroke(place(mark), 24, place(mark), height - 22, "rule"))
        parts.append(words(place(mark), height - 6, number(mark), "middle", "faint"))
    y = 36
    for label, (colour, mean, low, high) in cells.items():
        parts.append(words(0, y + 4, clip(label, 27)))
        parts.append(stroke(place(low), y, place(high), y, colour, 2))
        parts.append(dot(place(mean), y, colour))
        y += 20
    return [Panel(title, "", height, "".join(parts))]


def as_file(picture: Picture, colours: dict[str, str]) -> str:
    """A picture as an SVG file of its own, with its ground."""
    across, down = WIDTH + 28, picture.panels[0].height + 16
    top = 24 * len(picture.key) + 16
    rows = math.ceil(len(picture.panels) / picture.columns)
    parts = []
    for i, line in enumerate(picture.key):
        parts.append(stroke(16, 24 * i + 20, 44, 24 * i + 20, line.colour, 2.5, line.dash))
        parts.append(words(52, 24 * i + 24, line.label))
    for i, panel in enumerate(picture.panels):
        x, y = 16 + across * (i % picture.columns), top + down * (i // picture.columns)
        parts.append(f'<g transform="translate({x} {y})">{panel.svg}</g>')
    width, height = 4 + across * picture.columns, top + down * rows
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
           f'font-family="{FONT}"><rect width="{width}" height="{height}" fill="var(--ground)"/>'
           f"{''.join(parts)}</svg>\n")  # fmt: skip
    return re.sub(r"var\(--(\w+)\)", lambda match: colours.get(match[1], match[0]), svg)
