"""Weights that come from elsewhere: what a training makes of them, and that it leaves them alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.errors import UserError
from training.checkpoints import IMPORTED, Checkpoints


@pytest.fixture
def weights(generator_learner):
    """Parameters that no seed of a training gives, as numpy has them."""
    params, _ = generator_learner.init(jax.random.key(99))
    return jax.tree.map(np.asarray, params["generator"])


@pytest.fixture
def imported(weights, tmp_path):
    """The checkpoints' folder with them as the only ones."""
    directory = tmp_path / "generator" / "checkpoints"
    checkpoints = Checkpoints(directory)
    checkpoints.save_imported(weights)
    checkpoints.close()
    return directory


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def restored(directory, weights, step):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), weights)
    checkpoints = Checkpoints(directory, read_only=True)
    found = checkpoints.restore({"ema": shapes}, only=step)
    checkpoints.close()
    return found[1]["ema"]


def test_they_are_read_as_they_were(imported, weights, same):
    assert same(restored(imported, weights, None), weights)


def test_a_training_begins_with_them(imported, weights, train_generator):
    train_generator(steps=1, learning_rate=1e-12)
    trained = restored(imported, weights, 1)
    for path, leaf in jax.tree.leaves_with_path(weights):
        np.testing.assert_allclose(leaf, get(trained, path), atol=1e-9, err_msg=jax.tree_util.keystr(path))


def get(tree, path):
    for key in path:
        tree = tree[key.key]
    return tree


def test_a_training_keeps_them_and_goes_on_from_its_own(imported, weights, train_generator, same, capsys):
    train_generator(steps=4, keep_last=1, keep_best=0)
    assert steps(imported) == [IMPORTED, 4]
    assert same(restored(imported, weights, IMPORTED), weights)
    assert "beginning with the imported weights" in capsys.readouterr().out
    train_generator(steps=6, keep_last=1, keep_best=0)
    assert steps(imported) == [IMPORTED, 6]
    assert "going on at step 4" in capsys.readouterr().out
    assert not list(imported.glob("damaged-*"))


def test_a_run_from_them_stopped_and_gone_on_is_the_undisturbed_one(imported, train_generator, tmp_path):
    train_generator(steps=2)
    train_generator(steps=4)
    parts = json.loads((imported / "4" / "checksums" / "metadata").read_text())
    for step in (2, 4):
        (imported / str(step)).rename(tmp_path / str(step))
    train_generator(steps=4)
    assert json.loads((imported / "4" / "checksums" / "metadata").read_text()) == parts


def test_damaged_ones_are_refused_and_no_random_ones_taken_instead(imported, train_generator):
    files = [path for path in imported.rglob("*") if path.is_file() and "ema" in path.parts]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"imported weights.*damaged"):
        train_generator(steps=2)
    assert steps(imported) == [IMPORTED]


def test_those_of_another_model_are_refused(imported, train_generator):
    with pytest.raises(UserError, match="another config"):
        train_generator(steps=2, generator={"mlp": 48})
    assert steps(imported) == [IMPORTED]


def test_without_any_there_is_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore_imported({"a": jax.ShapeDtypeStruct((), jnp.float32)}) is None
    checkpoints.close()
