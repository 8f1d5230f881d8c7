"""What evaluations found, as tables and curves of a report."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.report.charts import Series, line_chart
from evaluation.report.descriptions import ARROWS, GROUPS, LOWER, NEITHER, SHARE, describe, headline, rank
from evaluation.report.evaluations import (
    Evaluation,
    column_heads,
    comparison,
    same_measure,
    same_sampling,
    settings_table,
)
from evaluation.report.markup import Html, definitions, element, join, scrolling

MANY = 5  # columns, from which on they stand closer


def metric_tables(evaluations: Sequence[Evaluation]) -> Html:
    """One row a metric, one column an evaluation, the best of those that may be compared marked; what a metric means stands
    beside a single column, and under several."""
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


def metric_row(name: str, evaluations: Sequence[Evaluation], *, told: bool) -> Html:
    """A metric's title and direction, its values, and, where it is to be told, its meaning."""
    metric = describe(name)
    values = [one.metrics.get(name) for one in evaluations]
    chosen = best_of_kinds(values, [same_measure(one) for one in evaluations], metric.better)
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


def best_of_kinds(values: Sequence[float | None], kinds: Sequence[str], better: str) -> set[int]:
    """Where the best values among those of equal kind stand."""
    chosen = set()
    for kind in set(kinds):
        places = [n for n, other in enumerate(kinds) if other == kind]
        chosen |= {places[n] for n in best([values[n] for n in places], better)}
    return chosen


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
    """A sentence whose options (--config...) and `commands` are set as code."""
    parts = re.split(r"`([^`]+)`|(?<!\S)(--\S+)", text)  # text, command, option, text, ...
    return join(element("code", part) if n % 3 else part for n, part in enumerate(parts) if part)


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
    """A table with what may be compared in it, what it lacks, and the settings behind it."""
    if not evaluations:
        return Html()
    sentence = comparison(evaluations)
    note = element("p", sentence, class_="note") if sentence else Html()
    return join([note, metric_tables(evaluations), missing_metrics(evaluations), settings_table(evaluations)])


def metrics_over_steps(evaluations: Sequence[Evaluation], most: int = 3) -> Html:
    """Curves of the main metrics where checkpoints were evaluated with the same settings, else nothing."""
    alike: dict[str, dict[int, Evaluation]] = {}
    for one in evaluations:
        alike.setdefault(same_sampling(one), {})[one.step] = one
    steps = max(alike.values(), key=len, default={})
    if len(steps) < 2:
        return Html()
    figures = []
    for name in headline({name for one in steps.values() for name in one.metrics}):
        metric = describe(name)
        curves = [over_steps(steps, name, f"{metric.better} is better" if metric.better else "samples")]
        curves += [over_steps(steps, metric.reference, "real images")] if metric.reference else []
        unit = metric.unit or ("share" if metric.form == SHARE else "")
        if len(curves[0].x) > 1:
            figures.append(line_chart(metric.title, curves, unit=unit, log=False))
    if not figures:
        return Html()
    return join([element("h3", "Over training"), element("div", *figures[:most], class_="panels")])


def over_steps(steps: Mapping[int, Evaluation], name: str, label: str) -> Series:
    """A metric over the steps at which it is a number."""
    found = [(step, value) for step, one in sorted(steps.items())
             if (value := one.metrics.get(name)) is not None and math.isfinite(value)]  # fmt: skip
    x, y = np.array(found, np.float64).reshape(-1, 2).T
    return Series(label, x, y, marks=True)
