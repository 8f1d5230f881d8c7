import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from tokenizer.perceptual import NETWORKS, SHIFT, load_lpips, lpips, network_of, shapes, smallest, unit

# Written out once more, so that the tables in perceptual.py are not their own judges: (side, inputs, outputs).
VGG16 = {
    "conv1_1": (3, 3, 64), "conv1_2": (3, 64, 64), "conv2_1": (3, 64, 128), "conv2_2": (3, 128, 128),
    "conv3_1": (3, 128, 256), "conv3_2": (3, 256, 256), "conv3_3": (3, 256, 256),
    "conv4_1": (3, 256, 512), "conv4_2": (3, 512, 512), "conv4_3": (3, 512, 512),
    "conv5_1": (3, 512, 512), "conv5_2": (3, 512, 512), "conv5_3": (3, 512, 512),
}  # fmt: skip
ALEXNET = {
    "conv1_1": (11, 3, 64), "conv2_1": (5, 64, 192), "conv3_1": (3, 192, 384), "conv4_1": (3, 384, 256),
    "conv5_1": (3, 256, 256),
}  # fmt: skip
CONVOLUTIONS = {"vgg": VGG16, "alex": ALEXNET}
LIN = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def random_arrays(network):
    """Random weights with which the features neither vanish nor grow, and lin weights that are no less than 0."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, (side, inputs, outputs) in CONVOLUTIONS[network].items():
        scale = np.float32(np.sqrt(2 / (side**2 * inputs)))
        arrays[f"{name}/kernel"] = scale * rng.standard_normal((side, side, inputs, outputs), np.float32)
        arrays[f"{name}/bias"] = np.float32(0.1) * rng.standard_normal(outputs, np.float32)
    return arrays | {f"lin{i}": rng.random(channels, np.float32) for i, channels in enumerate(LIN[network], start=1)}


@pytest.fixture(scope="module")
def all_arrays():
    return {network: random_arrays(network) for network in NETWORKS}


@pytest.fixture(scope="module")
def arrays(all_arrays):
    return all_arrays["vgg"]


@pytest.fixture(scope="module")
def weights(arrays):
    return {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}


def random_images(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1, maxval=1)


# Compiled once for all tests, most of which take two images of 16 pixels.
distance = jax.jit(lpips)
distance_and_gradients = jax.jit(jax.value_and_grad(lambda *inputs: lpips(*inputs).sum(), argnums=(1, 2)))


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_table_of_arrays(network, all_arrays):
    assert {name: array.shape for name, array in all_arrays[network].items()} == shapes(network)
    assert network_of(all_arrays[network]) == network


def test_a_distance(weights):
    x, y = random_images(0, 2, 16, 16, 3), random_images(1, 2, 16, 16, 3)
    there, back = distance(weights, x, y), distance(weights, y, x)
    assert (there.shape, there.dtype) == ((2,), jnp.float32)
    assert (there > 1e-2).all()
    np.testing.assert_allclose(there, back, rtol=1e-5)
    np.testing.assert_allclose(distance(weights, x, x), np.zeros(2), atol=1e-10)


def test_each_image_has_its_own_distance(weights):
    x, y = random_images(2, 2, 16, 16, 3), random_images(3, 2, 16, 16, 3)
    expected = distance(weights, x, y)
    np.testing.assert_allclose(distance(weights, x[::-1], y[::-1]), expected[::-1], rtol=1e-5)
    np.testing.assert_allclose(distance(weights, x.at[1].set(y[1]), y), expected.at[1].set(0), rtol=1e-5, atol=1e-10)


def test_grows_with_the_disturbance(weights):
    x, noise = random_images(4, 2, 16, 16, 3), random_images(5, 2, 16, 16, 3)
    distances = jnp.stack([distance(weights, x + scale * noise, x) for scale in (0.01, 0.1, 1.0)])
    assert (jnp.diff(distances, axis=0) > 0).all()


def test_grey_is_rgb_of_equal_channels(weights):
    x, y = random_images(6, 2, 16, 16, 1), random_images(7, 2, 16, 16, 1)
    repeated = distance(weights, x.repeat(3, axis=-1), y.repeat(3, axis=-1))
    np.testing.assert_allclose(distance(weights, x, y), repeated, rtol=1e-5)


@pytest.mark.parametrize("side", [(8, 8), (15, 32), (32, 15)])
def test_images_without_a_pixel_at_the_last_stage_are_refused(weights, side):
    with pytest.raises(UserError, match=r"too small for LPIPS over 'vgg', which needs 16"):
        lpips(weights, jnp.zeros((1, *side, 3)), jnp.zeros((1, *side, 3)))


def test_alexnet_needs_31_pixels(all_arrays):
    weights = {name: jnp.asarray(array) for name, array in all_arrays["alex"].items()}
    assert smallest("alex") == 31
    assert jnp.isfinite(lpips(weights, random_images(0, 1, 31, 31, 3), random_images(1, 1, 31, 31, 3))).all()
    with pytest.raises(UserError, match=r"'alex', which needs 31"):
        lpips(weights, jnp.zeros((1, 40, 30, 3)), jnp.zeros((1, 40, 30, 3)))


def test_gradients_are_finite_where_all_features_are_zero(weights):
    """A constant image equal to the shift, without biases: 0 at every stage, where a plain root's gradient is none."""
    unbiased = {name: jnp.zeros_like(leaf) if "bias" in name else leaf for name, leaf in weights.items()}
    zero = jnp.broadcast_to(jnp.array(SHIFT), (2, 16, 16, 3))
    other = random_images(8, 2, 16, 16, 3)
    for pair in ((zero, zero), (zero, other), (other, zero)):
        value, gradients = distance_and_gradients(unbiased, *pair)
        assert jnp.isfinite(value)
        assert all(jnp.isfinite(gradient).all() for gradient in gradients)
    assert jnp.abs(gradients[0]).max() > 0


def test_gradients_are_finite_for_constant_images(weights):
    constant = jnp.full((2, 16, 16, 3), 0.5, jnp.float32)
    towards, away = distance_and_gradients(weights, constant, random_images(10, 2, 16, 16, 3))[1]
    assert all(jnp.isfinite(gradient).all() and gradient.any() for gradient in (towards, away))
    for gradient in distance_and_gradients(weights, constant, constant)[1]:
        np.testing.assert_allclose(gradient, np.zeros((2, 16, 16, 3)), atol=1e-6)


def test_unit_adds_epsilon_to_the_norm_and_not_under_the_root():
    x = jnp.array([3e-10, 4e-10]).reshape(1, 1, 1, 2)
    np.testing.assert_allclose(unit(x).ravel(), [0.5, 4 / 6], rtol=1e-5)
    np.testing.assert_allclose(unit(jnp.array([[[[3.0, -4.0]]]])).ravel(), [0.6, -0.8], rtol=1e-6)


def test_unit_of_zero_is_zero_and_so_is_its_gradient():
    x = jnp.array([0.0, 0.0, 3.0, 4.0]).reshape(1, 1, 2, 2)
    np.testing.assert_allclose(unit(x).ravel(), [0, 0, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: unit(x).sum())(x).ravel(), [0, 0, 0.032, -0.024], rtol=1e-5)


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_what_is_loaded_is_what_was_saved(network, all_arrays, tmp_path):
    np.savez(tmp_path / "lpips.npz", **all_arrays[network], other=np.zeros(3))
    loaded = load_lpips(str(tmp_path / "lpips.npz"))
    assert loaded.keys() == shapes(network).keys()
    for name, array in loaded.items():
        assert isinstance(array, jax.Array)
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, all_arrays[network][name])


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError) as error:
        load_lpips(tmp_path / "none.npz")
    for part in (
        "https://download.pytorch.org/models/",
        "https://github.com/richzhang/PerceptualSimilarity",
        f"`python -m interop.lpips vgg {tmp_path / 'none.npz'}`",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 half an archive"])
def test_a_file_that_is_no_npz_is_refused(content, tmp_path):
    path = tmp_path / "lpips.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a readable npz"):
        load_lpips(path)


def test_a_folder_and_a_single_array_are_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    for path in (tmp_path, tmp_path / "array.npy"):
        with pytest.raises(UserError, match="not a readable npz"):
            load_lpips(path)


@pytest.mark.parametrize(
    ("network", "name"),
    [("vgg", "conv1_1/kernel"), ("vgg", "conv4_2/bias"), ("vgg", "lin3"), ("alex", "conv1_1/kernel"), ("alex", "lin2")],
)
def test_an_array_that_is_missing_or_of_another_shape_is_named(network, name, all_arrays, tmp_path):
    arrays = all_arrays[network]
    np.savez(tmp_path / "missing.npz", **{key: array for key, array in arrays.items() if key != name})
    with pytest.raises(UserError, match=f"lacks the array '{name}'"):
        load_lpips(tmp_path / "missing.npz")
    np.savez(tmp_path / "shape.npz", **{**arrays, name: np.moveaxis(arrays[name][None], 1, 0)})
    with pytest.raises(UserError, match=f"'{name}' has the shape"):
        load_lpips(tmp_path / "shape.npz")


def taps_of_vgg16(functional, convolve, x):
    """The features before each pool, and the last ones."""
    for name in VGG16:
        if name in ("conv2_1", "conv3_1", "conv4_1", "conv5_1"):
            x = functional.max_pool2d(x, kernel_size=2, stride=2)
        x = functional.relu(convolve(name, x, padding=1))
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            yield x


def taps_of_alexnet(functional, convolve, x):
    x = functional.relu(convolve("conv1_1", x, stride=4, padding=2))
    yield x
    x = functional.relu(convolve("conv2_1", functional.max_pool2d(x, kernel_size=3, stride=2), padding=2))
    yield x
    x = functional.relu(convolve("conv3_1", functional.max_pool2d(x, kernel_size=3, stride=2), padding=1))
    yield x
    x = functional.relu(convolve("conv4_1", x, padding=1))
    yield x
    yield functional.relu(convolve("conv5_1", x, padding=1))


@pytest.mark.parametrize(
    ("network", "shape"),
    [("vgg", (2, 16, 16)), ("vgg", (1, 37, 50)), ("alex", (2, 31, 34)), ("alex", (1, 64, 87))],
)
def test_equals_a_torch_implementation(network, shape, all_arrays):
    torch = pytest.importorskip("torch", reason="compares with an implementation in torch")
    functional, arrays = torch.nn.functional, all_arrays[network]
    double = lambda array: torch.tensor(np.asarray(array), dtype=torch.float64)  # noqa: E731
    shift, scale = double([-0.030, -0.088, -0.188]), double([0.458, 0.448, 0.450])

    def convolve(name, x, **options):
        kernel, bias = double(arrays[f"{name}/kernel"]).permute(3, 2, 0, 1), double(arrays[f"{name}/bias"])
        return functional.conv2d(x, kernel, bias, **options)

    def taps(images):
        of = taps_of_vgg16 if network == "vgg" else taps_of_alexnet
        return of(functional, convolve, ((images - shift) / scale).permute(0, 3, 1, 2))

    images, references = random_images(11, *shape, 3), random_images(12, *shape, 3)
    x, y = double(images).requires_grad_(), double(references)
    expected = torch.zeros(shape[0], dtype=torch.float64)
    for level, (ours, theirs) in enumerate(zip(taps(x), taps(y)), start=1):
        unit_ours = ours / (ours.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        unit_theirs = theirs / (theirs.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)
        lin = double(arrays[f"lin{level}"])[None, :, None, None]
        expected = expected + functional.conv2d((unit_ours - unit_theirs) ** 2, lin).mean((1, 2, 3))
    weights = {name: jnp.asarray(array) for name, array in arrays.items()}
    np.testing.assert_allclose(distance(weights, images, references), expected.detach().numpy(), rtol=1e-5)
    if len(images) == 2:
        expected.sum().backward()
        gradient = distance_and_gradients(weights, images, references)[1][0]
        np.testing.assert_allclose(gradient, x.grad.numpy(), atol=1e-4 * float(x.grad.abs().max()))
