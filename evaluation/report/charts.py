"""Line charts as inline SVG that take their colours from the page; a script may read values off them."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from evaluation.report.markup import Html, element, join, number, plain

WIDTH, HEIGHT = 360.0, 216.0  # of the drawing, in its own units
TOP, RIGHT, BOTTOM = 8.0, 12.0, 38.0  # margins; the left one follows the tick labels
DIGIT = 6.3  # width of a character of a tick label
BINS = 240  # points a curve is drawn with, at most
COLOURS = 6  # in the style sheet

Points = Float[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
      name: in the legend.
      x: where it is known, rising.
      y: its values; gaps where they are not finite.
      marks: draw its points.
      told: the value in the legend; None: the last one.
    """

    name: str
    x: Points
    y: Points
    marks: bool = False
    told: float | None = None


@dataclasses.dataclass(frozen=True)
class Axis:
    """Maps values to places from `start` to `end`, linearly or by the logarithm; `whole` has ticks at integers alone."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    def __call__(self, values: Points) -> Points:
        low, high, values = (np.log(v) if self.log else np.asarray(v) for v in (self.low, self.high, values))
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers within the axis, and how they are written."""
        if self.log:
            return [(tick, tick_label(tick, tick)) for tick in log_ticks(self.low, self.high)]
        step = tick_step(self.low, self.high, whole=self.whole)
        return [(tick, tick_label(tick, step)) for tick in linear_ticks(self.low, self.high, step)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    x_title: str = "training step",
    whole: bool = True,
    log: bool | None = None,
    ring: tuple[float, float] | None = None,
) -> Html:
    """A figure: title, legend with a value of each curve, and the curves in one frame.

    Args:
      title: what is measured.
      series: curves; those without a finite value are left out, and with none there is no figure.
      unit: of the values.
      x_title: of the horizontal axis.
      whole: what lies on the horizontal axis comes in integers.
      log: logarithmic scale; None: where values stay above 0 and span more than a factor of ten.
      ring: a point to point out.
    """
    series = [one for one in series if np.isfinite(one.y).any()]
    if not series:
        return Html()
    y = np.concatenate([one.y for one in series])
    y = y[np.isfinite(y)]
    log = bool(y.min() > 0 and y.max() > 10 * y.min()) if log is None else log
    vertical = Axis(*widen(float(y.min()), float(y.max()), log=log), HEIGHT - BOTTOM, TOP, log)
    left = 14 + DIGIT * max((len(label) for _, label in vertical.ticks()), default=0)
    x = np.concatenate([one.x for one in series])
    low, high = float(x.min()), float(x.max())
    low, high = (low - 0.5, high + 0.5) if low == high else (0.0 if 0 < low < high / 4 else low, high)
    horizontal = Axis(low, high, left, WIDTH - RIGHT, whole=whole)
    drawn = [curve(one, horizontal, vertical, n % COLOURS) for n, one in enumerate(series)]
    if ring is not None:
        drawn.append(element("circle", cx=place(horizontal, ring[0]), cy=place(vertical, ring[1]), r=6, class_="ring"))
    names = " and ".join(one.name for one in series)
    drawing = element(
        "svg", frame(horizontal, vertical, x_title), *drawn,
        element("line", class_="cursor", y1=TOP, y2=HEIGHT - BOTTOM, x1=left, x2=left),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}", role="img", aria_label=f"{title}: {names} over {x_title}",
        data_x=f"{horizontal.low:.10g} {horizontal.high:.10g} {left:g} {WIDTH - RIGHT:g}",
    )  # fmt: skip
    heading = [element("strong", title), *([element("span", unit, class_="unit")] if unit else [])]
    heading += [element("span", "log scale", class_="unit")] if log else []
    return element("figure", element("figcaption", *heading), legend(series), drawing, class_="chart")


def legend(series: Sequence[Series]) -> Html:
    """A line's colour, its name and its value."""

    def value(one: Series) -> str:
        return number(float(one.y[np.isfinite(one.y)][-1]) if one.told is None else one.told)

    items = [
        element("span", element("i", class_=f"c{n % COLOURS}"), f"{one.name} ",
                element("b", value(one)))
        for n, one in enumerate(series)
    ]  # fmt: skip
    return element("div", *items, element("span", class_="at"), class_="legend")


def curve(series: Series, horizontal: Axis, vertical: Axis, colour: int) -> Html:
    """One line; one of many points is drawn by the means of bins over the band that they cover."""
    x, y, low, high = binned(series.x, series.y)
    y_places, parts = vertical(y), []
    if len(x) < len(series.x):
        band = np.isfinite(low)
        edges = [f"{a:.1f},{b:.1f}" for a, b in zip(horizontal(x[band]), vertical(low[band]))]
        edges += [f"{a:.1f},{b:.1f}" for a, b in zip(horizontal(x[band])[::-1], vertical(high[band])[::-1])]
        parts.append(element("path", d=f"M{'L'.join(edges)}Z", class_="band"))
    places = [f"{a:.1f},{b:.1f}" if math.isfinite(b) else "" for a, b in zip(horizontal(x), y_places)]
    runs = [run.split() for run in " ".join(place or "|" for place in places).split("|")]
    line = "".join(f"M{'L'.join(run)}" for run in runs if run)
    values = {"data_at": " ".join(f"{v:.10g}" for v in x), "data_value": " ".join(number(v) for v in y.tolist())}
    parts.append(element("path", d=line, class_="line", **values))
    alone = [run[0] for run in runs if len(run) == 1]  # a point between gaps is no line
    marked = [p for p in places if p] if series.marks and len(x) <= 60 else alone
    for point in marked:
        a, b = point.split(",")
        parts.append(element("circle", cx=a, cy=b, r=2.4))
    return element("g", *parts, class_=f"curve c{colour}")


def binned(x: Points, y: Points) -> tuple[Points, Points, Points, Points]:
    """At most `BINS` neighbouring groups: mean place, and mean, least and greatest value (NaN where none is finite)."""
    if len(x) <= BINS:
        return x, y, y, y
    starts = np.unique(np.linspace(0, len(x), BINS + 1).astype(int))[:-1]
    count = np.add.reduceat(np.isfinite(y).astype(float), starts)
    known = np.where(count > 0, 1.0, np.nan)
    total = np.add.reduceat(np.where(np.isfinite(y), y, 0.0), starts)
    low = np.minimum.reduceat(np.where(np.isfinite(y), y, np.inf), starts)
    high = np.maximum.reduceat(np.where(np.isfinite(y), y, -np.inf), starts)
    places = np.add.reduceat(x, starts) / np.diff([*starts, len(x)])
    return places, total / np.maximum(count, 1) * known, low * known, high * known


def frame(horizontal: Axis, vertical: Axis, x_title: str) -> Html:
    """Grid lines, tick labels and the title of the horizontal axis."""
    parts, left, right, floor = [], horizontal.start, horizontal.end, vertical.start
    for tick, label in vertical.ticks():
        y = place(vertical, tick)
        parts.append(element("line", x1=f"{left:.1f}", x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", label, x=f"{left - 6:.1f}", y=y, dy="0.32em", text_anchor="end"))
    parts.append(element("line", x1=f"{left:.1f}", x2=right, y1=floor, y2=floor, class_="axis"))
    for tick, label in horizontal.ticks():
        x = place(horizontal, tick)
        parts.append(element("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis"))
        parts.append(element("text", label, x=x, y=floor + 16, text_anchor="middle"))
    parts.append(element("text", x_title, x=right, y=HEIGHT - 4, text_anchor="end", class_="title"))
    return join(parts)


def place(axis: Axis, value: float) -> str:
    """Where a value lies, as an attribute."""
    return f"{float(axis(np.asarray([value]))[0]):.1f}"


def widen(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """A little air on both sides, down to 0 where all values are one; the air never crosses 0."""
    if low == high:
        return (low / 2, high * 2) if log else (min(low * 1.15, 0.0), max(high * 1.15, 0.0 if low else 1.0))
    if log:
        air = (high / low) ** 0.04
        return low / air, high * air
    air = 0.06 * (high - low)
    return (0.0 if 0 <= low < air else low - air), high + air


def tick_step(low: float, high: float, *, whole: bool = False, most: int = 5) -> float:
    """1, 2, 2.5 or 5 times a power of ten, of which `most` intervals at most cover the axis; `whole`: an integer."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    power = max(power, 1.0) if whole else power
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10, 20) if not whole or (power * factor).is_integer()]
    return next(step for step in steps if step * most >= high - low)


def linear_ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of a step within the axis."""
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few; every other one where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**power for power in powers for f in factors if low <= f * 10.0**power <= high]
        if len(ticks) <= most:
            return ticks
    return ticks[:: math.ceil(len(ticks) / most)]


def tick_label(value: float, step: float) -> str:
    """0.05, 250, 20k, 1.5M, 1e-5; in units of which two decimals tell it from its neighbours at `step`: 27,345."""
    if 0 < abs(value) < 1e-3:
        return plain(f"{value:.6g}")
    size, letter = next(((size, letter) for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k"))
                         if abs(value) >= size and step * 100 >= size), (1.0, ""))  # fmt: skip
    decimals = next(n for n in range(13) if n == 12 or math.isclose(round(step / size, n), step / size, rel_tol=1e-6))
    text = f"{value / size:,.{decimals}f}"
    return (text.rstrip("0").rstrip(".") if decimals else text) + letter
