import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from models.errors import UserError
from models.modules import describe
from tokenizer import discriminator as module
from tokenizer.discriminator import BatchNorm, PatchDiscriminator, hinge_discriminator_loss, hinge_generator_loss


def build(*, seed=0, **options):
    options = {"image_channels": 3, "channels": 4, "layers": 3, "dtype": jnp.float32} | options
    return PatchDiscriminator(**options, rngs=nnx.Rngs(seed))


@pytest.mark.parametrize(("layers", "side"), [(1, 16), (2, 34), (3, 70)])
def test_one_logit_sees_a_patch_of_the_papers_size(layers, side, monkeypatch):
    monkeypatch.setattr(BatchNorm, "__call__", lambda self, x: x)  # which would let a logit see the whole batch
    discriminator = build(layers=layers, image_channels=1)
    images = jax.random.normal(jax.random.key(0), (1, 128, 128, 1))
    middle = 128 // 2**layers // 2 - 1
    gradient = jax.jit(jax.grad(lambda images: discriminator(images)[0, middle, middle, 0]))(images)
    seen = np.asarray(gradient)[0, :, :, 0] != 0
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    assert (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1) == (side, side)
    assert seen.sum() == side**2


@pytest.mark.parametrize(
    ("layers", "pixels", "patches"),
    [(3, 24, 1), (3, 32, 2), (3, 64, 6), (3, 256, 30), (2, 16, 2), (2, 32, 6), (1, 6, 1), (1, 16, 6), (4, 64, 2)],
)
def test_number_of_patches(layers, pixels, patches):
    images = jax.ShapeDtypeStruct((2, pixels, pixels, 3), jnp.float32)
    logits = jax.eval_shape(build(layers=layers, dtype=jnp.bfloat16), images)
    assert (logits.shape, logits.dtype) == ((2, patches, patches, 1), jnp.float32)


@pytest.mark.parametrize(("layers", "height", "width"), [(3, 16, 16), (3, 23, 64), (3, 64, 23), (2, 8, 8), (1, 5, 5)])
def test_images_that_shrink_to_nothing_are_refused(layers, height, width):
    with pytest.raises(UserError, match="lower discriminator_layers"):
        build(layers=layers)(jnp.zeros((1, height, width, 3)))


def test_a_discriminator_has_a_layer():
    with pytest.raises(UserError, match="discriminator_layers is 0"):
        build(layers=0)


def test_widths_double_up_to_eight_times_and_only_first_and_last_have_a_bias():
    shapes = describe(lambda rngs: build(layers=5, channels=64)).shapes
    kernels = [shapes["convolutions"][layer]["kernel"].shape for layer in range(5)]
    assert shapes["first"]["kernel"].shape == (4, 4, 3, 64)
    assert kernels == [(4, 4, 64, 128), (4, 4, 128, 256), (4, 4, 256, 512), (4, 4, 512, 512), (4, 4, 512, 512)]
    assert shapes["last"]["kernel"].shape == (4, 4, 512, 1)
    assert shapes["first"]["bias"].shape == (64,)
    assert shapes["last"]["bias"].shape == (1,)
    assert all("bias" not in convolution for convolution in shapes["convolutions"].values())


def test_initial_parameters():
    params = jax.jit(describe(lambda rngs: PatchDiscriminator(image_channels=3, channels=32, dtype=jnp.float32,
                                                               rngs=rngs)).init)(jax.random.key(0))  # fmt: skip
    kernel, scale = params["convolutions"][2]["kernel"], params["norms"][2]["scale"]  # 524288 and 256 numbers
    np.testing.assert_allclose([kernel.mean(), kernel.std()], [0, 0.02], atol=2e-4)
    np.testing.assert_allclose([scale.mean(), scale.std()], [1, 0.02], atol=5e-3)
    assert not any(bias.any() for bias in (params["first"]["bias"], params["last"]["bias"], params["norms"][2]["bias"]))


def test_every_parameter_names_an_axis_for_each_dimension_and_nothing_else_is_state():
    description = describe(lambda rngs: build())
    lengths = jax.tree.map(lambda shape, axes: len(shape.shape) == len(axes), description.shapes, description.axes)
    assert all(jax.tree.leaves(lengths))
    assert not nnx.state(build(), nnx.Not(nnx.Param))


def test_normalisation_is_over_batch_and_space():
    norm = BatchNorm(2, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = jnp.array([2.0, 3.0]), jnp.array([-1.0, 5.0])
    x = np.random.default_rng(0).normal(4, 7, (3, 5, 6, 2)).astype(np.float32)
    rows = x.reshape(-1, 2).astype(np.float64)
    expected = (rows - rows.mean(0)) / np.sqrt(((rows - rows.mean(0)) ** 2).mean(0) + 1e-5) * [2, 3] + [-1, 5]
    np.testing.assert_allclose(norm(jnp.asarray(x)).reshape(-1, 2), expected, atol=1e-5)
    y = norm(jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.float32


def test_the_first_convolution_is_not_normalised_and_the_others_are(monkeypatch):
    called = []
    normalise = BatchNorm.__call__
    monkeypatch.setattr(BatchNorm, "__call__", lambda self, x: called.append(x.shape) or normalise(self, x))
    build()(jnp.zeros((2, 64, 64, 3)))
    assert called == [(2, 16, 16, 8), (2, 8, 8, 16), (2, 7, 7, 32)]


def test_images_of_a_batch_are_seen_in_the_light_of_each_other():
    images = jax.random.normal(jax.random.key(1), (3, 32, 32, 3))
    discriminator = jax.jit(build(channels=8).__call__)
    logits = discriminator(images)
    np.testing.assert_allclose(discriminator(images[::-1]), logits[::-1], atol=1e-5)
    assert jnp.abs(discriminator(images.at[1].multiply(5))[0] - logits[0]).max() > 1e-3


def test_leaky_relu_keeps_a_fifth():
    np.testing.assert_allclose(module.leaky_relu(jnp.array([[[[-5.0, 0.0, 2.0]]]])), [[[[-1.0, 0.0, 2.0]]]])


def test_losses_by_hand():
    real = jnp.array([3.0, 1.0, 0.5, -2.0]).reshape(1, 2, 2, 1)  # 1 - real: -2, 0, 0.5, 3
    fake = jnp.array([-3.0, -0.5, 0.0, 1.5]).reshape(1, 2, 2, 1)  # 1 + fake: -2, 0.5, 1, 2.5
    np.testing.assert_allclose(hinge_discriminator_loss(real, fake), 0.5 * (3.5 / 4 + 4 / 4))
    np.testing.assert_allclose(hinge_generator_loss(fake), 0.5)
    assert hinge_discriminator_loss(jnp.full((1, 1, 1, 1), 9.0), jnp.full((1, 1, 1, 1), -9.0)) == 0


def test_it_learns_to_tell_smooth_from_noisy_images():
    noisy = jax.random.normal(jax.random.key(2), (4, 16, 16, 1))
    smooth = jnp.broadcast_to(noisy.mean((1, 2), keepdims=True) + jnp.linspace(-1, 1, 16)[:, None], noisy.shape)
    description = describe(lambda rngs: PatchDiscriminator(image_channels=1, channels=8, layers=1, dtype=jnp.float32,
                                                           rngs=rngs))  # fmt: skip

    @jax.jit
    def step(params):
        def loss(params):
            discriminator = description.merge(params)
            return hinge_discriminator_loss(discriminator(smooth), discriminator(noisy))

        value, gradient = jax.value_and_grad(loss)(params)
        return value, jax.tree.map(lambda leaf, slope: leaf - 0.1 * slope, params, gradient)

    params = description.init(jax.random.key(3))
    losses = []
    for _ in range(60):
        value, params = step(params)
        losses.append(float(value))
    assert losses[-1] < 0.2 * losses[0], losses
