"""What reference outputs hold beside models: filtered distributions, rotary tables, resized maps, the choice of phi."""

import math
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from generator.sampling.distribution import Filters, target_distribution
from jobs.parity.comparison import Recomputed
from jobs.parity.reference import Reference
from jobs.parity.subjects import NoRule, channels_first, channels_last
from models.rotary import rotary_table, rotate
from models.tokens import Grid
from tokenizer.quantizers.multi_scale import phi_table, phi_ticks
from tokenizer.resize import area, bicubic

RESIZE = {"area_to": area, "bicubic_from": bicubic}
COLDEST = 1e-5  # temperature below which LlamaGen does not go


class Parts:
    """The arrays of one file that belong to no model.

    Args:
      reference: the folder.
      file: npz whose arrays are looked at first.
    """

    def __init__(self, reference: Reference, file: str):
        self.reference, self.file = reference, file

    def given(self, name: str) -> np.ndarray:
        """An input."""
        return self.reference.array(name, self.file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of an array."""
        return self.given(name).shape

    def distributions(self, name: re.Match[str]) -> Recomputed:
        """The distribution of one vector of logits by each setting; of tied logits top-p may keep other ones."""
        tie = name["tie"] or ""
        logits, settings = jnp.asarray(self.given(f"samp/{tie}logits")), self.given(f"samp/{tie}settings")
        filters = [filters_of(row) for row in settings]
        found = np.exp([target_distribution(logits, None, 1.0, setting) for setting in filters])
        ordered = np.array([bool(tie) and setting.top_p < 1 for setting in filters])
        return Recomputed({"": found}, view=lambda rows: np.where(ordered[:, None], np.sort(rows, axis=-1), rows))

    def rotary(self, name: re.Match[str]) -> Float[Array, "S d2 2"]:
        """The rotary table of a square grid after slots of the condition, which are 0."""
        side, width = int(name["side"]), int(name["width"])
        before = self.shape(name[0])[0] - side**2 if name["before"] is None else int(name["before"])
        return jnp.moveaxis(table(side, width, before), -2, -1)

    def rotated(self, name: re.Match[str]) -> Float[Array, "B S H d"]:
        """Queries or keys turned, on the largest square grid after at least one slot of the condition."""
        x = jnp.asarray(self.given("rope/x"))
        side = math.isqrt(x.shape[1] - 1)
        return rotate(x, table(side, x.shape[-1], x.shape[1] - side**2))

    def resized(self, name: re.Match[str]) -> Float[Array, "B D h w"]:
        """A map brought to another size, that of the array."""
        source = "interp/area_in" if name["way"] == "area_to" else f"interp/bicubic_in_{name['size']}"
        maps, size = jnp.asarray(channels_last(self.given(source))), Grid(*self.shape(name[0])[-2:])
        return channels_first(RESIZE[name["way"]](maps, size))

    def phi(self, name: re.Match[str]) -> Int[np.ndarray, "S"] | Float[np.ndarray, "K"]:
        """Which of the convolutions each scale uses, or where on the way they stand."""
        count = int(name["count"])
        return phi_ticks(count) if name["scales"] is None else phi_table(int(name["scales"]), count)


def filters_of(row: np.ndarray) -> Filters:
    """Of a row (temperature, top_k, top_p) of LlamaGen, where 1 is no top-p, or (top_k, top_p) of VAR, where 0 is none."""
    if len(row) == 3:
        return Filters(temperature=max(float(row[0]), COLDEST), top_k=int(row[1]), top_p=float(row[2]))
    if len(row) == 2:
        return Filters(top_k=int(row[0]), top_p=float(row[1]) or 1.0)
    raise NoRule(f"no rule for settings of {len(row)} numbers")


def table(side: int, head_dim: int, before: int) -> Float[Array, "S 2 d2"]:
    """Of a square grid, row by row, after slots of the condition."""
    cells = np.stack(np.divmod(np.arange(side**2), side), axis=-1)
    return rotary_table(np.concatenate([np.full((before, 2), -1), cells]), head_dim, 0.0)
