"""The Inception score, from a classifier's logits."""

from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.special import entr, log_softmax

from evaluation.statistics import check_finite
from models.errors import UserError

SPLITS = 10  # as published


def inception_score(
    logits: Float[np.ndarray, "N classes"], splits: int = SPLITS, *, seed: int = 0
) -> tuple[float, float]:
    """exp of the mean divergence KL(p(y|x) || p(y)), for each split of the images (1606.03498 sec. 4).

    Published scores are means over 10 splits of 5,000 images; fewer images in a split give a lower score. The images are
    shuffled first, so that samples drawn class by class are not judged class by class.

    Args:
      logits: of a classifier, before its softmax.
      splits: number of equal parts, each with its own p(y).
      seed: of the shuffle.

    Returns:
      mean and standard deviation (divided by `splits`) over the splits; from 1 (p(y|x) is the same for all) to the
      number of classes (certain, and all classes alike).

    Raises:
      UserError: logits that are not finite, or fewer images than splits.
    """
    check_finite(logits)
    if not 1 <= splits <= len(logits):
        raise UserError(f"{len(logits)} images in {splits} splits; there must be one image or more in each.")
    order = np.random.default_rng(seed).permutation(len(logits))
    bounds = np.arange(splits + 1) * len(logits) // splits
    scores = [_score(logits[order[start:stop]]) for start, stop in pairwise(bounds)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: np.ndarray) -> float:
    """exp of H(mean of p) - mean of H(p), which is the mean divergence."""
    p = np.exp(log_softmax(logits.astype(np.float64), axis=1))
    return float(np.exp(entr(p.mean(0)).sum() - entr(p).sum(1).mean()))
