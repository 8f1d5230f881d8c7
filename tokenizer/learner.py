"""How the training loop sees a tokenizer: an autoencoder, and, where asked for, a discriminator against it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.modules import Description, Params, describe
from tokenizer.discriminator import PatchDiscriminator, hinge_discriminator_loss, hinge_generator_loss
from tokenizer.perceptual import load_lpips, lpips
from tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Losses:
    """Weights of the reconstruction losses; what is 0 is not computed.

    Attributes:
      l1: of |x - y|.
      l2: of (x - y)^2.
      quantizer: of the quantizer's own losses.
      lpips: of the perceptual distance (arXiv:1801.03924).
      lpips_weights: npz with its network's weights; without a path the distance is left out.
      adversarial: of the hinge PatchGAN; 0 trains without a discriminator.
      adversarial_start: step from which it counts.
      discriminator_channels: of its first layer.
      discriminator_layers: after the first; all but the last halve the size.
    """

    l1: float = 0.0
    l2: float = 1.0
    quantizer: float = 1.0
    lpips: float = 1.0
    lpips_weights: str = ""
    adversarial: float = 0.5
    adversarial_start: int = 20_000
    discriminator_channels: int = 64
    discriminator_layers: int = 3


class TokenizerLearner:
    """Reconstruction of images; a batch is {"image": float32 (B, H, W, C) in [-1, 1], "label": (B,)}.

    Players: "autoencoder", and "discriminator" where `losses.adversarial` > 0. Both losses are taken at the same
    parameters, so that the autoencoder's forward pass, written twice, is compiled once.
    """

    stage = "tokenizer"
    unit = "reconstruction_loss"  # the metric that curves and progress bars show
    tokens = 0  # the loss is of pixels

    def __init__(self, description: Description[Tokenizer], losses: Losses, image_channels: int):
        self.description, self.losses = description, losses
        self.lpips_weights = load_lpips(losses.lpips_weights) if losses.lpips and losses.lpips_weights else None
        self.players = {"autoencoder": self.autoencoder_loss}
        self.axes = {"autoencoder": description.axes}
        quantizer = description.merge(description.shapes).quantizer
        self.frozen: Params = {}  # parameters that losses see and nobody trains
        self.statistics_axes = jax.tree.map(lambda leaf: ("codes", None)[: leaf.ndim], quantizer.init_statistics())
        if losses.adversarial:
            self.discriminator = describe(
                lambda rngs: PatchDiscriminator(
                    image_channels=image_channels, channels=losses.discriminator_channels,
                    layers=losses.discriminator_layers, dtype=jnp.float32, rngs=rngs,
                )
            )  # fmt: skip
            self.players["discriminator"] = self.discriminator_loss
            self.axes["discriminator"] = self.discriminator.axes

    def init(self, key: jax.Array) -> tuple[Params, Params]:
        """Parameters by player, and the quantizer's statistics."""
        params = {"autoencoder": self.description.init(key)}
        if self.losses.adversarial:
            params["discriminator"] = self.discriminator.init(jax.random.fold_in(key, 1))
        return params, self.description.merge(params["autoencoder"]).quantizer.init_statistics()

    def autoencoder_loss(self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        """(loss, (statistics, metrics))."""
        losses, images = self.losses, batch["image"]
        tokenizer = self.description.merge(params["autoencoder"])
        latents = tokenizer.latents(images)
        codes, ids, quantizer_losses = tokenizer.quantizer.quantize(latents, key=jax.random.fold_in(key, 1))
        reconstructions = tokenizer.images(codes)
        error = reconstructions - images
        reconstruction = losses.l1 * jnp.abs(error).mean() + losses.l2 * (error**2).mean()
        total = reconstruction + losses.quantizer * sum(quantizer_losses.values())
        metrics = {"reconstruction_loss": reconstruction, **quantizer_losses}
        if self.lpips_weights is not None:
            metrics["lpips"] = lpips(self.lpips_weights, reconstructions, images).mean()
            total += losses.lpips * metrics["lpips"]
        if losses.adversarial:
            fooled = hinge_generator_loss(self.discriminator.merge(params["discriminator"])(reconstructions))
            metrics["generator_loss"] = fooled
            total += jnp.where(step >= losses.adversarial_start, losses.adversarial, 0.0) * fooled
        statistics = tokenizer.quantizer.update_statistics(statistics, jax.lax.stop_gradient(latents), ids, key)
        usage = statistics["usage"] / statistics["usage"].sum()
        metrics["codebook_perplexity"] = jnp.exp(-jnp.sum(usage * jnp.log(usage + 1e-20)))
        metrics["codebook_usage"] = jnp.mean(usage * usage.size > tokenizer.quantizer.revive_below)
        return total, (statistics, {"loss": total, **metrics})

    def discriminator_loss(
        self, params: Params, statistics: Params, batch: Any, key: jax.Array, step: jax.Array
    ) -> Any:
        """Hinge loss on real images against their reconstructions; 0 before `adversarial_start`."""
        tokenizer = self.description.merge(params["autoencoder"])
        codes = tokenizer.quantizer.quantize(tokenizer.latents(batch["image"]), key=jax.random.fold_in(key, 1))[0]
        fakes = jax.lax.stop_gradient(tokenizer.images(codes))
        discriminator = self.discriminator.merge(params["discriminator"])
        loss = hinge_discriminator_loss(discriminator(batch["image"]), discriminator(fakes))
        loss = jnp.where(step >= self.losses.adversarial_start, loss, 0.0)
        return loss, (statistics, {"discriminator_loss": loss})

    def heldout(self, params: Params, batch: Any) -> dict[str, jax.Array]:
        """Metrics of the averaged tokenizer on held-out images: `loss` as in training, `psnr` in dB."""
        tokenizer, images = self.description.merge(params), batch["image"]
        error = tokenizer.decode(tokenizer.encode(images)) - images
        # Images span 2, hence the 4.
        return {
            "loss": self.losses.l1 * jnp.abs(error).mean() + self.losses.l2 * (error**2).mean(),
            "psnr": jnp.mean(10 * jnp.log10(4 / jnp.mean(error**2, axis=(1, 2, 3)))),
        }

    def after_update(self, params: Params, statistics: Params) -> tuple[Params, Params]:
        """Revive dead codes, once a step."""
        autoencoder = params["autoencoder"]
        quantizer = self.description.merge(autoencoder).quantizer
        codebook, statistics = quantizer.revive(autoencoder["quantizer"], statistics)
        return {**params, "autoencoder": {**autoencoder, "quantizer": codebook}}, statistics
