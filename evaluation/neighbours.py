"""Exact nearest neighbours in pixel space, and what they say about copying: which samples are training images."""

import numpy as np
from jaxtyping import Float, Int, UInt8


def nearest(
    queries: UInt8[np.ndarray, "N H W C"],
    references: UInt8[np.ndarray, "M H W C"],
    *,
    exclude_self: bool = False,
    block: int = 4096,
) -> tuple[Float[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Each query's nearest reference, by Euclidean distance between pixels in [0, 1]; of equals, the first.

    Candidates are compared by float32 products. With pixels p - 128 and H W C <= 1024 their sums are whole numbers up
    to 2^24, so the comparison is exact (for neighbours nearer than 16). In larger images it can prefer a reference that
    is farther by the rounding of those sums. The distance returned is recomputed from the pixels: always exact.

    Args:
      queries: images to look up.
      references: images to look among.
      exclude_self: the queries are the references, and none is its own neighbour; its duplicates still are.
      block: queries and references compared at a time; memory is about 4 block (block + 3 H W C) bytes.

    Returns:
      float64 distances and indices of the references, (N,) each.

    Raises:
      ValueError: `exclude_self` where the two cannot be the same images, or hold only one.
    """
    if exclude_self and not 1 < len(queries) == len(references):
        raise ValueError(f"{len(queries)} queries are not the same two or more images as {len(references)} references.")
    distances, indices = np.empty(len(queries)), np.zeros(len(queries), np.int64)
    for q in range(0, len(queries), block):
        query = queries[q : q + block]
        rows, x = np.arange(len(query)), _centred(query)
        best, index = np.full(len(query), -np.inf, np.float32), indices[q : q + block]
        for r in range(0, len(references), block):
            y = _centred(references[r : r + block])
            # ||x - y||^2 is smallest where x.y - ||y||^2 / 2 is largest.
            score = x @ y.T
            score -= (y**2).sum(1) / 2
            if exclude_self and q == r:
                np.fill_diagonal(score, -np.inf)
            column = score.argmax(1)
            closer = score[rows, column] > best
            best[closer], index[closer] = score[rows, column][closer], r + column[closer]
        difference = x - _centred(references[index])
        distances[q : q + block] = np.sqrt((difference**2).sum(1, dtype=np.float64)) / 255
    return distances, indices


def _centred(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) - 128


def usual_distance(train: UInt8[np.ndarray, "M H W C"]) -> float:
    """How far training images lie from each other: the median of the distance to the nearest other one."""
    return float(np.median(nearest(train, train, exclude_self=True)[0]))


def near_copies(images: UInt8[np.ndarray, "N H W C"], train: UInt8[np.ndarray, "M H W C"], distance: float) -> float:
    """The share of images, in [0, 1], that lie nearer than `distance` to a training image.

    With `usual_distance`, images that the training did not see, and that come from the same distribution, give about
    0.5; copies give 1; what is unlike the training images gives 0. Compare samples with held-out images, not with 0.
    """
    return float((nearest(images, train)[0] < distance).mean())
