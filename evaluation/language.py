"""What the tokens of a data set are like as a language: how much of the codebook they use, how even, how predictable.

The statistics are those of "Analyzing the Language of Visual Tokens" (arXiv:2411.05001) that need nothing but ids.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int
from scipy.special import entr

HEAD = 0.8  # of all tokens, on whose ranks Zipf's law is fitted


def codebook_usage(ids: Int[np.ndarray, "..."], size: int) -> dict[str, float]:
    """Use of one codebook of `size` codes by `ids`, whatever their order.

    Returns:
      usage: the share of the codes that occur at least once.
      perplexity: exp of the entropy of the codes' shares; from 1 (one code) to `size` (all alike).

    Raises:
      ValueError: an id is negative, or not below `size`.
    """
    counts = count(ids, size)
    return {"usage": float((counts > 0).mean()), "perplexity": float(2 ** entropy(counts))}


def token_statistics(ids: Int[np.ndarray, "N T K"], sizes: Sequence[int], pixels: int) -> dict[str, float]:
    """What N images' tokens say about their tokenizer.

    Each of the K sub-codes is taken by itself, as though the others were not there. Shares, perplexity and Zipf's law
    are means over the sub-codes; entropies and rates are sums over them, and so bounds from above of those of whole
    tokens.

    Args:
      ids: of N images' T positions in the order in which they are generated, sub-code k in [0, V_k).
      sizes: V_1, ..., V_K.
      pixels: of one image: height times width.

    Returns:
      usage, perplexity: as of `codebook_usage`.
      entropy_bits: of a token by its shares, without correction: log2 of the perplexity where K is 1. Too low by about
        (codes used - 1) / (2 N T ln 2).
      conditional_entropy_bits: of a token given the one before it in the order (in raster order the left neighbour, and
        at a row's start the end of the row above): `conditional_entropy`, with its bias. Left out where T is 1.
      unseen_pair_share: the chance that the next pair of neighbours is one never seen, by Good and Turing: the share
        of pairs seen once. Where it is not near 0, the conditional entropy is a bound from below of little worth.
        Left out where T is 1.
      zipf_slope, zipf_r2: of `zipf`; -1 for Zipf's own law, 0 for even shares. Left out where they cannot be fitted.
      bits_per_pixel: what tokens cost without entropy coding, T sum_k log2 V_k / pixels.
      coded_bits_per_pixel: what they cost coded by their shares, T entropy_bits / pixels, without the shares' table.

    Raises:
      ValueError: `sizes` are not K, or an id is outside its codebook.
    """
    if ids.shape[-1] != len(sizes):
        raise ValueError(f"{ids.shape[-1]} sub-codes with {len(sizes)} sizes.")
    positions = ids.shape[1]
    parts = [_of_one(ids[..., k], size) for k, size in enumerate(sizes)]
    found: dict[str, float] = {}
    for name, combine in _COMBINED.items():
        if all(name in part for part in parts):
            found[name] = float(combine([part[name] for part in parts]))
    found["bits_per_pixel"] = float(positions * np.log2(sizes).sum() / pixels)
    found["coded_bits_per_pixel"] = positions * found["entropy_bits"] / pixels
    return found


_COMBINED: dict[str, Callable[[Sequence[float]], float]] = {
    "usage": np.mean,
    "perplexity": np.mean,
    "entropy_bits": np.sum,
    "conditional_entropy_bits": np.sum,
    "unseen_pair_share": np.mean,
    "zipf_slope": np.mean,
    "zipf_r2": np.mean,
}


def _of_one(ids: Int[np.ndarray, "N T"], size: int) -> dict[str, float]:
    counts = count(ids, size)
    found = codebook_usage(ids, size) | {"entropy_bits": entropy(counts)} | zipf(counts)
    if ids.shape[1] > 1:
        pairs = count_pairs(ids, size)
        found["conditional_entropy_bits"] = conditional_entropy(pairs, count(ids[:, :-1], size))
        found["unseen_pair_share"] = float((pairs == 1).sum() / pairs.sum())
    return found


def count(ids: Int[np.ndarray, "..."], size: int) -> Int[np.ndarray, "V"]:
    """How often each of `size` codes occurs; ValueError for an id that is none of them."""
    counts = np.bincount(ids.ravel(), minlength=size)
    if len(counts) > size:
        raise ValueError(f"id {len(counts) - 1} in a codebook of {size}.")
    return counts


def count_pairs(ids: Int[np.ndarray, "N T"], size: int) -> Int[np.ndarray, "P"]:
    """How often each pair of neighbours occurs that occurs at all."""
    pairs = ids[:, :-1].astype(np.int64) * size + ids[:, 1:]
    return np.unique(pairs, return_counts=True)[1]


def entropy(counts: Int[np.ndarray, "V"]) -> float:
    """Of the shares that the counts are of their sum, in bits, without correction of its bias."""
    return float(entr(counts / counts.sum()).sum() / np.log(2))


def conditional_entropy(pairs: Int[np.ndarray, "P"], lefts: Int[np.ndarray, "V"]) -> float:
    """H(right | left) = H(left, right) - H(left) in bits, both as Miller and Madow (1955) correct them.

    That is + (kinds seen - 1) / (2 n ln 2) for n pairs, without which few samples look predictable. It makes up for
    kinds that are rare, not for many that are yet unseen: then the result is too low all the same, since it cannot
    exceed log2 n + 1 / (2 ln 2) - H(left).

    Args:
      pairs: counts of the pairs that occur.
      lefts: counts of their left halves.
    """
    excess = np.count_nonzero(pairs) - np.count_nonzero(lefts)
    return entropy(pairs) - entropy(lefts) + excess / (2 * pairs.sum() * np.log(2))


def zipf(counts: Int[np.ndarray, "V"]) -> dict[str, float]:
    """The line through log frequency over log rank by least squares, every rank alike: {zipf_slope, zipf_r2}.

    On the most frequent codes that together make up 80 % of all tokens (the fewest that reach it), since beyond them
    counts are few and ties many. R^2 is 1 for equal counts, which lie on their line.

    Returns nothing where fewer than three codes make up that much: any two points lie on a line.
    """
    falling = np.sort(counts)[::-1]
    ranks = 1 + int(np.searchsorted(np.cumsum(falling), HEAD * falling.sum()))
    if ranks < 3:
        return {}
    x, y = np.log(np.arange(1, ranks + 1)), np.log(falling[:ranks])
    slope, offset = np.polyfit(x, y, 1)
    scatter = ((y - y.mean()) ** 2).sum()
    even = falling[0] == falling[ranks - 1]
    unexplained = 0.0 if even else ((y - slope * x - offset) ** 2).sum() / scatter
    return {"zipf_slope": float(slope), "zipf_r2": float(1 - unexplained)}
