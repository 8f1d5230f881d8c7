"""Every metric on features that two sets of images allow, and why the others cannot be computed: one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from evaluation.inception_score import SPLITS, inception_score
from evaluation.kernel_distance import SIZE, SUBSETS, kernel_distance
from evaluation.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS, manifold_scores
from evaluation.statistics import Gaussian, Statistics, check_finite, check_sizes, frechet_distance
from models.errors import UserError, unknown

SIDES = ("the set of samples", "the reference")
SPLIT_SIZE = 5000  # images in each split of published Inception scores
PARAMETERS = {  # what else decides the metrics, for those who write down what was measured
    "kid": {"subsets": SUBSETS, "size": SIZE},
    "precision, recall": {"neighbours": NEIGHBOURS},
    "density, coverage": {"neighbours": DENSITY_NEIGHBOURS},
    "inception_score": {"splits": SPLITS},
}


@dataclass
class Pair:
    """One set of features of samples and reference, as far as known; the methods raise a UserError where it is not."""

    rows: tuple[np.ndarray | None, np.ndarray | None]
    gaussians: tuple[Gaussian | Statistics | None, Gaussian | Statistics | None]
    seed: int
    warnings: list[str] = field(default_factory=list)

    def each(self, side: int) -> np.ndarray:
        """The rows (N, D) of the samples (0) or the reference (1)."""
        rows = self.rows[side]
        if rows is None:
            known = "no such features" if self.gaussians[side] is None else "only the statistics of such features"
            raise UserError(f"{SIDES[side]} has {known}; those of each image are needed.")
        return rows

    def gaussian(self, side: int) -> Gaussian | Statistics:
        """The Gaussian of the samples (0) or the reference (1): the one given, or else that of the rows."""
        known, rows = self.gaussians[side], self.rows[side]
        if known is None and rows is None:
            raise UserError(f"{SIDES[side]} has no such features; they, or their mean and covariance, are needed.")
        return known or Statistics.of(self.each(side))


def _frechet(pair: Pair) -> tuple[float | None, ...]:
    distance = frechet_distance(pair.gaussian(0), pair.gaussian(1))
    pair.warnings += distance.warnings
    return (distance.value,)


def _kernel(pair: Pair) -> tuple[float | None, ...]:
    distance = kernel_distance(pair.each(0), pair.each(1), seed=pair.seed)
    return distance.mean, distance.std


def _manifold(pair: Pair) -> tuple[float | None, ...]:
    scores = manifold_scores(pair.each(0), pair.each(1))
    return tuple(scores[name] for name in ("precision", "recall", "density", "coverage"))


def _inception_score(pair: Pair) -> tuple[float | None, ...]:
    logits = pair.each(0)
    scores = inception_score(logits, seed=pair.seed)
    if len(logits) < SPLITS * SPLIT_SIZE:
        pair.warnings.append(
            f"{len(logits)} images in {SPLITS} splits; published scores have {SPLIT_SIZE} in each, fewer give a lower one."
        )
    return scores


Measure = Callable[[Pair], tuple[float | None, ...]]  # None: there is no such number, of so few images


@dataclass(frozen=True)
class FeatureSet:
    """A kind of features.

    Attributes:
      size: D; None where it may be any.
      measures: names of metrics, and the function that gives them in this order.
      absent: why its metrics, which papers report, are not there when the samples lack it; "" for those of no paper.
    """

    size: int | None
    measures: Mapping[tuple[str, ...], Measure]
    absent: str = ""


def suffix(name: str) -> str:
    """What the names of metrics on the pooled features `name` end in: nothing for 2048, for a FID is of these alone."""
    return "" if name == "2048" else f"_{name}"


def _pooled(size: int) -> FeatureSet:
    end = suffix(str(size))
    names: dict[tuple[str, ...], Measure] = {
        ("fid",): _frechet,
        ("kid", "kid_std"): _kernel,
        ("precision", "recall", "density", "coverage"): _manifold,
    }
    measures = {tuple(name + end for name in group): measure for group, measure in names.items()}
    return FeatureSet(size, measures, "" if end else "the weights end before the 2048 features; FID needs whole ones.")


POOLED = ("2048", "768", "192", "64")
FEATURE_SETS = {
    **{name: _pooled(int(name)) for name in POOLED},
    "spatial": FeatureSet(7 * 17 * 17, {("sfid",): _frechet}, "no spatial features were taken."),
    "logits": FeatureSet(
        1008,
        {("inception_score", "inception_score_std"): _inception_score},
        "the weights end before the classifier; the Inception score needs whole ones.",
    ),
    "classifier": FeatureSet(None, {("cfd",): _frechet}),
}
PUBLISHED = tuple(
    metric for kind in FEATURE_SETS.values() if kind.absent for group in kind.measures for metric in group
)


@runtime_checkable
class Seen(Protocol):
    """Features gathered piece by piece: Gaussians of all images, rows (N, D) of some or none; set -> either."""

    @property
    def gaussians(self) -> Mapping[str, Gaussian]:
        """Mean and covariance of each set."""

    @property
    def rows(self) -> Mapping[str, Float[np.ndarray, "_ _"]]:
        """Features of each set."""


Side = Seen | Mapping[str, Float[np.ndarray, "_ _"] | Statistics | Gaussian]


@dataclass(frozen=True)
class FeatureReport:
    """Metric -> value, metric -> why it could not be computed, and what makes values doubtful (metric: sentence)."""

    metrics: dict[str, float]
    missing: dict[str, str]
    warnings: list[str]


def compare(samples: Side, reference: Side, *, seed: int = 0) -> FeatureReport:
    """Compare samples with a reference by all metrics that their features allow.

    Distances between Gaussians take those given, and else compute them from the rows: so a reference may have the
    statistics of a whole training set (for FID) and the features of some of its images (for precision), as ADM's has.

    Args:
      samples: set of features (a name of `FEATURE_SETS`) -> rows (N, D), or their statistics; or both, as a `Seen`.
      reference: the same. Sets that only it has are ignored, unless papers report metrics on them.
      seed: of the subsets of KID and of the splits of the Inception score.

    Returns:
      Each metric of every set that the samples have, or that papers report, in `metrics` or in `missing`.

    Raises:
      UserError: a name that is no set, features that are not finite, or of a size that the set does not have.
    """
    a, b = _open(samples), _open(reference)
    for title, side in zip(SIDES, (a, b)):
        _check_side(title, side)
    report = FeatureReport({}, {}, [])
    for name, kind in FEATURE_SETS.items():
        if name in a.gaussians or name in a.rows:
            rows, gaussians = (a.rows.get(name), b.rows.get(name)), (a.gaussians.get(name), b.gaussians.get(name))
            _measure(Pair(rows, gaussians, seed), kind, report)
        elif kind.absent:
            report.missing.update({metric: kind.absent for group in kind.measures for metric in group})
    return report


class _Opened(NamedTuple):
    gaussians: Mapping[str, Gaussian | Statistics]
    rows: Mapping[str, np.ndarray]


def _open(side: Side) -> _Opened:
    if not isinstance(side, Mapping):
        return _Opened(side.gaussians, side.rows)
    rows = {name: value for name, value in side.items() if isinstance(value, np.ndarray)}
    return _Opened({name: value for name, value in side.items() if not isinstance(value, np.ndarray)}, rows)


def _check_side(title: str, side: _Opened) -> None:
    sizes = [(name, len(known.mean)) for name, known in side.gaussians.items()]
    sizes += [(name, own.shape[1]) for name, own in side.rows.items()]
    for name, size in sizes:
        if name not in FEATURE_SETS:
            raise unknown("set of features", name, FEATURE_SETS)
        expected = FEATURE_SETS[name].size or size
        if size != expected:
            raise UserError(f"{title} has {name} features of size {size}; the network gives {expected}.")
    for name, own in side.rows.items():
        check_finite(own, f"the {name} features of {title}")


def _measure(pair: Pair, kind: FeatureSet, report: FeatureReport) -> None:
    sizes = [own.shape[1] for own in pair.rows if own is not None]
    sizes += [len(known.mean) for known in pair.gaussians if known is not None]
    check_sizes(min(sizes), max(sizes))
    for names, measure in kind.measures.items():
        pair.warnings = []
        try:
            for metric, value in zip(names, measure(pair)):
                if value is None:
                    report.missing[metric] = "these are too few images for it."
                else:
                    report.metrics[metric] = value
        except UserError as error:
            report.missing.update(dict.fromkeys(names, str(error)))
        report.warnings.extend(f"{names[0]}: {warning}" for warning in pair.warnings)
