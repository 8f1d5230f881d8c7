"""What share of the samples is like the reference, and of the reference is covered by samples, by nearest neighbours."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from evaluation.statistics import check_finite, check_sizes
from models.errors import UserError

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5  # as published
PAIRS = 4096  # whose differences are in memory at a time


def manifold_scores(
    samples: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D2"],
    *,
    neighbours: int = NEIGHBOURS,
    density_neighbours: int = DENSITY_NEIGHBOURS,
    block: int = 2048,
) -> dict[str, float]:
    """Precision and recall (1904.06991 eq. 1 and 2), density and coverage (2002.09797 eq. 3 and 4).

    A feature's ball reaches to its k-th nearest other one in its own set. Precision is the share of samples inside some
    reference ball, recall the share of the reference inside some sample's ball (k = `neighbours`; what lies at the
    radius is inside, as the paper defines). Density is the number of reference balls that hold a sample, averaged over
    samples and divided by k; coverage the share of reference balls that hold a sample (k = `density_neighbours`; what
    lies at the radius is outside, as in its authors' code, so that the density of a set with itself is 1).

    Distances are exact where it matters: products of the features, centred on the reference, in float64, and
    every pair that these leave within rounding of a radius again as a sum of squared differences, which does not depend
    on the block or on the order of the two. So a sample that is a copy of a reference image is treated as that image.

    Time is (M^2 / 2 + N^2 / 2 + M N) D products. Memory is about 32 block (block + D) bytes besides the features.

    Returns:
      precision, recall, coverage in [0, 1]; density from 0, 1 for samples of the same distribution, and above.

    Raises:
      UserError: two sizes of features, some that are not finite, or no more than k of them.
    """
    for features in (samples, reference):
        check_finite(features)
    check_sizes(samples.shape[1], reference.shape[1])
    centre = reference.mean(0, dtype=np.float64)
    sample_radii = _radii(samples, centre, (neighbours,), block)[0]
    reference_radii, density_radii = _radii(reference, centre, (neighbours, density_neighbours), block)
    largest = np.maximum(reference_radii, density_radii)
    inside, held, covered = np.zeros(len(samples), bool), np.zeros(len(reference), bool), np.zeros(len(reference), bool)
    count = 0
    for i, x in _blocks(samples, centre, block):
        for j, y in _blocks(reference, centre, block):
            squares, rounding = _squares(x, y)
            limit = np.maximum(sample_radii[i : i + len(x), None], largest[j : j + len(y)]) + rounding
            row, column = np.nonzero(squares <= limit)
            square = squares[row, column]
            row, column = row + i, column + j
            radii = sample_radii[row], reference_radii[column], density_radii[column]
            near = np.any([np.abs(square - radius) <= rounding for radius in radii], axis=0)
            square[near] = _exact(samples, reference, row[near], column[near])
            held[column[square <= radii[0]]] = True
            inside[row[square <= radii[1]]] = True
            covered[column[square < radii[2]]] = True
            count += int((square < radii[2]).sum())
    return {
        "precision": float(inside.mean()),
        "recall": float(held.mean()),
        "density": count / (density_neighbours * len(samples)),
        "coverage": float(covered.mean()),
    }


def _radii(features: np.ndarray, centre: np.ndarray, ranks: tuple[int, ...], block: int) -> list[np.ndarray]:
    """The squared distance of each feature to its k-th nearest other one, for each k of `ranks`; (N,) each."""
    most = max(ranks)
    if len(features) <= most:
        raise UserError(f"{len(features)} images have no {most} nearest others; {most + 1} or more are needed.")
    best = np.full((len(features), most), np.inf)
    index = np.zeros((len(features), most), np.int64)
    for i, x in _blocks(features, centre, block):
        for j, y in _blocks(features[: i + block], centre, block):
            squares, _ = _squares(x, y)
            if i == j:
                np.fill_diagonal(squares, np.inf)
            else:
                _keep_nearest(best[j : j + len(y)], index[j : j + len(y)], squares.T, i)
            _keep_nearest(best[i : i + len(x)], index[i : i + len(x)], squares, j)
    rows = np.repeat(np.arange(len(features)), most)
    exact = np.sort(_exact(features, features, rows, index.ravel()).reshape(-1, most), 1)
    return [exact[:, rank - 1] for rank in ranks]


def _keep_nearest(best: np.ndarray, index: np.ndarray, squares: np.ndarray, start: int) -> None:
    """Update `best` (B, k) and `index` (B, k), in place, with distances (B, C) to features from `start` on."""
    k = best.shape[1]
    if squares.shape[1] > k:
        columns = np.argpartition(squares, k - 1, axis=1)[:, :k]
    else:
        columns = np.broadcast_to(np.arange(squares.shape[1]), squares.shape)
    candidates = np.concatenate([best, np.take_along_axis(squares, columns, 1)], 1)
    indices = np.concatenate([index, start + columns], 1)
    chosen = np.argpartition(candidates, k - 1, axis=1)[:, :k]
    best[:] = np.take_along_axis(candidates, chosen, 1)
    index[:] = np.take_along_axis(indices, chosen, 1)


def _blocks(features: np.ndarray, centre: np.ndarray, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """(start, centred float64 features) of each block."""
    for start in range(0, len(features), block):
        yield start, features[start : start + block] - centre


def _squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Squared distances (B, C) of centred features by products, and a bound on their rounding."""
    x_squares, y_squares = (x**2).sum(1), (y**2).sum(1)
    squares = x @ y.T
    squares *= -2
    squares += x_squares[:, None]
    squares += y_squares
    largest = x_squares.max() + y_squares.max()
    return squares, 4 * x.shape[1] * np.finfo(np.float64).eps * float(largest)


def _exact(x: np.ndarray, y: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of the pairs (x[row], y[column]), from float64 differences."""
    squares = np.empty(len(rows))
    for i in range(0, len(rows), PAIRS):
        difference = x[rows[i : i + PAIRS]].astype(np.float64)
        difference -= y[columns[i : i + PAIRS]]
        squares[i : i + PAIRS] = np.square(difference, out=difference).sum(1)
    return squares
