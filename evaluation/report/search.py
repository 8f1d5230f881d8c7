"""A search over a sampler's settings: which was tried, and what came out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.charts import Series, line_chart
from evaluation.report.descriptions import ARROWS, HIGHER, LOWER, describe, headline, rank
from evaluation.report.evaluations import measured
from evaluation.report.markup import Html, as_number, element, join, table, words
from evaluation.report.tables import best


def search_tables(name: str, search: Mapping[str, Any], samplers: Sequence[str]) -> Html:
    """A search over a sampler's settings: its curve over the guidance scale, and its rows.

    Args:
      name: of the search.
      search: "rows", and where known "metric", "final" (metrics of the best), "settings" of that ("a.b" -> value).
      samplers: names of settings, which are no metrics.
    """
    rows = [row for row in search.get("rows", ()) if isinstance(row, Mapping)]
    if not rows:
        return Html()
    fields = list(dict.fromkeys(field for row in rows for field in row))
    settings = [field for field in fields if field in samplers]
    metrics = sorted((field for field in fields if field not in samplers), key=rank)
    main = str(search.get("metric") or next(iter(headline(metrics)), metrics[0] if metrics else ""))
    metrics.sort(key=lambda field: field != main)
    chosen = {field: best([as_number(row.get(field)) for row in rows], describe(field).better) for field in metrics}
    heads = [field.replace("_", " ") for field in settings]
    heads += [f"{describe(field).title} {ARROWS[describe(field).better]}".strip() for field in metrics]
    body = [
        [words(row.get(field)) for field in settings]
        + [value_cell(field, row.get(field), n in chosen[field]) for field in metrics]
        for n, row in enumerate(rows)
    ]
    figure = search_chart(rows, [field for field in settings if field != "guidance_scale"], main)
    tried = search.get("settings", {}).get("search.samples")
    notes = [element("p", f"{words(tried)} samples a setting.")] if tried else []
    notes += [element("p", text) for text in final_words(search, (*metrics, main))]
    layout = element("div", *([figure] if figure else []), table(heads, body, numbers_from=0), class_="search")
    return join([element("h3", name), *notes, layout])


def final_words(search: Mapping[str, Any], metrics: Sequence[str]) -> list[str]:
    """What the best setting gave in a full evaluation, and what that was, as a sentence."""
    values = search.get("final")
    if not isinstance(values, Mapping):
        return []
    found = [f"{describe(name).title} {describe(name).show(as_number(values[name]))}" for name in dict.fromkeys(metrics)
             if name in values]  # fmt: skip
    what = measured(search.get("settings", {}))
    return [f"The best setting, judged in full{what and f' ({what})'}: {', '.join(found)}."] if found else []


def search_chart(rows: Sequence[Mapping[str, Any]], settings: Sequence[str], metric: str) -> Html:
    """The metric over the guidance scale, one curve for each combination of the other settings."""
    told = [field for field in settings if len({repr(row.get(field)) for row in rows}) > 1]
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        x, y = as_number(row.get("guidance_scale")), as_number(row.get(metric))
        if x is not None and y is not None and math.isfinite(y):
            name = ", ".join(f"{field.replace('_', ' ')} {words(row.get(field))}" for field in told)
            curves.setdefault(name or describe(metric).title, []).append((x, y))
    if not curves or len({x for points in curves.values() for x, _ in points}) < 2:
        return Html()
    top = {LOWER: min, HIGHER: max}.get(describe(metric).better)
    series = []
    for name, found in curves.items():
        x, y = np.array(sorted(found), np.float64).T
        series.append(Series(name, x, y, marks=True, told=float(top(y)) if top else None))
    points = [point for found in curves.values() for point in found]
    ring = top(points, key=lambda point: point[1]) if top else None
    return line_chart(describe(metric).title, series, x_title="guidance scale", whole=False, ring=ring)


def value_cell(field: str, value: Any, is_best: bool) -> str:
    """A metric in a search's table."""
    text = describe(field).show(as_number(value)) if value is None or as_number(value) is not None else str(value)
    return element("span", text, class_="best") if is_best else text
