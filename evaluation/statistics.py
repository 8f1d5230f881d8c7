"""Mean and covariance of features, gathered block by block or read from a file, and the Frechet distance of two."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from models.errors import UserError
from models.files import Arrays, write_npz

BLOCK = 8192  # rows in float64 at a time
TOLERANCE = 1e-6  # of a covariance's norm: what a square root may miss before a distance warns
SUFFIXES = {"2048": "", "spatial": "_s"}  # feature set -> what its arrays' names end in, where that is not "_SET"


@dataclass(frozen=True)
class Gaussian:
    """What the Frechet distance sees of features: float64 mean (D,), covariance (D, D), and how many, if known."""

    mean: Float[np.ndarray, "D"]
    covariance: Float[np.ndarray, "D D"]
    count: int | None


@dataclass(frozen=True)
class Statistics:
    """Sums over `count` features x: their mean (D,), and scatter = sum of (x - mean)(x - mean)^T, (D, D), float64."""

    count: int
    mean: Float[np.ndarray, "D"]
    scatter: Float[np.ndarray, "D D"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "N D"], title: str = "features") -> "Statistics":
        """The statistics of a block of features, called `title` in what is said of them; N may be 0.

        Raises:
          UserError: a feature is not finite.
        """
        check_finite(features, title)
        blocks = (features[i : i + BLOCK] for i in range(0, max(len(features), 1), BLOCK))
        return reduce(merge, map(cls._of_block, blocks))

    @classmethod
    def _of_block(cls, features: np.ndarray) -> "Statistics":
        x = features.astype(np.float64)
        mean = x.sum(0) / max(len(x), 1)
        x -= mean
        return cls(len(x), mean, x.T @ x)

    @property
    def covariance(self) -> Float[np.ndarray, "D D"]:
        """The unbiased covariance, scatter / (count - 1).

        Raises:
          UserError: fewer than two features.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs two or more images; there is {self.count}.")
        return self.scatter / (self.count - 1)


def check_finite(features: Float[np.ndarray, "N D"], title: str = "features") -> None:
    """Raise a `UserError` that says how many rows of the features called `title` hold a nan or an infinity."""
    broken = int((~np.isfinite(features).all(1)).sum())
    if broken:
        raise UserError(
            f"{broken} of {len(features)} rows of {title} are not finite; with whole weights and valid images all are."
        )


def check_sizes(a: int, b: int) -> None:
    """Raise a `UserError` that names both sizes of features if they differ."""
    if a != b:
        raise UserError(f"features of size {a} against size {b}; both must come from the same layer.")


def merge(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both sets together; either may be empty. Associative and commutative up to rounding.

    Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances", eq. 2.1:
    no squares of means are subtracted, so nothing cancels where the mean is large.

    Raises:
      UserError: features of two sizes.
    """
    check_sizes(len(a.mean), len(b.mean))
    count = a.count + b.count
    share = b.count / max(count, 1)
    delta = b.mean - a.mean
    scatter = a.scatter + b.scatter
    scatter += np.outer(delta, delta) * (a.count * share)
    return Statistics(count, a.mean + delta * share, scatter)


def save_statistics(path: Path, sets: Mapping[str, Statistics | Gaussian], **others: np.ndarray | float) -> None:
    """Write the statistics of feature sets (name -> statistics), and others beside, as an npz that `load_statistics` reads.

    The 2048 features are `mu`, `sigma`, `n` and the spatial ones `mu_s`, `sigma_s`, `n_s`, as other programs have them;
    any other set is `mu_NAME`, `sigma_NAME`, `n_NAME`.
    """
    arrays: dict[str, Any] = dict(others)
    for name, statistics in sets.items():
        suffix = SUFFIXES.get(name, f"_{name}")
        arrays |= {f"mu{suffix}": statistics.mean, f"sigma{suffix}": statistics.covariance}
        if statistics.count is not None:
            arrays[f"n{suffix}"] = np.array(statistics.count)
    write_npz(path, **arrays)


def load_statistics(path: Path) -> dict[str, Gaussian]:
    """Read the statistics of feature sets: of `save_statistics`, ADM's reference batches, or any npz with `mu`, `sigma`.

    A `mu` without more is named by its length ("2048", "768"), `mu_s` is "spatial", `mu_NAME` is NAME. The count is
    None where the file does not say it, as ADM's do not. Images in the file (ADM's `arr_0`) are not read; mind that
    ADM's statistics are those of the whole training set, and its images 10,000 of it.

    Raises:
      UserError: no such file, not an npz, without statistics, or with some that are no mean and covariance.
    """
    file, sets = Arrays(path), {}
    for suffix in [name.removeprefix("mu") for name in file.names if name == "mu" or name.startswith("mu_")]:
        if f"sigma{suffix}" not in file.names:
            raise UserError(f"{path} holds mu{suffix} without sigma{suffix}; both are needed.")
        mean, covariance = file[f"mu{suffix}"], file[f"sigma{suffix}"]
        if (
            mean.ndim != 1
            or covariance.shape != 2 * mean.shape
            or {mean.dtype.kind, covariance.dtype.kind} - set("fiu")
        ):
            raise UserError(
                f"mu{suffix} {mean.dtype} {mean.shape} and sigma{suffix} {covariance.dtype} {covariance.shape} in {path} "
                f"are no mean (D,) and covariance (D, D)."
            )
        mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
        if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
            raise UserError(f"mu{suffix} or sigma{suffix} in {path} is not finite; gather the statistics again.")
        count = file[f"n{suffix}"] if f"n{suffix}" in file.names else None
        if count is not None and (count.size != 1 or count.dtype.kind not in "iu"):
            raise UserError(f"n{suffix} in {path} is {count.dtype} {count.shape}; it is one whole number, of images.")
        sets[_set_name(suffix, len(mean))] = Gaussian(mean, covariance, None if count is None else int(count.item()))
    if not sets:
        raise UserError(f"{path} holds {', '.join(sorted(file.names)[:8])} and no mu and sigma.")
    return sets


def _set_name(suffix: str, size: int) -> str:
    named = {"": str(size), **{value: key for key, value in SUFFIXES.items() if value}}
    return named.get(suffix, suffix[1:])


@dataclass(frozen=True)
class Distance:
    """A squared Frechet distance, and how far to trust it.

    Attributes:
      value: the distance, `of_means` and `of_covariances` together; it can be negative by rounding.
      of_means: |mean_a - mean_b|^2.
      of_covariances: tr(A + B - 2 (A B)^(1/2)).
      residual: the larger of |F F^T - A| / |A| and B's, F being the square root that was used (Frobenius norms).
      smallest_eigenvalue: the most negative eigenvalue of A or B, relative to its trace; 0 where there is none.
      warnings: what makes the value doubtful, a sentence each.
    """

    value: float
    of_means: float
    of_covariances: float
    residual: float
    smallest_eigenvalue: float
    warnings: tuple[str, ...]


def frechet_distance(a: Statistics | Gaussian, b: Statistics | Gaussian) -> Distance:
    """The squared Frechet distance of two Gaussians (1706.08500 eq. 6), in float64.

        |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))

    With any F F^T = A and G G^T = B, the eigenvalues of (A B)^(1/2) are the singular values of F^T G. The sum of these is
    wanted. F and G come from eigendecompositions, without the directions whose eigenvalue is rounding (below D eps of
    the largest). So no root is taken of a difference: where A or B is singular, a rounding error e in an eigenvalue
    of A B would come out as e^(1/2), a thousand of them as a wrong third digit; here it stays e.

    Two eigendecompositions and one set of singular values: time D^3, memory about six (D, D) arrays.

    Raises:
      UserError: two sizes of features, or fewer than two features in `Statistics`.
    """
    check_sizes(len(a.mean), len(b.mean))
    covariances = a.covariance, b.covariance
    roots = [_root(covariance) for covariance in covariances]
    overlap = np.linalg.svd(roots[0].factor.T @ roots[1].factor, compute_uv=False).sum()
    of_means = float(((a.mean - b.mean) ** 2).sum())
    of_covariances = float(sum(np.trace(covariance) for covariance in covariances) - 2 * overlap)
    size = len(a.mean)
    warnings = [
        f"{count} samples are too few for the covariance of {size} features: it is singular and the distance too large; "
        f"compare it only with distances from as many samples."
        for count in dict.fromkeys([a.count, b.count])
        if count is not None and count <= size
    ]
    residual = max(root.residual for root in roots)
    smallest = min(root.smallest_eigenvalue for root in roots)
    if residual > TOLERANCE:
        warnings.append(
            f"a covariance is not positive: its smallest eigenvalue is {smallest:.1e} of its trace and its square root "
            f"misses it by {residual:.1e}; the distance is not to be trusted beyond that."
        )
    return Distance(of_means + of_covariances, of_means, of_covariances, residual, smallest, tuple(warnings))


@dataclass(frozen=True)
class _Root:
    factor: np.ndarray  # (D, rank), factor factor^T = the covariance
    residual: float
    smallest_eigenvalue: float


def _root(covariance: np.ndarray) -> _Root:
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    factor = vectors[:, kept] * np.sqrt(values[kept])
    norm, trace = (max(x, np.finfo(np.float64).tiny) for x in (np.linalg.norm(covariance), values.sum()))
    residual = np.linalg.norm(factor @ factor.T - covariance) / norm
    return _Root(factor, float(residual), float(min(values[0] / trace, 0)))
