"""What evaluations found, as tables and curves of a report."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.charts import Series, line_chart
from evaluation.report.descriptions import ARROWS, GROUPS, LOWER, NEITHER, SHARE, describe, headline, rank
from evaluation.report.markup import Html, definitions, element, join, number, scrolling

MANY = 5  # columns, from which on they stand closer
UNTOLD = ("step", "weights.generator", "weights.tokenizer")  # settings that are another for every checkpoint


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A W/eval/<name>.json.

    Attributes:
      name: of the file.
      settings: "a.b" -> value, of what was evaluated and how.
      metrics: by name; None where there is none.
      missing: metric -> why it is not there.
      warnings: sentences.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | None]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def step(self) -> int:
        """Of the generator's checkpoint."""
        return int(self.settings.get("step") or 0)


def metric_tables(evaluations: Sequence[Evaluation]) -> Html:
    """One row a metric, one column an evaluation, the best of a row marked; what a metric means stands beside a single
    column, and under several."""
    if not evaluations:
        return Html()
    names = sorted({name for one in evaluations for name in one.metrics}, key=rank)
    names = [name for name in names if not all(name in one.missing for one in evaluations)]
    alone = len(evaluations) == 1
    heads = [element("th", "Metric", scope="col")]
    heads += [element("th", head, scope="col", class_="number") for head in column_heads(evaluations)]
    heads += [element("th", "Meaning", scope="col")] if alone else []
    bodies = []
    for group, title in GROUPS.items():
        rows = [metric_row(name, evaluations, told=alone) for name in names if describe(name).group == group]
        if rows:
            top = element("tr", element("th", title, scope="colgroup", colspan=len(heads)), class_="group")
            bodies.append(element("tbody", top, *rows))
    kind = "metrics many" if len(evaluations) > MANY else "metrics"
    content = scrolling(element("table", element("thead", element("tr", *heads)), *bodies, class_=kind))
    return content if alone else join([content, glossary(names)])


def glossary(names: Sequence[str]) -> Html:
    """What metrics mean, variants once."""
    meanings = {metric.meaning: metric.title for metric in map(describe, reversed(names)) if metric.meaning}
    pairs = [(title, meaning) for meaning, title in reversed(meanings.items())]
    return element("details", element("summary", "What they mean"), definitions(pairs, class_="glossary"))


def column_heads(evaluations: Sequence[Evaluation]) -> list[Html]:
    """The step, and those settings in which the columns differ; the file's name where nothing else tells them apart."""
    names = sorted({name for one in evaluations for name in one.settings})
    differing = [
        name for name in names
        if name not in UNTOLD and len({repr(one.settings.get(name)) for one in evaluations}) > 1
    ][:4]  # fmt: skip
    keys = [(one.step, *(repr(one.settings.get(name)) for name in differing)) for one in evaluations]
    heads = []
    for one, key in zip(evaluations, keys):
        lines = [f"{name.rpartition('.')[2]} {words(one.settings.get(name))}" for name in differing]
        lines += [one.name] if keys.count(key) > 1 else []
        below = [element("span", line.replace("_", " "), class_="soft") for line in lines]
        heads.append(join([f"step {one.step:,}", *below]))
    return heads


def metric_row(name: str, evaluations: Sequence[Evaluation], *, told: bool) -> Html:
    """A metric's title and direction, its values, and, where it is to be told, its meaning."""
    metric = describe(name)
    values = [one.metrics.get(name) for one in evaluations]
    chosen = best(values, metric.better)
    head: list[str] = [metric.title]
    if metric.unit:
        head.append(element("span", f" {metric.unit}", class_="soft"))
    if metric.better:
        head.append(element("span", ARROWS[metric.better], class_="direction", title=f"{metric.better} is better"))
    cells = [
        element("td", metric.show(value), title=one.missing.get(name) if value is None else None,
                class_="number best" if n in chosen else "number")
        for n, (one, value) in enumerate(zip(evaluations, values))
    ]  # fmt: skip
    cells += [element("td", metric.meaning, class_="note")] if told else []
    return element("tr", element("th", *head, scope="row", title=metric.meaning or None), *cells)


def best(values: Sequence[float | None], better: str) -> set[int]:
    """Where the best values stand; nowhere if there is no direction, or nothing to compare."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if better == NEITHER or len(set(known)) < 2:
        return set()
    top = min(known) if better == LOWER else max(known)
    return {n for n, value in enumerate(values) if value == top}


def missing_metrics(evaluations: Sequence[Evaluation]) -> Html:
    """Why metrics are not there, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for one in evaluations:
        for name, reason in one.missing.items():
            titles = reasons.setdefault(reason, [])
            titles += [describe(name).title] if describe(name).title not in titles else []
    notes = [
        element("p", element("strong", f"{', '.join(titles)} not measured: "), prose(reason), class_="note")
        for reason, titles in reasons.items()
    ]
    return join(notes)


def warnings_box(texts: Sequence[str]) -> Html:
    """Sentences that must not be overlooked, each once."""
    lines = [element("p", prose(text)) for text in dict.fromkeys(texts)]
    return element("div", *lines, class_="warning", role="note") if lines else Html()


def prose(text: str) -> Html:
    """A sentence whose options (--config...) are set as code, and not broken after a hyphen."""
    return join((element("code", word) if word.startswith("--") else word for word in text.split(" ")), " ")


def headline_figures(evaluation: Evaluation, most: int = 6) -> list[tuple[Html, Html]]:
    """The first few figures of an evaluation that are numbers."""
    known = [name for name, value in evaluation.metrics.items() if value is not None and math.isfinite(value)]
    figures = []
    for name in headline(known)[:most]:
        metric = describe(name)
        unit = [element("small", f" {metric.unit}")] if metric.unit else []
        real = evaluation.metrics.get(metric.reference)
        beside = [element("span", f"{metric.show(real)} on real images")] if real is not None else []
        figures.append((join([metric.title, *beside]), join([metric.show(evaluation.metrics[name]), *unit])))
    return figures


def evaluated(evaluations: Sequence[Evaluation]) -> Html:
    """A table with what it lacks."""
    return join([metric_tables(evaluations), missing_metrics(evaluations)])


def metrics_over_steps(evaluations: Sequence[Evaluation], most: int = 3) -> Html:
    """Curves of the main metrics where checkpoints were evaluated with the same settings, else nothing."""
    alike: dict[str, dict[int, Evaluation]] = {}
    for one in evaluations:
        same = {name: value for name, value in one.settings.items() if name not in UNTOLD}
        alike.setdefault(repr(sorted(same.items())), {})[one.step] = one
    steps = max(alike.values(), key=len, default={})
    if len(steps) < 2:
        return Html()
    series: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in headline({name for one in steps.values() for name in one.metrics}):
        found = [(step, value) for step, one in sorted(steps.items())
                 if (value := one.metrics.get(name)) is not None and math.isfinite(value)]  # fmt: skip
        if len(found) > 1:
            x, y = np.array(found, np.float64).T
            series[name] = x, y
    figures = [
        line_chart(describe(name).title, [Series(describe(name).better + " is better", x, y, marks=True)],
                   unit=describe(name).unit or ("share" if describe(name).form == SHARE else ""), log=False)
        for name, (x, y) in list(series.items())[:most]
    ]  # fmt: skip
    return join([element("h3", "Over training"), element("div", *figures, class_="panels")]) if figures else Html()


def words(value: Any) -> str:
    """A setting in short."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return "(" + ", ".join(words(item) for item in value) + ")"
    return "–" if value is None else str(value)


def as_number(value: Any) -> float | None:
    """A number, or None for whatever else stands there."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
