"""One HTML file that tells a run: pictures first, then figures, curves, and everything needed to do it again.

It holds all it shows, needs no network and no script, and reads on paper, on a phone, in light and in dark.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from evaluation.image_sets import spread
from evaluation.report.evaluations import Evaluation, measured, sampling
from evaluation.report.markup import (
    Html,
    anchor,
    counted,
    definitions,
    element,
    image,
    join,
    png_file,
    scrolling,
    section,
    table,
    words,
)
from evaluation.report.search import search_tables
from evaluation.report.style import SCRIPT, STYLE
from evaluation.report.tables import (
    evaluated,
    headline_figures,
    metrics_over_steps,
    warnings_box,
)
from evaluation.report.training import Rows, training_curves
from models.files import write_text

CLASSES, IMAGES = 20, 10  # shown where a row is of one class: classes, and images of each
FEW, TILES = 4, 100  # images of a class that make no row; shown then: images of all classes together


@dataclasses.dataclass(frozen=True)
class Samples:
    """Generated images.

    Attributes:
      images: only what is shown of them is read, where they lie in a file.
      labels: the classes asked for.
      source: where they lie.
      settings: "a.b" -> value, of how they were drawn.
      classes: that the model knows.
    """

    images: UInt8[np.ndarray, "N H W C"]
    labels: Int[np.ndarray, "N"]
    source: str
    settings: Mapping[str, Any]
    classes: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What a report tells; all but the name may be empty.

    Attributes:
      name: of the workdir.
      about: one line on the experiment.
      experiment: its file, as far as that is known.
      facts: name -> value, under the title.
      stages: rows of the table of stages, its head first.
      metrics: stage -> rows of its metrics.jsonl.
      samples: the newest.
      reconstructions: PNG file of originals over their reconstructions, of the newest evaluation of the tokenizer.
      neighbours: PNG file of samples over their nearest training images, of the newest evaluation.
      evaluations: by step; the last is the newest.
      tokenizers: evaluations of the tokenizer alone, by step.
      searches: name -> a search over the sampler's settings.
      speeds: rows of the table of sampling speeds, its head first.
      config: complete, nested.
      changed: "a.b" of the config -> what the experiment's file says instead.
      versions: of libraries.
      command: that runs it again.
      notes: what went wrong in reading.
    """

    name: str
    about: str = ""
    experiment: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    stages: Sequence[Sequence[str]] = ()
    metrics: Mapping[str, Rows] = dataclasses.field(default_factory=dict)
    samples: Samples | None = None
    reconstructions: Path | None = None
    neighbours: Path | None = None
    evaluations: Sequence[Evaluation] = ()
    tokenizers: Sequence[Evaluation] = ()
    searches: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    speeds: Sequence[Sequence[str]] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    changed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()


def write_report(path: Path, run: Run) -> None:
    """Write the page."""
    write_text(path, page(run))


def page(run: Run) -> str:
    """The whole HTML file."""
    sections = {title: content for title, make in SECTIONS.items() if (content := make(title, run))}
    links = [element("a", title, href=f"#{anchor(title)}") for title in sections]
    head = join([
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{run.name} – Tessera"),
        element("style", Html(STYLE)),
    ])  # fmt: skip
    body = element("body", element("header", *opening(run), element("nav", *links)), element("main", *sections.values()),
                   element("script", Html(SCRIPT)))  # fmt: skip
    return f"<!doctype html>\n{element('html', element('head', head), body, lang='en')}\n"


def opening(run: Run) -> list[Html]:
    """Title, facts, the figures of the newest evaluation, the stages, and warnings."""
    parts = [element("h1", run.name)]
    parts += [element("p", run.about)] if run.about else []
    facts = [join([f"{name} ", element("span", value)]) for name, value in run.facts.items()]
    newest = [*run.tokenizers[-1:], *run.evaluations[-1:]][-1:]
    parts += [element("p", join(facts, " · "), class_="soft")] if facts else []
    if newest and (figures := headline_figures(newest[0])):
        parts.append(definitions(figures, class_="figures"))
        what = measured(newest[0].settings)
        parts += [element("p", f"Measured: {what}.", class_="note")] if what else []
    texts = [*run.notes, *(text for one in newest for text in one.warnings)]
    parts.append(warnings_box(texts))
    if run.stages:
        parts.append(element("div", table(run.stages[0], run.stages[1:], numbers_from=2), class_="stages"))
    return [part for part in parts if part]


def samples(title: str, run: Run) -> Html:
    """One class a row; classes of too few images for a row one after another, each image with its class."""
    if run.samples is None or not len(run.samples.images):
        return Html()
    images, labels = run.samples.images, run.samples.labels
    classes = np.unique(labels)
    rows = len(labels) >= FEW * len(classes)
    each = IMAGES if rows else min(FEW, int(np.unique(labels, return_counts=True)[1].max()))
    shown = classes[spread(len(classes), CLASSES if rows else TILES // each)]
    tiles = {label: class_tiles(images, labels, label, each) for label in shown.tolist()}
    if rows:
        content = [part for label, found in tiles.items()
                   for part in (element("span", str(label)), element("div", *found, class_="tiles"))]  # fmt: skip
        grid = element("div", *content, class_="classes")
    else:
        grid = element("div", *(captioned(tile, str(label)) for label, found in tiles.items() for tile in found),
                       class_="tiles")  # fmt: skip
    order = "One class a row" if rows else "Each over its class"
    side = f"{images.shape[2]} × {images.shape[1]} pixels"
    how = ", ".join(sampling(run.samples.settings))
    lead = f"{order}, not picked: the first of {len(images):,} in {run.samples.source}, {side}{how and f'; {how}'}."
    which = class_count(len(shown), len(classes), run.samples.classes)
    return section(title, grid, lead=f"{lead}{which and f' {which}.'}")


def class_tiles(images: np.ndarray, labels: np.ndarray, label: int, most: int) -> list[Html]:
    """The first images of a class."""
    return [image(images[n], alt=f"sample of class {label}") for n in np.flatnonzero(labels == label)[:most]]


def captioned(picture: Html, caption: str) -> Html:
    """A picture over a few words."""
    return element("figure", picture, element("figcaption", caption))


def class_count(shown: int, sampled: int, known: int) -> str:
    """100 of 1,000 classes sampled, 20 shown."""
    if sampled < known:
        return f"{sampled:,} of {known:,} classes sampled{f', {shown:,} shown' if shown < sampled else ''}"
    return f"{shown:,} of {sampled:,} classes shown" if shown < sampled else ""


def reconstructions(title: str, run: Run) -> Html:
    """Held-out images through the tokenizer."""
    lead = ("Held-out images above, what is left of them after encoding and decoding below. Look for lost strokes, texture "
            "and colour: the generator can draw nothing that is missing here.")  # fmt: skip
    return sheet(title, run.reconstructions, "held-out images over their reconstructions", lead, run.tokenizers)


def neighbours(title: str, run: Run) -> Html:
    """Samples beside what they might be copies of."""
    lead = ("Samples above, the training image nearest to each in pixels below. Pairs that agree in every detail are copies; "
            "pairs of one class that differ in shape are what a good model gives.")  # fmt: skip
    return sheet(title, run.neighbours, "samples over their nearest training images", lead, run.evaluations)


def sheet(title: str, path: Path | None, alt: str, lead: str, evaluations: Sequence[Evaluation]) -> Html:
    """A sheet of images, of the last evaluation, in a frame of its own white."""
    if path is None:
        return Html()
    how = ", ".join(part for one in evaluations[-1:] for part in sampling(one.settings))
    lead += f" {how[0].upper()}{how[1:]}." if how else ""
    return section(title, scrolling(element("div", png_file(path, alt=alt), class_="sheet")), lead=lead)


def metrics(title: str, run: Run) -> Html:
    """All evaluations beside one another."""
    lead = "↑ higher is better, ↓ lower is better."
    told = {text for one in run.evaluations[-1:] for text in one.warnings}
    older = [text for one in run.evaluations[:-1] for text in one.warnings if text not in told]
    # An evaluation of samples holds that of its tokenizer; alone it says something new only where there are several.
    alone = run.tokenizers if len(run.tokenizers) > 1 or not run.evaluations else ()
    heading = element("h3", "The tokenizer alone") if alone else Html()
    return section(title, warnings_box(older), evaluated(run.evaluations), metrics_over_steps(run.evaluations), heading,
                   evaluated(alone), lead=lead)  # fmt: skip


def searches(title: str, run: Run) -> Html:
    """What other settings of the sampler give."""
    sampler = (*run.config.get("sampler", ()), "guidance_scale", "temperature", "top_k", "top_p")
    return section(title, *(search_tables(name, search, sampler) for name, search in run.searches.items()))


def training(title: str, run: Run) -> Html:
    """The curves of both stages."""
    lead = "Held-out curves are of the averaged weights. Long curves are drawn as means, with their range as a band."
    return section(title, *(training_curves(stage, rows) for stage, rows in run.metrics.items()), lead=lead)


def speed(title: str, run: Run) -> Html:
    """How fast images came."""
    lead = "On the machine that drew them, without compilation; a dash where that cannot be told apart."
    return section(title, table(run.speeds[0], run.speeds[1:], numbers_from=2), lead=lead) if run.speeds[1:] else Html()


def settings(title: str, run: Run) -> Html:
    """The complete config, the versions, and the command that does it again."""
    parts = []
    if run.command:
        parts += [element("p", "The same again, from the start:"), element("pre", run.command)]
    if run.config:
        count = f" {counted(len(run.changed), 'field')} not as in {run.experiment}" if run.changed else ""
        boxes = [fields(name, value, run.changed) for name, value in grouped(run.config).items()]
        parts.append(element("details", element("summary", "Config of the workdir", element("span", count, class_="soft")),
                             element("div", *boxes, class_="settings")))  # fmt: skip
    if run.versions:
        listed = definitions(run.versions.items(), class_="fields versions")
        parts.append(element("details", element("summary", "Versions"), listed))
    return section(title, *parts)


def grouped(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Section -> "a.b" -> value; what stands in no section comes first, under "run"."""
    groups: dict[str, dict[str, Any]] = {"run": {}}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{name}.{key}" if name else str(key), item)
        else:
            top = name.rpartition(".")[0]
            groups.setdefault(top or "run", {})[name] = value

    walk("", config)
    return {name: group for name, group in groups.items() if group}


def fields(name: str, group: Mapping[str, Any], changed: Mapping[str, Any]) -> Html:
    """One section of the config; what differs from the experiment's file is set apart."""
    pairs = []
    for field, value in group.items():
        text = words(value) or "–"
        if field in changed:
            text = element("span", text, class_="changed", title=f"the config file says {words(changed[field])}")
        pairs.append((field.rpartition(".")[2], text))
    return element("div", element("h3", name), definitions(pairs, class_="fields"))


SECTIONS = {
    "Samples": samples,
    "Reconstructions": reconstructions,
    "Nearest training images": neighbours,
    "Metrics": metrics,
    "Guidance search": searches,
    "Training": training,
    "Sampling speed": speed,
    "Settings": settings,
}
