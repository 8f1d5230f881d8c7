"""How often each code stands at each position in training images of a class: what first drafts may be drawn from.

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
PENDING = 1 << 24  # tokens that are counted at a time


def count_codes(path: Path, batches: Iterable[Mapping[str, np.ndarray]], codes: int) -> None:
    """Write the counts of batches {"ids": (B, N, 1), "label": (B,)} as npz.

    The file holds `keys` int64, (class * N + position) * codes + code, in order, `counts` int64 of each, `images` int64 of each
    class, `positions` and `codes`.
    """
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    pending: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def settle() -> None:
        nonlocal keys, counts
        seen, times = np.unique(np.concatenate([np.zeros(0, np.int64), *pending]), return_counts=True)
        keys, places = np.unique(np.concatenate([keys, seen]), return_inverse=True)
        counts = np.bincount(places, np.concatenate([counts, times]), minlength=len(keys)).astype(np.int64)
        pending.clear()

    positions = 0
    for batch in batches:
        ids, label = np.asarray(batch["ids"])[..., 0].astype(np.int64), np.asarray(batch["label"]).astype(np.int64)
        positions = ids.shape[1]
        pending.append(((label[:, None] * positions + np.arange(positions)) * codes + ids).ravel())
        labels.append(label)
        if sum(map(len, pending)) > PENDING:
            settle()
    settle()
    images = np.bincount(np.concatenate(labels))
    write_npz(path, keys=keys, counts=counts, images=images, positions=positions, codes=codes)


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
        arrays = Arrays(path)
        self.keys, self.counts, self.images = (arrays[name] for name in ("keys", "counts", "images"))
        self.positions, self.codes = int(arrays["positions"]), int(arrays["codes"])

    def log_shares(self, labels: Int[np.ndarray, "B"]) -> Float[np.ndarray, "B N V"]:
        """log of each code's share at each position of images of a class, for each label."""
        size = self.positions * self.codes
        known, places = np.unique(labels, return_inverse=True)
        shares = np.empty((len(known), size), np.float32)
        for row, label in zip(shares, known):
            start, stop = np.searchsorted(self.keys, [label * size, (label + 1) * size])
            images = self.images[label] if label < len(self.images) else 0
            row[:] = PRIOR / self.codes
            row[self.keys[start:stop] - label * size] += self.counts[start:stop]
            row /= images + PRIOR
        return np.log(shares).reshape(-1, self.positions, self.codes)[places]
