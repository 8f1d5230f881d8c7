"""Small classifiers, fitted on real images, that judge whether a sample shows the class that it was asked for."""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from sklearn.svm import SVC

Predict = Callable[[np.ndarray], np.ndarray]


def svc(
    images: UInt8[np.ndarray, "N H W C"], labels: Int[np.ndarray, "N"], *, seed: int, penalty: float = 10
) -> Predict:
    """A support-vector machine with an RBF kernel: for small grey images, a few thousand of them at most.

    The kernel is exp(-||x - y||^2 / (D var(x))), D pixels an image: its width follows the data, not the resolution.
    Both choices are from 5-fold cross-validation within the training part of the digits at 16x16: 99.3 % for every
    penalty from 10 to 100 and every kernel from 0.9 to 1.2 times as narrow.

    Args:
      images: training images.
      labels: their classes, from 0.
      seed: not used, nothing is random here; it is the interface of `CLASSIFIERS`.
      penalty: C of the soft margin.

    Returns:
      uint8 images (M, H, W, C) -> int labels (M,).
    """
    machine = SVC(C=penalty, gamma="scale").fit(_flat(images), labels)
    return lambda images: machine.predict(_flat(images))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


class ConvNet(nnx.Module):
    """Three times a 3x3 convolution and the maximum over 2x2, of width, 2 width, 4 width; then one linear map."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int, rngs: nnx.Rngs):
        height, breadth, channels = shape
        widths = [channels, width, 2 * width, 4 * width]
        start = nnx.initializers.he_uniform()
        self.convolutions = nnx.List(nnx.Conv(n, m, (3, 3), kernel_init=start, rngs=rngs) for n, m in pairwise(widths))
        self.classify = nnx.Linear((height // 8) * (breadth // 8) * widths[-1], classes, kernel_init=start, rngs=rngs)

    def __call__(self, images: UInt8[Array, "B H W C"]) -> Float[Array, "B V"]:
        """Logits of every class."""
        x = images / 127.5 - 1
        for convolution in self.convolutions:
            x = jax.nn.relu(_pool(convolution(x)))
        return self.classify(x.reshape(len(x), -1))


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


def convnet(
    images: UInt8[np.ndarray, "N H W C"],
    labels: Int[np.ndarray, "N"],
    *,
    seed: int,
    width: int = 32,
    epochs: int = 5,
    batch: int = 128,
    learning_rate: float = 3e-3,
    shift: int = 1,
    flip: bool = False,
) -> Predict:
    """A convolutional network, AdamW, one cycle of the learning rate; the same weights for the same seed.

    With flips, 91 % of Fashion-MNIST's test images, and with shifts of 2 as well, 76 % of CIFAR-10's, after 3 to 4
    minutes of one CPU core.

    Args:
      images: training images, at least 8x8.
      labels: their classes, from 0.
      seed: of the weights, the order and the augmentation.
      width: channels of the first convolution.
      epochs: passes over the images, each in a new order; what does not fill a batch is left out of its pass.
      batch: images a step.
      learning_rate: its highest value.
      shift: augmentation in pixels, see `augment`.
      flip: whether a mirrored image keeps its class (clothes and photographs do, digits do not).

    Returns:
      uint8 images (M, H, W, C) -> int labels (M,).
    """
    batch = min(batch, len(images))
    whole = len(images) // batch * batch
    order = np.random.default_rng(seed)
    batches = np.concatenate([order.permutation(len(images))[:whole] for _ in range(epochs)]).reshape(-1, batch)

    network = ConvNet(images.shape[1:], int(labels.max()) + 1, width=width, rngs=nnx.Rngs(seed))
    definition, params = nnx.split(network)
    optimizer = optax.adamw(optax.cosine_onecycle_schedule(len(batches), learning_rate), weight_decay=0.01)

    @jax.jit
    def step(params, moments, images, labels, rows, key):
        def loss(params):
            logits = nnx.merge(definition, params)(augment(images[rows], key, shift=shift, flip=flip))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()

        updates, moments = optimizer.update(jax.grad(loss)(params), moments, params)
        return optax.apply_updates(params, updates), moments

    @jax.jit
    def classes(params, images):
        return nnx.merge(definition, params)(images).argmax(-1)

    # A Python loop: inside lax.scan, XLA runs convolutions on a CPU without its fast kernels, 30 times slower.
    moments, key = optimizer.init(params), jax.random.key(seed)
    data = jnp.asarray(images), jnp.asarray(labels, jnp.int32)
    for n, rows in enumerate(batches):
        params, moments = step(params, moments, *data, rows, jax.random.fold_in(key, n))

    def predict(images: np.ndarray) -> np.ndarray:
        parts = range(0, len(images), 1000)
        return np.concatenate([np.asarray(classes(params, images[n : n + 1000])) for n in parts])

    return predict


CLASSIFIERS: dict[str, Callable[..., Predict]] = {"svc": svc, "convnet": convnet}
