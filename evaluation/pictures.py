"""PNG files to look at: sheets of images, pairs of images, loss curves. Each is written whole or not at all."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter
from PIL import Image, ImageDraw, ImageFont

from models.files import atomically

MARGIN, GAP, BAND_GAP = 16, 4, 16  # pixels: around the sheet, between images, between bands of rows
SIDE = 64  # pixels: what small images are enlarged to, at least
INK = "#333333"


def _rows(images: np.ndarray, columns: int) -> np.ndarray:
    """(N, H, W, C) -> (R, columns, H, W, C), the last row filled up with white images."""
    missing = -len(images) % columns
    white = np.full((missing, *images.shape[1:]), 255, np.uint8)
    return np.concatenate([images, white]).reshape(-1, columns, *images.shape[1:])


def _write_sheet(path: Path, rows: np.ndarray, *, captions: Sequence[str] = (), band: int = 1) -> None:
    """Write rows of images (R, K, H, W, C), enlarged to at least `SIDE` pixels, each row with its caption to its left; more
    space after every `band` rows."""
    count, columns, height, width, channels = rows.shape
    scale = math.ceil(SIDE / width)
    font = ImageFont.load_default(13)
    left = MARGIN + max((math.ceil(font.getlength(caption)) + MARGIN for caption in captions), default=0)
    lefts = left + np.arange(columns) * (width * scale + GAP)
    tops = MARGIN + np.arange(count) * (height * scale + GAP)
    if band > 1:
        tops += np.arange(count) // band * (BAND_GAP - GAP)
    size = int(lefts[-1]) + width * scale + MARGIN, int(tops[-1]) + height * scale + MARGIN
    sheet = Image.new("RGB", size, "white")
    for row, y in zip(rows, tops.tolist()):
        for image, x in zip(row, lefts.tolist()):
            tile = Image.fromarray(image[..., 0] if channels == 1 else image)
            sheet.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
    draw = ImageDraw.Draw(sheet)
    for caption, y in zip(captions, tops.tolist()):
        draw.text((left - MARGIN, y + height * scale / 2), caption, fill=INK, font=font, anchor="rm")
    with atomically(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def image_grid(path: Path, images: UInt8[np.ndarray, "N H W C"], columns: int) -> None:
    """Write images row by row, small ones enlarged.

    Args:
      path: of the PNG file.
      images: C = 1 or 3.
      columns: images a row.
    """
    _write_sheet(path, _rows(images, columns))


def image_pairs(
    path: Path,
    above: UInt8[np.ndarray, "N H W C"],
    below: UInt8[np.ndarray, "N H W C"],
    *,
    names: tuple[str, str],
    columns: int = 10,
) -> None:
    """Write images over those that they are compared with, small ones enlarged.

    Args:
      path: of the PNG file.
      above: C = 1 or 3.
      below: each stands under its own of `above`.
      names: of the upper and the lower images.
      columns: pairs a band.
    """
    bands = np.stack([_rows(above, columns), _rows(below, columns)], axis=1)  # (bands, 2, columns, H, W, C)
    _write_sheet(path, bands.reshape(-1, *bands.shape[2:]), captions=names * len(bands), band=2)


reconstruction_strip = functools.partial(image_pairs, names=("original", "reconstruction"))
nearest_strip = functools.partial(image_pairs, names=("sample", "nearest in training"))


CURVE_STYLES: Sequence[dict[str, Any]] = ({"color": "#1f5fa8"}, {"color": "#c8553d", "marker": "o", "markersize": 3})
Curve = tuple[Int[np.ndarray, "_"], Float[np.ndarray, "_"]]  # training steps, values


def loss_curves(path: Path, panels: Mapping[str, Mapping[str, Curve]], *, columns: int = 3) -> None:
    """Write curves over the training step, those of a panel in one frame.

    Panels that stay above 0 and span more than a factor of ten are drawn on a logarithmic scale.

    Args:
      path: of the PNG file.
      panels: what is measured, with its unit ("loss (nats per token)") -> name of the curve -> the curve.
      columns: panels a row, at most.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows), dpi=100)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for n, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, n)
        for (name, (steps, values)), style in zip(curves.items(), CURVE_STYLES):
            axes.plot(steps, values, linewidth=1.3, label=name, **style)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
        values = np.concatenate([values for _, values in curves.values()])
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.set_xlabel("training step", fontsize=9, color=INK)
        if np.nanmin(values) > 0 and np.nanmax(values) > 10 * np.nanmin(values):
            axes.set_yscale("log")
        axes.locator_params(axis="x", nbins=5)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _plain(axes)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def search_curves(path: Path, rows: Sequence[Mapping[str, float]], metric: str) -> None:
    """Write a metric over the guidance scale, one curve for each temperature and top-k.

    Args:
      path: of the PNG file.
      rows: `guidance_scale`, `temperature`, `top_k` and the metric, of each setting.
      metric: lower is better; the lowest is marked.
    """
    figure = Figure(figsize=(5.5, 3.6), dpi=100)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.add_subplot()
    others = sorted({(row["temperature"], row["top_k"]) for row in rows})
    for temperature, top_k in others:
        line = sorted(
            (r["guidance_scale"], r[metric]) for r in rows if (r["temperature"], r["top_k"]) == (temperature, top_k)
        )
        name = f"temperature {temperature:g}, top-k {top_k or 'off'}"
        axes.plot(*zip(*line), linewidth=1.3, marker="o", markersize=4, label=name)
    best = min(rows, key=lambda row: row[metric])
    axes.annotate(f"{best[metric]:.4g}", (best["guidance_scale"], best[metric]), (0, -14), textcoords="offset points",
                  ha="center", fontsize=9, color=INK)  # fmt: skip
    axes.margins(y=0.15)
    axes.set_title(metric, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("guidance scale (1 is off)", fontsize=9, color=INK)
    if len(others) > 1:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _plain(axes)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")


class Acceptance(NamedTuple):
    """Where a speculative sampler's calls of the model get on.

    Attributes:
      name: of the sampler.
      tokens_per_call: float (T,), by position: 1 / the mean over the images of the share that a position has in its call, so
        that the inverses sum to the calls an image.
      entropy: float (K,), nats: the mean of each of K parts of all positions, of small entropy to large.
      ends: float (K,), share of the part's positions that are the last that their call draws.
      entropy_of_ends: nats, mean over the positions that end a call.
      entropy_of_others: nats, mean over the others.
    """

    name: str
    tokens_per_call: Float[np.ndarray, "T"]
    entropy: Float[np.ndarray, "K"]
    ends: Float[np.ndarray, "K"]
    entropy_of_ends: float
    entropy_of_others: float


def acceptance_curves(path: Path, panels: Mapping[str, Sequence[Acceptance]]) -> None:
    """Write a row of two frames a setting: tokens a call over the position, and the share of positions that end a call over
    the entropy.

    Args:
      path: of the PNG file.
      panels: setting -> its samplers.
    """
    figure = Figure(figsize=(13, 3.6 * len(panels)), dpi=100)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for n, (setting, samplers) in enumerate(panels.items()):
        by_position, by_entropy = (figure.add_subplot(len(panels), 2, 2 * n + k) for k in (1, 2))
        for one, style in zip(samplers, _styles()):
            by_position.plot(one.tokens_per_call, linewidth=1.3, **style)
            told = f"{one.name} ({one.entropy_of_ends:.2f} where calls end, else {one.entropy_of_others:.2f})"
            by_entropy.plot(one.entropy, one.ends, linewidth=1.3, marker="o", markersize=3, label=told, **style)
        by_position.set_title(f"tokens a call, {setting}", loc="left", fontsize=10, color=INK)
        by_position.set_xlabel("position", fontsize=9, color=INK)
        by_entropy.set_title(f"share of positions that end a call, {setting}", loc="left", fontsize=10, color=INK)
        by_entropy.set_xlabel("entropy of the model's distribution (nats)", fontsize=9, color=INK)
        by_entropy.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
        _plain(by_position)
        _plain(by_entropy)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def calls_and_quality(path: Path, panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the class accuracy over the calls of the model an image, a point each sampler; best is the top left.

    Args:
      path: of the PNG file.
      panels: setting -> its samplers: `label`, `lossless`, `calls_per_image`, `calls_std`, `class_accuracy`, and
        `accuracy_images`, of how many it is. Lossless ones are full circles. The first one's accuracy is drawn as a line,
        with its standard error.
    """
    figure = Figure(figsize=(8.5, 3.6 * len(panels)), dpi=100)
    figure.set_layout_engine(ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    for n, (setting, rows) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(len(panels), 1, n)
        accuracy = rows[0]["class_accuracy"]
        count = rows[0]["accuracy_images"]
        share = (accuracy * count + 1) / (count + 2)  # so that none wrong of a few images is not without error
        error = math.sqrt(share * (1 - share) / count)
        axes.axhspan(accuracy - error, accuracy + error, color="#eeeeee", zorder=0)
        axes.axhline(accuracy, color=INK, linewidth=0.8, zorder=1)
        for row, style in zip(rows, itertools.chain([{"color": INK}], _styles())):  # colours as in `acceptance_curves`
            axes.errorbar(
                row["calls_per_image"], row["class_accuracy"], xerr=row["calls_std"], marker="o", markersize=6, linewidth=0.8,
                markerfacecolor=style["color"] if row["lossless"] else "white", linestyle="none", color=style["color"],
                label=f"{row['label']}{'' if row['lossless'] else ' (lossy)'}",
            )  # fmt: skip
        axes.margins(y=0.15)
        axes.set_title(f"class accuracy, {setting}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("calls of the model an image (and their standard deviation)", fontsize=9, color=INK)
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc="upper left", bbox_to_anchor=(1, 1))
        _plain(axes)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")


def _styles() -> Iterator[dict[str, Any]]:
    """Colours, ten of them for full lines, then for broken ones."""
    return ({"color": f"C{n % 10}", "linestyle": ("-", "--", ":")[n // 10 % 3]} for n in itertools.count())


def _plain(axes: Any) -> None:
    axes.yaxis.set_major_formatter("{x:g}")
    axes.tick_params(labelsize=9, colors=INK)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
