"""Draw a diagram: python docs/draw.py writes an SVG beside each description in docs/*.diagram.txt.

A description has one drawing command a line; `#` starts a comment. Coordinates are grid units of 10 pixels, from the top left.

    canvas WIDTH HEIGHT
    region X Y WIDTH HEIGHT "title"                a thread, or the kernel: what its boxes run in
    box NAME X Y WIDTH HEIGHT "title" "line" ...   text in a title or line that is enclosed in ` is shown as code
    style NAME STYLE                               how a box looks: one of STYLES
    arrow NAME.SIDE NAME.SIDE [label="text"] [bend=N] [dashed]
    note X Y "text"

A side is n, e, s or w, with `@N` for a place other than its middle: `engine.s@30` is the point of the lower edge at x = 30. An arrow has
right angles only; `bend` is where its middle part runs. The script refuses boxes that overlap, text that does not fit its box, and arrows
that cross a box.
"""

from __future__ import annotations

import shlex
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parent
UNIT = 10  # pixels
FONT, CODE = "Verdana, DejaVu Sans, sans-serif", "DejaVu Sans Mono, Menlo, Consolas, monospace"
TEXT, TITLE = 12, 13  # pixels: font sizes
CHARACTER = 0.62  # width of an average character, as a part of the font size
LINE = 16  # pixels from one line of text to the next
# fill, outline, dash pattern of the outline
STYLES = {
    "plain": ("#ffffff", "#5b6b7f", ""),
    "task": ("#fff4d6", "#b98900", ""),
    "request": ("#e5f0ff", "#2462b8", ""),
    "end": ("#e4f4e4", "#2f7d32", ""),
    "withdrawable": ("#ffffff", "#c0392b", "6 3"),
}


class Box(NamedTuple):
    """A rectangle with text, in pixels."""

    x: float
    y: float
    width: float
    height: float
    lines: list[str]

    def point(self, side: str, at: float | None) -> tuple[float, float]:
        """Return a point of the outline: the middle of a side, or the place on it at the coordinate `at`."""
        if side in "ns":
            return (self.x + self.width / 2 if at is None else at, self.y if side == "n" else self.y + self.height)
        return (self.x if side == "w" else self.x + self.width, self.y + self.height / 2 if at is None else at)

    def overlaps(self, other: Box) -> bool:
        """Return whether the two rectangles share a point."""
        return not (
            self.x + self.width < other.x
            or other.x + other.width < self.x
            or self.y + self.height < other.y
            or other.y + other.height < self.y
        )

    def is_crossed(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        """Return whether a horizontal or vertical line passes through the inside."""
        return (
            max(min(x1, x2), self.x) <= min(max(x1, x2), self.x + self.width)
            and max(min(y1, y2), self.y) <= min(max(y1, y2), self.y + self.height)
            and not (x1 == x2 and x1 in (self.x, self.x + self.width))
            and not (y1 == y2 and y1 in (self.y, self.y + self.height))
        )


class Drawing:
    """One diagram, command by command."""

    def __init__(self) -> None:
        self._size: tuple[float, float] = (0, 0)
        self._boxes: dict[str, Box] = {}
        self._styles: dict[str, str] = {}
        self._regions: list[str] = []
        self._arrows: list[str] = []
        self._lines: list[tuple[str, str, list[tuple[float, float]]]] = []
        self._labels: list[str] = []

    def draw(self, command: str, words: list[str]) -> None:
        """Carry out one command. ValueError: the description is wrong."""
        if command == "canvas":
            self._size = (_pixels(words[0]), _pixels(words[1]))
        elif command == "region":
            x, y, width, height = map(_pixels, words[:4])
            self._regions.append(
                f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="10" fill="#f1f4f8" stroke="#d5dce5"/>'
                f'<text x="{x + 12:g}" y="{y + 20:g}" font-size="{TEXT}" fill="#5b6b7f" font-weight="bold">{escape(words[4])}</text>'
            )
        elif command == "box":
            x, y, width, height = map(_pixels, words[1:5])
            self._add_box(words[0], Box(x, y, width, height, words[5:]))
        elif command == "style":
            self._styles[words[0]] = words[1]
        elif command == "arrow":
            self._add_arrow(words[0], words[1], words[2:])
        elif command == "note":
            self._labels.append(_text(_pixels(words[0]), _pixels(words[1]), words[2], TEXT, anchor="start"))
        else:
            raise ValueError(f"unknown command {command!r}")

    def _add_box(self, name: str, box: Box) -> None:
        for other_name, other in self._boxes.items():
            if box.overlaps(other):
                raise ValueError(f"the boxes {name!r} and {other_name!r} overlap")
        if box.height < LINE * len(box.lines) + 8:
            raise ValueError(f"{len(box.lines)} lines do not fit the height of the box {name!r}")
        for number, line in enumerate(box.lines):
            size = TEXT if number else TITLE
            if len(line.replace("`", "")) * size * CHARACTER > box.width - 8:
                raise ValueError(f"{line!r} does not fit the width of the box {name!r}")
        self._boxes[name] = box

    def _add_arrow(self, start: str, end: str, options: list[str]) -> None:
        points = self._route(start, end, options)
        self._lines.append((start, end, points))
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
        dashed = ' stroke-dasharray="6 3"' if "dashed" in options else ""
        self._arrows.append(f'<path d="{path}" fill="none" stroke="#33475b" stroke-width="1.6" marker-end="url(#head)"{dashed}/>')
        for option in options:
            if option.startswith("label="):
                self._add_label(points, option.removeprefix("label="))

    def _route(self, start: str, end: str, options: list[str]) -> list[tuple[float, float]]:
        (x1, y1), side1 = self._end(start)
        (x2, y2), side2 = self._end(end)
        bend = next((_pixels(option.removeprefix("bend=")) for option in options if option.startswith("bend=")), None)
        if side1 in "ns" and side2 in "ns":
            middle = (y1 + y2) / 2 if bend is None else bend
            points = [(x1, y1), (x1, middle), (x2, middle), (x2, y2)]
        elif side1 in "ew" and side2 in "ew":
            middle = (x1 + x2) / 2 if bend is None else bend
            points = [(x1, y1), (middle, y1), (middle, y2), (x2, y2)]
        else:
            points = [(x1, y1), (x1, y2) if side1 in "ns" else (x2, y1), (x2, y2)]
        straight = len({x for x, _ in points}) == 1 or len({y for _, y in points}) == 1
        return [points[0], points[-1]] if straight else points

    def _end(self, place: str) -> tuple[tuple[float, float], str]:
        name, _, side = place.partition(".")
        side, _, at = side.partition("@")
        if name not in self._boxes:
            raise ValueError(f"no box is called {name!r}")
        return self._boxes[name].point(side, _pixels(at) if at else None), side

    def _add_label(self, points: list[tuple[float, float]], label: str) -> None:
        """Put a label on the middle of an arrow's longest part; a number beside it."""
        (x1, y1), (x2, y2) = max(pairwise(points), key=lambda part: abs(part[0][0] - part[1][0]) + abs(part[0][1] - part[1][1]))
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        if label.isdigit():
            x, y = (x + 15, y) if x1 == x2 else (x, y - 15)
        width = max(20, len(label) * TEXT * CHARACTER + 12)
        fill, colour, weight = ("#33475b", "#ffffff", "bold") if label.isdigit() else ("#ffffff", "#33475b", "normal")
        self._labels.append(
            f'<rect x="{x - width / 2:g}" y="{y - 10:g}" width="{width:g}" height="20" rx="10" fill="{fill}" stroke="#33475b"/>'
            + _text(x, y + 4.5, label, TEXT, colour=colour, weight=weight)
        )

    def svg(self) -> str:
        """Return the whole picture. ValueError: an arrow crosses a box."""
        self._check_crossings()
        width, height = self._size
        boxes = [self._drawn(name, box) for name, box in self._boxes.items()]
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
                f' font-family="{FONT}">',
                '<marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">'
                '<path d="M0,0 L10,5 L0,10 z" fill="#33475b"/></marker>',
                f'<rect width="{width:g}" height="{height:g}" fill="#ffffff"/>',
                *self._regions,
                *self._arrows,
                *boxes,
                *self._labels,
                "</svg>\n",
            ]
        )

    def _check_crossings(self) -> None:
        for start, end, points in self._lines:
            own = (start.partition(".")[0], end.partition(".")[0])
            for (x1, y1), (x2, y2) in pairwise(points):
                for name, box in self._boxes.items():
                    if name not in own and box.is_crossed(x1, y1, x2, y2):
                        raise ValueError(f"the arrow from {start} to {end} crosses the box {name!r}")

    def _drawn(self, name: str, box: Box) -> str:
        fill, outline, dashes = STYLES[self._styles.get(name, "plain")]
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        drawn = (
            f'<rect x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" height="{box.height:g}" rx="5" fill="{fill}"'
            f' stroke="{outline}" stroke-width="1.4"{dash}/>'
        )
        first = box.y + box.height / 2 - LINE * (len(box.lines) - 1) / 2 + 4.5
        for number, line in enumerate(box.lines):
            size, weight = (TEXT, "normal") if number else (TITLE, "bold")
            drawn += _text(box.x + box.width / 2, first + number * LINE, line, size, weight=weight)
        return drawn


def _pixels(units: str) -> float:
    return float(units) * UNIT


def _text(x: float, y: float, text: str, size: int, *, anchor: str = "middle", colour: str = "#1d2a38", weight: str = "normal") -> str:
    spans = [
        f'<tspan font-family="{CODE}">{escape(part)}</tspan>' if number % 2 else escape(part) for number, part in enumerate(text.split("`"))
    ]
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" fill="{colour}" font-weight="{weight}">'
        f"{''.join(spans)}</text>"
    )


def draw(description: Path) -> str:
    """Return the SVG of a description. ValueError names the line that is wrong."""
    drawing = Drawing()
    for number, line in enumerate(description.read_text(encoding="utf-8").splitlines(), 1):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        try:
            drawing.draw(words[0], words[1:])
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{description.name}, line {number}: {error}") from error
    return drawing.svg()


def descriptions() -> list[Path]:
    """Return all descriptions in this folder, in order."""
    return sorted(FOLDER.glob("*.diagram.txt"))


def picture_of(description: Path) -> Path:
    """Return where the picture of a description belongs."""
    return description.with_name(description.name.removesuffix(".diagram.txt") + ".svg")


def main() -> int:
    """Draw all pictures anew."""
    for description in descriptions():
        picture_of(description).write_text(draw(description), encoding="utf-8")
        print(picture_of(description))
    return 0


if __name__ == "__main__":
    sys.exit(main())
