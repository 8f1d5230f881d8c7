"""The training curves of a report: which scalars stand in a panel together, and how each is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.report.charts import Series, line_chart
from evaluation.report.markup import Html, as_number, element, join

Rows = Sequence[Mapping[str, Any]]  # of a metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Panel:
    """A frame with curves.

    Attributes:
      title: what is measured.
      curves: name in the legend -> scalar in metrics.jsonl; one that ends in / stands for all that begin so.
      unit: of the values.
      log: None chooses by the span of the values.
    """

    title: str
    curves: Mapping[str, str]
    unit: str = ""
    log: bool | None = None


ENDS = (
    Panel("Gradient norm", {"": "gradient_norm/"}, "before clipping"),
    Panel("Learning rate", {"learning rate": "learning_rate"}, log=False),
)
PANELS = {
    "tokenizer": (
        Panel("Reconstruction loss", {"training": "reconstruction_loss", "held-out": "heldout/loss"}),
        Panel("Held-out PSNR", {"held-out": "heldout/psnr"}, "dB", log=False),
        Panel("Perceptual distance", {"training": "lpips", "held-out": "heldout/lpips"}, "LPIPS"),
        Panel("Codes in use", {"training": "codebook_usage"}, "share", log=False),
        Panel("Code perplexity", {"training": "codebook_perplexity"}, "codes", log=False),
        Panel("Quantizer losses", {"codebook": "codebook_loss", "commitment": "commitment_loss"}),
        Panel("Adversarial losses", {"generator": "generator_loss", "discriminator": "discriminator_loss"}, log=False),
        Panel("Total loss", {"training": "loss"}),
    ),
    "generator": (
        Panel("Loss", {"training": "loss", "held-out": "heldout/loss"}, "nats per token"),
        Panel(
            "Token accuracy", {"training": "token_accuracy", "held-out": "heldout/token_accuracy"}, "share", log=False
        ),
    ),
}


def training_curves(stage: str, rows: Rows) -> Html:
    """The panels of a stage under its name; nothing where it has no metrics."""
    names = sorted(
        {name for row in rows for name, value in row.items() if name != "step" and as_number(value) is not None}
    )
    known = (*PANELS.get(stage, ()), *ENDS)
    told = {name for panel in known for name in scalars(panel, names).values()}
    bases = sorted({name.removeprefix("heldout/") for name in names if name not in told})
    rest = [Panel(base.replace("_", " "), {"training": base, "held-out": f"heldout/{base}"}) for base in bases]
    figures = [draw(panel, rows, names) for panel in (*known[: -len(ENDS)], *rest, *ENDS)]
    figures = [figure for figure in figures if figure]
    if not figures:
        return Html()
    return join([element("h3", stage.capitalize()), element("div", *figures, class_="panels")])


def scalars(panel: Panel, names: Sequence[str]) -> dict[str, str]:
    """Name in the legend -> scalar, as far as it is among `names`."""
    found: dict[str, str] = {}
    for label, wanted in panel.curves.items():
        if wanted.endswith("/"):
            found |= {name.removeprefix(wanted): name for name in names if name.startswith(wanted)}
        elif wanted in names:
            found[label] = wanted
    return found


def draw(panel: Panel, rows: Rows, names: Sequence[str]) -> Html:
    """The figure of a panel, or nothing."""
    curves = [curve(rows, name, label) for label, name in scalars(panel, names).items()]
    return line_chart(panel.title, curves, unit=panel.unit, log=panel.log)


def curve(rows: Rows, name: str, label: str) -> Series:
    """A scalar over the training step; those of evaluations are few, and get marks."""
    found = [(row["step"], row[name]) for row in rows if as_number(row.get(name)) is not None]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return Series(label, steps, values, marks=name.startswith("heldout/"))
