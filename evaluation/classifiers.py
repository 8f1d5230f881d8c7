"""A small classifier, fitted on real images: it judges whether a sample shows the class that it was asked for."""

import dataclasses
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from models.convolution import convolution
from models.layers import Linear
from models.modules import Description, Params, describe


class ConvNet(nnx.Module):
    """Three times a 3x3 convolution and the maximum over 2x2, of width, 2 width, 4 width; then one linear map."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int, rngs: nnx.Rngs):
        height, breadth, channels = shape
        widths = [channels, width, 2 * width, 4 * width]
        self.convolutions = nnx.List(convolution(n, m, 3, dtype=jnp.float32, rngs=rngs) for n, m in pairwise(widths))
        self.classify = Linear(
            (height // 8) * (breadth // 8) * widths[-1], classes, ("embed", "vocab"), bias=True,
            init=nnx.initializers.lecun_normal(), dtype=jnp.float32, rngs=rngs,
        )  # fmt: skip

    def __call__(self, images: UInt8[Array, "B H W C"]) -> tuple[Float[Array, "B V"], Float[Array, "B D"]]:
        """Logits of every class, and the last convolution's output averaged over its positions, D = 4 width."""
        x = images / 127.5 - 1
        for layer in self.convolutions:
            x = jax.nn.relu(_pool(layer(x)))
        return self.classify(x.reshape(len(x), -1)), x.mean((1, 2))


def _pool(x: Float[Array, "B H W D"]) -> Float[Array, "B H//2 W//2 D"]:
    """Maxima over 2x2; a reshape, because the gradient of XLA's reduce_window takes longer than the convolutions."""
    B, H, W, D = x.shape
    return x[:, : H // 2 * 2, : W // 2 * 2].reshape(B, H // 2, 2, W // 2, 2, D).max((2, 4))


def augment(images: UInt8[Array, "B H W C"], key: Array, *, shift: int, flip: bool) -> UInt8[Array, "B H W C"]:
    """Move each image by up to `shift` pixels (its edge is repeated); mirror every other one if `flip`."""
    key_shift, key_flip = jax.random.split(key)
    padded = jnp.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)), mode="edge")
    corners = jax.random.randint(key_shift, (len(images), 2), 0, 2 * shift + 1)
    images = jax.vmap(lambda image, yx: jax.lax.dynamic_slice(image, (*yx, 0), images.shape[1:]))(padded, corners)
    mirrored = flip & jax.random.bernoulli(key_flip, shape=(len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


@dataclasses.dataclass(frozen=True, eq=False)  # jit knows it by its identity
class Classifier:
    """A fitted network.

    Attributes:
      network: its description.
      params: its parameters.
    """

    network: Description[ConvNet]
    params: Params

    def __call__(self, params: Params, images: UInt8[Array, "B H W C"]) -> dict[str, Array]:
        """`class` int32 (B,), the likeliest, and `classifier` float32 (B, D), what a Frechet distance is taken of.

        Pure, for jit: `params` are `self.params`, passed so that they are no constants of a program.
        """
        logits, features = self.network.merge(params)(images)
        return {"class": logits.argmax(-1), "classifier": features}


def describe_convnet(shape: tuple[int, int, int], classes: int, *, width: int = 32) -> Description[ConvNet]:
    """The network for images of this shape, without its arrays."""
    return describe(lambda rngs: ConvNet(shape, classes, width=width, rngs=rngs))


def fit(
    images: UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, "N"],
    *,
    classes: int,
    seed: int,
    width: int = 32,
    epochs: int = 5,
    batch: int = 128,
    learning_rate: float = 3e-3,
    shift: int = 1,
    flip: bool = False,
) -> Classifier:
    """Fit the network: AdamW, one cycle of the learning rate; the same weights for the same seed.

    With 30 epochs 99.4 % of the digits' held-out images; with 5 and flips, 91 % of Fashion-MNIST's test images, and with
    shifts of 2 as well, 76 % of CIFAR-10's, after 3 to 4 minutes of one CPU core.

    Args:
      images: training images, at least 8x8.
      labels: their classes, from 0.
      classes: how many there are.
      seed: of the weights, the order and the augmentation.
      width: channels of the first convolution.
      epochs: passes over the images, each in a new order; what does not fill a batch is left out of its pass.
      batch: images a step.
      learning_rate: its highest value.
      shift: augmentation in pixels, see `augment`.
      flip: whether a mirrored image keeps its class (clothes and photographs do, digits do not).
    """
    batch = min(batch, len(images))
    whole = len(images) // batch * batch
    order = np.random.default_rng(seed)
    batches = np.concatenate([order.permutation(len(images))[:whole] for _ in range(epochs)]).reshape(-1, batch)

    network = describe_convnet(images.shape[1:], classes, width=width)
    params = network.init(jax.random.key(seed))
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(len(batches), learning_rate), weight_decay=0.01)

    @jax.jit
    def step(params, moments, images, labels, rows, key):
        def loss(params):
            logits, _ = network.merge(params)(augment(images[rows], key, shift=shift, flip=flip))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    # A Python loop: inside lax.scan, XLA runs convolutions on a CPU without its fast kernels, 30 times slower.
    moments, key = optimizer.init(params), jax.random.key(seed)
    data = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    for n, rows in enumerate(batches):
        params, moments = step(params, moments, *data, rows, jax.random.fold_in(key, n))
    return Classifier(network, params)
