import io
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fidelity import load_network
from PIL import Image

from evaluation.fid import measure_distance
from evaluation.inception import FEATURES, inception_features, load_inception, resize
from evaluation.inception_network import SHAPES
from evaluation.statistics import Statistics, frechet_distance
from models.errors import UserError

WEIGHTS = "inception_fid_2015_to_mixed_6e.npz"
features = jax.jit(inception_features, static_argnums=2)


@pytest.fixture(scope="module")
def real(shared):
    return load_inception(shared / "data" / "weights" / WEIGHTS)


@pytest.fixture(scope="module")
def reference(shared):
    with np.load(shared / "parity" / "inception" / "ref.npz") as file:
        return dict(file)


@pytest.mark.parametrize("size", ["28", "32", "64", "299", "400x320"])
def test_features_of_the_real_weights(size, real, reference):
    ours = features(real.params, reference[f"images_{size}"], ("64", "192", "768"))
    for name, value in ours.items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, reference[f"features{name}_{size}"], atol=1e-4, rtol=0)


def test_resize_is_that_of_tensorflow_1(reference):
    np.testing.assert_allclose(resize(reference["images_32"])[0, :40, :40], reference["resized_32"][0], atol=1e-3)
    shrunk = resize(reference["images_400x320"])
    assert shrunk.shape == (1, 299, 299, 3)
    np.testing.assert_allclose(shrunk[0, -24:, -24:], reference["resized_400x320"][0], atol=1e-3)
    images = np.random.default_rng(0).integers(0, 256, (2, 299, 299, 3), np.uint8)
    np.testing.assert_array_equal(resize(images), images)


@pytest.mark.slow
def test_frechet_distances_of_real_images(real, cifar10):
    found = [features(real.params, cifar10[start : start + 50], ("64", "192", "768")) for start in range(0, 1000, 50)]
    for name, distance in {"64": 0.02530, "192": 0.16386, "768": 0.29681}.items():
        halves = np.split(np.concatenate([batch[name] for batch in found]), 2)
        measured = frechet_distance(*(Statistics.of(half) for half in halves))
        assert measured.value == pytest.approx(distance, abs=5e-4)


def test_each_feature_is_computed_as_deep_as_it_needs(real):
    """Later layers' weights are not looked at: their numbers may be missing from the parameters."""
    images = jax.ShapeDtypeStruct((1, 20, 30, 3), jnp.uint8)
    last = {"64": "Conv2d_2b_3x3", "192": "Conv2d_4a_3x3", "spatial": "Mixed_6d", "768": "Mixed_6e"}
    names = list(SHAPES)
    for name, layer in last.items():
        end = max(number for number, key in enumerate(names) if key.startswith(layer))
        enough = {key: real.params[key] for key in names[: end + 1]}
        traced = partial(inception_features, wanted=(name,))
        assert list(jax.eval_shape(traced, enough, images)) == [name]
        with pytest.raises(KeyError, match=layer):
            jax.eval_shape(traced, {key: enough[key] for key in names[:end]}, images)


def test_a_word_that_is_no_feature_or_that_the_weights_do_not_reach(real):
    images = np.zeros((1, 8, 8, 3), np.uint8)
    assert real.features == ("64", "192", "768", "spatial")
    for name in ("2048", "logits"):
        with pytest.raises(UserError, match=f"these weights end before the features '{name}'"):
            inception_features(real.params, images, (name,))
    with pytest.raises(UserError, match="unknown feature '2047'; did you mean '2048'"):
        inception_features(real.params, images, ("2047",))


def test_weights_are_looked_for_where_the_documentation_says(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"give a file such as pt_inception-2015-12-05-6726825d.pth.* TESSERA_WEIGHTS"):
        load_inception()
    path = shared / "data" / "weights" / WEIGHTS
    (tmp_path / "tessera").mkdir()
    (tmp_path / "tessera" / "pt_inception-2015-12-05-6726825d.pth").symlink_to(path)
    from_cache = load_inception()
    monkeypatch.setenv("TESSERA_WEIGHTS", str(path))
    assert load_inception().sha256 == from_cache.sha256 == load_inception("download").sha256
    assert from_cache.sha256 == "549f8da0e461e671802d8a24ba9f68caacfa3a779b4b7a747a1af8eb5c99d684"
    monkeypatch.setenv("TESSERA_WEIGHTS", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no file"):
        load_inception()


@pytest.fixture(scope="module")
def fidelity():
    """The module of torch-fidelity that defines the network."""
    return load_network()


THEIRS = {"64": "64", "192": "192", "768": "768", "2048": "2048", "logits": "logits_unbiased"}


@pytest.fixture(scope="module")
def whole(fidelity, tmp_path_factory):
    """A file like the public one with random numbers, and torch-fidelity's network with them."""
    import torch

    path = tmp_path_factory.mktemp("weights") / "random.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
        state = fidelity.FeatureExtractorInceptionV3("network", ["2048"]).state_dict()
    torch.manual_seed(0)
    for name, tensor in state.items():
        if tensor.ndim > 1:  # He's: relu keeps the scale
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.2)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path, fidelity.FeatureExtractorInceptionV3("network", list(THEIRS.values()), str(path))


@pytest.fixture(scope="module")
def images():
    """Smooth and noisy, of a size that is neither square nor the network's."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 50, 70, 3), np.uint8)
    noise[2:] = np.asarray([Image.fromarray(small).resize((70, 50)) for small in noise[2:, :5, :7]])
    return noise


def theirs(network, images):
    import torch

    with torch.no_grad():
        values = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return {name: value.numpy() for name, value in zip(THEIRS, values)}


def apart(x, y):
    """The largest difference, in units of y's largest number."""
    return np.abs(x - y).max() / np.abs(y).max()


def test_the_whole_network_is_that_of_torch_fidelity(whole, images):
    path, network = whole
    spatial = []
    with_hook = network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: spatial.append(call[2].numpy()))
    reference = theirs(network, images)
    with_hook.remove()
    loaded = load_inception(path)
    assert loaded.features == FEATURES
    ours = features(loaded.params, images, FEATURES)
    for name, value in reference.items():
        assert 1e-2 < value.std() < 1e2, f"{name}: nothing can be seen in numbers of this size"
        assert apart(ours[name], value) < 1e-5
        assert apart(value[0], value[1]) > 1e-2, f"{name}: two images give the same numbers"
    assert ours["spatial"].shape == (4, 2023)
    assert apart(ours["spatial"], spatial[0][:, :7].transpose(0, 2, 3, 1).reshape(4, -1)) < 1e-5


@pytest.mark.parametrize("mistake", ["padding counts in averages", "Mixed_7c pools by the average"])
def test_the_comparison_would_see_the_pooling_of_other_inceptions(mistake, whole, images, fidelity, monkeypatch):
    _, network = whole
    average, maximum = fidelity.F.avg_pool2d, fidelity.F.max_pool2d
    changed = types.SimpleNamespace(**vars(fidelity.F))
    if mistake.startswith("padding"):
        changed.avg_pool2d = lambda x, count_include_pad, **how: average(x, **how)
    else:
        changed.max_pool2d = lambda x, stride, **how: (average if stride == 1 else maximum)(x, stride=stride, **how)
    right = theirs(network, images)["2048"]
    monkeypatch.setattr(fidelity, "F", changed)
    assert apart(theirs(network, images)["2048"], right) > 1e-3


@pytest.mark.public_weights
def test_the_public_weights_give_what_tensorflow_gave(shared, public_weights):
    weights = load_inception(public_weights)
    with np.load(shared / "parity" / "inception" / "tf_pool3.npz") as file:
        for number, pool3 in enumerate(file["pool3"]):
            image = np.asarray(Image.open(io.BytesIO(file[f"jpeg_{number}"].tobytes())).convert("RGB"))
            ours = features(weights.params, image[None], ("2048",))["2048"][0]
            # Another JPEG decoder moves the features by a few percent.
            assert np.linalg.norm(ours - pool3) < 0.05 * np.linalg.norm(pool3)


@pytest.mark.slow
@pytest.mark.public_weights
def test_the_public_weights_give_the_known_fid_of_cifar10(cifar10_folder, public_weights):
    train, test = (str(cifar10_folder / f"{split}.npz") for split in ("train", "test"))
    found = measure_distance(train, test, features="2048", weights=str(public_weights), resolution=0)
    assert (found["n_a"], found["n_b"]) == (50_000, 10_000)
    assert found["fid"] == pytest.approx(3.15, abs=0.02)
