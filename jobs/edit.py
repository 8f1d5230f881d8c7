"""Paint a part of an image anew: its other tokens are given to the sampler, time after time, as teacher forcing does.

In- and outpainting differ in the mask alone; the class that is asked for decides what is painted.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, UInt8
from ml_collections import ConfigDict

from generator.sampling.distribution import certain
from input_pipeline.sources import CorruptImage, decode
from input_pipeline.transforms import center_crop, to_channels, to_float
from models.errors import UserError
from models.tokens import Grid, Scales
from tokenizer.resize import area_matrix
from tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Edit:
    """An image and where it is to be painted anew.

    Attributes:
      image: uint8 (H, W, C), at the model's resolution.
      new: bool (H, W).
    """

    image: UInt8[np.ndarray, "H W C"]
    new: Bool[np.ndarray, "H W"]


def read_edit(config: ConfigDict) -> Edit | None:
    """What `sample.edit` and `sample.mask` name, cut and resized as the model's images are; None where nothing is named.

    Raises:
      UserError: one of the two is missing or no image, their sizes differ, or nothing is to be painted.
    """
    sample, side = config.sample, config.data.resolution
    if not sample.edit and not sample.mask:
        return None
    if not sample.edit or not sample.mask:
        raise UserError(
            "an edit needs both --edit=IMAGE and --mask=IMAGE, which is white where it is to be painted anew."
        )
    image, mask = to_channels(read_image(sample.edit), config.data.channels), to_channels(read_image(sample.mask), 1)
    if image.shape[:2] != mask.shape[:2]:
        sizes = ["x".join(map(str, pixels.shape[1::-1])) for pixels in (mask, image)]
        raise UserError(
            f"{sample.mask} has {sizes[0]} pixels, {sample.edit} {sizes[1]}; the mask must be of the image's size."
        )
    new = center_crop(mask, side)[..., 0] > 127
    if not new.any():
        raise UserError(f"{sample.mask} is nowhere white (brighter than 127); white is what is painted anew.")
    return Edit(center_crop(image, side), new)


def read_image(path: str) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a file, grey or RGB."""
    if not Path(path).exists():
        raise UserError(f"there is no image {path}; check the path.")
    try:
        return decode(path, path)
    except CorruptImage:
        raise UserError(f"{path} is no readable image.") from None


def kept_cells(new: Bool[np.ndarray, "H W"], grid: Grid) -> Bool[np.ndarray, "h w"]:
    """The cells of a grid that touch nothing that is painted anew."""
    touched = area_matrix(new.shape[0], grid.height) @ new.astype(np.float32) @ area_matrix(new.shape[1], grid.width).T
    return touched == 0


def reconstruction(edit: Edit, tokenizer: Tokenizer) -> jax.Array:
    """What the tokenizer makes of the image: float32 (1, H, W, C) in [-1, 1]."""
    return tokenizer.decode(tokenizer.encode(jnp.asarray(to_float(edit.image))[None]))


def blended(edit: Edit, tokenizer: Tokenizer, painted: jax.Array) -> jax.Array:
    """The painted images (B, H, W, C) where the edit is new, and the image's reconstruction everywhere else."""
    return jnp.where(edit.new[..., None], painted, reconstruction(edit, tokenizer))


def keep_tokens(edit: Edit, tokenizer: Tokenizer) -> Callable[[Any, jax.Array, Any], jax.Array]:
    """For tokens on one grid, one a time: the image's own where it is kept."""
    ids = tokenizer.encode(jnp.asarray(to_float(edit.image))[None]).ids[0, :, 0]
    kept = jnp.asarray(kept_cells(edit.new, tokenizer.grid).reshape(-1))

    def revise(state: Any, log_p: jax.Array, time: Any) -> jax.Array:
        return jnp.where(kept[time][..., None], certain(ids[time], log_p.shape[-1]), log_p)

    return revise


def keep_scales(edit: Edit, tokenizer: Tokenizer) -> Callable[[Any, jax.Array, int], jax.Array]:
    """For tokens of several scales: where a cell is kept, the code of what the sum so far still lacks of the image.

    It is quantized anew at every scale, because what is painted reaches into what is kept when coarse codes are enlarged.
    """
    quantizer, shape = tokenizer.quantizer, tokenizer.spec.shape
    assert isinstance(shape, Scales)
    latents = tokenizer.latents(jnp.asarray(to_float(edit.image))[None]).astype(jnp.float32)

    def revise(state: jax.Array, log_p: jax.Array, time: int) -> jax.Array:
        left = quantizer.residual(jnp.broadcast_to(latents, state.shape), state, time)
        own = quantizer.inner.quantize(left)[1].reshape(log_p.shape[:2])
        return jnp.where(kept_cells(edit.new, shape.grids[time]).reshape(-1, 1), certain(own, log_p.shape[-1]), log_p)

    return revise


# What feeds a layout -> how known tokens are kept in it.
KEEP: dict[str, Callable[[Edit, Tokenizer], Callable[..., jax.Array]]] = {
    "tokens": keep_tokens,
    "features": keep_scales,
}
