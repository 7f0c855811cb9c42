"""Small charts as inline SVG. Pure: numbers in, markup out; every text is escaped; colours come from the page's CSS
(`--s0`..`--s5`), so that one page works light and dark. Points carry `data-tip`, which the page's script shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from selfreward.types import Estimate

WIDTH = 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 14, 26
_COLORS = 6
_MAX_POINTS = 240
"""Most points drawn of a long curve; more are averaged in equal bins."""


@dataclass(frozen=True)
class Unit:
    """How a figure is written: 0.416 with scale 100, one digit and ` %` is `41.6 %`."""

    digits: int
    scale: float = 1.0
    suffix: str = ""

    def __call__(self, value: float) -> str:
        """A value for reading."""
        return f"{value * self.scale:.{self.digits}f}{self.suffix}"

    def tick(self, value: float, step: float) -> str:
        """A value on an axis with this step: as many digits as tell two ticks apart."""
        step *= self.scale
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        digits += not math.isclose(round(step, digits), step, rel_tol=1e-6)
        return f"{value * self.scale:.{digits}f}{self.suffix}"


SCORE, SHARE, RATIO, NUMBER = Unit(2), Unit(1, 100.0, " %"), Unit(3), Unit(1)


@dataclass(frozen=True)
class Series:
    """One curve over the chart's labels; None where it has no value."""

    name: str
    points: Sequence[Estimate | None]


@dataclass(frozen=True)
class Curve:
    """One curve over numbers, such as a loss over steps."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def interval_chart(
    labels: Sequence[str], series: Sequence[Series], unit: Unit, reference: tuple[float, str] | None = None
) -> Markup:
    """Points with their intervals over named positions (models, rounds), joined by lines, with a legend when there
    are several series. `reference` draws a dashed level, such as chance. The axis spans the intervals, not zero."""
    values = [v for one in series for p in one.points if p for v in (p.value, p.low, p.high) if v is not None]
    if not values:
        return _nothing()
    if reference:
        values.append(reference[0])
    axis = _Axis(min(values), max(values), 196, unit)
    step = (WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    centers = [_LEFT + step * (index + 0.5) for index in range(len(labels))]
    parts = [axis.grid()]
    if reference:
        parts.append(_reference(axis, *reference))
    gap = min(9.0, step / 8)
    reach = gap / 2 if len(series) > 1 else min(12.0, step / 2)  # so that no point covers another's
    for index, one in enumerate(series):
        shift = (index - (len(series) - 1) / 2) * gap
        xs = [center + shift for center in centers]
        parts += [_interval_series(one, index, xs, axis), _tips(one, xs, labels, axis, reach)]
    parts += [_text(center, 196 - 8, label, "middle", "axis") for center, label in zip(centers, labels, strict=True)]
    description = "; ".join(
        f"{one.name}: " + ", ".join(_tip(label, p, unit) for label, p in zip(labels, one.points, strict=True) if p)
        for one in series
    )
    return _legend([one.name for one in series]) + _svg(196, parts, description)


def share_bars(rows: Sequence[tuple[str, Sequence[tuple[str, Estimate]]]]) -> Markup:
    """One full-width bar a row, cut into shares (win, tie, lose). Under the first and the last share lies the interval
    of that share, measured from its own end of the bar."""
    rows = [(label, parts) for label, parts in rows if any(part.value is not None for _, part in parts)]
    if not rows:
        return _nothing()
    height = 50 * len(rows) + 6
    left, width = 2.0, WIDTH - 4.0
    marks: list[Markup] = []
    for number, (label, parts) in enumerate(rows):
        y = 50 * number + 18
        marks.append(_text(left, y - 5, label, "start", "label"))
        start = left
        for index, (name, part) in enumerate(parts):
            size = width * (part.value or 0.0)
            tip = f"{label}: {name} {_tip('', part, SHARE)}"
            marks.append(_tag("rect", "", f"bar b{index}", x=start, y=y, width=size, height=18, data_tip=tip))
            if size > 34:
                marks.append(_text(start + size / 2, y + 13, percent(part.value or 0.0), "middle", "inbar"))
            start += size
        marks += _share_whiskers(parts, left, width, y + 22)
    text = "; ".join(f"{label}: " + ", ".join(f"{name} {_tip('', p, SHARE)}" for name, p in parts) for label, parts in rows)
    return _legend([name for name, _ in rows[0][1]], "bar b") + _svg(height, marks, text)


def histogram(counts: Mapping[str, int], low: float, high: float) -> Markup:
    """Shares of scores in unit bins from `low` to `high`; a score between two whole ones falls to the nearer (up at 1/2)."""
    bins = {float(value): 0 for value in range(math.floor(low), math.ceil(high) + 1)}
    for key, count in counts.items():
        place = min(max(math.floor(float(key) + 0.5), min(bins)), max(bins))
        bins[float(place)] += count
    total = sum(bins.values())
    if not total:
        return _nothing()
    width, height, base = 250, 132, 110
    step = width / len(bins)
    top = max(bins.values()) / total
    parts = [_tag("line", "", "axisline", x1=0, x2=width, y1=base, y2=base)]
    for index, (score, count) in enumerate(bins.items()):
        share = count / total
        size = (base - 20) * share / top
        x = index * step + step * 0.12
        tip = f"score {score:g}: {count} of {total} ({percent(share)})"
        parts.append(_tag("rect", "", "bar b0", x=x, y=base - size, width=step * 0.76, height=size, data_tip=tip))
        middle = index * step + step / 2
        parts.append(_text(middle, base - size - 5, percent(share), "middle", "value"))
        parts.append(_text(middle, height - 7, f"{score:g}", "middle", "axis"))
    return _svg(height, parts, ", ".join(f"{score:g}: {count}" for score, count in bins.items()), width)


def line_chart(curves: Sequence[Curve], unit: Unit, reference: tuple[float, str] | None = None) -> Markup:
    """Numeric curves over a common x axis (steps); non-finite values are left out, long curves are averaged in bins."""
    thinned = [Curve(curve.name, *_thin(curve.xs, curve.ys)) for curve in curves]
    thinned = [curve for curve in thinned if curve.xs]
    if not thinned:
        return _nothing()
    ys = [y for curve in thinned for y in curve.ys] + ([reference[0]] if reference else [])
    xs = [x for curve in thinned for x in curve.xs]
    axis = _Axis(min(ys), max(ys), 176, unit)
    span = (max(xs) - min(xs)) or 1.0

    def place(x: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (x - min(xs)) / span

    parts = [axis.grid()] + ([_reference(axis, *reference)] if reference else [])
    for index, curve in enumerate(thinned):
        points = " ".join(f"{place(x):.1f},{axis.y(y):.1f}" for x, y in zip(curve.xs, curve.ys, strict=True))
        tip = f"{curve.name}: {unit(curve.ys[0])} to {unit(curve.ys[-1])} in {curve.xs[-1]:g} steps"
        parts.append(_tag("polyline", "", f"curve s{index % _COLORS}", points=points, data_tip=tip))
    parts.append(_text(_LEFT, 176 - 8, f"step {min(xs):g}", "start", "axis"))
    parts.append(_text(WIDTH - _RIGHT, 176 - 8, f"{max(xs):g}", "end", "axis"))
    text = "; ".join(f"{curve.name} from {unit(curve.ys[0])} to {unit(curve.ys[-1])}" for curve in thinned)
    return _legend([curve.name for curve in thinned]) + _svg(176, parts, text)


def percent(value: float) -> str:
    """0.416 -> `42 %`, with one digit below 10 %."""
    scaled = 100 * value
    return f"{scaled:.1f} %" if 0 < abs(scaled) < 9.95 else f"{scaled:.0f} %"


class _Axis:
    """A vertical axis with round ticks around low..high, in a picture `height` units high."""

    def __init__(self, low: float, high: float, height: int, unit: Unit) -> None:
        margin = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
        floor = 0.0 if low >= 0 else -math.inf
        self.low, self.high = max(floor, low - margin), high + margin
        self.height, self.unit = height, unit
        self.step = step = _round_step((self.high - self.low) / 4)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        self.ticks = [index * step for index in range(first, last + 1)]

    def y(self, value: float) -> float:
        """Vertical place of a value."""
        usable = self.height - _TOP - _BOTTOM
        return _TOP + usable * (self.high - value) / (self.high - self.low)

    def grid(self) -> Markup:
        """Tick lines and their labels."""
        marks = Markup()
        for tick in self.ticks:
            y = self.y(tick)
            marks += _tag("line", "", "grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
            marks += _text(_LEFT - 6, y + 4, self.unit.tick(tick, self.step), "end", "axis")
        return marks


def _interval_series(one: Series, index: int, xs: Sequence[float], axis: _Axis) -> Markup:
    marks = Markup()
    line: list[tuple[float, float]] = []
    for x, point in zip(xs, one.points, strict=True):
        if point is None or point.value is None:
            marks += _polyline(line, index)
            line = []
            continue
        y = axis.y(point.value)
        line.append((x, y))
        inner = Markup()
        if point.low is not None and point.high is not None:
            top, bottom = axis.y(point.high), axis.y(point.low)
            inner += _tag("line", "", "whisker", x1=x, x2=x, y1=top, y2=bottom)
            for end in (top, bottom):
                inner += _tag("line", "", "whisker", x1=x - 4, x2=x + 4, y1=end, y2=end)
        marks += _tag("g", inner + _marker(x, y, index), f"point s{index % _COLORS}")
    return _polyline(line, index) + marks


def _tips(one: Series, xs: Sequence[float], labels: Sequence[str], axis: _Axis, reach: float) -> Markup:
    """Invisible columns around the points that say their values."""
    marks = Markup()
    for x, label, point in zip(xs, labels, one.points, strict=True):
        if point is not None and point.value is not None:
            name = f"{one.name}, " if one.name else ""
            tip = name + _tip(label, point, axis.unit)
            marks += _tag("rect", "", "hit", x=x - reach, y=0, width=2 * reach, height=axis.height - _BOTTOM, data_tip=tip)
    return marks


def _polyline(line: Sequence[tuple[float, float]], index: int) -> Markup:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    return _tag("polyline", "", f"link s{index % _COLORS}", points=points) if len(line) > 1 else Markup()


def _marker(x: float, y: float, index: int) -> Markup:
    """Circle, square, diamond, triangle: series differ in shape, not in colour alone."""
    if index % 4 == 0:
        return _tag("circle", "", "marker", cx=x, cy=y, r=4.2)
    shapes = {1: "-4,-4 4,-4 4,4 -4,4", 2: "0,-5.6 5.6,0 0,5.6 -5.6,0", 3: "0,-5.4 5.2,4 -5.2,4"}
    return _tag("polygon", "", "marker", points=shapes[index % 4], transform=f"translate({x:.1f} {y:.1f})")


def _share_whiskers(parts: Sequence[tuple[str, Estimate]], left: float, width: float, y: float) -> list[Markup]:
    marks = []
    ends = {0: (left, 1), len(parts) - 1: (left + width, -1)}
    for index, (origin, sign) in ends.items():
        name, part = parts[index]
        if part.low is None or part.high is None:
            continue
        x1, x2 = origin + sign * width * part.low, origin + sign * width * part.high
        inner = _tag("line", "", "whisker", x1=x1, x2=x2, y1=y, y2=y)
        for x in (x1, x2):
            inner += _tag("line", "", "whisker", x1=x, x2=x, y1=y - 3, y2=y + 3)
        marks.append(_tag("g", inner, f"share b{index}", data_tip=f"{name} {_tip('', part, SHARE)}"))
    return marks


def _reference(axis: _Axis, level: float, name: str) -> Markup:
    y = axis.y(level)
    line = _tag("line", "", "reference", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y)
    return line + _text(WIDTH - _RIGHT, y - 4, name, "end", "note")


def _tip(label: str, point: Estimate, unit: Unit) -> str:
    """`M2: 3.74 [3.66, 3.82], n=1000`."""
    if point.value is None:
        return f"{label}: no value"
    text = f"{label}: {unit(point.value)}" if label else unit(point.value)
    if point.low is not None and point.high is not None:
        text += f" [{unit(point.low)}, {unit(point.high)}]"
    return f"{text}, n={point.n}"


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MAX_POINTS` points: means over equal runs of the finite ones."""
    finite = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / _MAX_POINTS))
    runs = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [sum(x for x, _ in run) / len(run) for run in runs], [sum(y for _, y in run) / len(run) for run in runs]


def _round_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next((factor * power for factor in (1, 2, 2.5, 5) if factor * power >= rough * 0.999), 10 * power)


def _legend(names: Sequence[str], prefix: str = "s") -> Markup:
    if len(names) < 2:
        return Markup()
    items = Markup().join(
        Markup('<li><i class="key {}"></i>{}</li>').format(f"{prefix}{index % _COLORS}", name)
        for index, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _svg(height: int, parts: Sequence[Markup], description: str, width: int = WIDTH) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, description, Markup().join(parts)
    )


def _nothing() -> Markup:
    return Markup('<p class="none">not measured</p>')


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> Markup:
    return _tag("text", text, kind, x=x, y=y, text_anchor=anchor)


def _tag(name: str, inner: str | Markup, kind: str, **attributes: float | str) -> Markup:
    """One element; `data_tip` and `text_anchor` become `data-tip` and `text-anchor`; numbers get one decimal."""
    listed = Markup().join(
        Markup(' {}="{}"').format(key.replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else value)
        for key, value in attributes.items()
    )
    return Markup('<{0} class="{1}"{2}>{3}</{0}>').format(name, kind, listed, inner)
