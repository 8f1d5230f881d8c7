"""How often codes stand at a position in training images of a class, and beside one another: what drafts are drawn from.

Only what was seen is kept (most codes are nowhere near most positions), so that the file of a large codebook stays small.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from models.errors import UserError
from models.files import Arrays, write_npz

FREQUENCIES = "frequencies.npz"  # in W/tokens
PRIOR = 1.0  # images of uniform codes that every class is thought to have besides
PAIRS_PRIOR = 200.0  # neighbours that every code is thought to have besides, as often as codes are
MOST_CODES = 4096  # whose pairs are held in memory
PENDING = 1 << 24  # tokens that are counted at a time


class Counts:
    """How often integers came, those that did."""

    def __init__(self) -> None:
        self.keys, self.counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self.pending: list[np.ndarray] = []

    def add(self, keys: np.ndarray) -> None:
        """Count integers."""
        self.pending.append(keys.ravel())
        if sum(map(len, self.pending)) > PENDING:
            self.settle()

    def settle(self) -> None:
        """Sum up."""
        seen, times = np.unique(np.concatenate([np.zeros(0, np.int64), *self.pending]), return_counts=True)
        keys, places = np.unique(np.concatenate([self.keys, seen]), return_inverse=True)
        self.counts = np.bincount(places, np.concatenate([self.counts, times]), minlength=len(keys)).astype(np.int64)
        self.keys = keys
        self.pending.clear()


def count_codes(path: Path, batches: Iterable[Mapping[str, np.ndarray]], codes: int, width: int) -> None:
    """Write the counts of batches {"ids": (B, N, 1), "label": (B,)} as npz; N tokens are rows of `width`.

    The file holds `keys` int64, (class * N + position) * codes + code, in order, and `counts` int64 of each; the same of pairs,
    `left_keys` and `above_keys`, neighbour * codes + code; `images` int64 of each class, `positions` and `codes`.
    """
    found = {"": Counts(), "left_": Counts(), "above_": Counts()}
    labels: list[np.ndarray] = []
    positions = 0
    for batch in batches:
        ids, label = np.asarray(batch["ids"])[..., 0].astype(np.int64), np.asarray(batch["label"]).astype(np.int64)
        positions, grid = ids.shape[1], ids.reshape(len(ids), -1, width)
        found[""].add((label[:, None] * positions + np.arange(positions)) * codes + ids)
        found["left_"].add(grid[:, :, :-1] * codes + grid[:, :, 1:])
        found["above_"].add(grid[:, :-1] * codes + grid[:, 1:])
        labels.append(label)
    arrays: dict[str, np.ndarray] = {}
    for name, counts in found.items():
        counts.settle()
        arrays |= {f"{name}keys": counts.keys, f"{name}counts": counts.counts}
    images = np.bincount(np.concatenate(labels))
    write_npz(path, **arrays, images=images, positions=np.array(positions), codes=np.array(codes))


class Frequencies:
    """What `count_codes` wrote.

    Raises:
      UserError: the file is not there, or damaged.
    """

    def __init__(self, path: Path):
        if not path.exists():
            raise UserError(
                f"there is no {path}, which sampler.first_drafts=frequency draws from; --job=extract makes it, or take "
                "sampler.first_drafts=uniform."
            )
        self.arrays = arrays = Arrays(path)
        self.keys, self.counts, self.images = (arrays[name] for name in ("keys", "counts", "images"))
        self.positions, self.codes = int(arrays["positions"]), int(arrays["codes"])

    def log_shares(
        self, labels: Int[np.ndarray, "B"], guidance: Float[np.ndarray, "N"] | float = 1.0
    ) -> Float[np.ndarray, "B N V"]:
        """log of each code's share at each position of images of a class, for each label.

        Args:
          labels: the classes.
          guidance: scale of classifier-free guidance at each position, which moves a class away from all images. The shares
            move half as far, as what was drawn before has brought some of it already. (Measured: fewer calls than of shares
            that do not move, and than of those that move all the way.)
        """
        size = self.positions * self.codes
        known, places = np.unique(labels, return_inverse=True)
        shares = np.empty((len(known), size), np.float32)
        for row, label in zip(shares, known):
            start, stop = np.searchsorted(self.keys, [label * size, (label + 1) * size])
            images = self.images[label] if label < len(self.images) else 0
            row[:] = PRIOR / self.codes
            row[self.keys[start:stop] - label * size] += self.counts[start:stop]
            row /= images + PRIOR
        log_shares = np.log(shares).reshape(-1, self.positions, self.codes)
        every = np.bincount(self.keys % size, self.counts, minlength=size) + PRIOR / self.codes
        every = np.log(every / (self.images.sum() + PRIOR)).reshape(self.positions, self.codes)
        log_shares += (np.asarray(guidance).reshape(-1, 1) - 1) / 2 * (log_shares - every)
        log_shares -= np.log(np.exp(log_shares).sum(axis=-1, keepdims=True))
        return log_shares[places]

    def log_pairs(self, side: str) -> Float[np.ndarray, "V V"]:
        """log of how many times as often as anywhere a code stands beside another: [its neighbour, the code].

        Args:
          side: "left" or "above", where the neighbour is.

        Raises:
          UserError: there are too many codes.
        """
        if self.codes > MOST_CODES:
            raise UserError(f"sampler.first_drafts=neighbours is for at most {MOST_CODES} codes, not {self.codes}; take "
                            "sampler.first_drafts=frequency.")  # fmt: skip
        share = np.bincount(self.keys % self.codes, self.counts, minlength=self.codes) + 1.0
        share /= share.sum()
        pairs = np.zeros((self.codes, self.codes))
        pairs.flat[self.arrays[f"{side}_keys"]] = self.arrays[f"{side}_counts"]
        shares = (pairs + PAIRS_PRIOR * share) / (pairs.sum(axis=1, keepdims=True) + PAIRS_PRIOR)
        return np.log(shares / share).astype(np.float32)
