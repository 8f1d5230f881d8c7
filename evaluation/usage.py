"""How much of a codebook the tokens of a data set use."""

import numpy as np
from jaxtyping import Int
from scipy.special import entr


def codebook_usage(ids: Int[np.ndarray, "..."], size: int) -> dict[str, float]:
    """Use of one codebook of `size` codes by `ids`, whatever their order.

    Returns:
      usage: the share of the codes that occur at least once.
      perplexity: exp of the entropy of the codes' shares; from 1 (one code) to `size` (all alike).

    Raises:
      ValueError: an id is negative, or not below `size`.
    """
    counts = np.bincount(ids.ravel(), minlength=size)
    if len(counts) > size:
        raise ValueError(f"id {len(counts) - 1} in a codebook of {size}.")
    return {"usage": float((counts > 0).mean()), "perplexity": float(np.exp(entr(counts / ids.size).sum()))}
